"""Where a request goes that its account cannot serve, and when an account is left alone. The fake tells who was asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import callpool
from callpool.tools.testing.fake_provider import CallRecord, FakeProviderProcess
from tests.acceptance.faults.matrix import DEADLINE, LONG_HANG, all_ended, ask, calls_in, outcome
from tests.acceptance.running import detached, eventually

FAILURES = 3
PAUSE = 0.7
"""Seconds that an open circuit rests: time enough to see that nothing goes there."""
B = ["b/m"]

Served = tuple[FakeProviderProcess, callpool.Client]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with FakeProviderProcess() as gone:
        nobody = gone.base_url
    pool = {"circuit_failures": FAILURES, "circuit_pause": PAUSE, "retry_wait": 0.01}
    with FakeProviderProcess() as fake:
        accounts = {name: {"kind": "openai", "base_url": fake.base_url} for name in ("a", "b", "c")}
        accounts["gone"] = {"kind": "openai", "base_url": nobody}
        with detached({"supervisor": pool, "providers": accounts}) as supervisor, supervisor.connect() as client:
            yield fake, client
            status = client.status()
        assert status["sessions"]["active_sessions"] == 0
        assert {row["active"] for row in status["accounts"]} == {0}


@pytest.fixture(autouse=True)
def resumed(served: Served) -> Iterator[None]:
    """No test finds an account that another one's fault has stopped."""
    yield
    for name in ("a", "b", "c"):
        served[1].resume_account(name)


def asked(fake: FakeProviderProcess, text: str) -> list[str]:
    """The models that were asked with this text, in order."""
    return [call.model for call in fake.wait_for(all_ended) if call.last_message == text]


def with_model(fake: FakeProviderProcess, model: str) -> list[CallRecord]:
    return [call for call in fake.log() if call.model == model]


@pytest.mark.parametrize(
    ("fault", "calls", "request_"),
    [
        ("model_gone", 1, {}),  # the model's trouble
        ("unauthorized", 1, {}),  # the account's
        ("quota", 1, {}),
        ("limit_tpd", 1, {"max_attempts": 1}),
        ("limit_rpm", 1, {"max_attempts": 1}),
        ("redirect_loop", 1, {}),
        ("http_500", 3, {}),  # the provider's
        ("overload", 2, {"max_attempts": 2}),
        ("x_should_retry_false", 1, {}),
        ("reset", 3, {"retry_in_doubt": True}),
        ("html_504", 1, {"retry_in_doubt": True, "max_attempts": 1}),
    ],
)
def test_b_answers_for_a(served: Served, fault: str, calls: int, request_: dict[str, Any]) -> None:
    fake, client = served
    model = f"fault-{fault}"
    for stream in (False, True):
        client.resume_account("a")  # some of these stop it
        text = f"{fault} {stream}"
        handle = ask(client, text, provider="a", model=model, stream=stream, fallbacks=B, **request_)
        assert outcome(handle, stream=stream) == ("stop", None)
        answer = handle.result(LONG_HANG)
        assert (answer["provider"], answer["model"], answer["content"]) == ("b", "m", f"echo: {text}")
        assert asked(fake, text) == [model] * calls + ["m"]
        record = client.show(handle.request_id)
        assert (record["provider"], record["model"], calls_in(record)) == ("b", "m", calls + 1)
        assert [(each["provider"], each["model"]) for each in record["attempts"]] == [("a", model)] * calls


@pytest.mark.parametrize("fault", ["bad_request", "content_filter", "html_504", "reset", "html_200"])
def test_a_wrong_request_and_one_in_doubt_go_nowhere(served: Served, fault: str) -> None:
    fake, client = served
    model = f"fault-{fault}"
    for stream in (False, True):
        text = f"{fault} alone {stream}"
        handle = ask(client, text, provider="c", model=model, stream=stream, fallbacks=B)
        assert isinstance(handle.exception(LONG_HANG), callpool.ProviderError)
        assert asked(fake, text) == [model]


def test_a_silent_stream_goes_on_elsewhere_with_leave(served: Served) -> None:
    fake, client = served
    handles = {
        f"fault-{fault}": ask(
            client,
            f"{fault} elsewhere",
            provider="a",
            model=f"fault-{fault}",
            stream=True,
            fallbacks=B,
            max_attempts=1,
            retry_in_doubt=True,
            **{limit: DEADLINE},
        )
        for fault, limit in (("silence", "first_token_timeout"), ("stall", "idle_timeout"))
    }
    for model, handle in handles.items():
        assert outcome(handle, stream=True) == ("stop", None)  # the stream begins again: what came before is forgotten
        assert handle.result(LONG_HANG)["provider"] == "b"
        assert asked(fake, f"{model.removeprefix('fault-')} elsewhere") == [model, "m"]


def test_who_does_not_listen_is_asked_three_times_and_left(served: Served) -> None:
    fake, client = served
    handle = ask(client, "nobody there", provider="gone", fallbacks=B)
    assert handle.result(LONG_HANG)["provider"] == "b"
    assert asked(fake, "nobody there") == ["m"]
    record = client.show(handle.request_id)
    assert [(each["provider"], each["code"]) for each in record["attempts"]] == [("gone", "provider_unreachable")] * 3


def test_a_chain_is_gone_through_in_order(served: Served) -> None:
    fake, client = served
    chain = ["b/fault-unauthorized", "c/fault-model_gone", "c/m"]
    handle = ask(client, "a chain", provider="a", model="fault-quota", fallbacks=chain)
    assert handle.result(LONG_HANG)["provider"] == "c"
    assert asked(fake, "a chain") == ["fault-quota", "fault-unauthorized", "fault-model_gone", "m"]


def test_the_last_ones_trouble_is_the_error(served: Served) -> None:
    fake, client = served
    handle = ask(client, "no way", provider="a", model="fault-quota", fallbacks=["b/fault-model_gone"])
    error = handle.exception(LONG_HANG)
    assert isinstance(error, callpool.ModelGone)
    assert (error.provider, error.model) == ("b", "fault-model_gone")
    assert asked(fake, "no way") == ["fault-quota", "fault-model_gone"]


# Circuits: each test has a model of its own.


def circuits(client: callpool.Client) -> dict[str, str]:
    """The circuits of account `a` that are not closed: model → state."""
    [row] = [row for row in client.status()["accounts"] if row["name"] == "a"]
    return {circuit["model"]: circuit["state"] for circuit in row["circuits"]}


def fail(client: callpool.Client, model: str) -> None:
    """As many requests as open the circuit."""
    for number in range(FAILURES):
        assert model not in circuits(client)
        handle = ask(client, f"failure {number}", provider="a", model=model, max_attempts=1)
        assert isinstance(handle.exception(LONG_HANG), callpool.ProviderError)
    assert circuits(client)[model] == "open"


def test_an_open_circuit_lets_nothing_through_until_its_probe_is_answered(served: Served) -> None:
    fake, client = served
    model = f"fault-http_500-{FAILURES}"
    fail(client, model)
    elsewhere = ask(client, "elsewhere", provider="a", model=model, fallbacks=B).result(LONG_HANG)
    assert elsewhere["provider"] == "b"
    assert len(with_model(fake, model)) == FAILURES
    slow = {"delay": 0.2}  # so that one sees whether the others wait for the probe's answer
    waiting = [ask(client, f"waits {number}", provider="a", model=model, fake=slow) for number in range(3)]
    assert [handle.result(LONG_HANG)["provider"] for handle in waiting] == ["a"] * 3
    assert model not in circuits(client)
    *_, last, probe, second, third = with_model(fake, model)
    assert last.ended is not None
    assert probe.arrived - last.ended >= PAUSE
    assert probe.ended is not None
    assert min(second.arrived, third.arrived) >= probe.ended, "one request alone is the probe"
    assert len(with_model(fake, model)) == FAILURES + 3
    assert ask(client, "again", provider="a", model=model).result(LONG_HANG)["provider"] == "a"


def test_a_probe_that_fails_doubles_the_pause(served: Served) -> None:
    fake, client = served
    model = f"fault-http_503-{FAILURES + 1}"
    fail(client, model)
    probe = ask(client, "probe", provider="a", model=model, max_attempts=1)
    assert isinstance(probe.exception(LONG_HANG), callpool.ProviderError)
    assert circuits(client)[model] == "open"
    assert ask(client, "next", provider="a", model=model).result(LONG_HANG)["provider"] == "a"
    eventually(lambda: model not in circuits(client))
    *_, failed, answered = with_model(fake, model)
    assert failed.ended is not None
    assert answered.arrived - failed.ended >= 2 * PAUSE
    assert len(with_model(fake, model)) == FAILURES + 2
