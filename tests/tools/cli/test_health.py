"""`callpool health` on real supervisors: well, with a worker that is stopped, draining, stopped itself, and gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import callpool as library
from callpool.manager import wire
from callpool.manager.exits import Exit
from callpool.tools.cli import health, options
from tests import ground

Run = Callable[..., CompletedProcess[str]]
CONFIG = """
[supervisor]
workers = 2
heartbeat_interval = 0.5
[providers.fake]
kind = "scripted"
[providers.fake.models.slow]
delay = 60.0
"""
SHAPE = {"healthy", "state", "reasons", "checks"}
CHECK = {"name", "ok", "value", "limit", "unit", "message"}
NAMES = [
    "loop_delay_p99", "loop_delay_last", "workers", "worker_0", "restarts", "descriptors", "memory", "disk_free", "sessions",
    "queue", "queue_bytes", "metrics_drift", "leases", "account_slots", "stopped_accounts",
    "journal", "draining",
]  # fmt: skip


def judged(done: CompletedProcess[str]) -> dict[str, Any]:
    """The JSON of a run, once it has the shape that every answer has."""
    assert done.stderr == ""
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts.keys() == SHAPE
    assert all(check.keys() == CHECK for check in facts["checks"])
    assert facts["healthy"] == (facts["state"] == "healthy") == (not facts["reasons"])
    assert {check["message"] for check in facts["checks"] if not check["ok"]} == set(facts["reasons"])
    return facts


@pytest.fixture
def own(alone: Run, base_folder: Path) -> Iterator[int]:
    """The pid of a supervisor of the test's own, with both workers up; it is drained at once at the end if it still runs."""
    config = base_folder / "callpool.toml"
    config.write_text(CONFIG)
    started = alone("start", "--detach", "--json", "--config", str(config))
    assert started.returncode == 0, started.stderr
    with library.connect() as client:
        ground.wait_for("both workers", lambda: all(each["state"] == "up" for each in client.status()["workers"]))
    yield json.loads(started.stdout)["pid"]
    alone("stop", "--timeout", "0")


@pytest.fixture
def frozen(supervisor: dict[str, str], asking: Run) -> Iterator[Callable[[], None]]:
    """What stops the shared supervisor; it goes on at the end."""
    pid = json.loads(asking("status", "--json").stdout)["pid"]
    yield lambda: os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)


def test_a_supervisor_that_is_well(callpool: Run, asking: Run) -> None:
    done = callpool("health", "--json")
    assert done.returncode == Exit.OK
    facts = judged(done)
    assert [check["name"] for check in facts["checks"]] == NAMES
    shown = asking("health")
    assert (shown.returncode, shown.stderr) == (Exit.OK, "")
    assert shown.stdout.startswith("healthy\n")
    assert all(name in shown.stdout for name in NAMES)
    assert "\x1b" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_a_stopped_worker_is_reported_by_its_number_and_pid(own: int, inside: Run) -> None:
    with library.connect() as client:
        victim = client.status()["workers"][1]["pid"]
        os.kill(victim, signal.SIGSTOP)
        found: list[dict[str, Any]] = []

        def reported() -> bool:
            done = inside("health", "--json")
            found[:] = [judged(done)]
            return done.returncode == Exit.UNHEALTHY

        ground.wait_for("the missing heartbeat", reported)
        assert found[0]["state"] == "degraded"
        assert [check["name"] for check in found[0]["checks"] if not check["ok"]] == ["worker_1"]
        assert f"(pid {victim}): " in found[0]["reasons"][0]
        with contextlib.suppress(ProcessLookupError):  # it may be replaced by now
            os.kill(victim, signal.SIGCONT)


def test_a_draining_supervisor_is_not_healthy(own: int, inside: Run, begin: Callable[..., Any]) -> None:
    with library.connect() as client, client.sessions.create_session("fake", "slow"):
        begin(dict(os.environ), "stop", "--timeout", "50")
        ground.wait_for("the drain", lambda: client.status()["state"] == "draining")
        done = inside("health", "--json")
        assert done.returncode == Exit.UNHEALTHY
        facts = judged(done)
        assert facts["state"] == "draining"
        assert [check["name"] for check in facts["checks"] if not check["ok"]] == ["draining"]
        shown = inside("health")
        assert shown.returncode == Exit.UNHEALTHY
        assert shown.stdout.startswith("draining\n- draining: no new requests")


def test_a_stopped_supervisor_is_told_before_a_deadline(
    asking: Run, frozen: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HANDSHAKE_DEADLINE", 0.3)
    frozen()
    done = asking("health", "--json")
    assert done.returncode == Exit.NOT_RUNNING
    facts = judged(done)
    assert facts["state"] == "unhealthy"
    assert [check["name"] for check in facts["checks"]] == ["answer"]
    assert "is it stopped?" in facts["reasons"][0]
    shown = asking("health")
    assert (shown.returncode, shown.stdout) == (Exit.NOT_RUNNING, "")
    assert "is it stopped?" in shown.stderr


def test_a_supervisor_that_stops_after_the_handshake_is_told_too(
    asking: Run, frozen: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect_and_freeze(address: str | None) -> library.Client:
        client = options.connect(address)
        frozen()
        return client

    monkeypatch.setattr(health, "connect", connect_and_freeze)
    monkeypatch.setattr(health, "ANSWER_WAIT", 0.2)
    done = asking("health", "--json")
    assert done.returncode == Exit.NOT_RUNNING
    assert "did not answer 'health' within 0.2 s" in judged(done)["reasons"][0]


def test_without_a_supervisor_the_answer_has_the_same_shape(inside: Run) -> None:
    done = inside("health", "--json")
    assert done.returncode == Exit.NOT_RUNNING
    assert "no supervisor runs at" in judged(done)["reasons"][0]
    shown = inside("health")
    assert (shown.returncode, shown.stdout) == (Exit.NOT_RUNNING, "")
    assert "callpool start" in shown.stderr


def test_each_status_means_one_thing() -> None:
    assert Exit(4) is Exit.UNHEALTHY
    assert len(Exit.__members__) == len(set(Exit))


def test_in_json_it_imports_nothing_that_it_has_no_use_for(supervisor: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-Im", "callpool", "health", "--json"],
        env=supervisor,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "callpool.manager.client" in imported
    assert not imported & {"rich", "psutil", "uvloop", "aiohttp", "callpool.manager.health"}
