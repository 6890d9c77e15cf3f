"""The part of the check that compares: what limits, prices and budgets have to be to one another.

It is made of a document that may be wrong elsewhere, so it looks only at what is right by itself: a value that its own rule refuses
counts as not stated, and nothing is said where such a value would have decided.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

from callpool.manager.config_rules import (
    CLIENT_RULES,
    MODEL_RULES,
    ORGANIZATION_RULES,
    PROVIDER_RULES,
    SUPERVISOR_RULES,
    Problem,
    Rule,
    word,
)
from callpool.manager.kinds import counting_of, kind_facts, rules_of
from callpool.manager.ledger_rules import limits_each_model
from callpool.manager.settings import (
    LOCAL_SLOTS,
    ClientSettings,
    ModelSettings,
    OrganizationSettings,
    ProviderSettings,
    Settings,
    SupervisorSettings,
)
from callpool.manager.toml_lines import KeyPath

_COSTS_NOTHING: Final = ("local", "scripted")
"""Kinds that call nobody who sends a bill."""
_DECIDES_AN_ANSWER: Final = ("max_tokens", "max_output", "context")
_PRICES: Final = ("input_price", "output_price", "cached_input_price")


def check_limits(document: Mapping[str, Any], found: Collection[Problem]) -> Iterator[Problem]:
    """The problems between the tables of a configuration, in which `found` are those of single values."""
    good = _as_far_as_good(document)
    wrong = frozenset(problem.path for problem in found)
    yield from _organizations(document, good)
    for name, provider in good.providers.items():
        yield from _warm(("providers", name), provider, good.supervisor.max_concurrent_sessions, wrong)
        yield from _concurrency(("providers", name), provider)
    yield from _in_advance(good, wrong)
    yield from _budgets(good, wrong)


# What is there.


def _as_far_as_good(document: Mapping[str, Any]) -> Settings:
    """The tables with those of their values that are right by themselves; a provider without a kind is left out."""
    providers = {}
    for name, table in _tables(document, "providers").items():
        fields = _good(table, PROVIDER_RULES)
        if "kind" in fields:
            models = {
                model: ModelSettings(**_good(listed, MODEL_RULES)) for model, listed in _tables(table, "models").items()
            }
            providers[name] = ProviderSettings(**fields, models=models)
    supervisor = document.get("supervisor")
    return Settings(
        supervisor=SupervisorSettings(**_good(supervisor, SUPERVISOR_RULES) if isinstance(supervisor, Mapping) else {}),
        providers=providers,
        organizations={
            name: OrganizationSettings(**_good(table, ORGANIZATION_RULES))
            for name, table in _tables(document, "organizations").items()
        },
        clients={
            name: ClientSettings(**_good(table, CLIENT_RULES)) for name, table in _tables(document, "clients").items()
        },
    )


def _tables(within: Mapping[str, Any], name: str) -> dict[str, Mapping[str, Any]]:
    tables = within.get(name)
    if not isinstance(tables, Mapping):
        return {}
    return {str(key): table for key, table in tables.items() if isinstance(table, Mapping)}


def _good(table: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    stated = {name: table[name] for name in rules if table.get(name) is not None}
    return {name: value for name, value in stated.items() if rules[name](value) is None}


# Organisations.


def _organizations(document: Mapping[str, Any], good: Settings) -> Iterator[Problem]:
    """Every one that a provider names is there, and every one that is there is named."""
    named = {
        name: table["organization"]
        for name, table in _tables(document, "providers").items()
        if isinstance(table.get("organization"), str)
    }
    there = document.get("organizations", {})
    if not isinstance(there, Mapping):
        return
    unknown = {name: each for name, each in named.items() if each not in there}
    for name, organization in unknown.items():
        if PROVIDER_RULES["organization"](organization) is None:
            what = f"{word(organization)} is no organization"
            if not there:
                what += ": there is no table [organizations.NAME]"
            yield Problem(("providers", name, "organization"), what, tuple(map(str, there)), organization)
    if unknown:  # one of them may be the misspelt name of a table that now seems to be unused
        return
    for organization in good.organizations:
        if organization not in named.values():
            yield Problem(
                ("organizations", organization), "no provider names it as its organization: it limits nothing"
            )


# Calls and tokens.


def _warm(path: KeyPath, provider: ProviderSettings, pool: int, wrong: Collection[KeyPath]) -> Iterator[Problem]:
    """As many connections may be kept warm as there may be at all."""
    slots = None if limits_each_model(provider) else provider.concurrency
    sizes = {"connections": provider.connections, "concurrency": slots, "max_concurrent_sessions": pool}
    name, size = next((name, size) for name, size in sizes.items() if size is not None)
    if provider.warm_connections > size and not any((*path, each) in wrong for each in sizes):
        what = f"must be at most {size}, which is {name}: there are no more of them"
        yield Problem((*path, "warm_connections"), what)


def _concurrency(path: KeyPath, provider: ProviderSettings) -> Iterator[Problem]:
    """A model cannot have more calls at once than its account."""
    most = LOCAL_SLOTS if provider.kind == "local" and provider.concurrency is None else provider.concurrency
    if most is None or limits_each_model(provider):
        return
    for name, model in provider.models.items():
        if model.concurrency is not None and model.concurrency > most:
            what = f"must be at most {most}, which is the concurrency of its provider"
            yield Problem((*path, "models", name, "concurrency"), what)


class _Answer(NamedTuple):
    """What a request takes of a minute's tokens for its answer alone, if it states no limit."""

    tokens: int
    model: str


def _in_advance(good: Settings, wrong: Collection[KeyPath]) -> Iterator[Problem]:
    """Where tokens are charged in advance, a minute has room for one request that states no limit of its answer."""
    together: dict[str, list[_Answer]] = {name: [] for name in good.organizations}
    for name, provider in good.providers.items():
        path = ("providers", name)
        if counting_of(provider).charge != "advance" or (*path, "charge") in wrong:
            continue
        answers = _answers(path, provider, wrong)
        for answer in answers:
            if answer.model in provider.models:
                own = provider.models[answer.model].tokens_per_minute
                yield from _room((*path, "models", answer.model), own, [answer])
        yield from _room(path, provider.tokens_per_minute, answers)
        if provider.organization in together:
            together[provider.organization] += answers
    for name, answers in together.items():
        yield from _room(("organizations", name), good.organizations[name].tokens_per_minute, answers)


def _answers(path: KeyPath, provider: ProviderSettings, wrong: Collection[KeyPath]) -> list[_Answer]:
    """Of all models that an account may serve, as far as their limits are known; of those that are not listed, by pattern."""
    rules = rules_of(provider)
    known = {
        name: rules.of(name)
        for name in provider.models
        if not any((*path, "models", name, field) in wrong for field in _DECIDES_AN_ANSWER)
    }
    if provider.any_model or not provider.models:
        known |= {names.names[0]: names for names in kind_facts(provider.kind).models}
    return [
        _Answer(model.max_tokens if model.longest is None else min(model.max_tokens, model.longest), name)
        for name, model in known.items()
        if model.max_tokens is not None
    ]


def _room(path: KeyPath, tokens: int | None, answers: list[_Answer]) -> Iterator[Problem]:
    longest = max(answers, default=None)
    if tokens is None or longest is None or tokens > longest.tokens:
        return
    what = (
        f"must be more than {longest.tokens}: that is charged in advance for the answer of a request to {longest.model[:80]!r} "
        "that states no max_tokens, which would never be sent; give the model a smaller max_tokens, or more tokens"
    )
    yield Problem((*path, "tokens_per_minute"), what)


# Money.


def _budgets(good: Settings, wrong: Collection[KeyPath]) -> Iterator[Problem]:
    """Where a budget of money counts, everything that can be called has a price: what has none would be free."""
    clients = [name for name, client in good.clients.items() if client.money_per_day is not None]
    is_counted = False
    for name, provider in good.providers.items():
        budget = _budget_of(name, provider, good, clients)
        is_counted = is_counted or budget is not None or any(map(_has_price, provider.models.values()))
        if budget is not None:
            yield from _unpriced(("providers", name), provider, budget, wrong)
    if good.providers and not is_counted and not any(map(_decides_a_price, wrong)):
        for name in clients:
            what = "no model of any provider has prices, so nothing would ever be counted"
            yield Problem(("clients", name, "money_per_day"), what)


def _budget_of(name: str, provider: ProviderSettings, good: Settings, clients: list[str]) -> str | None:
    """Whose budget counts what this account costs, in words; None where none does."""
    if provider.money_per_day is not None:
        return f"provider {name!r}"
    organization = good.organizations.get(provider.organization or "")
    if organization is not None and organization.money_per_day is not None:
        return f"organization {provider.organization!r}"
    if not clients or provider.kind in _COSTS_NOTHING:
        return None
    return f"client {clients[0]!r}"


def _unpriced(path: KeyPath, provider: ProviderSettings, budget: str, wrong: Collection[KeyPath]) -> Iterator[Problem]:
    counted = f"money_per_day of {budget} counts what each model costs"
    if (*path, "models") in wrong:
        return
    if not provider.models:
        yield Problem(path, f"{counted}: list the models, each with input_price and output_price")
    if provider.any_model and provider.models:
        yield Problem((*path, "any_model"), f"must be false: {counted}, and models that are not listed have no prices")
    for name, model in provider.models.items():
        listed = (*path, "models", name)
        if all(getattr(model, field) is None and (*listed, field) not in wrong for field in _PRICES):
            yield Problem(listed, f"input_price and output_price are missing (0 is a price): {counted}")


def _decides_a_price(path: KeyPath) -> bool:
    return path[:1] == ("providers",) and (len(path) < 3 or path[-1] in ("kind", "models", *_PRICES))


def _has_price(model: ModelSettings) -> bool:
    return model.input_price is not None and model.output_price is not None
