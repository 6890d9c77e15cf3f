"""A cancel reaches the provider, ends that call alone, and tells how long it took. The provider's log is the witness."""

from __future__ import annotations

import random

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import HANG, HELLO, detached, eventually, openai_at

IN_FLIGHT = 200


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_half_of_two_hundred_calls_are_cancelled_and_the_others_go_on(seed: int, *, stream: bool) -> None:
    chance = random.Random(seed)
    with FakeProviderProcess() as fake:
        config = openai_at(fake.base_url, concurrency=IN_FLIGHT)
        with detached(config) as supervisor, supervisor.connect() as client:
            handles = [
                client.submit(
                    provider="fake",
                    model="m",
                    messages=[{"role": "user", "content": str(number)}],
                    stream=stream,
                    fake={"reply": f"to {number}", "delay": HANG if number < IN_FLIGHT // 2 else 1.5},
                )
                for number in range(IN_FLIGHT)
            ]
            eventually(lambda: len(fake.log()) == IN_FLIGHT)
            condemned = handles[: IN_FLIGHT // 2]
            chance.shuffle(condemned)
            for handle in condemned:
                handle.cancel()
            for handle in condemned:
                with pytest.raises(callpool.RequestCancelled, match="cancelled by its client") as caught:
                    handle.result(HANG)
                assert 0.0 <= caught.value.cancel_seconds < HANG
            for number, handle in enumerate(handles[IN_FLIGHT // 2 :], IN_FLIGHT // 2):
                assert handle.result(HANG)["content"] == f"to {number}", "a neighbour was touched"
            eventually(lambda: all(call.outcome != "open" for call in fake.log()))
            outcomes = {call.last_message: call.outcome for call in fake.log()}
            assert outcomes == {
                str(number): "client_gone" if number < IN_FLIGHT // 2 else "answered" for number in range(IN_FLIGHT)
            }
            metrics = client.sessions.get_metrics()
            assert metrics["cancel_seconds"]["count"] == 100
            assert metrics["active_sessions"] == 0
            client.sessions.reset_metrics()
            assert client.sessions.get_metrics()["cancel_seconds"]["count"] == 0


def test_what_waits_is_cancelled_without_any_call() -> None:
    with (
        FakeProviderProcess(delay=HANG) as fake,
        detached(openai_at(fake.base_url, concurrency=1)) as supervisor,
        supervisor.connect() as client,
    ):
        running = client.submit(provider="fake", model="m", messages=HELLO)
        eventually(lambda: len(fake.log()) == 1)
        waiting = client.submit(provider="fake", model="m", messages=HELLO)
        waiting.cancel()
        with pytest.raises(callpool.RequestCancelled) as caught:
            waiting.result(HANG)
        assert "cancel_seconds" not in caught.value.details
        running.cancel()
        with pytest.raises(callpool.RequestCancelled) as caught:
            running.result(HANG)
        assert caught.value.cancel_seconds >= 0.0
        eventually(lambda: [call.outcome for call in fake.log()] == ["client_gone"])
