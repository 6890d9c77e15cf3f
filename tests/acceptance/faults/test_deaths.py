"""kill -9 of a worker that has a live call, and of one that has not begun: what the fake sees of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

import callpool
from callpool.tools.testing.fake_provider import CallRecord, FakeProviderProcess
from tests.acceptance.faults.matrix import LONG_HANG, ask, calls_in
from tests.acceptance.running import Running, detached, eventually, openai_at

MODES = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


class House:
    """A supervisor with two workers, and the fake."""

    def __init__(self, supervisor: Running, client: callpool.Client, fake: FakeProviderProcess) -> None:
        self.supervisor = supervisor
        self.client = client
        self.fake = fake

    def seen(self, text: str) -> list[CallRecord]:
        """What the fake saw with this text."""
        return [call for call in self.fake.log() if call.last_message == text]

    def has_begun(self, text: str) -> bool:
        """Whether the fake has begun to answer it."""
        return any(call.first_byte is not None for call in self.seen(text))

    def worker_of(self, handle: callpool.Handle) -> int | None:
        """The worker that the request was given to last."""
        number: int | None = self.client.show(handle.request_id)["worker"]
        return number

    def pids(self) -> dict[int, int]:
        """Worker → process, of those that are up."""
        return {row["id"]: row["pid"] for row in self.client.status()["workers"] if row["state"] == "up"}

    def is_at_rest(self) -> bool:
        """Whether both workers are up, and nobody holds anything."""
        status = self.client.status()
        held = status["sessions"]["active_sessions"] + status["accounts"][0]["active"] + status["queue"]["requests"]
        return len(self.pids()) == 2 and held == 0


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with FakeProviderProcess() as fake:
        config = openai_at(fake.base_url)
        config["supervisor"] = {
            "heartbeat_interval": 10.0
        }  # a stopped worker is killed by the test, not for its silence
        with detached(config) as supervisor, supervisor.connect() as client:
            yield House(supervisor, client, fake)


@MODES
def test_a_live_call_of_a_killed_worker_is_lost_and_not_made_again(house: House, *, stream: bool) -> None:
    eventually(lambda: len(house.pids()) == 2)
    texts = [f"live {stream} {number}" for number in range(2)]
    handles = [
        ask(
            house.client,
            text,
            provider="fake",
            stream=stream,
            fake={"fault": "stall"},
            timeout=LONG_HANG,
            fallbacks=["fake/other"],
        )
        for text in texts
    ]
    eventually(lambda: all(house.has_begun(text) for text in texts))
    victim, other = (house.worker_of(handle) for handle in handles)
    assert victim is not None
    assert victim != other
    os.kill(house.pids()[victim], signal.SIGKILL)
    assert isinstance(handles[0].exception(LONG_HANG), callpool.WorkerLost)
    record = house.client.show(handles[0].request_id)
    assert (record["state"], record["attempt"], calls_in(record)) == ("interrupted", 1, 1)
    eventually(lambda: [call.outcome for call in house.seen(texts[0])] == ["client_gone"])
    assert [call.outcome for call in house.seen(texts[1])] == ["open"], "the other worker's call was touched"
    handles[1].cancel()
    assert isinstance(handles[1].exception(LONG_HANG), callpool.RequestCancelled)
    eventually(house.is_at_rest)
    good = ask(house.client, f"good {texts[0]}", provider="fake", stream=stream).result(LONG_HANG)
    assert good["content"] == f"echo: good {texts[0]}"
    assert [len(house.seen(text)) for text in texts] == [1, 1], "one request each, also after all of it"


@MODES
def test_with_leave_the_call_of_a_killed_worker_is_made_again(house: House, *, stream: bool) -> None:
    eventually(lambda: len(house.pids()) == 2)
    text = f"with leave {stream}"
    fault = {"fault": "stall", "fault_times": 1}
    handle = ask(house.client, text, provider="fake", stream=stream, fake=fault, timeout=LONG_HANG, retry_in_doubt=True)
    eventually(lambda: house.has_begun(text))
    victim = house.worker_of(handle)
    assert victim is not None
    os.kill(house.pids()[victim], signal.SIGKILL)
    assert handle.result(LONG_HANG)["content"] == f"echo: {text}"
    record = house.client.show(handle.request_id)
    assert (record["state"], record["attempt"], calls_in(record)) == ("completed", 2, 2)
    eventually(lambda: [call.outcome for call in house.seen(text)] == ["client_gone", "answered"])
    eventually(house.is_at_rest)


@MODES
def test_a_call_that_had_not_begun_is_made_by_another_worker_and_seen_once(house: House, *, stream: bool) -> None:
    eventually(house.is_at_rest)
    victim, pid = next(iter(house.pids().items()))
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    texts = [f"not begun {stream} {number}" for number in range(4)]
    handles = {text: ask(house.client, text, provider="fake", stream=stream) for text in texts}
    stuck = [text for text, handle in handles.items() if house.worker_of(handle) == victim]
    assert stuck, "the stopped worker was given a call"
    assert {house.client.show(handles[text].request_id)["state"] for text in stuck} == {"allocated"}
    os.kill(pid, signal.SIGKILL)
    assert [handles[text].result(LONG_HANG)["content"] for text in texts] == [f"echo: {text}" for text in texts]
    assert [len(house.seen(text)) for text in texts] == [1] * 4
    for text in stuck:
        record = house.client.show(handles[text].request_id)
        [lost] = record["attempts"]
        assert (lost["code"], lost["called"], calls_in(record)) == ("worker_lost", False, 1)
    eventually(house.is_at_rest)
