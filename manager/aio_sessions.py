"""`aclient.sessions`: the session manager for the tasks of an event loop. The same verbs, awaitable.

Questions of one turn of the loop travel together on the client's one connection, so a thousand tasks that work in sessions cost a few
system calls a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

from callpool.manager import endings
from callpool.manager.aio_channel import CLOSE_DEADLINE
from callpool.manager.aio_session import AsyncSession
from callpool.manager.core.messages import RunFunction
from callpool.manager.errors import CallpoolError, ConnectionLost, SessionCreationFailed, ShuttingDown, UnknownRequest
from callpool.manager.execution import (
    ExecutionResult,
    Job,
    Overdue,
    is_coroutine_function,
    run_in_thread,
    within,
)
from callpool.manager.request_ids import RequestIds
from callpool.manager.session_calls import (
    FIGURES,
    SHUTDOWN_MARGIN,
    Asked,
    SessionIds,
    Where,
    body_of,
    check_execution,
    check_shutdown_timeout,
    create_arguments,
    empty_page,
    end_arguments,
    function_timeout,
    nothing,
    outcome_of,
    read_view,
    shut_down,
    timed_out,
    warn_of_remaining,
    with_session,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from callpool.manager.aio import AsyncClient
    from callpool.manager.embedded import start

log = logging.getLogger(__name__)


class AsyncSessionManager:
    """Sessions of a supervisor, for one event loop.

    `aclient.sessions` is the one of a supervisor that runs. Made by hand, it starts an embedded supervisor of its own with these
    limits when it is first used, which ends with `shutdown`, `close`, an `async with` block, or the process.
    """

    def __init__(
        self,
        default_timeout: float = 30.0,
        max_concurrent_sessions: int = 200,
        max_metadata_size: int = 10_240,
        *,
        client: AsyncClient | None = None,
        connect: Callable[[], Awaitable[AsyncClient]] | None = None,
    ) -> None:
        """`default_timeout` in seconds, `max_metadata_size` in bytes of JSON. With `client` they are the supervisor's own.

        `connect` makes the client at the first use, for a manager that is not asked for inside a coroutine.
        """
        self._limits = {
            "default_timeout": default_timeout,
            "max_concurrent_sessions": max_concurrent_sessions,
            "max_metadata_size": max_metadata_size,
        }
        self._client = client
        self._is_clients = client is not None
        """Whether the client is somebody else's, and stays when this manager is closed."""
        self._connect = connect or self._start
        self._connecting = asyncio.Lock()
        self._embedded: start | None = None
        self._ids = RequestIds()
        self._session_ids = RequestIds("session_")
        self._closed = False
        self._telling: set[asyncio.Task[Any]] = set()
        """Messages under way that nobody waits for; the loop itself keeps only weak references."""

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go: sessions still held end as errors. Ends an embedded supervisor of our own. Idempotent."""
        self._closed = True
        client = self._client
        if client is not None and not self._is_clients:
            await client.close()
        elif client is not None and client.holds_sessions and client.is_open:
            client.holds_sessions = False
            with contextlib.suppress(ConnectionLost):  # a supervisor that is gone, or stopped, holds nothing for us
                await client.ask("let_go", _wait=CLOSE_DEADLINE)
        await self._end_embedded()

    async def _end_embedded(self) -> None:
        embedded, self._embedded = self._embedded, None
        if embedded is not None:
            await asyncio.to_thread(embedded.__exit__, None, None, None)

    @property
    def is_over(self) -> bool:
        """Whether its supervisor is gone without having been shut down by it."""
        client = self._client
        if client is None or client.is_open or self._last is not None:
            return False
        return not endings.under_way(client.address, client.supervisor_pid)

    async def client(self) -> AsyncClient:
        """The client behind it, connected."""
        return await self._connected()

    async def ask(self, verb: str, **arguments: Any) -> Any:
        """Call a verb of the service. For handles."""
        if self._last is not None:
            raise shut_down(creating=verb == "create_session")
        client = await self._connected()
        client.holds_sessions = True
        try:
            return await client.ask(verb, **arguments)
        except ConnectionLost as error:
            raise await self._why_gone(client, error, creating=verb == "create_session") from None

    async def _why_gone(self, client: AsyncClient, error: CallpoolError, *, creating: bool) -> CallpoolError:
        """What to raise where the supervisor was found gone: the error, unless this process has shut it down meanwhile."""
        ends = [asyncio.wrap_future(end) for end in endings.under_way(client.address, client.supervisor_pid)]
        if ends:
            await asyncio.wait(ends, timeout=endings.LAST_WORDS)
        return error if self._last is None else shut_down(creating=creating)

    async def ask_or(self, afterwards: Callable[[dict[str, Any]], Any], verb: str, **arguments: Any) -> Any:
        """Call a verb; once this process has shut the supervisor down, what `afterwards` makes of its last words instead."""
        if self._last is None:
            try:
                return await self.ask(verb, **arguments)
            except ShuttingDown:
                if self._last is None:
                    raise
        return afterwards(self._last)

    @property
    def is_shut_down(self) -> bool:
        """Whether this process has shut its supervisor down."""
        return self._last is not None

    @property
    def _last(self) -> dict[str, Any] | None:
        """What the supervisor said at its end, if this process has shut it down."""
        client = self._client
        return None if client is None else endings.recall(client.address, client.supervisor_pid)

    def generate_request_id(self) -> str:
        """A request id that no other process and no restart will make."""
        return self._ids.next()

    # Sessions.

    async def create_session(
        self,
        /,
        provider: str,
        model: str,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
        **metadata: Any,
    ) -> AsyncSession:
        """Hold one slot of the pool (and of the provider's account, if the configuration has it) until released.

        `timeout_seconds`: default the supervisor's. `metadata` is kept as JSON, with `str()` for what JSON has no form for. Never
        waits; raises ShuttingDown, CapacityExceeded, MetadataTooLarge, DuplicateRequest or SessionCreationFailed, and then
        nothing is kept.
        """
        return await self._create(provider, model, request_id, timeout_seconds, metadata)

    async def get_session(self, request_id: str) -> AsyncSession | None:
        """The session of a request, until it is released; else None. Of a submitted request too, while it is active."""
        value = await self.ask_or(nothing, "get_session", request_id=request_id)
        view = None if value is None else read_view(value)
        return None if view is None or view.released else AsyncSession(self, view)

    async def release_session(self, request_id: str) -> None:
        """Be done with a session: its outcome is counted, slot and bytes are given back, once. An unknown id is a no-op.

        One that is still active ends as cancelled: it has no other outcome.
        """
        await self.ask_or(nothing, "move_session", request_id=request_id, release=True)

    async def get_active_sessions(self) -> list[AsyncSession]:
        """All active sessions of the supervisor, those of submitted requests included."""
        return await self._list(timed_out=False)

    async def get_timed_out_sessions(self) -> list[AsyncSession]:
        """The active sessions that are past their timeout and not cleaned up yet."""
        return await self._list(timed_out=True)

    async def cleanup_timed_out_sessions(self) -> int:
        """End and release held sessions past their timeout; how many. The supervisor does it by itself a little later."""
        return int(await self.ask_or(nothing, "cleanup_timed_out_sessions") or 0)

    # Working in a session.

    async def execute_with_session(
        self,
        /,
        provider: str,
        model: str,
        func: Callable[..., Any],
        *args: Any,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
        add_session_context: bool = True,
        enforce_timeout: bool = True,
        where: Where = "caller",
        **kwargs: Any,
    ) -> Any:
        """Run `func(*args, **kwargs)` in a session and return what it returns; the session ends on every path.

        A coroutine function is awaited in this loop, and cancelled at the timeout; a plain one runs in a thread, which cannot be
        stopped: it is counted as abandoned. Else as `SessionManager.execute_with_session`.
        """
        check_execution(func, where)
        run = self._run_in_worker if where == "worker" else self._run_here
        asked = Asked(provider, model, request_id, timeout_seconds, enforce_timeout)
        result, facts = await run(asked, func, args, kwargs)
        return with_session(result, **facts) if add_session_context else result

    async def execute_sync(
        self, /, provider: str, model: str, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> ExecutionResult:
        """`execute_with_session`, with the outcome in a container: `result`, `exception`, `completed`."""
        try:
            result = await self.execute_with_session(provider, model, func, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - that is what the container is for
            return ExecutionResult(exception=error)
        return ExecutionResult(result=result, completed=True)

    async def _run_here(
        self, asked: Asked, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        timeout = function_timeout(asked.timeout_seconds, enforce=asked.enforce)
        session = await self._create(asked.provider, asked.model, asked.request_id, timeout, {}, start=True)
        seconds = session.timeout_seconds if asked.enforce else None
        try:
            if is_coroutine_function(func):
                result = await within(func(*args, **kwargs), seconds)
            else:
                result = await run_in_thread(functools.partial(func, *args, **kwargs), seconds, self._abandon)
        except Overdue:
            await self.settle(session.ids, {"move": "time_out"})
            raise timed_out(session.timeout_seconds) from None
        except BaseException as error:
            await self.settle(session.ids, end_arguments(error))
            raise
        duration = await self.settle(session.ids, end_arguments(None))
        return result, {"session_id": session.session_id, "request_id": session.request_id, "duration": duration}

    async def settle(self, ids: SessionIds, arguments: dict[str, Any]) -> float:
        """End and release a session whose work is over, also while this task is being cancelled. Its duration in seconds."""
        telling = asyncio.ensure_future(self._tell_end(ids, arguments))
        self._telling.add(telling)  # a second cancel leaves it on its way
        telling.add_done_callback(self._telling.discard)
        return await asyncio.shield(telling)

    async def _tell_end(self, ids: SessionIds, arguments: dict[str, Any]) -> float:
        try:
            value = await self.ask("move_session", **ids._asdict(), release=True, settle=True, **arguments)
            return 0.0 if value is None else read_view(value).duration
        except UnknownRequest:  # it never came to be, or the log has forgotten it
            return 0.0
        except CallpoolError as error:  # the work's own outcome is worth more than the bookkeeping's
            log.warning("the end of session %s could not be told: %s", ids.session_id, error)
            return 0.0

    def _abandon(self, job: Job) -> None:
        loop = asyncio.get_running_loop()

        def ended() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it our connection
                loop.call_soon_threadsafe(tell, -1)

        def tell(change: int) -> None:
            task = loop.create_task(self.ask("threads_abandoned", change=change))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
            task.add_done_callback(_forget_failure)

        if job.call_at_end(ended):
            tell(1)

    async def _run_in_worker(
        self, asked: Asked, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        from callpool.workers.callables import encode_call  # noqa: PLC0415 - most clients run no functions

        arguments = await self._arguments(asked.provider, asked.model, asked.request_id, asked.timeout_seconds, {})
        arguments.update(
            payload=encode_call(func, args, kwargs),
            timeout=function_timeout(arguments.pop("timeout_seconds"), enforce=asked.enforce),
        )
        if self._last is not None:
            raise shut_down()
        client = await self._connected()
        client.holds_sessions = True
        try:
            done = await client.run_function(RunFunction(**arguments))
            body = body_of(done)
        except ConnectionLost as error:
            raise await self._why_gone(client, error, creating=True) from None
        facts = {"session_id": done.session_id, "request_id": done.request_id, "duration": done.duration}
        return outcome_of(body), facts

    # Figures.

    async def get_statistics(self) -> dict[str, Any]:
        """Counters and gauges, by the specification's names. After `shutdown` the last ones."""
        return dict(await self.ask_or(itemgetter("statistics"), "get_statistics"))

    async def get_metrics(self) -> dict[str, Any]:
        """The statistics, with rates, distributions (seconds), lock contention, loop delay and memory. After `shutdown` the last."""
        return dict(await self.ask_or(itemgetter("metrics"), "get_metrics"))

    async def reset_metrics(self) -> None:
        """Zero the lifetime counters and distributions; live sessions and their bytes stay as they are."""
        await self.ask("reset_metrics")

    async def shutdown(self, timeout_seconds: float = 30.0) -> dict[str, Any]:
        """Drain and end the whole supervisor: no new sessions from now on, and active ones may finish until the timeout.

        Returns the six figures of the specification; a second call returns the same. Raises BadInput, or ConnectionLost.
        """
        seconds = check_shutdown_timeout(timeout_seconds)
        last = self._last
        if last is None:
            client = await self._connected()
            last = await self._shut_down(client, seconds)
        await self._end_embedded()
        return {name: last["report"][name] for name in FIGURES}

    async def _shut_down(self, client: AsyncClient, seconds: float) -> dict[str, Any]:
        """The supervisor's last words, to us or to whoever of this process was faster."""
        try:
            with endings.expected(client.address, client.supervisor_pid):
                last: dict[str, Any] = await client.ask(
                    "shutdown", _wait=seconds + SHUTDOWN_MARGIN, timeout_seconds=seconds
                )
                endings.remember(client.address, client.supervisor_pid, last)
        except ConnectionLost as error:
            gone = await self._why_gone(client, error, creating=False)
            if self._last is None:
                raise gone from None
            return self._last
        warn_of_remaining(log, last, seconds)
        return last

    # Pieces.

    async def _connected(self) -> AsyncClient:
        if self._closed:
            raise ConnectionLost("the session manager is closed")
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def _start(self) -> AsyncClient:
        from callpool.manager.aio import AsyncClient  # noqa: PLC0415 - it knows us
        from callpool.manager.embedded import start  # noqa: PLC0415 - only a manager made by hand needs it

        embedded = start({"supervisor": self._limits})
        blocking = await asyncio.to_thread(embedded.__enter__)
        self._embedded = embedded
        return await AsyncClient.connect(blocking.address)

    async def _create(
        self,
        provider: str,
        model: str,
        request_id: str | None,
        timeout_seconds: float | None,
        metadata: Mapping[str, Any],
        *,
        start: bool = False,
    ) -> AsyncSession:
        arguments = await self._arguments(provider, model, request_id, timeout_seconds, metadata)
        ids = SessionIds(arguments["request_id"], self._session_ids.next())
        asking = self.ask("create_session", start=start, session_id=ids.session_id, **arguments)
        creating = asyncio.ensure_future(asking)
        try:
            value = await asyncio.shield(creating)
        except asyncio.CancelledError:
            creating.add_done_callback(functools.partial(self._undo, ids))
            raise
        return AsyncSession(self, read_view(value), json.loads(arguments["metadata"]))

    def _undo(self, ids: SessionIds, creating: asyncio.Task[Any]) -> None:
        """A session came to be, or may have, that nobody waits for any more: end it."""
        if creating.cancelled() or not isinstance(creating.exception(), (ConnectionLost, type(None))):
            return
        task = asyncio.get_running_loop().create_task(self._tell_end(ids, {"move": "cancel"}))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _arguments(
        self,
        provider: str,
        model: str,
        request_id: str | None,
        timeout_seconds: float | None,
        metadata: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Checked arguments; what is wrong with them is counted by the supervisor."""
        try:
            return create_arguments(
                provider=provider,
                model=model,
                request_id=self.generate_request_id() if request_id is None else request_id,
                timeout_seconds=timeout_seconds,
                metadata=metadata,
            )
        except SessionCreationFailed:
            await self.ask("creation_failed")
            raise

    async def _list(self, *, timed_out: bool) -> list[AsyncSession]:
        found: list[AsyncSession] = []
        after: int | None = 0
        while after is not None:
            page, after = await self.ask_or(empty_page, "list_sessions", timed_out=timed_out, after=after)
            found += [AsyncSession(self, read_view(value)) for value in page]
        return found


def _forget_failure(task: asyncio.Future[Any]) -> None:
    """What nobody waits for any more: a supervisor that is gone counts nothing."""
    if not task.cancelled():
        task.exception()
