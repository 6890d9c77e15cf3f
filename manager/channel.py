"""A client's channel: many requests over one connection, told apart by their ids.

    caller threads ──send──► [waiting batch] ──one of them writes──► socket
    socket ──reader thread──► on_events(list)                        (ends with on_lost)

What is sent while another thread is writing leaves with that thread's next write: a group commit, without delay when
nobody else is there.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from callpool.manager import wire
from callpool.manager.errors import CallpoolError, ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.messages import ClientEvent, ClientMessage
    from callpool.manager.proxy import WireConnection

SERVICE_IDENT = "service"


class Channel:
    """The connection after `open_channel`. Shared state, all under `_lock`: `_waiting`, `_writing`, `_closed`."""

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
        self._waiting: list[ClientMessage] = []
        self._writing = False
        self._closed = False
        self._reader = threading.Thread(target=self._read, name="callpool-reader", daemon=True)

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
        self._reader.start()

    def send(self, message: ClientMessage) -> None:
        """Send a message, with whatever else is waiting. Returns when it is written, or left to the thread that writes."""
        with self._lock:
            if self._closed:
                raise ConnectionLost("the client is closed, or its connection to the supervisor broke")
            self._waiting.append(message)
            if self._writing:
                return
            self._writing = True
        while True:
            with self._lock:
                batch, self._waiting = self._waiting, []
                if not batch:
                    self._writing = False
                    return
            self._write(batch)

    def _write(self, batch: list[ClientMessage]) -> None:
        try:
            for data in wire.batches(batch):
                self._connection.socket.sendall(data)
        except OSError as error:
            with self._lock:
                self._writing = False
            self._shut()
            raise ConnectionLost(f"the connection to the supervisor broke: {error}") from None

    def _read(self) -> None:
        why = ""
        try:
            while True:
                body = self._connection.recv_frame()
                self._on_events(wire.decode(wire.client_events, body, "event"))
        except CallpoolError as error:
            why = error.message
        except (OSError, ValueError) as error:  # closed by `close` while reading
            why = str(error)
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
        with contextlib.suppress(OSError):  # the other side was first
            self._connection.socket.shutdown(socket.SHUT_RDWR)  # wakes the reader, which closes the socket
        return True

    def close(self) -> None:
        """End the connection; the supervisor cancels what this client still waits for. Idempotent."""
        self._shut()
        if threading.current_thread() is not self._reader and self._reader.ident is not None:
            self._reader.join(timeout=5.0)
