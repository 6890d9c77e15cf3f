"""Whether a call that failed is made again: where, and when. The only retry layer there is.

    fault ─┬─ the request's own trouble, or in doubt without leave ──────────────► it is the request's end
           ├─ transient, tries and budget and time left ─► the same target, after a pause with full jitter
           └─ else, another target left ─────────────────► that one, at once

A call is *in doubt* when it may have been answered, and billed, although its answer never came: making it again may pay twice, so
that is done only for a request that says `retry_in_doubt`. The same goes for a stream of which something was delivered.

The budget keeps retries from multiplying an outage: each account saves up a share of a retry with every call that completes, and
a retry costs a whole one. Sources: full jitter from the AWS builders' library (2019), the budget from gRPC's retry throttling (A6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from callpool.manager.core.faults import Fault

SAVINGS = 10.0
"""Retries that an account can have saved up, and begins with."""
REFILL = 0.1
"""Retries that a second brings back."""
MAX_ATTEMPTS = 10
"""Calls on one target that a request may ask for."""
MAX_FALLBACKS = 8
MAX_PARTS = 200
"""Calls that may bring parts of one answer: more than any request can ask for."""
OVERLOAD_FACTOR = 4.0
"""By how much longer the pause is when the provider has no capacity for anybody."""


class RetryRules(msgspec.Struct, frozen=True, kw_only=True):
    """How calls are retried, where neither the request nor its account says otherwise."""

    attempts: int = 3
    """Calls on one target at most, the first one included."""
    first_wait: float = 0.5
    """Seconds: the pause before the second call is between 0 and this, and doubles in its bound with each further one."""
    longest_wait: float = 20.0
    """Seconds: the bound of a pause, where the provider names none."""
    budget: float = 0.2
    """Retries that each completed call allows."""


class Target(NamedTuple):
    """Where a call goes."""

    provider: str
    model: str


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """A call of a request that was not its last one, for the record."""

    number: int
    """Counted from 1 over all of a request's targets."""
    provider: str
    model: str
    worker: int | None
    called: bool
    """Whether the provider was contacted."""
    seconds: float
    """From its dispatch to its end."""
    code: str
    """Of its fault; `length` or `search` for a part of an answer that the next call goes on with."""
    message: str
    wait: float
    """Seconds of the pause after it."""


class Route:
    """What a request may still try. Owned by the machine."""

    __slots__ = (
        "attempts",
        "deadline",
        "dispatched_at",
        "fallbacks",
        "given",
        "in_doubt",
        "left",
        "out_of_budget",
        "partial",
        "parts",
        "refusals",
        "refused_since",
        "remaining",
        "since",
        "tried",
        "tries_here",
    )

    def __init__(
        self,
        *,
        attempts: int | None,
        fallbacks: list[Target],
        in_doubt: bool = False,
        given: tuple[float | None, float | None, float | None] = (None, None, None),
    ) -> None:
        self.attempts = attempts
        """Calls on one target at most; None leaves it to the account."""
        self.fallbacks = fallbacks
        """Targets that were not tried yet, in order."""
        self.in_doubt = in_doubt
        """Whether what may have been billed may be called again."""
        self.given = given
        """The timeouts that the request brought: reaching one of them says nothing of the provider."""
        self.tries_here = 0
        """Calls on the present target."""
        self.deadline: float | None = None
        """Monotonic seconds at which all of it is over, from the first dispatch on."""
        self.remaining: float | None = None
        """Seconds that were left for its calls when it was told to wait; None where it never was."""
        self.refusals = 0
        """Calls that a limit refused: its provider never worked on them."""
        self.refused_since: float | None = None
        """Monotonic seconds of the first of those that was not followed by an answer."""
        self.dispatched_at = 0.0
        self.since = 0.0
        """Monotonic seconds since when it waits for its present target."""
        self.left = 0.0
        """Seconds that the present call had at its dispatch."""
        self.tried: list[Attempt] = []
        self.out_of_budget = False
        """Whether its account had no retry left when it needed one."""
        self.parts = 0
        """Calls that have brought a part of the answer."""
        self.partial = ""
        """The text of them all."""


class Plan(NamedTuple):
    """The next call of a request."""

    wait: float
    target: Target | None
    """None: the same one."""


class RetryCounts(msgspec.Struct):
    """What came of an account's failed calls."""

    retries: int = 0
    told_to_wait: int = 0
    """Calls that a limit refused, and whose requests were queued again."""
    fallbacks: int = 0
    """Requests that left this account for another target."""
    refused_by_budget: int = 0
    """Failures that would have been retried, had the account had anything saved up."""


class Retries:
    """The decision, and each account's savings."""

    def __init__(self, rules: RetryRules, own_rules: Mapping[str, RetryRules], draw: Callable[[], float]) -> None:
        """`own_rules` by account; `draw` gives numbers from 0 to below 1, all as likely."""
        self._rules = rules
        self._own_rules = own_rules
        self._draw = draw
        self._savings: dict[str, tuple[float, float]] = {}
        """Of accounts that have spent some: how much, and when that was."""
        self.counts: dict[str, RetryCounts] = {}
        """By account; only those that had a failure."""

    def rules_of(self, account: str) -> RetryRules:
        """How calls on this account are retried."""
        return self._own_rules.get(account, self._rules)

    def count(self, account: str) -> RetryCounts:
        """What came of this account's failed calls."""
        return self.counts.setdefault(account, RetryCounts())

    def completed(self, account: str, now: float) -> None:
        """A call on this account has completed: it may retry a little more."""
        if account in self._savings:  # else nothing was ever spent
            self._save(account, self.saved(account, now) + self.rules_of(account).budget, now)

    def saved(self, account: str, now: float) -> float:
        """Retries that the account may make now. Time brings them back too, or one outage would end them for good."""
        amount, at = self._savings.get(account, (SAVINGS, now))
        return min(SAVINGS, amount + (now - at) * REFILL)

    def _save(self, account: str, amount: float, now: float) -> None:
        if amount < SAVINGS:
            self._savings[account] = amount, now
        else:
            self._savings.pop(account, None)

    def plan(
        self, account: str, route: Route, fault: Fault, *, delivered: bool, left: float, shut: bool, now: float
    ) -> Plan | None:
        """What to do about a fault, or None where it is the end. What a plan costs is spent with it.

        `delivered`: whether something of this call's answer is at the client. `left`: seconds to the request's deadline.
        `shut`: whether the target's circuit is open.
        """
        if (delivered or is_in_doubt(fault)) and not route.in_doubt:
            return None
        counts = self.count(account)
        attempts = self.rules_of(account).attempts if route.attempts is None else route.attempts
        if is_transient(fault) and route.tries_here < attempts and not (shut and route.fallbacks):
            wait = self._wait(account, route, fault)
            if wait < left:
                if self._spend(account, now):
                    counts.retries += 1
                    return Plan(wait, None)
                counts.refused_by_budget += 1
                route.out_of_budget = True
        if route.fallbacks and leaves(fault) and left > 0.0:
            return Plan(0.0, route.fallbacks.pop(0))
        return None

    def _wait(self, account: str, route: Route, fault: Fault) -> float:
        """Seconds. What the provider names is the least; without it anything up to a bound that doubles with each call."""
        rules = self.rules_of(account)
        named = fault.details.get("retry_after")
        if isinstance(named, (int, float)):
            return max(0.0, named) + self._draw() * rules.first_wait
        factor = OVERLOAD_FACTOR if fault.code == "provider_overloaded" else 1.0
        bound: float = rules.first_wait * factor * 2 ** (route.tries_here - 1)
        return self._draw() * min(bound, rules.longest_wait)

    def _spend(self, account: str, now: float) -> bool:
        saved = self.saved(account, now)
        if saved < 1.0:
            return False
        self._save(account, saved - 1.0, now)
        return True


def is_transient(fault: Fault) -> bool:
    """Whether the same call may succeed later without anybody's doing."""
    return fault.details.get("retryable") is True or _is_silence(fault)


def is_in_doubt(fault: Fault) -> bool:
    """Whether the call may have been answered, and billed, all the same."""
    return fault.details.get("in_doubt") is True or _is_silence(fault)


def leaves(fault: Fault) -> bool:
    """Whether another target may do what this one did not: not where the request itself is wrong, or its time is over."""
    return fault.details.get("scope") in ("model", "account", "provider") or _is_silence(fault)


def _is_silence(fault: Fault) -> bool:
    """Whether a stream's silence ended it, which leaves time for another call."""
    return fault.code == "timeout" and fault.details.get("which") in ("first_token", "idle")
