"""Working in a session: in the caller's process and in one that can be killed, and every way that it can end."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import callpool
from callpool import BadInput, FunctionsRefused, RequestTimeout, SessionManager, WorkerLost
from tests.acceptance.running import HANG, eventually
from tests.sessions import programs

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE")
COUNTS = ("completed", "error", "timeout", "cancelled", "interrupted")


@pytest.fixture
def manager() -> Iterator[SessionManager]:
    with SessionManager() as made:
        yield made


def ended(manager: SessionManager) -> dict[str, int]:
    """How sessions ended; and nothing is held any more."""
    statistics = manager.get_statistics()
    assert (statistics["active_sessions"], statistics["current_metadata_bytes"], statistics["metrics_drift"]) == (
        0,
        0,
        0,
    )
    return {name: statistics[f"total_sessions_{name}"] for name in COUNTS if statistics[f"total_sessions_{name}"]}


class Peculiar(Exception):
    def __init__(self, number: int, *, word: str) -> None:
        super().__init__(f"{number} {word}")
        self.number, self.word = number, word


def test_results_and_exceptions_pass_unchanged(manager: SessionManager) -> None:
    shared = {"content": "hi", "metadata": {"mine": 1}}
    result = manager.execute_with_session("kimi", "k3", lambda: shared, request_id="r1")
    session = result["metadata"]["session"]
    assert (session["request_id"], result["metadata"]["mine"], result["content"]) == ("r1", 1, "hi")
    assert session["session_id"].startswith("session_")
    assert 0.0 <= session["duration_seconds"] < HANG
    assert shared == {"content": "hi", "metadata": {"mine": 1}}, "a dict that the function shares is its own"
    for value in (None, 5, ["x"], {"metadata": "text"}):
        assert manager.execute_with_session("kimi", "k3", lambda value=value: value) == value
    assert manager.execute_with_session("kimi", "k3", dict, a=1, add_session_context=False) == {"a": 1}
    assert manager.execute_with_session("kimi", "k3", lambda *a, **k: [a, k], 1, timeout=2) == [(1,), {"timeout": 2}]
    error = Peculiar(7, word="x")

    def fails() -> None:
        raise error

    with pytest.raises(Peculiar) as caught:
        manager.execute_with_session("kimi", "k3", fails)
    assert caught.value is error
    with pytest.raises(TimeoutError, match="its own"):
        manager.execute_with_session("kimi", "k3", _raises_timeout)
    assert ended(manager) == {"completed": 7, "error": 2}


def _raises_timeout() -> None:
    raise TimeoutError("its own")


def test_the_container_tells_each_outcome(manager: SessionManager) -> None:
    good = manager.execute_sync("kimi", "k3", lambda: 5)
    assert (good.result, good.exception, good.completed) == (5, None, True)
    bad = manager.execute_sync("kimi", "k3", _raises_timeout)
    assert (bad.result, str(bad.exception), bad.completed) == (None, "its own", False)
    late = manager.execute_sync("kimi", "k3", time.sleep, 0.3, timeout_seconds=0.01)
    assert isinstance(late.exception, RequestTimeout)
    refused = manager.execute_sync("kimi", "k3", 5)  # type: ignore[arg-type]
    assert isinstance(refused.exception, BadInput)
    assert ended(manager) == {"completed": 1, "error": 1, "timeout": 1}
    eventually(lambda: manager.get_metrics()["abandoned_threads"] == 0)


def test_a_thread_that_cannot_be_stopped_is_counted_until_it_ends(manager: SessionManager) -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError, match=r"the session did not end within 0\.05 s") as error:
        manager.execute_with_session("kimi", "k3", release.wait, HANG, timeout_seconds=0.05)
    assert (error.value.seconds, error.value.which) == (0.05, "total")  # type: ignore[attr-defined]
    assert ended(manager) == {"timeout": 1}
    assert manager.get_metrics()["abandoned_threads"] == 1
    release.set()
    eventually(lambda: manager.get_metrics()["abandoned_threads"] == 0)


def test_work_without_enforcement_runs_in_the_callers_thread_and_keeps_its_result(manager: SessionManager) -> None:
    thread = manager.execute_with_session("kimi", "k3", threading.get_ident, enforce_timeout=False)
    assert thread == threading.get_ident()
    late = manager.execute_with_session("kimi", "k3", time.sleep, 0.05, timeout_seconds=0.01, enforce_timeout=False)
    assert late is None
    VARIABLE.set("mine")
    assert manager.execute_with_session("kimi", "k3", VARIABLE.get) == "mine"
    assert ended(manager) == {"completed": 3}


def test_a_coroutine_is_run_and_at_its_timeout_really_cancelled(manager: SessionManager) -> None:
    seen: list[str] = []

    async def work(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return "done"

    assert manager.execute_with_session("kimi", "k3", work, 0) == "done"
    assert manager.execute_with_session("kimi", "k3", work, 0, enforce_timeout=False) == "done"
    with pytest.raises(TimeoutError):
        manager.execute_with_session("kimi", "k3", work, HANG, timeout_seconds=0.05)
    assert (seen, manager.get_metrics()["abandoned_threads"]) == (["cancelled"], 0)
    assert ended(manager) == {"completed": 2, "timeout": 1}


def test_a_function_in_a_worker_process_is_another_process_and_killed_at_its_timeout(manager: SessionManager) -> None:
    # What is defined here has no name that another process could import, and travels by value.
    local = {"factor": 6}

    class Odd(Exception):
        def __init__(self, number: int) -> None:
            super().__init__(number)
            self.number = number

    def raises() -> None:
        raise Odd(7)

    def spin() -> None:
        while True:
            pass

    def take_a_second() -> str:
        time.sleep(1.0)
        return "undisturbed"

    def multiply(number: int) -> dict[str, Any]:
        return {"pid": os.getpid(), "product": number * local["factor"]}

    result = manager.execute_with_session("kimi", "k3", multiply, 7, where="worker")
    assert result["product"] == 42
    assert result["pid"] != os.getpid()
    assert result["metadata"]["session"]["session_id"].startswith("session_")
    with pytest.raises(Odd) as error:
        manager.execute_with_session("kimi", "k3", raises, where="worker")
    assert (error.value.number, error.value.args) == (7, (7,))
    hanging: list[BaseException] = []
    neighbour = threading.Thread(
        target=lambda: hanging.append(
            manager.execute_sync("kimi", "k3", spin, where="worker", timeout_seconds=0.5).exception  # type: ignore[arg-type]
        )
    )
    neighbour.start()
    assert manager.execute_with_session("kimi", "k3", take_a_second, where="worker") == "undisturbed"
    neighbour.join(HANG)
    assert isinstance(hanging[0], TimeoutError)
    with pytest.raises(WorkerLost, match="exited with code 3"):
        manager.execute_with_session("kimi", "k3", os._exit, 3, where="worker")
    assert ended(manager) == {"completed": 2, "error": 1, "timeout": 1, "interrupted": 1}
    spinning = [each for each in psutil.Process().children(recursive=True) if each.cpu_percent(0.05) > 50.0]
    assert not spinning, "what timed out is dead"


@pytest.mark.parametrize("where", ["caller", "worker"])
def test_ctrl_c_ends_the_session_as_cancelled(manager: SessionManager, where: str) -> None:
    command = [sys.executable, "-Ic", programs.INTERRUPTED, manager.address, where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        if where == "caller":
            assert program.stdout.readline() == "working\n"
        eventually(lambda: [each.state for each in manager.get_active_sessions()] == ["processing"])
        program.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "interrupted\n"
        eventually(lambda: manager.get_statistics()["active_sessions"] == 0)
        program.stdin.write("\n")
        program.stdin.flush()
        program.wait(HANG)
    assert ended(manager) == {"cancelled": 1}


def test_what_cannot_run_is_said_at_once_and_holds_nothing(manager: SessionManager) -> None:
    with pytest.raises(BadInput, match="where must be 'caller' or 'worker', got 'elsewhere'"):
        manager.execute_with_session("kimi", "k3", print, where="elsewhere")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="func must be callable, got int"):
        manager.execute_with_session("kimi", "k3", 5)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="cannot travel") as error:
        manager.execute_with_session("kimi", "k3", list, (number for number in [1]), where="worker")
    assert error.value.param == "func"
    assert ended(manager) == {}


@pytest.mark.parametrize(
    ("config", "door", "why"),
    [
        ({}, "gateway", "by the door 'gateway'"),
        ({"supervisor": {"function_workers": 0}}, "python", "function_workers = 0"),
    ],
)
def test_functions_are_for_the_users_own_python_programs_alone(config: dict[str, Any], door: str, why: str) -> None:
    with callpool.start(config) as starter, callpool.connect(starter.address, door=door) as client:
        with pytest.raises(FunctionsRefused, match=f"functions are refused .*{why}"):
            client.sessions.execute_with_session("kimi", "k3", os.getpid, where="worker")
        assert client.sessions.execute_with_session("kimi", "k3", os.getpid) == os.getpid()
        assert ended(client.sessions) == {"completed": 1}
        assert not [each for each in starter.health()["checks"] if each["ok"] is not True]


def test_the_books_are_compared_and_weighed(manager: SessionManager) -> None:
    manager.create_session("kimi", "k3", text="x" * 88)
    metrics = manager.get_metrics()
    assert metrics["memory"]["metadata_bytes_per_session"] == 100
    assert 300 < metrics["memory"]["bytes_per_session"] < 3_000
    assert metrics["reconciliation"]["inconsistencies"] == metrics["metrics_drift"] == 0
    assert metrics["lock"]["acquisitions"] >= metrics["lock"]["contended"] >= 0
    assert metrics["verbs"]["create_session"]["wait_seconds"]["count"] == 1
