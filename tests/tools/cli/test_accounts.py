"""`callpool account`: what it shows of limits and lessons, and letting a stopped account go on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

import callpool
from callpool.tools.cli import account_tables, tables
from callpool.tools.cli.app import run
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import detached, eventually

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a supervisor whose account has learned a limit, whose other account is stopped, and a client with a budget."""
    key = tmp_path_factory.mktemp("keys") / "key"
    key.write_text("sk-fake")
    key.chmod(0o600)
    with FakeProviderProcess(dialect="kimi", concurrency=2) as fake:
        account = {"kind": "kimi", "base_url": fake.base_url, "api_key_file": str(key)}
        limits = {"concurrency": 5, "requests_per_minute": 1_000, "organization": "acme"}
        config = {
            "providers": {"k": account | limits, "dead": account},
            "organizations": {"acme": {"tokens_per_minute": 1_000_000}},
            "clients": {"nightly": {"max_requests_per_minute": 100, "weight": 0.5}},
        }
        with detached(config), callpool.connect(name="nightly") as client:
            asked = [client.submit(provider="k", model="m", messages=HELLO, fake={"delay": 0.3}) for _ in range(8)]
            assert [handle.exception(30.0) for handle in asked] == [None] * 8
            dead = client.submit(provider="dead", model="fault-quota", messages=HELLO)
            assert isinstance(dead.exception(30.0), callpool.QuotaExhausted)
            yield client.address


@pytest.fixture(autouse=True)
def found(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command finds it."""
    monkeypatch.setenv("CALLPOOL_ADDRESS", served)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert run([*arguments]) == status
    told = capsys.readouterr()
    return told.out if status == 0 else told.err


def test_the_list_tells_limits_use_and_lessons(
    served: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(capsys, "account", "list")
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "2 (learned; 5 configured)",
        "requests_per_minute",
        "organisation acme",
        "cut to 2",
        "max organization concurrency: 2",
        "stopped: provider 'dead'",
        "max_requests_per_minute of nightly",
    ):
        assert words in " ".join(text.split()), (words, text)


def test_the_json_has_the_same(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(shown(capsys, "account", "list", "--json"))
    accounts = {row["name"]: row for row in told["accounts"]}
    assert (accounts["k"]["limit"], accounts["k"]["effective_limit"], accounts["k"]["active"]) == (5, 2, 0)
    assert accounts["k"]["refused"] >= 3
    assert accounts["k"]["windows"]["requests_per_minute"]["used"] == 8, "what was refused came back"
    assert accounts["k"]["organization"]["windows"]["tokens_per_minute"]["reserved"] == 0
    assert accounts["dead"]["stopped"]
    [nightly] = told["clients"]
    assert nightly["windows"]["max_requests_per_minute"]["used"] == 9, (
        "eight and the one that was refused for its quota"
    )
    with callpool.connect(served) as client:
        assert client.sessions.get_metrics()["accounts"]["k"]["effective_limit"] == 2


def test_status_says_why_there_is_less(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "status").split())
    assert "k: 2 of 5 calls, learned" in text
    assert "stopped: provider 'dead' refuses" in text


def test_a_stopped_account_refuses_until_it_is_resumed(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    with callpool.connect(served) as client:
        with pytest.raises(callpool.AccountStopped) as refused:
            client.submit(provider="dead", model="m", messages=HELLO).result(20.0)
        assert "callpool account resume dead" in (refused.value.hint or "")
        assert (refused.value.cause, refused.value.retryable) == ("quota_exhausted", False)
        assert shown(capsys, "account", "resume", "dead") == "account dead goes on\n"
        assert client.submit(provider="dead", model="m", messages=HELLO).result(20.0)["finish_reason"] == "stop"
    assert "was not stopped" in shown(capsys, "account", "resume", "dead")
    assert json.loads(shown(capsys, "account", "resume", "dead", "--json")) == {"account": "dead", "resumed": False}
    assert "unknown provider 'deed'" in shown(capsys, "account", "resume", "deed", status=2)


def test_a_resumed_account_forgets_what_it_had_learned(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "account", "resume", "k") == "account k goes on\n"
    told = json.loads(shown(capsys, "account", "list", "--json"))["accounts"]
    [account] = [row for row in told if row["name"] == "k"]
    assert account["effective_limit"] == 5
    assert [lesson["what"] for lesson in account["history"]][-1] == "resumed"


def test_a_request_that_waits_says_how_long(served: str, capsys: pytest.CaptureFixture[str]) -> None:
    with callpool.connect(served) as client:
        handles = [client.submit(provider="k", model="m", messages=HELLO, fake={"delay": 0.5}) for _ in range(12)]
        eventually(lambda: client.show(handles[0].request_id)["state"] == "processing")
        told = handles[-1].forecast()
        assert told["state"] == "queued"
        assert 0 < told["position"] < 12
        assert told["predicted_wait"] > 0
        assert "behind" in shown(capsys, "show", handles[-1].request_id)
        for handle in handles:
            handle.cancel()
        assert all(handle.exception(20.0) is not None or handle.done() for handle in handles)
        assert handles[-1].forecast() == {"state": "cancelled", "position": None, "predicted_wait": None}


# Words.


def account(**changes: Any) -> dict[str, Any]:
    usual = {
        "name": "a", "active": 0, "lagging": 0, "limit": 5, "effective_limit": 5, "queued": 0, "closed": None, "stopped": None,
        "resumes_in": None, "paused_seconds": 0.0, "predicted_wait": None, "windows": {}, "history": [], "models": [],
        "organization": None, "connections": None,
    }  # fmt: skip
    return usual | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stopped": "no money", "resumes_in": 7_260.0}, "stopped (goes on in 2 h 1 min): no money"),
        ({"closed": "its server starts"}, "closed: its server starts"),
        ({"paused_seconds": 12.3}, "paused for 12 s"),
        ({"queued": 3}, "3 queued"),
        ({"queued": 3, "predicted_wait": 8.2}, "3 queued, the last one for about 8 s"),
        ({"active": 2, "lagging": 1}, "2 +1 5"),
        ({"windows": {"money_per_day": {"used": 1.25, "limit": 5.0}}}, "money_per_day 1.25 5"),
        (
            {
                "history": [
                    {"at": time.time(), "what": "paused", "limit": None, "seconds": 9.6, "why": "TPM", "times": 1}
                ]
            },
            "paused for 10 s TPM",
        ),
    ],
    ids=str,
)
def test_each_state_has_its_words(changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    account_tables.show_accounts([account(**changes)], [])
    assert words in " ".join(capsys.readouterr().out.split())


def test_names_and_reasons_from_outside_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    evil = account(stopped="\x1b[31mred", history=[
        {"at": 0.0, "what": "cut", "limit": 1, "seconds": 0.0, "why": "\x1b]0;title\x07", "times": 3}
    ])  # fmt: skip
    account_tables.show_accounts([evil], [])
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "found 3 times" in " ".join(told.split())


def test_without_a_provider_there_is_nothing_to_list(capsys: pytest.CaptureFixture[str]) -> None:
    account_tables.show_accounts([], [])
    assert capsys.readouterr().out == "no provider is configured\n"


def test_a_pause_is_told_in_the_status() -> None:
    assert tables._why_less(account(paused_seconds=3.2)) == "paused for 3 s"
    assert tables._why_less(account()) == ""
