"""The ledger: slots, requests, tokens and money of every account, reserved before a call and settled after it.

    may it go? ──► reserve ──► answered ──► settle(used | failed | in doubt)
                      └────────────────────► settle(unused): everything is given back

A call is counted in each scope (`scopes`) that limits it: its account, the account's model, the organisation whose key it is, its
client, the whole supervisor. All or nothing is reserved, in one step, by an owner with a name: a leak has one. Prices are per million
tokens, so money is counted in millionths.

What providers answer teaches a scope (`learning`): a refusal by concurrency cuts its limit, one by requests or tokens of a minute
pauses it, one that only a person can mend stops it. A model that an account refuses has a scope of its own where the provider's limit
is a model's.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Any, Final, Literal

from callpool.manager.core.carried import Carried
from callpool.manager.core.learning import Concurrency
from callpool.manager.core.limits import OTHERS, AccountRules, ClientRules, LedgerRules, Limits, Price, Usage
from callpool.manager.core.reckoning import Reckoning
from callpool.manager.core.scopes import MICRO, NO_COST, Cost, Measure, Overdraft, Scope, Stop
from callpool.manager.core.windows import NEVER, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, KeysView

    from callpool.manager.core.carryover import Carryover
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.requests import Now
    from callpool.manager.core.retry import Target

MAX_MODELS: Final = 1_000
"""Models of an account that are limited one by one; any name may be one where an account allows all."""
SPARE: Final = 64
"""Clients without anything that counts that are kept beside as many as have something."""

Outcome = Literal["unused", "used", "failed", "doubt"]
"""What came of a call: never reached the provider or was refused by a limit; answered; refused otherwise; nobody knows."""


class Hold:
    """What one call has reserved."""

    __slots__ = ("cost", "dispatched", "entries", "lag", "number", "scopes", "target")

    def __init__(
        self, number: int, scopes: tuple[Scope, ...], target: Target | None, cost: Cost, dispatched: float, lag: float
    ) -> None:
        self.number = number
        self.scopes = scopes
        self.target = target
        self.cost = cost
        self.dispatched = dispatched
        self.lag = lag
        self.entries: list[tuple[Measure, Entry]] = []


class Account:
    """One provider key: its scopes, and how it counts."""

    __slots__ = ("counts", "models", "name", "organization", "rules", "scope")

    def __init__(self, name: str, rules: AccountRules, organization: Scope | None) -> None:
        self.name = name
        self.rules = rules
        charge = rules.counting.charge
        self.scope = Scope("account", name, rules.limits, charge=charge)
        self.organization = organization
        self.models = {
            model: Scope("model", f"{name}/{model}", limits, charge=charge) for model, limits in rules.models.items()
        }
        scopes = (self.scope, organization, *self.models.values())
        self.counts = any(each.what != "requests" for scope in scopes if scope for each in scope.measures())
        """Whether tokens or money of its calls matter."""

    def slots_of(self, model: str, *, create: bool = False) -> tuple[Scope, ...]:
        """All that limit calls at once to this model."""
        found = (self.scope, self.scope_of(model, create=create), self.organization)
        return tuple(scope for scope in found if scope is not None)

    def scope_of(self, model: str, *, create: bool = False) -> Scope | None:
        """What limits a model besides the account, if anything does; made with `create` alone, for a call that goes.

        Names are many: a look at one that is not in use finds nothing that could be full.
        """
        found = self.models.get(model)
        if found is not None or self.rules.each_model is None or not create:
            return found
        if len(self.models) >= MAX_MODELS and not self._forget_idle_models():
            return None
        limits = Limits(concurrency=self.rules.each_model)
        found = self.models[model] = Scope("model", f"{self.name}/{model}", limits, charge=self.rules.counting.charge)
        return found

    def _forget_idle_models(self) -> bool:
        """Names are many where any is allowed: forget those that nobody uses, and that have learned nothing; whether there were any."""
        idle = [
            model
            for model, scope in self.models.items()
            if model not in self.rules.models
            and not scope.holders
            and not scope.lagging
            and scope.concurrency is not None
            and not scope.concurrency.is_cut
            and not scope.pause.until
        ]
        for model in idle:
            del self.models[model]
        return bool(idle)

    @property
    def active(self) -> int:
        """Slots in use."""
        return self.scope.active

    @property
    def holders(self) -> KeysView[str]:
        """Ids of the requests that hold a slot."""
        return self.scope.holders.keys()

    @property
    def limit(self) -> int:
        """Calls at once, as configured."""
        return self.scope.limit

    @property
    def closed(self) -> str | None:
        """Why nothing is dispatched now."""
        return self.scope.closed


class Ledger:
    """All accounts by name. A session may name a provider that is none of them: then there is nothing to reserve."""

    def __init__(self, rules: LedgerRules, carryover: Carryover | None = None) -> None:
        """`carryover`: has read its journal, and gets every scope as it is made."""
        self.rules = rules
        self.carryover = carryover
        self.records: list[Carried] = []
        """For the journal; whoever applies a batch takes them."""
        charges = {
            name: "advance"
            for name in rules.organizations
            if any(a.organization == name and a.counting.charge == "advance" for a in rules.accounts.values())
        }
        self.organizations = {
            name: Scope("organization", name, limits, charge=charges.get(name, "actual"))
            for name, limits in rules.organizations.items()
        }
        self.accounts = {
            name: Account(name, account, self.organizations.get(account.organization or ""))
            for name, account in rules.accounts.items()
        }
        self.clients: dict[str, Scope] = {}
        """Those with limits of their own that used something lately."""
        self._most_clients = SPARE
        self.supervisor: Scope | None = None
        if rules.requests_per_minute is not None:
            limits = Limits(requests_per_minute=rules.requests_per_minute)
            self.supervisor = Scope("supervisor", "", limits)
        self.stops: set[str] = set()
        """Accounts that are stopped, or were until a moment that has passed."""
        self.reckoning = Reckoning()
        self.holds: dict[str, Hold] = {}
        """request_id → what its call has reserved."""
        self._most_clients = SPARE
        """With more of them it is looked which can be forgotten."""
        if carryover is not None:
            for scope in self._all_scopes():
                carryover.watch(scope)
        self._others = rules.clients.get(OTHERS, ClientRules())
        self._limits_clients = any(_limits_something(each) for each in rules.clients.values())
        self._counts = any((each.tokens_per_day, each.money_per_day) != (None, None) for each in rules.clients.values())
        """Whether tokens or money of every call matter to some client."""
        self._advances = any(
            account.counts and account.rules.counting.charge == "advance" for account in self.accounts.values()
        )
        self._has_days = self._counts or any(
            scope.days
            for account in self.accounts.values()
            for scope in (account.scope, account.organization, *account.models.values())
            if scope is not None
        )

    # Looking.

    def weight_of(self, client: str) -> float:
        """The share of a client, by its name."""
        return self.rules.clients.get(client, self._others).weight

    def scope_of_client(self, client: str) -> Scope | None:
        """What limits a client besides its accounts, if anything does."""
        if not self._limits_clients:
            return None
        found = self.clients.get(client)
        if found is None:
            rules = self.rules.clients.get(client, self._others)
            if not _limits_something(rules):
                return None
            limits = Limits(
                requests_per_minute=rules.requests_per_minute,
                tokens_per_day=rules.tokens_per_day,
                money_per_day=rules.money_per_day,
            )
            found = self.clients[client] = Scope("client", client, limits)
            if self.carryover is not None:
                self.carryover.watch(found)
        return found

    def scope_of_model(self, target: Target) -> Scope | None:
        """What limits this model of its account, if anything does."""
        account = self.accounts.get(target.provider)
        return None if account is None else account.scope_of(target.model)

    def full_account(self, name: str, now: float, model: str = "") -> Scope | None:
        """What has all its slots in use, if there is an account of this name: the account, its model, its organisation; or None."""
        account = self.accounts.get(name)
        scopes = () if account is None else account.slots_of(model)
        return next((scope for scope in scopes if scope.is_full(now)), None)

    def cost(self, target: Target, usage: Usage, *, answers: bool = True) -> Cost:
        """What a call will take, by this estimate and by what calls there took until now. `answers`: whether any text will come."""
        account = self.accounts.get(target.provider)
        if account is None or not (account.counts or self._counts):
            return NO_COST
        better = self.reckoning.expect(target, usage, answers=answers)
        micros = _micros(account.rules.prices.get(target.model), better)
        return Cost(better, better.prompt + better.answer, micros, usage.prompt, answers)

    def scopes(self, target: Target, client: str) -> tuple[Scope, ...]:
        """All that limit a call there of this client, the account first."""
        account = self.accounts.get(target.provider)
        if account is None:
            return ()
        model, client_scope = account.scope_of(target.model, create=True), self.scope_of_client(client)
        if model is None and account.organization is None and client_scope is None and self.supervisor is None:
            return (account.scope,)
        found = (account.scope, model, account.organization, client_scope, self.supervisor)
        return tuple(scope for scope in found if scope is not None)

    def overdrawn(self, target: Target, usage: Usage, client: str, now: float, *, answers: bool) -> Overdraft | None:
        """The first day's limit that such a call cannot keep, or None."""
        if not self._has_days:
            return None
        cost: Cost | None = None
        for scope in self.scopes(target, client):
            if not scope.days:
                continue
            if cost is None:
                cost = self.cost(target, usage, answers=answers)
            found = scope.overdrawn(cost, now)
            if found is not None:
                measure, at = found
                wanted = measure.amount(cost) / (MICRO if measure.what == "money" else 1)
                return Overdraft(scope, measure.name, wanted, at)
        return None

    def too_large(self, target: Target, usage: Usage, *, answers: bool) -> tuple[Scope, int, int] | None:
        """(scope, tokens of a minute, tokens of the call) where a call states more than a whole minute has, else None.

        Only what is charged in advance is known for certain; elsewhere the provider decides.
        """
        account = self.accounts.get(target.provider)
        if account is None or not account.counts or account.rules.counting.charge != "advance":
            return None
        tokens = self.cost(target, usage, answers=answers).usage.prompt + usage.answer
        for scope in filter(None, (account.scope, account.scope_of(target.model), account.organization)):
            for measure in scope.minutes:
                if measure.what == "tokens" and tokens > measure.window.limit:
                    return scope, measure.window.limit, tokens
        return None

    def had_it_alone(self, request_id: str) -> bool:
        """Whether a call that was refused for tokens of a minute had a whole minute of some scope for itself: it will never fit."""
        hold = self.holds.get(request_id)
        if hold is None:
            return False
        return any(
            measure.what == "tokens"
            and hold.cost.tokens >= measure.window.limit
            and measure.window.under_way == entry.amount
            for measure, entry in hold.entries
            if not measure.is_of_a_day
        )

    # A call.

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
        """Take everything that the call needs. The caller has looked whether it is there. `number` is unique to the call.

        `scopes`: those of the target and the client, if they are at hand.
        """
        if not scopes:
            scopes = self.scopes(target, client)
        if not scopes:
            return
        lag = self.accounts[target.provider].rules.counting.cancel_lag
        hold = self.holds[request_id] = Hold(number, scopes, target, cost, now, lag)
        for scope in scopes:
            scope.holders[request_id] = number
            if scope.waits_for is not None and scope.waits_for.request_id == request_id:
                scope.waits_for = None
            for measures in (scope.minutes, scope.days):
                for measure in measures:
                    entry = measure.window.reserve(measure.amount(cost))
                    if measure.moment == "dispatch":
                        measure.window.stamp(entry, now)
                    hold.entries.append((measure, entry))

    def cover(self, entries: list[tuple[Measure, Entry]], now: Now) -> bool:
        """Write ahead what was reserved or corrected; whether its call has to wait until all of `records` are durable."""
        if self.carryover is None:
            return False
        claim = self.carryover.cover(entries, now)
        self.records += claim.records
        return claim.waits

    def take_slot(self, request_id: str, number: int, provider: str, client: str, now: Now, model: str = "") -> None:
        """Take a slot of an account, if there is such an account, for work that is no call of ours; it counts as a request."""
        for scope in (self.scope_of_client(client), self.supervisor):
            for measure in () if scope is None else scope.minutes:
                entry = measure.window.reserve(1)
                measure.window.stamp(entry, now.monotonic)
                self.cover([(measure, entry)], now)
        account = self.accounts.get(provider)
        if account is None:
            return
        scopes = account.slots_of(model, create=True)
        self.holds[request_id] = Hold(number, scopes, None, NO_COST, 0.0, 0.0)
        for scope in scopes:
            scope.holders[request_id] = number

    def full_rate(self, client: str, now: Now) -> tuple[Scope, float] | None:
        """What keeps work that does not wait from beginning, the client's own rate or the supervisor's, and until when; or None."""
        self.forget_idle(now)
        for scope in (self.scope_of_client(client), self.supervisor):
            if scope is not None and scope.minutes and (at := scope.opens_at(now)) > now.monotonic:
                return scope, at
        return None

    def expect(self, request_id: str, usage: Usage, now: float) -> None:
        """The worker knows better what is sent."""
        hold = self.holds.get(request_id)
        if hold is None or hold.target is None:
            return
        cost = self.cost(hold.target, usage, answers=hold.cost.answers)
        if cost == hold.cost:
            return
        hold.cost = cost
        for measure, entry in hold.entries:
            measure.window.correct(entry, measure.amount(cost), now)

    def answered(self, request_id: str, now: float) -> None:
        """Something of the answer has come: the request has arrived."""
        hold = self.holds.get(request_id)
        if hold is not None:
            for measure, entry in hold.entries:
                if measure.moment == "answer":
                    measure.window.stamp(entry, now)

    def settle(self, request_id: str, outcome: Outcome, usage: Usage | None, now: float) -> list[tuple[Measure, Entry]]:
        """The call is over: give back its slot, and what it has not used. Returns its entries, for `cover`.

        The provider may not know yet that a call in doubt is over, nor even have read it: its slot is kept, and its minute begins, as
        if it had ended `cancel_lag` later.
        """
        hold = self.holds.pop(request_id, None)
        if hold is None:
            return []
        until = now + hold.lag if outcome == "doubt" else now
        for scope in hold.scopes:
            del scope.holders[request_id]
            if until > now and scope.concurrency is not None:
                heapq.heappush(scope.lagging, until)
            if outcome == "used" and hold.target is not None:
                scope.pause.succeeded()
        if hold.entries:
            self._settle_entries(hold, outcome, usage, now, until)
        if outcome == "used" and usage is not None and hold.target is not None:
            self.reckoning.learn(hold.target, hold.cost.estimate, usage)
        return hold.entries

    def _settle_entries(self, hold: Hold, outcome: Outcome, usage: Usage | None, now: float, until: float) -> None:
        target = hold.target
        if outcome == "unused" or target is None:
            for measure, entry in hold.entries:
                measure.window.refund(entry, now)
            return
        rules = self.accounts[target.provider].rules
        in_advance = rules.counting.charge == "advance"
        used = hold.cost
        if usage is not None:
            used = Cost(usage, usage.prompt + usage.answer, _micros(rules.prices.get(target.model), usage))
        elif outcome == "failed":
            used = NO_COST
        charged = used
        if in_advance:  # whatever came, the limit of the answer was charged
            prompt = used.usage.prompt if usage is not None else hold.cost.usage.prompt
            charged = used._replace(tokens=prompt + hold.cost.usage.answer)
        for measure, entry in hold.entries:
            if measure.what != "requests":
                what = charged if not measure.is_of_a_day else used
                measure.window.correct(entry, measure.amount(what), now)
            measure.window.stamp(entry, until)

    # Clients that come and go.

    def forget_idle(self, now: Now) -> None:
        """Where they have become many, forget the clients that used nothing lately: any name may be one.

        Not between a look at what limits a request and its reservation: it would be made in what is forgotten.
        """
        if len(self.clients) < self._most_clients:
            return
        for name in [name for name, scope in self.clients.items() if scope.is_idle(now.monotonic)]:
            scope = self.clients.pop(name)
            if self.carryover is not None:
                self.records += self.carryover.forget(scope, now)
        self._most_clients = 2 * len(self.clients) + SPARE

    # For people, and for the audit.

    def describe(self, name: str, now: float) -> dict[str, Any]:
        """What `status` says of an account: its own scope, and beside it those of its models and of its organisation."""
        account = self.accounts[name]
        stop = self.stopped(name, now)
        organization = account.organization
        found = account.scope.as_plain(now)
        del found["kind"]
        return {
            **found,
            "stopped": None if stop is None else stop.fault.message,
            "resumes_in": None if stop is None or stop.until == NEVER else stop.until - now,
            "organization": None if organization is None else organization.as_plain(now),
            "models": [scope.as_plain(now) for scope in account.models.values()],
        }

    def describe_clients(self, now: float) -> list[dict[str, Any]]:
        """What `status` says of clients with limits of their own, and of the supervisor's own rate."""
        scopes = [*self.clients.values(), *(() if self.supervisor is None else (self.supervisor,))]
        return [{name: scope.as_plain(now)[name] for name in ("kind", "name", "active", "windows")} for scope in scopes]

    def strays(self) -> list[str]:
        """Reservations without a call, and calls without theirs: always empty, or a defect. O(calls).

        Slots of accounts are left to whoever knows the requests.
        """
        owed: dict[int, int] = {}
        held: dict[int, set[str]] = {}
        for request_id, hold in self.holds.items():
            for scope in hold.scopes:
                held.setdefault(id(scope), set()).add(request_id)
            for measure, entry in hold.entries:
                if entry.expires is None:
                    owed[id(measure)] = owed.get(id(measure), 0) + entry.amount
        found = []
        for scope in self._all_scopes():
            holders = held.get(id(scope), set())
            if scope.kind != "account":
                found += [f"{scope.kind} {scope.name}: {stray}" for stray in sorted(holders ^ scope.holders.keys())]
            for measure in scope.measures():
                if measure.window.under_way != owed.get(id(measure), 0):
                    what = (
                        f"{measure.window.under_way} of {measure.name} reserved, calls hold {owed.get(id(measure), 0)}"
                    )
                    found.append(f"{scope.kind} {scope.name}: {what}")
        return found

    def _all_scopes(self) -> Iterator[Scope]:
        for account in self.accounts.values():
            yield account.scope
            yield from account.models.values()
        yield from self.organizations.values()
        yield from self.clients.values()
        if self.supervisor is not None:
            yield self.supervisor

    # What refusals teach.

    def teacher(self, target: Target, limit: str | None) -> Scope | None:
        """The scope that a refusal speaks of."""
        account = self.accounts.get(target.provider)
        if account is None:
            return None
        if limit != "concurrency":
            return account.organization or account.scope
        if account.rules.counting.concurrency_of == "model":
            return self._learning_scope(account, target) or account.scope
        organization = account.organization
        return account.scope if organization is None or organization.concurrency is None else organization

    def _learning_scope(self, account: Account, target: Target) -> Scope | None:
        """What limits the calls at once to this model, made where nothing did until now; None where there are too many."""
        scope = account.scope_of(target.model, create=True)
        if scope is None and len(account.models) < MAX_MODELS:
            scope = Scope("model", f"{account.name}/{target.model}", Limits(), charge=account.rules.counting.charge)
            account.models[target.model] = scope
            for request_id, hold in self.holds.items():
                if hold.target == target:  # it is out already
                    scope.holders[request_id] = hold.number
                    hold.scopes += (scope,)
        if scope is not None and scope.concurrency is None:
            scope.concurrency = Concurrency(account.limit)
        return scope

    def refuse_concurrency(
        self, request_id: str, target: Target, named: float | None, why: str, now: Now, draw: Callable[[], float]
    ) -> None:
        """The provider says that too many calls are out. Call it while the refused one still holds its slot."""
        scope, hold = self.teacher(target, "concurrency"), self.holds.get(request_id)
        if scope is None or hold is None or scope.concurrency is None:
            return
        others = [number for other, number in scope.holders.items() if other != request_id]
        scope.is_full(now.monotonic)
        learned = scope.concurrency
        if learned.refuse(hold.number, others, len(scope.lagging), now.monotonic):
            scope.history.add("cut", why, now, limit=learned.limit)
        if not others and not scope.lagging:  # somebody else uses the account: no limit of ours would help
            seconds = scope.pause.begin(named, hold.dispatched, now.monotonic, draw)
            if seconds:
                scope.history.add("paused", why, now, seconds=seconds)

    def refuse_rate(
        self, request_id: str, target: Target, named: float | None, why: str, now: Now, draw: Callable[[], float]
    ) -> None:
        """The provider says that a minute's requests or tokens are used up: one pause for everybody."""
        scope, hold = self.teacher(target, None), self.holds.get(request_id)
        if scope is None or hold is None:
            return
        seconds = scope.pause.begin(named, hold.dispatched, now.monotonic, draw)
        if seconds:
            scope.history.add("paused", why, now, seconds=seconds)

    def stop(self, request_id: str, provider: str, fault: Fault, seconds: float | None, now: Now) -> bool:
        """Serve nothing on this account any more, or for so many seconds; whether that is news.

        What a call says that went out before an operator resumed the account is old.
        """
        scope, hold = self.accounts[provider].scope, self.holds.get(request_id)
        if hold is None or hold.dispatched < scope.resumed:
            return False
        was = self.stopped(provider, now.monotonic) is not None
        until = NEVER if seconds is None else now.monotonic + seconds
        if scope.stop is None or until >= scope.stop.until:  # what comes back by itself does not mend what does not
            scope.stop = Stop(fault, until)
        self.stops.add(provider)
        if not was:
            scope.history.add("stopped", fault.message, now, seconds=seconds or 0.0)
        return not was

    def resume(self, provider: str, now: Now) -> bool:
        """An operator has mended it: forget stop, pauses and what refusals taught; whether there was anything to forget."""
        account = self.accounts[provider]
        found = False
        for scope in filter(None, (account.scope, account.organization, *account.models.values())):
            stopped = scope.stop is not None and now.monotonic < scope.stop.until
            cut = scope.concurrency is not None and scope.concurrency.is_cut
            if stopped or cut or scope.pause.lasts(now.monotonic):
                found = True
                scope.history.add("resumed", "by the operator", now)
            scope.stop, scope.resumed = None, now.monotonic
            self.stops.discard(provider)
            scope.pause.end()
            if scope.concurrency is not None:
                scope.concurrency.restore()
        return found

    def stopped(self, provider: str, now: float) -> Stop | None:
        """Why an account serves nothing, if it is so; its end by itself is noted here."""
        if provider not in self.stops:
            return None
        scope = self.accounts[provider].scope
        if scope.stop is not None and now >= scope.stop.until:
            scope.stop = None
            self.stops.discard(provider)
        return scope.stop

    @property
    def may_bar(self) -> bool:
        """Whether anything may be refused for longer than requests wait; where not, nothing else need be asked."""
        return self._has_days or self._advances or bool(self.stops)


def _limits_something(rules: ClientRules) -> bool:
    return (rules.requests_per_minute, rules.tokens_per_day, rules.money_per_day) != (None, None, None)


def _micros(price: Price | None, usage: Usage) -> int:
    """Money for these tokens, in millionths, rounded up."""
    if price is None:
        return 0
    cached = min(usage.cached, usage.prompt)
    cached_price = price.input if price.cached_input is None else price.cached_input
    return math.ceil((usage.prompt - cached) * price.input + cached * cached_price + usage.answer * price.output)
