"""callpool as a contender: an embedded supervisor with two workers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import callpool
import psutil

WORKERS = 2
MESSAGES = [{"role": "user", "content": "hello"}]
REPLY = "ok"
NOOP: dict[str, Any] = {"provider": "fake", "model": "noop", "messages": MESSAGES}
"""What a no-op request submits: answered by the worker itself with a fixed text, without any network."""
HANG: dict[str, Any] = {"provider": "fake", "model": "hang", "messages": MESSAGES}
"""A call that never ends by itself."""
PATIENCE = 60.0
"""Seconds after which a wait is a hang."""


def scripted(**supervisor: Any) -> dict[str, Any]:
    """A configuration with the scripted provider that `NOOP` and `HANG` name."""
    models = {"noop": {"reply": REPLY}, "hang": {"error": "hang"}}
    return {
        "supervisor": {"workers": WORKERS, **supervisor},
        "providers": {"fake": {"kind": "scripted", "models": models}},
    }


@contextlib.contextmanager
def started(config: dict[str, Any]) -> Iterator[callpool.Client]:
    """An embedded supervisor with all its workers up (it is ready with the first)."""
    with callpool.start(config) as client:
        wait_until(client, lambda status: [each["state"] for each in status["workers"]] == ["up"] * WORKERS)
        yield client


def wait_until(client: callpool.Client, holds: Any) -> dict[str, Any]:
    """Ask for the status until it holds; returns it. TimeoutError after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not holds(status := client.status()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE:g} s; status: {status}")
        time.sleep(0.005)
    return status


def submit_and_gather(client: callpool.Client, count: int, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Submit one by one, then wait for all answers, in order."""
    handles = [client.submit(**request) for _ in range(count)]
    return [handle.result(PATIENCE) for handle in handles]


def noops(client: callpool.Client, count: int) -> None:
    """Make no-op requests and check their answers."""
    answers = submit_and_gather(client, count, NOOP)
    assert [answer["content"] for answer in answers] == [REPLY] * count


def processes(client: callpool.Client) -> list[psutil.Process]:
    """The supervisor, and everything below it."""
    supervisor = psutil.Process(client.status()["pid"])
    return [supervisor, *supervisor.children(recursive=True)]


def cpu_seconds(family: list[psutil.Process]) -> float:
    """CPU time that these processes have used so far."""
    times = [process.cpu_times() for process in family]
    return sum(each.user + each.system for each in times)
