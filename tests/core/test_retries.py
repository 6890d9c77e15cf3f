"""Calls that are made again: which, when, how often; and how a request ends that waits for one."""

from __future__ import annotations

import json

import pytest

from callpool.manager.core.attempts import MAX_SAID
from callpool.manager.core.events import CancelAsked, CutAsked, Reported, Tick, WorkerDown, WorkerUp
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import RESTART, Chunk, Dispatch, Piece
from callpool.manager.core.retry import REFILL, SAVINGS, RetryRules

from .attempts import BAD, BROKEN, BUSY, GONE, bench, ends, fail, fault, orders, record, wake
from .build import TIMEOUT, to_clients, to_workers


class TestRetries:
    def test_a_transient_fault_is_called_again_after_a_pause_that_doubles(self) -> None:
        b = bench(pool=2)
        b.submit("r")
        for number, pause in ((1, 0.25), (2, 0.5)):  # half of 0.5 and of 1.0
            assert fail(b, BUSY) == []
            assert b.state("r") == "queued"
            assert b.core.sessions.active == 0, "who waits holds nothing"
            assert b.core.ledger.accounts["a"].active == 0
            assert b.core.scheduler.count("a") == 1
            at = b.time
            [(provider, model, seconds)] = orders(wake(b))
            assert (provider, model) == ("a", "m")
            assert seconds == pytest.approx(TIMEOUT - (b.time - 1000.0)), "one deadline over all calls"
            assert 0.0 <= b.time - at - pause <= 0.02 + 1e-9
            assert record(b).attempt == number + 1
        [end] = ends(fail(b, BUSY))
        assert (end.state, end.fault) == ("error", BUSY)
        assert [(each.number, each.code, each.called, each.wait) for each in record(b).attempts] == [
            (1, "provider_error", True, 0.25),
            (2, "provider_error", True, 0.5),
        ]
        assert [name for name, _, _ in record(b).phases] == [
            "RECEIVED", "QUEUED", *["DEQUEUED", "SESSION_ALLOCATED", "PROVIDER_CALL_START", "PROVIDER_CALL_END", "RETRY"] * 2,
            "DEQUEUED", "SESSION_ALLOCATED", "PROVIDER_CALL_START", "PROVIDER_CALL_END", "SESSION_RELEASED", "ERROR",
        ]  # fmt: skip
        said = [event["metadata"] for event in b.core.lifecycle.events("r") if event["phase"] == "RETRY"]
        assert [json.loads(each)["code"] for each in said] == ["provider_error"] * 2
        assert b.core.sessions.created == 1, "the session counts once"
        assert b.core.next_deadline() is None

    def test_an_answer_after_a_failure_is_the_requests_answer(self) -> None:
        b = bench()
        b.submit("r")
        fail(b, BUSY)
        wake(b)
        b.start("r")
        b.time += 1.0
        [end] = ends(b.finish("r", body=b"answer"))
        assert (end.state, end.body, end.session_id) == ("completed", b"answer", "session_r")
        assert end.duration == pytest.approx(b.time - 1000.0), "from the first call's start"
        assert b.core.attempts.describe("a", b.time) == {
            "retries": 1, "told_to_wait": 0, "fallbacks": 0, "refused_by_budget": 0, "retries_left": 9, "circuits": [],
        }  # fmt: skip

    @pytest.mark.parametrize(
        "why", [BAD, GONE, BROKEN, Fault(code="bad_input", message="m"), Fault(code="internal_error", message="m")]
    )
    def test_what_is_not_transient_or_in_doubt_ends_it_at_once(self, why: Fault) -> None:
        b = bench()
        b.submit("r")
        [end] = ends(fail(b, why))
        assert end.fault == why
        assert record(b).attempt == 1

    def test_what_the_provider_names_is_the_least_pause(self) -> None:
        b = bench()
        b.submit("r")
        fail(b, fault("provider_overloaded", retry_after=3.0))
        at = b.time
        wake(b)
        assert 3.0 + 0.25 <= b.time - at <= 3.3

    def test_a_time_that_has_passed_is_no_pause(self) -> None:
        b = bench(retry_rules=RetryRules(first_wait=0.0))
        b.submit("r")
        assert len(orders(fail(b, fault("provider_overloaded", retry_after=-5.0)))) == 1
        assert record(b).attempts[0].wait == 0.0

    def test_what_was_said_is_kept_up_to_a_length(self) -> None:
        b = bench()
        b.submit("r")
        fail(b, Fault(code="provider_error", message="x" * 10_000, details=dict(BUSY.details)))
        assert len(record(b).attempts[0].message) == MAX_SAID

    def test_what_is_remembered_has_nothing_of_an_answer(self) -> None:
        b = bench(retry_rules=RetryRules(attempts=1))
        b.submit("r")
        before = b.core.lifecycle.size
        [end] = ends(fail(b, fault(partial="secret " * 1000, note="y" * 5000)))
        assert end.fault is not None
        assert "partial" in end.fault.details, "the client has it"
        remembered = record(b).fault
        assert remembered is not None
        assert "partial" not in remembered.details
        assert b.core.lifecycle.size - before > 5000, "what is kept is counted"

    def test_overload_rests_longer(self) -> None:
        b = bench()
        b.submit("r")
        fail(b, fault("provider_overloaded"))
        at = b.time
        wake(b)
        assert 1.0 <= b.time - at <= 1.03

    def test_a_pause_that_the_deadline_has_no_room_for_is_not_begun(self) -> None:
        b = bench()
        b.submit("r")
        [end] = ends(fail(b, fault("provider_overloaded", retry_after=TIMEOUT)))
        assert end.fault is not None
        assert end.fault.code == "provider_overloaded"

    def test_a_request_may_ask_for_fewer_or_more_calls(self) -> None:
        b = bench()
        b.submit("r", max_attempts=1)
        assert len(ends(fail(b, BUSY))) == 1
        b.submit("s", max_attempts=4)
        for _ in range(3):
            assert ends(fail(b, BUSY, "s")) == []
            wake(b)
        assert len(ends(fail(b, BUSY, "s"))) == 1

    def test_the_budget_is_spent_and_earned(self) -> None:
        b = bench(retry_rules=RetryRules(attempts=10, budget=0.5, first_wait=0.0), pool=100, accounts={"a": 100})
        for number in range(int(SAVINGS)):
            b.submit(f"r{number}")
            assert ends(fail(b, BUSY, f"r{number}")) == [], "what is saved up"
        b.submit("last")
        [end] = ends(fail(b, BUSY, "last"))
        assert end.fault is not None
        assert end.fault.message == f"{BUSY.message}; it was not called again: account 'a' has no retry left for now"
        assert (end.fault.code, end.fault.details) == (BUSY.code, BUSY.details)
        assert b.core.attempts.retries.counts["a"].refused_by_budget == 1
        for number in range(2):  # two completed calls earn one retry
            b.start(f"r{number}")
            assert len(ends(b.finish(f"r{number}"))) == 1
        b.submit("again")
        assert ends(fail(b, BUSY, "again")) == []
        assert len(ends(fail(b, BUSY, "again"))) == 1

    def test_time_brings_the_budget_back(self) -> None:
        """Else an account that fails once, and is idle, would never be called again."""
        b = bench(retry_rules=RetryRules(attempts=100, first_wait=0.0))
        b.submit("r", timeout=80_000.0)
        while not ends(fail(b, BUSY)):
            pass
        assert b.core.attempts.describe("a", b.time)["retries_left"] == 0
        b.time += 1.5 / REFILL
        b.submit("s")
        assert ends(fail(b, BUSY, "s")) == []
        assert len(ends(fail(b, BUSY, "s"))) == 1
        b.time += 1000.0
        assert b.core.attempts.describe("a", b.time)["retries_left"] == SAVINGS

    def test_savings_have_a_bound(self) -> None:
        b = bench(retry_rules=RetryRules(attempts=100, budget=1.0, first_wait=0.0))
        retries = b.core.attempts.retries
        b.submit("r")
        fail(b, BUSY)
        for _ in range(100):
            retries.completed("a", b.time)
        calls = 1
        while not ends(fail(b, BUSY)):
            calls += 1
        assert calls == SAVINGS + 1

    def test_a_pause_has_a_bound(self) -> None:
        b = bench(retry_rules=RetryRules(attempts=10, first_wait=1.0, longest_wait=1.5))
        b.submit("r")
        waits = []
        for _ in range(4):
            fail(b, BUSY)
            waits.append(record(b).attempts[-1].wait)
            wake(b)
        assert waits == [0.5, 0.75, 0.75, 0.75]

    def test_a_stream_that_had_begun_is_not_called_again(self) -> None:
        b = bench()
        b.submit("r", stream=True)
        b.start("r")
        b.do(Reported(1, Piece("r", b.holder("r")[1], b"p")))
        [end] = ends(b.finish("r", fault=BUSY))
        assert end.fault == BUSY

    def test_unless_the_request_says_so_then_the_client_is_told_to_forget(self) -> None:
        b = bench()
        b.submit("r", stream=True, retry_in_doubt=True)
        b.start("r")
        b.do(Reported(1, Piece("r", b.holder("r")[1], b"p")))
        assert to_clients(b.finish("r", fault=BROKEN)) == [Chunk("r", RESTART)]
        wake(b)
        assert to_clients(fail(b, BROKEN)) == [], "the second one brought nothing that could be forgotten"

    def test_a_silence_may_be_called_again_if_the_request_says_so(self) -> None:
        silence = Fault(code="timeout", message="m", details={"which": "first_token", "seconds": 1.0})
        whole = Fault(code="timeout", message="m", details={"which": "total", "seconds": 1.0})
        b = bench()
        b.submit("r", retry_in_doubt=True)
        assert ends(fail(b, silence)) == []
        wake(b)
        [end] = ends(fail(b, whole))
        assert end.state == "timeout"

    def test_an_old_place_is_kept(self) -> None:
        b = bench(pool=1, retry_rules=RetryRules(first_wait=0.0))
        b.submit("first")
        b.submit("second")
        b.start("first")
        effects = b.finish("first", fault=BUSY)
        assert [order.request_id for order in to_workers(effects) if isinstance(order, Dispatch)] == ["first"]

    def test_who_rests_blocks_nobody(self) -> None:
        b = bench(pool=1)
        b.submit("first")
        b.submit("second")
        b.start("first")
        effects = b.finish("first", fault=BUSY)
        assert [order.request_id for order in to_workers(effects) if isinstance(order, Dispatch)] == ["second"]

    def test_a_deadline_that_the_last_call_reaches_is_the_requests(self) -> None:
        b = bench()
        b.submit("r")
        fail(b, BUSY)
        wake(b)
        late = Fault(code="timeout", message="m", details={"which": "total", "seconds": 9.7, "partial": "p"})
        [end] = ends(fail(b, late))
        assert end.fault is not None
        assert end.fault.details == {"which": "total", "seconds": TIMEOUT, "partial": "p"}
        assert end.fault.message == "the call did not end within 10 s, in 2 calls"


class TestEndsWhileItRests:
    def test_cancelled(self) -> None:
        b = bench()
        b.submit("r")
        fail(b, BUSY)
        [end] = ends(b.do(CancelAsked("c", "r")))
        assert end.state == "cancelled"
        assert b.core.next_deadline() is None
        assert len(b.core.scheduler) == 0

    def test_cut_by_a_drain(self) -> None:
        b = bench()
        b.submit("r")
        fail(b, BUSY)
        [end] = ends(b.do(CutAsked()))
        assert end.state == "cancelled"

    def test_its_deadline(self) -> None:
        """No worker comes back for it: the one deadline is over all calls and rests."""
        b = bench()
        b.submit("r")
        fail(b, BUSY)
        b.do(WorkerDown(1, "died"))
        b.time += TIMEOUT
        [end] = ends(b.do(Tick()))
        assert end.state == "timeout"
        assert end.fault is not None
        assert "call 1 ended with: says the provider_error" in end.fault.message

    def test_a_cancel_that_was_ordered_wins_over_a_retry(self) -> None:
        b = bench()
        b.submit("r")
        b.start("r")
        b.do(CancelAsked("c", "r"))
        [end] = ends(b.finish("r", fault=BUSY))
        assert end.fault == BUSY

    def test_a_call_that_was_lost_before_it_began_starts_the_clock_anew(self) -> None:
        b = bench(workers=1)
        b.submit("r")
        b.time += 4.0
        b.do(WorkerDown(1, "died"))
        assert orders(b.do(WorkerUp(2))) == [("a", "m", TIMEOUT)]
        [lost] = record(b).attempts
        assert (lost.code, lost.called) == ("worker_lost", False)

    def test_calls_that_failed_are_no_lost_ones(self) -> None:
        b = bench(retry_rules=RetryRules(attempts=5, first_wait=0.0))
        b.submit("r")
        for _ in range(3):
            fail(b, BUSY)
        b.do(WorkerDown(1, "died"))
        assert b.state("r") == "queued"
        assert len(orders(b.do(WorkerUp(2)))) == 1
