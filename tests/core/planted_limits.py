"""Faults planted in ledger and scheduler, one class each; `planted` has the others, and the list of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callpool.manager.core.admission import Admission
from callpool.manager.core.deadlines import Deadlines
from callpool.manager.core.learning import Concurrency
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.machine import Core
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.scopes import Scope
from callpool.manager.core.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.faults import Fault
    from callpool.manager.core.ledger import Hold
    from callpool.manager.core.ledger import Outcome as CallOutcome
    from callpool.manager.core.limits import LedgerRules, Usage
    from callpool.manager.core.requests import Now, Phase, Request
    from callpool.manager.core.retry import Target
    from callpool.manager.core.scheduler import Held, _Account
    from callpool.manager.core.scopes import Cost


class RefundForgotten(Ledger):
    """What a refused call, or one that never began, had reserved stays reserved as if it had been used."""

    def settle(self, request_id: str, outcome: CallOutcome, usage: Usage | None, now: float) -> Any:
        return super().settle(request_id, "failed" if outcome == "unused" else outcome, usage, now)


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


class DoubtStampedAtItsEnd(Ledger):
    """The minute of a call in doubt begins as we end it, although its request may come a moment later."""

    def _settle_entries(self, hold: Hold, outcome: CallOutcome, usage: Usage | None, now: float, until: float) -> None:
        super()._settle_entries(hold, outcome, usage, now, now)


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

    def settle(self, request_id: str, outcome: CallOutcome, usage: Usage | None, now: float) -> Any:
        entries = super().settle(request_id, outcome, usage, now)
        for scope in self._all_scopes():
            scope.lagging.clear()
        return entries


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
