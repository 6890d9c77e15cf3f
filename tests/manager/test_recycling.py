"""Workers that have done enough, or grown too large, and are replaced before they go."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from callpool.manager import arbiter
from callpool.manager.arbiter import Arbiter
from callpool.manager.core import restarts
from callpool.manager.core.restarts import Failure, Restarts
from callpool.manager.recycling import Limits, Why, choose, resident_bytes
from callpool.manager.slots import Slot, WorkerState
from tests.manager import arbiter_targets as targets
from tests.manager.arbiter_bench import Events, run, until

pytestmark = pytest.mark.usefixtures("importable")


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
        await until(lambda: subject.recycled[Why.CALLS] >= 4)
        rows = subject.describe()
        assert sum(row["recycled"] for row in rows) == 4
        assert [row["restarts"] for row in rows] == [0] * len(rows)
        assert {row["last_recycled"] for row in rows if row["recycled"]} == {"calls"}
        assert subject.describe_supervision()["recycled"] == {"calls": 4, "memory": 0}
        assert subject.describe_supervision()["deaths_last_minute"] == 0
        events.drains = True

    events = run(targets.worn_out, test, count=2, heartbeat=BEAT, limits=FIVE)
    steps = [entry[:2] for entry in events.log if entry[0] in {"retiring", "down"}]
    for retiring, down in zip(steps[0:8:2], steps[1:8:2], strict=True):
        assert (retiring[0], down) == ("retiring", ("down", retiring[1])), "one at a time"
    counts = list(_serving(events))
    fourth = [index for index, entry in enumerate(events.log) if entry[0] == "down"][3]
    assert min(counts[counts.index(2) : fourth + 1]) == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.usefixtures("briskly")
def test_a_worker_is_told_to_go_only_when_all_that_it_was_given_is_sent() -> None:
    """Its orders may still wait for the journal's disk: what comes after the word to go would be lost."""

    async def test(subject: Arbiter, events: Events) -> None:
        events.holds_back = 10
        await until(lambda: events.count("retiring") >= 1)
        retiring = next(slot for slot in subject.slots if slot.state is WorkerState.RETIRING)
        pid = retiring.pid
        await until(lambda: events.asked_to_retire > 3)
        assert retiring.pid == pid, "it lives"
        await until(lambda: events.count("down") >= 1)
        assert events.asked_to_retire > 10
        events.drains = True

    run(targets.worn_out, test, count=2, heartbeat=BEAT, limits=FIVE)


@pytest.mark.usefixtures("briskly")
def test_while_the_pool_drains_nobody_is_recycled() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        events.drains = True
        await until(lambda: events.count("up") == 2)
        heard = subject.slots[0].heard_at
        await until(lambda: subject.slots[0].heard_at > heard + 4 * BEAT)
        assert subject.slots[2].state is WorkerState.SPARE

    assert run(targets.worn_out, test, count=2, heartbeat=BEAT, limits=FIVE).count("retiring") == 0


@pytest.mark.usefixtures("briskly")
@pytest.mark.parametrize("why", ["one is down", "the pool is in trouble"])
def test_while_the_pool_is_not_well_nobody_is_recycled(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "BACKOFF_FIRST", restarts.BACKOFF_LIMIT)

    async def test(subject: Arbiter, events: Events) -> None:
        events.drains = True
        await until(lambda: events.count("up") == 2)
        first, second = subject.slots[:2]
        if why == "one is down":
            assert second.pid is not None
            os.kill(second.pid, signal.SIGKILL)
            await until(lambda: second.state is WorkerState.DOWN)
        else:
            monkeypatch.setattr(Restarts, "is_in_trouble", True)
        events.drains = False
        heard = first.heard_at
        await until(lambda: first.heard_at > heard + 4 * BEAT)
        assert subject.slots[2].state is WorkerState.SPARE

    run(targets.worn_out, test, count=2, heartbeat=BEAT, limits=FIVE, draw=lambda: 0.999)


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_dies_while_it_retires_is_a_failure_and_replaced_already() -> None:
    async def test(subject: Arbiter, events: Events) -> None:
        events.busy = {0}  # its call is not over, and it goes all the same
        await until(lambda: events.count("retiring") == 1)
        events.drains = True  # nobody else is recycled meanwhile
        await until(lambda: events.count("down") == 1)
        assert events.log[-1][:2] == ("down", 0)
        assert subject.recycled[Why.CALLS] == 0
        assert subject.describe_supervision()["run_failures"] == 1
        assert [slot.state for slot in subject.slots] == [WorkerState.SPARE, WorkerState.UP]
        assert [slot.spare for slot in subject.slots] == [True, False]

    assert run(targets.worn_out, test, heartbeat=BEAT, limits=FIVE).count("up") == 2


@pytest.mark.usefixtures("briskly")
def test_a_replacement_that_dies_calls_the_recycling_off(base_folder: Path) -> None:
    def arguments(worker: int, pipe: socket.socket) -> Sequence[Any]:
        return pipe, str(base_folder if worker == 1 else base_folder / "nothing")

    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: subject.restarts.failed[Failure.BOOT] == 1)
        await until(lambda: subject.slots[1].state is WorkerState.SPARE)
        heard = subject.slots[0].heard_at
        await until(lambda: subject.slots[0].heard_at > heard + 4 * BEAT)
        assert [slot.state for slot in subject.slots] == [WorkerState.UP, WorkerState.SPARE]
        assert subject.slots[0].restarts == 0

    events = run(targets.worn_out_unless, test, heartbeat=BEAT, limits=FIVE, arguments=arguments)
    assert (events.count("retiring"), events.count("up")) == (0, 1)


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_dies_while_its_replacement_starts_is_replaced_by_it(base_folder: Path) -> None:
    gate = base_folder / "gate"

    def arguments(worker: int, pipe: socket.socket) -> Sequence[Any]:
        return pipe, str(gate) if worker == 1 else ""

    async def test(subject: Arbiter, events: Events) -> None:
        old, new = subject.slots
        await until(lambda: new.state is WorkerState.STARTING)
        assert old.pid is not None
        os.kill(old.pid, signal.SIGKILL)
        await until(lambda: events.count("down") == 1)
        assert (old.state, old.spare, new.spare) == (WorkerState.SPARE, True, False)
        assert (new.restarts, new.last_reason) == (1, "was killed by SIGKILL")
        events.drains = True
        gate.touch()
        await until(lambda: new.state is WorkerState.UP)

    events = run(targets.ready_when_told, test, heartbeat=BEAT, limits=FIVE, arguments=arguments)
    assert events.count("up") == 2


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_hangs_while_its_replacement_starts_is_no_recycling(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arbiter, "DUMP_GRACE", 0.5)
    gate = base_folder / "gate"

    def arguments(worker: int, pipe: socket.socket) -> Sequence[Any]:
        return pipe, str(gate) if worker == 1 else ""

    async def test(subject: Arbiter, events: Events) -> None:
        old, new = subject.slots
        await until(lambda: new.state is WorkerState.STARTING)
        assert old.pid is not None
        os.kill(old.pid, signal.SIGSTOP)
        monkeypatch.setattr(arbiter, "MISSED_HEARTBEATS", 3)
        await until(lambda: old.state is WorkerState.STUCK)
        monkeypatch.setattr(arbiter, "MISSED_HEARTBEATS", 100)
        events.drains = True
        gate.touch()
        await until(lambda: events.count("up") == 2)
        await until(lambda: events.count("down") == 1)
        assert "heartbeat" in events.log[-1][2]
        assert (new.restarts, new.spare, old.state) == (1, False, WorkerState.SPARE)
        assert subject.describe_supervision()["run_failures"] == 1
        assert subject.recycled[Why.CALLS] == 0

    run(targets.ready_when_told, test, heartbeat=BEAT, limits=FIVE, arguments=arguments)


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_has_no_call_and_does_not_go_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "RETIRE_GRACE", 0.1)

    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("down") == 1)
        events.drains = True
        assert events.log[-1] == ("down", 0, "was killed by SIGKILL")
        assert subject.recycled[Why.CALLS] == 1, "it was planned"

    run(targets.worn_out_and_deaf, test, heartbeat=BEAT, limits=FIVE)


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_retires_and_has_calls_still_has_to_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "DUMP_GRACE", 0.1)

    async def test(subject: Arbiter, events: Events) -> None:
        events.busy = {0}
        await until(lambda: events.count("retiring") == 1)
        monkeypatch.setattr(arbiter, "MISSED_HEARTBEATS", 3)
        events.drains = True
        await until(lambda: any(entry[0] == "down" and entry[1] == 0 for entry in events.log))
        assert "heartbeat" in next(entry[2] for entry in events.log if entry[0] == "down" and entry[1] == 0)

    run(targets.worn_out_and_deaf, test, heartbeat=BEAT, limits=FIVE)


@pytest.mark.usefixtures("briskly")
def test_a_worker_that_grows_is_recycled_and_one_that_is_born_too_large_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1_000_000
    sizes: dict[int, int] = {}
    monkeypatch.setattr(arbiter, "resident_bytes", lambda pid: sizes.setdefault(pid, limit - 1))

    async def test(subject: Arbiter, events: Events) -> None:
        await until(lambda: events.count("up") == 2)
        await until(lambda: all(slot.memory for slot in subject.slots[:2]))
        sizes[subject.slots[1].pid or 0] = limit
        monkeypatch.setattr(arbiter, "resident_bytes", lambda pid: sizes.setdefault(pid, 2 * limit))
        await until(lambda: subject.recycled[Why.MEMORY] == 1)
        assert [entry[1] for entry in events.log if entry[0] == "retiring"] == [1]
        new = subject.slots[2]
        await until(lambda: new.memory == 2 * limit)
        heard = new.heard_at
        await until(lambda: new.heard_at > heard + 4 * BEAT)
        assert new.state is WorkerState.UP, "the next one would be as large"

    assert run(targets.worn_out, test, count=2, heartbeat=BEAT, limits=Limits(memory=limit)).count("retiring") == 1


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
