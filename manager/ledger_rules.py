"""From settings to what the ledger is told: limits, ways of counting, prices and budgets. Pure."""

from __future__ import annotations

import msgspec

from callpool.manager.core.limits import AccountRules, ClientRules, LedgerRules, Limits, Price
from callpool.manager.kinds import counting_of
from callpool.manager.settings import (
    LOCAL_SLOTS,
    ClientSettings,
    ModelSettings,
    OrganizationSettings,
    ProviderSettings,
    Settings,
)


def ledger_rules(settings: Settings) -> LedgerRules:
    """Everything that the ledger keeps to. Names are those of the configuration; every account has its `concurrency`."""
    most = settings.supervisor.max_concurrent_sessions
    return LedgerRules(
        accounts={name: _account(provider, most) for name, provider in settings.providers.items()},
        organizations={name: _limits(organization) for name, organization in settings.organizations.items()},
        clients={name: _client(client) for name, client in settings.clients.items()},
        requests_per_minute=settings.supervisor.max_requests_per_minute,
    )


def slots_of(provider: ProviderSettings, most: int) -> int:
    """Calls at once that the configuration allows, where `most` sessions are: of the account, or of each of its models."""
    if provider.concurrency is not None:
        return provider.concurrency
    return LOCAL_SLOTS if provider.kind == "local" else most


def limits_each_model(provider: ProviderSettings) -> bool:
    """Whether `concurrency` is what each model gets, and not the account as a whole."""
    return counting_of(provider).concurrency_of == "model"


def _account(provider: ProviderSettings, most: int) -> AccountRules:
    slots = slots_of(provider, most)
    by_model = limits_each_model(provider)
    models = {name: _limits_of_model(model, slots if by_model else None) for name, model in provider.models.items()}
    prices = {name: _price(model) for name, model in provider.models.items()}
    return AccountRules(
        limits=msgspec.structs.replace(_limits(provider), concurrency=most if by_model else slots),
        models={name: limits for name, limits in models.items() if limits != Limits()},
        each_model=slots if by_model else None,
        prices={name: price for name, price in prices.items() if price is not None},
        counting=counting_of(provider),
        organization=provider.organization,
    )


def _limits(stated: ProviderSettings | OrganizationSettings) -> Limits:
    return Limits(
        concurrency=stated.concurrency,
        requests_per_minute=stated.requests_per_minute,
        tokens_per_minute=stated.tokens_per_minute,
        tokens_per_day=stated.tokens_per_day,
        money_per_day=stated.money_per_day,
    )


def _limits_of_model(model: ModelSettings, usual: int | None) -> Limits:
    return Limits(
        concurrency=usual if model.concurrency is None else model.concurrency,
        requests_per_minute=model.requests_per_minute,
        tokens_per_minute=model.tokens_per_minute,
        tokens_per_day=model.tokens_per_day,
    )


def _price(model: ModelSettings) -> Price | None:
    """None where the configuration names none: a price of 0 is one."""
    if model.input_price is None or model.output_price is None:
        return None
    return Price(input=model.input_price, output=model.output_price, cached_input=model.cached_input_price)


def _client(client: ClientSettings) -> ClientRules:
    return ClientRules(
        weight=client.weight,
        requests_per_minute=client.max_requests_per_minute,
        tokens_per_day=client.tokens_per_day,
        money_per_day=client.money_per_day,
    )
