"""Sessions that a client holds: it does the work itself, and the bookkeeping, the limits and the deadlines are here.

    create ─► idle ─start─► processing ─complete─► completed      slot and bytes are given back, the outcome is counted
                │               ├────── fail ────► error          … once, at whatever ends it first:
                └───────────────┼────── time out ► timeout            its holder's word, its timeout, its release,
                                └────── release ─► cancelled          the end of its holder, an operator, a drain

A session that has ended is kept as history until its holder releases it, or until the log's bounds forget it; from then on
`get_session` knows nothing of it. The handlers are the machine's; they live here because they are one idea.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from callpool.manager.core import refusals
from callpool.manager.core.catalogue import refuse_session
from callpool.manager.core.events import Answer
from callpool.manager.core.faults import Fault
from callpool.manager.core.requests import Kind, Now, Phase, Request
from callpool.manager.core.states import ACTIVE, ENDED, MOVES, Move, State, advance

if TYPE_CHECKING:
    from callpool.manager.core.events import (
        CreationFailed,
        Effect,
        SessionAsked,
        SessionMoved,
        SessionsCleaned,
    )
    from callpool.manager.core.machine import Core
    from callpool.manager.core.messages import Submit

MAX_ERROR = 2_000
"""Characters of an error's text that a session keeps."""
PAGE_SESSIONS = 500
"""Sessions in one page of a list: about half a millisecond under the lock."""
PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of metadata after which a page is full; one more session may bring a mebibyte."""
_FAILED = Fault(code="session_failed", message="failed")


class SessionView(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A session as it stands. Times are wall-clock seconds since the epoch; durations are from the monotonic clock."""

    session_id: str
    request_id: str
    provider: str
    model: str
    state: str
    kind: str
    holder: str
    created_at: float
    started_at: float | None
    completed_at: float | None
    timeout_seconds: float
    duration: float
    """Seconds from the start (the creation, if it never started) to the end, or to now."""
    timed_out: bool
    """Whether it is past its timeout, or ended by it."""
    released: bool
    metadata_bytes: int
    fault: Fault | None = None
    metadata: bytes | None = None
    """JSON; left out of answers to moves."""
    result: bytes | None = None


def view_of(request: Request, now: Now, fault: Fault | None, *, whole: bool = True) -> SessionView:
    """The view of a request that has a session. `whole`: with metadata and result."""
    session = request.session
    if session is None:
        raise RuntimeError("the request holds no session")
    completed = request.phases[-1][1].wall if request.state in ENDED else None
    started = None
    if session.started_at is not None:
        started = next((at.wall for phase, at in request.phases if phase is Phase.PROVIDER_CALL_START), None)
    duration = session.duration(now.monotonic)
    return SessionView(
        request.session_id,
        request.request_id,
        request.provider,
        request.model,
        request.state,
        request.kind,
        request.holder,
        request.phases[0][1].wall,
        started,
        completed,
        request.timeout,
        duration,
        timed_out=request.state is State.TIMEOUT or (request.state in ACTIVE and duration > request.timeout),
        released=request.released,
        metadata_bytes=request.metadata_bytes,
        fault=fault,
        metadata=request.metadata if whole else None,
        result=request.result if whole else None,
    )


class HeldSessions:
    """The handlers of held sessions, over the machine's tables."""

    def __init__(self, core: Core, *, cleanup_interval: float) -> None:
        self._core = core
        self.cleanup_interval = cleanup_interval
        """Seconds past its timeout after which a session is ended without being asked for."""

    # Creating.

    def refuse(self, submit: Submit, name: str, now: Now) -> Fault | None:
        """Why this session cannot be created now, counted; else None. Nothing is kept of a refused one."""
        core = self._core
        if core.drain is not None:
            return refusals.draining()
        if (wrong := refuse_session(submit)) is not None:
            core.sessions.rejected_creation_error += 1
            return refusals.creation_failed(wrong)
        if not core.sessions.has_room:
            waiting = len(core.scheduler)
            return core.sessions.refuse_capacity(waiting, core.dispatching.wait_at(submit.provider, waiting, now))
        full = core.ledger.full_account(submit.provider, now.monotonic, submit.model)
        if full is not None:
            core.sessions.rejected_capacity += 1
            waiting = core.scheduler.count(submit.provider)
            wait = core.dispatching.wait_at(submit.provider, waiting, now)
            return refusals.scope_full(full, submit.provider, waiting=waiting, wait=wait)
        if (rate := core.ledger.full_rate(name, now)) is not None:
            core.sessions.rejected_capacity += 1
            return refusals.rate_full(*rate, now.monotonic)
        if (fault := core.sessions.refuse_metadata(len(submit.metadata))) is not None:
            return fault
        if submit.request_id in core.requests:
            core.sessions.rejected_creation_error += 1
            return refusals.duplicate(submit.request_id)
        return None

    def asked(self, event: SessionAsked, now: Now, effects: list[Effect]) -> None:
        """Create a session for a holder, or refuse it."""
        name = event.name or event.holder
        fault = self.refuse(event.submit, name, now)
        if fault is not None:
            effects.append(Answer(fault=fault))
            return
        core = self._core
        request = core.receive(event.holder, event.submit, event.session_id, Kind.HELD, now, name)
        advance(request, Move.CREATE)
        core.take_session(request, now)
        if event.start:
            core.start(request, now)
        self._guard(request, now)
        effects.append(Answer(view_of(request, now, None, whole=False)))

    def creation_failed(self, _event: CreationFailed, _now: Now, effects: list[Effect]) -> None:
        """Count what never came as far as a request."""
        self._core.sessions.rejected_creation_error += 1
        effects.append(Answer())

    # Moving.

    def moved(self, event: SessionMoved, now: Now, effects: list[Effect]) -> None:
        """Start, end or release a session."""
        request = self._core.requests.get(event.request_id)
        if request is None or request.session is None or self._is_other(request, event):
            self._moved_after_end(event, effects)
        elif request.kind is not Kind.HELD:
            effects.append(Answer(fault=refusals.not_held(event.request_id)))
        else:
            self._move(request, event, now, effects)

    def _move(self, request: Request, event: SessionMoved, now: Now, effects: list[Effect]) -> None:
        fault: Fault | None = None
        if event.move is not None:
            if event.move not in MOVES[request.state]:
                effects.append(Answer(fault=refusals.illegal_move(request.request_id, request.state, event.move.value)))
                return
            fault = self._make(request, event.move, event, now, effects)
        if event.release and request.state in ACTIVE:
            fault = refusals.released_active()
            self._end(request, State.CANCELLED, fault, now, effects)
        request.released = request.released or event.release
        effects.append(Answer(view_of(request, now, fault, whole=False)))

    def _make(self, request: Request, move: Move, event: SessionMoved, now: Now, effects: list[Effect]) -> Fault | None:
        """Make one legal move; the fault that the session ends with, if it is one."""
        if move is Move.START:
            self._core.start(request, now)
            self._guard(request, now)
            return None
        fault: Fault | None = None
        if move is Move.COMPLETE:
            request.result = event.result
        elif move is Move.TIME_OUT:
            fault = refusals.session_timed_out(request.timeout)
        elif move is Move.CANCEL:
            fault = refusals.cancelled("its holder")
        else:
            fault = event.fault or _FAILED
        self._end(request, MOVES[request.state][move], fault, now, effects)
        return fault

    def _moved_after_end(self, event: SessionMoved, effects: list[Effect]) -> None:
        """The session has ended, or there never was one."""
        found = self._core.lifecycle.find_ended(event.request_id)
        if found is not None and (found[0].session is None or self._is_other(found[0], event)):
            found = None
        if found is None:
            nothing_to_do = event.move is None and event.release
            effects.append(Answer() if nothing_to_do else Answer(fault=refusals.no_session(event.request_id)))
            return
        request, ended, fault = found
        if event.move is not None and not event.settle:
            effects.append(Answer(fault=refusals.illegal_move(request.request_id, request.state, event.move.value)))
            return
        request.released = request.released or event.release
        effects.append(Answer(view_of(request, ended, fault, whole=False)))

    @staticmethod
    def _is_other(request: Request, event: SessionMoved) -> bool:
        return event.session_id is not None and event.session_id != request.session_id

    # Timeouts.

    def time_out(self, request: Request, now: Now, effects: list[Effect]) -> None:
        """End and release a session that is past its timeout."""
        self._end(request, State.TIMEOUT, refusals.session_timed_out(request.timeout), now, effects)
        request.released = True

    def cleaned(self, _event: SessionsCleaned, now: Now, effects: list[Effect]) -> None:
        """End and release every held session that is past its timeout. O(sessions)."""
        late = [
            request
            for request in self._core.requests.values()
            if request.kind is Kind.HELD
            and request.session is not None
            and request.session.duration(now.monotonic) > request.timeout
        ]
        for request in late:
            self.time_out(request, now, effects)
        effects.append(Answer(len(late)))

    # Looking.

    def view(self, request_id: str, session_id: str | None, now: Now) -> SessionView | None:
        """The session of a request: the one that lives, else the one that is remembered. None if there is none."""
        request, at, fault = self._core.requests.get(request_id), now, None
        if request is None or (session_id is not None and request.session_id != session_id):
            found = self._core.lifecycle.find_ended(request_id)
            if found is None:
                return None
            request, at, fault = found
        if request.session is None or (session_id is not None and request.session_id != session_id):
            return None
        return view_of(request, at, fault)

    def page(self, now: Now, *, timed_out: bool, after: int = 0) -> tuple[list[SessionView], int | None]:
        """Active sessions in the order of arrival, or those of them past their timeout; and where the next page begins.

        `after` is the number that the page before gave. A page is bounded in sessions and in bytes. O(sessions).
        """
        found: list[SessionView] = []
        size = 0
        for request in self._core.requests.values():
            if request.sequence <= after or request.session is None or request.state not in ACTIVE:
                continue
            view = view_of(request, now, request.ending)
            if timed_out and not view.timed_out:
                continue
            found.append(view)
            size += request.metadata_bytes
            if len(found) >= PAGE_SESSIONS or size >= PAGE_BYTES:
                return found, request.sequence
        return found, None

    # Pieces.

    def _guard(self, request: Request, now: Now) -> None:
        self._core.leases.set(request.request_id, now.monotonic + request.timeout + self.cleanup_interval)

    def _end(self, request: Request, state: State, fault: Fault | None, now: Now, effects: list[Effect]) -> None:
        if request.state is State.PROCESSING:
            self._core.mark(request, Phase.PROVIDER_CALL_END, now)
        self._core.end(request, fault, now, effects, state=state)
