"""The providers of the simulated world: they count calls as they arrive, by their own true limits, and refuse what is over them.

A provider knows nothing of the core. In an honest world it allows exactly what was configured, so each refusal by it convicts the
core: some window of the provider held more than the core believed.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import Limits, Usage

if TYPE_CHECKING:
    import random

    from .sim_world import World

MINUTE = 60.0


class Bill(NamedTuple):
    """What a call really takes."""

    prompt: int
    most: int
    """Of its answer: the limit that travels with it."""
    answer: int

    @property
    def usage(self) -> Usage:
        """As the provider tells it at the end."""
        return Usage(self.prompt, self.answer, self.prompt // 3)


class _Scope:
    """One thing that a provider limits."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.out: dict[int, float | None] = {}
        """Calls that it serves → seconds at which it notices that one was ended; None while none was."""
        self.requests: list[float] = []
        self.tokens: dict[int, tuple[float, int]] = {}

    def refuses(self, tokens: int, now: float) -> tuple[str, float] | None:
        """(limit that a call of this size is over, seconds until it may not be), or None."""
        limits = self.limits
        self.out = {call: until for call, until in self.out.items() if until is None or until > now}
        if limits.concurrency is not None and len(self.out) >= limits.concurrency:
            return "concurrency", 1.0
        self.requests = [at for at in self.requests if now < at + MINUTE]
        if limits.requests_per_minute is not None and len(self.requests) >= limits.requests_per_minute:
            return "rpm", self.requests[-limits.requests_per_minute] + MINUTE - now
        counting = [(at, amount) for at, amount in self.tokens.values() if now < at + MINUTE]
        if limits.tokens_per_minute is not None:
            over = sum(amount for _, amount in counting) + tokens - limits.tokens_per_minute
            if over > 0:
                return "tpm", max((at for at, _ in counting), default=now) + MINUTE - now
        return None


class Providers:
    """All of them."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        truth = world.truth
        self._accounts = {name: _Scope(name, account.limits) for name, account in truth.accounts.items()}
        self._models: dict[tuple[str, str], _Scope] = {}
        for name, account in truth.accounts.items():
            for model in world.models:
                limits = account.models.get(model)
                if limits is None and account.each_model is not None:
                    limits = Limits(concurrency=account.each_model)
                if limits is not None:
                    self._models[name, model] = _Scope(f"{name}/{model}", limits)
        self._organizations = {name: _Scope(name, limits) for name, limits in truth.organizations.items()}
        self._where: dict[int, list[_Scope]] = {}
        self._on_the_way: list[tuple[float, int, str, str, Bill, float]] = []
        """A heap of calls that nobody waits for any more: (when each arrives, its number, where, what it takes, when it ends)."""
        self.refused: dict[str, int] = {}

    def _scopes(self, account: str, model: str) -> list[_Scope]:
        found: list[_Scope] = [self._accounts[account]]
        if (account, model) in self._models:
            found.append(self._models[account, model])
        organization = self._world.rules.accounts[account].organization
        if organization is not None:
            found.append(self._organizations[organization])
        return found

    def arrive(self, call: int, account: str, model: str, bill: Bill, now: float) -> Fault | None:
        """A call has come, whose number is unique: it is served until `leave`, or refused."""
        in_advance = self._world.rules.accounts[account].counting.charge == "advance"
        tokens = bill.prompt + (bill.most if in_advance else bill.answer)
        scopes = self._scopes(account, model)
        for scope in scopes:
            found = scope.refuses(tokens, now)
            if found is not None:
                self.refused[found[0]] = self.refused.get(found[0], 0) + 1
                return self._refusal(account, scope, *found)
        for scope in scopes:
            scope.out[call] = None
            scope.requests.append(now)
            scope.tokens[call] = now, tokens
        self._where[call] = scopes
        return None

    def arrive_late(self, call: int, account: str, model: str, bill: Bill, now: float) -> None:
        """A call was ended from our side before it came: it comes within the lag, and by then it is noticed that it was ended."""
        lag = self._world.provider_lag
        at = now + lag * self._chance.random()
        heapq.heappush(self._on_the_way, (at, call, account, model, bill, now + lag))

    def catch_up(self, now: float) -> Fault | None:
        """What was on its way until now has come; the first refusal of it, which nobody hears."""
        first: Fault | None = None
        while self._on_the_way and self._on_the_way[0][0] <= now:
            at, call, account, model, bill, ends = heapq.heappop(self._on_the_way)
            fault = self.arrive(call, account, model, bill, at)
            for scope in self._where.pop(call, ()):
                scope.out[call] = ends
            first = first or fault
        return first

    def _refusal(self, account: str, scope: _Scope, limit: str, seconds: float) -> Fault:
        named = seconds if self._chance.random() < 0.5 else None
        return Fault(
            code="rate_limited",
            message=f"{scope.name} is over its {limit}",
            details={
                "provider": account, "limit": limit, "retryable": True, "retry_after": named, "scope": "account",
                "in_doubt": False,
            },
        )  # fmt: skip

    def leave(self, call: int, now: float, *, ended_by_us: bool) -> None:
        """A call is over; one that was ended from our side may be noticed late."""
        for scope in self._where.pop(call, ()):
            if ended_by_us and self._world.provider_lag:
                scope.out[call] = now + self._world.provider_lag * self._chance.random()
            else:
                scope.out.pop(call, None)

    def let_go_of_others(self, calls: set[int], now: float) -> None:
        """All calls but these were given up: their providers notice that in time."""
        for call in [call for call in self._where if call not in calls]:
            self.leave(call, now, ended_by_us=True)

    def forgive(self, call: int, account: str) -> None:
        """It failed at the provider: what counts by what was used counts nothing of it."""
        if self._world.rules.accounts[account].counting.charge == "actual":
            for scope in self._where.get(call, ()):
                scope.tokens.pop(call, None)
