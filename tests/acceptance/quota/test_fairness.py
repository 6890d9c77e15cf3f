"""One client with thousands of requests, and nine with a few: real processes, the fake's log as the witness of who was served."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.quota.crew import Program
from tests.acceptance.running import detached, eventually

SMALL, LARGE = 20, 5_000
SLOTS, DELAY = 10, 0.1


@pytest.mark.timeout(120)
def test_nine_small_clients_beside_a_large_one() -> None:
    """They finish within 1.5 times of what they take as ten equals; shares follow the weights within 5 %."""
    with FakeProviderProcess(concurrency=SLOTS) as fake:
        account = {"kind": "openai", "base_url": fake.base_url, "concurrency": SLOTS, "cancel_lag": 0.0}
        heavy = {"a3": {"weight": 3.0}}
        with (
            detached({"providers": {"p": account}, "clients": heavy}) as supervisor,
            supervisor.connect() as client,
        ):
            alone = run(fake, client, [SMALL] * 10)
            beside = run(fake, client, [LARGE, *[SMALL] * 9])
            assert max(beside[1:]) <= 1.5 * max(alone)
            shares_follow_weights(fake)


def run(fake: FakeProviderProcess, client: callpool.Client, counts: list[int]) -> list[float]:
    """Seconds that each client took. A large first one has all but what it was served in the queue before the others come."""
    with ExitStack() as stack:
        crew = [
            stack.enter_context(Program("timed", f"c{number}", "p", count, DELAY))
            for number, count in enumerate(counts)
        ]
        for each in crew:
            assert each.hear() == "ready\n"
        before = len(fake.log())
        crew[0].go()
        if counts[0] == LARGE:
            eventually(lambda: client.status()["queue"]["requests"] > 0.95 * LARGE, why="it has not submitted them")
        else:
            fake.wait_for(lambda log: len(log) > before)
        began = fake.log()[-1].arrived
        for each in crew[1:]:
            each.go()
        last = crew[1:] if counts[0] == LARGE else crew
        told = [each.told() for each in last]
        assert [each["failed"] for each in told] == [0] * len(told)
        ends = [each["ended"] - began for each in told]
        crew[0].kill()  # the large one has proved its point; what it still waits for is cancelled
        eventually(lambda: all(call.outcome != "open" for call in fake.log()), why="a call is still open")
        return [0.0, *ends] if counts[0] == LARGE else ends


def shares_follow_weights(fake: FakeProviderProcess) -> None:
    """Two clients with the weights 3 and 1: while both have requests waiting, three of four calls are the first one's."""
    with Program("timed", "a3", "p", 900, DELAY) as heavy, Program("timed", "a1", "p", 900, DELAY) as light:
        for each in (heavy, light):
            assert each.hear() == "ready\n"
        before = len(fake.log())
        for each in (heavy, light):
            each.go()
        fake.wait_for(lambda log: len(log) >= before + 900, timeout=60.0)
        calls = [call.last_message.split()[0] for call in fake.log()[before + 100 : before + 900]]
    served = Counter(calls)
    share = served["a3"] / len(calls)
    assert 0.75 * 0.95 <= share <= 0.75 * 1.05, served
    eventually(lambda: all(call.outcome != "open" for call in fake.log()), why="a call is still open")
