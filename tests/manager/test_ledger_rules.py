"""From settings to the ledger's rules."""

from __future__ import annotations

from typing import Any

import pytest

from callpool.manager.config import load
from callpool.manager.core.limits import AccountRules, ClientRules, Counting, LedgerRules, Limits, Price
from callpool.manager.ledger_rules import ledger_rules


def rules(document: dict[str, Any]) -> LedgerRules:
    return ledger_rules(load(document, {}))


def account(**provider: Any) -> AccountRules:
    return rules({"supervisor": {"max_concurrent_sessions": 70}, "providers": {"p": provider}}).accounts["p"]


def test_every_limit_is_handed_on() -> None:
    limits: dict[str, Any] = {"requests_per_minute": 3, "tokens_per_minute": 40_000, "tokens_per_day": 50_000}
    money: dict[str, Any] = {"money_per_day": 6.0}
    model: dict[str, Any] = {
        "concurrency": 7,
        "requests_per_minute": 8,
        "tokens_per_minute": 90_000,
        "tokens_per_day": 10,
    }
    found = rules(
        {
            "supervisor": {"max_requests_per_minute": 11},
            "providers": {
                "k": {
                    "kind": "kimi",
                    "concurrency": 12,
                    "organization": "o",
                    **limits,
                    **money,
                    "models": {
                        "m": model | {"input_price": 1, "output_price": 2, "cached_input_price": 0.5},
                        "n": {"input_price": 0, "output_price": 0},
                    },
                }
            },
            "organizations": {"o": {"concurrency": 13} | limits | money},
            "clients": {"c": {"weight": 2, "max_requests_per_minute": 14, "tokens_per_day": 15} | money, "default": {}},
        }
    )
    assert found == LedgerRules(
        accounts={
            "k": AccountRules(
                limits=Limits(concurrency=12, **limits, **money),
                models={"m": Limits(**model)},
                prices={"m": Price(input=1.0, output=2.0, cached_input=0.5), "n": Price()},
                counting=Counting(charge="advance", cancel_lag=0.5),
                organization="o",
            )
        },
        organizations={"o": Limits(concurrency=13, **limits, **money)},
        clients={
            "c": ClientRules(weight=2.0, requests_per_minute=14, tokens_per_day=15, money_per_day=6.0),
            "default": ClientRules(),
        },
        requests_per_minute=11,
    )


def test_nothing_is_limited_but_calls_where_nobody_says_so() -> None:
    assert rules({}) == LedgerRules()
    assert account(kind="scripted") == AccountRules(limits=Limits(concurrency=70))


@pytest.mark.parametrize(
    ("provider", "of_account", "of_models"),
    [
        ({"kind": "kimi"}, 70, {}),
        ({"kind": "kimi", "concurrency": 90}, 90, {}),
        ({"kind": "local"}, 8, {}),
        ({"kind": "local", "concurrency": 2}, 2, {}),
        ({"kind": "kimi", "concurrency": 9, "models": {"m": {}, "n": {"concurrency": 2}}}, 9, {"n": 2}),
        ({"kind": "glm", "concurrency": 3, "models": {"m": {}, "n": {"concurrency": 7}}}, 70, {"m": 3, "n": 7}),
        ({"kind": "glm", "models": {"m": {}, "n": {"concurrency": 7}}}, 70, {"m": 70, "n": 7}),
        ({"kind": "local", "concurrency_of": "model", "models": {"m": {}}}, 70, {"m": 8}),
        ({"kind": "glm", "concurrency": 3}, 70, {}),
        ({"kind": "glm", "concurrency": 3, "any_model": True, "models": {"m": {"concurrency": 2}}}, 70, {"m": 2}),
        ({"kind": "glm", "concurrency": 3, "concurrency_of": "account", "models": {"m": {}}}, 3, {}),
        ({"kind": "scripted", "concurrency": 3, "concurrency_of": "model", "models": {"m": {}}}, 70, {"m": 3}),
    ],
)
def test_whose_calls_at_once_are_limited(provider: dict[str, Any], of_account: int, of_models: dict[str, int]) -> None:
    found = account(**provider)
    assert found.limits.concurrency == of_account
    assert {name: limits.concurrency for name, limits in found.models.items()} == of_models
    by_model = found.counting.concurrency_of == "model"
    assert found.each_model == (
        provider.get("concurrency", 8 if provider["kind"] == "local" else 70) if by_model else None
    )
