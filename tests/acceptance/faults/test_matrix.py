"""Every fault of the fake provider, plain and streamed, through client, supervisor and worker.

What the request comes to, how often it is called, and that nothing is left of it anywhere. With `pytest -s` it prints the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import psutil
import pytest

import callpool
from callpool.tools.testing.fake_provider import FAULTS, CallRecord, FakeProviderProcess
from tests.acceptance.faults.matrix import (
    APART,
    DEADLINE,
    IMPATIENT,
    LONG_HANG,
    SILENCES,
    STOPPING,
    WAYS,
    Case,
    Matrix,
    account,
    accounts,
    ask,
    cases,
    promised,
    silences,
    table,
)
from tests.acceptance.running import Running, detached, eventually
from tests.outcomes import WAITS_TOO_LONG

POOL = {
    "circuit_failures": 0,
    "retry_wait": 0.01,
    "retry_longest_wait": 0.02,
    "heartbeat_interval": 0.2,
    "history_requests": 5_000,
}
KEPT = 1.0
"""Seconds that an idle connection is kept: the shortest time there is, so that one sees that all of them go."""
MODES = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])

NAMED_WAITS = {
    **dict.fromkeys(("retry_after_zero", "retry_after_past_date"), 0.0),
    **dict.fromkeys(("limit_rpm", "limit_tpm", "limit_concurrency", "retry_after_seconds"), 1.0),
    # The header says nothing; the message does.
    **dict.fromkeys(("retry_after_nonsense", "retry_after_negative", "retry_after_inf", "retry_after_nan"), 1.0),
    "retry_after_date": 1.0,  # two seconds ahead, in whole seconds
    "retry_after_ms": 1.5,
    "retry_after_twice": 2.0,
}
"""Seconds that the refusal asks for at least."""


class House:
    """A supervisor and a fake, and what became of all requests of the matrix."""

    def __init__(self, supervisor: Running, client: callpool.Client, fake: FakeProviderProcess) -> None:
        self.supervisor = supervisor
        self.client = client
        self.fake = fake
        self.pids = sorted(supervisor.worker_pids())
        self.use_both_workers()
        self.descriptors = self.count_descriptors()
        everything = [*cases(), *silences()]
        late = [case for case in everything if (case.ends_late or case.silence) and case.fault != "sse_endless"]
        endless = [case for case in everything if case.ends_late and case.fault == "sse_endless"]
        slow = [case for case in everything if case.fault in {*NAMED_WAITS, "no_end", "stalled_refusal"}]
        matrix = Matrix(client, fake)
        # What has a deadline that is meant to be reached goes first, and not among hundreds of others: it must have arrived before.
        matrix.begin(late)
        matrix.begin(slow)
        matrix.wait(late)
        matrix.begin(endless)
        matrix.wait(endless)
        matrix.begin(set(everything).difference(late, slow, endless))
        told = matrix.told()
        self.told = {case: told[case] for case in everything}

    def use_both_workers(self) -> None:
        """What a worker opens once, with its first call, is no leak: it is there from now on."""
        name = account("silence", stream=False)
        first = [good(self.client, "first", provider=name, fake={"delay": 0.2}) for _ in range(4)]
        workers = Counter(self.client.show(handle.request_id)["worker"] for handle in first)
        assert sorted(workers.values()) == [2, 2]
        assert [handle.result(LONG_HANG)["finish_reason"] for handle in first] == ["stop"] * 4

    def accounts(self) -> dict[str, dict[str, Any]]:
        """The accounts' rows of `status`."""
        return {row["name"]: row for row in self.client.status()["accounts"]}

    def has_no_connections(self) -> bool:
        """Whether no worker has any, by their heartbeats."""
        pools = [row["connections"] for row in self.accounts().values()]
        return all(pool is None or (pool["open"], pool["waiting"]) == (0, 0) for pool in pools)

    def count_descriptors(self) -> dict[int, int]:
        """How many the supervisor and each worker have open, without connections to the fake: these have figures of their own."""
        family = [psutil.Process(pid) for pid in (self.supervisor.pid, *self.pids)]
        return {each.pid: each.num_fds() - len(each.net_connections(kind="tcp")) for each in family}


def good(client: callpool.Client, text: str, **request: Any) -> callpool.Handle:
    """A request without any fault."""
    return ask(client, text, timeout=LONG_HANG, **request)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with (
        FakeProviderProcess() as fake,
        detached({"supervisor": POOL, "providers": accounts(fake.base_url, keep_alive=KEPT)}) as supervisor,
    ):
        with supervisor.connect() as client:
            yield House(supervisor, client, fake)
            report = client.drain()
        supervisor.ended()
    assert (report["timeout_reached"], report["final_active_sessions"]) == (False, 0)


@MODES
@pytest.mark.parametrize("way", WAYS)
def test_each_fault_comes_to_what_is_promised(house: House, way: str, *, stream: bool) -> None:
    asked = [Case(fault, stream, way) for fault in FAULTS]
    assert {case: house.told[case].seen for case in asked} == {case: promised(case) for case in asked}


@pytest.mark.parametrize("way", WAYS)
def test_a_streams_silence_is_in_doubt(house: House, way: str) -> None:
    asked = [Case(fault, True, way, silence) for fault, silence in SILENCES.items()]
    assert {case: house.told[case].seen for case in asked} == {case: promised(case) for case in asked}


def test_errors_name_their_account_and_timeouts_their_deadline(house: House) -> None:
    failed = {case: told.error for case, told in house.told.items() if told.error is not None}
    assert len(failed) > len(house.told) / 2
    for case, error in failed.items():
        if case.fault in WAITS_TOO_LONG and case.way != "once":
            assert (error.which, error.seconds, error.sent) == ("queue", IMPATIENT, True)
            continue
        assert (error.provider, error.model) == (case.account, "m")
        if isinstance(error, callpool.RequestTimeout):
            assert (error.which, error.seconds) == (case.silence or "total", DEADLINE)


@MODES
def test_a_wait_that_the_provider_names_is_kept(house: House, *, stream: bool) -> None:
    for fault, seconds in NAMED_WAITS.items():
        seen = requests_of(house, Case(fault, stream, "again"))
        assert len(seen) == 3
        for before, after in pairwise(seen):
            assert before.ended is not None
            assert after.arrived - before.ended >= seconds, fault


def requests_of(house: House, case: Case) -> list[CallRecord]:
    return [call for call in house.fake.log() if call.last_message == case.text]


def test_the_status_counts_the_retries(house: House) -> None:
    expected: Counter[str] = Counter()
    for case, told in house.told.items():
        waited = isinstance(told.error, callpool.RequestTimeout) and told.error.which == "queue"
        expected[case.account] += told.seen.requests - (not waited)
    rows = house.accounts()
    assert {name: row["retries"] + row["told_to_wait"] for name, row in rows.items()} == expected
    assert {row["refused_by_budget"] + row["fallbacks"] for row in rows.values()} == {0}


@pytest.mark.parametrize("faults", [1, 2])
def test_a_storm_that_passes_ends_in_the_answer(house: House, faults: int) -> None:
    """Also for a request that allows nothing that is in doubt; here the model's name asks for the fault."""
    for fault, stream in (("http_500", False), ("http_503", True), ("overload", False), ("retry_after_zero", True)):
        text = f"a storm of {faults} {fault}"
        name = account("length", stream=stream)
        handle = good(house.client, text, model=f"fault-{fault}-{faults}", provider=name, stream=stream)
        assert handle.result(LONG_HANG)["content"] == f"echo: {text}"
        statuses = [call.status for call in house.fake.log() if call.last_message == text]
        assert len(statuses) == faults + 1
        assert statuses[-1] == 200
        assert house.client.show(handle.request_id)["attempt"] == faults + 1


@MODES
def test_the_next_good_calls_work(house: House, *, stream: bool) -> None:
    """Two for each account: one for each worker, whose connections to it have been through the fault."""
    asked = [(fault, f"good {fault} {stream} {number}") for fault in FAULTS for number in range(2)]
    accounts = house.accounts()
    for fault in APART:  # stopped, or pausing for a minute
        name = account(fault, stream=stream)
        assert bool(accounts[name]["stopped"]) is (fault in STOPPING), name
        resumed = house.client.resume_account(name)["resumed"]
        assert resumed or fault not in STOPPING, name
    handles = {
        text: good(house.client, text, provider=account(fault, stream=stream), stream=stream) for fault, text in asked
    }
    assert {text: handle.result(LONG_HANG)["content"] for text, handle in handles.items()} == {
        text: f"echo: {text}" for text in handles
    }
    seen = Counter(call.last_message for call in house.fake.log())
    assert {text: seen[text] for text in handles} == dict.fromkeys(handles, 1)


def test_nothing_is_left(house: House) -> None:
    status = house.client.status()
    assert status["sessions"]["active_sessions"] == 0
    assert status["queue"] == {"requests": 0, "bytes": 0}
    assert {(row["active"], row["queued"]) for row in status["accounts"]} == {(0, 0)}
    assert [(row["state"], row["active"], row["restarts"]) for row in status["workers"]] == [("up", 0, 0)] * 2
    assert sorted(row["pid"] for row in status["workers"]) == house.pids
    eventually(house.has_no_connections, why="a connection is kept")
    eventually(
        lambda: house.count_descriptors() == house.descriptors,
        why=f"descriptors: {house.descriptors} before the matrix, {house.count_descriptors()} after it",
    )
    assert {call.outcome for call in house.fake.log()} >= {"answered", "client_gone"}
    assert "open" not in {call.outcome for call in house.fake.log()}


def test_the_table(house: House) -> None:
    printed = table(house.told)
    print(f"\n{printed}")
    assert len(printed.splitlines()) == 2 + 2 * len(FAULTS) + len(SILENCES)
    assert max(map(len, printed.splitlines())) <= 110
