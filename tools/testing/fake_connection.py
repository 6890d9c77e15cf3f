"""One TCP connection of a client: requests are read at all times, and answered one after another.

Two tasks. One reads for as long as the connection lives, also during an answer: this is how a client that leaves is
noticed at once, whatever the answer is waiting for. The other answers. When either is done, the other one is.

    socket ──► reader task ──► queue of requests ──► answering task ──► socket
                    └─ end of input: cancels the answer

A client that closes only its sending side counts as gone, as it does for the providers' front servers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from callpool.tools.testing.fake_http import Refusal, Request, RequestParser

READ_SIZE = 65_536

Respond = Callable[["Connection", Request | Refusal], Awaitable[bool]]
"""Answers one request; returns whether the connection stays open."""


class Connection:
    """Owner of everything here: the fake's event loop."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, respond: Respond
    ) -> None:
        self.number = number
        self.writer = writer
        self._reader = reader
        self._respond = respond
        self._requests: asyncio.Queue[Request | Refusal] = asyncio.Queue()

    async def serve(self) -> None:
        """Serve until the client leaves, an answer wants the connection closed, or `abort`."""
        answering = asyncio.create_task(self._answer())
        answering.add_done_callback(lambda _: self.writer.close())  # which ends the reading
        try:
            await self._read()
        finally:
            answering.cancel()
            await asyncio.wait([answering])
            self.abort()  # what a client that is gone has not read, it will not read
            with contextlib.suppress(OSError):  # how the connection broke is the client's affair
                await self.writer.wait_closed()
        if not answering.cancelled():
            answering.result()

    def abort(self) -> None:
        """Cut the connection now; `serve` returns."""
        self.writer.transport.abort()

    async def _read(self) -> None:
        parser = RequestParser()
        try:
            while data := await self._reader.read(READ_SIZE):
                for request in parser.feed(data):
                    self._requests.put_nowait(request)
        except ConnectionError:
            return  # a reset is an end of input too

    async def _answer(self) -> None:
        try:
            while await self._respond(self, await self._requests.get()):
                pass
        except ConnectionError:
            return  # the client left while bytes were on their way to it
