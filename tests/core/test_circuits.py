"""Targets that fail for everybody: left alone, probed, and never for ever."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from callpool.manager.core.circuits import FORGOTTEN, MAX_CIRCUITS, CircuitRules, Circuits
from callpool.manager.core.events import CancelAsked, Effect, Reported, Tick, WorkerDown, WorkerUp
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import Piece
from callpool.manager.core.retry import RetryRules, Target

from .attempts import BUSY, GONE, bench, called, ends, fail, fault, orders, record, wake
from .build import TIMEOUT, Bench, to_workers


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
        b = self.bench(first_pause=20.0, longest_pause=20.0)
        opened = b.time
        b.submit("old")
        b.time += 2.0
        b.submit("young")
        ended: dict[str, tuple[float, Fault | None]] = {}
        while len(ended) < 2:
            ended |= {end.request_id: (b.time, end.fault) for end in ends(wake(b))}
        assert ended["old"][0] - opened == pytest.approx(6.0, abs=0.03)
        assert ended["young"][0] - opened == pytest.approx(8.0, abs=0.03)
        fault = ended["old"][1]
        assert fault is not None
        assert fault.code == "circuit_open"
        assert "says the provider_error" in fault.message

    def test_nobodys_patience_ends_while_a_probe_is_out(self) -> None:
        """An answer may take minutes, and show nothing before: it would end all who wait for a service that works."""
        b = self.bench()
        b.submit("p", timeout=1000.0)
        b.submit("q", timeout=1000.0)
        called(b)
        for _ in range(20):
            assert ends(b.do(Tick(), after=1.0)) == []
        b.start("p")
        assert [o[0] for o in orders(b.finish("p"))] == ["a"]

    def test_it_ends_when_the_probe_has_failed(self) -> None:
        b = self.bench()
        b.submit("p", timeout=1000.0)
        b.submit("q", timeout=1000.0)
        called(b)
        b.do(Tick(), after=20.0)
        fail(b, BUSY, "p")
        assert [end.request_id for end in ends(b.do(Tick()))] == ["q"]

    def test_patience_is_for_this_circuit_alone(self) -> None:
        """Neither a rest nor a wait elsewhere is counted."""
        rules = msgspec.structs.replace(self.RULES, first_pause=20.0, longest_pause=20.0)
        b = bench(circuit_rules=rules, retry_rules=RetryRules(attempts=9), pool=10)
        b.submit("r", timeout=1000.0)
        fail(b, fault(scope="request", retry_after=8.0), "r")
        b.time += 7.0
        for name in ("x", "y"):
            b.submit(name, max_attempts=1)
            fail(b, BUSY, name)
        opened = b.time
        while not (out := ends(wake(b))):
            pass
        assert [end.request_id for end in out] == ["r"]
        assert b.time - opened == pytest.approx(1.25 + 6.0, abs=0.05), (
            "it came back 1.25 s after the circuit had opened"
        )

    def test_a_target_that_works_again_is_for_those_who_wait_elsewhere(self) -> None:
        b = bench(
            circuit_rules=CircuitRules(failures=1, first_pause=50.0),
            retry_rules=self.ONCE,
            pool=10,
            accounts={"a": 5, "b": 5},
        )
        b.submit("late", account="b")
        for name, account in (("x", "a"), ("y", "b")):
            b.submit(name, account=account)
            fail(b, BUSY, name)
        b.submit("r", fallbacks=["b/m"])
        assert b.state("r") == "queued"
        b.start("late")
        assert [o[0] for o in orders(b.finish("late"))] == ["b"], "the answer of an earlier call closes it"

    def test_who_would_end_goes_where_somebody_may_try_again(self) -> None:
        rules = CircuitRules(failures=1, first_pause=5.0, patience=6.0)
        b = bench(circuit_rules=rules, retry_rules=self.ONCE, pool=10, accounts={"a": 5, "b": 5})
        for name, account in (("x", "a"), ("y", "b")):
            b.submit(name, account=account)
            fail(b, BUSY, name)
        b.core.attempts.circuits._circuits[Target("a", "m")].until = b.time + 100.0
        b.submit("r", fallbacks=["b/m"], timeout=1000.0)
        assert [o[0] for o in called(b)] == ["b"]

    def test_a_probe_that_begins_to_be_answered_opens_the_way(self) -> None:
        """A stream may take minutes, and shows with its first piece that the service works."""
        b = self.bench()
        b.submit("p", stream=True)
        b.submit("q")
        called(b)
        b.start("p")
        assert [o[0] for o in orders(b.do(Reported(1, Piece("p", b.holder("p")[1], b"p"))))] == ["a"]
        assert self.state(b) == []

    @pytest.mark.parametrize(("timeout", "pause"), [(7.0, 5.0), (None, 8.0), (99.0, 8.0)])
    def test_a_probe_that_takes_too_long_has_failed(self, timeout: float | None, pause: float) -> None:
        """With little time of its own it shows nothing: then the same pause begins again, and does not grow."""
        b = self.bench()
        b.submit("p", timeout=timeout)
        called(b)
        b.start("p")
        b.finish("p", fault=Fault(code="timeout", message="m", details={"which": "total", "seconds": 7.0}))
        [circuit] = b.core.attempts.describe("a", b.time)["circuits"]
        assert (circuit["state"], circuit["seconds_left"]) == ("open", pause)

    def test_nothing_of_an_answer_is_remembered(self) -> None:
        b = bench(circuit_rules=CircuitRules(failures=1), retry_rules=self.ONCE)
        b.submit("r")
        fail(b, fault(partial="secret"))
        last = b.core.attempts.circuits.last_fault(Target("a", "m"))
        assert last is not None
        assert "partial" not in last.details

    def test_a_probe_may_last(self) -> None:
        b = self.bench()
        b.submit("p", timeout=10_000.0)
        called(b)
        for _ in range(4):
            b.do(Tick(), after=FORGOTTEN)
        assert self.state(b) == ["half_open"]
        assert orders(b.submit("q")) == [], "it is still being tried"

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
