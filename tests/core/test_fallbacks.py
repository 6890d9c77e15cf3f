"""Requests that go on elsewhere."""

from __future__ import annotations

from callpool.manager.core.catalogue import Timeouts
from callpool.manager.core.messages import Dispatch
from callpool.manager.core.retry import RetryRules

from .attempts import BAD, BROKEN, BUSY, GONE, bench, ends, fail, orders, record
from .build import TIMEOUT, Bench, make_core, to_workers


class TestFallbacks:
    def test_the_next_target_is_called_at_once_and_the_books_follow(self) -> None:
        b = bench(accounts={"a": 1, "b": 1})
        b.submit("r", fallbacks=["b/m"])
        assert orders(fail(b, GONE)) == [("b", "m", TIMEOUT)]
        assert b.core.ledger.accounts["a"].active == 0
        assert b.core.ledger.accounts["b"].active == 1
        b.start("r")
        [end] = ends(b.finish("r"))
        assert end.state == "completed"
        assert (record(b).provider, record(b).model) == ("b", "m")
        assert [each.provider for each in record(b).attempts] == ["a"]
        assert b.core.sessions.by_provider.as_plain()["b"]["ended"] == 1

    def test_retries_come_before_fallbacks_and_each_target_has_its_own(self) -> None:
        b = bench(accounts={"a": 1, "b": 1}, retry_rules=RetryRules(first_wait=0.0))
        b.submit("r", fallbacks=["b/m"])
        seen = ["a"]
        while not ends(effects := fail(b, BUSY)):
            [(provider, _, _)] = orders(effects)
            seen.append(provider)
        assert seen == ["a"] * 3 + ["b"] * 3

    def test_no_target_mends_what_is_wrong_with_the_request(self) -> None:
        b = bench(accounts={"a": 1, "b": 1})
        b.submit("r", fallbacks=["b/m"])
        assert len(ends(fail(b, BAD))) == 1

    def test_what_may_have_been_billed_is_not_called_elsewhere_either(self) -> None:
        b = bench(accounts={"a": 1, "b": 1})
        b.submit("r", fallbacks=["b/m"])
        assert len(ends(fail(b, BROKEN))) == 1

    def test_each_account_has_its_own_rules_and_timeouts(self) -> None:
        own = {"b": RetryRules(attempts=1, first_wait=0.0)}
        core = make_core(accounts={"a": 1, "b": 1}, own_retry_rules=own, timeouts={"b": Timeouts(99.0, 7.0, 8.0)})
        b = Bench(core)
        b.submit("r", fallbacks=["b/m"])
        [order] = [each for each in to_workers(fail(b, GONE)) if isinstance(each, Dispatch)]
        assert (order.timeout, order.first_token_timeout, order.idle_timeout) == (TIMEOUT, 7.0, 8.0)
        assert len(ends(fail(b, BUSY))) == 1, "one call there"
        assert b.core.attempts.describe("a", b.time)["fallbacks"] == 1

    def test_each_target_is_called_once(self) -> None:
        b = bench(accounts={"a": 1, "b": 1})
        b.submit("r", fallbacks=["a/m", "b/m", "b/m"])
        assert [o[0] for o in orders(fail(b, GONE))] == ["b"]
        assert len(ends(fail(b, GONE))) == 1

    def test_a_fallback_waits_for_its_own_account(self) -> None:
        b = bench(accounts={"a": 1, "b": 1}, pool=3)
        b.submit("other", account="b")
        b.submit("r", fallbacks=["b/m"])
        assert orders(fail(b, GONE)) == []
        assert b.core.scheduler.count("b") == 1
        assert b.core.scheduler.count("a") == 0
        b.start("other")
        assert orders(b.finish("other")) == [("b", "m", TIMEOUT)]
