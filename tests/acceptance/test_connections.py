"""Connections of a real worker to a real server: used again, warm before the first call, counted. The fake numbers what it accepts."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

import callpool
from callpool.tools.testing.fake_provider import CallRecord, FakeProviderProcess
from tests.acceptance.running import HANG, HELLO, detached, eventually, openai_at

CALLS, CLIENTS, POOL = 200, 8, 8
QUICK = {"heartbeat_interval": 0.1}
"""Seconds between two looks at the figures: they come with the heartbeats."""


def one_worker(base_url: str, **settings: Any) -> dict[str, Any]:
    return {"supervisor": {"workers": 1, **QUICK}, **openai_at(base_url, **settings)}


def figures(client: callpool.Client) -> dict[str, Any]:
    """What `status` says of the connections of the one account."""
    [account] = client.status()["accounts"]
    return dict(account["connections"] or {})


def at_rest(client: callpool.Client, requests: int) -> bool:
    """Whether the figures are those after so many requests: a heartbeat may come while the last are under way."""
    seen = figures(client)
    return bool(seen) and seen["requests"] == requests and seen["open"] == seen["idle"]


def numbers(calls: list[CallRecord]) -> set[int]:
    return {call.connection for call in calls}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_two_hundred_calls_of_eight_threads_use_eight_connections_at_most(*, stream: bool) -> None:
    with FakeProviderProcess(delay=0.002) as fake, detached(one_worker(fake.base_url, concurrency=POOL)) as supervisor:

        def call_many(client: callpool.Client) -> None:
            for number in range(CALLS // CLIENTS):
                messages = [{"role": "user", "content": str(number)}]
                client.submit(provider="fake", model="m", messages=messages, stream=stream).result(HANG)

        with supervisor.connect() as client:
            threads = [threading.Thread(target=call_many, args=(client,)) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(HANG)
            calls = fake.log()
            assert [call.outcome for call in calls] == ["answered"] * CALLS
            assert len(numbers(calls)) <= POOL
            eventually(lambda: at_rest(client, CALLS))
            seen = figures(client)
            assert seen["opened"] == seen["open"] == seen["idle"] == len(numbers(calls))
            assert seen["reused"] == CALLS - seen["opened"]
            assert (seen["failed"], seen["warmed"], seen["waiting"]) == (0, 0, 0)
            assert 0.0 < seen["connect_seconds_mean"] <= seen["connect_seconds_max"]
            assert [row["requests"] for row in seen["workers"]] == [CALLS]
            assert client.sessions.get_metrics()["connections"] == {"fake": figures(client)}


def test_a_cancelled_stream_closes_its_connection_and_the_others_live_on() -> None:
    with (
        FakeProviderProcess(chunks=2) as fake,
        detached(one_worker(fake.base_url, concurrency=2)) as supervisor,
        supervisor.connect() as client,
    ):
        endless = client.submit(provider="fake", model="m", messages=HELLO, stream=True, fake={"chunk_delay": HANG})
        eventually(lambda: fake.log() and fake.log()[0].first_byte is not None)
        client.submit(provider="fake", model="m", messages=HELLO).result(HANG)
        endless.cancel()
        with pytest.raises(callpool.RequestCancelled):
            endless.result(HANG)
        for _ in range(2):
            client.submit(provider="fake", model="m", messages=HELLO).result(HANG)
        eventually(lambda: fake.log()[0].outcome == "client_gone")
        first, *others = fake.log()
        assert first.connection not in numbers(others)
        assert len(numbers(others)) == 1
        eventually(lambda: at_rest(client, 4))
        seen = figures(client)
        assert (seen["opened"], seen["reused"], seen["open"], seen["idle"]) == (2, 2, 1, 1)


def test_a_call_beyond_the_connections_waits_for_one_within_its_deadline() -> None:
    with (
        FakeProviderProcess() as fake,
        detached(one_worker(fake.base_url, concurrency=4, connections=1)) as supervisor,
        supervisor.connect() as client,
    ):
        slow = client.submit(provider="fake", model="m", messages=HELLO, fake={"delay": 1.5})
        eventually(lambda: len(fake.log()) == 1)
        hasty = client.submit(provider="fake", model="m", messages=HELLO, timeout=0.3)
        patient = client.submit(provider="fake", model="m", messages=HELLO)
        eventually(lambda: figures(client).get("waiting") == 2)
        with pytest.raises(callpool.RequestTimeout, match="waited for a free connection") as caught:
            hasty.result(HANG)
        assert (caught.value.which, caught.value.sent) == ("total", False)
        assert len(fake.log()) == 1, "it says the truth"
        assert [each.result(HANG)["finish_reason"] for each in (slow, patient)] == ["stop", "stop"]
        assert [call.connection for call in fake.log()] == [1, 1]
        eventually(lambda: figures(client).get("waiting") == 0)


def test_a_call_that_waits_for_a_connection_is_no_doubt_when_its_worker_dies() -> None:
    with (
        FakeProviderProcess() as fake,
        detached(one_worker(fake.base_url, concurrency=2, connections=1)) as supervisor,
        supervisor.connect() as client,
    ):
        begun = client.submit(provider="fake", model="m", messages=HELLO, fake={"delay": HANG})
        eventually(lambda: len(fake.log()) == 1)
        waiting = client.submit(provider="fake", model="m", messages=HELLO)
        eventually(lambda: figures(client).get("waiting") == 1)
        os.kill(supervisor.worker_pids()[0], signal.SIGKILL)
        with pytest.raises(callpool.WorkerLost):
            begun.result(HANG)
        assert waiting.result(HANG)["finish_reason"] == "stop", "another worker made it"
        eventually(lambda: at_rest(client, 2))  # of both workers: the dead one's counts stay
        assert [row["requests"] for row in figures(client)["workers"]] == [1]


def test_warm_connections_are_there_before_the_first_call_and_gone_with_the_workers() -> None:
    with FakeProviderProcess() as fake, detached(one_worker(fake.base_url, warm_connections=3)) as supervisor:
        with supervisor.connect() as client:
            eventually(lambda: figures(client).get("idle") == 3)
            assert fake.log() == [], "nothing was asked"
            client.submit(provider="fake", model="m", messages=HELLO).result(HANG)
            eventually(lambda: at_rest(client, 1))
            seen = figures(client)
            assert (seen["reused"], seen["opened"], seen["warmed"], seen["failed"]) == (1, 3, 3, 0)
            assert fake.log()[0].connection <= 3
            client.drain()
        supervisor.ended()


def test_warming_that_fails_harms_nobody() -> None:
    with FakeProviderProcess() as gone:
        base_url = gone.base_url
    with detached(one_worker(base_url, warm_connections=1)) as supervisor, supervisor.connect() as client:
        eventually(lambda: figures(client).get("failed"))
        [worker] = client.status()["workers"]
        assert (worker["state"], worker["restarts"]) == ("up", 0)
        with pytest.raises(callpool.ProviderUnreachable):
            client.submit(provider="fake", model="m", messages=HELLO).result(HANG)


def test_a_provider_without_connections_has_no_figures_of_them() -> None:
    config = {"supervisor": QUICK, "providers": {"fake": {"kind": "scripted", "models": {"m": {"reply": "hello"}}}}}
    with detached(config) as supervisor, supervisor.connect() as client:
        client.submit(provider="fake", model="m", messages=HELLO).result(HANG)
        assert client.status()["accounts"][0]["connections"] is None
        assert client.sessions.get_metrics()["connections"] == {}
