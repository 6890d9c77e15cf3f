"""Each failpoint once: the process dies there, and the next supervisor makes of it what was promised. The provider's log is the judge."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

import callpool
from callpool.manager import failpoints
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.jobs.witness import Submitter, all_ended, ask, config, judge
from tests.acceptance.running import Running, alive, detached, eventually

JOBS = 8
AT_RESTART = ("recovery.read", "recovery.applied", "sweep.before", "sweep.after")
AT_DRAIN = ("drain.begun", "drain.done", "drain.closed")
AT_REST = ("checkpoint.before", "checkpoint.after")
SUPERVISOR = [each for each in failpoints.SUPERVISOR_POINTS if each not in AT_RESTART + AT_DRAIN]


def armed(fake: FakeProviderProcess, point: str, patch: pytest.MonkeyPatch) -> Running:
    """A supervisor that dies there, or a worker of it."""
    patch.setenv("CALLPOOL_FAILPOINT", point)
    running = detached(config(fake))
    patch.delenv("CALLPOOL_FAILPOINT")
    return running


def after(fake: FakeProviderProcess, acknowledged: list[str]) -> None:
    """What the next supervisor makes of it."""
    with detached(config(fake)) as supervisor:
        states = all_ended(supervisor)
        seen = judge(states, acknowledged, fake.log())
        again(supervisor, states)
        with supervisor.connect() as client:
            assert client.ask("check_journal")["problems"] == []
            assert client.status()["sessions"]["active_sessions"] == 0
    print(f"acknowledged {len(acknowledged)}, {dict(seen)}")


def again(supervisor: Running, states: dict[str, str]) -> None:
    """Every job can be asked for, and its answer is its own."""
    with supervisor.connect() as client:
        for request_id, state in states.items():
            if state == "completed":
                assert client.attach(request_id).result(5.0)["content"] == f"echo: {request_id}"


@pytest.mark.parametrize("point", SUPERVISOR)
def test_the_supervisor_dies_there(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"fake": {"fault": "http_503", "fault_times": 1}} if point.startswith("waits") else {}
    time = 1 if point in AT_REST else 3
    with FakeProviderProcess() as fake:
        with armed(fake, f"{point}:kill:{time}", monkeypatch) as supervisor:
            with supervisor.connect() as client, Submitter(client, JOBS, **more) as submitter:
                supervisor.ended()
            eventually(lambda: not alive(supervisor.family()), why="somebody outlived the supervisor")
        after(fake, submitter.acknowledged)


@pytest.mark.parametrize("point", failpoints.WORKER_POINTS)
def test_a_worker_dies_there(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new worker would die at its third call again: the jobs come to an end all the same."""
    with FakeProviderProcess() as fake, armed(fake, f"{point}:kill:3", monkeypatch) as supervisor:
        with supervisor.connect() as client, Submitter(client, JOBS) as submitter:
            pass
        assert len(submitter.acknowledged) == JOBS, submitter.errors
        states = all_ended(supervisor)
        judge(states, submitter.acknowledged, fake.log(), deaths=True)
        assert {worker["restarts"] for worker in supervisor.workers()} != {0}, "nobody died"


@pytest.mark.parametrize("point", AT_RESTART)
def test_the_supervisor_dies_as_it_takes_jobs_up(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeProviderProcess() as fake:
        acknowledged = left_behind(fake)
        monkeypatch.setenv("CALLPOOL_FAILPOINT", point)
        with (
            contextlib.suppress(callpool.CallpoolError),
            detached(config(fake)) as supervisor,
        ):  # it may not even get ready
            supervisor.ended()
        monkeypatch.delenv("CALLPOOL_FAILPOINT")
        after(fake, acknowledged)


def left_behind(fake: FakeProviderProcess) -> list[str]:
    """A supervisor is killed in the middle of its jobs; who was acknowledged."""
    with detached(config(fake)) as supervisor, supervisor.connect() as client:
        handles = [ask(client, f"job-{number}", fake={"delay": 0.3}) for number in range(JOBS)]
        fake.wait_for(lambda calls: len(calls) >= 2)
        os.kill(supervisor.pid, signal.SIGKILL)
        supervisor.ended()
    return [handle.request_id for handle in handles]


@pytest.mark.parametrize("point", AT_DRAIN)
def test_the_supervisor_dies_as_it_drains(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeProviderProcess() as fake:
        with armed(fake, point, monkeypatch) as supervisor:
            with supervisor.connect() as client, Submitter(client, JOBS) as submitter:
                pass
            os.kill(supervisor.pid, signal.SIGTERM)
            supervisor.ended()
        after(fake, submitter.acknowledged)


def test_a_failpoint_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLPOOL_FAILPOINT", "result.between")
    with FakeProviderProcess() as fake, pytest.raises(callpool.BadInput, match=r"no failpoint 'result.between'"):
        detached(config(fake))
