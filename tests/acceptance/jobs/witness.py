"""Jobs, and what became of them by two accounts: the supervisor's, and the fake provider's own log.

A submitter works in a thread of its own, notes who was acknowledged, and stops when its supervisor is gone. Afterwards the judge
compares what was promised with what the provider saw.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Self

import callpool
from callpool.tools.testing.fake_provider import CallRecord, FakeProviderProcess
from tests.acceptance.running import HANG, Running, eventually

SLOTS = 4


def config(fake: FakeProviderProcess, **supervisor: Any) -> dict[str, Any]:
    """Two workers, one account."""
    return {
        "supervisor": {"workers": 2, "circuit_failures": 0, "retry_wait": 0.01, **supervisor},
        "providers": {
            "fake": {"kind": "openai", "base_url": fake.base_url, "concurrency": SLOTS, "models": {"m": {}}, "cancel_lag": 0.0}
        },
    }  # fmt: skip


def ask(client: callpool.Client, request_id: str, **more: Any) -> callpool.Handle:
    """A job that the provider's log can be searched for. Those with an even number may be called again when they are in doubt."""
    number = int(request_id.rpartition("-")[2])
    fake = {"delay": 0.05, **more.pop("fake", {})}
    return client.submit(
        provider="fake",
        model="m",
        messages=[{"role": "user", "content": request_id}],
        request_id=request_id,
        durable=True,
        retry_in_doubt=is_allowed(number),
        fake=fake,
        **more,
    )


def is_allowed(number: int) -> bool:
    """Whether the job of this number may be called again when it is in doubt."""
    return number % 2 == 0


class Submitter:
    """Submits jobs one after another until all are acknowledged, or nobody answers any more."""

    def __init__(self, client: callpool.Client, jobs: int, **more: Any) -> None:
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self._client = client
        self._jobs = jobs
        self._more = more
        self._thread = threading.Thread(target=self._run, name="submitter")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_about: object) -> None:
        self._thread.join(HANG)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        for number in range(self._jobs):
            try:
                handle = ask(self._client, f"job-{number}", **self._more)
            except callpool.CallpoolError as error:
                self.errors.append(type(error).__name__)
                if isinstance(error, (callpool.ConnectionLost, callpool.NotRunning, callpool.ShuttingDown)):
                    return
            else:
                self.acknowledged.append(handle.request_id)


def all_ended(supervisor: Running) -> dict[str, str]:
    """Wait until no job is under way; id → state."""
    with supervisor.connect() as client:
        eventually(
            lambda: not {"queued", "started"} & client.jobs()["counts"].keys(), why="some jobs never come to an end"
        )
        return {job["request_id"]: job["state"] for job in client.jobs(limit=1_000)["jobs"]}


def judge(
    states: dict[str, str], acknowledged: list[str], log: list[CallRecord], *, deaths: bool = False
) -> Counter[str]:
    """Nothing acknowledged is lost, nothing is called twice without permission, each job has one end. Returns what was seen.

    `deaths`: whether workers die again and again: then a job that loses three of them is quarantined.
    """
    assert set(acknowledged) <= states.keys(), "an acknowledged job is lost"
    calls = Counter(call.last_message for call in log if call.outcome != "rejected" and call.status != 503)
    seen: Counter[str] = Counter()
    for request_id, state in states.items():
        made, allowed = calls[request_id], is_allowed(int(request_id.rpartition("-")[2]))
        seen[state] += 1
        given_up = deaths and state in ("interrupted", "error")
        assert state in ("completed", "interrupted") or given_up, f"{request_id} is {state}"
        if state == "completed":
            assert made >= 1, f"{request_id} has an answer, and the provider was never asked"
        if not allowed:
            assert made <= 1, f"{request_id} was called {made} times without permission"
        else:
            assert made <= 3, f"{request_id} was called {made} times"
            assert state == "completed" or given_up, f"{request_id} could have been called again, and is {state}"
    assert not calls.keys() - states.keys(), f"calls without a job: {calls.keys() - states.keys()}"
    return seen
