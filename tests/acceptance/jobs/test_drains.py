"""Drains at random load: what is new is refused at once, what fits finishes, the rest is parked and done by the next supervisor."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.jobs.witness import all_ended, ask, config, judge
from tests.acceptance.running import HANG, detached

JOBS = 14


@pytest.fixture
def chance(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.mark.parametrize("number", range(4))
def test_a_drain_at_random_load(number: int, chance: random.Random) -> None:
    one_drain(random.Random(chance.random() + number), "job")


@pytest.mark.storm
@pytest.mark.parametrize("number", range(50))
def test_fifty_drains_at_random_load(number: int, chance: random.Random) -> None:
    one_drain(random.Random(chance.random() + number), "job")


def one_drain(chance: random.Random, name: str) -> None:
    timeout = chance.choice([0.05, 0.3, 1.0])
    with FakeProviderProcess() as fake:
        settings = config(fake, shutdown_timeout=timeout)
        with detached(settings) as supervisor, supervisor.connect() as client:
            handles = []
            for number in range(chance.randrange(1, JOBS)):
                handles.append(ask(client, f"{name}-{number}", fake={"delay": chance.choice([0.0, 0.2, 3.0])}))
                if chance.random() < 0.3:
                    fake.wait_for(lambda calls: len(calls) >= 1)
            began = time.monotonic()
            os.kill(supervisor.pid, signal.SIGTERM)
            acknowledged = [handle.request_id for handle in handles]
            refused_after = refusal(client, began, name, acknowledged)
            supervisor.ended(within=HANG)
            took = time.monotonic() - began
        with detached(config(fake)) as supervisor:
            states = {each: state for each, state in all_ended(supervisor).items() if each.startswith(f"{name}-")}
            seen = judge(states, acknowledged, fake.log())
            assert set(states) == set(acknowledged), "who was refused has left nothing"
        print(f"refused after {refused_after:.3f} s, ended after {took:.2f} s of {timeout:g} s: {dict(seen)}")


def refusal(client: callpool.Client, began: float, name: str, acknowledged: list[str]) -> float:
    """Submit until it is refused; seconds from the signal on. Who was quicker than the signal is one more."""
    for number in range(1_001, 2_000, 2):
        try:
            acknowledged.append(ask(client, f"{name}-{number}").request_id)
        except (callpool.ShuttingDown, callpool.ConnectionLost, callpool.NotRunning):
            return time.monotonic() - began
    raise AssertionError("nothing is refused")
