"""The specification's own names: the process-wide manager from many threads, the lifecycle functions, chat calls."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import callpool
from callpool import ConfigMismatch, ShuttingDown, compat
from callpool.manager import process_wide
from tests.acceptance.running import HELLO, detached, scripted

RECEIVED_TO_COMPLETED = """
received queued dequeued session_allocated provider_call_start provider_call_end session_released completed
"""


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    process_wide.close_process_wide()


def test_the_names_are_the_same_things() -> None:
    assert compat.ConcurrentSessionManager is callpool.SessionManager
    assert compat.AsyncConcurrentSessionManager is callpool.AsyncSessionManager
    for name in compat.__all__:
        assert inspect.getdoc(getattr(compat, name)), name
    for function in (compat.get_session_manager, compat.get_async_session_manager, callpool.SessionManager):
        defaults = {name: p.default for name, p in inspect.signature(function).parameters.items() if name != "client"}
        assert defaults == {"default_timeout": 30.0, "max_concurrent_sessions": 200, "max_metadata_size": 10_240}


def test_many_threads_get_one_manager_of_one_embedded_supervisor() -> None:
    with ThreadPoolExecutor(16) as pool:
        managers = list(pool.map(lambda _: compat.get_session_manager(max_concurrent_sessions=7), range(16)))
    assert len({id(manager) for manager in managers}) == 1
    assert managers[0].execute_with_session("kimi", "k3", lambda: 5) == 5
    assert compat.get_session_manager() is managers[0], "what is not said contradicts nothing"
    with pytest.raises(ConfigMismatch, match="max_concurrent_sessions is 7, not 8") as error:
        compat.get_session_manager(max_concurrent_sessions=8)
    assert (error.value.param, error.value.wanted, error.value.running) == ("max_concurrent_sessions", 8, 7)
    compat.get_session_manager(30.0, 7, 10_240)


def test_it_connects_to_the_supervisor_that_runs() -> None:
    with detached({"supervisor": {"default_timeout": 5.0}, **scripted()}) as supervisor:
        manager = compat.get_session_manager()
        with supervisor.connect() as client:
            assert manager.address == client.address
        with pytest.raises(ConfigMismatch, match=r"default_timeout is 5\.0, not 30\.0"):
            compat.get_session_manager(default_timeout=30.0)
        answer = compat.chat_completions_create_with_session("fake", "m", HELLO, request_id="r1", timeout_seconds=5)
        assert (answer["provider"], answer["model"], answer["content"]) == ("fake", "m", "hello")
        assert answer["metadata"]["session"]["request_id"] == "r1"

        async def chat() -> Any:
            whole = await compat.chat_completions_create_async_with_session("fake", "m", HELLO)
            manager = compat.get_async_session_manager()
            assert manager is compat.get_async_session_manager()
            await manager.close()
            return whole["content"]

        assert asyncio.run(chat()) == asyncio.run(chat()) == "hello"
        process_wide.close_process_wide()


def test_after_a_shutdown_it_says_so_and_after_a_crash_there_is_a_new_one() -> None:
    first = compat.get_session_manager()
    os.kill(first.ask("get_metrics") and process_wide.process_client().status()["pid"], 9)
    while process_wide.process_client().is_open and compat.get_session_manager() is first:
        pass
    second = compat.get_session_manager()
    assert second is not first
    assert second.shutdown(1.0)["total_sessions_at_shutdown"] == 0
    assert compat.get_session_manager() is second
    with pytest.raises(ShuttingDown):
        second.create_session("kimi", "k3")


def test_a_program_that_just_ends_leaves_nothing() -> None:
    code = "from callpool.compat import *; m = get_session_manager(); m.create_session('a', 'b'); print(m.address)"
    done = subprocess.run([sys.executable, "-Ic", code], capture_output=True, text=True, check=True, timeout=20)
    assert done.stderr == ""
    with pytest.raises(callpool.NotRunning):
        callpool.connect(done.stdout.strip())


def test_the_lifecycle_functions_are_lines_of_the_log() -> None:
    logger = compat.get_lifecycle_logger()
    for number, name in enumerate(RECEIVED_TO_COMPLETED.split()):
        prefix = "" if name.startswith(("session", "provider")) else "request_"
        getattr(compat, f"log_{prefix}{name}")(
            "r1", provider="kimi", model="k3", step=number, api_key="sk-" + "a1" * 20
        )
    for name in ("timeout", "error", "cancelled"):
        getattr(compat, f"log_request_{name}")("r2")
    events = logger.get_request_events("r1")
    assert [event["phase"].lower() for event in events] == RECEIVED_TO_COMPLETED.split()
    assert [event["metadata"]["step"] for event in events] == list(range(8))
    assert all(event["metadata"]["api_key"] == "[redacted]" and event["by_client"] for event in events)
    assert [event["phase"] for event in logger.get_request_events("r2")] == ["TIMEOUT", "ERROR", "CANCELLED"]
    duration = logger.get_request_duration("r1")
    phase = logger.get_phase_duration("r1", "PROVIDER_CALL_START", "PROVIDER_CALL_END")
    assert duration is not None
    assert phase is not None
    assert 0.0 <= phase <= duration
    with pytest.raises(callpool.BadInput, match="phase must be one of"):
        logger.log_event("NONSENSE", "r1")
    with pytest.raises(callpool.BadInput, match="request_id must match"):
        logger.log_event("QUEUED", "a b")


def test_the_log_tells_the_supervisors_own_phases_and_cleans_up() -> None:
    manager, logger = compat.get_session_manager(), compat.get_lifecycle_logger()
    manager.execute_with_session("kimi", "k3", lambda: 5, request_id="r1")
    session = manager.create_session("kimi", "k3", "r2", token="secret", job=7)
    assert [event["phase"] for event in logger.get_request_events("r1")] == [
        "RECEIVED", "SESSION_ALLOCATED", "PROVIDER_CALL_START", "PROVIDER_CALL_END", "SESSION_RELEASED", "COMPLETED",
    ]  # fmt: skip
    assert logger.get_request_events("r2")[0]["metadata"] == {"token": "[redacted]", "job": 7}
    assert logger.get_active_requests() == ["r2"]
    statistics = logger.get_statistics()
    assert (statistics["total_requests"], statistics["active_requests"], statistics["completed_requests"]) == (2, 1, 1)
    assert statistics["min_duration_ms"] == statistics["max_duration_ms"] == statistics["average_duration_ms"] > 0
    assert logger.cleanup_completed_requests() == 0
    assert logger.cleanup_completed_requests(0) == 1
    assert (logger.get_request_events("r1"), logger.get_request_duration("r1")) == ([], None)
    session.fail("no")


def test_the_log_goes_to_a_file_as_json_lines_where_it_is_asked_for() -> None:
    with detached({"supervisor": {"lifecycle_log": True}, **scripted()}) as supervisor:
        with supervisor.connect() as client:
            client.submit(
                provider="fake", model="m", messages=HELLO, request_id="r1", metadata={"api_key": "x"}
            ).result()
            client.drain(5.0)
        supervisor.ended()
        lines = Path(os.environ["CALLPOOL_HOME"], "logs", "lifecycle.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
    assert [event["phase"] for event in events] == [
        "RECEIVED", "QUEUED", "DEQUEUED", "SESSION_ALLOCATED", "PROVIDER_CALL_START", "PROVIDER_CALL_END",
        "SESSION_RELEASED", "COMPLETED",
    ]  # fmt: skip
    assert {(event["request_id"], event["provider"], event["model"]) for event in events} == {("r1", "fake", "m")}
    assert events[0]["metadata"] == {"api_key": "[redacted]"}
