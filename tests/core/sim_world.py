"""The world of one simulated life: accounts, limits, prices, clients, and what the providers truly allow, all from the seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from callpool.manager.core.limits import OTHERS, AccountRules, ClientRules, Counting, LedgerRules, Limits, Price

if TYPE_CHECKING:
    import random

NAMES: Final = ("ann", "bob", "cat")
"""Whose share and budgets requests count against: several clients have one name."""
MOST_PROMPT, MOST_ANSWER = 20, 30
"""Tokens of a request whose client reckons well; small enough that no estimate is corrected by what came."""
LEAST_TOKENS: Final = 60
"""Tokens of a minute that are always allowed: any request fits into an empty window."""


class World(NamedTuple):
    """What a life is given."""

    pool: int
    max_requests: int
    max_bytes: int
    is_crowded: bool
    """Whether the queue is large and begins full: shares and ageing need somebody to wait."""
    concurrency: dict[str, int]
    models: tuple[str, ...]
    rules: LedgerRules
    truth: LedgerRules
    """What the providers allow: the rules themselves, or less."""
    honest: bool
    """Whether nobody promises more than there is: then no provider may ever refuse for a limit of calls, requests or tokens."""
    provider_lag: float
    """Seconds within which a provider notices that a call was ended; in an honest world never more than `cancel_lag`."""
    trouble: float
    """How often a call meets something that only a person can mend."""
    attempts: int
    """Calls on one target that a transient failure allows; 1 retries nothing."""
    ageing: float

    @property
    def has_fallbacks(self) -> bool:
        """Whether requests may name other targets: only where calls may be made again."""
        return self.attempts > 1


def make_world(chance: random.Random) -> World:
    """A random one. Many have no limits but calls at once: what else goes wrong is then seen undisturbed."""
    concurrency = {name: 1 + _pick(chance, 3) for name in "abc"[: 1 + _pick(chance, 3)]}
    models = ("m", "n") if chance.random() < 0.4 else ("m",)
    pool = 1 + _pick(chance, 6)
    crowded = chance.random() < 0.3
    max_requests = 12 + _pick(chance, 20) if crowded else 1 + _pick(chance, 8)
    limited = chance.random() < 0.65
    rules = _rules(chance, concurrency, models) if limited else _plain(chance, concurrency)
    honest = chance.random() < 0.5
    lag = min(each.counting.cancel_lag for each in rules.accounts.values())
    return World(
        pool=pool,
        max_requests=max_requests,
        max_bytes=1_500 if crowded else 150,
        is_crowded=crowded,
        concurrency=concurrency,
        models=models,
        rules=rules,
        truth=rules if honest else _less(chance, rules),
        honest=honest,
        provider_lag=lag * chance.random() if honest else lag + 2 * chance.random(),
        trouble=0.5 * chance.random() if chance.random() < 0.3 else 0.0,
        attempts=3 if chance.random() < 0.3 else 1,
        ageing=1.0 + 29.0 * chance.random() ** 2,
    )


def _pick(chance: random.Random, number: int) -> int:
    return int(chance.random() * number)


def _some(chance: random.Random, share: float, least: int, more: int) -> int | None:
    return least + _pick(chance, more) if chance.random() < share else None


def _weights(chance: random.Random) -> dict[str, ClientRules]:
    return {name: ClientRules(weight=(0.25, 1.0, 4.0)[_pick(chance, 3)]) for name in NAMES}


def _plain(chance: random.Random, concurrency: dict[str, int]) -> LedgerRules:
    lag = 3 * chance.random() if chance.random() < 0.3 else 0.0
    counting = Counting(cancel_lag=lag)
    accounts = {
        name: AccountRules(limits=Limits(concurrency=limit), counting=counting) for name, limit in concurrency.items()
    }
    return LedgerRules(accounts=accounts, clients=_weights(chance))


def _rules(chance: random.Random, concurrency: dict[str, int], models: tuple[str, ...]) -> LedgerRules:
    shared = len(concurrency) > 1 and chance.random() < 0.5
    one_lag = chance.random()
    accounts = {}
    for name, limit in concurrency.items():
        accounts[name] = AccountRules(
            limits=msgspec.structs.replace(_limits(chance, 0.35), concurrency=limit),
            models={model: _model_limits(chance) for model in models if chance.random() < 0.25},
            each_model=_some(chance, 0.2, 1, 2),
            prices={"m": Price(input=1.0, output=2.0, cached_input=0.25)},
            counting=Counting(
                charge="advance" if chance.random() < 0.5 else "actual",
                concurrency_of="model" if chance.random() < 0.3 else "account",
                cancel_lag=0.0 if one_lag < 0.5 else 4 * one_lag,
            ),
            organization="o" if shared and name in "ab" else None,
        )
    organization = msgspec.structs.replace(_limits(chance, 0.5), concurrency=_some(chance, 0.4, 1, 4))
    clients = _weights(chance)
    for name in (*NAMES, OTHERS):
        if chance.random() < 0.2:
            clients[name] = ClientRules(
                weight=clients.get(name, ClientRules()).weight,
                requests_per_minute=_some(chance, 0.5, 1, 4),
                tokens_per_day=_some(chance, 0.4, 80, 300),
                money_per_day=(80 + _pick(chance, 300)) / 1e6 if chance.random() < 0.3 else None,
            )
    return LedgerRules(
        accounts=accounts,
        organizations={"o": organization} if shared else {},
        clients=clients,
        requests_per_minute=_some(chance, 0.1, 3, 8),
    )


def _limits(chance: random.Random, share: float) -> Limits:
    return Limits(
        requests_per_minute=_some(chance, share, 1, 6),
        tokens_per_minute=_some(chance, share, LEAST_TOKENS, 120),
        tokens_per_day=_some(chance, share / 3, 150, 500),
        money_per_day=(150 + _pick(chance, 600)) / 1e6 if chance.random() < share / 4 else None,
    )


def _model_limits(chance: random.Random) -> Limits:
    return msgspec.structs.replace(_limits(chance, 0.4), concurrency=_some(chance, 0.5, 1, 2))


def _less(chance: random.Random, rules: LedgerRules) -> LedgerRules:
    """What providers allow that were promised to allow more."""
    accounts = {}
    for name, account in rules.accounts.items():
        limits = account.limits
        accounts[name] = msgspec.structs.replace(
            account,
            limits=msgspec.structs.replace(
                limits,
                concurrency=max(1, (limits.concurrency or 1) - _pick(chance, 3)),
                requests_per_minute=_some(chance, 0.4, 1, 4) or limits.requests_per_minute,
                tokens_per_minute=_some(chance, 0.3, LEAST_TOKENS, 30) or limits.tokens_per_minute,
            ),
        )
    organizations = {
        name: msgspec.structs.replace(limits, concurrency=_some(chance, 0.5, 1, 3) or limits.concurrency)
        for name, limits in rules.organizations.items()
    }
    return msgspec.structs.replace(rules, accounts=accounts, organizations=organizations)
