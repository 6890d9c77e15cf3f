"""Workers that die, hang, cheat: the arbiter notices, says why, and replaces them without a busy loop."""

from __future__ import annotations

import os
import resource
import signal

import pytest

from callpool.manager import arbiter
from callpool.manager.arbiter import Arbiter
from callpool.manager.core import restarts
from callpool.manager.core.messages import Retire
from callpool.manager.slots import WorkerState
from tests.manager import arbiter_targets as targets
from tests.manager.arbiter_bench import Events, run, until

pytestmark = pytest.mark.usefixtures("importable")


def test_workers_come_up_and_go_when_told() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("up") == 2)
        assert [row["state"] for row in subject.describe()] == ["up", "up"]

    events = run(targets.good, test, count=2)
    assert events.count("down") == 2


def test_everything_a_worker_said_is_heard_before_its_death() -> None:
    async def test(_subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("down"))
        first = events.log.index(next(entry for entry in events.log if entry[0] == "down"))
        said = [entry[2] for entry in events.log[:first] if entry[0] == "report"]
        assert said == [f"r{number}" for number in range(500)]
        assert events.log[first] == ("down", 0, "was killed by SIGKILL")

    run(targets.last_words, test)


def test_a_crash_loop_is_slowed_down_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With full jitter, the fifth wait is drawn from [0, 16 × the first]: draws are fixed near their ceilings here."""
    monkeypatch.setattr(restarts, "BACKOFF_FIRST", 0.01)
    ceilings: list[float] = []
    whole = restarts.backoff_ceiling

    def ceiling(failures: int) -> float:
        ceilings.append(whole(failures))
        return ceilings[-1]

    monkeypatch.setattr(restarts, "backoff_ceiling", ceiling)

    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("down") >= 4)
        row = subject.describe()[0]
        assert row["restarts"] >= 4
        assert (row["last_death"], row["last_failure"]) == ("exited with code 3", "boot")

    events = run(targets.dies_at_once, test, draw=lambda: 0.999)
    assert events.count("up") == 0
    assert ceilings[:4] == [0.01, 0.02, 0.04, 0.08]


def test_a_worker_that_is_never_ready_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "START_DEADLINE", 0.3)
    monkeypatch.setattr(arbiter, "DUMP_GRACE", 0.1)

    async def test(_subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("down"))
        assert "was not ready" in events.log[0][2]

    run(targets.never_ready, test, heartbeat=0.05)


def test_a_worker_without_a_pipe_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "DUMP_GRACE", 0.1)

    async def test(_subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("up") >= 2)
        assert events.log[:2] == [("up", 0), ("down", 0, "was killed by SIGKILL")]

    run(targets.closes_its_pipe, test)


def test_a_stubborn_worker_does_not_keep_the_supervisor() -> None:
    async def test(_subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("up") == 1)

    assert run(targets.stubborn, test).log[-1] == ("down", 0, "was killed by SIGKILL")


def test_stopping_while_a_replacement_is_planned_starts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "BACKOFF_FIRST", restarts.BACKOFF_LIMIT)

    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("down") == 1)
        assert subject.slots[0].state is WorkerState.DOWN

    assert run(targets.dies_at_once, test, draw=lambda: 0.999).count("down") == 1


def test_a_death_noticed_by_somebody_elses_wait_is_still_a_death() -> None:
    """A library that waits for any child reaps ours: the sentinel tells all the same."""

    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("up") == 1)
        pid = subject.slots[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it is dead or about to be: this steals its status
        await until(lambda: events.count("up") == 2)

    run(targets.good, test)


def test_a_worker_that_dies_while_descriptors_have_run_out_is_replaced_when_they_are_back() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("up") == 1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))  # not one more
        try:
            pid = subject.slots[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda: "could not be spawned" in (subject.slots[0].last_reason or ""))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: events.count("up") == 2)

    run(targets.good, test)


def test_what_connections_had_come_to_outlives_their_worker() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        assert subject.describe_pools() == {}
        await until(lambda: len(subject.describe_pools()) == 2)
        alive = subject.describe_pools()["a"]
        assert (alive["requests"], alive["opened"], alive["open"], alive["idle"], alive["waiting"]) == (5, 2, 2, 1, 3)
        assert (alive["connect_seconds_mean"], alive["connect_seconds_max"]) == (0.25, 0.4)
        assert [(row["id"], row["requests"], row["open"]) for row in alive["workers"]] == [(0, 5, 2)]

        subject.send(0, Retire())  # it dies of it
        await until(lambda: events.count("down") == 1)
        dead = subject.describe_pools()
        assert dead["a"] == alive | {"open": 0, "idle": 0, "waiting": 0, "workers": []}
        assert (dead["b"]["requests"], dead["b"]["open"]) == (1, 0)

        await until(lambda: subject.describe_pools()["a"]["workers"])  # its replacement
        both = subject.describe_pools()["a"]
        assert (both["requests"], both["opened"], both["open"], both["connect_seconds"]) == (10, 4, 2, 1.0)
        assert (both["connect_seconds_max"], both["workers"][0]["requests"]) == (0.4, 5)

        subject.send(0, Retire())
        await until(lambda: events.count("down") == 2)
        left = subject.describe_pools()["a"]
        assert left["requests"] - sum(row["requests"] for row in left["workers"]) == 10

    run(targets.counts_and_ends, test)
