"""One end of a worker's private socket pair: its inbox at one side, its outbox at the other.

Each worker has a pair of its own and each end one owner, so a process that dies tears this pipe alone, and what it had
sent before can still be read to the end. What is sent during one turn of the event loop leaves in one frame, straight
into the kernel: `flushed` tells when, which is what "the call has not started yet" rests on.

Used by both sides. Owner: the event loop's thread of the process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from callpool.manager import wire
from callpool.manager.errors import ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    import msgspec

READ_BYTES = 64 * 1024
"""A larger buffer is mapped and unmapped by the system for every receive."""


class Link:
    """Batched messages over a connected stream socket, on the running event loop."""

    def __init__(
        self,
        connected: socket.socket,
        decoder: msgspec.msgpack.Decoder[Any],
        *,
        on_messages: Callable[[list[Any]], None],
        on_end: Callable[[str], None],
    ) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._decoder = decoder
        self._on_messages = on_messages
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._framer = wire.Framer()
        self._batch: list[Any] = []
        self._backlog: deque[memoryview] = deque()
        """Frames that the kernel had no room for."""
        self._unsent = 0
        self._flush_waiters: list[asyncio.Future[None]] = []
        self._open = True
        self._mute = False
        """Nothing can be sent any more, though there may be something to read."""
        self._loop.add_reader(connected.fileno(), self._readable)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the other side to read."""
        return self._unsent

    def send(self, message: Any) -> None:
        """Send with everything else of this turn of the loop."""
        if not self._batch:
            self._loop.call_soon(self.flush)
        self._batch.append(message)

    def flush(self) -> None:
        """Send now what this turn has brought so far."""
        batch, self._batch = self._batch, []
        if not self._open or self._mute:
            return
        if batch:
            for data in wire.batches(batch):
                self._write(data)
        if not self._backlog and not self._mute:
            self._wake_waiters()

    def flushed(self) -> asyncio.Future[None]:
        """Done when all that was sent before is in the kernel, where this process's death cannot take it back."""
        future: asyncio.Future[None] = self._loop.create_future()
        if self._batch or self._backlog or self._mute:
            self._flush_waiters.append(future)
        else:
            future.set_result(None)
        return future

    def close(self) -> None:
        """Close this end; the other side reads what is left, then the end. Idempotent."""
        if self._open:
            self.flush()
        self._shut()

    def close_as_ended(self) -> None:
        """Give up on a pipe whose owner has exited and that somebody else holds open."""
        self._end("its owner has exited")

    def read_rest(self) -> None:
        """Take what a dead peer had still sent; ends with `on_end`."""
        while self._open and self._readable():
            pass

    def _fall_silent(self) -> None:
        """The other side reads no more. What it had sent may still lie here, so the reader goes on to the end of the pipe.

        Whoever waits for `flushed` waits on: nothing is in the kernel, and the end of the pipe follows at once.
        """
        self._mute = True
        if self._backlog:
            self._loop.remove_writer(self._socket.fileno())
            self._backlog.clear()
        self._unsent = 0

    def _write(self, data: bytes) -> None:
        sent = 0
        if self._mute:
            return
        if not self._backlog:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._fall_silent()
                return
            if sent == len(data):
                return
            self._loop.add_writer(self._socket.fileno(), self._writable)
        self._backlog.append(memoryview(data)[sent:])
        self._unsent += len(data) - sent

    def _writable(self) -> None:
        while self._backlog:
            data = self._backlog[0]
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._fall_silent()
                return
            self._unsent -= sent
            if sent < len(data):
                self._backlog[0] = data[sent:]
                return
            self._backlog.popleft()
        self._loop.remove_writer(self._socket.fileno())
        self._wake_waiters()

    def _readable(self) -> bool:
        """Read once; whether anything came."""
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._end(error.strerror or "the pipe broke")
            return False
        if not data:
            self._end("it closed its pipe")
            return False
        try:
            for body in self._framer.feed(data):
                self._on_messages(wire.decode(self._decoder, body, "message"))
        except ProtocolError as error:
            self._end(error.message)
            return False
        return True

    def _end(self, why: str) -> None:
        if self._shut():
            self._on_end(why)

    def _shut(self) -> bool:
        """Close the socket; whether it was open."""
        if not self._open:
            return False
        self._open = False
        self._loop.remove_reader(self._socket.fileno())
        if self._backlog:
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._wake_waiters()
        return True

    def _wake_waiters(self) -> None:
        waiters, self._flush_waiters = self._flush_waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)
