"""Faults planted in the core, one class each: what the simulator must be able to find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callpool.manager.core.admission import Admission
from callpool.manager.core.deadlines import Deadlines
from callpool.manager.core.dispatching import Dispatching
from callpool.manager.core.draining import Draining
from callpool.manager.core.events import AccountClosed, CancelAsked, ToClient, WorkerUp
from callpool.manager.core.learning import Concurrency
from callpool.manager.core.ledger import Ledger, Scope
from callpool.manager.core.machine import Core
from callpool.manager.core.messages import Accepted, Done
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.sessions import SessionTable
from callpool.manager.core.states import State

from .sim_shell import Parts

if TYPE_CHECKING:
    from collections.abc import Callable

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
    from callpool.manager.core.ledger import Cost
    from callpool.manager.core.ledger import Outcome as CallOutcome
    from callpool.manager.core.limits import LedgerRules, Usage
    from callpool.manager.core.requests import Now, Phase, Request
    from callpool.manager.core.retry import Target
    from callpool.manager.core.scheduler import Gate, Held, _Account
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


class RefundForgotten(Ledger):
    """What a refused call, or one that never began, had reserved stays reserved as if it had been used."""

    def settle(
        self, request_id: str, outcome: CallOutcome, usage: Usage | None, now: float, *, lag: bool = False
    ) -> None:
        super().settle(request_id, "failed" if outcome == "unused" else outcome, usage, now, lag=lag)


class DoubtRefunded(Core):
    """A call that its worker never acknowledged counts as one that never began."""

    def give_back(self, request: Request, now: Now) -> None:
        if request.state is State.ALLOCATED and request.outcome is None:
            request.outcome = "unused"
        super().give_back(request, now)


class StampedAtDispatch(Ledger):
    """A window's minute begins with our dispatch: the provider's begins later."""

    def reserve(
        self,
        request_id: str,
        number: int,
        target: Target,
        client: str,
        cost: Cost,
        now: float,
        scopes: tuple[Scope, ...] = (),
    ) -> None:
        super().reserve(request_id, number, target, client, cost, now, scopes)
        self.answered(request_id, now)


class ShortMinute(Ledger):
    def __init__(self, rules: LedgerRules) -> None:
        super().__init__(rules)
        for scope in self._all_scopes():
            for measure in scope.minutes:
                measure.window._seconds = 50.0


class BudgetNotReserved(Ledger):
    """A client's budget is looked at and not reserved: calls that go together overdraw it."""

    def reserve(
        self,
        request_id: str,
        number: int,
        target: Target,
        client: str,
        cost: Cost,
        now: float,
        scopes: tuple[Scope, ...] = (),
    ) -> None:
        found = self.scopes(target, client)
        others = tuple(scope for scope in found if scope.kind != "client")
        super().reserve(request_id, number, target, client, cost, now, others)


class LagForgotten(Ledger):
    """The slot of a call that we ended is free at once, although its provider may not know yet."""

    def settle(
        self, request_id: str, outcome: CallOutcome, usage: Usage | None, now: float, *, lag: bool = False
    ) -> None:
        super().settle(request_id, outcome, usage, now)


class CutNotApplied(Ledger):
    def refuse_concurrency(
        self, request_id: str, target: Target, named: float | None, why: str, now: Now, draw: Callable[[], float]
    ) -> None:
        """Nothing is learned."""


class _Resigned(Concurrency):
    __slots__ = ()

    def probe(self, now: float) -> bool:
        return False

    def next_probe(self) -> float | None:
        return None


class NeverProbes(Ledger):
    """What a refusal has cut stays cut: nobody tries whether more is allowed by now."""

    def __init__(self, rules: LedgerRules) -> None:
        super().__init__(rules)
        for scope in self._all_scopes():
            if scope.concurrency is not None:
                scope.concurrency = _Resigned(scope.concurrency.configured)


class PausesAccountOnly(Ledger):
    """A refusal for a minute pauses the account that met it, and not the organisation whose minute it is."""

    def teacher(self, target: Target, limit: str | None) -> Scope | None:
        return super().teacher(target, limit) if limit == "concurrency" else self.accounts[target.provider].scope


class PausesTooLong(Ledger):
    """An account is left alone for longer than a minute's limit can last."""

    def refuse_rate(
        self, request_id: str, target: Target, named: float | None, why: str, now: Now, draw: Callable[[], float]
    ) -> None:
        super().refuse_rate(request_id, target, named, why, now, draw)
        scope = self.teacher(target, None)
        if scope is not None and scope.pause.lasts(now.monotonic):
            scope.pause.until += 100.0


class StopForgotten(Ledger):
    def stop(self, request_id: str, provider: str, fault: Fault, seconds: float | None, now: Now) -> bool:
        return False


class StopShortened(Ledger):
    """What is only over when a person has mended it ends by itself, because a later refusal named a time."""

    def stop(self, request_id: str, provider: str, fault: Fault, seconds: float | None, now: Now) -> bool:
        news = super().stop(request_id, provider, fault, seconds, now)
        scope = self.accounts[provider].scope
        if seconds is not None and scope.stop is not None:
            scope.stop = scope.stop._replace(until=now.monotonic + seconds)
        return news


class AgeingForgotten(Scheduler):
    def _oldest(self, account: _Account, targets: list[Target], now: float) -> Request | None:
        return None


class ClassesReversed(Scheduler):
    def _fairest(self, account: _Account, targets: list[Target]) -> Request | None:
        account.classes = account.classes[::-1]
        try:
            return super()._fairest(account, targets)
        finally:
            account.classes = account.classes[::-1]


class WeightsIgnored(Scheduler):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "weight_of": lambda _name: 1.0})


class NobodyLetGo(Scheduler):
    """Clients that were held back for a time are never let go."""

    def release(self, now: float) -> None:
        """The time is over, and nothing happens."""


class RefusedLosesItsPlace(Core):
    """A request that was told to wait goes to the end of its client's flow."""

    def requeue(self, request: Request, phase: Phase, now: Now) -> None:
        super().requeue(request, phase, now)
        if request.route is not None and request.route.refusals:
            self._sequence += 1
            request.sequence = self._sequence


class _SmallOnesPass(Admission):
    def admits(self, request: Request) -> Held:
        held = super().admits(request)
        return "target" if held == "account" else held


class SmallOnesPass(Core):
    """One whose tokens do not fit yet holds back its own model alone: others use up what it waits for."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.dispatching.admission = _SmallOnesPass(self.ledger, self.attempts.circuits, self.scheduler)


class _Deaf(Deadlines):
    def set(self, key: str, due: float) -> None:
        """Nobody is woken."""


class PatienceForgotten(Core):
    """Nobody ends who has waited in the queue for as long as it may."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.waits = _Deaf()


PLANTED: dict[str, tuple[Parts, set[str]]] = {}
"""name → (the core with the fault, rules that may cry first)."""


def _plant(*rules: str, core: type[Core] = Core, **others: type) -> None:
    kinds = [core, *others.values()]
    name = next(kind.__name__ for kind in kinds if kind.__module__ == __name__)
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
_plant("reservations", ledger=RefundForgotten)
_plant("reservations", core=DoubtRefunded)
_plant("reservations", ledger=StampedAtDispatch)
_plant("reservations", "window", ledger=ShortMinute)
_plant("reservations", ledger=BudgetNotReserved)
_plant("reservations", "account_limit", ledger=LagForgotten)
_plant("cut", "paused", ledger=CutNotApplied)
_plant("missed_wakeup", ledger=NeverProbes)
_plant("paused", "learned", ledger=PausesAccountOnly)
_plant("learned", ledger=PausesTooLong)
_plant("stopped", ledger=StopForgotten)
_plant("stopped", ledger=StopShortened)
_plant("starved", scheduler=AgeingForgotten)
_plant("class_order", scheduler=ClassesReversed)
_plant("unfair", scheduler=WeightsIgnored)
_plant("missed_wakeup", "stuck", scheduler=NobodyLetGo)
_plant("overtaken", core=RefusedLosesItsPlace)
_plant("class_order", "overtaken", core=SmallOnesPass)
_plant("overdue", "stuck", core=PatienceForgotten)
