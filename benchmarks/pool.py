"""callpool as a contender: an embedded supervisor with two workers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psutil

import callpool
from work import PATIENCE, REPLY, requests_for

WORKERS = 2


def scripted(**supervisor: Any) -> dict[str, Any]:
    """A configuration with the models that `request_for` names."""
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
        time.sleep(0.005)  # no verb tells when a worker is up
    return status


def make_calls(client: callpool.Client, requests: list[dict[str, Any]]) -> None:
    """Submit one by one, then wait for all answers, in order, and check them."""
    handles = [client.submit(**request) for request in requests]
    answers = [handle.result(PATIENCE) for handle in handles]
    assert [answer["content"] for answer in answers] == [REPLY] * len(requests)


def noops(client: callpool.Client, count: int) -> None:
    """Make no-op requests."""
    make_calls(client, requests_for("noop", count))


def processes(client: callpool.Client) -> list[psutil.Process]:
    """The supervisor, and everything below it."""
    supervisor = psutil.Process(client.status()["pid"])
    return [supervisor, *supervisor.children(recursive=True)]


def cpu_seconds(family: list[psutil.Process]) -> float:
    """CPU time that these processes have used so far."""
    times = [process.cpu_times() for process in family]
    return sum(each.user + each.system for each in times)
