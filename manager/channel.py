"""A client's channel: many requests over one connection, told apart by their ids.

    caller threads ──send──► [waiting] ──writer thread──► socket      what waits leaves together
    caller threads ◄─wake── on_events ◄──reader thread──── socket     … and on_lost, once, at the end

Callers only put messages into the list and sleep: Python delivers Ctrl-C to the main thread, at any line, and a thread that is
interrupted between two lines of reading or writing would leave half a frame behind. (Callers that read for themselves save two
changes of threads a round trip; tried, and given up for this.)

Shared state: `_waiting`, `_closed`, under `_lock`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager import wire
from callpool.manager.errors import BadInput, CallpoolError, ConnectionLost, NotSerializable

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.messages import ClientEvent, ClientMessage
    from callpool.manager.proxy import WireConnection

SERVICE_IDENT = "service"
OPEN_DEADLINE = 10.0
"""Seconds for the supervisor to open the channel after the handshake."""
ANSWER_DEADLINE = 30.0
"""Seconds for the supervisor's own answers (not a provider's): beyond it the supervisor is stopped or stuck."""
MAX_MESSAGE = wire.FRAME_LIMIT // 2


class Sleeper:
    """One waiting thread's bed: `sleep` returns when `wake` was called, before or meanwhile. Wake under the owner's lock."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, seconds: float | None = None) -> bool:
        """Until somebody wakes this thread, or so many seconds; whether it was woken."""
        return self._lock.acquire(timeout=-1 if seconds is None else seconds)

    def wake(self) -> None:
        """End the sleep, or the next one."""
        if self._lock.locked():
            self._lock.release()


class Channel:
    """The connection after `open_channel`."""

    def __init__(
        self,
        connection: WireConnection,
        *,
        on_events: Callable[[list[ClientEvent]], None],
        on_lost: Callable[[ConnectionLost], None],
    ) -> None:
        self._connection = connection
        self._on_events = on_events
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._waiting: list[msgspec.Raw] = []
        self._closed = False
        self._something = Sleeper()
        """Woken when there is something to write, or nothing ever again."""
        self._threads = [
            threading.Thread(target=self._read, name="callpool-reader", daemon=True),
            threading.Thread(target=self._write, name="callpool-writer", daemon=True),
        ]

    @staticmethod
    def open(connection: WireConnection) -> dict[str, Any]:
        """Turn a fresh connection into a channel; returns what the supervisor tells about itself."""
        connection.socket.settimeout(OPEN_DEADLINE)
        try:
            connection.send((SERVICE_IDENT, "open_channel", (), {}))
            kind, value = connection.recv()
        except TimeoutError:
            raise ConnectionLost(f"the supervisor opened no channel within {OPEN_DEADLINE:g} s") from None
        connection.socket.settimeout(None)
        if kind != wire.KIND_RETURN:
            raise value if isinstance(value, CallpoolError) else ConnectionLost("the supervisor opened no channel")
        described: dict[str, Any] = value
        return described

    def start(self) -> None:
        """Begin to read and write."""
        for thread in self._threads:
            thread.start()

    def send(self, message: ClientMessage) -> None:
        """Send a message, with whatever else waits. Raises for what cannot be sent, and when the connection has ended."""
        encoded = encode_message(message)
        with self._lock:
            if self._closed:
                raise ConnectionLost("the client is closed, or its connection to the supervisor broke")
            self._waiting.append(encoded)
            self._something.wake()

    def _write(self) -> None:
        while True:
            self._something.sleep()
            with self._lock:
                if self._closed:
                    return
                batch, self._waiting = self._waiting, []
            try:
                for data in wire.batches(batch) if batch else ():
                    self._connection.socket.sendall(data)
            except OSError:
                self._shut()  # the reader learns of it, and tells everybody
                return

    def _read(self) -> None:
        why = ""
        try:
            while True:
                self._on_events(wire.decode(wire.client_events, self._connection.recv_frame(), "event"))
        except CallpoolError as error:
            why = error.message
        if not self._shut():
            why = "the client was closed, or its connection to the supervisor broke"
        self._connection.close()
        self._on_lost(ConnectionLost(why))

    def _shut(self) -> bool:
        """Let nobody send any more; whether this was the first call."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            self._something.wake()
        with contextlib.suppress(OSError):  # the other side was first
            self._connection.socket.shutdown(
                socket.SHUT_RDWR
            )  # ends the receive of the reader, which closes the socket
        return True

    def close(self) -> None:
        """End the connection; the supervisor cancels what this client still waits for. Idempotent."""
        self._shut()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout=5.0)


def encode_message(message: ClientMessage) -> msgspec.Raw:
    """The message's bytes; in the caller, so that what cannot be sent costs nobody else anything."""
    try:
        encoded = wire.encoder.encode(message)
    except (TypeError, ValueError, OverflowError) as error:  # text that is no UTF-8 is a ValueError
        raise NotSerializable(f"the message cannot be sent: {error}") from None
    if len(encoded) > MAX_MESSAGE:
        raise BadInput(f"the message has {len(encoded)} bytes, the limit is {MAX_MESSAGE}", limit=MAX_MESSAGE)
    return msgspec.Raw(encoded)
