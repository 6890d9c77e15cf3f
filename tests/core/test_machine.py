"""The core by single stories: the races that the simulator looks for at random, told one by one."""

from __future__ import annotations

import math

import pytest

from callpool.manager.core.dispatching import TIMEOUT_GRACE
from callpool.manager.core.drain import CUT_GRACE
from callpool.manager.core.events import (
    AccountClosed,
    CancelAsked,
    ClientGone,
    CutAsked,
    DrainAsked,
    Drained,
    Effect,
    Reported,
    Tick,
    ToWorker,
    WorkerDown,
    WorkerUp,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.jobs import MAX_LOST_ATTEMPTS
from callpool.manager.core.machine import END_GRACE, state_of
from callpool.manager.core.messages import (
    Accepted,
    CancelCall,
    Chunk,
    Dispatch,
    Done,
    Finished,
    Piece,
    Rejected,
    Started,
)
from callpool.manager.core.requests import Now
from callpool.manager.core.states import State

from .build import TIMEOUT, Bench, make_core, to_clients, to_workers

CANCELLED = Fault(code="cancelled", message="says the worker")


def bench(*, workers: int = 1, **limits: object) -> Bench:
    return Bench(make_core(**limits), workers=workers)  # type: ignore[arg-type]


def done(effects: list[Effect]) -> Done:
    [message] = [message for message in to_clients(effects) if isinstance(message, Done)]
    return message


def dispatched(effects: list[Effect]) -> list[str]:
    return [order.request_id for order in to_workers(effects) if isinstance(order, Dispatch)]


def refused(effects: list[Effect]) -> Fault:
    [message] = to_clients(effects)
    assert isinstance(message, Rejected)
    return message.fault


def test_the_life_of_a_request() -> None:
    b = bench()
    effects = b.submit("r1", payload=b"{1}")
    assert to_clients(effects) == [Accepted("r1", 0, 0.0)]
    assert to_workers(effects) == [Dispatch("r1", 1, "a", "m", TIMEOUT, stream=False, payload=b"{1}")]
    assert b.state("r1") == "allocated"
    b.time += 1.0
    assert b.start("r1") == []
    assert b.state("r1") == "processing"
    assert b.start("r1") == [], "said twice is said once"
    assert to_clients(b.do(Reported(1, Piece("r1", b.holder("r1")[1], b"p")))) == [Chunk("r1", b"p")]
    b.time += 2.0
    assert to_clients(b.finish("r1", body=b"answer")) == [Done("r1", "completed", "session_r1", 2.0, b"answer")]
    record = b.core.show("r1", Now(b.time, b.time))
    assert record is not None
    assert [phase for phase, _, _ in record.phases] == [
        "RECEIVED", "QUEUED", "DEQUEUED", "SESSION_ALLOCATED", "PROVIDER_CALL_START", "FIRST_TOKEN",
        "PROVIDER_CALL_END", "SESSION_RELEASED", "COMPLETED",
    ]  # fmt: skip
    assert b.core.next_deadline() is None


def test_the_record_of_an_ended_request_keeps_the_size_of_its_payload() -> None:
    b = bench()
    b.submit("r1", payload=b"x" * 100)
    b.finish("r1")
    record = b.core.show("r1", Now(b.time, b.time))
    assert record is not None
    assert record.payload_bytes == 100


def test_an_ended_request_lets_its_payload_go() -> None:
    """The history keeps 10,000 requests; with their payloads it could be gigabytes."""
    b = bench()
    b.submit("r1", payload=b"x" * 100)
    request = b.core.requests["r1"]
    b.finish("r1")
    assert request.payload == b""


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (None, State.COMPLETED),
        ("timeout", State.TIMEOUT),
        ("cancelled", State.CANCELLED),
        ("interrupted", State.INTERRUPTED),
        ("worker_lost", State.INTERRUPTED),
        ("provider_error", State.ERROR),
        ("from_the_future", State.ERROR),
    ],
)
def test_what_a_fault_means(code: str | None, state: State) -> None:
    assert state_of(Fault(code=code, message="m") if code else None) is state


# Waking up.


def test_a_slot_that_comes_free_wakes_its_account_only_and_the_pool_wakes_all() -> None:
    b = bench(pool=2, accounts={"a": 1, "b": 1})
    b.submit("a1", account="a")
    b.submit("a2", account="a")
    assert dispatched(b.submit("b1", account="b")) == ["b1"]
    assert dispatched(b.finish("b1")) == []
    assert dispatched(b.finish("a1")) == ["a2"]


def test_a_pool_that_comes_free_serves_every_account() -> None:
    b = bench(pool=1, accounts={"a": 5, "b": 5})
    b.submit("a1", account="a")
    b.submit("b1", account="b")
    b.submit("a2", account="a")
    assert dispatched(b.finish("a1")) == ["b1"]
    assert dispatched(b.finish("b1")) == ["a2"]


def test_opening_an_account_and_the_first_worker_wake_all_that_wait() -> None:
    b = bench(workers=0, pool=3, accounts={"a": 3})
    b.do(AccountClosed("a", "its server starts"))
    for number in range(4):
        assert dispatched(b.submit(f"r{number}")) == []
    assert dispatched(b.do(WorkerUp(1))) == []
    assert dispatched(b.do(AccountClosed("a", None))) == ["r0", "r1", "r2"]


def test_a_death_that_ends_several_calls_wakes_as_many() -> None:
    b = bench(workers=2, pool=4, accounts={"a": 4})
    for number in range(8):
        b.submit(f"r{number}")
    for request_id in sorted(b.core.by_worker[1]):
        b.start(request_id)
    assert dispatched(b.do(WorkerDown(1, "was killed"))) == ["r4", "r5"]


def test_calls_are_spread_over_workers() -> None:
    b = bench(workers=2, pool=4, accounts={"a": 4})
    for number in range(4):
        b.submit(f"r{number}")
    assert [len(held) for held in b.core.by_worker.values()] == [2, 2]


# Lost workers.


def test_a_call_that_had_not_begun_goes_back_to_its_place_with_its_session() -> None:
    b = bench(workers=2, pool=1)
    b.submit("r1", metadata=b"m" * 40)
    b.submit("r2", metadata=b"m" * 5)
    assert b.core.sessions.metadata_bytes == 40
    effects = b.do(WorkerDown(1, "was killed"))
    assert dispatched(effects) == ["r1"]
    figures = b.core.sessions.statistics(shutdown_requested=False)
    assert (figures["total_sessions_created"], figures["active_sessions"]) == (1, 1)
    assert (figures["current_metadata_bytes"], figures["metrics_drift"]) == (40, 0)


def test_a_request_that_waits_again_holds_nothing_and_its_old_deadline_does_not_fire() -> None:
    b = bench()
    b.submit("r1", metadata=b"m" * 40, timeout=1.0)
    b.do(WorkerDown(1, "was killed"))
    assert (b.core.sessions.active, b.core.sessions.metadata_bytes) == (0, 0)
    assert b.core.ledger.accounts["a"].active == 0
    assert b.core.next_deadline() is None
    assert b.do(Tick(), after=60.0) == []
    record = b.core.show("r1", Now(b.time, b.time))
    assert record is not None
    assert (record.state, record.worker) == ("queued", None)
    assert dispatched(b.do(WorkerUp(2))) == ["r1"]
    due = b.core.next_deadline()
    assert due is not None
    assert due >= b.time + 1.0 + TIMEOUT_GRACE


def test_a_call_that_had_begun_is_in_doubt_and_is_never_made_again() -> None:
    b = bench(workers=2)
    b.submit("r1")
    b.start("r1")
    effects = b.do(WorkerDown(1, "was killed"))
    message = done(effects)
    assert (message.state, message.fault.code if message.fault else None) == ("interrupted", "worker_lost")
    assert dispatched(effects) == []


def test_a_start_that_was_in_the_pipe_counts() -> None:
    b = bench(workers=2)
    b.submit("r1")
    b.do(Reported(1, Started("r1", b.holder("r1")[1])))  # read from the dead worker's pipe before its end is applied
    assert done(b.do(WorkerDown(1, "was killed"))).state == "interrupted"


def test_a_request_that_loses_worker_after_worker_is_given_up() -> None:
    b = bench(workers=0)
    b.submit("r1")
    for number in range(1, MAX_LOST_ATTEMPTS):
        b.do(WorkerUp(number))
        assert to_clients(b.do(WorkerDown(number, "was killed"))) == []
    b.do(WorkerUp(9))
    message = done(b.do(WorkerDown(9, "was killed")))
    assert (message.state, message.fault.code if message.fault else None) == ("error", "not_started")
    assert b.core.requests == {}


def test_a_worker_that_dies_while_an_end_is_ordered_is_that_end() -> None:
    b = bench(workers=2)
    b.submit("r1")
    b.start("r1")
    b.do(CancelAsked("c", "r1"))
    assert done(b.do(WorkerDown(1, "was killed"))).state == "cancelled"


# Ending.


def test_cancel_while_queued_ends_at_once() -> None:
    b = bench(pool=1)
    b.submit("r1")
    b.submit("r2")
    message = done(b.do(CancelAsked("c", "r2")))
    assert (message.state, message.session_id, message.duration) == ("cancelled", None, 0.0)
    assert len(b.core.scheduler) == b.core.scheduler.queued_bytes == 0


@pytest.mark.parametrize("started", [False, True])
def test_cancel_of_an_active_call_keeps_the_slot_until_the_worker_says_so(*, started: bool) -> None:
    b = bench(pool=1)
    b.submit("r1")
    b.submit("r2")
    if started:
        b.start("r1")
    worker, attempt = b.holder("r1")
    assert b.do(CancelAsked("c", "r1")) == [ToWorker(worker, CancelCall("r1", attempt))]
    assert b.do(CancelAsked("c", "r1")) == [], "one order is enough"
    b.time += 0.25
    effects = b.finish("r1", fault=CANCELLED)
    message = done(effects)
    assert message.state == "cancelled"
    assert message.fault is not None
    assert message.fault.message == "cancelled by its client"
    assert message.fault.details == {"reason": "asked", "cancel_seconds": 0.25}
    assert (b.core.sessions.cancels.count, b.core.sessions.cancels.total) == (1, 0.25)
    assert dispatched(effects) == ["r2"]


def test_an_answer_that_was_under_way_wins_over_a_cancel() -> None:
    b = bench()
    b.submit("r1")
    b.start("r1")
    b.do(CancelAsked("c", "r1"))
    assert done(b.finish("r1", body=b"paid for")).body == b"paid for"


def test_strangers_cancel_nothing_and_the_operator_anything() -> None:
    b = bench()
    b.submit("r1")
    assert b.do(CancelAsked("stranger", "r1")) == []
    assert b.do(CancelAsked("c", "r2")) == []
    assert len(b.do(CancelAsked(None, "r1"))) == 1


@pytest.mark.parametrize(("started", "state"), [(False, "cancelled"), (True, "interrupted")])
def test_a_cancel_that_is_not_acknowledged_gives_the_slot_back_after_its_grace(*, started: bool, state: str) -> None:
    b = bench(pool=1)
    b.submit("r1", metadata=b"m" * 9)
    b.submit("r2", metadata=b"m")
    if started:
        b.start("r1")
    b.do(CancelAsked("c", "r1"))
    assert to_clients(b.do(Tick(), after=END_GRACE - 0.01)) == []
    due = b.core.next_deadline()
    assert due is not None
    b.time = due
    effects = b.do(Tick())
    assert done(effects).state == state
    assert dispatched(effects) == ["r2"]
    assert b.core.sessions.metadata_bytes == 1


def test_the_core_ends_a_call_whose_worker_keeps_no_time() -> None:
    b = bench()
    b.submit("r1", timeout=5.0)
    b.start("r1")
    assert b.do(Tick(), after=5.0) == [], "the worker's own deadline has the first word"
    assert len(to_workers(b.do(Tick(), after=TIMEOUT_GRACE + 0.25))) == 1
    message = done(b.finish("r1", fault=CANCELLED))
    assert message.state == "timeout"
    assert message.fault is not None
    assert message.fault.details == {"seconds": 5.0, "which": "total", "cancel_seconds": 0.0}


def test_a_client_that_goes_away_ends_its_own_queued_and_active_requests_only() -> None:
    b = bench(pool=2)
    b.submit("mine", client="gone")
    b.submit("other")
    b.submit("queued", client="gone")
    b.submit("next")
    effects = b.do(ClientGone("gone"))
    assert done(effects).request_id == "queued"
    assert [type(order) for order in to_workers(effects)] == [CancelCall]
    assert dispatched(b.finish("mine", fault=CANCELLED)) == ["next"]
    assert b.core.by_client == {"c": {"other", "next"}}
    assert b.do(ClientGone("gone")) == []


# Late words.


@pytest.mark.parametrize("report", [Started("r1", 1), Piece("r1", 1, b"p"), Finished("r1", 1, b"late")])
def test_what_is_said_of_an_ended_request_is_dropped(report: Started | Piece | Finished) -> None:
    b = bench()
    b.submit("r1")
    b.finish("r1")
    before = b.core.sessions.statistics(shutdown_requested=False)
    assert b.do(Reported(1, report)) == []
    assert b.core.sessions.statistics(shutdown_requested=False) == before


@pytest.mark.parametrize("worker", [1, 2])
def test_a_late_answer_never_ends_a_newer_request_with_the_same_id(worker: int) -> None:
    """Worker 1 ignores a cancel, the core gives up on it, the id is used again: the old answer comes then."""
    b = bench(workers=1)
    b.submit("r1", payload=b"old")
    b.start("r1")
    b.do(CancelAsked("c", "r1"))
    assert done(b.do(Tick(), after=END_GRACE + 0.25)).state == "interrupted"
    if worker == 2:
        b.core.by_worker[1].add("busy")  # so that the new call goes to the other worker
        b.do(WorkerUp(2))
    b.submit("r1", payload=b"new", client="another")
    b.core.by_worker[1].discard("busy")
    assert b.holder("r1")[0] == worker
    assert b.do(Reported(1, Finished("r1", 1, b"answer to the old request"))) == []
    assert done(b.finish("r1", body=b"new answer")).body == b"new answer"


# Refusals.


def test_a_refusal_keeps_nothing() -> None:
    b = bench()
    fault = refused(b.submit("r1", metadata=b"m" * 101))
    assert (fault.code, fault.message) == ("metadata_too_large", "Metadata size (101 bytes) exceeds limit (100 bytes)")
    assert b.core.sessions.rejected_metadata_size == 1
    assert (b.core.requests, b.core.by_client, len(b.core.scheduler)) == ({}, {}, 0)


def test_the_queue_is_bounded_and_says_so() -> None:
    b = bench(workers=0, max_requests=2)
    b.submit("r1")
    b.submit("r2")
    fault = refused(b.submit("r3"))
    assert (fault.code, fault.details["waiting"], fault.details["limit"]) == ("queue_full", 2, 2)
    b.do(CancelAsked("c", "r1"))
    assert to_clients(b.submit("r3")) == [Accepted("r3", 1)]


def test_the_queue_is_bounded_in_bytes_and_what_was_accepted_is_kept_beyond_it() -> None:
    b = bench(pool=1, max_bytes=100)
    b.submit("r1", payload=b"x" * 90, metadata=b"")
    b.submit("r2", payload=b"x" * 80, metadata=b"y" * 10)
    assert refused(b.submit("r3", payload=b"x" * 9, metadata=b"yy")).code == "queue_full"
    b.do(WorkerDown(1, "was killed"))
    assert b.core.scheduler.queued_bytes == 180
    assert dispatched(b.do(WorkerUp(2))) == ["r1"]


def test_an_active_id_is_refused_and_an_ended_one_is_free() -> None:
    b = bench()
    b.submit("r1")
    assert refused(b.submit("r1", client="another")).code == "duplicate_request"
    b.finish("r1")
    assert to_clients(b.submit("r1")) == [Accepted("r1", 0, 0.0)]


def test_without_acknowledgement_only_a_refusal_is_answered() -> None:
    b = bench()
    assert to_clients(b.submit("r1", acknowledge=False)) == []
    assert refused(b.submit("r1", acknowledge=False)).code == "duplicate_request"


# Draining.


def drained(effects: list[Effect]) -> Drained:
    [effect] = [effect for effect in effects if isinstance(effect, Drained)]
    return effect


def test_an_idle_pool_drains_at_once() -> None:
    b = bench()
    report = drained(b.do(DrainAsked(30.0))).report
    assert (report.finished, report.cancelled, report.interrupted, report.timeout_reached) == (0, 0, 0, False)
    assert refused(b.submit("r1")).message == "Session manager is shutting down, cannot create new sessions"
    assert b.core.next_deadline() is None


def test_a_drain_finishes_what_is_queued_too() -> None:
    b = bench(pool=1)
    b.submit("r1")
    b.submit("r2")
    b.do(DrainAsked(30.0))
    assert dispatched(b.finish("r1")) == ["r2"]
    b.time += 2.0
    report = drained(b.finish("r2")).report
    assert (report.finished, report.sessions_completed_during_shutdown, report.initial_active_sessions) == (2, 2, 1)
    assert (report.shutdown_duration, report.final_active_sessions, report.timeout_reached) == (2.0, 0, False)


def test_the_cut_ends_everything_and_gives_up_on_the_deaf() -> None:
    b = bench(pool=3, accounts={"a": 3})
    for name in ("obeys", "deaf", "unstarted", "queued"):
        b.submit(name)
    b.start("obeys")
    b.start("deaf")
    b.do(DrainAsked(5.0))
    assert b.core.next_deadline() == b.time + 5.0
    effects = b.do(Tick(), after=5.0)
    assert [message.request_id for message in to_clients(effects) if isinstance(message, Done)] == ["queued"]
    assert len(to_workers(effects)) == 3
    b.finish("obeys", fault=CANCELLED)
    due = b.core.next_deadline()
    assert due == b.time + CUT_GRACE
    b.time = due
    report = drained(b.do(Tick())).report
    assert (report.finished, report.cancelled, report.interrupted) == (0, 3, 1)
    assert (report.initial_active_sessions, report.final_active_sessions, report.timeout_reached) == (3, 3, True)
    assert report.shutdown_duration == 5.0 + CUT_GRACE
    assert b.core.next_deadline() is None


def test_a_second_order_can_only_shorten_a_drain() -> None:
    b = bench()
    b.submit("r1")
    b.do(DrainAsked(10.0))
    b.do(DrainAsked(60.0))
    assert b.core.next_deadline() == b.time + 10.0
    b.do(DrainAsked(1.0))
    assert b.core.next_deadline() == b.time + 1.0
    assert len(to_workers(b.do(CutAsked()))) == 1
    assert b.do(CutAsked()) == []


@pytest.mark.parametrize("timeout", [0.0, -5.0])
def test_a_drain_without_time_cuts_at_once(timeout: float) -> None:
    b = bench()
    b.submit("r1")
    assert len(to_workers(b.do(DrainAsked(timeout)))) == 1


def test_a_cut_without_a_drain_is_a_drain_without_time() -> None:
    b = bench()
    b.submit("r1")
    assert [type(order) for order in to_workers(b.do(CutAsked()))] == [CancelCall]
    assert drained(b.do(WorkerDown(1, "was killed"))).report.cancelled == 1


def test_a_drain_survives_the_loss_of_every_worker() -> None:
    b = bench()
    b.submit("r1")
    b.do(DrainAsked(5.0))
    assert b.do(WorkerDown(1, "was killed")) == []
    report = drained(b.do(Tick(), after=5.0)).report
    assert (report.cancelled, report.final_active_sessions) == (1, 0)


def test_a_drain_without_a_number_still_ends() -> None:
    """NaN compares false with every time: a deadline of NaN never comes."""
    b = bench(workers=0)
    b.submit("r1")
    b.do(DrainAsked(math.nan))
    b.do(Tick(), after=3_600.0)
    assert any(isinstance(effect, Drained) for effect in b.effects)
