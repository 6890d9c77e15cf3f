"""The calls of a request one after another: retries, fallbacks, circuits, continued answers, and the one deadline over all of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from callpool.manager.core.attempts import MAX_SAID
from callpool.manager.core.catalogue import Timeouts
from callpool.manager.core.circuits import FORGOTTEN, MAX_CIRCUITS, CircuitRules, Circuits
from callpool.manager.core.events import CancelAsked, CutAsked, Effect, Reported, Tick, WorkerDown, WorkerUp
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import RESTART, Chunk, Continues, Dispatch, Done, Piece
from callpool.manager.core.requests import Now, Record
from callpool.manager.core.retry import MAX_PARTS, SAVINGS, RetryRules, Target

from .build import TIMEOUT, Bench, make_core, to_clients, to_workers

NO_CIRCUITS = CircuitRules(failures=0)


def fault(code: str = "provider_error", **details: Any) -> Fault:
    usual = {"retryable": True, "retry_after": None, "scope": "provider", "in_doubt": False}
    return Fault(code=code, message=f"says the {code}", details=usual | details)


BUSY = fault()
BROKEN = fault("broken_answer", in_doubt=True)
GONE = fault("model_gone", retryable=False, scope="model")
BAD = fault("provider_rejected", retryable=False, scope="request")


def bench(*, workers: int = 1, **options: Any) -> Bench:
    return Bench(make_core(**{"circuit_rules": NO_CIRCUITS, **options}), workers=workers)


def orders(effects: list[Effect]) -> list[tuple[str, str, float]]:
    """(provider, model, seconds) of each call that goes out."""
    return [(each.provider, each.model, each.timeout) for each in to_workers(effects) if isinstance(each, Dispatch)]


def ends(effects: list[Effect]) -> list[Done]:
    return [message for message in to_clients(effects) if isinstance(message, Done)]


def record(b: Bench, request_id: str = "r") -> Record:
    found = b.core.show(request_id, Now(b.time, b.time))
    assert found is not None
    return found


def fail(b: Bench, why: Fault, request_id: str = "r") -> list[Effect]:
    """The call of the request starts and fails."""
    b.start(request_id)
    return b.finish(request_id, fault=why)


def wake(b: Bench) -> list[Effect]:
    """The next thing that time brings."""
    due = b.core.next_deadline()
    assert due is not None
    b.time = max(b.time, due)
    return b.do(Tick())


def called(b: Bench) -> list[tuple[str, str, float]]:
    """The calls that time brings next."""
    while not (out := orders(wake(b))):
        pass
    return out


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
            "retries": 1, "fallbacks": 0, "refused_by_budget": 0, "circuits": [],
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
        fail(b, fault("rate_limited", scope="account", retry_after=3.0))
        at = b.time
        wake(b)
        assert 3.0 + 0.25 <= b.time - at <= 3.3

    def test_a_time_that_has_passed_is_no_pause(self) -> None:
        b = bench(retry_rules=RetryRules(first_wait=0.0))
        b.submit("r")
        assert len(orders(fail(b, fault("rate_limited", scope="account", retry_after=-5.0)))) == 1
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
        [end] = ends(fail(b, fault("rate_limited", scope="account", retry_after=TIMEOUT)))
        assert end.fault is not None
        assert end.fault.code == "rate_limited"

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
        assert end.fault == BUSY
        assert b.core.attempts.retries.counts["a"].refused_by_budget == 1
        for number in range(2):  # two completed calls earn one retry
            b.start(f"r{number}")
            assert len(ends(b.finish(f"r{number}"))) == 1
        b.submit("again")
        assert ends(fail(b, BUSY, "again")) == []
        assert len(ends(fail(b, BUSY, "again"))) == 1

    def test_savings_have_a_bound(self) -> None:
        b = bench(retry_rules=RetryRules(attempts=100, budget=1.0, first_wait=0.0))
        retries = b.core.attempts.retries
        b.submit("r")
        fail(b, BUSY)
        for _ in range(100):
            retries.completed("a")
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


class TestCircuits:
    RULES = CircuitRules(failures=2, first_pause=5.0, longest_pause=8.0, patience=6.0)
    ONCE = RetryRules(attempts=1)

    def bench(self, **rules: Any) -> Bench:
        """Two requests have failed, so the circuit of a/m is open."""
        circuits = msgspec.structs.replace(self.RULES, **rules)
        b = bench(circuit_rules=circuits, retry_rules=self.ONCE, pool=10, accounts={"a": 5, "b": 5})
        for name in ("x", "y"):
            b.submit(name)
            fail(b, BUSY, name)
        return b

    def state(self, b: Bench) -> list[str]:
        return [each["state"] for each in b.core.attempts.describe("a", b.time)["circuits"]]

    def test_it_opens_and_one_probe_closes_it(self) -> None:
        b = self.bench()
        assert self.state(b) == ["open"]
        assert orders(b.submit("p")) == []
        assert orders(b.submit("q")) == []
        assert [o[0] for o in orders(wake(b))] == ["a"], "one probe, and no more"
        assert self.state(b) == ["half_open"]
        b.start("p")
        assert [o[0] for o in orders(b.finish("p"))] == ["a"], "it is closed: who waited goes"
        assert self.state(b) == []

    def test_a_probe_that_fails_doubles_the_pause_up_to_its_bound(self) -> None:
        b = self.bench(patience=100.0)
        for pause in (5.0, 8.0, 8.0):
            at = b.time
            name = f"p{b.time}".replace(".", "_")
            b.submit(name, timeout=100.0)
            assert len(called(b)) == 1
            assert b.time - at == pytest.approx(pause, abs=0.03)
            fail(b, BUSY, name)
            assert self.state(b) == ["open"]

    @pytest.mark.parametrize("end", ["cancelled", "lost", "refused"])
    def test_a_probe_always_ends(self, end: str) -> None:
        """The earlier system's half-open state could last for ever."""
        b = self.bench()
        b.submit("p", timeout=7.0)
        b.submit("q")
        wake(b)
        b.start("p")
        if end == "cancelled":
            b.do(CancelAsked("c", "p"))
            effects = b.finish("p", fault=Fault(code="cancelled", message="m"))
        elif end == "lost":
            b.do(WorkerUp(2))
            effects = b.do(WorkerDown(1, "died"))
        elif end == "refused":
            effects = b.finish("p", fault=fault("rate_limited", scope="account", retryable=False))
        else:
            effects = b.finish(
                "p", fault=Fault(code="timeout", message="m", details={"which": "total", "seconds": 7.0})
            )
        assert [o[0] for o in orders(effects)] == ["a"], (
            "the next one goes: as a probe, or because a refusal shows that it works"
        )

    def test_only_timeouts_of_the_configuration_tell_of_the_provider(self) -> None:
        late = Fault(code="timeout", message="m", details={"which": "total", "seconds": 7.0})
        b = bench(circuit_rules=self.RULES, retry_rules=self.ONCE, pool=10, accounts={"a": 5})
        for name in ("u", "v"):
            b.submit(name, timeout=1.0)
            fail(b, late, name)
        assert self.state(b) == []
        for name in ("w", "x"):
            b.submit(name)
            fail(b, late, name)
        assert self.state(b) == ["open"]

    def test_one_request_that_fails_again_and_again_opens_nothing(self) -> None:
        b = bench(circuit_rules=self.RULES, retry_rules=RetryRules(first_wait=0.0, attempts=5))
        b.submit("r")
        while not ends(fail(b, BUSY)):
            pass
        assert self.state(b) == []
        assert record(b).attempt == 5

    def test_a_success_between_starts_the_count_again(self) -> None:
        b = bench(circuit_rules=self.RULES, retry_rules=self.ONCE)
        for name, why in (("r", BUSY), ("s", None), ("t", BUSY)):
            b.submit(name)
            b.start(name)
            b.finish(name, fault=why)
        assert self.state(b) == []

    def test_who_has_waited_long_enough_ends_with_the_cause(self) -> None:
        """At its own time, whatever the probe does: it may take as long as it likes."""
        b = self.bench()
        opened = b.time
        b.submit("p")
        b.submit("old")
        called(b)
        b.submit("young")
        came = b.time
        ended: dict[str, tuple[float, Fault | None]] = {}
        while len(ended) < 2:
            ended |= {end.request_id: (b.time, end.fault) for end in ends(wake(b))}
        assert ended["old"][0] - opened == pytest.approx(6.0, abs=0.03)
        assert ended["young"][0] - came == pytest.approx(6.0, abs=0.03)
        fault = ended["old"][1]
        assert fault is not None
        assert fault.code == "circuit_open"
        assert "says the provider_error" in fault.message
        assert b.state("p") == "allocated"

    def test_a_probe_that_begins_to_be_answered_opens_the_way(self) -> None:
        """A stream may take minutes, and shows with its first piece that the service works."""
        b = self.bench()
        b.submit("p", stream=True)
        b.submit("q")
        called(b)
        b.start("p")
        assert [o[0] for o in orders(b.do(Reported(1, Piece("p", b.holder("p")[1], b"p"))))] == ["a"]
        assert self.state(b) == []

    def test_a_probe_that_takes_too_long_has_failed_whoever_set_the_limit(self) -> None:
        b = self.bench()
        b.submit("p", timeout=7.0)
        called(b)
        b.start("p")
        b.finish("p", fault=Fault(code="timeout", message="m", details={"which": "total", "seconds": 7.0}))
        [circuit] = b.core.attempts.describe("a", b.time)["circuits"]
        assert (circuit["state"], circuit["seconds_left"]) == ("open", 8.0)

    def test_a_call_that_had_less_time_than_calls_have_tells_nothing(self) -> None:
        """Else what one provider's slowness leaves of a deadline would be blamed on the next one."""
        b = bench(circuit_rules=self.RULES, accounts={"a": 5, "b": 5}, pool=10)
        late = Fault(code="timeout", message="m", details={"which": "total", "seconds": 10.0})
        for name in ("u", "v", "w"):
            b.submit(name, fallbacks=["b/m"])
            b.start(name)
            b.time += TIMEOUT - 1.0
            b.finish(name, fault=GONE)
            b.start(name)
            b.finish(name, fault=late)
        assert b.core.attempts.describe("b", b.time)["circuits"] == []

    def test_a_call_that_only_waited_for_a_connection_tells_nothing(self) -> None:
        b = bench(circuit_rules=self.RULES, retry_rules=self.ONCE, accounts={"a": 5}, pool=10)
        unsent = Fault(code="timeout", message="m", details={"which": "total", "seconds": 10.0, "sent": False})
        for name in ("u", "v", "w"):
            b.submit(name)
            b.finish(name, fault=unsent)
        assert self.state(b) == []

    def test_a_fault_of_our_own_closes_nothing(self) -> None:
        b = self.bench()
        b.submit("p")
        b.submit("q")
        called(b)
        ours = fault("provider_error", retryable=False, scope="request", exception="TypeError")
        assert [o[0] for o in orders(fail(b, ours, "p"))] == ["a"], "the next one is the probe"
        assert self.state(b) == ["half_open"]

    def test_who_rests_goes_elsewhere_when_the_circuit_is_open_by_then(self) -> None:
        b = bench(circuit_rules=CircuitRules(failures=2), accounts={"a": 5, "b": 5}, pool=10)
        b.submit("rests", fallbacks=["b/m"])
        fail(b, BUSY, "rests")
        b.submit("x", max_attempts=1)
        fail(b, BUSY, "x")
        assert self.state(b) == ["open"]
        assert [o[0] for o in orders(wake(b))] == ["b"]

    def test_a_call_lost_before_it_began_goes_elsewhere_too(self) -> None:
        b = bench(circuit_rules=CircuitRules(failures=2), accounts={"a": 5, "b": 5}, pool=10, workers=1)
        for name in ("lost", "x", "y"):
            b.submit(name, fallbacks=["b/m"] if name == "lost" else None, max_attempts=1)
        fail(b, BUSY, "x")
        fail(b, BUSY, "y")
        b.do(WorkerDown(1, "died"))
        assert [o[0] for o in orders(b.do(WorkerUp(2)))] == ["b"]

    def test_a_fallback_whose_circuit_is_open_is_passed_over(self) -> None:
        b = bench(
            circuit_rules=CircuitRules(failures=1), retry_rules=self.ONCE, pool=10, accounts={"a": 5, "b": 5, "d": 5}
        )
        b.submit("x", account="b")
        fail(b, BUSY, "x")
        b.submit("r", fallbacks=["b/m", "d/m"])
        assert [o[0] for o in orders(fail(b, GONE))] == ["d"]

    def test_one_that_nobody_tries_is_forgotten(self) -> None:
        b = self.bench()
        assert self.state(b) == ["open"]
        b.do(Tick(), after=6.0)
        assert self.state(b) == ["half_open"]
        b.do(Tick(), after=FORGOTTEN + 1.0)
        b.do(Tick(), after=FORGOTTEN + 1.0)
        assert self.state(b) == []
        assert not b.core.attempts.circuits.any_open

    def full(self, waits: dict[str, Any]) -> tuple[Bench, list[Effect]]:
        """A circuit opens while a request has waited for a slot for long; the effects of the opening."""
        b = bench(circuit_rules=self.RULES, retry_rules=self.ONCE, pool=10, accounts={"a": 2, "b": 1, "d": 1})
        for name in ("x", "y", "filler"):
            b.submit(name)
        b.submit("waits", **waits)
        b.time += 100.0
        b.start("x")
        b.start("y")
        assert [order.request_id for order in to_workers(b.finish("x", fault=BUSY))] == ["filler"]  # type: ignore[union-attr]
        return b, b.finish("y", fault=BUSY)

    def test_a_wait_for_limits_is_no_wait_for_a_circuit(self) -> None:
        b, effects = self.full({"timeout": TIMEOUT})
        assert [end.request_id for end in ends(effects)] == ["y"]
        assert b.state("waits") == "queued"

    def test_who_has_another_target_goes_there(self) -> None:
        b, effects = self.full({"fallbacks": ["b/m"]})
        assert [o[0] for o in orders(effects)] == ["b"]
        assert b.core.scheduler.count("a") == 0
        assert [o[0] for o in orders(b.submit("late", fallbacks=["d/m"]))] == ["d"], "also who comes later"
        assert b.core.ledger.accounts["d"].active == 1

    def test_a_call_that_opens_it_goes_elsewhere_itself(self) -> None:
        b = bench(circuit_rules=CircuitRules(failures=1), accounts={"a": 1, "b": 1})
        b.submit("r", fallbacks=["b/m"])
        assert [o[0] for o in orders(fail(b, BUSY))] == ["b"]

    def test_a_call_from_before_tells_nothing_new(self) -> None:
        b = bench(circuit_rules=self.RULES, retry_rules=self.ONCE, pool=10, accounts={"a": 5})
        for name in ("x", "y", "late"):
            b.submit(name)
        fail(b, BUSY, "x")
        fail(b, BUSY, "y")
        b.time += 1.0
        fail(b, BUSY, "late")
        [circuit] = b.core.attempts.describe("a", b.time)["circuits"]
        assert circuit["seconds_left"] == 4.0
        assert b.core.attempts.circuits.opened == 1

    def test_zero_never_opens_one(self) -> None:
        b = bench(retry_rules=self.ONCE)
        for number in range(20):
            b.submit(f"r{number}")
            fail(b, BUSY, f"r{number}")
        assert self.state(b) == []

    def test_names_that_clients_make_up_do_not_fill_the_memory(self) -> None:
        circuits = Circuits(self.RULES)
        for number in range(MAX_CIRCUITS + 10):
            circuits.fails(Target("a", f"m{number}"), "r", BUSY, 0.0)
        assert len(circuits._circuits) == MAX_CIRCUITS
        assert not circuits.fails(Target("a", "real"), "r", BUSY, 0.0)
        assert circuits.fails(Target("a", "real"), "s", BUSY, 0.0), (
            "names that somebody made up keep no circuit from opening"
        )


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
