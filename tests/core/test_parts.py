"""Answers that come in parts, each by a call of its own."""

from __future__ import annotations

import pytest

from callpool.manager.core.events import CancelAsked, Effect, Reported, Tick, WorkerDown, WorkerUp
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import Continues, Dispatch, Piece
from callpool.manager.core.requests import Now
from callpool.manager.core.retry import MAX_PARTS, RetryRules

from .attempts import BROKEN, BUSY, GONE, bench, ends, fail, fault, orders, record, wake
from .build import TIMEOUT, to_workers


class TestParts:
    def test_a_part_is_followed_by_the_next_call_of_the_same_request(self) -> None:
        b = bench()
        b.submit("r", payload=b"one")
        b.start("r")
        b.time += 2.0
        effects = b.do(Reported(1, Continues("r", b.holder("r")[1], b"two")))
        [order] = to_workers(effects)
        assert isinstance(order, Dispatch)
        assert (order.payload, order.timeout, order.attempt) == (b"two", TIMEOUT - 2.0, 2)
        fail(b, BUSY)
        [again] = [each for each in to_workers(wake(b)) if isinstance(each, Dispatch)]
        assert again.payload == b"two", "only the part that failed is called again"
        b.start("r")
        [end] = ends(b.finish("r", body=b"joined"))
        assert end.body == b"joined"
        assert [(each.number, each.code) for each in record(b).attempts] == [(1, "length"), (2, "provider_error")]
        assert b.core.scheduler.queued_bytes == 0

    def test_nobody_else_goes_on_with_what_one_has_begun(self) -> None:
        """Another provider would take the beginning for an answer that was given, and the join would be wrong."""
        b = bench(accounts={"a": 1, "b": 1})
        b.submit("r", fallbacks=["b/m"])
        b.start("r")
        b.do(Reported(1, Continues("r", b.holder("r")[1], b"two")))
        [end] = ends(fail(b, GONE))
        assert end.fault == GONE

    def test_a_part_that_waits_counts_what_it_has_grown_to(self) -> None:
        b = bench()
        b.submit("r", payload=b"one")
        b.start("r")
        part = Reported(1, Continues("r", b.holder("r")[1], b"x" * 500))
        b.core.apply_batch([part, WorkerDown(1, "died")], Now(b.time, b.time))
        assert b.core.scheduler.queued_bytes == 502
        b.do(WorkerUp(2))
        assert b.core.scheduler.queued_bytes == 0

    def test_a_cancel_that_comes_with_a_part_ends_it(self) -> None:
        b = bench()
        b.submit("r")
        b.start("r")
        b.do(CancelAsked("c", "r"))
        [end] = ends(b.do(Reported(1, Continues("r", b.holder("r")[1], b"two"))))
        assert end.state == "cancelled"
        assert b.core.sessions.active == 0

    def test_each_part_has_retries_of_its_own(self) -> None:
        b = bench(retry_rules=RetryRules(attempts=2, first_wait=0.0))
        b.submit("r")
        for _ in range(3):
            fail(b, BUSY)
            b.start("r")
            effects = b.do(Reported(1, Continues("r", b.holder("r")[1], b"more")))
            assert len(orders(effects)) == 1

    def test_a_stream_that_breaks_in_a_later_part_is_not_begun_again(self) -> None:
        """What came before would have to come again, and no call brings it."""
        b = bench()
        b.submit("r", stream=True, retry_in_doubt=True)
        b.start("r")
        b.do(Reported(1, Continues("r", b.holder("r")[1], b"two")))
        b.start("r")
        b.do(Reported(1, Piece("r", b.holder("r")[1], b"q")))
        assert len(ends(b.finish("r", fault=BROKEN))) == 1

    @pytest.mark.parametrize("end", ["lost", "deadline", "worker's own"])
    def test_an_end_that_no_worker_tells_has_the_text_too(self, end: str) -> None:
        b = bench()
        b.submit("r")
        b.start("r")
        b.do(Reported(1, Continues("r", b.holder("r")[1], b"two", partial="One, ")))
        b.start("r")
        if end == "lost":
            effects = b.do(WorkerDown(1, "died"))
        elif end == "deadline":
            b.do(Tick(), after=TIMEOUT + 2.0)
            effects = b.finish("r", fault=Fault(code="cancelled", message="m"))
        else:
            effects = b.finish("r", fault=fault("broken_answer", in_doubt=True, partial="One, two"))
        [done] = ends(effects)
        assert done.fault is not None
        assert done.fault.details["partial"] == ("One, two" if end == "worker's own" else "One, ")

    def test_an_ended_request_keeps_nothing_of_its_text(self) -> None:
        b = bench(accounts={"a": 1, "b": 1})
        b.submit("r", fallbacks=["b/m"])
        b.submit("s", fallbacks=["b/m"])
        route, other = b.core.requests["r"].route, b.core.requests["s"].route
        assert route is not None
        assert other is not None
        b.start("r")
        b.do(Reported(1, Continues("r", b.holder("r")[1], b"two", partial="One, ")))
        b.start("r")
        b.finish("r")
        b.start("s")
        b.finish("s")
        assert (route.partial, other.fallbacks) == ("", [])

    def test_parts_end(self) -> None:
        b = bench()
        b.submit("r", timeout=1000.0)
        effects: list[Effect] = []
        for number in range(MAX_PARTS + 1):
            b.start("r")
            worker, attempt = b.holder("r")
            order = b.core.requests["r"].route
            assert order is not None
            assert order.parts == number
            effects = b.do(Reported(worker, Continues("r", attempt, b"{}")))
        [done] = ends(effects)
        assert done.fault is not None
        assert done.fault.code == "broken_answer"
        assert b.core.sessions.active == 0

    def test_a_call_knows_how_many_parts_came_before(self) -> None:
        b = bench()
        b.submit("r")
        assert b.core.requests["r"].route is not None
        b.start("r")
        [order] = to_workers(b.do(Reported(1, Continues("r", b.holder("r")[1], b"two"))))
        assert isinstance(order, Dispatch)
        assert order.part == 1

    def test_a_stream_of_parts_is_called_again_only_for_a_part_that_brought_nothing(self) -> None:
        b = bench(retry_rules=RetryRules(first_wait=0.0))
        b.submit("r", stream=True)
        b.start("r")
        b.do(Reported(1, Piece("r", b.holder("r")[1], b"p")))
        b.do(Reported(1, Continues("r", b.holder("r")[1], b"two")))
        b.start("r")
        assert len(orders(b.finish("r", fault=BUSY))) == 1
        b.start("r")
        b.do(Reported(1, Piece("r", b.holder("r")[1], b"q")))
        assert len(ends(b.finish("r", fault=BUSY))) == 1
