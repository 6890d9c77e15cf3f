"""Pools whose workers die too fast: what is said of them, how they are tried, and that they are whole again."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from callpool.manager import arbiter, health
from callpool.manager.arbiter import Arbiter
from callpool.manager.core import restarts
from callpool.manager.health import judge
from callpool.manager.health_facts import Facts, WorkerFacts
from callpool.manager.slots import WorkerState
from tests.manager import arbiter_targets as targets
from tests.manager.arbiter_bench import Events, run, until
from tests.manager.test_health import FACTS as WELL

pytestmark = pytest.mark.usefixtures("importable")


@pytest.mark.parametrize("count", [1, 2])
def test_a_pool_in_trouble_is_degraded_with_its_cause_and_whole_again_when_that_is_gone(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    monkeypatch.setattr(restarts, "PROBE_EVERY", 0.4)
    monkeypatch.setattr(restarts, "PROVEN_AFTER", 0.2)
    monkeypatch.setattr(health, "PROVEN_AFTER", 0.2)
    caplog.set_level(logging.INFO)
    cause = base_folder / "cause"
    starts: list[tuple[float, bool]] = []

    async def test(subject: Arbiter, events: Events) -> None:
        started = subject.restarts.started

        def noted(place: int, now: float) -> None:
            starts.append((now, subject.restarts.is_in_trouble))
            started(place, now)

        monkeypatch.setattr(subject.restarts, "started", noted)
        await until(lambda: events.count("up") == count)
        cause.touch()
        for slot in subject.slots:
            assert slot.pid is not None
            os.kill(slot.pid, signal.SIGKILL)
        await until(lambda: subject.restarts.is_in_trouble)
        assert len(starts) <= restarts.BOOT_INTENSITY + 2
        await until(lambda: sum(tried for _, tried in starts) == 2)
        judged = judge(_facts(subject))
        assert judged.state == "unhealthy", "nobody is up"
        said = next(check for check in judged.checks if check.name == "restarts")
        assert not said.ok
        assert said.message.endswith("exited with code 1 (boot failure)")
        assert subject.describe_supervision()["state"] == "degraded"
        assert subject.describe()[0]["last_failure"] == "boot"
        assert subject.describe_supervision()["run_failures"] == count
        cause.unlink()
        await until(lambda: judge(_facts(subject)).healthy)
        assert [slot.state for slot in subject.slots] == [WorkerState.UP] * count

    run(targets.ill_while, test, count=count, draw=lambda: 0.1, arguments=lambda _worker, pipe: (pipe, str(cause)))
    tries = [at for at, tried in starts if tried]
    assert all(later - earlier >= 0.4 for earlier, later in itertools.pairwise(tries))
    said = [record.message for record in caplog.records]
    assert sum("workers die too fast" in each for each in said) == 1, "said once, not with each death"
    assert sum("workers stay up again" in each for each in said) == 1


def _facts(subject: Arbiter) -> Facts:
    """What health is judged by, all else being well."""
    now = asyncio.get_running_loop().time()
    workers = [
        WorkerFacts(
            number=slot.number,
            state=slot.state.value,
            pid=slot.pid,
            silent=0.0,
            loop_delay=0.0,
            restarts=slot.restarts,
            failures=subject.restarts.failures(slot.number, now),
            spawned_ago=now - slot.spawned_at,
            last_death=slot.last_death,
        )
        for slot in subject.slots
    ]
    around = msgspec.structs.replace(WELL.surroundings, workers=workers, restarts=subject.restarts.condition(now))
    return msgspec.structs.replace(WELL, surroundings=around)


def test_a_pool_that_never_had_a_worker_says_so_at_once() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("start failed"))
        (said,) = (entry[1] for entry in events.log if entry[0] == "start failed")
        assert said.endswith("exited with code 3 (boot failure)")
        assert not any(slot.child for slot in subject.slots)

    run(targets.dies_at_once, test, count=2)


def test_after_a_gap_of_our_own_all_clocks_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker says nothing at all. While we were asleep that is no fault of its; afterwards it is one."""
    monkeypatch.setattr(arbiter, "OWN_GAP", 0.2)
    monkeypatch.setattr(arbiter, "DUMP_GRACE", 0.1)
    interval = 0.3

    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("up") == 1)
        slot = subject.slots[0]
        heard = slot.heard_at
        time.sleep(4 * interval)  # noqa: ASYNC251 - the gap itself
        await until(lambda: slot.heard_at > heard or slot.state is not WorkerState.UP)
        assert slot.state is WorkerState.UP
        await until(lambda: events.count("down") == 1)
        assert "did not give a heartbeat for" in events.log[-1][2]

    run(targets.good, test, heartbeat=interval)
