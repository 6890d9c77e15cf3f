"""The witness: knows only what went into the core and what came out, and judges every effect by that.

It keeps a model of its own, built from events and effects alone. Each broken rule is a `Violation` with a short name, so
that a test can say which rule a planted fault must break.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, TypeAlias

from callpool.manager.core.deadlines import TICK
from callpool.manager.core.drain import CUT_GRACE
from callpool.manager.core.events import (
    AccountClosed,
    CancelAsked,
    ClientGone,
    CutAsked,
    DrainAsked,
    Drained,
    Reported,
    Submitted,
    Tick,
    ToClient,
    ToWorker,
    WorkerDown,
    WorkerUp,
)
from callpool.manager.core.machine import END_GRACE, MAX_LOST_ATTEMPTS, TIMEOUT_GRACE
from callpool.manager.core.messages import Accepted, CancelCall, Chunk, Dispatch, Done, Finished, Piece, Rejected, Started

from .build import TIMEOUT
from .sim_worker import answer_to, piece_of

if TYPE_CHECKING:
    from callpool.manager.core.events import Effect, Event
    from callpool.manager.core.messages import ClientEvent, Submit, WorkerOrder

    from .sim_worker import Report

States: TypeAlias = frozenset[str]
LATENESS = TICK + 0.5
"""Seconds by which a deadline may be late: its bucket, and the simulated shell's own delay."""


class Violation(AssertionError):
    """The core broke a rule. `rule` is its name."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


class Submission:
    """One accepted submit, from outside: a request id may name several in turn, never at once."""

    __slots__ = (
        "attempt", "client", "dispatched_at", "ending", "entitled", "number", "ordered_at",
        "pieces", "session_id", "started", "submit", "timeout", "tries", "worker",
    )  # fmt: skip

    def __init__(self, number: int, event: Submitted) -> None:
        self.number = number
        self.client = event.client
        self.submit = event.submit
        self.session_id = event.session_id
        self.timeout = TIMEOUT if event.submit.timeout is None else event.submit.timeout
        self.worker: int | None = None
        """The worker that holds it; None while it waits."""
        self.attempt = 0
        """The number of its last dispatch: the fencing token between core and worker."""
        self.tries = 0
        self.dispatched_at = 0.0
        self.started = False
        self.pieces = 0
        self.entitled = False
        """Somebody who may end it asked for its end."""
        self.ordered_at: float | None = None
        self.ending: States = frozenset()
        """Final states that the order to end it can lead to."""

    def __repr__(self) -> str:
        return f"<{self.submit.request_id} #{self.number} {self.submit.provider} worker={self.worker} tries={self.tries}>"


class Witness:
    """Every rule that can be seen from outside, checked effect by effect."""

    def __init__(self, *, pool: int, accounts: dict[str, int], max_requests: int, max_bytes: int, max_metadata: int) -> None:
        self.pool = pool
        self.limits = accounts
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.max_metadata = max_metadata
        self.live: dict[str, Submission] = {}
        self.held: dict[str, set[str]] = {name: set() for name in accounts}
        """account → ids of the requests that hold a slot of it."""
        self.waiting: dict[str, deque[str]] = {name: deque() for name in accounts}
        """account → ids of the requests that wait for it, in the order in which they must go."""
        self.waiting_bytes = 0
        self.up: dict[int, set[str]] = {}
        self.closed: set[str] = set()
        self.ended: Counter[str] = Counter()
        """Ends of requests that held a session, by state."""
        self.created = 0
        self.seen: Counter[str] = Counter()
        """What happened at all: a simulator that never gets somewhere proves nothing about it."""
        self.spent: Counter[bytes] = Counter()
        """payload → how often a worker contacted the provider for it."""
        self.final: dict[str, str] = {}
        """request_id → state in which its last submission ended."""
        self.drain_deadline: float | None = None
        self.cut_at: float | None = None
        self.drained = False
        self._live_at_drain = 0
        self._held_at_drain = 0
        self._ended_in_drain: Counter[str] = Counter()
        self._numbers = 0

    @property
    def active(self) -> int:
        """Sessions that are out."""
        return sum(map(len, self.held.values()))

    def spend(self, payload: bytes) -> None:
        """A worker contacts the provider for this payload."""
        self.spent[payload] += 1
        if self.spent[payload] > 1:
            raise Violation("paid_twice", f"two calls were made for {payload!r}")

    # Before the effects: what the event entitles the core to do.

    def observe(
        self, event: Event, effects: list[Effect], now: float, *, payload: bytes | None = None, refusal: str | None = None
    ) -> None:
        """Judge the effects of one event. `payload`: what a report is about. `refusal`: the code that a submit deserves."""
        subject: Submission | None = None
        allowed: States = frozenset()
        if type(event) is Submitted:
            effects = self._submitted(event, effects, refusal)
        elif type(event) is Reported:
            subject = self._subject(event, payload)
            if subject is None:
                self.seen["late report"] += 1
                if any(type(effect) is not Drained for effect in effects):
                    raise Violation("late_report", f"{event} is about {payload!r} and had effects {effects}")
                return
            allowed = self._reported(subject, event.report, effects)
        else:
            self._prepare(event, effects, now)
        for effect in effects:
            if type(effect) is ToWorker:
                self._order(effect.worker, effect.order, event, now)
            elif type(effect) is ToClient:
                self._message(effect.client, effect.message, event, subject, allowed, now)
            elif type(effect) is Drained:
                self._drained(effect)
        self._obeyed(event)
        self._nothing_waits_needlessly()
        if type(event) is Tick:
            self._nothing_is_overdue(now)

    def _submitted(self, event: Submitted, effects: list[Effect], refusal: str | None) -> list[Effect]:
        submit = event.submit
        expected = self._refusal(submit, refusal)
        first = effects[0] if effects else None
        if expected is not None:
            self.seen[f"refused {expected}"] += 1
            if len(effects) != 1 or type(first) is not ToClient or type(first.message) is not Rejected:
                raise Violation("not_refused", f"{event} deserves {expected} and got {effects}")
            if first.client != event.client or first.message.fault.code != expected:
                raise Violation("wrong_refusal", f"{event} deserves {expected} and got {first}")
            return []
        if submit.acknowledge:
            position = len(self.waiting[submit.provider])
            if first != ToClient(event.client, Accepted(submit.request_id, position)):
                raise Violation("acknowledgement", f"{event} at position {position} was answered by {first}")
            effects = effects[1:]
        self._numbers += 1
        self.live[submit.request_id] = Submission(self._numbers, event)
        self.waiting[submit.provider].append(submit.request_id)
        self.waiting_bytes += len(submit.payload)
        return effects

    def _refusal(self, submit: Submit, bad_input: str | None) -> str | None:
        if self.drain_deadline is not None:
            return "draining"
        if bad_input is not None:
            return bad_input
        if submit.request_id in self.live:
            return "duplicate_request"
        if len(submit.metadata) > self.max_metadata:
            return "metadata_too_large"
        full = sum(map(len, self.waiting.values())) >= self.max_requests
        return "queue_full" if full or self.waiting_bytes + len(submit.payload) > self.max_bytes else None

    def _subject(self, event: Reported, payload: bytes | None) -> Submission | None:
        """The live submission that a report is truly about, or None: it is late, and must change nothing."""
        found = self.live.get(event.report.request_id)
        if found is None or found.submit.payload != payload or found.worker != event.worker:
            return None
        return found if found.attempt == event.report.attempt else None

    def _reported(self, subject: Submission, report: Report, effects: list[Effect]) -> States:
        if type(report) is Started:
            subject.started = True
        elif type(report) is Piece:
            if effects != [ToClient(subject.client, Chunk(report.request_id, report.body))]:
                raise Violation("piece", f"{report} led to {effects}")
        elif type(report) is Finished:
            if not any(self._is_done(effect, report.request_id) for effect in effects):
                raise Violation("end_ignored", f"{report} led to {effects}")
            return self._states_of(subject, report)
        return frozenset()

    def _states_of(self, subject: Submission, report: Finished) -> States:
        code = report.fault.code if report.fault else None
        if code is None:
            return frozenset({"completed"})
        if code == "cancelled":
            return subject.ending or frozenset({"cancelled"})
        if code == "interrupted" and not subject.started:
            return frozenset({"error"})
        return frozenset({code if code in {"timeout", "interrupted"} else "error"})

    def _prepare(self, event: Event, effects: list[Effect], now: float) -> None:
        if type(event) is WorkerUp:
            self.up.setdefault(event.worker, set())
        elif type(event) is WorkerDown:
            for request_id in self.up.pop(event.worker, set()):
                if not any(self._is_done(effect, request_id) for effect in effects):
                    self._back_to_queue(self.live[request_id])
        elif type(event) is AccountClosed:
            (self.closed.discard if event.reason is None else self.closed.add)(event.account)
        elif type(event) is CancelAsked:
            found = self.live.get(event.request_id)
            if found is not None and event.client in {None, found.client}:
                found.entitled = True
        elif type(event) is ClientGone:
            for found in self.live.values():
                found.entitled |= found.client == event.client
        elif type(event) is DrainAsked or type(event) is CutAsked:
            timeout = event.timeout if type(event) is DrainAsked else 0.0
            if self.drain_deadline is None:
                self.drain_deadline = now + timeout
                self._live_at_drain, self._held_at_drain = len(self.live), self.active
                self._cut_if_due(now)
            else:
                self.drain_deadline = min(self.drain_deadline, now + timeout)
                if type(event) is CutAsked:
                    self._cut_if_due(now)
        elif type(event) is Tick:
            self._cut_if_due(now)

    def _cut_if_due(self, now: float) -> None:
        if self.cut_at is None and self.drain_deadline is not None and now >= self.drain_deadline:
            self.cut_at = now
            self.seen["cut"] += bool(self.live)
            for found in self.live.values():
                found.entitled = True

    def _back_to_queue(self, found: Submission) -> None:
        if found.started or found.entitled or found.ordered_at is not None:
            raise Violation("end_ignored", f"{found} was not ended with its worker")
        self.seen["requeued"] += 1
        request_id, account = found.submit.request_id, found.submit.provider
        self.held[account].discard(request_id)
        found.worker = None
        ids = [*self.waiting[account], request_id]
        self.waiting[account] = deque(sorted(ids, key=lambda each: self.live[each].number))
        self.waiting_bytes += len(found.submit.payload)

    # The effects, one by one.

    def _order(self, worker: int, order: WorkerOrder, event: Event, now: float) -> None:
        if worker not in self.up:
            raise Violation("dead_worker", f"{order} to worker {worker}, which is down")
        if type(order) is Dispatch:
            self._dispatch(worker, order, now)
        elif type(order) is CancelCall:
            found = self.live.get(order.request_id)
            if found is None or (found.worker, found.attempt) != (worker, order.attempt):
                raise Violation("stray_cancel", f"{order} to worker {worker} while it is {found}")
            if found.ordered_at is not None:
                raise Violation("stray_cancel", f"{order} was sent before")
            overdue = now >= found.dispatched_at + found.timeout if type(event) in {Tick, DrainAsked} else False
            found.ending = frozenset({"cancelled"} if found.entitled else ()) | frozenset({"timeout"} if overdue else ())
            if not found.ending:
                raise Violation("unjustified_cancel", f"{order}: nobody asked, and its time is not over")
            found.ordered_at = now

    def _dispatch(self, worker: int, order: Dispatch, now: float) -> None:
        found = self.live.get(order.request_id)
        if found is None or found.worker is not None:
            raise Violation("stray_dispatch", f"{order} while it is {found}")
        if found.started:
            raise Violation("paid_twice", f"{order}: its call had started before")
        if (order.payload, order.provider) != (found.submit.payload, found.submit.provider):
            raise Violation("wrong_payload", f"{order} for {found.submit}")
        if order.attempt <= found.attempt:
            raise Violation("attempt", f"{order} after attempt {found.attempt}")
        account = order.provider
        if self.waiting[account][0] != order.request_id:
            raise Violation("overtaken", f"{order.request_id} went before {list(self.waiting[account])}")
        if account in self.closed or len(self.held[account]) >= self.limits[account]:
            raise Violation("account_limit", f"{order}: account {account} holds {self.held[account]}, closed {self.closed}")
        if self.active >= self.pool:
            raise Violation("pool_limit", f"{order}: {self.active} of {self.pool} sessions are out")
        self.waiting[account].popleft()
        self.waiting_bytes -= len(found.submit.payload)
        self.held[account].add(order.request_id)
        self.up[worker].add(order.request_id)
        self.created += found.tries == 0
        found.tries += 1
        found.worker, found.attempt, found.dispatched_at = worker, order.attempt, now

    def _message(
        self, client: str, message: ClientEvent, event: Event, subject: Submission | None, allowed: States, now: float
    ) -> None:
        if type(message) is Chunk and subject is not None:
            if message.body != piece_of(subject.submit.payload, subject.pieces):
                raise Violation("piece", f"{message} for {subject.submit}, {subject.pieces} pieces so far")
            subject.pieces += 1
            self.seen["piece"] += 1
            return
        if type(message) is not Done:
            raise Violation("stray_message", f"{message} to {client} by {event}")
        found = self.live.pop(message.request_id, None)
        if found is None or found.client != client:
            raise Violation("ended_twice", f"{message} to {client} while it is {found}")
        if found is not subject:
            allowed = self._ends_without_report(found, event, now)
        if message.state not in allowed:
            raise Violation("wrong_end", f"{message} of {found} by {event}: only {set(allowed)} would be right")
        if message.state == "completed" and message.body != answer_to(found.submit.payload):
            raise Violation("wrong_answer", f"{message} for {found.submit.payload!r}")
        if message.session_id != (found.session_id if found.tries else None):
            raise Violation("wrong_session", f"{message} of {found}")
        self._end(found, message)

    def _ends_without_report(self, found: Submission, event: Event, now: float) -> States:
        """The states in which a request may end now although no worker says so."""
        if type(event) is WorkerDown and found.worker == event.worker:
            if found.ending:
                return found.ending
            if found.started:
                return frozenset({"interrupted"})
            return frozenset({"error"} if found.tries >= MAX_LOST_ATTEMPTS else ())
        if found.worker is None:
            return frozenset({"cancelled"} if found.entitled else ())
        given_up = found.ordered_at is not None and now >= found.ordered_at + END_GRACE
        if given_up or (self.cut_at is not None and now >= self.cut_at + CUT_GRACE):
            self.seen["not acknowledged"] += 1
            return frozenset({"interrupted"}) if found.started else found.ending
        return frozenset()

    def _end(self, found: Submission, message: Done) -> None:
        request_id, account = message.request_id, found.submit.provider
        if found.worker is None:
            self.waiting[account].remove(request_id)
            self.waiting_bytes -= len(found.submit.payload)
        else:
            self.held[account].discard(request_id)
            self.up.get(found.worker, set()).discard(request_id)
        if found.tries:
            self.ended[message.state] += 1
        if self.drain_deadline is not None:
            self._ended_in_drain[message.state] += 1
        self.final[request_id] = message.state
        self.seen[f"{'waiting' if found.worker is None else 'active'} {message.state}"] += 1

    def _drained(self, effect: Drained) -> None:
        report, ended = effect.report, self._ended_in_drain
        if self.live or self.drained:
            raise Violation("drain_report", f"{effect} with {self.live}, reported before: {self.drained}")
        self.drained = True
        figures = (report.finished + report.cancelled, report.interrupted, report.sessions_completed_during_shutdown)
        others = self._live_at_drain - ended["interrupted"]
        if figures != (others, ended["interrupted"], ended["completed"]):
            raise Violation("drain_report", f"{report}: of {self._live_at_drain} requests {dict(ended)}")
        if report.initial_active_sessions != self._held_at_drain or report.timeout_reached != (self.cut_at is not None):
            raise Violation("drain_report", f"{report}: {self._held_at_drain} were active, cut at {self.cut_at}")

    # After the effects: what may not be left undone.

    def _obeyed(self, event: Event) -> None:
        if type(event) in {CancelAsked, ClientGone, CutAsked, DrainAsked, Tick}:
            for found in self.live.values():
                if found.entitled and found.ordered_at is None:
                    raise Violation("cancel_ignored", f"{found} after {event}")

    def _nothing_waits_needlessly(self) -> None:
        if not self.up or self.active >= self.pool:
            return
        for account, ids in self.waiting.items():
            if ids and account not in self.closed and len(self.held[account]) < self.limits[account]:
                raise Violation("missed_wakeup", f"account {account} has a slot, and {list(ids)} wait for it")

    def _nothing_is_overdue(self, now: float) -> None:
        for found in self.live.values():
            if found.ordered_at is not None and now > found.ordered_at + END_GRACE + LATENESS:
                raise Violation("overdue", f"{found} was ordered to end at {found.ordered_at}, it is {now}")
            latest = found.dispatched_at + found.timeout + TIMEOUT_GRACE + LATENESS
            if found.worker is not None and found.ordered_at is None and now > latest:
                raise Violation("overdue", f"{found} had to end at {latest}, it is {now}")
        if self.cut_at is not None and not self.drained and now > self.cut_at + CUT_GRACE + LATENESS:
            raise Violation("drain_report", f"cut at {self.cut_at}, no report at {now}")

    @staticmethod
    def _is_done(effect: Effect, request_id: str) -> bool:
        return type(effect) is ToClient and type(effect.message) is Done and effect.message.request_id == request_id
