"""What is behind the fake's paths: each request for work is recorded, then refused or admitted, then answered.

    path ──► read ──► recorded ──► key · readable · rules · limits ──► delay ──► fault or answer
                                        └─ refused in the dialect

Lists of models and paths that do not exist are answered and not recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec

from callpool.tools.testing import fake_answers, fake_embeddings, fake_http, fake_rules
from callpool.tools.testing.fake_connection import Connection
from callpool.tools.testing.fake_dialects import Dialect
from callpool.tools.testing.fake_exchange import JSON, Exchange
from callpool.tools.testing.fake_faults import Fault, FaultPlan, UnknownFault
from callpool.tools.testing.fake_history import History
from callpool.tools.testing.fake_http import Refusal, Request
from callpool.tools.testing.fake_limits import Limits
from callpool.tools.testing.fake_records import TEXT_KEPT, CallRecord, messages_digest
from callpool.tools.testing.fake_requests import (
    UNREADABLE,
    Asked,
    EmbeddingsRequest,
    Options,
    read_chat,
    read_embeddings,
)
from callpool.tools.testing.fake_tasks import Task, Tasks

MODELS = ["fake-model"]
"""What GET /models lists; chat takes every name."""
IDS_KEPT = 100_000
"""Request ids that are known as used; beyond that the oldest is forgotten."""
RESULT = "/async-result/"


class Rejection(msgspec.Struct, frozen=True):
    """The answer to a call that is not let in."""

    status: int
    body: bytes
    headers: list[tuple[str, str]] = []


class Service:
    """One provider without its listener. Owner of everything here: the fake's event loop."""

    def __init__(
        self, dialect: Dialect, options: Options, limits: Limits, api_key: str | None, history: History
    ) -> None:
        self.stopping = False
        self._dialect = dialect
        self._options = options
        self._limits = limits
        self._api_key = api_key
        self._history = history
        self._faults = FaultPlan()
        self._tasks = Tasks()
        self._used_ids: dict[tuple[str, str], None] = {}

    async def respond(self, connection: Connection, request: Request | Refusal) -> bool:
        """Answer one request; whether the connection stays open."""
        dialect = self._dialect
        if isinstance(request, Refusal):
            await self._write(connection, Rejection(*dialect.error("bad_request", request.message)), request.status)
            return False
        path = request.path.partition("?")[0]
        door = path.removeprefix(dialect.root) if path.startswith(dialect.root) else ""
        if request.method == "POST":
            if door == "/chat/completions":
                return await self._call(connection, request, path, read_chat(request.body))
            if door == "/async/chat/completions" and dialect.tasks:
                order = partial(self._order, request.key)
                return await self._call(connection, request, path, read_chat(request.body), order)
            if door == "/embeddings" and dialect.embeddings:
                asked = read_embeddings(request.body)
                wanted = asked.embeddings
                document = None if wanted is None else partial(_embed, wanted)
                return await self._call(connection, request, path, asked, document)
        elif request.method == "GET" and door.startswith(RESULT) and dialect.tasks:
            return await self._look(connection, request, path, door.removeprefix(RESULT))
        await self._write(connection, self._about(request.method, door, request))
        return request.keep_alive

    def _about(self, method: str, door: str, request: Request) -> Rejection:
        """What costs nothing and leaves no record."""
        if (method, door) != ("GET", "/models") or not self._dialect.lists_models:
            return Rejection(*self._dialect.error("no_such_path"))
        if not self._knows(request):
            return Rejection(*self._dialect.error("unauthorized"))
        return Rejection(200, self._dialect.models(MODELS))

    async def _write(self, connection: Connection, answer: Rejection, status: int | None = None) -> None:
        head = [("Content-Type", JSON), ("Content-Length", str(len(answer.body))), *answer.headers]
        connection.writer.write(fake_http.response_head(status or answer.status, head) + answer.body)
        await connection.writer.drain()

    async def _call(
        self,
        connection: Connection,
        request: Request,
        path: str,
        asked: Asked,
        document: Callable[[Exchange], bytes] | None = None,
    ) -> bool:
        """One call: recorded as soon as it is read, then refused or admitted."""
        chat = asked.chat
        options = chat.fake.over(self._options)
        fault, complaint = None, asked.complaint
        if complaint is None:
            try:
                fault = self._faults.next(chat.model, options, fake_answers.last_user_text(chat.messages))
            except UnknownFault as error:
                complaint = str(error)
        record = self._arrive(connection, request, path, asked, fault)
        rejection = self._admit(request, asked, options, complaint, record.arrived)
        if rejection is not None:
            self._history.first_byte(record, rejection.status)
            self._history.end(record, "rejected")
            await self._write(connection, rejection)
            return request.keep_alive
        exchange = Exchange(
            chat,
            options,
            self._dialect,
            record,
            self._history,
            connection.writer,
            lambda: self._limits.release(request.key),
            document,
        )
        try:
            if options.delay:
                await asyncio.sleep(options.delay)
            if fault is not None:
                await fault.produce(exchange)
            else:
                await exchange.tell(exchange.honest())
        except (asyncio.CancelledError, ConnectionError):
            exchange.abandon(stopping=self.stopping)
            raise
        return exchange.keep_alive and request.keep_alive

    def _arrive(
        self, connection: Connection, request: Request, path: str, asked: Asked, fault: Fault | None = None
    ) -> CallRecord:
        chat = asked.chat
        last = chat.messages[-1] if chat.messages else {}
        return self._history.arrive(
            connection=connection.number,
            path=path,
            size=request.size,
            model=chat.model,
            stream=bool(chat.stream),
            parameters=asked.parameters,
            digest=messages_digest(chat.messages),
            last_message=fake_answers.message_text(last)[:TEXT_KEPT],
            key_tail=request.key[-4:] if len(request.key) > 4 else "",
            fault=fault.name if fault else None,
        )

    def _admit(
        self, request: Request, asked: Asked, options: Options, complaint: str | None, now: float
    ) -> Rejection | None:
        """Let the call in, which takes its place in the limits, or say how it is refused."""
        chat, dialect = asked.chat, self._dialect
        if not self._knows(request):
            return Rejection(*dialect.error("unauthorized"))
        if complaint is not None:
            return Rejection(*dialect.error("bad_request", complaint))
        broken = fake_rules.complaint(chat, options, dialect)
        if broken is not None:
            return Rejection(*dialect.error("bad_parameter", broken))
        used_id = (request.key, chat.request_id) if chat.request_id is not None and dialect.unique_ids else None
        if used_id in self._used_ids:
            return Rejection(*dialect.error("used_id"))
        refused = self._limits.admit(request.key, asked.charged_tokens, now)
        if refused is not None:
            figures = {"limit": refused.limit, "current": refused.current, "wait": refused.wait}
            status, body = dialect.error(f"limit_{refused.limit_name}", figures=figures)
            return Rejection(status, body, [("Retry-After", str(refused.wait))] if dialect.retry_after else [])
        if used_id is not None:
            self._used_ids[used_id] = None
            if len(self._used_ids) > IDS_KEPT:
                del self._used_ids[next(iter(self._used_ids))]
        return None

    def _knows(self, request: Request) -> bool:
        return self._api_key is None or request.key == self._api_key

    # Tasks.

    def _order(self, key: str, exchange: Exchange) -> bytes:
        answer = exchange.honest()
        return self._tasks.order(
            Task(
                id=f"task-{answer.id}",
                key=key,
                request_id=exchange.chat.request_id or f"request-{answer.id}",
                polls=exchange.options.polls,
                fails=exchange.options.task_fails,
                answer=answer,
            )
        )

    async def _look(self, connection: Connection, request: Request, path: str, task_id: str) -> bool:
        """One look at a task: recorded like a call, with the task's model."""
        task = self._tasks.find(task_id, request.key)
        model = task.model if task is not None else ""
        record = self._arrive(connection, request, path, Asked(msgspec.structs.replace(UNREADABLE, model=model)))
        if not self._knows(request):
            answer = Rejection(*self._dialect.error("unauthorized"))
        elif task is None:
            answer = Rejection(*self._dialect.error("no_such_task"))
        else:
            answer = Rejection(200, task.look())
        self._history.first_byte(record, answer.status)
        self._history.end(record, "answered" if answer.status == 200 else "rejected")
        await self._write(connection, answer)
        return request.keep_alive


def _embed(wanted: EmbeddingsRequest, _: Exchange) -> bytes:
    return fake_embeddings.answer(wanted)
