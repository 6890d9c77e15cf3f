"""What can never go, what waits how long, and where a request goes instead: stories on the bench."""

from __future__ import annotations

from typing import Any

import pytest

from callpool.manager.core.events import Answer, CancelAsked, FunctionAsked, Reported, SessionAsked, Tick
from callpool.manager.core.limits import AccountRules, ClientRules, LedgerRules, Limits, Usage
from callpool.manager.core.messages import Continues, Finished, Rejected, Started, Submit
from callpool.manager.core.teaching import UNKNOWN_PATIENCE

from .attempts import BUSY, fail, fault, orders, record, wake
from .build import Bench, to_clients
from .test_quotas import (
    DEAD_KEY,
    FULL,
    NO_MONEY,
    RATE,
    account,
    active,
    end_of,
    is_clean,
    one,
    refuse,
    scope,
    submit,
    with_rules,
)

TOKENS = fault("rate_limited", limit="tpm", scope="account")
UNNAMED = fault("rate_limited", scope="account", retry_after=1.0)
B = ["b/m"]


def refused(b: Bench, request_id: str, **more: Any) -> Rejected | None:
    messages = to_clients(b.submit(request_id, **more))
    return next((message for message in messages if isinstance(message, Rejected)), None)


class TestTooLarge:
    """More tokens than a whole minute has."""

    def test_what_is_charged_in_advance_is_refused_at_once(self) -> None:
        b = with_rules(one(tokens_per_minute=1_000, charge="advance"))
        found = refused(b, "r", tokens=Usage(100, 901))
        assert found is not None
        assert (found.fault.code, found.fault.param) == ("bad_input", "max_tokens")
        assert (found.fault.details["limit"], found.fault.details["wanted"]) == (1_000, 1_001)
        assert refused(b, "s", tokens=Usage(100, 900)) is None
        assert active(b) == ["s"]

    def test_an_answer_without_a_limit_is_not_too_large(self) -> None:
        b = with_rules(one(tokens_per_minute=1_000, charge="advance"))
        assert refused(b, "r", tokens=Usage(100, 0)) is None

    def test_it_goes_where_there_is_room(self) -> None:
        b = with_rules(one(tokens_per_minute=1_000, charge="advance"))
        [(provider, _, _)] = orders(b.submit("r", tokens=Usage(100, 5_000), fallbacks=B))
        assert provider == "b"

    def test_elsewhere_the_provider_decides_once(self) -> None:
        b = with_rules(one(tokens_per_minute=1_000))
        submit(b, "large", tokens=Usage(3_000, 10))
        submit(b, "small", tokens=Usage(10, 10), client="d")
        assert active(b) == ["large"]
        refuse(b, "large", TOKENS)
        assert end_of(b, "large").code == "rate_limited"
        while "small" not in active(b):
            wake(b)

    def test_one_that_was_not_alone_waits_for_the_next_minute(self) -> None:
        b = with_rules(one(tokens_per_minute=1_000))
        submit(b, "r1", "r2", tokens=Usage(400, 100))
        refuse(b, "r1", TOKENS)
        assert b.state("r1") == "queued"

    def test_a_refusal_for_calls_at_once_says_nothing_of_its_size(self) -> None:
        b = with_rules(one(tokens_per_minute=1_000))
        submit(b, "large", tokens=Usage(3_000, 10))
        refuse(b, "large", FULL)
        assert b.state("large") == "queued"


class TestEstimates:
    def test_text_that_nobody_reckoned_is_about_four_bytes_a_token(self) -> None:
        b = with_rules(one(tokens_per_minute=10_000))
        submit(b, "r", payload=b"x" * 800, tokens=Usage(0, 50))
        assert scope(b).minutes[0].window.used == 250

    @pytest.mark.parametrize("operation", ["embeddings", "models"])
    def test_what_brings_no_text_is_not_charged_for_any(self, operation: str) -> None:
        b = with_rules(one(tokens_per_minute=10_000, tokens_per_day=10_000))
        submit(b, "r", tokens=Usage(10, 0), payload=b"")
        request = b.core.requests["r"]
        request.operation = operation  # type: ignore[assignment]
        request.cost = b.core.ledger.cost(request.target, request.tokens, answers=False)
        b.core.ledger.holds["r"].cost = request.cost
        worker, attempt = b.holder("r")
        b.do(Reported(worker, Started("r", attempt, Usage(12, 0))))
        assert scope(b).minutes[0].window.used == 12


class TestUnnamedLimits:
    def test_they_are_waited_for_longer_than_a_minute_whatever_the_pauses_are(self) -> None:
        b = with_rules()
        submit(b, "r", timeout=5.0)
        began = b.time
        while b.state("r") != "error":
            if b.state("r") == "allocated":
                refuse(b, "r", UNNAMED)
            else:
                wake(b)
        assert UNKNOWN_PATIENCE <= b.time - began < UNKNOWN_PATIENCE + 5.0
        assert record(b).attempt > 60

    def test_a_day_that_rolls_is_waited_for(self) -> None:
        b = with_rules()
        submit(b, "r1", "r2")
        refuse(b, "r1", fault("rate_limited", limit="tpd", retryable=False, scope="account", retry_after=7.2))
        assert b.core.ledger.stopped("a", b.time) is None
        assert b.state("r1") == "queued"
        wake(b)
        assert "r1" in active(b)

    def test_a_day_that_does_not_stops_the_account(self) -> None:
        b = with_rules()
        submit(b, "r")
        refuse(b, "r", fault("rate_limited", limit="tpd", retryable=False, scope="account", retry_after=3_600.0))
        stop = b.core.ledger.stopped("a", b.time)
        assert stop is not None
        assert stop.until == pytest.approx(b.time + 3_600.0)


class TestElsewhere:
    def test_a_queued_request_whose_day_is_used_up_goes_to_its_fallback(self) -> None:
        b = with_rules(LedgerRules(accounts={"a": account(1, tokens_per_day=100), "b": account()}))
        submit(b, "first", tokens=Usage(40, 40))
        submit(b, "second", tokens=Usage(20, 20), fallbacks=B)
        assert b.state("second") == "queued"
        b.start("first")
        worker, attempt = b.holder("first")
        done = orders(b.do(Reported(worker, Finished("first", attempt, b"ok", None, Usage(40, 40)))))
        assert [provider for provider, _, _ in done] == ["b"]

    def test_a_fallback_that_is_stopped_hides_no_fault(self) -> None:
        b = with_rules()
        submit(b, "key", account="b")
        refuse(b, "key", DEAD_KEY)
        submit(b, "r", fallbacks=B, max_attempts=1)
        fail(b, BUSY)
        assert end_of(b, "r").code == BUSY.code


class TestWords:
    def test_the_call_that_stops_its_account_says_so_and_what_to_do(self) -> None:
        b = with_rules()
        submit(b, "r1")
        submit(b, "r2", account="b")
        refuse(b, "r1", NO_MONEY)
        refuse(b, "r2", DEAD_KEY)
        assert "account 'a' is stopped now" in end_of(b, "r1").message
        assert "callpool account resume a" in (end_of(b, "r1").hint or "")
        assert "restart the supervisor" in (end_of(b, "r2").hint or "")

    def test_one_without_permission_for_a_model_stops_nothing(self) -> None:
        b = with_rules()
        submit(b, "r")
        refuse(b, "r", fault("credential_refused", retryable=False, scope="account", status=403))
        assert "stopped" not in end_of(b, "r").message
        assert b.core.ledger.stopped("a", b.time) is None

    def test_who_waited_too_long_hears_why(self) -> None:
        b = with_rules()
        submit(b, "r", queue_timeout=5.0)
        refuse(b, "r", fault("rate_limited", limit="rpm", scope="account", retry_after=30.0))
        while b.state("r") == "queued":
            wake(b)
        found = end_of(b, "r")
        assert (found.code, found.details["which"], found.details["sent"]) == ("timeout", "queue", True)
        assert found.details["cause"] == "rate_limited"
        assert "its call was refused 1 times" in found.message
        assert "account 'a' pauses for" in found.message

    def test_a_client_at_its_own_rate_hears_of_it(self) -> None:
        b = with_rules(LedgerRules(clients={"c": ClientRules(requests_per_minute=1)}))
        submit(b, "r1", "r2", queue_timeout=5.0)
        while b.state("r2") == "queued":
            wake(b)
        assert "client 'c' has reached max_requests_per_minute (1)" in end_of(b, "r2").message

    def test_a_day_that_could_never_fit_is_not_put_off(self) -> None:
        b = with_rules(one(tokens_per_day=100))
        found = refused(b, "r", tokens=Usage(60, 60))
        assert found is not None
        assert "it may need 120; it never has" in found.fault.message
        assert "later" not in (found.fault.hint or "")
        assert "[providers.a]" in (found.fault.hint or "")


class TestPatience:
    def test_what_a_refused_call_took_is_no_waiting(self) -> None:
        b = with_rules()
        submit(b, "r", queue_timeout=5.0, timeout=60.0)
        refuse(b, "r", RATE, after=20.0)
        assert b.state("r") == "queued"
        began = b.time
        while b.state("r") == "queued":
            wake(b)
        assert b.state("r") == "allocated", "the pause of two seconds was over first"
        assert b.time - began < 5.0

    def test_an_answer_whose_first_part_was_paid_for_is_not_given_up(self) -> None:
        b = with_rules()
        submit(b, "r", queue_timeout=5.0, timeout=60.0)
        b.start("r")
        worker, attempt = b.holder("r")
        b.do(Reported(worker, Continues("r", attempt, b"{}", "length", "so far", Usage(5, 5))))
        refuse(b, "r", fault("rate_limited", limit="rpm", scope="account", retry_after=30.0), after=6.0)
        while b.state("r") == "queued":
            wake(b)
        assert b.state("r") == "allocated"

    def test_thousands_whose_patience_ends_together_end_in_one_tick(self) -> None:
        b = with_rules(one(concurrency=1), max_requests=5_000)
        submit(b, "first", timeout=1_000.0)
        submit(b, *(f"r{number}" for number in range(3_000)), queue_timeout=5.0)
        b.do(Tick(), after=6.0)
        assert len(b.core.scheduler) == 0
        b.do(CancelAsked("c", "first"))


class TestForecasts:
    def told(self, b: Bench, request_id: str) -> float | None:
        return record(b, request_id).predicted_wait

    def test_a_minute_that_is_used_up(self) -> None:
        b = with_rules(one(requests_per_minute=3))
        for number in range(3):
            submit(b, f"r{number}")
            b.start(f"r{number}")
            b.finish(f"r{number}")
        submit(b, "r8", "r9")
        b.time += 10.0
        assert self.told(b, "r8") == pytest.approx(50.0, abs=1.0)

    def test_a_model_that_has_few_calls(self) -> None:
        b = with_rules(LedgerRules(accounts={"a": AccountRules(limits=Limits(concurrency=10), each_model=1)}))
        submit(b, "r0")
        b.start("r0")
        b.time += 4.0
        b.finish("r0")
        submit(b, "r1", "r2", "r3")
        assert self.told(b, "r3") == pytest.approx(8.0)

    def test_a_client_at_its_rate(self) -> None:
        b = with_rules(LedgerRules(clients={"c": ClientRules(requests_per_minute=1)}))
        submit(b, "r1", "r2")
        assert self.told(b, "r2") == pytest.approx(60.0, abs=0.1)


class TestHeldSessions:
    def test_they_take_slots_of_their_model(self) -> None:
        b = with_rules(LedgerRules(accounts={"a": AccountRules(limits=Limits(concurrency=10), each_model=2)}))
        submit(b, "r")
        assert self.ask(b, "s1") is None
        found = self.ask(b, "s2")
        assert found is not None
        assert found.code == "capacity_full"
        assert "(limit 2, active 2) on account 'a', model 'a/m'" in found.message
        b.start("r")
        b.finish("r")
        assert self.ask(b, "s3") is None
        assert not b.core.ledger.strays()

    def test_functions_too(self) -> None:
        b = with_rules(LedgerRules(accounts={"a": AccountRules(limits=Limits(concurrency=10), each_model=1)}))
        b.do(FunctionAsked("c", "h", Submit("f1", "a", "m", b"x", b"{}"), "session_f1"))
        [effect] = to_clients(b.do(FunctionAsked("c", "h", Submit("f2", "a", "m", b"x", b"{}"), "session_f2")))
        assert isinstance(effect, Rejected)
        assert effect.fault.code == "capacity_full"

    def test_a_limit_that_was_learned_is_the_one_that_is_told(self) -> None:
        b = with_rules(one(concurrency=5))
        submit(b, "r1", "r2", "r3")
        refuse(b, "r3", FULL)
        found = self.ask(b, "s")
        assert found is not None
        assert "(limit 2, active 2)" in found.message

    def ask(self, b: Bench, request_id: str) -> Any:
        [answer] = [
            each
            for each in b.do(SessionAsked("h", Submit(request_id, "a", "m", b"", b"{}"), f"session_{request_id}"))
            if isinstance(each, Answer)
        ]
        return answer.fault


class TestNames:
    def test_models_that_are_only_asked_about_leave_nothing(self) -> None:
        """Any name may be a model's: a look makes no scope for it, and what pauses is remembered."""
        b = with_rules(
            LedgerRules(accounts={"a": AccountRules(limits=Limits(concurrency=1), each_model=1)}),
            models=(*(f"m{number}" for number in range(50)), "m"),
        )
        submit(b, "r")
        models = b.core.ledger.accounts["a"].models
        assert list(models) == ["m"]
        for number in range(50):
            target = b.core.requests["r"].target._replace(model=f"m{number}")
            assert b.core.ledger.scope_of_model(target) is None
        assert list(models) == ["m"]
        b.do(CancelAsked("c", "r"))
        worker, attempt = b.holder("r")
        b.do(Reported(worker, Finished("r", attempt, None, fault("cancelled"))))
        assert is_clean(b)
