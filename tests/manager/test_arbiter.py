"""Workers that die, hang, cheat: the arbiter notices, says why, and replaces them without a busy loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from callpool.manager import arbiter, health
from callpool.manager.arbiter import Arbiter
from callpool.manager.core import restarts
from callpool.manager.core.messages import Retire
from callpool.manager.core.restarts import Failure
from callpool.manager.health import judge
from callpool.manager.health_facts import Facts, WorkerFacts
from callpool.manager.recycling import Limits, choose, resident_bytes
from callpool.manager.slots import Slot, WorkerState
from tests.manager import arbiter_targets as targets
from tests.manager.test_health import FACTS as WELL

HANG = 20.0
NO_LIMITS = Limits()


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned processes get this process's path: let them find the targets."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


class Events:
    """What the arbiter told."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.drains = False
        self.busy: set[int] = set()
        """Workers that somebody's call is with."""

    def worker_up(self, worker: int) -> None:
        self.log.append(("up", worker))

    def worker_down(self, worker: int, reason: str) -> None:
        self.log.append(("down", worker, reason))

    def worker_retiring(self, worker: int) -> None:
        self.log.append(("retiring", worker))

    @property
    def is_draining(self) -> bool:
        return self.drains

    def worker_is_idle(self, worker: int) -> bool:
        return worker not in self.busy

    def start_failed(self, cause: str) -> None:
        self.log.append(("start failed", cause))

    def handle_reports(self, worker: int, reports: Iterable[Any]) -> None:
        self.log += [("report", worker, report.request_id) for report in reports]

    def count(self, kind: str) -> int:
        return sum(entry[0] == kind for entry in self.log)


def _arguments(_worker: int, pipe: socket.socket) -> Sequence[Any]:
    return (pipe,)


def _run(
    target: Callable[..., None],
    test: Callable[[Arbiter, Events], Awaitable[None]],
    *,
    count: int = 1,
    heartbeat: float = 10.0,
    grace: float = 0.2,
    limits: Limits = NO_LIMITS,
    draw: Callable[[], float] = random.random,
    arguments: Callable[[int, socket.socket], Sequence[Any]] = _arguments,
) -> Events:
    events = Events()

    async def body() -> None:
        subject = Arbiter(
            events,
            count=count,
            target=target,
            arguments=arguments,
            heartbeat_interval=heartbeat,
            limits=limits,
            draw=draw,
        )
        subject.start()
        try:
            async with asyncio.timeout(HANG):
                await test(subject, events)
        finally:
            await asyncio.wait_for(subject.stop(grace=grace), HANG)

    asyncio.run(body())
    return events


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_workers_come_up_and_go_when_told() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("up") == 2)
        assert [row["state"] for row in subject.describe()] == ["up", "up"]

    events = _run(targets.good, test, count=2)
    assert events.count("down") == 2


def test_everything_a_worker_said_is_heard_before_its_death() -> None:
    async def test(_subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("down"))
        first = events.log.index(next(entry for entry in events.log if entry[0] == "down"))
        said = [entry[2] for entry in events.log[:first] if entry[0] == "report"]
        assert said == [f"r{number}" for number in range(500)]
        assert events.log[first] == ("down", 0, "was killed by SIGKILL")

    _run(targets.last_words, test)


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
        await _until(lambda: events.count("down") >= 4)
        row = subject.describe()[0]
        assert row["restarts"] >= 4
        assert (row["last_death"], row["last_failure"]) == ("exited with code 3", "boot")

    events = _run(targets.dies_at_once, test, draw=lambda: 0.999)
    assert events.count("up") == 0
    assert ceilings[:4] == [0.01, 0.02, 0.04, 0.08]


def test_a_worker_that_is_never_ready_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "START_DEADLINE", 0.3)
    monkeypatch.setattr(arbiter, "DUMP_GRACE", 0.1)

    async def test(_subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("down"))
        assert "was not ready" in events.log[0][2]

    _run(targets.never_ready, test, heartbeat=0.05)


def test_a_worker_without_a_pipe_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "DUMP_GRACE", 0.1)

    async def test(_subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("up") >= 2)
        assert events.log[:2] == [("up", 0), ("down", 0, "was killed by SIGKILL")]

    _run(targets.closes_its_pipe, test)


def test_a_stubborn_worker_does_not_keep_the_supervisor() -> None:
    async def test(_subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("up") == 1)

    assert _run(targets.stubborn, test).log[-1] == ("down", 0, "was killed by SIGKILL")


def test_stopping_while_a_replacement_is_planned_starts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "BACKOFF_FIRST", restarts.BACKOFF_LIMIT)

    async def test(subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("down") == 1)
        assert subject.slots[0].state is WorkerState.DOWN

    assert _run(targets.dies_at_once, test, draw=lambda: 0.999).count("down") == 1


def test_a_death_noticed_by_somebody_elses_wait_is_still_a_death() -> None:
    """A library that waits for any child reaps ours: the sentinel tells all the same."""

    async def test(subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("up") == 1)
        pid = subject.slots[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it is dead or about to be: this steals its status
        await _until(lambda: events.count("up") == 2)

    _run(targets.good, test)


def test_a_worker_that_dies_while_descriptors_have_run_out_is_replaced_when_they_are_back() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("up") == 1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))  # not one more
        try:
            pid = subject.slots[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await _until(lambda: "could not be spawned" in (subject.slots[0].last_reason or ""))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await _until(lambda: events.count("up") == 2)

    _run(targets.good, test)


def test_what_connections_had_come_to_outlives_their_worker() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        assert subject.describe_pools() == {}
        await _until(lambda: len(subject.describe_pools()) == 2)
        alive = subject.describe_pools()["a"]
        assert (alive["requests"], alive["opened"], alive["open"], alive["idle"], alive["waiting"]) == (5, 2, 2, 1, 3)
        assert (alive["connect_seconds_mean"], alive["connect_seconds_max"]) == (0.25, 0.4)
        assert [(row["id"], row["requests"], row["open"]) for row in alive["workers"]] == [(0, 5, 2)]

        subject.send(0, Retire())  # it dies of it
        await _until(lambda: events.count("down") == 1)
        dead = subject.describe_pools()
        assert dead["a"] == alive | {"open": 0, "idle": 0, "waiting": 0, "workers": []}
        assert (dead["b"]["requests"], dead["b"]["open"]) == (1, 0)

        await _until(lambda: subject.describe_pools()["a"]["workers"])  # its replacement
        both = subject.describe_pools()["a"]
        assert (both["requests"], both["opened"], both["open"], both["connect_seconds"]) == (10, 4, 2, 1.0)
        assert (both["connect_seconds_max"], both["workers"][0]["requests"]) == (0.4, 5)

        subject.send(0, Retire())
        await _until(lambda: events.count("down") == 2)
        left = subject.describe_pools()["a"]
        assert left["requests"] - sum(row["requests"] for row in left["workers"]) == 10

    _run(targets.counts_and_ends, test)


# Pools whose workers die too fast.


def test_a_pool_in_trouble_is_degraded_with_its_cause_and_whole_again_when_that_is_gone(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(restarts, "PROBE_EVERY", 0.4)
    monkeypatch.setattr(restarts, "PROVEN_AFTER", 0.2)
    monkeypatch.setattr(health, "PROVEN_AFTER", 0.2)
    cause = base_folder / "cause"
    starts: list[tuple[float, bool]] = []

    async def test(subject: Arbiter, events: Events) -> None:
        spawn = arbiter.spawn_with_pipe

        def counted(*given: Any, **more: Any) -> Any:
            starts.append((asyncio.get_running_loop().time(), subject.restarts.is_in_trouble))
            return spawn(*given, **more)

        monkeypatch.setattr(arbiter, "spawn_with_pipe", counted)
        await _until(lambda: events.count("up") == 2)
        cause.touch()
        for slot in subject.slots:
            assert slot.pid is not None
            os.kill(slot.pid, signal.SIGKILL)
        await _until(lambda: subject.restarts.is_in_trouble)
        assert len(starts) <= restarts.BOOT_INTENSITY + 2
        await _until(lambda: sum(tried for _, tried in starts) == 3)
        judged = judge(_facts(subject))
        assert judged.state == "unhealthy", "nobody is up"
        said = next(check for check in judged.checks if check.name == "restarts")
        assert not said.ok
        assert said.message.endswith("exited with code 1 (boot failure)")
        assert subject.describe_supervision()["state"] == "degraded"
        assert subject.describe()[0]["last_failure"] == "boot"
        assert subject.describe_supervision()["run_failures"] == 2
        cause.unlink()
        await _until(lambda: judge(_facts(subject)).healthy)
        assert [slot.state for slot in subject.slots] == [WorkerState.UP] * 2

    _run(targets.ill_while, test, count=2, arguments=lambda _worker, pipe: (pipe, str(cause)))
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
        await _until(lambda: events.count("start failed"))
        (said,) = (entry[1] for entry in events.log if entry[0] == "start failed")
        assert said.endswith("exited with code 3 (boot failure)")
        assert not any(slot.child for slot in subject.slots)

    _run(targets.dies_at_once, test, count=2)


def test_after_a_gap_of_our_own_all_clocks_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker says nothing at all. While we were asleep that is no fault of its; afterwards it is one."""
    monkeypatch.setattr(arbiter, "OWN_GAP", 0.2)
    monkeypatch.setattr(arbiter, "DUMP_GRACE", 0.1)
    interval = 0.5

    async def test(subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("up") == 1)
        slot = subject.slots[0]
        heard = slot.heard_at
        time.sleep(4 * interval)  # noqa: ASYNC251 - the gap itself
        await _until(lambda: slot.heard_at > heard or slot.state is not WorkerState.UP)
        assert slot.state is WorkerState.UP
        await _until(lambda: events.count("down") == 1)
        assert "did not give a heartbeat for" in events.log[-1][2]

    _run(targets.good, test, heartbeat=interval)


# Recycling.

FIVE = Limits(calls=5)
BEAT = 0.05


@pytest.fixture
def briskly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One recycling after the other."""
    monkeypatch.setattr(arbiter, "RECYCLE_EVERY", 0.0)
    monkeypatch.setattr(arbiter, "MISSED_HEARTBEATS", 100)  # a busy machine is not what is tested


def _serving(events: Events) -> Iterable[int]:
    """How many workers took calls, after each event."""
    able: set[int] = set()
    for entry in events.log:
        if entry[0] == "up":
            able.add(entry[1])
        elif entry[0] in {"retiring", "down"}:
            able.discard(entry[1])
        yield len(able)


@pytest.mark.usefixtures("briskly")
def test_workers_that_all_had_enough_are_replaced_one_after_another_and_never_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        await _until(lambda: subject.recycled["calls"] >= 4)
        rows = subject.describe()
        assert sum(row["recycled"] for row in rows) == 4
        assert [row["restarts"] for row in rows] == [0] * len(rows)
        assert {row["last_recycled"] for row in rows} == {"calls"}
        assert subject.describe_supervision()["recycled"] == {"calls": 4, "memory": 0}
        assert subject.describe_supervision()["deaths_last_minute"] == 0
        events.drains = True

    events = _run(targets.worn_out, test, count=2, heartbeat=BEAT, limits=FIVE)
    steps = [entry[:2] for entry in events.log if entry[0] in {"retiring", "down"}]
    for retiring, down in zip(steps[0:8:2], steps[1:8:2], strict=True):
        assert (retiring[0], down) == ("retiring", ("down", retiring[1])), "one at a time"
    counts = list(_serving(events))
    fourth = [index for index, entry in enumerate(events.log) if entry[0] == "down"][3]
    assert min(counts[counts.index(2) : fourth + 1]) == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.usefixtures("briskly")
def test_while_the_pool_drains_nobody_is_recycled() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        events.drains = True
        await _until(lambda: events.count("up") == 2)
        heard = subject.slots[0].heard_at
        await _until(lambda: subject.slots[0].heard_at > heard + 4 * BEAT)
        assert subject.slots[2].state is WorkerState.SPARE

    assert _run(targets.worn_out, test, count=2, heartbeat=BEAT, limits=FIVE).count("retiring") == 0


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_dies_while_it_retires_is_a_failure_and_replaced_already() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        events.busy = {0}  # its call is not over, and it goes all the same
        await _until(lambda: events.count("down") == 1)
        events.drains = True
        assert events.log[-1][:2] == ("down", 0)
        assert subject.recycled["calls"] == 0
        assert subject.describe_supervision()["run_failures"] == 1
        assert [slot.state for slot in subject.slots] == [WorkerState.SPARE, WorkerState.UP]
        assert [slot.spare for slot in subject.slots] == [True, False]

    assert _run(targets.worn_out, test, heartbeat=BEAT, limits=FIVE).count("up") == 2


@pytest.mark.usefixtures("briskly")
def test_a_replacement_that_dies_calls_the_recycling_off(base_folder: Path) -> None:
    def arguments(worker: int, pipe: socket.socket) -> Sequence[Any]:
        return pipe, str(base_folder if worker == 1 else base_folder / "nothing")

    async def test(subject: Arbiter, events: Events) -> None:
        await _until(lambda: subject.restarts.failed[Failure.BOOT] == 1)
        await _until(lambda: subject.slots[1].state is WorkerState.SPARE)
        heard = subject.slots[0].heard_at
        await _until(lambda: subject.slots[0].heard_at > heard + 4 * BEAT)
        assert [slot.state for slot in subject.slots] == [WorkerState.UP, WorkerState.SPARE]
        assert subject.slots[0].restarts == 0

    events = _run(targets.worn_out_unless, test, heartbeat=BEAT, limits=FIVE, arguments=arguments)
    assert (events.count("retiring"), events.count("up")) == (0, 1)


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_dies_while_its_replacement_starts_is_replaced_by_it(base_folder: Path) -> None:
    gate = base_folder / "gate"

    def arguments(worker: int, pipe: socket.socket) -> Sequence[Any]:
        return pipe, str(gate) if worker == 1 else ""

    async def test(subject: Arbiter, events: Events) -> None:
        old, new = subject.slots
        await _until(lambda: new.state is WorkerState.STARTING)
        assert old.pid is not None
        os.kill(old.pid, signal.SIGKILL)
        await _until(lambda: events.count("down") == 1)
        assert (old.state, old.spare, new.spare) == (WorkerState.SPARE, True, False)
        assert (new.restarts, new.last_reason) == (1, "was killed by SIGKILL")
        events.drains = True
        gate.touch()
        await _until(lambda: new.state is WorkerState.UP)

    events = _run(targets.ready_when_told, test, heartbeat=BEAT, limits=FIVE, arguments=arguments)
    assert events.count("up") == 2


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_has_no_call_and_does_not_go_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "RETIRE_GRACE", 0.1)

    async def test(subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("down") == 1)
        events.drains = True
        assert events.log[-1] == ("down", 0, "was killed by SIGKILL")
        assert subject.recycled["calls"] == 1, "it was planned"

    _run(targets.worn_out_and_deaf, test, heartbeat=BEAT, limits=FIVE)


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_retires_and_has_calls_still_has_to_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "DUMP_GRACE", 0.1)

    async def test(subject: Arbiter, events: Events) -> None:
        events.busy = {0}
        await _until(lambda: events.count("retiring") == 1)
        monkeypatch.setattr(arbiter, "MISSED_HEARTBEATS", 3)
        events.drains = True
        await _until(lambda: any(entry[0] == "down" and entry[1] == 0 for entry in events.log))
        assert "heartbeat" in next(entry[2] for entry in events.log if entry[0] == "down" and entry[1] == 0)

    _run(targets.worn_out_and_deaf, test, heartbeat=BEAT, limits=FIVE)


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_grows_is_recycled_and_one_that_is_born_too_large_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1_000_000
    sizes: dict[int, int] = {}
    monkeypatch.setattr(arbiter, "resident_bytes", lambda pid: sizes.setdefault(pid, limit - 1))

    async def test(subject: Arbiter, events: Events) -> None:
        await _until(lambda: events.count("up") == 2)
        await _until(lambda: all(slot.memory for slot in subject.slots[:2]))
        sizes[subject.slots[1].pid or 0] = limit
        monkeypatch.setattr(arbiter, "resident_bytes", lambda pid: sizes.setdefault(pid, 2 * limit))
        await _until(lambda: subject.recycled["memory"] == 1)
        assert [entry[1] for entry in events.log if entry[0] == "retiring"] == [1]
        new = subject.slots[2]
        await _until(lambda: new.memory == 2 * limit)
        heard = new.heard_at
        await _until(lambda: new.heard_at > heard + 4 * BEAT)
        assert new.state is WorkerState.UP, "the next one would be as large"

    assert _run(targets.worn_out, test, count=2, heartbeat=BEAT, limits=Limits(memory=limit)).count("retiring") == 1


def test_the_system_tells_what_a_process_takes() -> None:
    assert (resident_bytes(os.getpid()) or 0) > 1_000_000
    assert resident_bytes(2**22 + 1) is None, "beyond the largest process id"


def test_who_is_furthest_beyond_its_limits_goes_first() -> None:
    limits = Limits(calls=10, memory=100)

    def slot(calls: int, memory: int | None, first: int | None = 50) -> Slot:
        found = Slot(0)
        found.calls, found.memory, found.first_memory = calls, memory, first
        return found

    assert choose([slot(9, 99), slot(0, None)], limits) is None
    assert choose([slot(10, 99), slot(0, 100)], limits) == (0, "calls")
    assert choose([slot(11, 99), slot(0, 120)], limits) == (1, "memory")
    assert choose([slot(0, 500, 100), slot(10, None)], limits) == (1, "calls")
    assert choose([slot(1_000, 1_000)], Limits()) is None
