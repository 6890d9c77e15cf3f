"""A minute of kill -9 under load, and beside it an account whose minute is really one: everything comes back, nothing is exceeded."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack
from typing import Any

import pytest

import callpool
from callpool.tools.testing.fake_provider import CallRecord, FakeProviderProcess
from tests.acceptance.quota.crew import Program
from tests.acceptance.running import detached, eventually

SECONDS = 60.0
SLOTS = 12
CLIENTS = 5
RPM, TPM = 150, 20_000
CALM = 240
"""Requests on the account that is never stormed: more than a minute allows."""
LAG = 0.5


@pytest.fixture
def chance(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.mark.timeout(180)
def test_a_minute_of_kills_leaves_every_slot_token_and_budget_where_it_was(chance: random.Random) -> None:
    """Killed are clients and workers; the witnesses are the two fakes, which enforce what was configured."""
    key = "sk-storm"
    with (
        FakeProviderProcess(concurrency=SLOTS) as stormed,
        FakeProviderProcess(dialect="kimi", rpm=RPM, tpm=TPM, api_key=key) as calm,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("STORM_KEY", key)
        with detached(configured(stormed, calm)) as supervisor, supervisor.connect() as client, ExitStack() as stack:
            counted = [stack.enter_context(Program("counted", f"calm{n}", "calm", CALM // 3)) for n in range(3)]
            storm(client, stack, chance)
            outcomes = [end for each in counted for end in each.told()]
            everything_is_back(client, stormed)
            the_minute_was_kept(calm.log(), outcomes)
            the_account_still_has_its_slots(client, stormed)


def configured(stormed: FakeProviderProcess, calm: FakeProviderProcess) -> dict[str, Any]:
    prices = {"input_price": 1.0, "output_price": 3.0}
    return {
        "supervisor": {"workers": 3, "heartbeat_interval": 0.2, "circuit_failures": 0},
        "providers": {
            "storm": {
                "kind": "openai",
                "base_url": stormed.base_url,
                "concurrency": SLOTS,
                "cancel_lag": LAG,
                "tokens_per_minute": 10_000_000,
                "money_per_day": 1_000_000.0,
                "models": {"m": prices},
            },
            "calm": {
                "kind": "kimi",
                "base_url": calm.base_url,
                "api_key_env": "STORM_KEY",
                "requests_per_minute": RPM,
                "tokens_per_minute": TPM,
                "models": {"m": prices},
            },
        },
        "clients": {"default": {"tokens_per_day": 100_000_000, "money_per_day": 1_000_000.0}},
    }


def storm(client: callpool.Client, stack: ExitStack, chance: random.Random) -> None:
    """Kill clients and workers at random moments, for a minute."""
    numbers = iter(range(10_000))

    def start() -> Program:
        number = next(numbers)
        return stack.enter_context(Program("endless", f"s{number % CLIENTS}", f"{number}"))

    crew = [start() for _ in range(CLIENTS)]
    kills = {"client": 0, "worker": 0}
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        time.sleep(chance.expovariate(2.0))  # the pace of the storm, and nothing that is waited for
        if chance.random() < 0.5:
            victim = chance.randrange(CLIENTS)
            crew[victim].kill()
            crew[victim] = start()
            kills["client"] += 1
        else:
            pids = [worker["pid"] for worker in client.status()["workers"] if worker["state"] == "up"]
            if len(pids) > 1:  # one is left, or nothing would be under load
                os.kill(chance.choice(pids), signal.SIGKILL)
                kills["worker"] += 1
    assert min(kills.values()) >= 10, kills
    for each in crew:
        each.kill()


def everything_is_back(client: callpool.Client, stormed: FakeProviderProcess) -> None:
    eventually(lambda: client.status()["sessions"]["active_sessions"] == 0, why="sessions are still active")
    eventually(lambda: all(call.outcome != "open" for call in stormed.log()), why="a call is open at the provider")
    eventually(lambda: not any(row["lagging"] for row in client.status()["accounts"]), why="slots lag for ever")
    status = client.status()
    assert status["queue"] == {"requests": 0, "bytes": 0}
    scopes = [*status["accounts"], *status["clients"]]
    assert {scope["name"] for scope in scopes} >= {"storm", "calm", *(f"s{number}" for number in range(CLIENTS))}
    for scope in scopes:
        assert scope["active"] == 0, scope["name"]
        assert {name: window["reserved"] for name, window in scope["windows"].items()} == dict.fromkeys(
            scope["windows"], 0
        ), scope["name"]
    [storm] = [row for row in status["accounts"] if row["name"] == "storm"]
    assert (storm["effective_limit"], storm["refused"]) == (SLOTS, 0)
    assert storm["windows"]["money_per_day"]["used"] > 0
    spent = sum(scope["windows"]["money_per_day"]["used"] for scope in status["clients"] if scope["name"][0] == "s")
    assert spent == pytest.approx(storm["windows"]["money_per_day"]["used"], abs=1e-9), "two books of the same calls"
    checks = {check["name"]: check for check in client.health()["checks"]}
    assert checks["account_slots"]["ok"], checks["account_slots"]
    assert not [call for call in stormed.log() if call.outcome == "rejected"], "nothing was refused"


def the_minute_was_kept(log: list[CallRecord], outcomes: list[str | None]) -> None:
    """In real time: no 60 seconds had more than was allowed, and nothing was refused."""
    assert len(outcomes) == CALM
    assert set(outcomes) <= {None, "WorkerLost"}, "a worker's death during the call is the only trouble that there was"
    assert [call.status for call in log if call.outcome == "rejected"] == []
    arrivals = sorted(call.arrived for call in log)
    assert len(arrivals) >= CALM
    assert arrivals[-1] - arrivals[0] > 60.0, "a shorter run shows nothing of a minute"
    for first, later in zip(arrivals, arrivals[RPM:], strict=False):
        assert later - first > 60.0


def the_account_still_has_its_slots(client: callpool.Client, stormed: FakeProviderProcess) -> None:
    before = len(stormed.log())
    messages = [{"role": "user", "content": "afterwards"}]
    handles = [
        client.submit(provider="storm", model="m", messages=messages, fake={"delay": 0.3}) for _ in range(2 * SLOTS)
    ]
    assert [handle.exception(20.0) for handle in handles] == [None] * len(handles)
    later = stormed.log()[before:]
    assert max(call.active_at_arrival for call in later) == SLOTS
