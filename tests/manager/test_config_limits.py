"""Limits, prices, budgets, organisations and clients: what each may be, and what they have to be to one another."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.config import describe, load
from callpool.manager.config_rules import (
    CLIENT_RULES,
    ORGANIZATION_RULES,
)
from callpool.manager.errors import ConfigError
from callpool.manager.ledger_rules import ledger_rules
from callpool.manager.settings import ClientSettings, ModelSettings, OrganizationSettings

SAMPLE = """
[supervisor]
max_requests_per_minute = 600
queue_timeout = 60
ageing = 10

[providers.kimi]
kind = "kimi"
concurrency = 50
requests_per_minute = 200
tokens_per_minute = 2_000_000
tokens_per_day = 100_000_000
money_per_day = 20
organization = "moonshot"
charge = "actual"
concurrency_of = "account"
cancel_lag = 0
queue_timeout = 30
[providers.kimi.models.kimi-k3]
concurrency = 20
requests_per_minute = 100
tokens_per_minute = 1_000_000
tokens_per_day = 50_000_000
input_price = 0.6
output_price = 2.5
cached_input_price = 0
queue_timeout = 5

[organizations.moonshot]
concurrency = 60
requests_per_minute = 300
tokens_per_minute = 3_000_000
tokens_per_day = 200_000_000
money_per_day = 50.5

[clients.default]
tokens_per_day = 1_000_000

[clients.nightly]
weight = 0.5
max_requests_per_minute = 10
tokens_per_day = 5_000_000
money_per_day = 2
"""
PRICED = {"input_price": 1.0, "output_price": 2.0}
COUNTED = "counts what each model costs"


def problems(document: Any) -> list[str]:
    """What a refusal says, without the word for the document; no refusal says nothing."""
    try:
        load(document, {})
    except ConfigError as error:
        return [line.removeprefix("configuration: ") for line in str(error).splitlines()]
    return []


def only_problem(document: Any) -> str:
    (problem,) = problems(document)
    return problem


def kimi(models: Any = None, **fields: Any) -> dict[str, Any]:
    return {"providers": {"k": {"kind": "kimi", **fields, **({} if models is None else {"models": models})}}}


# Single values.


def test_every_setting_is_read() -> None:
    settings = load(tomllib.loads(SAMPLE), {})
    pool, account = settings.supervisor, settings.providers["kimi"]
    assert (pool.max_requests_per_minute, pool.queue_timeout, pool.ageing) == (600, 60.0, 10.0)
    limits = (account.requests_per_minute, account.tokens_per_minute, account.tokens_per_day, account.money_per_day)
    assert limits == (200, 2_000_000, 100_000_000, 20.0)
    assert (account.organization, account.charge, account.concurrency_of) == ("moonshot", "actual", "account")
    assert (account.cancel_lag, account.queue_timeout) == (0.0, 30.0)
    assert account.models["kimi-k3"] == ModelSettings(
        concurrency=20,
        requests_per_minute=100,
        tokens_per_minute=1_000_000,
        tokens_per_day=50_000_000,
        input_price=0.6,
        output_price=2.5,
        cached_input_price=0.0,
        queue_timeout=5.0,
    )
    assert settings.organizations == {
        "moonshot": OrganizationSettings(
            concurrency=60,
            requests_per_minute=300,
            tokens_per_minute=3_000_000,
            tokens_per_day=200_000_000,
            money_per_day=50.5,
        )
    }
    assert settings.clients == {
        "default": ClientSettings(tokens_per_day=1_000_000),
        "nightly": ClientSettings(weight=0.5, max_requests_per_minute=10, tokens_per_day=5_000_000, money_per_day=2.0),
    }
    assert load(msgspec.to_builtins(settings), {}) == settings


def test_nothing_is_limited_that_nobody_limits() -> None:
    settings = load(kimi(), {})
    pool, account = settings.supervisor, settings.providers["k"]
    assert (pool.max_requests_per_minute, pool.queue_timeout, pool.ageing) == (None, None, 30.0)
    assert (account.money_per_day, account.organization, account.charge, account.cancel_lag) == (None,) * 4
    assert (settings.organizations, settings.clients) == ({}, {})
    assert ClientSettings().weight == 1.0


WHOLE = "must be from 1 to"
MONEY = "must be more than 0 and at most 1e+12"
PRICE = "must be 0 or more and at most 1e+12"
SECONDS = "must be more than 0 and at most 86400 seconds"
WEIGHT = "must be at least 0.001 and at most 1000"


@pytest.mark.parametrize(
    ("where", "name", "value", "expected"),
    [
        ("supervisor", "max_requests_per_minute", 0, WHOLE),
        ("supervisor", "max_requests_per_minute", 10**9 + 1, WHOLE),
        ("supervisor", "max_requests_per_minute", 1.5, "a whole number is wanted"),
        ("supervisor", "queue_timeout", 0, SECONDS),
        ("supervisor", "ageing", 0, SECONDS),
        ("supervisor", "ageing", math.nan, "must be a finite number of seconds"),
        *(
            (where, name, value, WHOLE)
            for where in ("provider", "model", "organization")
            for name in ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrency")
            for value in (0, -1, 10**16)
        ),
        *(
            (where, "money_per_day", value, expected)
            for where in ("provider", "organization", "client")
            for value, expected in (
                (0, MONEY),
                (-0.5, MONEY),
                (1e13, MONEY),
                (10**400, MONEY),
                (math.nan, "must be a finite number"),
                (math.inf, "must be a finite number"),
                (True, "a number is wanted, this is true or false"),
                ("5", "a number is wanted, this is text"),
            )
        ),
        *(
            ("model", name, value, expected)
            for name in ("input_price", "output_price", "cached_input_price")
            for value, expected in ((-1, PRICE), (math.nan, "must be a finite number"), ("1", "a number is wanted"))
        ),
        ("model", "queue_timeout", 0, SECONDS),
        ("provider", "queue_timeout", -1, SECONDS),
        ("provider", "cancel_lag", -1, "must be 0 or more and at most 86400 seconds"),
        ("provider", "charge", "actaul", "'actaul' is no way to charge tokens; did you mean \"actual\"?"),
        ("provider", "concurrency_of", "key", "'key' is no holder of a limit; valid are: account, model"),
        ("provider", "organization", "a b", "must be a name of 1 to 64 letters, digits, dots, underscores or hyphens"),
        ("provider", "organization", "", "must be a name of"),
        ("provider", "organization", 7, "text is wanted, this is a whole number"),
        ("client", "weight", 0, WEIGHT),
        ("client", "weight", 1e-9, WEIGHT),
        ("client", "weight", 1000.5, WEIGHT),
        ("client", "weight", math.inf, "must be a finite number"),
        ("client", "max_requests_per_minute", 0, WHOLE),
        ("client", "tokens_per_day", 0, WHOLE),
        ("client", "requests_per_minute", 5, 'unknown key; did you mean "max_requests_per_minute"?'),
        ("organization", "money_per_dya", 5, 'unknown key; did you mean "money_per_day"?'),
    ],
)
def test_values_that_are_refused_are_one_problem_each(where: str, name: str, value: object, expected: str) -> None:
    prices = {} if name.endswith("_price") else PRICED
    provider: dict[str, Any] = {"kind": "openai", "platform": "openai", "organization": "o"}
    model, organization, client, supervisor = (
        dict[str, Any](prices),
        dict[str, Any](),
        dict[str, Any](),
        dict[str, Any](),
    )
    places = {
        "supervisor": ("supervisor", supervisor),
        "provider": ("providers.p", provider),
        "model": ("providers.p.models.m", model),
        "organization": ("organizations.o", organization),
        "client": ("clients.c", client),
    }
    path, table = places[where]
    table[name] = value
    if name.endswith("_price"):
        model.update({other: 1.0 for other in PRICED if other != name})
    document = {
        "supervisor": supervisor,
        "providers": {"p": provider | {"models": {"m": model}}, "q": {"kind": "local", "organization": "o"}},
        "organizations": {"o": organization},
        "clients": {"c": client},
    }
    assert only_problem(document).startswith(f"{path}.{name}: {expected}")


def test_bounds_that_are_allowed() -> None:
    document = {
        "supervisor": {"max_requests_per_minute": 1, "queue_timeout": 86_400, "ageing": 0.5},
        "providers": {
            "p": {
                "kind": "scripted",
                "cancel_lag": 0,
                "money_per_day": 0.01,
                "models": {"m": {"input_price": 0, "output_price": 0, "tokens_per_day": 10**15}},
            }
        },
        "clients": {"a" * 64: {"weight": 1000}, "A.b_c-9": {"weight": 0.001}},
    }
    assert problems(document) == []


@pytest.mark.parametrize(("group", "noun"), [("organizations", "an organization"), ("clients", "a client")])
def test_groups_are_tables_with_names(group: str, noun: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'[supervisor]\n[{group}."a b"]\n')
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    first = str(caught.value).splitlines()[0]
    assert first == f'{path}:2: {group}."a b": {noun}\'s name has 1 to 64 letters, digits, dots, underscores or hyphens'
    assert only_problem({group: [1]}) == f"{group}: a table is wanted, this is a list"
    assert only_problem({group: {"a": 1}}) == f"{group}.a: a table is wanted, this is a whole number"
    assert problems({group: {}}) == []
    assert any(f"{noun}'s name has" in problem for problem in problems({group: {5: {}, "x" * 65: {}}}))


# Organisations.


def test_an_organization_that_is_misspelt_is_one_problem() -> None:
    document = kimi(organization="mooonshot") | {"organizations": {"moonshot": {}}}
    expected = "providers.k.organization: 'mooonshot' is no organization; did you mean \"moonshot\"?"
    assert only_problem(document) == expected


def test_an_organization_without_any_table() -> None:
    expected = "providers.k.organization: 'moonshot' is no organization: there is no table [organizations.NAME]"
    assert only_problem(kimi(organization="moonshot")) == expected


def test_a_table_that_is_none_is_told_alone() -> None:
    for wrong, path in (
        ({"organizations": [1]}, "organizations: a"),
        ({"organizations": {"o": 1}}, "organizations.o: a"),
    ):
        assert only_problem(kimi(organization="o") | wrong).startswith(path)


def test_a_key_that_is_pasted_as_an_organization_is_not_repeated() -> None:
    problem = only_problem(kimi(organization="sk-CANARY0123456789") | {"organizations": {"o": {}}})
    assert problem == "providers.k.organization: this is no organization; valid are: o"


def test_an_organization_that_nobody_names_limits_nothing() -> None:
    document = kimi(organization="a") | {"organizations": {"a": {}, "b": {"concurrency": 1}}}
    expected = "organizations.b: no provider names it as its organization: it limits nothing"
    assert only_problem(document) == expected
    assert only_problem({"organizations": {"b": {}}}) == expected


def test_a_provider_that_is_wrong_elsewhere_still_names_its_organization() -> None:
    document = {"providers": {"k": {"kind": "kimmi", "organization": "a"}}, "organizations": {"a": {}}}
    assert only_problem(document).startswith("providers.k.kind: ")


# Calls and tokens.


def test_a_model_has_no_more_calls_than_its_account() -> None:
    expected = "providers.k.models.m.concurrency: must be at most 5, which is the concurrency of its provider"
    assert only_problem(kimi({"m": {"concurrency": 6}, "n": {"concurrency": 5}}, concurrency=5)) == expected
    assert problems(kimi({"m": {"concurrency": 6}})) == []
    assert "must be at most 8" in only_problem(
        {"providers": {"k": {"kind": "local", "models": {"m": {"concurrency": 9}}}}}
    )


def test_where_each_model_has_its_own_calls_one_may_have_more() -> None:
    glm = {"kind": "glm", "concurrency": 5, "models": {"m": {"concurrency": 6}}}
    assert problems({"providers": {"g": glm}}) == []
    assert problems({"providers": {"g": glm | {"any_model": True}}}) == []
    assert "must be at most 5" in only_problem({"providers": {"g": glm | {"concurrency_of": "account"}}})


def test_warm_connections_are_bounded_by_all_calls_where_each_model_has_its_own() -> None:
    glm = {"kind": "glm", "concurrency": 5, "warm_connections": 6, "models": {"m": {}}}
    assert problems({"providers": {"g": glm}}) == []
    shared = glm | {"concurrency_of": "account"}
    assert "must be at most 5, which is concurrency" in only_problem({"providers": {"g": shared}})
    pool = {"supervisor": {"max_concurrent_sessions": 4}}
    assert "must be at most 4, which is max_concurrent_sessions" in only_problem({"providers": {"g": glm}} | pool)
    assert only_problem({"providers": {"g": glm | {"connections": -1}}}).startswith("providers.g.connections: ")


NEVER_SENT = "that states no max_tokens, which would never be sent"


@pytest.mark.parametrize(
    ("models", "tokens", "named"),
    [
        ({"kimi-k3": {}}, 32_768, "32768: that is charged in advance for the answer of a request to 'kimi-k3'"),
        ({"m": {"max_tokens": 100}}, 100, "100: that is charged in advance for the answer of a request to 'm'"),
        ({"m": {"max_tokens": 5}, "n": {"max_tokens": 7}}, 6, "7: that is charged in advance"),
        ({"kimi-k3": {"max_output": 1_000}}, 1_000, "1000: that is"),
        ({"kimi-k3": {"context": 999}}, 999, "999: that is"),
        ({}, 32_768, "32768: that is charged in advance for the answer of a request to 'kimi-*'"),
    ],
)
def test_a_minute_has_room_for_an_answer_that_is_charged_in_advance(models: Any, tokens: int, named: str) -> None:
    problem = only_problem(kimi(models, tokens_per_minute=tokens))
    assert problem.startswith(f"providers.k.tokens_per_minute: must be more than {named}")
    assert NEVER_SENT in problem
    enough = int(named.partition(":")[0]) + 1
    assert problems(kimi(models, tokens_per_minute=enough)) == []
    assert problems(kimi(models, tokens_per_minute=tokens, charge="actual")) == []


def test_so_has_the_minute_of_an_organization_and_of_a_model() -> None:
    models = {"kimi-k3": {"tokens_per_minute": 100}, "m": {"tokens_per_minute": 100}}
    assert only_problem(kimi(models)).startswith(
        "providers.k.models.kimi-k3.tokens_per_minute: must be more than 32768"
    )
    together = {"organizations": {"o": {"tokens_per_minute": 5_000}}}
    problem = only_problem(kimi({"kimi-k3": {}}, organization="o") | together)
    assert problem.startswith("organizations.o.tokens_per_minute: must be more than 32768")
    assert problems(kimi({"m": {}}, organization="o") | together) == []
    any_model = kimi({"m": {}}, any_model=True, tokens_per_minute=5)
    assert "'kimi-*'" in only_problem(any_model)


@pytest.mark.parametrize("kind", ["glm", "local", "scripted"])
def test_who_charges_what_was_used_may_have_a_small_minute(kind: str) -> None:
    account = {"kind": kind, "tokens_per_minute": 5, "models": {"m": {"max_tokens": 10}}}
    assert problems({"providers": {"p": account}}) == []
    assert NEVER_SENT in only_problem({"providers": {"p": account | {"charge": "advance"}}})


def test_a_wrong_value_is_told_alone_where_it_would_have_decided() -> None:
    assert only_problem(kimi({"kimi-k3": {"max_tokens": -1}}, tokens_per_minute=9)).startswith(
        "providers.k.models.kimi-k3.max"
    )
    assert only_problem(kimi({"kimi-k3": {}}, tokens_per_minute=9, charge="late")).startswith("providers.k.charge: ")
    assert only_problem(kimi({"m": {"concurrency": 7}}, concurrency=-1)).startswith("providers.k.concurrency: ")
    wrong = {"input_price": "1", "output_price": 1}
    assert only_problem(kimi({"m": wrong}, money_per_day=9)).startswith("providers.k.models.m.input_price: ")
    assert only_problem(kimi([], money_per_day=9)).startswith("providers.k.models: ")
    both = problems(kimi({"m": dict.fromkeys(PRICED, -1)}, money_per_day=9))
    assert [problem.partition(":")[0] for problem in both] == [f"providers.k.models.m.{name}" for name in PRICED]
    warm = kimi(connections=-1, concurrency=5, warm_connections=6)
    assert only_problem(warm).startswith("providers.k.connections: ")
    client = {"clients": {"c": {"money_per_day": 1}}}
    fake = {"kind": "scripted", "models": {"m": wrong}}
    assert only_problem({"providers": {"p": fake}} | client).startswith("providers.p.models.m.input_price: ")
    odd = {"providers": {"p": {"kind": "kimmi", "models": {"m": PRICED}}, "q": {"kind": "scripted"}}}
    assert only_problem(odd | client).startswith("providers.p.kind: ")


# Money.


@pytest.mark.parametrize(
    ("given", "at", "missing"),
    [
        ({"input_price": 1}, "input_price", "output_price must be"),
        ({"output_price": 1}, "output_price", "input_price must be"),
        ({"cached_input_price": 1}, "cached_input_price", "input_price and output_price must be"),
        ({"cached_input_price": 1, "input_price": 1}, "input_price", "output_price must be"),
    ],
)
@pytest.mark.parametrize("budget", [{}, {"money_per_day": 5}])
def test_what_is_counted_has_a_price(given: dict[str, int], at: str, missing: str, budget: dict[str, int]) -> None:
    problem = only_problem(kimi({"m": given}, **budget))
    assert problem == f"providers.k.models.m.{at}: {missing} given beside it; 0 is a price"


BUDGETS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "account": ({"money_per_day": 5}, {}, "provider 'k'"),
    "organization": ({"organization": "o"}, {"organizations": {"o": {"money_per_day": 5}}}, "organization 'o'"),
    "client": ({}, {"clients": {"c": {"money_per_day": 5}}}, "client 'c'"),
    "other clients": ({}, {"clients": {"default": {"money_per_day": 5}}}, "client 'default'"),
}


@pytest.mark.parametrize("whose", BUDGETS)
def test_where_a_budget_counts_every_model_is_listed_with_prices(whose: str) -> None:
    own, beside, words = BUDGETS[whose]
    counted = f"money_per_day of {words} counts what each model costs"
    listed = kimi({"m": PRICED}, **own) | beside
    assert problems(listed) == []
    bare = only_problem(kimi(**own) | beside)
    assert bare == f"providers.k: {counted}: list the models, each with input_price and output_price"
    assert only_problem(kimi({}, any_model=True, **own) | beside) == bare
    unpriced = only_problem(kimi({"m": PRICED, "n": {}}, **own) | beside)
    assert unpriced == f"providers.k.models.n: input_price and output_price are missing (0 is a price): {counted}"
    open_to_all = only_problem(kimi({"m": PRICED}, any_model=True, **own) | beside)
    assert (
        open_to_all == f"providers.k.any_model: must be false: {counted}, and models that are not listed have no prices"
    )


def test_one_place_is_told_once_however_many_budgets_count_it() -> None:
    document = kimi({"m": {}}, money_per_day=1, organization="o") | {
        "organizations": {"o": {"money_per_day": 1}},
        "clients": {"c": {"money_per_day": 1}, "d": {"money_per_day": 1}},
    }
    assert "of provider 'k' counts" in only_problem(document)


def test_a_clients_budget_needs_no_prices_of_what_costs_nothing() -> None:
    client = {"clients": {"c": {"money_per_day": 1}}}
    providers = kimi({"m": PRICED})["providers"] | {"home": {"kind": "local"}, "fake": {"kind": "scripted"}}
    assert problems({"providers": providers} | client) == []
    assert problems({"providers": {"fake": {"kind": "scripted", "models": {"m": PRICED, "n": {}}}}} | client) == []
    for kind in ("glm", "kimi", "openai"):
        other: dict[str, Any] = {
            "kind": kind,
            "models": {"m": {}},
            **({"platform": "openai"} if kind == "openai" else {}),
        }
        assert only_problem({"providers": providers | {"x": other}} | client).startswith(
            "providers.x.models.m: input_price"
        )


def test_their_own_budget_does() -> None:
    for kind in ("local", "scripted"):
        account: dict[str, Any] = {"kind": kind, "money_per_day": 1, "models": {"m": {}}}
        assert "of provider 'p' counts" in only_problem({"providers": {"p": account}})
        account = {"kind": kind, "organization": "o", "models": {"m": {}}}
        beside = {"organizations": {"o": {"money_per_day": 1}}}
        assert "of organization 'o' counts" in only_problem({"providers": {"p": account}} | beside)


def test_a_budget_that_nothing_could_count_against() -> None:
    document = {"providers": {"fake": {"kind": "scripted"}}, "clients": {"c": {"money_per_day": 1}, "d": {}}}
    expected = "clients.c.money_per_day: no model of any provider has prices, so nothing would ever be counted"
    assert only_problem(document) == expected
    assert problems({"clients": {"c": {"money_per_day": 1}}}) == [], "without a provider nothing is called"


def test_budgets_of_tokens_need_no_prices() -> None:
    document = kimi(tokens_per_day=10**6, organization="o") | {
        "organizations": {"o": {"tokens_per_day": 10**6}},
        "clients": {"c": {"tokens_per_day": 10}},
    }
    assert problems(document) == []


# Any of it.

some_number = st.sampled_from([1, 2, 500, 40_000, 0.5, 0, -1, None, "x", math.inf])


def some_table(rules: Any, **more: Any) -> Any:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(rules, some_number) | more)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "supervisor": some_table(["max_concurrent_sessions", "queue_timeout", "ageing", "max_requests_per_minute"]),
            "providers": st.dictionaries(
                st.sampled_from(["a", "b"]),
                some_table(
                    ["concurrency", "tokens_per_minute", "money_per_day", "warm_connections", "cancel_lag"],
                    kind=st.sampled_from(["kimi", "glm", "local", "scripted", "x"]),
                    organization=st.sampled_from(["o", "p", "", 5]),
                    any_model=st.sampled_from([True, False, 1]),
                    charge=st.sampled_from(["advance", "actual", "", None]),
                    concurrency_of=st.sampled_from(["model", "account", []]),
                    models=st.dictionaries(
                        st.sampled_from(["kimi-k3", "m"]),
                        some_table(["concurrency", "max_tokens", "context", "tokens_per_minute", *PRICED]),
                    )
                    | some_number,
                ),
            ),
            "organizations": st.dictionaries(st.sampled_from(["o", "p", 3]), some_table(ORGANIZATION_RULES))
            | some_number,
            "clients": st.dictionaries(st.sampled_from(["default", "c"]), some_table(CLIENT_RULES)) | some_number,
        },
    )
)
def test_whatever_is_said_of_limits_is_rules_or_a_refusal_that_counts(document: dict[str, Any]) -> None:
    if problems(document):
        return
    settings = load(document, {})
    assert load(msgspec.to_builtins(settings), {}) == settings
    rules = ledger_rules(settings)
    assert all(account.limits.concurrency for account in rules.accounts.values())
    assert describe(settings)["providers"].keys() == rules.accounts.keys()


# What is in effect.


def test_the_limits_in_effect() -> None:
    described = describe(load(tomllib.loads(SAMPLE), {}))
    account = described["providers"]["kimi"]
    assert account.items() >= {
        "concurrency": 50,
        "requests_per_minute": 200,
        "tokens_per_minute": 2_000_000,
        "tokens_per_day": 100_000_000,
        "money_per_day": 20.0,
        "organization": "moonshot",
        "charge": "actual",
        "concurrency_of": "account",
        "cancel_lag": 0.0,
        "queue_timeout": 30.0,
    }.items()  # fmt: skip
    assert account["models"]["kimi-k3"].items() >= {"concurrency": 20, "input_price": 0.6, "queue_timeout": 5.0}.items()
    assert described["organizations"]["moonshot"]["money_per_day"] == 50.5
    assert described["clients"] == {
        "default": {"weight": 1.0, "tokens_per_day": 1_000_000},
        "nightly": {"weight": 0.5, "max_requests_per_minute": 10, "tokens_per_day": 5_000_000, "money_per_day": 2.0},
    }


def test_the_calls_in_effect_where_each_model_has_its_own() -> None:
    glm = {"kind": "glm", "concurrency": 3, "models": {"m": {}, "n": {"concurrency": 7}}}
    providers = {"g": glm, "open": glm | {"any_model": True, "models": {"m": {}}}, "home": {"kind": "local"}}
    described = describe(load({"supervisor": {"queue_timeout": 9}, "providers": providers}, {}))["providers"]
    assert (described["g"]["concurrency"], described["g"]["connections"]) == (200, 200)
    assert [described["g"]["models"][name]["concurrency"] for name in "mn"] == [3, 7]
    assert (described["open"]["concurrency"], described["home"]["concurrency"]) == (200, 8)
    assert described["open"]["models"]["m"]["concurrency"] == 3
    assert described["g"]["queue_timeout"] == described["g"]["models"]["m"]["queue_timeout"] == 9.0
