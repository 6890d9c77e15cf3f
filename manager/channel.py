"""A client's channel: many requests over one connection, told apart by their ids.

    caller threads ──send──────────────► socket     at once, with whatever waits
                   ──post──► [waiting] ─► socket    with others: at 64, when somebody waits for an answer, or soon
    socket ──► whoever waits, or the background thread (`reading`) ──► on_events(list) … on_lost(error)

What is sent while another thread is writing leaves with that thread's next write.

Shared state: `_waiting`, `_writing`, `_closed`, under `_lock`; `_arrived` and `_framer`, of the one who reads.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from callpool.manager import wire
from callpool.manager.errors import CallpoolError, ConnectionLost
from callpool.manager.reading import PATIENCE, Reading, Sleeper

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.messages import ClientEvent, ClientMessage
    from callpool.manager.proxy import WireConnection

SERVICE_IDENT = "service"
READ_BYTES = 64 * 1024
POST_BATCH = 64
"""Posted messages that leave without anybody waiting."""


class Channel:
    """The connection after `open_channel`."""

    def __init__(
        self,
        connection: WireConnection,
        lock: threading.Lock,
        *,
        on_events: Callable[[list[ClientEvent]], None],
        on_lost: Callable[[ConnectionLost], None],
    ) -> None:
        """`lock` guards what `on_events` changes; sleepers of waiting threads are woken under it."""
        self._connection = connection
        self._socket = connection.socket
        self._framer, self._frames = connection.rest()
        self._on_events = on_events
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._waiting: list[ClientMessage] = []
        self._writing = False
        self._closed = False
        self._arrived: deque[bytes] = deque()
        self._posted = Sleeper()
        seconds, fraction = divmod(PATIENCE, 1.0)
        timeout = struct.pack("ll", int(seconds), int(fraction * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        self._reading = Reading(self._socket, lock, read_once=self._read_once)
        self._threads = [
            threading.Thread(target=self._read_in_background, name="callpool-reader", daemon=True),
            threading.Thread(target=self._write_in_background, name="callpool-writer", daemon=True),
        ]

    @staticmethod
    def open(connection: WireConnection) -> dict[str, Any]:
        """Turn a fresh connection into a channel; returns what the supervisor tells about itself."""
        connection.send((SERVICE_IDENT, "open_channel", (), {}))
        kind, value = connection.recv()
        if kind != wire.KIND_RETURN:
            raise value if isinstance(value, CallpoolError) else ConnectionLost("the supervisor opened no channel")
        described: dict[str, Any] = value
        return described

    def start(self) -> None:
        """Begin to read."""
        for thread in self._threads:
            thread.start()

    # Writing.

    def send(self, message: ClientMessage) -> None:
        """Send a message now, with whatever waits. Returns when it is written, or left to the thread that writes."""
        self._append(message)
        self.flush()

    def post(self, message: ClientMessage) -> None:
        """Send a message soon, with others."""
        waiting = self._append(message)
        if waiting >= POST_BATCH:
            self.flush()
        elif waiting == 1:
            with self._lock:
                self._posted.wake()

    def flush(self) -> None:
        """Write what waits, unless another thread is at it."""
        with self._lock:
            if self._writing or not self._waiting:
                return
            self._writing = True
        while True:
            with self._lock:
                batch, self._waiting = self._waiting, []
                if not batch:
                    self._writing = False
                    return
            self._write(batch)

    def _append(self, message: ClientMessage) -> int:
        with self._lock:
            if self._closed:
                raise ConnectionLost("the client is closed, or its connection to the supervisor broke")
            self._waiting.append(message)
            return len(self._waiting)

    def _write(self, batch: list[ClientMessage]) -> None:
        try:
            for data in wire.batches(batch):
                self._socket.sendall(data)
        except BaseException as error:
            # Half a frame may be out, also when it was a Ctrl-C: nothing more can follow it.
            with self._lock:
                self._writing = False
            self._shut()
            if isinstance(error, OSError):
                raise ConnectionLost(f"the connection to the supervisor broke: {error}") from None
            raise

    def _write_in_background(self) -> None:
        """Send what was posted by threads that then waited for nothing."""
        while not self._closed:
            self._posted.sleep(None)
            with contextlib.suppress(ConnectionLost):  # whoever reads learns of it, and tells everybody
                self.flush()

    # Reading.

    def wait(self, ready: Callable[[], bool], sleeper: Sleeper, deadline: float | None) -> bool:
        """Wait until `ready()`; false at the deadline. See `Reading.wait`."""
        self.flush()
        return self._reading.wait(ready, sleeper, deadline)

    def _read_in_background(self) -> None:
        self._reading.run_background()
        self._connection.close()

    def _read_once(self) -> bool:
        """Receive and handle; false when the connection has ended."""
        try:
            # One step for the interpreter: a Ctrl-C comes before it and nothing is taken, or after it and nothing is lost.
            self._arrived.extend(map(self._socket.recv, (READ_BYTES,)))
        except BlockingIOError:
            return not self._closed
        except OSError as error:
            return self._end(f"the connection to the supervisor broke: {error}")
        try:
            return self._handle_arrived()
        except CallpoolError as error:
            return self._end(error.message)
        except BaseException:
            self._end("interrupted while an answer was being taken")  # half of it may be lost
            raise

    def _handle_arrived(self) -> bool:
        while self._frames:
            self._on_events(wire.decode(wire.client_events, self._frames.pop(0), "event"))
        while self._arrived:
            data = self._arrived.popleft()
            if not data:
                return self._end("the supervisor closed the connection")
            for body in self._framer.feed(data):
                self._on_events(wire.decode(wire.client_events, body, "event"))
        return True

    # Ending.

    def _end(self, why: str) -> bool:
        """Nothing more will come: tell everybody. Always false."""
        if not self._shut():
            why = "the client was closed, or its connection to the supervisor broke"
        self._on_lost(ConnectionLost(why))
        return False

    def _shut(self) -> bool:
        """Let nobody send any more; whether this was the first call."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
            self._posted.wake()
        with contextlib.suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)  # ends the receive of whoever reads
        return True

    def close(self) -> None:
        """End the connection; the supervisor cancels what this client still waits for. Idempotent."""
        self._shut()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout=5.0)
