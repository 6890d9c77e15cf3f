"""The deadlines of a call, from a client through supervisor and worker to the provider's socket. Its log is the witness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import HANG, HELLO, detached, eventually, openai_at

SOON = 0.2
"""Seconds of a deadline that is meant to be reached."""
MODELS = {
    "fault-silence": {"first_token_timeout": SOON},
    "fault-empty_drip": {"idle_timeout": HANG},
    "fault-stall": {"idle_timeout": SOON},
    "fault-comment_drip": {"timeout": SOON, "first_token_timeout": HANG},
}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeProviderProcess, callpool.Client]]:
    with FakeProviderProcess() as fake:
        config = openai_at(fake.base_url, first_token_timeout=SOON, any_model=True, models=MODELS, concurrency=2)
        with detached(config) as supervisor, supervisor.connect() as client:
            yield fake, client


@pytest.mark.parametrize(
    ("model", "request_", "which", "seconds"),
    [
        ("fault-silence", {}, "first_token", SOON),  # the model's
        ("fault-empty_drip", {}, "first_token", SOON),  # the provider's
        ("fault-stall", {}, "idle", SOON),
        ("fault-comment_drip", {}, "total", SOON),
        ("fault-silence", {"first_token_timeout": 0.1}, "first_token", 0.1),  # the request's
        ("fault-silence", {"first_token_timeout": HANG, "timeout": 0.1}, "total", 0.1),
        ("fault-stall", {"idle_timeout": 0.1}, "idle", 0.1),
    ],
)
def test_a_deadline_ends_the_call_and_names_itself(
    served: tuple[FakeProviderProcess, callpool.Client],
    model: str,
    request_: dict[str, Any],
    which: str,
    seconds: float,
) -> None:
    fake, client = served
    before = len(fake.log())
    handle = client.submit(provider="fake", model=model, messages=HELLO, stream=True, **request_)
    with pytest.raises(callpool.RequestTimeout) as caught:
        handle.result(HANG)
    assert (caught.value.which, caught.value.seconds) == (which, seconds)
    record = client.show(handle.request_id)
    assert (record["state"], record["attempt"]) == ("timeout", 1)
    assert record["timeout"] == request_.get("timeout", MODELS[model].get("timeout", 30.0))
    seen = eventually(lambda: [each for each in fake.log()[before:] if each.outcome != "open"])
    assert [each.outcome for each in seen] == ["client_gone"]
    assert client.status()["sessions"]["active_sessions"] == 0, "the slot is free"
    good = client.submit(provider="fake", model="m", messages=HELLO, stream=True, first_token_timeout=HANG)
    assert good.result(HANG)["content"] == "echo: hello"


def test_a_plain_call_has_the_deadline_of_the_whole_alone(served: tuple[FakeProviderProcess, callpool.Client]) -> None:
    _, client = served
    handle = client.submit(provider="fake", model="m", messages=HELLO, fake={"delay": 2 * SOON})
    assert handle.result(HANG)["content"] == "echo: hello"
