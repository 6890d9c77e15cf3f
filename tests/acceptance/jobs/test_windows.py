"""A restart does not begin with an empty minute, nor with a new day: what was used is on the disk before it is used."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import HANG, HELLO, Running, detached

RPM = 20
DAY = 1_000_000


def limited(fake: FakeProviderProcess) -> dict[str, Any]:
    return {
        "providers": {
            "fake": {
                "kind": "openai",
                "base_url": fake.base_url,
                "requests_per_minute": RPM,
                "tokens_per_day": DAY,
                "models": {"m": {}},
            }
        }
    }


def windows(supervisor: Running) -> dict[str, Any]:
    with supervisor.connect() as client:
        found: dict[str, Any] = client.status()["accounts"][0]["windows"]
        return found


def use(supervisor: Running, calls: int) -> None:
    with supervisor.connect() as client:
        handles = [client.submit(provider="fake", model="m", messages=HELLO, max_tokens=10) for _ in range(calls)]
        assert [handle.exception(HANG) for handle in handles] == [None] * calls


def test_a_full_minute_is_still_full_after_a_kill() -> None:
    with FakeProviderProcess(rpm=RPM) as fake:
        with detached(limited(fake)) as supervisor:
            use(supervisor, RPM)
            tokens = windows(supervisor)["tokens_per_day"]["used"]
            os.kill(supervisor.pid, signal.SIGKILL)
            supervisor.ended()
        with detached(limited(fake)) as supervisor:
            after = windows(supervisor)
            assert after["requests_per_minute"]["used"] >= RPM
            assert tokens <= after["tokens_per_day"]["used"] <= tokens + DAY / 100
            with supervisor.connect() as client:
                handle = client.submit(provider="fake", model="m", messages=HELLO, queue_timeout=0.3)
                with pytest.raises(callpool.RequestTimeout, match="queue"):
                    handle.result(HANG)
        assert len(fake.log()) == RPM, "nothing went out, and nothing was refused"


def test_an_orderly_restart_knows_exactly_what_was_used() -> None:
    with FakeProviderProcess(rpm=RPM) as fake:
        with detached(limited(fake)) as supervisor:
            use(supervisor, 7)
            before = windows(supervisor)
            with supervisor.connect() as client:
                client.drain(wait=HANG)
            supervisor.ended()
        with detached(limited(fake)) as supervisor:
            after = windows(supervisor)
            assert {name: each["used"] for name, each in after.items()} == {
                name: each["used"] for name, each in before.items()
            }
            use(supervisor, RPM - 7)
        assert [call.status for call in fake.log()] == [200] * RPM
