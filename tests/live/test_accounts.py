"""Which accounts an environment holds."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from callpool.manager import config
from callpool.manager.keys import resolve
from callpool.manager.kinds import kind_facts
from tests.live.accounts import KINDS, USUAL, Account, configuration, find, find_all


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_key_the_reason_names_the_variables(kind: str) -> None:
    for environ in ({}, {kind_facts(kind).key_variables[0]: ""}):
        found = find(kind, environ)
        assert isinstance(found, str)
        assert all(name in found for name in kind_facts(kind).key_variables)


@pytest.mark.parametrize("kind", KINDS)
def test_every_customary_variable_is_looked_at(kind: str) -> None:
    for name in kind_facts(kind).key_variables:
        found = find(kind, {name: "secret\n"})
        assert isinstance(found, Account)
        assert found.key == "secret"
        assert found.model == USUAL[kind].model
        assert found.base_url == kind_facts(kind).platforms[USUAL[kind].platform]


def test_the_environment_chooses_platform_model_and_concurrency() -> None:
    found = find(
        "kimi",
        {
            "MOONSHOT_API_KEY": "k",
            "CALLPOOL_LIVE_PLATFORM_KIMI": "china",
            "CALLPOOL_LIVE_MODEL_KIMI": "kimi-k2.6",
            "CALLPOOL_LIVE_CONCURRENCY_KIMI": "3",
        },
    )
    assert isinstance(found, Account)
    assert (found.base_url, found.model, found.concurrency) == ("https://api.moonshot.cn/v1", "kimi-k2.6", 3)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CALLPOOL_LIVE_PLATFORM_GLM", "moon", "must be one of china, international, coding"),
        ("CALLPOOL_LIVE_CONCURRENCY_GLM", "11", "from 1 to 10"),
        ("CALLPOOL_LIVE_CONCURRENCY_GLM", "many", "from 1 to 10"),
    ],
)
def test_a_wrong_choice_is_refused(name: str, value: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is '{value}'.*{words}"):
        find("glm", {"GLM_API_KEY": "k", name: value})


def test_the_configuration_is_valid_and_holds_no_key(tmp_path: Path) -> None:
    accounts = [found for kind in KINDS if isinstance(found := find(kind, _keys()), Account)]
    document = configuration(accounts, tmp_path)
    assert "opensesame" not in str(document)
    settings = config.load(document, {})
    keys = resolve(settings, {})
    assert {kind: keys.get(kind) for kind in KINDS} == dict.fromkeys(KINDS, "opensesame")
    assert all(keys.get(f"{kind}-wrong-key") == USUAL[kind].wrong_key for kind in KINDS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def _keys() -> dict[str, str]:
    return {kind_facts(kind).key_variables[0]: "opensesame" for kind in KINDS}


def test_a_key_alone_is_no_wish_to_call() -> None:
    assert set(find_all(_keys()).values()) == {"calls real accounts: run by `make test-live`"}
    assert all(isinstance(found, Account) for found in find_all({"CALLPOOL_LIVE": "1", **_keys()}).values())
