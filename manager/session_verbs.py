"""The session verbs: what a client's `sessions` asks of the service, one atomic step each.

Each verb is checked by its type, becomes one event or one look at the core under the lock, and answers with plain data. The names
are those that every door uses.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from callpool.manager.core.catalogue import refuse_timeout
from callpool.manager.core.events import (
    CreationFailed,
    Event,
    MetricsReset,
    SessionAsked,
    SessionMoved,
    SessionsCleaned,
    ThreadsAbandoned,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.held import MAX_ERROR
from callpool.manager.core.messages import Submit
from callpool.manager.core.sanitize import sanitize
from callpool.manager.core.states import Move
from callpool.manager.errors import BadInput, from_fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.machine import Core
    from callpool.manager.core.requests import Now
    from callpool.manager.holders import Caller

SESSION_ID = re.compile(r"session_[0-9a-f]{12,64}")
"""A client makes it up, so that it can end a session whose creation it was not told of."""
MAX_RESULT = 65_536
"""Bytes of a result as JSON that a session keeps for whoever asks; the answer itself stays with the caller."""


class Stage(Protocol):
    """What the verbs need of the service."""

    def step(self, event: Event) -> Any:
        """Apply an event that is answered; returns its value, raises its fault."""

    def look(self, read: Callable[[Core, Now], Any]) -> Any:
        """Read the core under the lock."""

    def next_session_id(self) -> str:
        """An id that was never given."""

    def metrics(self) -> dict[str, Any]:
        """Everything that is measured."""

    def reset_metrics(self) -> None:
        """Zero what is measured beside the core."""

    def shut_down(self, timeout: float | None) -> asyncio.Future[dict[str, Any]]:
        """Drain the supervisor; the future is `{report, statistics, metrics}`."""


class NoArguments(msgspec.Struct, forbid_unknown_fields=True):
    """For verbs that take none."""


class _CreateArguments(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str
    provider: str
    model: str
    metadata: bytes = b"{}"
    timeout_seconds: float | None = None
    start: bool = False
    session_id: str | None = None


class _MoveArguments(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str
    session_id: str | None = None
    move: Literal["start", "complete", "fail", "time_out", "cancel"] | None = None
    error: str | None = None
    code: str = "session_failed"
    result: bytes | None = None
    release: bool = False
    settle: bool = False


class _GetArguments(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str
    session_id: str | None = None


class _ListArguments(msgspec.Struct, forbid_unknown_fields=True):
    timed_out: bool = False
    after: int = 0


class _ShutdownArguments(msgspec.Struct, forbid_unknown_fields=True):
    timeout_seconds: float | None = None


class _LifecycleArguments(msgspec.Struct, forbid_unknown_fields=True):
    query: Literal["events", "active", "request_duration", "phase_duration", "statistics", "cleanup"]
    request_id: str = ""
    phase: str = ""
    until: str | None = None
    older_than: float = 3600.0


class _ThreadsArguments(msgspec.Struct, forbid_unknown_fields=True):
    change: Literal[-1, 1]


_MOVES = {move.value: move for move in Move}


class SessionVerbs:
    """The verbs by name, over the service's one step."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.verbs: dict[str, tuple[type[msgspec.Struct], Callable[[Caller, Any], Any]]] = {
            "create_session": (_CreateArguments, self._create),
            "creation_failed": (NoArguments, lambda _caller, _arguments: stage.step(CreationFailed())),
            "move_session": (_MoveArguments, self._move),
            "get_session": (_GetArguments, self._get),
            "list_sessions": (_ListArguments, self._list),
            "cleanup_timed_out_sessions": (NoArguments, lambda _caller, _arguments: stage.step(SessionsCleaned())),
            "get_statistics": (NoArguments, self._statistics),
            "get_metrics": (NoArguments, lambda _caller, _arguments: stage.metrics()),
            "reset_metrics": (NoArguments, self._reset),
            "shutdown": (_ShutdownArguments, self._shutdown),
            "threads_abandoned": (
                _ThreadsArguments,
                lambda caller, arguments: stage.step(ThreadsAbandoned(caller.holder, arguments.change)),
            ),
            "lifecycle": (_LifecycleArguments, self._lifecycle),
        }

    def _create(self, caller: Caller, arguments: _CreateArguments) -> Any:
        session_id = arguments.session_id
        if session_id is not None and SESSION_ID.fullmatch(session_id) is None:
            raise BadInput(f"session_id must match {SESSION_ID.pattern}, got {session_id!r:.80}", param="session_id")
        submit = Submit(
            arguments.request_id,
            arguments.provider,
            arguments.model,
            b"",
            arguments.metadata,
            arguments.timeout_seconds,
        )
        return self._stage.step(
            SessionAsked(
                caller.holder,
                submit,
                session_id or self._stage.next_session_id(),
                start=arguments.start,
                name=caller.name,
            )
        )

    def _move(self, _caller: Caller, arguments: _MoveArguments) -> Any:
        if arguments.result is not None and len(arguments.result) > MAX_RESULT:
            size = len(arguments.result)
            raise BadInput(
                f"result is {size} bytes as JSON, the limit is {MAX_RESULT}",
                param="result",
                size=size,
                limit=MAX_RESULT,
            )
        fault = None
        if arguments.error is not None:
            fault = Fault(code=arguments.code[:64], message=arguments.error[:MAX_ERROR])
        return self._stage.step(
            SessionMoved(
                arguments.request_id,
                session_id=arguments.session_id,
                move=None if arguments.move is None else _MOVES[arguments.move],
                fault=fault,
                result=arguments.result,
                release=arguments.release,
                settle=arguments.settle,
            )
        )

    def _get(self, _caller: Caller, arguments: _GetArguments) -> Any:
        return self._stage.look(lambda core, now: core.held.view(arguments.request_id, arguments.session_id, now))

    def _list(self, _caller: Caller, arguments: _ListArguments) -> Any:
        return self._stage.look(
            lambda core, now: core.held.page(now, timed_out=arguments.timed_out, after=arguments.after)
        )

    def _statistics(self, _caller: Caller, _arguments: NoArguments) -> Any:
        return self._stage.look(lambda core, _now: core.sessions.statistics(shutdown_requested=core.drain is not None))

    def _reset(self, _caller: Caller, _arguments: NoArguments) -> None:
        self._stage.step(MetricsReset())
        self._stage.reset_metrics()

    def _shutdown(self, _caller: Caller, arguments: _ShutdownArguments) -> asyncio.Future[dict[str, Any]]:
        timeout = arguments.timeout_seconds
        if timeout != 0 and (fault := refuse_timeout(timeout, "timeout_seconds")) is not None:
            raise from_fault(fault)
        return self._stage.shut_down(timeout)

    def _lifecycle(self, _caller: Caller, arguments: _LifecycleArguments) -> Any:
        def read(core: Core, now: Now) -> Any:
            log = core.lifecycle
            match arguments.query:
                case "events":
                    return log.events(arguments.request_id)
                case "active":
                    return log.active()
                case "request_duration":
                    return log.request_duration_ms(arguments.request_id, now)
                case "phase_duration":
                    return log.phase_duration_ms(arguments.request_id, arguments.phase, arguments.until, now)
                case "statistics":
                    return log.statistics(now)
                case "cleanup":
                    return log.clean_up(max(0.0, arguments.older_than), now)

        found = self._stage.look(read)
        if arguments.query != "events":
            return found
        # A request's notes may hold 256 KiB of metadata, and sanitizing takes up to 0.6 s a MiB: in a thread.
        return asyncio.ensure_future(asyncio.to_thread(_sanitized, found))


def _sanitized(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events as they may be shown; metadata where there is any."""
    for event in events:
        raw = event.pop("metadata")
        if raw is not None and (metadata := sanitize(raw)):
            event["metadata"] = metadata
    return events
