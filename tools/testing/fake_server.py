"""The fake provider itself: an HTTP server on loopback that keeps a provider's limits and fails on order."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from callpool.tools.testing.fake_connection import Connection
from callpool.tools.testing.fake_dialects import DIALECTS
from callpool.tools.testing.fake_faults import find_fault
from callpool.tools.testing.fake_history import History, Predicate
from callpool.tools.testing.fake_limits import Limits
from callpool.tools.testing.fake_records import CallRecord, Totals
from callpool.tools.testing.fake_requests import Options
from callpool.tools.testing.fake_service import Service

HOST = "127.0.0.1"
BACKLOG = 4_096
"""Connections that may wait to be accepted: load tests open thousands at once, and none may look refused."""
STOP_LIMIT = 5.0
"""Seconds for the tasks of aborted connections to end; they need a few turns of the loop."""
TURNS = 3
"""Turns of the event loop within which an accepted connection is known."""


class FakeProvider:
    """A provider inside the caller's event loop: `async with FakeProvider(...) as fake`, then call `fake.base_url`.

    `concurrency`, `rpm`, `tpm` and `tpd` are limits of each key. With `api_key` other keys are refused. `log_path` is the
    append-only log. `keep_calls=False` keeps no record of ended calls in memory. All further options are those of each
    answer, unless its request says otherwise: see `Options`.
    """

    def __init__(
        self,
        *,
        dialect: str = "openai",
        concurrency: int | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        tpd: int | None = None,
        api_key: str | None = None,
        log_path: Path | str | None = None,
        port: int = 0,
        keep_calls: bool = True,
        **options: Any,
    ) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"dialect is {dialect!r}: it must be one of {', '.join(DIALECTS)}")
        self._dialect = DIALECTS[dialect]
        answers = msgspec.convert(options, Options)
        if answers.fault is not None:
            find_fault(answers.fault)
        limits = Limits(concurrency=concurrency, rpm=rpm, tpm=tpm, tpd=tpd)
        self._port = port
        self._history = History(Path(log_path) if log_path is not None else None, keep=keep_calls)
        self._service = Service(self._dialect, answers, limits, api_key, self._history)
        self._server: asyncio.Server | None = None
        self._connection_numbers = itertools.count(1)
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._defects: list[BaseException] = []

    @property
    def base_url(self) -> str:
        """Root of the API, as a provider's `base_url` setting wants it. Known once started."""
        if not self._port:
            raise RuntimeError("the fake provider has no address before start()")
        return f"http://{HOST}:{self._port}{self._dialect.root}"

    @property
    def calls(self) -> list[CallRecord]:
        """Calls seen so far, in order of arrival; the records of open calls change until they end."""
        return self._history.calls

    @property
    def active(self) -> int:
        """Calls that are open now."""
        return self._history.active

    @property
    def peak_active(self) -> int:
        """The most calls that were open at the same moment, refused ones included."""
        return self._history.peak_active

    @property
    def totals(self) -> Totals:
        """Connections accepted and calls seen so far."""
        return self._history.totals

    async def wait_for(self, predicate: Predicate, timeout: float = 5.0) -> list[CallRecord]:  # noqa: ASYNC109  # called as in FakeProviderProcess
        """Wait until `predicate` holds of the calls; TimeoutError after `timeout` seconds."""
        return await self._history.wait_for(predicate, timeout)

    async def start(self) -> None:
        """Listen. A fake starts once."""
        if self._server is not None:
            raise RuntimeError("the fake provider was started before")
        self._history.open()
        try:
            self._server = await self._listen()
        except BaseException:
            self._history.close()
            raise
        self._port = self._server.sockets[0].getsockname()[1]
        self._history.start(self._port, self.base_url, self._dialect.name)

    async def refuse(self) -> None:
        """Refuse new connections from now on; those that are open go on. Harmless while it refuses already."""
        if self._server is None:
            raise RuntimeError("the fake provider was not started")
        await self._close_listener(self._server)

    async def accept(self) -> None:
        """Take connections again, at the same address. Harmless while it does already."""
        if self._server is None or self._service.stopping:
            raise RuntimeError("the fake provider is not running")
        if not self._server.is_serving():
            self._server = await self._listen()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, HOST, self._port, backlog=BACKLOG)

    async def stop(self) -> None:
        """End every open call and connection, and wait until they are gone. Records stay readable.

        A defect of the fake itself, which broke off a connection, is raised here: no test passes because of it.
        """
        self._service.stopping = True
        if self._server is None:
            return
        await self._close_listener(self._server)
        for connection in self._connections.values():
            connection.abort()
        if self._connections:
            _, stuck = await asyncio.wait(list(self._connections), timeout=STOP_LIMIT)
            if stuck:
                raise RuntimeError(f"{len(stuck)} connections of the fake provider did not end")
        await self._server.wait_closed()
        self._history.close()
        if self._defects:
            raise self._defects.pop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _close_listener(self, server: asyncio.Server) -> None:
        """Listen no more; every connection that was accepted before is known afterwards.

        asyncio's own loop accepts in one turn, makes the transport in the next, and calls `_connected` in the third. If the
        server is closed between, the second step fails, and the client hangs on a socket that nobody owns. So the accepting
        ends first, and then those under way get their turns. uvloop does the first two steps in one.
        """
        loop = asyncio.get_running_loop()
        if isinstance(loop, asyncio.SelectorEventLoop) and server.sockets:
            loop.remove_reader(server.sockets[0])
        for _ in range(TURNS):
            await asyncio.sleep(0)
        server.close()
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(next(self._connection_numbers), reader, writer, self._service.respond)
        try:
            self._history.connect(connection.number)
        except OSError as error:  # the log; asyncio would report it and leave the client without an answer
            self._defects.append(error)
            connection.abort()
            return
        task = asyncio.get_running_loop().create_task(connection.serve())
        self._connections[task] = connection
        task.add_done_callback(self._disconnected)

    def _disconnected(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (defect := task.exception()) is not None:
            self._defects.append(defect)
