"""The witness's own ledger: every limit as a plain list of what counts against it, summed anew at each look.

It knows the rules and what was told from outside (estimates, reports, usage), never the core's windows. What refusals teach is
judged by bounds: what may not happen after one, and by when its effect has to be over.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from callpool.manager.core.limits import OTHERS, ClientRules, Limits, Usage
from callpool.manager.core.reckoning import Reckoning
from callpool.manager.core.retry import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from callpool.manager.core.limits import LedgerRules, Price

    from .sim_model import Submission

MINUTE: Final = 60.0
DAY: Final = 86_400.0
DAY_GRAIN: Final = 300.0
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 60.0 * 1.1
"""Seconds: bounds of what a refusal by a minute's limit, or one with nobody else out, holds an account back."""
KEPT: Final = 1.0
"""Seconds for which what counts no more is remembered: who looks by a tick may be late."""
LONGEST_PROBE: Final = 64.5
"""Seconds after which one call more than a learned limit is tried, where somebody waits."""
SETTLING: Final = 1.0
"""Seconds after a refusal by calls at once for which no more may be out than were then."""
NAMES: Final = {
    "requests_per_minute": "requests", "tokens_per_minute": "tokens", "tokens_per_day": "tokens", "money_per_day": "money",
}  # fmt: skip


class Item:
    """What one call counts in one limit."""

    __slots__ = ("amount", "until")

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.until: float | None = None
        """Seconds until which it counts; None while it is under way."""


class Tally:
    """One limit over time."""

    def __init__(self, name: str, limit: int, moment: str) -> None:
        self.name = name
        self.what = NAMES[name]
        self.limit = limit
        self.moment = moment
        self.day = name.endswith("_per_day")
        self.items: list[Item] = []

    def used(self, now: float, late: float = 0.0) -> int:
        """What counts now, or counted so many seconds before."""
        self.items = [item for item in self.items if item.until is None or now - KEPT < item.until]
        return sum(item.amount for item in self.items if item.until is None or now - late < item.until)

    def under_way(self) -> int:
        """Of that, what has not ended."""
        return sum(item.amount for item in self.items if item.until is None)

    def amount(self, tokens: int, micros: int) -> int:
        """What a call counts here."""
        if self.what == "requests":
            return 1
        wanted = tokens if self.what == "tokens" else micros
        return wanted if self.day else min(wanted, self.limit)

    def stamp(self, item: Item, now: float) -> None:
        """Its time begins."""
        if item.until is None:
            item.until = math.ceil((now + DAY) / DAY_GRAIN) * DAY_GRAIN if self.day else now + MINUTE


class Bound:
    """One thing that is limited: an account, a model of it, an organisation, a client, the supervisor."""

    def __init__(self, kind: str, name: str, limits: Limits, charge: str = "actual") -> None:
        self.kind = kind
        self.name = name
        self.concurrency = limits.concurrency
        self.out: set[str] = set()
        self.lagging: list[float] = []
        self.tallies: list[Tally] = []
        moments = {
            "requests_per_minute": "dispatch" if kind in {"client", "supervisor"} else "answer",
            "tokens_per_minute": "answer" if charge == "advance" else "end",
        }
        for limit in NAMES:
            value = getattr(limits, limit)
            if value is not None:
                most = math.floor(value * 1_000_000) if limit == "money_per_day" else value
                self.tallies.append(Tally(limit, most, moments.get(limit, "end")))
        # What refusals have taught, from outside.
        self.pause_began = -math.inf
        self.paused_until = 0.0
        """No call may go before."""
        self.pause_over = 0.0
        """Calls may go from here on at the latest."""
        self.was_cut = False
        self.refused_at = -math.inf
        self.settles_until = -math.inf
        self.most_while_settling = 0
        self.effective = limits.concurrency
        """Calls at once as the core has learned it, where this witness saw reason to: else what was configured."""
        self.changed_at = -math.inf
        """When that was, or when a call was refused by it last."""
        self.holds_back_until = 0.0
        """The end of the core's pause, where this witness saw reason for one."""

    def busy(self, now: float) -> int:
        """Slots in use, those of calls included that were ended and may not have been noticed."""
        self.lagging = [until for until in self.lagging if now < until]
        return len(self.out) + len(self.lagging)

    def fits(self, cost: tuple[int, int], now: float, *, late: float = 0.0) -> bool:
        """Whether a call of (tokens, millionths) fits its windows, now or as they were so many seconds before."""
        return all(tally.used(now, late) + tally.amount(*cost) <= tally.limit for tally in self.tallies)

    def has_request(self, now: float, *, late: float = 0.0) -> bool:
        """Whether one more request fits the minute, whatever its size."""
        return all(tally.used(now, late) < tally.limit for tally in self.tallies if tally.what == "requests")

    def opens(self, now: float) -> bool:
        """Whether a call of any size may go, as far as this is known here and as refusals have taught."""
        if self.effective is not None:
            is_due = self.was_cut and now > self.changed_at + LONGEST_PROBE  # for a try of one more
            if self.busy(now) >= min(self.effective + is_due, self.concurrency or 0):
                return False
        return now >= self.holds_back_until and self.has_request(now)

    def overdrawn(self, cost: tuple[int, int], now: float) -> bool:
        """Whether a day's limit has no room for it whatever becomes of what is under way."""
        return any(
            tally.used(now) - tally.under_way() + tally.amount(*cost) > tally.limit
            for tally in self.tallies
            if tally.day
        )


class Holding:
    """What one call has reserved."""

    def __init__(self, bounds: list[Bound], usage: Usage, target: Target, estimate: int) -> None:
        self.bounds = bounds
        self.usage = usage
        self.estimate = estimate
        """Tokens of its prompt, as somebody said."""
        self.target = target
        self.items: list[tuple[Tally, Item]] = []


class LimitBooks:
    """All bounds, and what is reserved in them."""

    def __init__(self, rules: LedgerRules) -> None:
        self.rules = rules
        advance = {a.organization for a in rules.accounts.values() if a.counting.charge == "advance"}
        self.organizations = {
            name: Bound("organization", name, limits, "advance" if name in advance else "actual")
            for name, limits in rules.organizations.items()
        }
        self.accounts = {
            name: Bound("account", name, account.limits, account.counting.charge)
            for name, account in rules.accounts.items()
        }
        self.models: dict[tuple[str, str], Bound] = {
            (name, model): Bound("model", f"{name}/{model}", limits, account.counting.charge)
            for name, account in rules.accounts.items()
            for model, limits in account.models.items()
        }
        names = {*rules.clients} - {OTHERS}
        self.clients: dict[str, Bound | None] = {}
        for name in names:
            self._client(name)
        self.supervisor: Bound | None = None
        if rules.requests_per_minute is not None:
            self.supervisor = Bound("supervisor", "", Limits(requests_per_minute=rules.requests_per_minute))
        self.reckoning = Reckoning()
        self.holdings: dict[str, Holding] = {}
        self.stopped: dict[str, float] = {}
        """account → seconds until which it serves nothing."""
        self.resumed: dict[str, float] = {}

    def _client(self, name: str) -> Bound | None:
        if name not in self.clients:
            rules = self.rules.clients.get(name) or self.rules.clients.get(OTHERS) or ClientRules()
            limits = Limits(
                requests_per_minute=rules.requests_per_minute,
                tokens_per_day=rules.tokens_per_day,
                money_per_day=rules.money_per_day,
            )
            self.clients[name] = None if limits == Limits() else Bound("client", name, limits)
        return self.clients[name]

    def weight(self, name: str) -> float:
        """A client's share."""
        return (self.rules.clients.get(name) or self.rules.clients.get(OTHERS) or ClientRules()).weight

    def all(self) -> Iterator[Bound]:
        """Every bound."""
        yield from self.accounts.values()
        yield from self.models.values()
        yield from self.organizations.values()
        yield from (bound for bound in self.clients.values() if bound is not None)
        if self.supervisor is not None:
            yield self.supervisor

    def organization(self, account: str) -> Bound | None:
        """What the account shares with others."""
        return self.organizations.get(self.rules.accounts[account].organization or "")

    def client(self, name: str) -> Bound | None:
        """What limits a client, if anything does."""
        return self._client(name)

    def bounds(self, target: Target, name: str) -> list[Bound]:
        """All that a call there of this client counts in."""
        account = target.provider
        found = (
            self.accounts[account], self.model(target), self.organization(account),
            self._client(name), self.supervisor,
        )  # fmt: skip
        return [bound for bound in found if bound is not None]

    def expected(self, target: Target, usage: Usage) -> Usage:
        """What such a call will take, by the estimate and by what calls there took."""
        return self.reckoning.expect(target, usage)

    def micros(self, target: Target, usage: Usage) -> int:
        """Money for it, in millionths, rounded up."""
        price: Price | None = self.rules.accounts[target.provider].prices.get(target.model)
        if price is None:
            return 0
        cached = min(usage.cached, usage.prompt)
        of_cached = price.input if price.cached_input is None else price.cached_input
        return math.ceil((usage.prompt - cached) * price.input + cached * of_cached + usage.answer * price.output)

    def is_too_large(self, target: Target, usage: Usage) -> bool:
        """Whether it states more tokens than a minute has, where they are charged in advance."""
        if self.rules.accounts[target.provider].counting.charge != "advance":
            return False
        stated = self.expected(target, usage).prompt + usage.answer
        bounds = (self.accounts[target.provider], self.model(target), self.organization(target.provider))
        tallies = [tally for bound in bounds if bound is not None for tally in bound.tallies]
        return any(tally.name == "tokens_per_minute" and stated > tally.limit for tally in tallies)

    def had_a_minute(self, request_id: str) -> bool:
        """Whether its call has a whole minute's tokens for itself: then no wait brings it more."""
        holding = self.holdings[request_id]
        tokens = holding.usage.prompt + holding.usage.answer
        return any(
            tally.name == "tokens_per_minute" and tokens >= tally.limit and tally.under_way() == item.amount
            for tally, item in holding.items
        )

    def cost(self, target: Target, usage: Usage) -> tuple[int, int]:
        """(tokens, millionths) that such a call reserves."""
        better = self.expected(target, usage)
        return better.prompt + better.answer, self.micros(target, better)

    def reserve(self, found: Submission, now: float) -> None:
        """A call goes out."""
        target = found.target
        usage = self.expected(target, found.tokens)
        holding = self.holdings[found.submit.request_id] = Holding(
            self.bounds(target, found.name), usage, target, found.tokens.prompt
        )
        tokens, micros = usage.prompt + usage.answer, self.micros(target, usage)
        for bound in holding.bounds:
            bound.out.add(found.submit.request_id)
            for tally in bound.tallies:
                item = Item(tally.amount(tokens, micros))
                tally.items.append(item)
                holding.items.append((tally, item))
                if tally.moment == "dispatch":
                    tally.stamp(item, now)

    def expect(self, request_id: str, usage: Usage) -> None:
        """Its worker knows better."""
        holding = self.holdings[request_id]
        holding.usage, holding.estimate = self.expected(holding.target, usage), usage.prompt
        micros = self.micros(holding.target, holding.usage)
        for tally, item in holding.items:
            if tally.what != "requests":
                item.amount = tally.amount(holding.usage.prompt + holding.usage.answer, micros)

    def answered(self, request_id: str, now: float) -> None:
        """The first byte has come."""
        for tally, item in self.holdings[request_id].items:
            if tally.moment == "answer":
                tally.stamp(item, now)

    def settle(self, request_id: str, outcome: str, usage: Usage | None, now: float) -> None:
        """It is over: `unused`, `used`, `failed` or `doubt`."""
        holding = self.holdings.pop(request_id)
        counting = self.rules.accounts[holding.target.provider].counting
        over = now + counting.cancel_lag if outcome == "doubt" else now
        for bound in holding.bounds:
            bound.out.discard(request_id)
            if over > now and bound.concurrency is not None:
                bound.lagging.append(over)
        if outcome == "unused":
            for tally, item in holding.items:
                if (item.until is None or now < item.until) and item in tally.items:
                    tally.items.remove(item)
            return
        used = Usage() if usage is None and outcome == "failed" else usage or holding.usage
        tokens, micros = used.prompt + used.answer, self.micros(holding.target, used)
        charged = tokens
        if counting.charge == "advance":
            charged = (holding.usage if usage is None else usage).prompt + holding.usage.answer
        for tally, item in holding.items:
            if tally.what != "requests" and (item.until is None or now < item.until):
                item.amount = tally.amount(tokens if tally.day else charged, micros)
            tally.stamp(item, over)
        if outcome == "used" and usage is not None:
            self.reckoning.learn(holding.target, holding.estimate, usage)

    # What refusals teach.

    def teacher(self, target: Target, limit: str) -> Bound:
        """What a refusal speaks of."""
        account = target.provider
        if limit == "concurrency" and self.rules.accounts[account].counting.concurrency_of == "model":
            return self._learn_model(target)
        found = self.organization(account)
        if found is None or (limit == "concurrency" and found.concurrency is None):
            return self.accounts[account]
        return found

    def _learn_model(self, target: Target) -> Bound:
        """The provider's limit is a model's: from now on it is known that this one has its own."""
        bound = self.model(target)
        if bound is None:
            bound = self.models[target] = Bound("model", "/".join(target), Limits())
            for request_id, holding in self.holdings.items():
                if holding.target == target:
                    bound.out.add(request_id)
                    holding.bounds.append(bound)
        if bound.concurrency is None:
            bound.concurrency = bound.effective = self.accounts[target.provider].concurrency
        return bound

    def model(self, target: Target) -> Bound | None:
        """What limits a model besides its account."""
        each = self.rules.accounts[target.provider].each_model
        if target not in self.models and each is not None:
            self.models[target] = Bound("model", "/".join(target), Limits(concurrency=each))
        return self.models.get(target)

    def refused(self, found: Submission, limit: str, named: float | None, now: float) -> None:
        """A call was refused for a while; it still holds its slot."""
        bound = self.teacher(found.target, limit)
        others = bound.busy(now) - 1
        if limit == "concurrency":
            if bound.concurrency is None:
                return
            bound.was_cut, bound.changed_at = True, now
            if found.dispatched_at > bound.refused_at:  # not of the last burst
                bound.settles_until, bound.most_while_settling = now + SETTLING, max(1, others)
            bound.refused_at = now
            if others:
                return
        wait = min(max(2.0 if named is None else named, SHORTEST_PAUSE), LONGEST_PAUSE / 1.1)
        bound.pause_over = max(bound.pause_over, now + LONGEST_PAUSE)
        if found.dispatched_at >= bound.pause_began:
            bound.pause_began, bound.paused_until = now, now + wait

    def stop(self, found: Submission, seconds: float, now: float) -> bool:
        """A call was told that its account serves nothing; whether that counts."""
        account = found.target.provider
        if found.dispatched_at < self.resumed.get(account, -math.inf):
            return False
        self.stopped[account] = max(self.stopped.get(account, now), now + seconds)
        return True

    def resume(self, account: str, now: float) -> None:
        """An operator says so."""
        self.stopped.pop(account, None)
        self.resumed[account] = now
        for bound in self.all():
            if bound in (self.accounts[account], self.organization(account)) or bound.name.startswith(f"{account}/"):
                bound.paused_until, bound.was_cut, bound.settles_until = 0.0, False, -math.inf

    def is_stopped(self, account: str, now: float) -> bool:
        """Whether the account serves nothing now."""
        return now < self.stopped.get(account, -math.inf)
