"""Sessions that clients hold, in the core: every move, every limit, every end, once and exactly."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from callpool.manager.core import held
from callpool.manager.core.events import (
    Answer,
    CancelAsked,
    ClientGone,
    CreationFailed,
    DrainAsked,
    Drained,
    Effect,
    FunctionAsked,
    MetricsReset,
    Reported,
    SessionAsked,
    SessionMoved,
    SessionsCleaned,
    ThreadsAbandoned,
    Tick,
    ToClient,
    ToLane,
    WorkerDown,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.held import SessionView
from callpool.manager.core.messages import CancelCall, Dispatch, Done, Finished, Rejected, Started, Submit
from callpool.manager.core.requests import Kind, Now
from callpool.manager.core.states import MOVES, Move, State

from .build import Bench, make_core

LANE = -1


class Held(Bench):
    """The bench, with the verbs of held sessions. Its answers are views, or the faults that were given instead."""

    def __init__(self, **options: Any) -> None:
        super().__init__(make_core(**options))
        self._numbers = itertools.count(1)

    def answer(self, event: Any, *, after: float = 0.0) -> Any:
        (found,) = [effect for effect in self.do(event, after=after) if isinstance(effect, Answer)]
        return found.value if found.fault is None else found.fault

    def create(
        self,
        request_id: str = "r1",
        *,
        holder: str = "h",
        provider: str = "x",
        metadata: bytes = b"{}",
        timeout: float | None = None,
        start: bool = False,
    ) -> Any:
        submit = Submit(request_id, provider, "m", b"", metadata, timeout)
        return self.answer(SessionAsked(holder, submit, f"session_{next(self._numbers)}", start=start))

    def move(self, request_id: str, move: Move | None = None, **options: Any) -> Any:
        return self.answer(SessionMoved(request_id, move=move, **options))

    def view(self, request_id: str, session_id: str | None = None) -> SessionView | None:
        return self.core.held.view(request_id, session_id, Now(self.time, self.time))

    def figures(self) -> dict[str, Any]:
        return self.core.sessions.statistics(shutdown_requested=self.core.drain is not None)

    def nothing_is_held(self) -> None:
        sessions = self.core.sessions
        assert (sessions.active, sessions.metadata_bytes, len(sessions.live)) == (0, 0, 0)
        assert all(account.active == 0 for account in self.core.ledger.accounts.values())
        assert (self.core.requests, self.core.by_client, len(self.core.leases)) == ({}, {}, 0)


def test_a_life_of_four_verbs() -> None:
    b = Held()
    made = b.create(metadata=b'{"user": "ann"}', timeout=9.0)
    assert (made.state, made.timeout_seconds, made.metadata_bytes, made.started_at) == ("idle", 9.0, 15, None)
    assert b.answer(SessionMoved("r1", move=Move.START), after=2.0).state == "processing"
    ended = b.answer(SessionMoved("r1", move=Move.COMPLETE, result=b'{"a": 1}'), after=3.0)
    assert (ended.state, ended.duration, ended.completed_at) == ("completed", 3.0, b.time)
    kept = b.view("r1")
    assert kept is not None
    assert (kept.metadata, kept.result, kept.released) == (b'{"user": "ann"}', b'{"a": 1}', False)
    assert b.move("r1", release=True).released
    assert b.figures()["average_session_duration"] == 3.0
    b.nothing_is_held()


@pytest.mark.parametrize(
    ("move", "fault", "state", "counter"),
    [
        (Move.COMPLETE, None, "completed", "total_sessions_completed"),
        (Move.FAIL, Fault(code="session_failed", message="no"), "error", "total_sessions_error"),
        (Move.FAIL, Fault(code="timeout", message="the provider's"), "error", "total_sessions_error"),
        (Move.FAIL, None, "error", "total_sessions_error"),
        (Move.TIME_OUT, None, "timeout", "total_sessions_timeout"),
        (Move.CANCEL, None, "cancelled", "total_sessions_cancelled"),
        (None, None, "cancelled", "total_sessions_cancelled"),
    ],
)
def test_each_end_is_counted_once_and_gives_everything_back(
    move: Move | None, fault: Fault | None, state: str, counter: str
) -> None:
    b = Held()
    b.create(start=True, provider="a", metadata=b"x" * 50)
    assert (b.core.sessions.metadata_bytes, b.core.ledger.accounts["a"].active) == (50, 1)
    assert b.move("r1", move, fault=fault, release=move is None).state == state
    b.nothing_is_held()
    for _ in range(3):
        b.move("r1", release=True)
    assert b.figures()[counter] == 1
    assert sum(b.core.sessions.ended.values()) == 1


@pytest.mark.parametrize("state", [State.IDLE, State.PROCESSING, State.COMPLETED, State.ERROR, State.TIMEOUT])
@pytest.mark.parametrize("move", [Move.START, Move.COMPLETE, Move.FAIL, Move.TIME_OUT, Move.CANCEL])
def test_a_move_that_the_table_has_not_is_named_and_changes_nothing(state: State, move: Move) -> None:
    b = Held()
    b.create(start=state is not State.IDLE)
    end = {State.COMPLETED: Move.COMPLETE, State.ERROR: Move.FAIL, State.TIMEOUT: Move.TIME_OUT}.get(state)
    if end is not None:
        b.move("r1", end)
    before = (b.figures(), b.view("r1"))
    answer = b.move("r1", move)
    if move in MOVES[state]:
        assert isinstance(answer, SessionView)
        return
    assert (answer.code, answer.details) == (
        "illegal_move",
        {"request_id": "r1", "state": state.value, "move": move.value},
    )
    assert (b.figures(), b.view("r1")) == before


def test_at_the_limit_a_session_is_refused_and_nothing_of_it_kept() -> None:
    b = Held(pool=2)
    b.create("r1")
    b.create("r2")
    fault = b.create("r3")
    assert (fault.code, fault.message) == ("capacity_full", "Maximum concurrent sessions reached (limit 2, active 2)")
    assert (b.view("r3"), b.figures()["sessions_rejected_capacity"], b.figures()["active_sessions"]) == (None, 1, 2)
    b.move("r1", release=True)
    assert b.create("r3").state == "idle"


def test_a_provider_that_the_configuration_knows_draws_on_its_account() -> None:
    b = Held(pool=9, accounts={"a": 1})
    b.create("r1", provider="a")
    fault = b.create("r2", provider="a")
    assert fault.message == "Maximum concurrent sessions reached (limit 1, active 1) on account 'a'"
    assert b.create("r2", provider="another").state == "idle"
    b.submit("r3", account="a")
    assert b.state("r3") == "queued", "the held session has the account's slot"
    b.move("r1", release=True)
    assert b.state("r3") == "allocated", "what is given back goes on to what waits"


def test_metadata_over_the_limit_is_refused_with_both_numbers() -> None:
    b = Held(max_metadata=100)
    fault = b.create(metadata=b"x" * 101)
    assert (fault.code, fault.message) == ("metadata_too_large", "Metadata size (101 bytes) exceeds limit (100 bytes)")
    assert b.figures()["sessions_rejected_metadata_size"] == 1
    assert b.create(metadata=b"x" * 100).metadata_bytes == 100


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"request_id": "no good"}, "request_id"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x" * 65}, "request_id"),
        ({"provider": ""}, "provider"),
        ({"provider": "p" * 201}, "provider"),
        ({"timeout": 0.0}, "timeout_seconds"),
        ({"timeout": float("nan")}, "timeout_seconds"),
    ],
)
def test_what_cannot_be_created_is_told_counted_and_not_kept(options: dict[str, Any], param: str) -> None:
    b = Held()
    fault = b.create(**options)
    assert (fault.code, fault.param) == ("session_creation_failed", param)
    assert fault.message.startswith("Failed to create session: ")
    b.answer(CreationFailed())
    assert b.figures()["sessions_rejected_creation_error"] == 2
    b.nothing_is_held()


def test_an_active_id_is_refused_whoever_has_it_and_an_ended_one_is_free() -> None:
    b = Held(pool=1)
    b.submit("queued")
    b.submit("waits")
    assert b.create("waits").code == "capacity_full"
    b.finish("queued")
    b.finish("waits")
    b.create("held")
    assert b.create("held", holder="h2").code == "capacity_full"
    rejected = [effect.message for effect in b.submit("held") if isinstance(effect, ToClient)]
    assert isinstance(rejected[0], Rejected)
    assert rejected[0].fault.code == "duplicate_request"
    b.move("held", release=True)
    assert b.create("held").session_id == "session_4"


def test_a_duplicate_is_refused_before_it_takes_anything() -> None:
    b = Held(pool=5)
    b.create("r1", metadata=b"x" * 10)
    fault = b.create("r1", metadata=b"x" * 20)
    assert fault.code == "duplicate_request"
    assert (b.figures()["active_sessions"], b.figures()["current_metadata_bytes"]) == (1, 10)


def test_a_stale_handle_cannot_touch_a_later_session_of_the_same_id() -> None:
    b = Held()
    old = b.create().session_id
    b.move("r1", release=True)
    new = b.create().session_id
    assert b.move("r1", Move.START, session_id=old).code == "illegal_move"
    assert b.answer(SessionMoved("r1", session_id=old, release=True)).state == "cancelled"
    assert b.move("r1", Move.START, session_id="session_of_nobody").code == "unknown_request"
    assert b.state("r1") == "idle"
    assert b.move("r1", Move.START, session_id=new).state == "processing"


def test_releasing_what_is_unknown_is_a_no_op_and_moving_it_is_an_error() -> None:
    b = Held()
    before = b.figures()
    assert b.move("nobody", release=True) is None
    assert b.move("nobody", Move.COMPLETE).code == "unknown_request"
    assert b.figures() == before


def test_the_session_of_a_submitted_request_is_not_its_clients_to_move() -> None:
    b = Held()
    b.submit("r1")
    for event in (SessionMoved("r1", move=Move.FAIL), SessionMoved("r1", release=True)):
        assert b.answer(event).code == "illegal_move"
    assert b.state("r1") == "allocated"
    view = b.view("r1")
    assert view is not None
    assert (view.kind, view.state) == (Kind.CALL, "allocated")


def test_an_end_that_came_first_stands() -> None:
    b = Held()
    b.create(start=True, timeout=1.0)
    b.do(Tick(), after=1.0 + b.core.held.cleanup_interval + 0.1)
    late = b.move("r1", Move.COMPLETE, release=True, settle=True)
    assert late.state == "timeout"
    assert (b.figures()["total_sessions_timeout"], b.figures()["total_sessions_completed"]) == (1, 0)


def test_what_is_late_is_listed_and_cleaned_up_when_asked() -> None:
    b = Held(pool=9)
    b.create("idle", timeout=1.0)
    b.create("late", timeout=1.0, start=True)
    b.create("young", timeout=100.0)
    b.time += 2.0
    now = Now(b.time, b.time)
    assert [view.request_id for view in b.core.held.page(now, timed_out=True)[0]] == ["idle", "late"]
    assert b.answer(SessionsCleaned()) == 2
    assert [view.request_id for view in b.core.held.page(now, timed_out=False)[0]] == ["young"]
    late = b.view("late")
    assert late is not None
    assert (late.state, late.released, late.timed_out) == ("timeout", True, True)
    assert b.answer(SessionsCleaned()) == 0


def test_what_is_late_is_cleaned_up_by_itself_a_little_later() -> None:
    b = Held()
    b.create(timeout=1.0)
    b.move("r1", Move.START)
    due = b.core.next_deadline()
    assert due is not None
    b.do(Tick(), after=1.0)
    assert b.state("r1") == "processing"
    b.time = due
    b.do(Tick())
    assert b.state("r1") == "timeout"
    b.nothing_is_held()


def test_the_timeout_counts_from_the_start() -> None:
    b = Held()
    b.create(timeout=10.0)
    b.answer(SessionMoved("r1", move=Move.START), after=9.0)
    b.time += 9.0
    view = b.view("r1")
    assert view is not None
    assert (view.timed_out, view.duration) == (False, 9.0)
    b.do(Tick(), after=b.core.held.cleanup_interval - 2.0)
    assert b.state("r1") == "processing"
    b.time += 2.0
    view = b.view("r1")
    assert view is not None
    assert view.timed_out


def test_a_holder_that_is_gone_holds_nothing_and_its_sessions_are_errors() -> None:
    b = Held(pool=9)
    b.create("r1", holder="h1", metadata=b"x" * 30)
    b.create("r2", holder="h1", start=True, provider="a")
    b.create("r3", holder="h2", metadata=b"y" * 7)
    b.do(ClientGone("h1"))
    for request_id in ("r1", "r2"):
        view = b.view(request_id)
        assert view is not None
        assert view.fault is not None
        assert (view.state, view.fault.code) == ("error", "holder_gone")
    assert (b.figures()["active_sessions"], b.figures()["current_metadata_bytes"]) == (1, 7)
    b.do(ClientGone("h2"))
    b.nothing_is_held()
    assert b.figures()["total_sessions_error"] == 3


def test_an_operator_ends_a_held_session() -> None:
    b = Held()
    b.create(start=True)
    b.do(CancelAsked(None, "r1"))
    assert b.state("r1") == "cancelled"
    assert b.move("r1", Move.COMPLETE).code == "illegal_move"
    b.nothing_is_held()


def test_a_drain_waits_for_held_sessions_and_counts_them() -> None:
    b = Held(pool=9)
    b.create("r1", start=True)
    b.create("r2", start=True)
    assert not _reports(b.do(DrainAsked(5.0)))
    assert b.create("r3").message == "Session manager is shutting down, cannot create new sessions"
    assert b.figures()["shutdown_requested"]
    b.move("r1", Move.COMPLETE, release=True)
    (report,) = _reports(b.do(SessionMoved("r2", move=Move.FAIL, release=True), after=2.0))
    assert (report.initial_active_sessions, report.final_active_sessions, report.timeout_reached) == (2, 0, False)
    assert (report.sessions_completed_during_shutdown, report.finished, report.shutdown_duration) == (2, 2, 2.0)


def test_a_drain_that_is_not_waited_for_tells_the_truth() -> None:
    b = Held(pool=9)
    for number in range(3):
        b.create(f"r{number}", start=True, metadata=b"x" * 10)
    b.do(DrainAsked(5.0))
    b.move("r0", Move.COMPLETE)
    (report,) = _reports(b.do(Tick(), after=5.0))
    assert (report.initial_active_sessions, report.final_active_sessions, report.timeout_reached) == (3, 2, True)
    assert (report.sessions_completed_during_shutdown, report.cancelled) == (1, 2)
    b.nothing_is_held()


def test_what_ends_after_the_deadline_is_not_counted_as_completed_before_it() -> None:
    b = Held(pool=9)
    b.submit("call")
    b.start("call")
    b.create("r1", start=True)
    b.do(DrainAsked(5.0))
    b.do(Tick(), after=5.0)
    (report,) = _reports(b.finish("call"))
    assert (report.sessions_completed_during_shutdown, report.finished, report.final_active_sessions) == (0, 1, 2)


def test_a_drain_of_nothing_does_not_reach_its_timeout() -> None:
    for seconds in (0.0, 5.0):
        (report,) = _reports(Held().do(DrainAsked(seconds)))
        assert (report.timeout_reached, report.initial_active_sessions) == (False, 0)


def test_a_request_that_waits_again_has_not_completed() -> None:
    b = Held()
    b.submit("r1")
    b.do(WorkerDown(1, "was killed"))
    view = b.view("r1")
    assert view is not None
    assert (view.state, view.completed_at) == ("queued", None)


def test_a_list_comes_in_pages_that_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "PAGE_SESSIONS", 3)
    monkeypatch.setattr(held, "PAGE_BYTES", 100)
    b = Held(pool=20)
    for number in range(8):
        b.create(f"r{number}", metadata=b"x" * (60 if number in {1, 2} else 2))
    pages, now = [], Now(b.time, b.time)
    after: int | None = 0
    while after is not None:
        page, after = b.core.held.page(now, timed_out=False, after=after)
        pages.append([view.request_id for view in page])
    assert pages == [["r0", "r1", "r2"], ["r3", "r4", "r5"], ["r6", "r7"]]
    monkeypatch.setattr(held, "PAGE_SESSIONS", 9)
    page, after = b.core.held.page(now, timed_out=False)
    assert ([view.request_id for view in page], after is None) == (["r0", "r1", "r2"], False)


def test_functions_are_bounded_in_bytes_each_and_together() -> None:
    b = Held(pool=9, max_payload=100, max_bytes=150)
    (refused,) = _done(_ask(b, "large", payload=b"f" * 101))
    assert (refused.fault.code, refused.fault.details) == ("bad_input", {"size": 101, "limit": 100})
    (first,) = _orders(_ask(b, "f1", payload=b"f" * 90))
    (refused,) = _done(_ask(b, "f2", payload=b"f" * 90))
    assert refused.fault.code == "queue_full"
    b.do(Reported(LANE, Started("f1", first.attempt)))
    (second,) = _orders(_ask(b, "f2", payload=b"f" * 90))
    b.do(Reported(LANE, Finished("f2", second.attempt, b"x")))
    (third,) = _orders(_ask(b, "f3", payload=b"f" * 90))
    b.do(CancelAsked(None, "f3"))
    b.do(Reported(LANE, Finished("f3", third.attempt, None, Fault(code="cancelled", message="killed"))))
    b.do(Reported(LANE, Finished("f1", first.attempt, b"x")))
    assert b.core.functions.waiting_bytes == 0
    b.nothing_is_held()


def test_figures_are_exact_also_after_a_reset() -> None:
    b = Held(pool=9)
    for number, seconds in enumerate((0.1, 0.2, 0.3)):
        b.create(f"r{number}", start=True)
        b.answer(SessionMoved(f"r{number}", move=Move.COMPLETE, release=True), after=seconds)
    assert b.figures()["average_session_duration"] == 0.2
    b.create("kept", start=True, metadata=b"x" * 20)
    b.create("kept2")
    b.create("kept3")
    b.move("kept3", release=True)
    assert b.figures()["peak_concurrent_sessions"] == 3
    b.answer(MetricsReset())
    after = b.figures()
    assert (after["total_sessions_created"], after["lifetime_total_completed"], after["total_sessions"]) == (0, 0, 2)
    assert (after["active_sessions"], after["current_metadata_bytes"], after["average_session_duration"]) == (
        2,
        22,
        0.0,
    )
    assert (after["peak_concurrent_sessions"], after["metrics_drift"]) == (2, 0)
    b.create("new")
    assert b.figures()["peak_concurrent_sessions"] == 3
    b.answer(SessionMoved("kept", move=Move.FAIL, release=True), after=1.5)
    metrics: dict[str, Any] = b.core.sessions.metrics(now=b.time, shutdown_requested=False)
    assert (metrics["error_rate"], metrics["success_rate"], metrics["average_session_duration"]) == (1.0, 0.0, 1.5)
    ended = sum(b.core.sessions.ended.values())
    assert metrics["total_sessions_created"] + metrics["sessions_live_at_reset"] == len(b.core.sessions.live) + ended


def _reports(effects: list[Effect]) -> list[Any]:
    return [effect.report for effect in effects if isinstance(effect, Drained)]


# Functions.


def _ask(b: Held, request_id: str = "f1", *, timeout: float = 5.0, payload: bytes = b"opaque") -> list[Effect]:
    submit = Submit(request_id, "x", "m", payload, b"{}", timeout)
    return b.do(FunctionAsked("client_1", "h", submit, f"session_{request_id}"))


def _orders(effects: list[Effect]) -> list[Any]:
    return [effect.order for effect in effects if isinstance(effect, ToLane)]


def _done(effects: list[Effect]) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, ToClient)]


def test_a_function_holds_a_session_while_it_runs() -> None:
    b = Held(pool=1)
    (order,) = _orders(_ask(b))
    assert isinstance(order, Dispatch)
    assert (order.payload, b.state("f1"), b.figures()["active_sessions"]) == (b"opaque", "allocated", 1)
    (refused,) = _done(_ask(b, "f2"))
    assert isinstance(refused, Rejected)
    assert refused.fault.code == "capacity_full"
    b.do(Reported(LANE, Started("f1", order.attempt)))
    (done,) = _done(b.do(Reported(LANE, Finished("f1", order.attempt, b"value")), after=2.0))
    assert isinstance(done, Done)
    assert (done.state, done.body, done.duration) == ("completed", b"value", 2.0)
    b.nothing_is_held()


def test_a_function_that_raised_is_an_error_and_its_outcome_travels_on() -> None:
    b = Held()
    (order,) = _orders(_ask(b))
    fault = Fault(code="function_failed", message="ValueError: no")
    (done,) = _done(b.do(Reported(LANE, Finished("f1", order.attempt, b"raised", fault))))
    assert (done.state, done.body, done.fault) == ("error", b"raised", fault)


@pytest.mark.parametrize("started", [False, True])
def test_a_function_past_its_timeout_is_killed_and_counts_as_timeout(*, started: bool) -> None:
    b = Held()
    (order,) = _orders(_ask(b, timeout=5.0))
    if started:
        b.do(Reported(LANE, Started("f1", order.attempt)), after=4.0)
        assert not _orders(b.do(Tick(), after=1.5)), "what it waited for a process is not the function's time"
    (kill,) = _orders(b.do(Tick(), after=5.1))
    assert kill == CancelCall("f1", order.attempt)
    assert b.figures()["active_sessions"] == 1, "until it is dead the slot is its own"
    ended = Fault(code="cancelled", message="cancelled")
    (done,) = _done(b.do(Reported(LANE, Finished("f1", order.attempt, None, ended))))
    assert (done.state, done.fault.code) == ("timeout", "timeout")
    assert b.figures()["total_sessions_timeout"] == 1
    b.nothing_is_held()


def test_a_function_ends_with_its_client() -> None:
    b = Held()
    (order,) = _orders(_ask(b))
    assert _orders(b.do(ClientGone("client_1"))) == [CancelCall("f1", order.attempt)]
    b.do(Reported(LANE, Finished("f1", order.attempt, None, Fault(code="cancelled", message="killed"))))
    assert b.state("f1") == "cancelled"
    b.nothing_is_held()


def test_threads_that_were_abandoned_are_counted_until_they_end_or_their_process_does() -> None:
    b = Held()
    for change in (1, 1, -1):
        b.answer(ThreadsAbandoned("h1", change))
    b.answer(ThreadsAbandoned("h2", 1))
    assert b.core.abandoned == {"h1": 1, "h2": 1}
    b.do(ClientGone("h1"))
    assert b.core.abandoned == {"h2": 1}
    b.answer(ThreadsAbandoned("h1", -1))
    assert b.core.abandoned == {"h2": 1}


def test_the_record_of_a_held_session_tells_its_phases() -> None:
    b = Held()
    b.create(start=True, metadata=json.dumps({"job": 7}).encode())
    b.move("r1", Move.COMPLETE)
    record = b.core.show("r1", Now(b.time, b.time))
    assert record is not None
    assert [phase for phase, _, _ in record.phases] == [
        "RECEIVED", "SESSION_ALLOCATED", "PROVIDER_CALL_START", "PROVIDER_CALL_END", "SESSION_RELEASED", "COMPLETED",
    ]  # fmt: skip
    assert (record.kind, record.client, record.metadata_bytes) == ("held", "h", 10)


def test_the_id_of_a_request_that_only_waits_is_taken_too() -> None:
    b = Held(pool=5, accounts={"a": 1})
    b.submit("runs", account="a")
    b.submit("waits", account="a")
    assert b.state("waits") == "queued"
    assert b.create("waits").code == "duplicate_request"
    (rejected,) = _done(_ask(b, "waits"))
    assert isinstance(rejected, Rejected)
    assert rejected.fault.code == "duplicate_request"
    assert b.figures()["sessions_rejected_creation_error"] == 2
