"""The live tests' own code, on the fake provider in each dialect: every check, the look past callpool, and the count of requests."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.live import probe, smoke
from tests.live.accounts import KINDS, USUAL, Account
from tests.live.conftest import serving
from tests.live.facts import Facts
from tests.live.smoke import Target

KEY = "sk-fake-fake-fake-fake"
FAKES: dict[str, dict[str, Any]] = {
    "plain": {},
    "streamed": {},
    "tool_call": {"tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]},
    "reasoning": {"reasoning": "7 times 143"},
    "continued": {"reply": smoke.NUMBERS, "reasoning": "hm", "piece_tokens": 150},
    "cancelled": {"chunks": 100, "chunk_delay": 0.1},
    "wrong_key": {},
    "unknown_model": {"fault": "model_gone"},
    "bad_parameter": {"fault": "bad_request"},
}
"""What the fake is told in order to behave as a provider is expected to."""
CASES = [(kind, check) for kind in KINDS for check in smoke.checks_for(kind)]


class Served(NamedTuple):
    fakes: dict[str, FakeProviderProcess]
    accounts: dict[str, Account]
    targets: dict[str, Target]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A fake of each dialect, and one supervisor for all three."""
    with contextlib.ExitStack() as stack:
        fakes = {kind: stack.enter_context(FakeProviderProcess(dialect=kind, api_key=KEY)) for kind in KINDS}
        accounts = {kind: Account(kind, USUAL[kind].model, fake.base_url, KEY) for kind, fake in fakes.items()}
        locks = str(tmp_path_factory.mktemp("locks"))
        targets = stack.enter_context(serving(accounts.values(), CALLPOOL_KEY_LOCK_DIR=locks))
        yield Served(fakes, accounts, targets)


@pytest.fixture
def target(served: Served, kind: str) -> Target:
    """A target of this test's own: its count begins with it."""
    known = served.targets[kind]
    return Target(known.client, known.provider, known.model, known.options)


def test_every_check_is_tried_here() -> None:
    assert list(FAKES) == list(smoke.CHECKS)


@pytest.mark.parametrize(("kind", "check"), CASES)
def test_a_check_passes_and_learns(kind: str, check: str, served: Served, target: Target) -> None:
    facts, before = Facts(), len(served.fakes[kind].log())
    smoke.run(check, target, facts, fake=FAKES[check])
    assert facts.redacted()[kind][check]
    assert target.requests() == len(served.fakes[kind].log()) - before


@pytest.mark.parametrize(
    ("check", "fake"),
    [
        ("plain", {"finish_reason": "length"}),
        ("streamed", {"chunks": 1}),
        ("tool_call", {"tool_calls": [{"name": "get_weather", "arguments": {"city": "Rome"}}]}),
        ("reasoning", {}),
        ("continued", {"reply": "1 3 " * 100, "piece_tokens": 50}),
        ("continued", {"reply": smoke.NUMBERS}),
    ],
)
@pytest.mark.parametrize("kind", ["kimi"])
def test_a_check_fails_where_the_answer_is_wrong(kind: str, check: str, fake: dict[str, Any], target: Target) -> None:
    with pytest.raises(AssertionError):
        smoke.run(check, target, Facts(), fake=fake)


@pytest.mark.parametrize("kind", ["kimi"])
@pytest.mark.parametrize("check", ["unknown_model", "bad_parameter"])
def test_a_check_fails_where_an_error_is_missing(kind: str, check: str, target: Target) -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        smoke.run(check, target, Facts())


@pytest.mark.parametrize("kind", ["openai"])
def test_what_a_failure_tells_is_kept(kind: str, target: Target) -> None:
    facts = Facts()
    with pytest.raises(callpool.QuotaExhausted):
        smoke.run("bad_parameter", target, facts, fake={"fault": "quota"})
    assert facts.redacted()[kind]["bad_parameter, failed"]["provider_code"] == "insufficient_quota"
    assert target.client.resume_account(kind)["resumed"], "the others use the same account"


@pytest.mark.parametrize("kind", ["glm"])
def test_a_limit_is_kept_and_skips(kind: str, target: Target) -> None:
    facts = Facts()
    with pytest.raises(pytest.skip.Exception, match="concurrency"):
        smoke.run("plain", target, facts, fake={"fault": "limit_concurrency"}, max_attempts=1)
    learnt = facts.redacted()[kind]["plain, refused by a limit"]
    assert (learnt["status"], learnt["provider_code"]) == (429, "1302")


@pytest.mark.parametrize("kind", ["openai"])
def test_the_budget_of_requests_holds(kind: str, target: Target) -> None:
    target.most, target.beside = 3, 2
    smoke.plain(target)
    with pytest.raises(smoke.BudgetSpent, match="openai has had 3 requests, the limit of one run is 3"):
        smoke.plain(target)


@pytest.mark.parametrize("kind", KINDS)
def test_the_look_past_callpool(kind: str, served: Served) -> None:
    seen, made = probe.look(served.accounts[kind])
    assert seen["chat"]["status"] == 200
    assert "content-type" in seen["chat"]["headers"]["names"]
    assert seen["models"]["served"] == (kind != "glm"), "the fake's GLM has no list"
    assert ("names" in seen["models"]) == (kind == "kimi")
    assert ("estimate" in seen) == (kind == "kimi")
    assert seen["chat"]["headers"]["limits"] == {}
    assert made == (4 if kind == "kimi" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_is_met(kind: str, served: Served) -> None:
    account = dataclasses.replace(served.accounts[kind], model="fault-limit_concurrency-1", concurrency=2)
    before = len(served.fakes[kind].log())
    seen, made = probe.meet_limit(account)
    assert (seen["calls_at_once"], made, seen["statuses"]) == (3, 3, [200, 200, 429])
    assert "message" in seen["refused"][0]["body"]["error"]
    assert [call.parameters[account.usual.one_token] for call in served.fakes[kind].log()[before:]] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["openai"])
def test_the_look_follows_no_redirect(kind: str, served: Served) -> None:
    before = len(served.fakes[kind].log())
    seen, _ = probe.look(dataclasses.replace(served.accounts[kind], model="fault-redirect_loop"))
    assert 300 <= seen["chat"]["status"] < 400
    assert len(served.fakes[kind].log()) == before + 1


def test_of_headers_only_figures_are_kept() -> None:
    headers = {"X-RateLimit-Remaining": "7", "Retry-After": "1", "Msh-Uid": "12345", "OpenAI-Organization": "ann"}
    seen = probe.headers_of(headers)
    assert seen["limits"] == {"x-ratelimit-remaining": "7", "retry-after": "1"}
    assert seen["names"] == ["msh-uid", "openai-organization", "retry-after", "x-ratelimit-remaining"]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("9", "8", "no"),
        ("9", "7", "yes"),
        ("9", "60", "unclear: 9 requests left, then 60"),
        ("soon", "8", "the headers"),
    ],
)
def test_whether_a_request_was_charged(before: str, after: str, verdict: str) -> None:
    seen = [probe.headers_of({"X-RateLimit-Remaining": value}) for value in (before, after)]
    assert probe.counts(*seen).startswith(verdict)


def test_names_of_models_that_are_an_accounts_own_are_not_kept() -> None:
    listed = {"data": [{"id": "gpt-5-nano"}, {"id": "ft:gpt-5-nano:ann::1"}]}
    assert probe.models_in(listed, "openai") == {"served": True, "count": 2}
    assert probe.models_in("<html>", "glm") == {"served": False}
