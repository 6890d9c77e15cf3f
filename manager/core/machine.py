"""The core: every rule about requests, as `(event, now) → effects`. No I/O, no clock, no threads, no logging.

                 ┌───────────────────────── Core ─────────────────────────┐
    Event, Now → │ requests · sessions · ledger · scheduler · deadlines    │ → [ToClient | ToWorker | Drained]
                 └────────────────────────────────────────────────────────┘

Theory of operation:

- A request that passes the catalogue enters the queue; `_pump` moves it on whenever the pool has a session, its account a
  slot, and some worker is up. A request holds all three or none.
- Workers report; a report counts only if it carries the request's current attempt. What an earlier attempt still says,
  and what is said of requests that have ended, is dropped: a late answer never wins.
- To end a call, the core orders its worker to cancel and remembers why (`ending`). The request ends when the worker
  acknowledges, when the worker is gone, or `END_GRACE` after the order if neither happens: slots never leak.
- A dead worker costs its own calls only: those not started go back to their places, started ones end in doubt.

What is an idea of its own has a file of its own, over the tables here: further calls (`attempts`), sessions that clients hold
(`held`), functions (`functions`), the drain (`draining`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from callpool.manager.core import refusals
from callpool.manager.core.attempts import Attempts
from callpool.manager.core.catalogue import MAX_MODEL_NAME, REQUEST_ID
from callpool.manager.core.circuits import CircuitRules
from callpool.manager.core.deadlines import Deadlines
from callpool.manager.core.dispatching import Dispatching
from callpool.manager.core.draining import Draining
from callpool.manager.core.events import (
    AccountClosed,
    AccountResumed,
    Answer,
    CancelAsked,
    ClientGone,
    ClientJoined,
    CreationFailed,
    CutAsked,
    DrainAsked,
    Effect,
    Event,
    FunctionAsked,
    JobKnown,
    JobResolved,
    JobsRecovered,
    JobWatched,
    JournalDown,
    JournalSlow,
    JournalUp,
    MetricsReset,
    Noted,
    Reported,
    SessionAsked,
    SessionMoved,
    SessionsCleaned,
    Submitted,
    ThreadsAbandoned,
    Tick,
    ToClient,
    ToJournal,
    ToLane,
    ToWorker,
    WindowsWritten,
    WorkerDown,
    WorkerRetiring,
    WorkerUp,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.functions import Functions
from callpool.manager.core.held import HeldSessions
from callpool.manager.core.jobs import MAX_LOST_ATTEMPTS, Jobs
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import (
    PLACE_BYTES,
    CancelCall,
    Chunk,
    Continues,
    Done,
    Finished,
    Grant,
    Piece,
    Rejected,
    Started,
)
from callpool.manager.core.places import Places
from callpool.manager.core.requests import Kind, Now, Phase, Record, Request
from callpool.manager.core.retry import RetryRules
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.sessions import Outcome, SessionTable
from callpool.manager.core.states import ACTIVE, Move, State, advance
from callpool.manager.core.teaching import Teaching, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from callpool.manager.core.catalogue import Catalogue
    from callpool.manager.core.drain import Drain
    from callpool.manager.core.ledger import Ledger
    from callpool.manager.core.lifecycle import Lifecycle
    from callpool.manager.core.messages import ClientEvent, Submit

LEASE_TICK = 0.02
"""Seconds by which the end of a function, of a wait in the queue or of a held session may come late: nothing else guards these."""
END_GRACE = 3.0
"""Seconds to wait for a worker's acknowledgement of a cancel before the slot is taken back without it."""
BYTES_A_TOKEN = 4

_OUTCOME_OF = {
    State.COMPLETED: (Move.COMPLETE, Outcome.COMPLETED, Phase.COMPLETED),
    State.ERROR: (Move.FAIL, Outcome.ERROR, Phase.ERROR),
    State.TIMEOUT: (Move.TIME_OUT, Outcome.TIMEOUT, Phase.TIMEOUT),
    State.CANCELLED: (Move.CANCEL, Outcome.CANCELLED, Phase.CANCELLED),
    State.INTERRUPTED: (Move.INTERRUPT, Outcome.INTERRUPTED, Phase.INTERRUPTED),
}
_STATE_OF_FAULT = {
    "timeout": State.TIMEOUT,
    "cancelled": State.CANCELLED,
    "interrupted": State.INTERRUPTED,
    "worker_lost": State.INTERRUPTED,
    "quarantined": State.INTERRUPTED,
}

_RETRIES = RetryRules()
_CIRCUITS = CircuitRules()

Handler: TypeAlias = "Callable[[Any, Now, list[Effect]], None]"


def state_of(fault: Fault | None) -> State:
    """The final state that an outcome means."""
    return State.COMPLETED if fault is None else _STATE_OF_FAULT.get(fault.code, State.ERROR)


def _may_cancel(request: Request, client: str | None) -> bool:
    """The operator may end anything; a client its own, and a job that it waits for."""
    if client is None or client == request.client:
        return True
    return request.job is not None and client in request.job.watchers


def _done_of(request: Request, state: State, fault: Fault | None, body: bytes | None, now: Now) -> Done:
    """What its client is told of its end."""
    session = request.session
    if session is None:
        return Done(request.request_id, state.value, None, 0.0, body, fault)
    return Done(request.request_id, state.value, request.session_id, session.duration(now.monotonic), body, fault)


class Core:
    """All shared state of the supervisor. Its owner is the service, which calls it under the one lock."""

    draining_class = Draining
    jobs_class = Jobs

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        sessions: SessionTable,
        ledger: Ledger,
        scheduler: Scheduler,
        lifecycle: Lifecycle,
        cleanup_interval: float = 5.0,
        retry_rules: RetryRules = _RETRIES,
        own_retry_rules: Mapping[str, RetryRules] | None = None,
        circuit_rules: CircuitRules = _CIRCUITS,
        draw: Callable[[], float] = lambda: 0.5,
        journaled: bool = False,
    ) -> None:
        """`draw` gives numbers from 0 to below 1, all as likely; the shell's are random. `journaled`: whether jobs are taken."""
        self.catalogue = catalogue
        self.sessions = sessions
        self.ledger = ledger
        self.scheduler = scheduler
        self.lifecycle = lifecycle
        self.mark = lifecycle.mark
        self.requests = lifecycle.live
        """request_id → every request that has not ended."""
        self.by_client: dict[str, set[str]] = {}
        self.by_worker: dict[int, set[str]] = {}
        """worker → requests dispatched to it; a worker that is not here gets nothing."""
        self.retiring: set[int] = set()
        """Those of `by_worker` that keep what they have and get nothing more."""
        self.suspects: dict[int, str] = {}
        """worker → the request that it has to itself, because another worker died with it."""
        self.places = Places(scheduler)
        self.abandoned: dict[str, int] = {}
        """holder → its threads that still work although their session timed out."""
        self.drain: Drain | None = None
        self.deadlines = Deadlines()
        self.leases = Deadlines(LEASE_TICK)
        """When held sessions are cleaned up, and when functions have to end."""
        self.waits = Deadlines(LEASE_TICK)
        """When requests have waited in the queue for long enough."""
        self.held = HeldSessions(self, cleanup_interval=cleanup_interval)
        self.functions = Functions(self)
        self.draining = self.draining_class(self)
        self.attempts = Attempts(
            self, rules=retry_rules, own_rules=own_retry_rules or {}, circuit_rules=circuit_rules, draw=draw
        )
        self.teaching = Teaching(self, draw)
        self.dispatching = Dispatching(self)
        self.jobs = self.jobs_class(self, journaled=journaled)
        self._sequence = 0
        self._dispatches = 0
        self._handlers: dict[type[Event], Handler] = {
            Submitted: self._submitted,
            SessionAsked: self.held.asked,
            SessionMoved: self.held.moved,
            SessionsCleaned: self.held.cleaned,
            CreationFailed: self.held.creation_failed,
            MetricsReset: self._metrics_reset,
            ThreadsAbandoned: self._threads_abandoned,
            FunctionAsked: self.functions.asked,
            Noted: self._noted,
            Reported: self._reported,
            CancelAsked: self._cancel_asked,
            ClientJoined: self._client_joined,
            ClientGone: self._client_gone,
            WorkerUp: self._worker_up,
            WorkerRetiring: self._worker_retiring,
            WorkerDown: self._worker_down,
            AccountClosed: self._account_closed,
            AccountResumed: self.teaching.resumed,
            JobsRecovered: self.jobs.recover,
            JobKnown: self.jobs.known,
            JobResolved: self.jobs.resolve,
            JobWatched: self.jobs.watched,
            JournalDown: self.jobs.journal_down,
            JournalUp: self.jobs.journal_up,
            JournalSlow: self._journal_slow,
            WindowsWritten: self._windows_written,
            DrainAsked: self.draining.asked,
            CutAsked: self.draining.cut_asked,
            Tick: self.tick,
        }

    def apply(self, event: Event, now: Now) -> list[Effect]:
        """Apply one event: the only way in. Returns what the shell must do, in order."""
        return self.apply_batch([event], now)

    def apply_batch(self, events: list[Event], now: Now) -> list[Effect]:
        """Apply events that came together as one step. Waiting requests move on once, after all of them."""
        effects: list[Effect] = []
        for event in events:
            self._handlers[type(event)](event, now, effects)
        self.dispatching.pump(now, effects)
        if self.drain is not None:
            self.draining.finish(now, effects)
        if self.ledger.records:  # before any dispatch that waits for them
            effects[:0] = map(ToJournal, self.ledger.records)
            self.ledger.records = []
        return effects

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which a `Tick` is due, or None."""
        due = self.deadlines.next()
        for other in (
            self.leases.next(),
            self.waits.next(),
            self.attempts.next_due(),
            self.dispatching.next_due(),
            None if self.ledger.carryover is None else self.ledger.carryover.next_due(),
        ):
            if other is not None and (due is None or other < due):
                due = other
        drain_due = self.drain.next_due() if self.drain is not None else None
        return due if drain_due is None or (due is not None and due < drain_due) else drain_due

    def show(self, request_id: str, now: Now) -> Record | None:
        """The record of a live or remembered request."""
        request = self.requests.get(request_id)
        if request is None:
            return self.lifecycle.record(request_id)
        record = Record.of(request, now, request.ending)
        if request.state is not State.QUEUED:
            return record
        position = self.dispatching.position(request)
        wait = self.dispatching.predicted_wait(request, position, now)
        return msgspec.structs.replace(record, position=position, predicted_wait=wait)

    # Submitting.

    def _submitted(self, event: Submitted, now: Now, effects: list[Effect]) -> None:
        submit = event.submit
        if submit.durable and self.jobs.meets_another(event, now, effects):
            return
        size = len(submit.payload) + len(submit.metadata)
        promised = not submit.acknowledge and size <= PLACE_BYTES and self.places.use(event.client)
        fault = self._refuse(event, now, promised=promised)
        if fault is not None:
            effects.append(ToClient(event.client, Rejected(submit.request_id, fault)))
            return
        request = self.receive(event.client, submit, event.session_id, Kind.CALL, now, event.name)
        request.timeouts = self.catalogue.timeouts_for(submit)
        request.queue_timeout = self.catalogue.queue_timeout_for(submit)
        if not request.tokens.prompt:
            request.tokens = self.reckon(submit)
        request.route = self.attempts.route_for(submit)
        if submit.durable:
            self.jobs.accept(request, event, now, effects)
        advance(request, Move.ENQUEUE)
        self.mark(request, Phase.QUEUED, now)
        self.attempts.redirect(request, now)
        self.attempts.wait(request, now)
        if submit.acknowledge:
            effects.append(ToClient(event.client, self.dispatching.accepted(request, now)))
        self._grant(event.client, effects)

    def receive(self, client: str, submit: Submit, session_id: str, kind: Kind, now: Now, name: str = "") -> Request:
        """Take a request in. From here on it lives, until `end`."""
        self._sequence += 1
        timeout = self.catalogue.timeout_for(submit)
        request = Request(client, submit, session_id, self._sequence, timeout, kind, name)
        request.since = now.monotonic
        self.requests[request.request_id] = request
        if client:  # else it is a job of an earlier run, and nobody waits for it yet
            self.by_client.setdefault(client, set()).add(request.request_id)
        self.mark(request, Phase.RECEIVED, now)
        return request

    def reckon(self, submit: Submit) -> Usage:
        """What a request will use whose client has not reckoned: text is about four bytes a token."""
        prompt = 0 if submit.operation == "models" else len(submit.payload) // BYTES_A_TOKEN
        return Usage(prompt, submit.tokens.answer)

    def number_attempt(self, request: Request) -> None:
        """It is dispatched once more, under a number that no other dispatch ever has."""
        self._dispatches += 1
        request.attempt = self._dispatches
        request.tries += 1

    def continue_attempts(self, last: int) -> None:
        """Attempts of earlier runs had numbers up to this one."""
        self._dispatches = max(self._dispatches, last)

    def take_session(self, request: Request, now: Now) -> None:
        """Open the session of what is no call, with a slot of its account where it has one. There is room: somebody has looked."""
        number = request.attempt or -request.sequence
        self.ledger.take_slot(request.request_id, number, request.provider, request.name, now, request.model)
        self.open_session(request, now)

    def open_session(self, request: Request, now: Now) -> None:
        """Open the request's session: there is room, and whatever else it needs it has."""
        request.session = self.sessions.open(
            request.session_id,
            request.request_id,
            request.provider,
            request.model,
            request.metadata_bytes,
            now.monotonic,
        )
        self.mark(request, Phase.SESSION_ALLOCATED, now)

    def _grant(self, client: str, effects: list[Effect]) -> None:
        more = self.places.grant(client)
        if more:
            effects.append(ToClient(client, Grant(more)))

    def _refuse(self, event: Submitted, now: Now, *, promised: bool) -> Fault | None:
        if self.drain is not None:
            return refusals.draining()
        if (fault := self.catalogue.refuse(event.submit)) is not None:
            return fault
        if event.submit.durable and (fault := self.jobs.refuse()) is not None:
            return fault
        if event.submit.request_id in self.requests:
            return refusals.duplicate(event.submit.request_id)
        if (fault := self.sessions.refuse_metadata(len(event.submit.metadata))) is not None:
            return fault
        if not promised and not self._has_queue_room(len(event.submit.payload) + len(event.submit.metadata)):
            provider = event.submit.provider
            wait = self.dispatching.wait_at(provider, self.scheduler.count(provider), now)
            return refusals.queue_full(self.scheduler, self.places.total, wait)
        return self.attempts.refuse(event.submit, event.name or event.client, now)

    def _has_queue_room(self, size: int) -> bool:
        places = self.places
        return self.scheduler.has_room(size, promised=places.total, promised_bytes=places.total_bytes)

    def requeue(self, request: Request, phase: Phase, now: Now) -> None:
        """It waits for another call. The caller puts it into the queue."""
        advance(request, Move.REQUEUE)
        self.mark(request, phase, now)

    # What workers report.

    def _reported(self, event: Reported, now: Now, effects: list[Effect]) -> None:
        report = event.report
        request = self.requests.get(report.request_id)
        if request is None or request.attempt != report.attempt or request.state not in ACTIVE:
            return  # a late word of an attempt that is over: fenced off
        if type(report) is Started:
            self._start(request, now)
            if report.tokens is not None:
                request.tokens = report.tokens
                self.ledger.expect(request.request_id, report.tokens, now.monotonic)
                if request.request_id in self.ledger.holds:
                    self.ledger.cover(self.ledger.holds[request.request_id].entries, now)
        elif type(report) is Finished:
            self._finish(request, report, now, effects)
        elif type(report) is Piece:
            self._start(request, now)  # what gives text has started
            if request.phases[-1][0] is Phase.PROVIDER_CALL_START:
                self.mark(request, Phase.FIRST_TOKEN, now)
                self.attempts.brings(request, now)
                self.ledger.answered(request.request_id, now.monotonic)
            self.tell(request, Chunk(request.request_id, report.body), effects)
        elif type(report) is Continues:
            self._continue(request, report, now, effects)

    def _start(self, request: Request, now: Now) -> None:
        if request.state is State.PROCESSING:
            return
        self.start(request, now)
        if request.kind is Kind.FUNCTION:
            self.functions.started(request, now)

    def start(self, request: Request, now: Now) -> None:
        """The work begins."""
        advance(request, Move.START)
        self.mark(request, Phase.PROVIDER_CALL_START, now)
        if request.session is not None and request.session.started_at is None:
            request.session.started_at = now.monotonic

    def _finish(self, request: Request, report: Finished, now: Now, effects: list[Effect]) -> None:
        fault = report.fault
        if request.kind is Kind.CALL:
            request.outcome = outcome_of(fault, began=request.state is State.PROCESSING)
            request.usage = report.usage
        if fault is not None and fault.code == "cancelled" and request.ending is not None:
            fault = self._acknowledged(request, request.ending, now)
        if fault is None and request.state is State.ALLOCATED:
            self._start(request, now)  # an answer that needed no provider
        if request.state is State.PROCESSING:
            self.mark(request, Phase.PROVIDER_CALL_END, now)
        if request.kind is Kind.CALL and self.attempts.goes_on(request, fault, now, effects):
            return
        if fault is not None and request.ending is None:
            fault = self.teaching.worded(request, refusals.over_all_calls(request, fault), now)
        self.end(request, fault, now, effects, body=report.body)

    def _continue(self, request: Request, report: Continues, now: Now, effects: list[Effect]) -> None:
        if request.kind is not Kind.CALL:
            return  # a function has one process and one answer
        self._start(request, now)
        self.mark(request, Phase.PROVIDER_CALL_END, now)
        request.outcome, request.usage = "used", report.usage
        if request.ending is not None:
            self.end(request, request.ending, now, effects)  # it is to end, and its call has
        else:
            self.attempts.take_part(request, report, now, effects)

    def _acknowledged(self, request: Request, ending: Fault, now: Now) -> Fault:
        """What an order to end comes to when it has been followed: the reason is the order's."""
        if request.kind is not Kind.CALL:
            return ending
        took = now.monotonic - request.ending_since
        self.sessions.cancels.add(took)
        return refusals.acknowledged(ending, took)

    # Ending requests.

    def end(
        self,
        request: Request,
        fault: Fault | None,
        now: Now,
        effects: list[Effect],
        *,
        body: bytes | None = None,
        state: State | None = None,
    ) -> None:
        """The one way out: final state, session, slot, records, and the news to the client. `state` else is the fault's."""
        if request.job is not None and fault is not None and refusals.is_by_drain(fault):
            if self.jobs.is_parked(request, now, effects):
                return
            fault = refusals.cut_in_doubt(fault)
        state = state_of(fault) if state is None else state
        fault = None if fault is None else refusals.with_parts(request, fault)
        if state is State.INTERRUPTED and request.state is not State.PROCESSING:
            state = State.ERROR  # nothing is in doubt before the call
        move, outcome, phase = _OUTCOME_OF[state]
        if request.state is State.QUEUED:
            self.scheduler.remove(request.request_id)
        self.give_back(request, now)
        if request.kind is Kind.FUNCTION and request.state is State.ALLOCATED:
            self.functions.left_before_start(request)
        advance(request, move)
        session = request.session
        if session is not None:
            self.sessions.close(session, outcome, now.monotonic)
            self.mark(request, Phase.SESSION_RELEASED, now)
        self.mark(request, phase, now)
        self.forget(request)
        if self.drain is not None:
            by_cut = fault is not None and refusals.is_by_drain(fault)
            self.drain.count(state, by_cut=by_cut, session=session is not None)
        self._remember(request, fault, now)
        if request.kind is Kind.HELD:
            return  # nobody waits for news: whoever works in the session asks
        if request.job is not None:
            self.jobs.ended(request, state, fault, body, now, effects)
        self.tell(request, _done_of(request, state, fault, body, now), effects)

    def tell(self, request: Request, message: ClientEvent, effects: list[Effect]) -> None:
        """Tell whoever waits for a request."""
        if request.job is not None:
            self.jobs.tell(request, message, effects)
        else:
            effects.append(ToClient(request.client, message))

    def forget(self, request: Request) -> None:
        """It lives no more: strike it out of the tables."""
        del self.requests[request.request_id]
        self.disown(request.client, request.request_id)
        for client in request.job.watchers if request.job is not None else ():
            self.disown(client, request.request_id)

    def disown(self, client: str, request_id: str) -> None:
        """A client has nothing to do with a request any more."""
        owned = self.by_client.get(client)
        if owned is not None:
            owned.discard(request_id)
            if not owned:
                del self.by_client[client]

    def _remember(self, request: Request, fault: Fault | None, now: Now) -> None:
        """What an ended request leaves: its envelope and its times, and nothing of prompt or answer."""
        request.payload = b""
        if request.route is not None:
            request.route.partial = ""
            request.route.fallbacks.clear()
        self.lifecycle.add_ended(request, now, None if fault is None else refusals.without_text(fault))

    def give_back(self, request: Request, now: Now) -> None:
        """Take back worker, slot and reservations, if the request holds them; its session is the caller's business."""
        self.deadlines.clear(request.request_id)
        self.leases.clear(request.request_id)
        self.waits.clear(request.request_id)
        self.attempts.rests.clear(request.request_id)
        if request.state not in ACTIVE:
            return
        outcome = request.outcome
        if request.kind is not Kind.CALL:
            outcome = "used"
        else:
            self.attempts.leave(request)
            if outcome is None:  # nobody has said what came of it; a worker that lives may have begun, or begin yet
                may_have_begun = request.state is State.PROCESSING or request.worker in self.by_worker
                outcome = "doubt" if may_have_begun else "unused"
        usage = request.usage if request.outcome is not None else None
        self.ledger.cover(self.ledger.settle(request.request_id, outcome, usage, now.monotonic), now)
        request.outcome = None
        if self.scheduler.any_held:
            self.scheduler.let_go(request.name)
        if request.worker in self.by_worker:
            self.by_worker[request.worker].discard(request.request_id)
            if self.suspects and self.suspects.get(request.worker) == request.request_id:
                del self.suspects[request.worker]

    def order_end(self, request: Request, fault: Fault, now: Now, effects: list[Effect]) -> None:
        """End a request wherever it is: at once if it waits, through its worker if it is active."""
        if request.kind is Kind.HELD or request.state not in ACTIVE:
            self.end(request, fault, now, effects)
            return
        if request.ending is not None:
            return
        request.ending = fault
        request.ending_since = now.monotonic
        self.deadlines.set(request.request_id, now.monotonic + END_GRACE)
        order = CancelCall(request.request_id, request.attempt)
        if request.kind is Kind.FUNCTION:
            self.leases.clear(request.request_id)
            effects.append(ToLane(request.holder, order))
        elif request.worker is not None:
            effects.append(ToWorker(request.worker, order))

    def _cancel_asked(self, event: CancelAsked, now: Now, effects: list[Effect]) -> None:
        request = self.requests.get(event.request_id)
        if request is None or not _may_cancel(request, event.client):
            return
        who = "its client" if event.client else "the operator"
        self.order_end(request, refusals.cancelled(who), now, effects)

    def _client_joined(self, event: ClientJoined, _now: Now, effects: list[Effect]) -> None:
        if self.drain is None:
            self.places.join(event.client)
            self._grant(event.client, effects)

    def _client_gone(self, event: ClientGone, now: Now, effects: list[Effect]) -> None:
        self.places.leave(event.client)
        self.abandoned.pop(event.client, None)  # a process ends with all its threads
        for request_id in sorted(self.by_client.get(event.client, ())):
            request = self.requests[request_id]
            if request.job is not None:
                self.jobs.forsake(request, event.client)
                continue
            gone = refusals.holder_gone() if request.kind is Kind.HELD else refusals.client_gone()
            self.order_end(request, gone, now, effects)

    # Workers and accounts.

    @property
    def has_worker(self) -> bool:
        """Whether any worker takes calls."""
        return len(self.by_worker) > len(self.retiring)

    def _worker_up(self, event: WorkerUp, _now: Now, _effects: list[Effect]) -> None:
        self.by_worker.setdefault(event.worker, set())

    def _worker_retiring(self, event: WorkerRetiring, _now: Now, _effects: list[Effect]) -> None:
        if event.worker in self.by_worker:  # else it is down, and a later one in its place is a new one
            self.retiring.add(event.worker)

    def _worker_down(self, event: WorkerDown, now: Now, effects: list[Effect]) -> None:
        held = self.by_worker.pop(event.worker, set())
        self.retiring.discard(event.worker)
        self.suspects.pop(event.worker, None)
        for request in sorted((self.requests[request_id] for request_id in held), key=lambda each: each.sequence):
            self._lose(request, event, now, effects)

    def _lose(self, request: Request, event: WorkerDown, now: Now, effects: list[Effect]) -> None:
        """The worker of this request is gone."""
        if request.ending is not None:
            self.end(request, request.ending, now, effects)  # its socket died with the worker: that is an end
            return
        if request.request_id in event.unsent:
            self.attempts.never_began(request, now, None, effects)  # the worker never heard of it
            return
        began, lost = request.state is State.PROCESSING, self.attempts.lost(request) + 1
        if lost >= MAX_LOST_ATTEMPTS:
            in_doubt = began or self.attempts.was_called(request)
            why = refusals.quarantined if in_doubt else refusals.never_started
            self.end(request, why(request, event.worker, event.reason, lost), now, effects)
        elif not began:
            reason = f"worker {event.worker} {event.reason} before the call began"
            self.attempts.never_began(request, now, reason, effects)
        else:
            fault = refusals.worker_lost(request, event.worker, event.reason)
            if not self.attempts.goes_on_after_death(request, fault, now, effects):
                self.end(request, fault, now, effects)

    def _account_closed(self, event: AccountClosed, _now: Now, _effects: list[Effect]) -> None:
        self.ledger.accounts[event.account].scope.closed = event.reason

    # Time.

    def tick(self, _event: Tick, now: Now, effects: list[Effect]) -> None:
        """Time passed: look at every deadline."""
        cuts = self.drain is not None and self.draining.begins_to_cut(self.drain, now)
        self.attempts.tick(now, effects)
        for request_id in self.deadlines.pop_due(now.monotonic):
            request = self.requests[request_id]
            if request.ending is not None:
                self.end(request, refusals.unacknowledged(request), now, effects)
            else:
                self.order_end(request, refusals.timed_out(request), now, effects)
        for request_id in self.waits.pop_due(now.monotonic):
            self.attempts.end_wait(self.requests[request_id], now, effects)
        for request_id in self.leases.pop_due(now.monotonic):
            request = self.requests[request_id]
            if request.kind is Kind.HELD:
                self.held.time_out(request, now, effects)
            else:
                self.order_end(request, refusals.session_timed_out(request.timeout), now, effects)
        self.lifecycle.forget_old(now)
        carryover = self.ledger.carryover
        if carryover is not None and (due := carryover.next_due()) is not None and due <= now.monotonic:
            self.ledger.records += carryover.lower(now)
        if cuts:
            self.draining.cut(now, effects)

    # What windows must remember.

    def _windows_written(self, event: WindowsWritten, now: Now, _effects: list[Effect]) -> None:
        carryover = self.ledger.carryover
        if carryover is not None:
            carryover.committed(event.number)
            if carryover.is_down and self.jobs.down is None:  # the disk was slow, and has come back
                self.ledger.records += carryover.up(now)

    def _journal_slow(self, _event: JournalSlow, _now: Now, _effects: list[Effect]) -> None:
        if self.ledger.carryover is not None:
            self.ledger.carryover.down()

    # Figures and the log.

    def _metrics_reset(self, _event: MetricsReset, now: Now, effects: list[Effect]) -> None:
        self.sessions.reset(now.monotonic)
        effects.append(Answer())

    def _threads_abandoned(self, event: ThreadsAbandoned, _now: Now, effects: list[Effect]) -> None:
        left = max(0, self.abandoned.pop(event.holder, 0) + event.change)
        if left:
            self.abandoned[event.holder] = left
        effects.append(Answer())

    def _noted(self, event: Noted, now: Now, _effects: list[Effect]) -> None:
        note = event.note
        texts = (note.phase, note.session_id or "", note.provider or "", note.model or "")
        long = max(map(len, texts)) > MAX_MODEL_NAME or len(note.metadata) > self.sessions.max_metadata_bytes
        if long or REQUEST_ID.fullmatch(note.request_id) is None:
            self.lifecycle.dropped_notes += 1
        else:
            self.lifecycle.note(event.client, note, now)
