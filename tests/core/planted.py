"""Faults planted in the core, one class each: what the simulator must be able to find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callpool.manager.core.dispatching import Dispatching
from callpool.manager.core.draining import Draining
from callpool.manager.core.events import AccountClosed, CancelAsked, ToClient, WorkerUp
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.machine import Core
from callpool.manager.core.messages import Accepted, Done
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.scopes import Scope
from callpool.manager.core.sessions import SessionTable
from callpool.manager.core.states import State

from . import planted_limits as limits
from .sim_shell import Parts

if TYPE_CHECKING:
    from callpool.manager.core.events import (
        ClientGone,
        DrainAsked,
        Effect,
        Event,
        Reported,
        Submitted,
        Tick,
        WorkerDown,
    )
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.limits import LedgerRules
    from callpool.manager.core.requests import Now, Phase, Request
    from callpool.manager.core.scheduler import Gate
    from callpool.manager.core.sessions import Outcome, Session


class NoPumpAfterOpening(Core):
    def apply_batch(self, events: list[Event], now: Now) -> list[Effect]:
        if type(events[0]) is not AccountClosed:
            return super().apply_batch(events, now)
        self.ledger.accounts[events[0].account].scope.closed = events[0].reason
        return []


class _NotAfterEnds(Dispatching):
    def pump(self, now: Now, effects: list[Effect]) -> None:
        if not any(type(effect) is ToClient and type(effect.message) is Done for effect in effects):
            super().pump(now, effects)


class NoPumpAfterCancel(Core):
    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.dispatching = _NotAfterEnds(self)


class _OneOnly(Dispatching):
    def pump(self, now: Now, effects: list[Effect]) -> None:
        core = self._core
        if core.by_worker and core.sessions.has_room and len(core.scheduler):
            self.admission.begin(now)
            request = core.scheduler.next(self.admission, now.monotonic)
            if request is not None:
                self._dispatch(request, now, effects)


class PumpsOneOnly(Core):
    """The founding mistake: one wake-up for one free slot, although the event freed several."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.dispatching = _OneOnly(self)


class HeadBlocks(Scheduler):
    """A request whose account has no slot blocks those whose account has one."""

    def next(self, gate: Gate, now: float) -> Request | None:
        waiting = self.waiting()
        return super().next(gate, now) if waiting and gate.is_open(waiting[0].provider) else None


class SlotLostOnRequeue(Core):
    def _lose(self, request: Request, event: WorkerDown, now: Now, effects: list[Effect]) -> None:
        super()._lose(request, event, now, effects)
        if request.state is State.QUEUED:
            self.ledger.accounts[request.provider].scope.holders[request.request_id] = 0


class SlotLostOnCancel(Core):
    def give_back(self, request: Request, now: Now) -> None:
        super().give_back(request, now)
        if request.ending is not None and request.state is State.ALLOCATED:
            self.ledger.accounts[request.provider].scope.holders[request.request_id] = 0


class LateReportsCount(Core):
    """The fencing token is not looked at."""

    def _reported(self, event: Reported, now: Now, effects: list[Effect]) -> None:
        request = self.requests.get(event.report.request_id)
        if request is not None and request.worker is not None:
            request.attempt = event.report.attempt
        super()._reported(event, now, effects)


class CountsTwice(SessionTable):
    def close(self, session: Session, outcome: Outcome, now: float) -> None:
        super().close(session, outcome, now)
        self.ended[outcome] += outcome.value == "timeout"


class BytesKeptOnSuspend(SessionTable):
    def suspend(self, session: Session) -> None:
        super().suspend(session)
        self.metadata_bytes += session.metadata_bytes


class LeaseKeptOnSuspend(SessionTable):
    def suspend(self, session: Session) -> None:
        session.held = False


class DispatchesToTheDead(Core):
    def _worker_down(self, event: WorkerDown, now: Now, effects: list[Effect]) -> None:
        super()._worker_down(event, now, effects)
        self.by_worker[event.worker] = set()


class _ChoosesAnybody(Dispatching):
    def _worker_for(self, request: Request) -> int:
        core = self._core
        retiring, core.retiring = core.retiring, set()
        try:
            return super()._worker_for(request)
        finally:
            core.retiring = retiring


class DispatchesToTheRetiring(Core):
    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.dispatching = _ChoosesAnybody(self)


class CountsTheRetiring(Core):
    """A queue moves on although everybody who is there retires."""

    @property
    def has_worker(self) -> bool:
        return bool(self.by_worker)


class _LeansOnTheRetiring(Dispatching):
    def _worker_for(self, request: Request) -> int:
        key = (request.provider, request.affinity or "")
        last = self._workers.get(key)
        chosen = super()._worker_for(request)
        if last is not None and last in self._core.retiring:
            self._workers[key] = last
            return last
        return chosen


class FollowsAffinityToTheRetiring(Core):
    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.dispatching = _LeansOnTheRetiring(self)


class RetirementForgotten(Core):
    """A new worker in the place of one that retired is taken for it."""

    def _worker_down(self, event: WorkerDown, now: Now, effects: list[Effect]) -> None:
        retiring = set(self.retiring)
        super()._worker_down(event, now, effects)
        self.retiring |= retiring & {event.worker}


class CallsAgain(Core):
    """A call that had started is made again when its worker dies: paid twice, silently."""

    def _lose(self, request: Request, event: WorkerDown, now: Now, effects: list[Effect]) -> None:
        if request.state is State.PROCESSING and request.ending is None:
            request.state = State.ALLOCATED
        super()._lose(request, event, now, effects)


class _Forgetful(Draining):
    def finish(self, now: Now, effects: list[Effect]) -> None:
        requests = self._core.requests
        queued = {key: request for key, request in requests.items() if request.state is State.QUEUED}
        if len(queued) == len(requests):
            requests.clear()
        super().finish(now, effects)
        requests.update(queued)


class DrainForgetsTheQueue(Core):
    draining_class = _Forgetful


class _Patient(Draining):
    def finish(self, now: Now, effects: list[Effect]) -> None:
        if not self._core.requests:
            super().finish(now, effects)


class DrainWaitsForEver(Core):
    """Nobody gives up on workers that do not acknowledge, and nobody asks to be woken for it."""

    draining_class = _Patient


class DrainAccepts(Core):
    def _refuse(self, event: Submitted, now: Now, *, promised: bool) -> Fault | None:
        fault = super()._refuse(event, now, promised=promised)
        return None if fault is not None and fault.code == "draining" else fault


class _OneMore(Scope):
    __slots__ = ()

    def is_full(self, now: float) -> bool:
        return self.concurrency is not None and super().is_full(now) and self.active > self.concurrency.limit


class OverTheLimit(Ledger):
    def __init__(self, rules: LedgerRules) -> None:
        super().__init__(rules)
        for name, account in self.accounts.items():
            account.scope = _OneMore("account", name, account.rules.limits, charge=account.rules.counting.charge)


class OverThePool(SessionTable):
    @property
    def has_room(self) -> bool:
        return self.active <= self.max_concurrent


class DeadlineForgotten(Core):
    """A cancel that is not acknowledged keeps its slot for ever."""

    def order_end(self, request: Request, fault: Fault, now: Now, effects: list[Effect]) -> None:
        super().order_end(request, fault, now, effects)
        self.deadlines.clear(request.request_id)


class DeadlineKeptOnRequeue(Core):
    def requeue(self, request: Request, phase: Phase, now: Now) -> None:
        super().requeue(request, phase, now)
        self.deadlines.set(request.request_id, now.monotonic + request.timeout)


class AnybodyCancels(Core):
    def _cancel_asked(self, event: CancelAsked, now: Now, effects: list[Effect]) -> None:
        super()._cancel_asked(CancelAsked(None, event.request_id), now, effects)


class ClientForgotten(Core):
    """Only the active calls of a client that died are ended."""

    def _client_gone(self, event: ClientGone, now: Now, effects: list[Effect]) -> None:
        owned = self.by_client.get(event.client, set())
        queued = {key for key in owned if self.requests[key].state is State.QUEUED}
        owned -= queued
        super()._client_gone(event, now, effects)
        if queued:
            self.by_client.setdefault(event.client, set()).update(queued)


class LosesItsPlace(Core):
    """A request that waits again goes to the end of the queue."""

    def _lose(self, request: Request, event: WorkerDown, now: Now, effects: list[Effect]) -> None:
        self._sequence += 1
        request.sequence = self._sequence
        super()._lose(request, event, now, effects)


class _Anew(Draining):
    def asked(self, event: DrainAsked, now: Now, effects: list[Effect]) -> None:
        self._core.drain = None
        super().asked(event, now, effects)


class CutTwice(Core):
    """The second order to drain begins a drain of its own."""

    draining_class = _Anew


class AcknowledgesAfter(Core):
    def apply(self, event: Event, now: Now) -> list[Effect]:
        effects = super().apply(event, now)
        if len(effects) > 1 and type(effects[0]) is ToClient and type(effects[0].message) is Accepted:
            effects.append(effects.pop(0))
        return effects


class TimesOutEarly(Core):
    def next_deadline(self) -> float | None:
        due = super().next_deadline()
        return None if due is None else due - 2.0

    def tick(self, event: Tick, now: Now, effects: list[Effect]) -> None:
        super().tick(event, now._replace(monotonic=now.monotonic + 2.0), effects)


class WorkerUpForgets(Core):
    def apply_batch(self, events: list[Event], now: Now) -> list[Effect]:
        if type(events[0]) is not WorkerUp:
            return super().apply_batch(events, now)
        self.by_worker.setdefault(events[0].worker, set())
        return []


class ForgetsBytes(Scheduler):
    def _leave(self, request_id: str) -> Request:
        size = self._bytes
        request = super()._leave(request_id)
        self._bytes = size
        return request


PLANTED: dict[str, tuple[Parts, set[str]]] = {}
"""name → (the core with the fault, rules that may cry first)."""


def _plant(*rules: str, core: type[Core] = Core, **others: type) -> None:
    kinds = [core, *others.values()]
    name = next(kind.__name__ for kind in kinds if kind.__module__ in {__name__, limits.__name__})
    PLANTED[name] = (Parts(core=core, **others), set(rules))


_plant("missed_wakeup", core=NoPumpAfterOpening)
_plant("missed_wakeup", core=NoPumpAfterCancel)
_plant("missed_wakeup", core=PumpsOneOnly)
_plant("missed_wakeup", scheduler=HeadBlocks)
_plant("missed_wakeup", "slots", "reservations", core=SlotLostOnRequeue)
_plant("missed_wakeup", "slots", "reservations", core=SlotLostOnCancel)
_plant("late_report", "state", core=LateReportsCount)
_plant("counters", sessions=CountsTwice)
_plant("metadata", sessions=BytesKeptOnSuspend)
_plant("sessions", "missed_wakeup", sessions=LeaseKeptOnSuspend)
_plant("dead_worker", "workers", core=DispatchesToTheDead)
_plant("retiring_worker", core=DispatchesToTheRetiring)
_plant("KeyError", core=CountsTheRetiring)
_plant("retiring_worker", core=FollowsAffinityToTheRetiring)
_plant("missed_wakeup", "workers", core=RetirementForgotten)
_plant("end_ignored", core=CallsAgain)
_plant("drain_report", core=DrainForgetsTheQueue)
_plant("drain_report", "stuck", core=DrainWaitsForEver)
_plant("not_refused", core=DrainAccepts)
_plant("account_limit", ledger=OverTheLimit)
_plant("pool_limit", sessions=OverThePool)
_plant("overdue", "stuck", core=DeadlineForgotten)
_plant("leak", "wrong_end", "unjustified_cancel", core=DeadlineKeptOnRequeue)
_plant("unjustified_cancel", "wrong_end", core=AnybodyCancels)
_plant("cancel_ignored", core=ClientForgotten)
_plant("overtaken", "class_order", core=LosesItsPlace)
_plant("drain_report", core=CutTwice)
_plant("acknowledgement", core=AcknowledgesAfter)
_plant("unjustified_cancel", "wrong_end", core=TimesOutEarly)
_plant("missed_wakeup", core=WorkerUpForgets)
_plant("queue", "not_refused", "wrong_refusal", scheduler=ForgetsBytes)
_plant("reservations", ledger=limits.RefundForgotten)
_plant("reservations", core=limits.DoubtRefunded)
_plant("reservations", ledger=limits.StampedAtDispatch)
_plant("reservations", ledger=limits.DoubtStampedAtItsEnd)
_plant("reservations", "window", ledger=limits.ShortMinute)
_plant("reservations", ledger=limits.BudgetNotReserved)
_plant("reservations", "account_limit", ledger=limits.LagForgotten)
_plant("cut", "paused", ledger=limits.CutNotApplied)
_plant("missed_wakeup", ledger=limits.NeverProbes)
_plant("paused", "learned", ledger=limits.PausesAccountOnly)
_plant("learned", ledger=limits.PausesTooLong)
_plant("stopped", ledger=limits.StopForgotten)
_plant("stopped", ledger=limits.StopShortened)
_plant("starved", scheduler=limits.AgeingForgotten)
_plant("class_order", scheduler=limits.ClassesReversed)
_plant("unfair", scheduler=limits.WeightsIgnored)
_plant("missed_wakeup", "stuck", scheduler=limits.NobodyLetGo)
_plant("overtaken", "class_order", core=limits.RefusedLosesItsPlace)
_plant("class_order", "overtaken", core=limits.SmallOnesPass)
_plant("overdue", "stuck", core=limits.PatienceForgotten)
