"""Limits hold across processes, and what does not fit waits. The fake provider's own log is the witness."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from callpool.tools.testing.fake_records import peak_active
from tests.acceptance.running import HANG, HELLO, Running, detached, openai_at

SUBMITS = 300
CAPACITY = 200


def test_more_submits_than_slots_all_complete_and_never_exceed_the_pool() -> None:
    with FakeProviderProcess(delay=0.05) as fake:
        # The account allows more: it is the pool that limits.
        config = openai_at(fake.base_url, concurrency=1000) | {"supervisor": {"max_concurrent_sessions": CAPACITY}}
        with detached(config) as supervisor, supervisor.connect() as client, ThreadPoolExecutor(SUBMITS) as threads:
            submits = [
                threads.submit(client.submit, provider="fake", model="m", messages=HELLO) for _ in range(SUBMITS)
            ]
            answers = [submit.result(HANG).result(HANG) for submit in submits]
            statistics = client.status()["sessions"]
        records = fake.log()
    assert len(answers) == SUBMITS
    assert len(records) == SUBMITS
    assert peak_active(records) <= CAPACITY
    assert statistics["peak_concurrent_sessions"] == CAPACITY, "the pool was not used to the full"
    assert statistics["total_sessions_completed"] == SUBMITS
    assert statistics["active_sessions"] == 0


def test_an_account_is_limited_by_itself_and_blocks_nobody_else() -> None:
    with FakeProviderProcess(delay=0.05) as fake:
        config = openai_at(fake.base_url, concurrency=3)
        config["providers"]["free"] = {"kind": "scripted", "models": {"m": {"reply": "free"}}}
        with detached(config) as supervisor, supervisor.connect() as client:
            limited = [client.submit(provider="fake", model="m", messages=HELLO) for _ in range(30)]
            free = client.submit(provider="free", model="m", messages=HELLO)
            assert free.result(HANG)["content"] == "free"
            assert not limited[-1].done(), "the free account waited for the limited one"
            for handle in limited:
                handle.result(HANG)
        assert peak_active(fake.log()) == 3


def test_a_full_queue_refuses_at_once_and_says_so(running_hang: Running) -> None:
    with running_hang.connect() as client:
        for _ in range(2 + 5):  # the slots and the queue
            client.submit(provider="fake", model="hang", messages=HELLO)
        with pytest.raises(callpool.QueueFull) as refusal:
            client.submit(provider="fake", model="hang", messages=HELLO)
        assert refusal.value.limit == 5
        assert client.status()["queue"]["requests"] == 5


@pytest.fixture
def running_hang() -> Iterator[Running]:
    """Two slots, five places in the queue, calls that never end."""
    config = {
        "supervisor": {"max_concurrent_sessions": 2, "max_queued_requests": 5, "shutdown_timeout": 1.0},
        "providers": {"fake": {"kind": "scripted", "models": {"hang": {"error": "hang"}}}},
    }
    with detached(config) as supervisor:
        yield supervisor
