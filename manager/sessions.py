"""`client.sessions`: the specification's session manager, from any process, over the supervisor's bookkeeping.

    with manager.create_session("kimi", "kimi-k3", user="ann") as session:   # start … complete or fail … release
        answer = call_the_model()

    manager.execute_with_session("kimi", "kimi-k3", call_the_model)          # the same around a function

Every verb is one atomic step of the supervisor, and one trip there and back on a connection of the calling thread.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
from concurrent.futures import wait
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

from callpool.manager import endings
from callpool.manager.core.messages import RunFunction
from callpool.manager.errors import (
    CallpoolError,
    ConnectionLost,
    HandshakeFailed,
    NotRunning,
    SessionCreationFailed,
    ShuttingDown,
    UnknownRequest,
)
from callpool.manager.execution import ExecutionResult, Job, Overdue, run_in_caller
from callpool.manager.lockstep import Lockstep
from callpool.manager.request_ids import RequestIds
from callpool.manager.session import Session
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
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from callpool.manager.client import Client
    from callpool.manager.embedded import start

log = logging.getLogger(__name__)


class SessionManager:
    """Sessions of a supervisor. Safe in threads; a forked child that goes on with it holds sessions of its own.

    `client.sessions` is the one of a supervisor that runs. Made by hand, it starts an embedded supervisor of its own with these
    limits, which ends with `shutdown`, `close`, a `with` block, or the process.
    """

    def __init__(
        self,
        default_timeout: float = 30.0,
        max_concurrent_sessions: int = 200,
        max_metadata_size: int = 10_240,
        *,
        client: Client | None = None,
    ) -> None:
        """`default_timeout` in seconds, `max_metadata_size` in bytes of JSON. With `client` they are the supervisor's own."""
        self._embedded: start | None = None
        if client is None:
            from callpool.manager.embedded import start  # noqa: PLC0415 - it knows the client, which knows us

            limits = {
                "default_timeout": default_timeout,
                "max_concurrent_sessions": max_concurrent_sessions,
                "max_metadata_size": max_metadata_size,
            }
            self._embedded = start({"supervisor": limits})
            client = self._embedded.__enter__()
        self._client = client
        self._ids = RequestIds()
        self._lockstep = Lockstep(client.address, holder=client.holder, door=client.door, name=client.name)
        self._session_ids = RequestIds("session_")
        self._doubtful: list[SessionIds] = []
        """Sessions whose creation was asked for and never answered; ended with the next verb that comes through."""
        self._supervisor_pid = client.supervisor_pid
        self._shutting_down = threading.Lock()
        self._shutting_down_pid = os.getpid()

    def __repr__(self) -> str:
        return f"<SessionManager of {self.address}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """The supervisor's socket."""
        return self._client.address

    @property
    def is_shut_down(self) -> bool:
        """Whether this process has shut its supervisor down."""
        return self._last is not None

    @property
    def is_shutting_down(self) -> bool:
        """Whether it has, or is about to."""
        return bool(endings.under_way(self.address, self._supervisor_pid)) or self.is_shut_down

    def close(self) -> None:
        """Let go: sessions that this client still holds end as errors. Ends an embedded supervisor of our own. Idempotent."""
        try:
            self.let_go()
        finally:
            self._end_embedded()

    def let_go(self) -> None:
        """End what is held here, and the connections. For the client, when it is closed."""
        self._lockstep.let_go()
        self._lockstep.close()

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Call a verb of the service. For handles."""
        if self._last is not None:
            raise shut_down(creating=verb == "create_session")
        try:
            while self._doubtful:
                self._end_doubtful(self._doubtful[-1])
            return self._lockstep.call(verb, **arguments)
        except (ConnectionLost, NotRunning, HandshakeFailed) as error:  # the last one in the middle of a handshake
            raise self._why_gone(error, creating=verb == "create_session") from None

    def _end_doubtful(self, ids: SessionIds) -> None:
        with contextlib.suppress(UnknownRequest):
            self._lockstep.call("move_session", **ids._asdict(), move="cancel", release=True, settle=True)
        with contextlib.suppress(ValueError):  # another thread was as fast
            self._doubtful.remove(ids)

    def _why_gone(self, error: CallpoolError, *, creating: bool) -> CallpoolError:
        """What to raise where the supervisor was found gone: the error, unless this process has shut it down meanwhile."""
        wait(endings.under_way(self.address, self._supervisor_pid), endings.LAST_WORDS)
        return error if self._last is None else shut_down(creating=creating)

    def ask_or(self, afterwards: Callable[[dict[str, Any]], Any], verb: str, **arguments: Any) -> Any:
        """Call a verb; once this process has shut the supervisor down, what `afterwards` makes of its last words instead."""
        if self._last is None:
            try:
                return self.ask(verb, **arguments)
            except ShuttingDown:
                if self._last is None:
                    raise
        return afterwards(self._last)

    @property
    def _last(self) -> dict[str, Any] | None:
        """What the supervisor said at its end, if this process has shut it down."""
        return endings.recall(self.address, self._supervisor_pid)

    def _channel_client(self) -> Client:
        """The client whose channel works in this process: a forked child needs one of its own."""
        if self._client.belongs_here:
            return self._client
        from callpool.manager.embedded import shared_client  # noqa: PLC0415 - it knows the client, which knows us

        return shared_client(self.address)

    def generate_request_id(self) -> str:
        """A request id that no other process and no restart will make."""
        return self._ids.next()

    # Sessions.

    def create_session(
        self,
        /,
        provider: str,
        model: str,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
        **metadata: Any,
    ) -> Session:
        """Hold one slot of the pool (and of the provider's account, if the configuration has it) until released.

        `timeout_seconds`: default the supervisor's. `metadata` is kept as JSON, with `str()` for what JSON has no form for. Never
        waits; raises ShuttingDown, CapacityExceeded, MetadataTooLarge, DuplicateRequest or SessionCreationFailed, and then
        nothing is kept.
        """
        return self._create(provider, model, self._new_ids(request_id), timeout_seconds, metadata)

    def get_session(self, request_id: str) -> Session | None:
        """The session of a request, until it is released; else None. Of a submitted request too, while it is active."""
        value = self.ask_or(nothing, "get_session", request_id=request_id)
        view = None if value is None else read_view(value)
        return None if view is None or view.released else Session(self, view)

    def release_session(self, request_id: str) -> None:
        """Be done with a session: its outcome is counted, slot and bytes are given back, once. An unknown id is a no-op.

        One that is still active ends as cancelled: it has no other outcome.
        """
        self.ask_or(nothing, "move_session", request_id=request_id, release=True)

    def get_active_sessions(self) -> list[Session]:
        """All active sessions of the supervisor, those of submitted requests included."""
        return self._list(timed_out=False)

    def get_timed_out_sessions(self) -> list[Session]:
        """The active sessions that are past their timeout and not cleaned up yet."""
        return self._list(timed_out=True)

    def cleanup_timed_out_sessions(self) -> int:
        """End and release held sessions past their timeout; how many. The supervisor does it by itself a little later."""
        return int(self.ask_or(nothing, "cleanup_timed_out_sessions") or 0)

    # Working in a session.

    def execute_with_session(
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

        A dict gets `["metadata"]["session"]`, unless `add_session_context` is False. Exceptions of `func` pass unchanged. At the
        timeout raises RequestTimeout, a TimeoutError: a coroutine is cancelled, a function in a worker process is killed with it,
        a plain function here cannot be stopped and its thread is counted as abandoned. With `where="caller"` and a timeout that is
        enforced, `func` runs in a thread of its own. With `where="worker"` it travels by dill, so its arguments and its result must.
        """
        check_execution(func, where)
        run = self._run_in_worker if where == "worker" else self._run_here
        asked = Asked(provider, model, request_id, timeout_seconds, enforce_timeout)
        result, facts = run(asked, func, args, kwargs)
        return with_session(result, **facts) if add_session_context else result

    def execute_sync(
        self, /, provider: str, model: str, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> ExecutionResult:
        """`execute_with_session`, with the outcome in a container: `result`, `exception`, `completed`."""
        try:
            result = self.execute_with_session(provider, model, func, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - that is what the container is for
            return ExecutionResult(exception=error)
        return ExecutionResult(result=result, completed=True)

    def _run_here(
        self, asked: Asked, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        ids = self._new_ids(asked.request_id)
        timeout = function_timeout(asked.timeout_seconds, enforce=asked.enforce)
        session: Session | None = None
        ending: dict[str, Any] | None = None
        seconds = 0.0
        try:
            session = self._create(asked.provider, asked.model, ids, timeout, {}, start=True)
            seconds = session.timeout_seconds
            work = functools.partial(func, *args, **kwargs)
            result = run_in_caller(work, seconds if asked.enforce else None, self._abandon)
            ending = end_arguments(None)
            duration = self.settle(ids, ending)
        except Overdue:
            self.settle(ids, {"move": "time_out"})
            raise timed_out(seconds) from None
        except BaseException as error:
            refused = session is None and isinstance(error, CallpoolError)
            if not refused:  # Ctrl-C may come at any line: it is the ids that count, and a second word changes nothing
                self.settle(ids, ending or end_arguments(error))
            raise
        return result, {"session_id": ids.session_id, "request_id": ids.request_id, "duration": duration}

    def settle(self, ids: SessionIds, arguments: dict[str, Any]) -> float:
        """End and release a session whose work is over; an end that came first (a clean-up) stands. Its duration in seconds.

        The work's own outcome is worth more than the bookkeeping's, so a supervisor that is gone is only reported.
        """
        try:
            value = self.ask("move_session", **ids._asdict(), release=True, settle=True, **arguments)
            return 0.0 if value is None else read_view(value).duration
        except UnknownRequest:  # it never came to be, or the log has forgotten it
            return 0.0
        except CallpoolError as error:
            log.warning("the end of session %s could not be told: %s", ids.session_id, error)
            return 0.0

    def _abandon(self, job: Job) -> None:
        def ended() -> None:
            with contextlib.suppress(CallpoolError):  # a supervisor that is gone counts nothing
                self.ask("threads_abandoned", change=-1)

        with contextlib.suppress(CallpoolError):
            self.ask("threads_abandoned", change=1)
            if not job.call_at_end(ended):
                ended()

    def _run_in_worker(
        self, asked: Asked, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        from callpool.workers.callables import encode_call  # noqa: PLC0415 - most clients run no functions

        ids = self._new_ids(asked.request_id)
        arguments = self._arguments(asked.provider, asked.model, ids.request_id, asked.timeout_seconds, {})
        arguments.update(
            payload=encode_call(func, args, kwargs),
            timeout=function_timeout(arguments.pop("timeout_seconds"), enforce=asked.enforce),
        )
        if self._last is not None:
            raise shut_down()
        try:
            done = self._channel_client().run_function(RunFunction(**arguments))
            body = body_of(done)
        except (ConnectionLost, NotRunning, HandshakeFailed) as error:
            raise self._why_gone(error, creating=True) from None
        facts = {"session_id": done.session_id, "request_id": done.request_id, "duration": done.duration}
        return outcome_of(body), facts

    # Figures.

    def get_statistics(self) -> dict[str, Any]:
        """Counters and gauges, by the specification's names. After `shutdown` the last ones."""
        return dict(self.ask_or(itemgetter("statistics"), "get_statistics"))

    def get_metrics(self) -> dict[str, Any]:
        """The statistics, with rates, distributions (seconds), lock contention, loop delay and memory. After `shutdown` the last."""
        return dict(self.ask_or(itemgetter("metrics"), "get_metrics"))

    def reset_metrics(self) -> None:
        """Zero the lifetime counters and distributions; live sessions and their bytes stay as they are."""
        self.ask("reset_metrics")

    def shutdown(self, timeout_seconds: float = 30.0) -> dict[str, Any]:
        """Drain and end the whole supervisor: no new sessions from now on, and active ones may finish until the timeout.

        Returns the six figures of the specification; a second call returns the same. Raises BadInput, or ConnectionLost.
        """
        seconds = check_shutdown_timeout(timeout_seconds)
        if self._shutting_down_pid != os.getpid():  # in a forked child: whoever held the lock is not here
            self._shutting_down, self._shutting_down_pid = threading.Lock(), os.getpid()
        with self._shutting_down:
            last = self._last
            if last is None:
                last = self._shut_down(seconds)
            self._end_embedded()
        return {name: last["report"][name] for name in FIGURES}

    def _shut_down(self, seconds: float) -> dict[str, Any]:
        """The supervisor's last words, to us or to another manager of this process that was faster."""
        try:
            with endings.expected(self.address, self._supervisor_pid):
                client = self._channel_client()
                last: dict[str, Any] = client.ask("shutdown", _wait=seconds + SHUTDOWN_MARGIN, timeout_seconds=seconds)
                endings.remember(self.address, self._supervisor_pid, last)
        except (ConnectionLost, NotRunning, HandshakeFailed) as error:
            gone = self._why_gone(error, creating=False)
            if self._last is None:
                raise gone from None
            return self._last
        warn_of_remaining(log, last, seconds)
        return last

    def _end_embedded(self) -> None:
        embedded, self._embedded = self._embedded, None
        if embedded is not None:
            embedded.__exit__(None, None, None)

    # Pieces.

    def _new_ids(self, request_id: str | None) -> SessionIds:
        return SessionIds(self.generate_request_id() if request_id is None else request_id, self._session_ids.next())

    def _create(
        self,
        provider: str,
        model: str,
        ids: SessionIds,
        timeout_seconds: float | None,
        metadata: Mapping[str, Any],
        *,
        start: bool = False,
    ) -> Session:
        arguments = self._arguments(provider, model, ids.request_id, timeout_seconds, metadata)
        try:
            value = self.ask("create_session", start=start, session_id=ids.session_id, **arguments)
        except ConnectionLost:
            self._doubtful.append(ids)
            raise
        except CallpoolError:
            raise
        except BaseException:  # Ctrl-C before the answer: it may have come to be
            self.settle(ids, {"move": "cancel"})
            raise
        return Session(self, read_view(value), json.loads(arguments["metadata"]))

    def _arguments(
        self,
        provider: str,
        model: str,
        request_id: str,
        timeout_seconds: float | None,
        metadata: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Checked arguments; what is wrong with them is counted by the supervisor."""
        try:
            return create_arguments(
                provider=provider,
                model=model,
                request_id=request_id,
                timeout_seconds=timeout_seconds,
                metadata=metadata,
            )
        except SessionCreationFailed:
            self.ask("creation_failed")
            raise

    def _list(self, *, timed_out: bool) -> list[Session]:
        found: list[Session] = []
        after: int | None = 0
        while after is not None:
            page, after = self.ask_or(empty_page, "list_sessions", timed_out=timed_out, after=after)
            found += [Session(self, read_view(value)) for value in page]
        return found
