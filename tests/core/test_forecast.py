"""How long a request will wait, as far as calls of lately tell."""

from __future__ import annotations

import math
from typing import Any

import pytest

from callpool.manager.core.forecast import Forecast
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.limits import AccountRules, Counting, LedgerRules, Limits, Usage
from callpool.manager.core.messages import Accepted, Rejected
from callpool.manager.core.retry import Target
from callpool.manager.core.scopes import NO_COST

from .attempts import BAD, bench, fail
from .build import to_clients

A = Target("a", "m")


def ledger_of(*, organization: Limits | None = None, lag: float = 0.0, **limits: Any) -> Ledger:
    rules = AccountRules(
        limits=Limits(**({"concurrency": 4} | limits)),
        organization="o" if organization else None,
        counting=Counting(cancel_lag=lag),
    )
    return Ledger(LedgerRules(accounts={"a": rules}, organizations={"o": organization} if organization else {}))


def out(ledger: Ledger, calls: int) -> None:
    for number in range(calls):
        ledger.reserve(f"r{number}", number, A, "c", NO_COST, 0.0)


def served(seconds: float = 2.0, usage: Usage | None = None) -> Forecast:
    forecast = Forecast()
    forecast.add("a", seconds, usage)
    return forecast


class TestRate:
    def test_nothing_is_known_at_first(self) -> None:
        assert Forecast().rate(ledger_of().accounts["a"], 10) is None
        assert Forecast().mean_seconds("a") is None

    @pytest.mark.parametrize(("most", "rate"), [(100, 2.0), (2, 1.0)])
    def test_slots_over_the_time_of_a_call(self, most: int, rate: float) -> None:
        assert served().rate(ledger_of().accounts["a"], most) == rate

    def test_what_was_learned_of_the_limit_counts(self) -> None:
        ledger = ledger_of()
        concurrency = ledger.accounts["a"].scope.concurrency
        assert concurrency is not None
        concurrency.refuse(1, [2], 0, 0.0)
        assert served().rate(ledger.accounts["a"], 100) == 0.5

    def test_requests_and_tokens_of_a_minute(self) -> None:
        assert served().rate(ledger_of(requests_per_minute=30).accounts["a"], 100) == 0.5
        usage = Usage(150, 150)
        assert served(usage=usage).rate(ledger_of(tokens_per_minute=6_000).accounts["a"], 100) == pytest.approx(1 / 3)
        assert served(usage=None).rate(ledger_of(tokens_per_minute=6_000).accounts["a"], 100) == 2.0

    def test_an_organisations_limits_count(self) -> None:
        account = ledger_of(organization=Limits(concurrency=1)).accounts["a"]
        assert served().rate(account, 100) == 0.5
        account = ledger_of(organization=Limits(requests_per_minute=6)).accounts["a"]
        assert served().rate(account, 100) == 0.1

    def test_the_newest_calls_weigh_most(self) -> None:
        forecast = served(1.0)
        for _ in range(100):
            forecast.add("a", 3.0, Usage(10, 10))
        assert forecast.mean_seconds("a") == pytest.approx(3.0, rel=0.01)
        forecast.add("a", 13.0, None)
        assert forecast.mean_seconds("a") == pytest.approx(4.0, rel=0.01)

    def test_calls_that_take_no_time_are_no_trouble(self) -> None:
        rate = served(0.0).rate(ledger_of().accounts["a"], 100)
        assert rate is not None
        assert math.isfinite(rate)


class TestWait:
    def wait(
        self, ledger: Ledger, position: int, *, most: int = 100, room: int = 100, now: float = 0.0
    ) -> float | None:
        return served().wait(ledger.accounts["a"], position, most, room, now)

    def test_none_while_there_are_free_slots(self) -> None:
        assert [self.wait(ledger_of(), position) for position in range(4)] == [0.0] * 4

    def test_then_by_the_rate(self) -> None:
        ledger = ledger_of()
        assert self.wait(ledger, 4) == 0.5
        out(ledger, 4)
        assert [self.wait(ledger, position) for position in (0, 1, 9)] == [0.5, 1.0, 5.0]

    def test_the_pools_room_counts(self) -> None:
        assert self.wait(ledger_of(), 0, room=0) == 0.5
        assert self.wait(ledger_of(), 0, room=1) == 0.0

    def test_a_pause_comes_first(self) -> None:
        ledger = ledger_of()
        ledger.accounts["a"].scope.pause.until = 30.0
        assert self.wait(ledger, 0, now=10.0) == 20.0
        assert self.wait(ledger, 4, now=10.0) == 20.5

    def test_so_does_an_organisations(self) -> None:
        ledger = ledger_of(organization=Limits(tokens_per_minute=100))
        ledger.organizations["o"].pause.until = 30.0
        assert self.wait(ledger, 0, now=10.0) == 20.0

    def test_slots_that_count_on_are_not_free(self) -> None:
        ledger = ledger_of(concurrency=1, lag=5.0)
        out(ledger, 1)
        ledger.settle("r0", "doubt", None, 0.0)
        assert self.wait(ledger, 0, now=1.0) == 2.0
        assert self.wait(ledger, 0, now=5.0) == 0.0

    def test_an_organisation_that_is_full(self) -> None:
        ledger = ledger_of(organization=Limits(concurrency=2))
        out(ledger, 2)
        assert self.wait(ledger, 0) == 1.0

    def test_nothing_is_said_of_a_closed_account_or_before_the_first_call(self) -> None:
        ledger = ledger_of()
        ledger.accounts["a"].scope.closed = "its server starts"
        assert self.wait(ledger, 0) is None
        full = ledger_of()
        out(full, 4)
        assert Forecast().wait(full.accounts["a"], 0, 100, 100, 0.0) is None


class TestTold:
    def test_position_and_wait_come_with_the_acceptance(self) -> None:
        b = bench(pool=1)
        [first] = to_clients(b.submit("r1"))
        assert first == Accepted("r1", 0, 0.0)
        b.start("r1")
        b.time += 2.0
        b.finish("r1")
        b.submit("r2")
        told = [to_clients(b.submit(f"w{number}"))[0] for number in range(3)]
        assert told == [Accepted(f"w{number}", number, 2.0 * (number + 1)) for number in range(3)]

    def test_and_with_a_refusal_for_want_of_room(self) -> None:
        b = bench(pool=1, max_requests=1)
        b.submit("r1")
        b.start("r1")
        b.time += 2.0
        b.finish("r1")
        b.submit("r2")
        b.submit("w")
        [refused] = to_clients(b.submit("x"))
        assert isinstance(refused, Rejected)
        assert (refused.fault.code, refused.fault.details["predicted_wait"]) == ("queue_full", 4.0)

    def test_nothing_is_predicted_while_no_worker_is_up_and_nothing_is_known(self) -> None:
        b = bench(workers=0)
        [told] = to_clients(b.submit("r"))
        assert told == Accepted("r", 0, None)

    def test_a_call_that_failed_teaches_nothing(self) -> None:
        b = bench(pool=1)
        b.submit("r")
        b.time += 2.0
        fail(b, BAD)
        assert b.core.dispatching.forecast.mean_seconds("a") is None
