"""A session as its users see it: what stays the same is here, what changes is asked of the supervisor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

import msgspec

from callpool.manager.core.sanitize import sanitize
from callpool.manager.core.states import ACTIVE, State
from callpool.manager.errors import CallpoolError, UnknownRequest
from callpool.manager.session_calls import (
    SessionIds,
    complete_arguments,
    end_arguments,
    fail_arguments,
    nothing,
    read_view,
)

if TYPE_CHECKING:
    from types import TracebackType

    from callpool.manager.core.held import SessionView
    from callpool.manager.sessions import SessionManager

ACTIVE_STATES = frozenset(state.value for state in ACTIVE)
PROCESSING = State.PROCESSING.value


class SessionFacts:
    """What the sync and the async handle have in common: the last view, and what never changes."""

    __slots__ = ("_metadata", "_view")

    def __init__(self, view: SessionView, metadata: dict[str, Any] | None = None) -> None:
        self._view = view
        self._metadata = metadata

    def __repr__(self) -> str:
        view = self._view
        return f"<{type(self).__name__} {view.request_id} {view.provider}/{view.model} last seen {view.state}>"

    @property
    def session_id(self) -> str:
        """`session_` and sixteen hexadecimal digits."""
        return self._view.session_id

    @property
    def request_id(self) -> str:
        """The id that verbs know it by."""
        return self._view.request_id

    @property
    def ids(self) -> SessionIds:
        """Both ids."""
        return SessionIds(self._view.request_id, self._view.session_id)

    @property
    def provider(self) -> str:
        """The provider's name, as it was given."""
        return self._view.provider

    @property
    def model(self) -> str:
        """The model's name, as it was given."""
        return self._view.model

    @property
    def timeout_seconds(self) -> float:
        """Seconds from the start (from the creation, while it is idle)."""
        return self._view.timeout_seconds

    @property
    def created_at(self) -> float:
        """Wall-clock seconds since the epoch."""
        return self._view.created_at

    @property
    def metadata(self) -> dict[str, Any]:
        """What it was created with, as JSON has it."""
        if self._metadata is None:
            self._metadata = json.loads(self._view.metadata or b"{}")
        return self._metadata

    def describe(self, *, metadata: bool = True) -> dict[str, Any]:
        """What was last seen of it, as plain data to show: metadata without credentials (or left out), and no result."""
        plain = msgspec.structs.asdict(self._view)
        del plain["result"], plain["metadata"]
        plain["fault"] = msgspec.to_builtins(self._view.fault)
        if metadata:
            # Here and not in the supervisor: a thousand large ones take a second, and its loop has better things to do.
            raw = self._view.metadata
            plain["metadata"] = sanitize(json.dumps(self.metadata).encode() if raw is None else raw) or {}
        return plain

    @property
    def _is_final(self) -> bool:
        return self._view.state not in ACTIVE_STATES


class Session(SessionFacts):
    """A handle of a session, in any process that is connected. It shows the supervisor's truth at the moment of asking.

    `state`, `started_at`, `completed_at`, `result` and `error` ask the supervisor while the session is active. A move that its
    state does not allow raises IllegalMove and changes nothing. As a context manager it starts the session, completes or fails
    it, and releases it.
    """

    __slots__ = ("_manager",)

    def __init__(self, manager: SessionManager, view: SessionView, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(view, metadata)
        self._manager = manager

    def __reduce__(self) -> tuple[Any, ...]:
        """It may travel to another process: there it is a handle of that process's own connection."""
        return reopen, (self._manager.address, self.request_id, self.session_id)

    def __enter__(self) -> Self:
        try:
            if self._look().state != PROCESSING:
                self.start()
        except BaseException as error:
            if not isinstance(error, CallpoolError):  # Ctrl-C: nobody is there to end it
                self._manager.settle(self.ids, end_arguments(error))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ending = end_arguments(error)
        try:
            self._manager.settle(self.ids, ending)
        except BaseException:
            self._manager.settle(self.ids, ending)  # Ctrl-C in the middle; a second word changes nothing
            raise

    def start(self) -> None:
        """The work begins: from here on its duration and its timeout count."""
        self._move(move="start")

    def complete(self, result: Any = None) -> None:
        """The work is done. `result` is kept as JSON (at most 64 KiB) for whoever asks for it."""
        self._move(**complete_arguments(result))

    def fail(self, error: object = "failed") -> None:
        """The work failed: an exception, or a text."""
        self._move(**fail_arguments(error))

    def timeout(self) -> None:
        """The work was not done in time."""
        self._move(move="time_out")

    def release(self) -> None:
        """Be done with it; if it is still active it ends as cancelled. The same as `release_session`."""
        self._see(self._manager.ask_or(nothing, "move_session", **self.ids._asdict(), release=True))

    def is_active(self) -> bool:
        """Whether it holds a slot: it is idle, allocated or processing."""
        return self._look().state in ACTIVE_STATES

    def is_timed_out(self) -> bool:
        """Whether it is past its timeout, or ended by it."""
        return self._look().timed_out

    def get_duration(self) -> float:
        """Seconds from the start (the creation, while it is idle) to the end, or to now."""
        return self._look().duration

    @property
    def state(self) -> str:
        """`idle`, `allocated`, `processing`, `completed`, `timeout`, `error`, `cancelled` or `interrupted`."""
        return self._look().state

    @property
    def started_at(self) -> float | None:
        """Wall-clock seconds since the epoch, or None."""
        return self._look().started_at

    @property
    def completed_at(self) -> float | None:
        """Wall-clock seconds since the epoch of its end, or None while it is active."""
        return self._look().completed_at

    @property
    def result(self) -> Any:
        """What it was completed with, as JSON has it, or None."""
        view = self._look(whole=True)
        return None if view.result is None else json.loads(view.result)

    @property
    def error(self) -> str | None:
        """Why it ended without a result, or None."""
        fault = self._look().fault
        return None if fault is None else fault.message

    def _look(self, *, whole: bool = False) -> SessionView:
        """The newest view. A final one never changes; `whole` also wants what moves leave out of their answers."""
        if not self._is_final or (whole and self._view.metadata is None):
            value = self._manager.ask_or(nothing, "get_session", **self.ids._asdict())
            if value is None and self._manager.is_shut_down:
                return self._view  # there is nobody left to ask: what was seen last
            if value is None and not self._is_final:
                raise UnknownRequest(
                    f"the session of {self.request_id!r} has ended and is forgotten", param="request_id"
                )
            if value is not None:
                self._view = read_view(value)
        return self._view

    def _move(self, **arguments: Any) -> None:
        self._see(self._manager.ask("move_session", **self.ids._asdict(), **arguments))

    def _see(self, value: Any) -> None:
        if value is not None:
            self._view = read_view(value)


def reopen(address: str, request_id: str, session_id: str) -> Session:
    """A handle that came from another process. Raises UnknownRequest if the supervisor does not know the session any more."""
    from callpool.manager.embedded import shared_client  # noqa: PLC0415 - it knows the client, which knows us

    manager = shared_client(address).sessions
    value = manager.ask("get_session", request_id=request_id, session_id=session_id)
    if value is None:
        raise UnknownRequest(f"no session has the request id {request_id!r}", param="request_id")
    return Session(manager, read_view(value))
