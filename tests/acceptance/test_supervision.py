"""Workers that die too fast, are recycled, or hang: what a user of the whole supervisor sees of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import callpool
from callpool.manager import arbiter, launch
from callpool.manager.core.restarts import MOST_STARTS, WINDOW
from callpool.manager.settings import SupervisorSettings
from tests.acceptance.running import HANG, HELLO, Running, detached, eventually, scripted

GARBAGE = b"\xc1"
"""What no worker can read its keys from: it fails in its first lines, as it would at an import."""


class Keys:
    """The memory file that workers read at their start, held by the test as well."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("callpool-test-keys")
        self.write(b"")

    def write(self, content: bytes) -> None:
        """What the next workers will read; nothing is what a supervisor without keys hands over."""
        os.truncate(self.descriptor, 0)
        os.pwrite(self.descriptor, content, 0)

    def plan(self, config: dict[str, Any]) -> launch.Plan:
        """A start whose workers read this file."""
        prepared = launch.plan(config, os.environ)
        os.dup2(self.descriptor, prepared._secrets, inheritable=True)
        return prepared


@pytest.fixture
def keys() -> Iterator[Keys]:
    held = Keys()
    yield held
    os.close(held.descriptor)


def supervisor_log() -> str:
    """All that the supervisor of this test, and its workers, have written."""
    return (Path(os.environ["CALLPOOL_HOME"]) / "logs" / "supervisor.log").read_text(errors="replace")


def test_a_start_without_any_worker_fails_soon_and_with_the_cause(keys: Keys) -> None:
    keys.write(GARBAGE)
    began = time.monotonic()
    with pytest.raises(callpool.StartFailed) as failed:
        launch.start_detached(keys.plan(scripted()))
    assert "no worker gets ready: worker" in failed.value.message
    assert "exited with code 1 (boot failure)" in failed.value.message
    assert time.monotonic() - began < launch.READY_DEADLINE
    assert "DecodeError" in supervisor_log(), "what the worker printed is there to be read"
    keys.write(b"")
    with Running(psutil.Process(launch.start_detached(keys.plan(scripted())).pid)) as again:
        assert again.worker_pids()


def test_a_starter_waits_until_a_worker_that_hangs_has_shown_where() -> None:
    shown = arbiter.START_DEADLINE + SupervisorSettings().heartbeat_interval + arbiter.DUMP_GRACE
    assert shown < launch.READY_DEADLINE


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_cause_that_stays_costs_15_starts_a_minute_and_is_told_and_one_that_goes_is_forgotten(keys: Keys) -> None:
    """With the times of the product. Starts are those that the log tells of: each of them ends with a line there."""
    with Running(psutil.Process(launch.start_detached(keys.plan(scripted())).pid)) as supervisor:
        client = supervisor.connect()
        eventually(lambda: len(supervisor.worker_pids()) == 2)
        keys.write(GARBAGE)
        began = time.monotonic()
        spent = sum(supervisor.process.cpu_times()[:4])
        for pid in supervisor.worker_pids():
            os.kill(pid, signal.SIGKILL)
        told = eventually(lambda: [each for each in client.health()["reasons"] if "too fast" in each], within=5.0)
        assert "exited with code 1 (boot failure)" in told[0]
        eventually(lambda: time.monotonic() - began >= WINDOW, within=2 * WINDOW)
        starts = client.status()["supervision"]["boot_failures"]
        assert 4 <= starts <= MOST_STARTS
        assert (sum(supervisor.process.cpu_times()[:4]) - spent) / WINDOW < 0.1
        keys.write(b"")
        eventually(lambda: client.health()["healthy"], within=35.0, why=str(client.health()["reasons"]))
        assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)["content"] == "hello"
        client.close()


def test_recycled_workers_lose_no_call() -> None:
    config = scripted(m={"reply": "hello"}, slow={"reply": "late", "delay": 1.0})
    config["supervisor"] = {"max_calls_per_worker": 5, "heartbeat_interval": 0.2}
    with detached(config) as supervisor, supervisor.connect() as client:
        before = set(supervisor.worker_pids())
        slow = [client.submit(provider="fake", model="slow", messages=HELLO) for _ in range(4)]
        quick = [
            client.submit(provider="fake", model="m", messages=HELLO, affinity=f"talk {number % 3}")
            for number in range(40)
        ]
        assert [handle.result(HANG)["content"] for handle in quick] == ["hello"] * 40
        status = eventually(
            lambda: (now := client.status())["supervision"]["recycled"]["calls"] and now, why="nobody was recycled"
        )
        assert [handle.result(HANG)["content"] for handle in slow] == ["late"] * 4
        assert sum(row["recycled"] for row in status["workers"]) == status["supervision"]["recycled"]["calls"]
        assert client.sessions.get_metrics()["workers"]["recycled"]["calls"] >= 1
        eventually(lambda: len(supervisor.worker_pids()) == 2)
        assert set(supervisor.worker_pids()) != before
        status = client.status()
        assert [row["restarts"] for row in status["workers"]] == [0, 0]
        assert (status["supervision"]["state"], status["supervision"]["deaths_last_minute"]) == ("steady", 0)
        assert client.health()["healthy"]
        assert client.submit(provider="fake", model="m", messages=HELLO, affinity="talk 1").result(HANG)
    assert " WARNING " not in supervisor_log(), "what is planned is no reason to warn"


def test_a_drain_that_begins_while_a_worker_retires_waits_for_its_call() -> None:
    config = scripted(m={"reply": "hello"}, slow={"reply": "late", "delay": 2.0})
    config["supervisor"] = {"workers": 1, "max_calls_per_worker": 1, "heartbeat_interval": 0.1}
    with detached(config) as supervisor, supervisor.connect() as client:
        slow = client.submit(provider="fake", model="slow", messages=HELLO)
        assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)
        eventually(lambda: "retiring" in {row["state"] for row in client.status()["workers"]})
        drained = client.drain(timeout=HANG)
        assert slow.result(HANG)["content"] == "late"
        assert (drained["finished"], drained["interrupted"], drained["timeout_reached"]) == (1, 0, False)
        supervisor.ended()


def test_a_worker_stuck_in_a_sleep_shows_where_before_it_is_killed() -> None:
    config = scripted(stuck={"error": "block"}, m={"reply": "fine"})
    config["supervisor"] = {"heartbeat_interval": 0.2}
    with detached(config) as supervisor, supervisor.connect() as client:
        error = client.submit(provider="fake", model="stuck", messages=HELLO).exception(HANG)
        assert isinstance(error, callpool.WorkerLost)
        eventually(lambda: len(supervisor.worker_pids()) == 2)
        said = supervisor_log()
        assert "Fatal Python error: Aborted" in said
        assert "script_faults.py" in said.partition("Fatal Python error: Aborted")[2]
        [row] = [row for row in client.status()["workers"] if row["restarts"]]
        assert (row["restarts"], row["last_failure"]) == (1, "run")
        assert "(run failure)" in said
