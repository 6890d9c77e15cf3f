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
from callpool.manager.core.machine import END_GRACE, MAX_LOST_ATTEMPTS
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

from .sim_model import Books, States, Submission, Violation, size_of
from .sim_worker import answer_to, piece_of

if TYPE_CHECKING:
    from callpool.manager.core.events import Effect, Event
    from callpool.manager.core.messages import ClientEvent, Submit, WorkerOrder

    from .sim_worker import Report

LATENESS = TICK + 0.5
"""Seconds by which a deadline may be late: its bucket, and the simulated shell's own delay."""


class Witness(Books):
    """Every rule that can be seen from outside, checked effect by effect."""

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
            self.note(event, now)
            if type(event) is WorkerDown:
                self._lost(event, effects)
        for effect in effects:
            self._judge(effect, event, subject, allowed, now)
        self._obeyed(event)
        self._nothing_waits_needlessly()
        if type(event) is Tick:
            self._nothing_is_overdue(now)

    def _judge(self, effect: Effect, event: Event, subject: Submission | None, allowed: States, now: float) -> None:
        if type(effect) is ToWorker:
            self._order(effect.worker, effect.order, event, now)
        elif type(effect) is ToClient:
            self._message(effect.client, effect.message, event, subject, allowed, now)
        elif type(effect) is Drained:
            self._drained(effect)

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
        self.enter(event)
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
        return "queue_full" if full or self.waiting_bytes + size_of(submit) > self.max_bytes else None

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

    def _lost(self, event: WorkerDown, effects: list[Effect]) -> None:
        """A worker is down: what it held has ended in these effects, or waits again and may be dispatched in them."""
        for request_id in self.up.pop(event.worker, set()):
            if any(self._is_done(effect, request_id) for effect in effects):
                continue
            found = self.live[request_id]
            if found.started or found.entitled or found.ordered_at is not None:
                raise Violation("end_ignored", f"{found} was not ended with its worker")
            self.requeue(found)

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
        if (order.payload, order.provider) != (found.submit.payload, found.submit.provider):
            raise Violation("wrong_payload", f"{order} for {found.submit}")
        if order.attempt <= found.attempt:
            raise Violation("attempt", f"{order} after attempt {found.attempt}")
        account = order.provider
        if self.waiting[account][0] != order.request_id:
            raise Violation("overtaken", f"{order.request_id} went before {list(self.waiting[account])}")
        if account in self.closed or len(self.held[account]) >= self.limits[account]:
            raise Violation(
                "account_limit", f"{order}: account {account} holds {self.held[account]}, closed {self.closed}"
            )
        if self.active >= self.pool:
            raise Violation("pool_limit", f"{order}: {self.active} of {self.pool} sessions are out")
        self.hold(found, worker, order.attempt, now)

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
        found = self.live.get(message.request_id)
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
        self.end(found, message.state)

    def _ends_without_report(self, found: Submission, event: Event, now: float) -> States:
        """The states in which a request may end now although no worker says so."""
        if type(event) is WorkerDown and found.worker == event.worker:
            if found.ending:
                return found.ending
            if found.started:
                return frozenset({"interrupted"})
            self.seen["lost too often"] += 1
            return frozenset({"error"} if found.tries >= MAX_LOST_ATTEMPTS else ())
        if found.worker is None:
            return frozenset({"cancelled"} if found.entitled else ())
        given_up = found.ordered_at is not None and now >= found.ordered_at + END_GRACE
        if given_up or (self.cut_at is not None and now >= self.cut_at + CUT_GRACE):
            self.seen["not acknowledged"] += 1
            return frozenset({"interrupted"}) if found.started else found.ending
        return frozenset()

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
