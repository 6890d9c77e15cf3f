"""The drain ladder: signals, deadlines, the report."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import (
    HANG,
    HELLO,
    Foreground,
    alive,
    as_toml,
    detached,
    eventually,
    openai_at,
    scripted,
)

SIX = {
    "shutdown_duration",
    "initial_active_sessions",
    "final_active_sessions",
    "sessions_completed_during_shutdown",
    "timeout_reached",
    "total_sessions_at_shutdown",
}


@pytest.fixture
def fake() -> Iterator[FakeProviderProcess]:
    with FakeProviderProcess(delay=0.5) as process:
        yield process


def _foreground(base_folder: Path, config: dict[str, object]) -> Foreground:
    return Foreground(as_toml(config, base_folder / "config.toml"), base_folder / "output")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_what_was_accepted(
    base_folder: Path, fake: FakeProviderProcess, signum: signal.Signals
) -> None:
    """Also when it goes to every process of the group, as Ctrl-C and service managers do."""
    config = openai_at(fake.base_url, concurrency=2)
    with _foreground(base_folder, config) as supervisor, supervisor.connect() as client:
        handles = [client.submit(provider="fake", model="m", messages=HELLO) for _ in range(4)]
        fake.wait_for(lambda calls: len(calls) == 2)
        supervisor.signal_group(signum)
        eventually(lambda: client.status()["state"] == "draining")
        with pytest.raises(callpool.ShuttingDown) as refusal:
            client.submit(provider="fake", model="m", messages=HELLO)
        assert refusal.value.message == "Session manager is shutting down, cannot create new sessions"
        assert [handle.result(HANG)["content"] for handle in handles] == ["echo: hello"] * 4
        assert supervisor.status() == 0
        report = json.loads((base_folder / "home" / "drain-report.json").read_text())
    assert {key: report[key] for key in ("finished", "parked", "cancelled", "interrupted")} == {
        "finished": 4,
        "parked": 0,
        "cancelled": 0,
        "interrupted": 0,
    }
    assert set(report) >= SIX
    assert report["initial_active_sessions"] == 2
    assert report["sessions_completed_during_shutdown"] == 4
    assert report["timeout_reached"] is False


def test_the_second_signal_cuts_and_closes_the_providers_sockets(base_folder: Path) -> None:
    with FakeProviderProcess(delay=60.0) as slow:
        config = openai_at(slow.base_url, concurrency=2)
        with _foreground(base_folder, config) as supervisor, supervisor.connect() as client:
            handles = [client.submit(provider="fake", model="m", messages=HELLO) for _ in range(3)]
            slow.wait_for(lambda calls: len(calls) == 2)
            supervisor.signal_group(signal.SIGINT)
            eventually(lambda: client.status()["state"] == "draining")
            supervisor.signal_group(signal.SIGINT)
            assert all(isinstance(handle.exception(HANG), callpool.RequestCancelled) for handle in handles)
            assert supervisor.status(within=5.0) == 0
            slow.wait_for(lambda calls: [call.outcome for call in calls] == ["client_gone"] * 2)
            report = json.loads((base_folder / "home" / "drain-report.json").read_text())
    assert report["cancelled"] == 3
    assert report["final_active_sessions"] == 2
    assert report["timeout_reached"] is True


def test_the_third_signal_kills(base_folder: Path) -> None:
    """A worker that is stuck in C cannot acknowledge the cut: only the third signal ends that drain at once."""
    config = scripted(stuck={"error": "block"}, m={"reply": "hello"})
    config["supervisor"] = {"heartbeat_interval": 30.0}
    with _foreground(base_folder, config) as supervisor, supervisor.connect() as client:
        family = supervisor.family()
        handle = client.submit(provider="fake", model="stuck", messages=HELLO)
        eventually(lambda: handle.state == "processing")
        for count in (1, 2, 3):
            supervisor.process.send_signal(signal.SIGTERM)
            eventually(lambda count=count: supervisor.output().count("SIGTERM") == count)  # type: ignore[misc]
        assert supervisor.status(within=5.0) == 137
        eventually(lambda: not alive(family), within=2.0)


def test_a_drain_ends_at_its_deadline_with_the_truth() -> None:
    """Twenty sessions that never finish, one worker of two stuck: the report says who was cut and who is in doubt."""
    config = scripted(hang={"error": "hang"}, stuck={"error": "block"})
    config["supervisor"] = {"heartbeat_interval": 30.0}
    with detached(config) as supervisor, supervisor.connect() as client:
        stuck = client.submit(provider="fake", model="stuck", messages=HELLO)
        eventually(lambda: stuck.state == "processing")
        stuck_worker = client.show(stuck.request_id)["worker"]
        handles = [client.submit(provider="fake", model="hang", messages=HELLO) for _ in range(20)]
        on_the_other = [h for h in handles if client.show(h.request_id)["worker"] != stuck_worker]
        for handle in on_the_other:
            eventually(lambda handle=handle: handle.state == "processing")  # type: ignore[misc]
        report = client.drain(timeout=0.2, wait=HANG)
        supervisor.ended()
        assert isinstance(stuck.exception(HANG), callpool.RequestInterrupted)
        assert all(isinstance(handle.exception(HANG), callpool.RequestCancelled) for handle in handles)
    assert report["timeout_reached"] is True
    assert report["final_active_sessions"] == 21
    assert report["cancelled"] == 20
    assert report["interrupted"] == 1
    assert report["finished"] == 0


def test_an_idle_supervisor_drains_at_once_and_leaves_nothing(base_folder: Path) -> None:
    with detached(scripted()) as supervisor:
        family = supervisor.family()
        with supervisor.connect() as client:
            report = client.drain(wait=HANG)
        supervisor.ended()
        eventually(lambda: not alive(family), within=5.0)
    assert report["initial_active_sessions"] == 0
    assert sorted(path.name for path in (base_folder / "run").iterdir()) == ["supervisor.lock"]
    with pytest.raises(callpool.NotRunning):
        callpool.connect()


def test_a_report_that_cannot_be_written_does_not_stop_the_shutdown(base_folder: Path) -> None:
    with detached(scripted()) as supervisor:
        family = supervisor.family()
        (base_folder / "home" / "drain-report.json").mkdir()  # something is in the way
        with supervisor.connect() as client:
            assert client.drain(wait=HANG)["finished"] == 0
        supervisor.ended()
        eventually(lambda: not alive(family), within=5.0)
    assert sorted(path.name for path in (base_folder / "run").iterdir()) == ["supervisor.lock"]
    assert "drain report cannot be kept" in (base_folder / "home" / "logs" / "supervisor.log").read_text()
