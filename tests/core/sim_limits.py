"""What the witness says of limits: what a dispatch must find room for, what refusals teach, and by when that is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core.events import AccountResumed, Answer, Effect

from .sim_ledger import Bound
from .sim_model import Books, Submission, Violation
from .sim_worker import STOPS

if TYPE_CHECKING:
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.machine import Core
    from callpool.manager.core.retry import Target

    from .sim_world import World


class LimitJudge(Books):
    """The rules about limits, over the witness's books."""

    def __init__(self, world: World, core: Core, *, max_metadata: int) -> None:
        """Of the core it asks only what it cannot know: where a request with fallbacks waits, and how far a limit was cut."""
        super().__init__(world, max_metadata=max_metadata)
        self._core = core

    def _learned(self, now: float) -> None:
        """How far the core holds back what refusals have taught it about: only where this witness saw one, and not for ever."""
        accounts = self._core.ledger.accounts
        for bound in self.limits.all():
            if bound.kind == "organization":
                scope = self._core.ledger.organizations[bound.name]
            elif bound.kind == "account":
                scope = accounts[bound.name].scope
            elif bound.kind == "model":
                name, model = bound.name.split("/")
                found = accounts[name].models.get(model)
                if found is None:
                    continue  # nobody has asked yet
                scope = found
            else:
                continue
            self._compare_learned(
                bound, None if scope.concurrency is None else scope.concurrency.limit, scope.pause.until, now
            )

    def _compare_learned(self, bound: Bound, limit: int | None, until: float, now: float) -> None:
        if limit != bound.concurrency and not (bound.was_cut and 1 <= (limit or 0) <= (bound.concurrency or 0)):
            raise Violation("learned", f"{bound.kind} {bound.name} is limited to {limit} of {bound.concurrency}")
        if until > now and until > bound.pause_over:
            raise Violation(
                "learned", f"{bound.kind} {bound.name} is paused until {until}, not after {bound.pause_over}"
            )
        if limit != bound.effective:
            bound.changed_at = now
        bound.effective, bound.holds_back_until = limit, until

    def _resumed(self, event: AccountResumed, effects: list[Effect], now: float) -> list[Effect]:
        if not effects or type(effects[0]) is not Answer or effects[0].fault is not None:
            raise Violation("resume", f"{event} was answered by {effects}")
        self.limits.resume(event.account, now)
        self.seen["resumed"] += 1
        return effects[1:]

    def _bar(self, found: Submission, target: Target, now: float) -> str | None:
        """Why nothing like this can go there for longer than anybody waits, or None."""
        return next(iter(self._bars(found, target, now)), None)

    def _bars(self, found: Submission, target: Target, now: float) -> list[str]:
        """All such reasons, the one that is told first."""
        cost = self.limits.cost(target, found.tokens)
        reasons = {
            "bad_input": self.limits.is_too_large(target, found.tokens),
            "account_stopped": self.limits.is_stopped(target.provider, now),
            "budget_exhausted": any(bound.overdrawn(cost, now) for bound in self.limits.bounds(target, found.name)),
        }
        return [code for code, holds in reasons.items() if holds]

    def _teaches(self, subject: Submission, fault: Fault, now: float) -> bool:
        """What a fault says of the account is noted; whether its request has to wait for another call."""
        if fault.message in STOPS:
            if self.limits.stop(subject, STOPS[fault.message], now):
                self.seen["stopped"] += 1
            return False
        limit = fault.details.get("limit")
        if fault.code != "rate_limited" or not isinstance(limit, str):
            return False
        named = fault.details.get("retry_after")
        self.seen[f"refused by {limit}"] += 1
        self.limits.refused(subject, limit, named if isinstance(named, float) else None, now)
        return subject.ordered_at is None

    def _within_limits(self, found: Submission, now: float) -> None:
        account = found.target.provider
        if account in self.closed:
            raise Violation("account_limit", f"{found}: account {account} is closed")
        if self.limits.is_stopped(account, now):
            raise Violation("stopped", f"{found}: account {account} is stopped until {self.limits.stopped[account]}")
        if self.active >= self.pool:
            raise Violation("pool_limit", f"{found}: {self.active} of {self.pool} sessions are out")
        cost = self.limits.cost(found.target, found.tokens)
        for bound in self.limits.bounds(found.target, found.name):
            if bound.concurrency is not None and bound.busy(now) >= bound.concurrency:
                out = f"{bound.out}, and until {bound.lagging}"
                raise Violation("account_limit", f"{found}: {bound.kind} {bound.name} is held by {out}")
            if now < bound.paused_until:
                raise Violation("paused", f"{found}: {bound.kind} {bound.name} must rest until {bound.paused_until}")
            for tally in bound.tallies:
                if tally.used(now) + tally.amount(*cost) > tally.limit:
                    used = f"{tally.used(now)} of {tally.limit} {tally.name} are used"
                    raise Violation("window", f"{found} takes {cost}: of {bound.kind} {bound.name} {used}")

    def _nobody_waits_for_what_is_stopped(self, now: float) -> None:
        """Nobody waits for an account that only a person can mend."""
        for account in self.limits.stopped:
            if self.limits.stopped[account] == float("inf"):
                for found in self.waiting[account]:
                    if found.deadline is None:
                        raise Violation("stopped", f"{found} waits for an account that is stopped")

    def _nothing_settles_above(self, now: float) -> None:
        """After a refusal by calls at once no more are out, for a while, than were then."""
        for bound in self.limits.all():
            if now < bound.settles_until and len(bound.out) > bound.most_while_settling:
                raise Violation(
                    "cut", f"{bound.kind} {bound.name} refused with {bound.most_while_settling} out: {bound.out}"
                )


def outcome_of(subject: Submission, fault: Fault | None) -> str:
    """What a call that ended like this counts: nothing, what it used, its request alone, or all that was expected."""
    if fault is None:
        return "used"
    if not subject.started or fault.code in {"rate_limited", "provider_unreachable"}:
        return "unused"
    doubtful = fault.code in {"timeout", "cancelled", "interrupted", "broken_answer"}
    return "doubt" if doubtful else "failed"
