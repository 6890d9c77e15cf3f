"""kill -9 of a worker, of the supervisor, of a client: one death costs its own calls only, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import HANG, HELLO, alive, detached, eventually, openai_at, scripted

CLIENT = """
import sys, callpool
client = callpool.connect(sys.argv[1])
handles = [client.submit(provider="fake", model="m", messages=[{"role": "user", "content": "hello"}]) for _ in range(4)]
print("submitted", flush=True)
sys.stdin.read()
"""


def test_a_killed_worker_costs_its_own_calls_only_and_is_replaced() -> None:
    with FakeProviderProcess(delay=1.0) as fake, detached(openai_at(fake.base_url)) as supervisor:
        with supervisor.connect() as client:
            handles = [client.submit(provider="fake", model="m", messages=HELLO) for _ in range(20)]
            fake.wait_for(lambda calls: len(calls) == 20)
            shown = [client.show(handle.request_id) for handle in handles]
            victim = supervisor.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)
            killed_at = time.monotonic()
            eventually(
                lambda: len(set(supervisor.worker_pids()) - {victim}) == 2, within=2.0, why="no replacement in 2 s"
            )
            replaced_after = time.monotonic() - killed_at
            outcomes = [handle.exception(HANG) for handle in handles]
            workers = {record["worker"] for record in shown}
            assert len(workers) == 2, "both workers had calls"
            lost = [record["worker"] for record, error in zip(shown, outcomes, strict=True) if error is not None]
            assert len(set(lost)) == 1, "calls of the other worker were touched"
            assert len(lost) == sum(record["worker"] == lost[0] for record in shown)
            assert all(isinstance(error, callpool.WorkerLost) for error in outcomes if error is not None)
            assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)
            status = client.status()
        assert status["sessions"]["active_sessions"] == 0
        assert status["sessions"]["total_sessions_interrupted"] == len(lost)
        assert status["accounts"][0]["active"] == 0
        # The lost calls were not repeated: they may have been billed.
        assert len(fake.log()) == 21
        print(f"replaced after {replaced_after:.3f} s")


def test_a_call_that_had_not_started_is_made_by_another_worker() -> None:
    """Both workers are stopped with orders in their pipes: none of the calls has started when they are killed."""
    config = scripted(m={"reply": "hello"})
    config["supervisor"] = {"heartbeat_interval": 10.0}  # they are killed by the test, not for their silence
    with detached(config) as supervisor, supervisor.connect() as client:
        pids = supervisor.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            process = psutil.Process(pid)
            eventually(lambda process=process: process.status() == psutil.STATUS_STOPPED)  # type: ignore[misc]
        handles = [client.submit(provider="fake", model="m", messages=HELLO) for _ in range(10)]
        assert {client.show(handle.request_id)["state"] for handle in handles} == {"allocated"}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert [handle.result(HANG)["content"] for handle in handles] == ["hello"] * 10
        assert {client.show(handle.request_id)["attempt"] for handle in handles} <= {2, 3}, (
            "3: it met the other victim too"
        )


@pytest.mark.parametrize("fault", ["crash", "exit"])
def test_a_call_that_kills_its_worker_ends_in_doubt(fault: str) -> None:
    with detached(scripted(bad={"error": fault}, m={"reply": "fine"})) as supervisor, supervisor.connect() as client:
        error = client.submit(provider="fake", model="bad", messages=HELLO).exception(HANG)
        assert isinstance(error, callpool.WorkerLost)
        assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)["content"] == "fine"


def test_a_worker_that_stops_beating_is_ended_and_replaced() -> None:
    config = scripted(stuck={"error": "block"}, m={"reply": "fine"})
    config["supervisor"] = {"heartbeat_interval": 0.1}
    with detached(config) as supervisor, supervisor.connect() as client:
        before = set(supervisor.worker_pids())
        error = client.submit(provider="fake", model="stuck", messages=HELLO).exception(HANG)
        assert isinstance(error, callpool.WorkerLost)
        assert "heartbeat" in error.message
        eventually(lambda: len(set(supervisor.worker_pids()) - before) == 1)
        assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)["content"] == "fine"


def test_a_stopped_worker_is_ended_and_replaced() -> None:
    config = scripted()
    config["supervisor"] = {"heartbeat_interval": 0.1}
    with detached(config) as supervisor:
        victim = psutil.Process(supervisor.worker_pids()[0])
        victim.suspend()
        eventually(lambda: not victim.is_running(), why="the stopped worker lives on")
        eventually(lambda: len(supervisor.worker_pids()) == 2)


def test_a_stopped_supervisor_does_not_blame_its_workers() -> None:
    config = scripted()
    config["supervisor"] = {"heartbeat_interval": 0.1}
    with detached(config) as supervisor:
        before = supervisor.worker_pids()
        supervisor.process.suspend()
        time.sleep(2.5)  # longer than its own patience with workers: what is tested is that this time does not count
        supervisor.process.resume()
        with supervisor.connect() as client:
            beats = [worker["restarts"] for worker in client.status()["workers"]]
        assert beats == [0, 0]
        assert supervisor.worker_pids() == before


@pytest.mark.parametrize("state", ["idle", "busy", "stopped"])
def test_nothing_survives_a_killed_supervisor_and_the_next_one_starts_at_once(state: str) -> None:
    config = scripted(hang={"error": "hang"}, stuck={"error": "block"}, m={"reply": "hello"})
    config["supervisor"] = {"heartbeat_interval": 5.0}
    with detached(config) as first:
        family = first.family()
        assert len(family) >= 3
        with first.connect() as client:
            if state == "busy":
                client.submit(provider="fake", model="hang", messages=HELLO)
                stuck = client.submit(provider="fake", model="stuck", messages=HELLO)
                eventually(lambda: stuck.state == "processing")
            if state == "stopped":
                for pid in first.worker_pids():
                    os.kill(pid, signal.SIGSTOP)
            pending = client.submit(provider="fake", model="hang", messages=HELLO)
            os.kill(first.pid, signal.SIGKILL)
            assert isinstance(pending.exception(HANG), callpool.ConnectionLost)
        eventually(lambda: not alive(family), within=2.0, why=f"alive after 2 s: {alive(family)}")
        with detached(config) as second, second.connect() as client:
            assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)["content"] == "hello"


def test_a_dead_clients_calls_are_cancelled_at_the_provider() -> None:
    with (
        FakeProviderProcess(delay=60.0) as fake,
        detached(openai_at(fake.base_url)) as supervisor,
        supervisor.connect() as client,
    ):
        command = [sys.executable, "-Ic", CLIENT, client.address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"submitted\n"
            fake.wait_for(lambda calls: len(calls) == 4)
            other.kill()
            calls = fake.wait_for(lambda calls: all(call.outcome == "client_gone" for call in calls))
        assert len(calls) == 4
        status = eventually(lambda: (now := client.status())["sessions"]["active_sessions"] == 0 and now)
        assert status["sessions"]["total_sessions_cancelled"] == 4
        assert status["accounts"][0]["active"] == 0


def test_a_forked_child_that_holds_the_socket_does_not_keep_its_dead_parents_calls_alive() -> None:
    forking = CLIENT.replace(
        'print("submitted", flush=True)',
        "import os\nif os.fork() == 0:\n    os.close(1)\n    sys.stdin.read()\n    os._exit(0)\nprint('submitted', flush=True)",
    )
    with (
        FakeProviderProcess(delay=60.0) as fake,
        detached(openai_at(fake.base_url)) as supervisor,
        supervisor.connect() as client,
    ):
        command = [sys.executable, "-Ic", forking, client.address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"submitted\n"
            fake.wait_for(lambda calls: len(calls) == 4)
            other.kill()
            fake.wait_for(lambda calls: all(call.outcome == "client_gone" for call in calls))
        eventually(lambda: client.status()["sessions"]["active_sessions"] == 0)
