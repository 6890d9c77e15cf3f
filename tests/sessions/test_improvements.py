"""The fifteen tests that the specification asks for beyond its load tests, against a real supervisor.

Three of metadata, four of shutdown, five of metrics, three of capacity.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from callpool import CapacityExceeded, MetadataTooLarge, Session, SessionManager, ShuttingDown


@pytest.fixture
def manager() -> Iterator[SessionManager]:
    with SessionManager(max_concurrent_sessions=5) as made:
        yield made


def finished(manager: SessionManager, how: str = "complete") -> None:
    session = manager.create_session("kimi", "kimi-k3")
    session.start()
    getattr(session, how)()
    manager.release_session(session.request_id)


class TestMetadata:
    def test_metadata_over_the_limit_is_rejected(self, manager: SessionManager) -> None:
        with pytest.raises(
            MetadataTooLarge, match=r"^Metadata size \(10252 bytes\) exceeds limit \(10240 bytes\)$"
        ) as error:
            manager.create_session("kimi", "kimi-k3", text="x" * 10_240)
        assert isinstance(error.value, RuntimeError)
        assert (error.value.size, error.value.limit) == (10_252, 10_240)
        statistics = manager.get_statistics()
        assert (statistics["sessions_rejected_metadata_size"], statistics["active_sessions"]) == (1, 0)

    def test_metadata_is_measured_as_the_specification_writes_it(self, manager: SessionManager) -> None:
        manager.create_session("kimi", "kimi-k3", "r1", k="é😀")
        assert manager.get_statistics()["current_metadata_bytes"] == 27
        odd: dict[str, Any] = {"when": {1, 2}, "nested": {"é": [None, 1.5]}}
        manager.create_session("kimi", "kimi-k3", "r2", **odd)
        assert manager.get_statistics()["current_metadata_bytes"] == 27 + len(
            json.dumps(odd, default=str).encode("utf-8")
        )

    def test_metadata_bytes_are_given_back_exactly(self, manager: SessionManager) -> None:
        sessions = [manager.create_session("kimi", "kimi-k3", text="ü" * number) for number in range(5)]
        held = manager.get_statistics()["current_metadata_bytes"]
        assert held == sum(len(json.dumps({"text": "ü" * number}).encode()) for number in range(5))
        for left in (4, 3, 2, 1, 0):
            manager.release_session(sessions[left].request_id)
            statistics = manager.get_statistics()
            assert (statistics["metrics_drift"], statistics["active_sessions"]) == (0, left)
            rest = sum(len(json.dumps({"text": "ü" * number}).encode()) for number in range(left))
            assert statistics["current_metadata_bytes"] == rest


class TestShutdown:
    def test_shutdown_refuses_new_sessions_at_once(self, manager: SessionManager) -> None:
        session = manager.create_session("kimi", "kimi-k3")
        with ThreadPoolExecutor(1) as pool:
            shutdown = pool.submit(manager.shutdown, 20.0)
            while not manager.get_statistics()["shutdown_requested"]:
                pass
            with pytest.raises(
                ShuttingDown, match="^Session manager is shutting down, cannot create new sessions$"
            ) as error:
                manager.create_session("kimi", "kimi-k3")
            assert isinstance(error.value, RuntimeError)
            session.fail("no time")
            assert shutdown.result()["final_active_sessions"] == 0
        with pytest.raises(ShuttingDown, match="^Session manager is shutting down, cannot create new sessions$"):
            manager.create_session("kimi", "kimi-k3")

    def test_shutdown_waits_for_active_sessions(self, manager: SessionManager) -> None:
        sessions = [manager.create_session("kimi", "kimi-k3") for _ in range(4)]
        begun = threading.Event()

        def finish(session: Session) -> None:
            begun.wait()
            session.start()
            session.complete()
            manager.release_session(session.request_id)

        with ThreadPoolExecutor(5) as pool:
            shutdown = pool.submit(manager.shutdown, 20.0)
            while not manager.get_statistics()["shutdown_requested"]:
                pass
            begun.set()
            for each in [pool.submit(finish, session) for session in sessions]:
                each.result()
            figures = shutdown.result()
        assert figures.pop("shutdown_duration") < 20.0
        assert figures == {
            "initial_active_sessions": 4,
            "final_active_sessions": 0,
            "sessions_completed_during_shutdown": 4,
            "timeout_reached": False,
            "total_sessions_at_shutdown": 4,
        }

    def test_shutdown_returns_at_its_timeout_with_the_truth(
        self, manager: SessionManager, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(3):
            manager.create_session("kimi", "kimi-k3")
        figures = manager.shutdown(timeout_seconds=0.3)
        assert figures["shutdown_duration"] >= 0.3
        assert (figures["final_active_sessions"], figures["timeout_reached"]) == (3, True)
        assert "3 sessions still active" in caplog.text

    def test_shutdown_of_an_idle_manager_is_quick_and_twice_is_once(self, manager: SessionManager) -> None:
        finished(manager)
        figures = manager.shutdown()
        assert (figures["initial_active_sessions"], figures["total_sessions_at_shutdown"]) == (0, 1)
        assert figures["shutdown_duration"] < 1.0, "nothing was waited for"
        assert manager.shutdown() == figures
        statistics = manager.get_statistics()
        assert (statistics["shutdown_requested"], statistics["total_sessions_completed"]) == (True, 1)
        assert manager.get_active_sessions() == []


class TestMetrics:
    def test_lifetime_counters_survive_releases(self, manager: SessionManager) -> None:
        for how in ("complete", "complete", "fail", "timeout"):
            finished(manager, how)
        statistics = manager.get_statistics()
        expected = {"created": 4, "completed": 2, "error": 1, "timeout": 1}
        for name, count in expected.items():
            assert statistics[f"lifetime_total_{name}"] == statistics[f"total_sessions_{name}"] == count
        assert statistics["active_sessions"] == 0

    def test_rates_divide_by_all_ended_sessions(self, manager: SessionManager) -> None:
        before = manager.get_metrics()
        assert (before["success_rate"], before["error_rate"], before["timeout_rate"]) == (0.0, 0.0, 0.0)
        for how in ("complete", "complete", "fail", "timeout"):
            finished(manager, how)
        manager.release_session(manager.create_session("kimi", "kimi-k3").request_id)
        after = manager.get_metrics()
        assert (after["success_rate"], after["error_rate"], after["timeout_rate"]) == (2 / 5, 1 / 5, 1 / 5)
        assert after["providers"]["kimi"] == {"ended": 5, "error_rate": 1 / 5, "timeout_rate": 1 / 5}

    def test_the_average_duration_is_that_of_the_ended_sessions(self, manager: SessionManager) -> None:
        durations = []
        for _ in range(5):
            session = manager.create_session("kimi", "kimi-k3")
            session.start()
            session.complete()
            durations.append(session.get_duration())
            manager.release_session(session.request_id)
        mean = sum(round(duration * 1_000_000_000) for duration in durations) / 5 / 1_000_000_000
        metrics = manager.get_metrics()
        assert metrics["average_session_duration"] == pytest.approx(mean, abs=1e-9)
        assert metrics["duration_seconds"]["count"] == 5
        assert metrics["duration_seconds"]["min"] == min(durations)
        assert metrics["duration_seconds"]["max"] == max(durations) >= metrics["duration_seconds"]["p50"]

    def test_the_peak_is_the_most_that_were_active_at_once(self, manager: SessionManager) -> None:
        for _ in range(3):
            finished(manager)
        assert manager.get_statistics()["peak_concurrent_sessions"] == 1
        held = [manager.create_session("kimi", "kimi-k3") for _ in range(4)]
        for session in held:
            manager.release_session(session.request_id)
        finished(manager)
        assert manager.get_statistics()["peak_concurrent_sessions"] == 4

    def test_a_reset_zeroes_counters_and_leaves_live_sessions(self, manager: SessionManager) -> None:
        finished(manager)
        session = manager.create_session("kimi", "kimi-k3", text="x" * 10)
        manager.reset_metrics()
        metrics = manager.get_metrics()
        assert (metrics["total_sessions_created"], metrics["lifetime_total_completed"], metrics["success_rate"]) == (
            0,
            0,
            0.0,
        )
        assert (metrics["active_sessions"], metrics["current_metadata_bytes"]) == (1, 22)
        assert (metrics["sessions_live_at_reset"], metrics["peak_concurrent_sessions"]) == (1, 1)
        session.start()
        session.complete()
        after = manager.get_metrics()
        assert (after["total_sessions_completed"], after["success_rate"]) == (1, 1.0)
        assert after["average_session_duration"] == pytest.approx(session.get_duration(), abs=1e-9)
        assert after["lock"]["acquisitions"] > 0
        assert after["creation_latency_seconds"]["count"] == 0


class TestCapacity:
    def test_at_the_limit_a_session_is_rejected_with_both_numbers(self, manager: SessionManager) -> None:
        for _ in range(5):
            manager.create_session("kimi", "kimi-k3")
        with pytest.raises(
            CapacityExceeded, match=r"^Maximum concurrent sessions reached \(limit 5, active 5\)$"
        ) as error:
            manager.create_session("kimi", "kimi-k3")
        assert isinstance(error.value, RuntimeError)
        assert (error.value.limit, error.value.active) == (5, 5)
        assert len(manager.get_active_sessions()) == 5

    def test_a_slot_that_is_given_back_is_free(self, manager: SessionManager) -> None:
        sessions = [manager.create_session("kimi", "kimi-k3") for _ in range(5)]
        sessions[0].start()
        sessions[0].complete()
        sessions.append(manager.create_session("kimi", "kimi-k3"))
        manager.release_session(sessions[1].request_id)
        sessions.append(manager.create_session("kimi", "kimi-k3"))
        assert manager.get_statistics()["active_sessions"] == 5
        assert manager.get_statistics()["peak_concurrent_sessions"] == 5

    def test_each_rejection_is_counted_once_and_executing_rejects_too(self, manager: SessionManager) -> None:
        for _ in range(5):
            manager.create_session("kimi", "kimi-k3")
        ran: list[int] = []
        with pytest.raises(CapacityExceeded):
            manager.execute_with_session("kimi", "kimi-k3", ran.append, 1)
        for _ in range(6):
            with pytest.raises(CapacityExceeded):
                manager.create_session("kimi", "kimi-k3")
        statistics = manager.get_statistics()
        assert (statistics["sessions_rejected_capacity"], statistics["total_sessions_created"], ran) == (7, 5, [])
