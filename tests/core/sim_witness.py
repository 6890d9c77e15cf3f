"""The witness: knows only what went into the core and what came out, and judges every effect by that.

It keeps books of its own (`sim_model`), built from events and effects alone. Each broken rule is a `Violation` with a
short name, so that a test can say which rule a planted fault must break.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core.deadlines import TICK
from callpool.manager.core.dispatching import TIMEOUT_GRACE
from callpool.manager.core.drain import CUT_GRACE
from callpool.manager.core.events import (
    AccountResumed,
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
)
from callpool.manager.core.jobs import MAX_LOST_ATTEMPTS
from callpool.manager.core.machine import END_GRACE
from callpool.manager.core.messages import (
    Accepted,
    CancelCall,
    Chunk,
    Dispatch,
    Done,
    Finished,
    Piece,
    Rejected,
    Started,
)

from .sim_limits import LimitJudge, outcome_of
from .sim_model import States, Submission, Violation, size_of
from .sim_order import Order
from .sim_worker import answer_to, piece_of

if TYPE_CHECKING:
    from callpool.manager.core.events import Effect, Event
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.machine import Core
    from callpool.manager.core.messages import ClientEvent, WorkerOrder

    from .sim_worker import Report
    from .sim_world import World

LATENESS = TICK + 0.5
"""Seconds by which a deadline may be late: its bucket, and the simulated shell's own delay."""


class Witness(LimitJudge):
    """Every rule that can be seen from outside, checked effect by effect."""

    def __init__(self, world: World, core: Core, *, max_metadata: int) -> None:
        super().__init__(world, core, max_metadata=max_metadata)
        self._turns = Order(self)

    # Before the effects: what the event entitles the core to do.

    def observe(
        self,
        event: Event,
        effects: list[Effect],
        now: float,
        *,
        payload: bytes | None = None,
        refusal: str | None = None,
    ) -> None:
        """Judge the effects of one event. `payload`: what a report is about. `refusal`: the code that a submit deserves."""
        subject: Submission | None = None
        allowed: States = frozenset()
        self._follow_all()
        if type(event) is Submitted:
            effects = self._submitted(event, effects, refusal, now)
        elif type(event) is Reported:
            subject = self._subject(event, payload)
            if subject is None:
                self._late(event, effects)
            else:
                allowed = self._reported(subject, event.report, effects, now)
                effects = effects[1:] if type(event.report) is Piece else effects
        elif type(event) is AccountResumed:
            effects = self._resumed(event, effects, now)
        else:
            self.note(event, now)
            if type(event) is WorkerDown:
                self._lost(event, effects, now)
        self._learned(now)
        for effect in effects:
            self._judge(effect, event, subject, allowed, now)
        self._nothing_is_left_undone(event, now)

    def _late(self, event: Reported, effects: list[Effect]) -> None:
        """A word of a call that is over changes nothing; time may have passed all the same."""
        self.seen["late report"] += 1
        if any(self._speaks_of(effect, event.report.request_id) for effect in effects):
            raise Violation("late_report", f"{event} had effects {effects}")

    def _follow_all(self) -> None:
        for found in list(self.live.values()):
            if found.fallbacks and found.worker is None:
                self._follow(found)

    def _follow(self, found: Submission) -> None:
        """Where a request that may go elsewhere waits now: at its target, or at a later one of those that it named."""
        request = self._core.requests.get(found.submit.request_id)
        if request is None or request.sequence < 0 or request.target == found.target:
            return
        if request.target not in found.fallbacks:
            raise Violation("wrong_target", f"{found} waits for {request.target}, it named {found.fallbacks}")
        del found.fallbacks[: found.fallbacks.index(request.target) + 1]
        self.move(found, request.target)
        self.seen["went elsewhere"] += 1

    def _judge(self, effect: Effect, event: Event, subject: Submission | None, allowed: States, now: float) -> None:
        if type(effect) is ToWorker:
            self._order(effect.worker, effect.order, event, now)
        elif type(effect) is ToClient:
            self._message(effect.client, effect.message, event, subject, allowed, now)
        elif type(effect) is Drained:
            self._drained(effect)

    def _submitted(self, event: Submitted, effects: list[Effect], refusal: str | None, now: float) -> list[Effect]:
        submit = event.submit
        expected = self._refusal(event, refusal, now)
        first = effects[0] if effects else None
        if expected is not None:
            self.seen[f"refused {expected}"] += 1
            if len(effects) != 1 or type(first) is not ToClient or type(first.message) is not Rejected:
                raise Violation("not_refused", f"{event} deserves {expected} and got {effects}")
            if first.client != event.client or first.message.fault.code != expected:
                raise Violation("wrong_refusal", f"{event} deserves {expected} and got {first}")
            return []
        found = self.enter(event, now)
        self._follow(found)
        if submit.acknowledge:
            self._accepted(found, first)
            effects = effects[1:]
        return effects

    def _accepted(self, found: Submission, first: Effect | None) -> None:
        before = [each for each in self.waiting[found.target.provider] if each is not found]
        message = first.message if type(first) is ToClient and first.client == found.client else None
        if type(message) is not Accepted or message.request_id != found.submit.request_id:
            raise Violation("acknowledgement", f"{found} was answered by {first}")
        alike = all((each.name, each.rank) == (found.name, found.rank) for each in before) and self.world.attempts == 1
        if not (len(before) if alike else 0) <= message.position <= len(before) or (message.wait or 0.0) < 0.0:
            raise Violation("acknowledgement", f"{found} was answered by {message} behind {before}")

    def _refusal(self, event: Submitted, bad_input: str | None, now: float) -> str | None:
        submit = event.submit
        if self.drain_deadline is not None:
            return "draining"
        if bad_input is not None:
            return bad_input
        if submit.request_id in self.live:
            return "duplicate_request"
        if len(submit.metadata) > self.max_metadata:
            return "metadata_too_large"
        full = sum(map(len, self.waiting.values())) >= self.max_requests
        if full or self.waiting_bytes + size_of(submit) > self.max_bytes:
            return "queue_full"
        would_be = Submission(0, event, now)
        bars = [self._bar(would_be, target, now) for target in (would_be.target, *would_be.fallbacks)]
        return bars[0] if all(bars) else None

    def _subject(self, event: Reported, payload: bytes | None) -> Submission | None:
        """The live submission that a report is truly about, or None: it is late, and must change nothing."""
        found = self.live.get(event.report.request_id)
        if found is None or found.submit.payload != payload or found.worker != event.worker:
            return None
        return found if found.attempt == event.report.attempt else None

    def _reported(self, subject: Submission, report: Report, effects: list[Effect], now: float) -> States:
        request_id = report.request_id
        if type(report) is Started:
            subject.started = True
            if report.tokens is not None:
                subject.tokens = report.tokens
                self.limits.expect(request_id, report.tokens)
        elif type(report) is Piece:
            if effects[:1] != [ToClient(subject.client, Chunk(request_id, report.body))]:
                raise Violation("piece", f"{report} led to {effects}")
            if report.body != piece_of(subject.submit.payload, subject.pieces):
                raise Violation("piece", f"{report} for {subject.submit}, {subject.pieces} pieces so far")
            if not subject.pieces:
                self.limits.answered(request_id, now)
            subject.pieces += 1
            self.seen["piece"] += 1
        elif type(report) is Finished:
            return self._finished(subject, report, effects, now)
        return frozenset()

    def _finished(self, subject: Submission, report: Finished, effects: list[Effect], now: float) -> States:
        request_id, fault, pieces = report.request_id, report.fault, subject.pieces
        states = self._states_of(subject, report)
        told_to_wait = fault is not None and self._teaches(subject, fault, now)
        if fault is not None and fault.details.get("limit") == "tpm" and self.limits.had_a_minute(request_id):
            told_to_wait = False
            self.seen["larger than a minute"] += 1
        self.limits.settle(request_id, outcome_of(subject, fault), report.usage, now)
        if any(self._is_done(effect, request_id) for effect in effects):
            if told_to_wait and not self.limits.is_stopped(subject.target.provider, now):
                raise Violation("ended_by_limit", f"{subject} was told to wait by {fault}")
            return states
        again = fault is not None and not pieces and self._may_be_repeated(subject, fault)
        if subject.ordered_at is not None or not (told_to_wait or again):
            raise Violation("end_ignored", f"{report} led to {effects}")
        self.allowed[subject.submit.payload] += subject.started
        if told_to_wait:
            self.seen["told to wait"] += 1
            subject.timeout, subject.deadline = subject.left, None
            called = now - subject.dispatched_at  # is no waiting
            subject.submitted_at += called
            if subject.queue_until is not None:
                subject.queue_until += called
        else:
            self.seen["made again"] += 1
            longest = 0.5 * 4 * 2**subject.tries
            subject.rests_until = now + longest + LATENESS
        self.requeue(subject)
        self._follow(subject)
        return frozenset()

    def _may_be_repeated(self, subject: Submission, fault: Fault) -> bool:
        """Whether a failed call may be made again, there or elsewhere: nothing of it was billed for certain or delivered."""
        details = fault.details
        if self.world.attempts == 1 or details.get("in_doubt") is True:
            return False
        leaves = details.get("scope") in {"model", "account", "provider"} and subject.fallbacks
        return details.get("retryable") is True or bool(leaves)

    def _states_of(self, subject: Submission, report: Finished) -> States:
        code = report.fault.code if report.fault else None
        if code is None:
            return frozenset({"completed"})
        if code == "cancelled":
            return subject.ending or frozenset({"cancelled"})
        if code == "interrupted" and not subject.started:
            return frozenset({"error"})
        return frozenset({code if code in {"timeout", "interrupted"} else "error"})

    def _lost(self, event: WorkerDown, effects: list[Effect], now: float) -> None:
        """A worker is down: what it held has ended in these effects, or waits again and may be dispatched in them."""
        held = self.up.pop(event.worker, set())
        if event.worker in self.retiring:
            self.retiring.discard(event.worker)
            self.seen["lost while retiring" if held else "retired"] += 1
        for found in sorted((self.live[request_id] for request_id in held), key=lambda each: each.number):
            request_id = found.submit.request_id
            self.limits.settle(request_id, "doubt" if found.started else "unused", None, now)
            if any(self._is_done(effect, request_id) for effect in effects):
                continue
            if found.started or found.entitled or found.ordered_at is not None:
                raise Violation("end_ignored", f"{found} was not ended with its worker")
            found.lost += 1
            if found.lost == found.tries:
                found.deadline = None  # nothing was called yet: its clock starts again
            self.requeue(found)
            self._follow(found)

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
            overdue = now >= found.dispatched_at + found.left if type(event) in {Tick, DrainAsked} else False
            found.ending = frozenset({"cancelled"} if found.entitled else ()) | frozenset(
                {"timeout"} if overdue else ()
            )
            if not found.ending:
                raise Violation("unjustified_cancel", f"{order}: nobody asked, and its time is not over")
            found.ordered_at = now

    def _dispatch(self, worker: int, order: Dispatch, now: float) -> None:
        found = self.live.get(order.request_id)
        if found is None or found.worker is not None:
            raise Violation("stray_dispatch", f"{order} while it is {found}")
        if found.started:
            raise Violation("paid_twice", f"{order}: its call had started before")
        if (order.payload, order.provider, order.model) != (found.submit.payload, *found.target):
            raise Violation("wrong_payload", f"{order} for {found.submit} at {found.target}")
        if order.attempt <= found.attempt:
            raise Violation("attempt", f"{order} after attempt {found.attempt}")
        left = found.timeout if found.deadline is None else found.deadline - now
        if not 0.0 < order.timeout <= left + 1e-6:
            raise Violation("wrong_timeout", f"{order}: {left} s are left for {found}")
        if worker in self.retiring:
            raise Violation("retiring_worker", f"{order} to worker {worker}, which retires")
        self._turns.going(found, now)
        self._within_limits(found, now)
        self.hold(found, worker, order, now)

    def _message(
        self, client: str, message: ClientEvent, event: Event, subject: Submission | None, allowed: States, now: float
    ) -> None:
        if type(message) is not Done:
            raise Violation("stray_message", f"{message} to {client} by {event}")
        found = self.live.get(message.request_id)
        if found is None or found.client != client:
            raise Violation("ended_twice", f"{message} to {client} while it is {found}")
        if found is not subject:
            allowed = self._ends_without_report(found, event, message.fault, now)
        if message.state not in allowed:
            raise Violation("wrong_end", f"{message} of {found} by {event}: only {set(allowed)} would be right")
        if message.state == "completed" and message.body != answer_to(found.submit.payload):
            raise Violation("wrong_answer", f"{message} for {found.submit.payload!r}")
        if message.session_id != (found.session_id if found.tries else None):
            raise Violation("wrong_session", f"{message} of {found}")
        if found.worker is None:
            self._turns.ended_by_turn(found)
        elif found.submit.request_id in self.limits.holdings:  # nobody said what became of it
            self.limits.settle(found.submit.request_id, "doubt", None, now)
        self.end(found, message.state, now)

    def _ends_without_report(self, found: Submission, event: Event, fault: Fault | None, now: float) -> States:
        """The states in which a request may end now although no worker says so."""
        if type(event) is WorkerDown and found.worker == event.worker:
            if found.ending:
                return found.ending
            if found.started:
                return frozenset({"interrupted"})
            if fault is not None and fault.code == self._bar(found, found.target, now) == "account_stopped":
                return frozenset({"error"})
            self.seen["lost too often"] += 1
            return frozenset({"error"} if found.lost + 1 >= MAX_LOST_ATTEMPTS else ())
        if found.worker is None:
            return self._ends_waiting(found, fault, now)
        given_up = found.ordered_at is not None and now >= found.ordered_at + END_GRACE
        if given_up or (self.cut_at is not None and now >= self.cut_at + CUT_GRACE):
            self.seen["not acknowledged"] += 1
            return frozenset({"interrupted"}) if found.started else found.ending
        return frozenset()

    def _ends_waiting(self, found: Submission, fault: Fault | None, now: float) -> States:
        """The states in which a request that waits may end, for this reason."""
        code = None if fault is None else fault.code
        if code in self._bars(found, found.target, now):
            self.seen[f"waiting ended by {code}"] += 1
            return frozenset({"error"})
        if code == "timeout":
            waited = found.queue_until is not None and found.deadline is None and now >= found.queue_until
            late = found.deadline is not None and now >= found.deadline
            self.seen["waited too long"] += waited
            return frozenset({"timeout"} if waited or late else ())
        return frozenset({"cancelled"} if found.entitled else ())

    def _drained(self, effect: Drained) -> None:
        report, ended = effect.report, self._ended_in_drain
        if self.live or self.drained:
            raise Violation("drain_report", f"{effect} with {self.live}, reported before: {self.drained}")
        self.drained = True
        others = self._live_at_drain - ended["interrupted"]
        if (report.finished + report.cancelled, report.interrupted) != (others, ended["interrupted"]):
            raise Violation("drain_report", f"{report}: of {self._live_at_drain} requests {dict(ended)}")
        if report.sessions_completed_during_shutdown != self._sessions_in_drain:
            raise Violation("drain_report", f"{report}: {self._sessions_in_drain} sessions ended before the cut")
        if report.initial_active_sessions != self._held_at_drain or report.timeout_reached != (self.cut_at is not None):
            raise Violation("drain_report", f"{report}: {self._held_at_drain} were active, cut at {self.cut_at}")

    # After the effects: what may not be left undone.

    def _nothing_is_left_undone(self, event: Event, now: float) -> None:
        self._obeyed(event)
        self._nobody_waits_for_what_is_stopped(now)
        self._turns.nothing_waits_needlessly(now)
        self._nothing_settles_above(now)
        if type(event) is Tick:
            self._nothing_is_overdue(now)

    def _obeyed(self, event: Event) -> None:
        if type(event) in {CancelAsked, ClientGone, CutAsked, DrainAsked, Tick}:
            for found in self.live.values():
                if found.entitled and found.ordered_at is None:
                    raise Violation("cancel_ignored", f"{found} after {event}")

    def _nothing_is_overdue(self, now: float) -> None:
        for found in self.live.values():
            if found.ordered_at is not None and now > found.ordered_at + END_GRACE + LATENESS:
                raise Violation("overdue", f"{found} was ordered to end at {found.ordered_at}, it is {now}")
            latest = found.dispatched_at + found.left + TIMEOUT_GRACE + LATENESS
            if found.worker is not None and found.ordered_at is None and now > latest:
                raise Violation("overdue", f"{found} had to end at {latest}, it is {now}")
            until = found.queue_until if found.deadline is None else found.deadline
            if found.worker is None and until is not None and now > until + LATENESS:
                raise Violation("overdue", f"{found} may wait until {until}, it is {now}")
        if self.cut_at is not None and not self.drained and now > self.cut_at + CUT_GRACE + LATENESS:
            raise Violation("drain_report", f"cut at {self.cut_at}, no report at {now}")

    @staticmethod
    def _is_done(effect: Effect, request_id: str) -> bool:
        return type(effect) is ToClient and type(effect.message) is Done and effect.message.request_id == request_id

    @staticmethod
    def _speaks_of(effect: Effect, request_id: str) -> bool:
        return type(effect) is ToClient and getattr(effect.message, "request_id", None) == request_id
