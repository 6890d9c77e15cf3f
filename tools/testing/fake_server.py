"""The fake provider itself: an HTTP server on loopback that keeps a provider's limits and fails on order."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from callpool.tools.testing import fake_answers, fake_http
from callpool.tools.testing.fake_connection import Connection
from callpool.tools.testing.fake_dialects import DIALECTS
from callpool.tools.testing.fake_exchange import JSON, Exchange
from callpool.tools.testing.fake_faults import Fault, FaultPlan, UnknownFault
from callpool.tools.testing.fake_history import History, Predicate
from callpool.tools.testing.fake_http import Refusal, Request
from callpool.tools.testing.fake_limits import Limits
from callpool.tools.testing.fake_records import TEXT_KEPT, CallRecord, messages_digest
from callpool.tools.testing.fake_requests import ChatRequest, Options

HOST = "127.0.0.1"
BACKLOG = 4_096
"""Connections that may wait to be accepted: load tests open thousands at once, and none may look refused."""
STOP_LIMIT = 5.0
"""Seconds for the tasks of aborted connections to end; they need a few turns of the loop."""
TURNS = 3
"""Turns of the event loop within which an accepted connection is known."""
MODELS = ["fake-model"]
"""What GET /models lists; chat takes every name."""

UNREADABLE = ChatRequest(model="", messages=[])
"""Stands in the records for a body that is not a chat request."""

_decode_chat = msgspec.json.Decoder(ChatRequest).decode


class Rejection(msgspec.Struct, frozen=True):
    """The answer to a call that is not let in."""

    status: int
    body: bytes
    headers: list[tuple[str, str]] = []


class FakeProvider:
    """A provider inside the caller's event loop: `async with FakeProvider(...) as fake`, then call `fake.base_url`.

    `delay`, `chunks`, `chunk_delay` and `reply` are the defaults of each answer; see `Options`. `concurrency`, `rpm`
    and `tpm` are limits of each key. With `api_key` other keys are refused. `log_path` is the append-only log.
    `keep_calls=False` keeps no record of ended calls in memory.
    """

    def __init__(
        self,
        *,
        dialect: str = "openai",
        delay: float = 0.0,
        chunks: int = 4,
        chunk_delay: float = 0.0,
        concurrency: int | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        api_key: str | None = None,
        log_path: Path | str | None = None,
        reply: str | None = None,
        port: int = 0,
        keep_calls: bool = True,
    ) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"dialect is {dialect!r}: it must be one of {', '.join(DIALECTS)}")
        self._dialect = DIALECTS[dialect]
        self._options = msgspec.convert(
            {"delay": delay, "chunks": chunks, "chunk_delay": chunk_delay, "reply": reply}, Options
        )
        self._limits = Limits(concurrency=concurrency, rpm=rpm, tpm=tpm)
        self._api_key = api_key
        self._port = port
        self._history = History(Path(log_path) if log_path is not None else None, keep=keep_calls)
        self._faults = FaultPlan()
        self._server: asyncio.Server | None = None
        self._stopping = False
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

    async def wait_for(self, predicate: Predicate, timeout: float = 5.0) -> list[CallRecord]:  # noqa: ASYNC109  # called as in FakeProviderProcess
        """Wait until `predicate` holds of the calls; TimeoutError after `timeout` seconds."""
        return await self._history.wait_for(predicate, timeout)

    async def start(self) -> None:
        """Listen. A fake starts once."""
        if self._server is not None:
            raise RuntimeError("the fake provider was started before")
        self._history.open()
        try:
            self._server = await asyncio.start_server(self._connected, HOST, self._port, backlog=BACKLOG)
        except BaseException:
            self._history.close()
            raise
        self._port = self._server.sockets[0].getsockname()[1]
        self._history.start(self._port, self.base_url, self._dialect.name)

    async def stop(self) -> None:
        """End every open call and connection, and wait until they are gone. Records stay readable.

        A defect of the fake itself, which broke off a connection, is raised here: no test passes because of it.
        """
        self._stopping = True
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
        connection = Connection(next(self._connection_numbers), reader, writer, self._respond)
        task = asyncio.get_running_loop().create_task(connection.serve())
        self._connections[task] = connection
        task.add_done_callback(self._disconnected)

    def _disconnected(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (defect := task.exception()) is not None:
            self._defects.append(defect)

    async def _respond(self, connection: Connection, request: Request | Refusal) -> bool:
        if isinstance(request, Refusal):
            await self._write(connection, request.status, self._dialect.error("bad_request", request.message)[1])
            return False
        path = request.path.partition("?")[0]
        if (request.method, path) == ("POST", f"{self._dialect.root}/chat/completions"):
            return await self._chat(connection, request)
        if self._dialect.lists_models and (request.method, path) == ("GET", f"{self._dialect.root}/models"):
            known = self._knows(request)
            status, body = (200, self._dialect.models(MODELS)) if known else self._dialect.error("unauthorized")
        else:
            status, body = self._dialect.error("no_such_path")
        await self._write(connection, status, body)
        return request.keep_alive

    async def _write(self, connection: Connection, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        head = [("Content-Type", JSON), ("Content-Length", str(len(body))), *headers]
        connection.writer.write(fake_http.response_head(status, head) + body)
        await connection.writer.drain()

    async def _chat(self, connection: Connection, request: Request) -> bool:
        """One call: recorded as soon as it is read, then refused or admitted."""
        chat, fault, complaint = self._read_chat(request.body)
        record = self._arrive(connection, request.key, chat, fault)
        rejection = self._admit(request, chat, complaint, record.arrived)
        if rejection is not None:
            self._history.first_byte(record, rejection.status)
            self._history.end(record, "rejected")
            await self._write(connection, rejection.status, rejection.body, *rejection.headers)
            return request.keep_alive
        exchange = Exchange(
            chat,
            chat.fake.over(self._options),
            self._dialect,
            record,
            self._history,
            connection.writer,
            lambda: self._limits.release(request.key),
        )
        try:
            if exchange.options.delay:
                await asyncio.sleep(exchange.options.delay)
            if fault is not None:
                await fault.produce(exchange)
            else:
                await exchange.tell(exchange.honest())
        except (asyncio.CancelledError, ConnectionError):
            exchange.abandon(stopping=self._stopping)
            raise
        return exchange.keep_alive and request.keep_alive

    def _read_chat(self, body: bytes) -> tuple[ChatRequest, Fault | None, str | None]:
        """Read a request as far as it goes: the request, the fault it asks for, and what is wrong with it."""
        try:
            chat = _decode_chat(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return UNREADABLE, None, str(error)
        by_body = chat.fake.fault
        try:
            return chat, self._faults.next(chat.model, None if by_body is msgspec.UNSET else by_body), None
        except UnknownFault as error:
            return chat, None, str(error)

    def _arrive(self, connection: Connection, key: str, chat: ChatRequest, fault: Fault | None) -> CallRecord:
        last = chat.messages[-1] if chat.messages else {}
        return self._history.arrive(
            connection=connection.number,
            model=chat.model,
            stream=bool(chat.stream),
            digest=messages_digest(chat.messages),
            last_message=fake_answers.message_text(last)[:TEXT_KEPT],
            key_tail=key[-4:] if len(key) > 4 else "",
            fault=fault.name if fault else None,
        )

    def _admit(self, request: Request, chat: ChatRequest, complaint: str | None, now: float) -> Rejection | None:
        """Let the call in, which takes its place in the limits, or say how it is refused."""
        if not self._knows(request):
            return Rejection(*self._dialect.error("unauthorized"))
        if complaint is not None:
            return Rejection(*self._dialect.error("bad_request", complaint))
        refused = self._limits.admit(request.key, chat.charged_tokens, now)
        if refused is None:
            return None
        figures = {"limit": refused.limit, "current": refused.current, "wait": refused.wait}
        status, body = self._dialect.error(f"limit_{refused.limit_name}", figures=figures)
        return Rejection(status, body, [("Retry-After", str(refused.wait))] if self._dialect.retry_after else [])

    def _knows(self, request: Request) -> bool:
        return self._api_key is None or request.key == self._api_key
