"""Limits that no provider ever sees exceeded: a pool at work in virtual time, and a judge who knows nothing of the ledger."""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from callpool.manager.core.admission import Admission
from callpool.manager.core.circuits import CircuitRules, Circuits
from callpool.manager.core.events import AccountResumed, CancelAsked, Reported, Tick, WorkerDown, WorkerUp
from callpool.manager.core.faults import Fault
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.limits import AccountRules, ClientRules, Counting, LedgerRules, Limits, Usage
from callpool.manager.core.messages import CancelCall, Dispatch, Finished, Piece, Started
from callpool.manager.core.scheduler import Scheduler

from .attempts import BUSY, bench, fault
from .build import Bench, to_workers
from .test_quotas import is_clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.events import Effect

RATE = fault("rate_limited", limit="rpm", scope="account", retry_after=3.0)
FULL = fault("rate_limited", limit="concurrency", scope="account")
NO_MONEY = fault("quota_exhausted", retryable=False, scope="account")
WINDOW = fault("rate_limited", limit="window", retryable=False, retry_after=20.0, scope="account")
MINUTE = 60.0
NAMES = ("x", "y", "z")


class Call(NamedTuple):
    """A call as its provider saw it."""

    account: str
    model: str
    client: str
    sent: float
    arrived: float
    charged: float
    """When its tokens were counted."""
    ended: float
    """When its provider was done with it."""
    tokens: int


class World:
    """Clients that submit and cancel at random, calls that take random times and fail at random."""

    def __init__(
        self, rules: LedgerRules, chance: random.Random, *, accounts: dict[str, int], pool: int, trouble: float = 0.0
    ) -> None:
        """`trouble`: part of the calls that stop their account, fail, or end with their worker."""
        self.b: Bench = bench(pool=pool, accounts=accounts, rules=rules, max_requests=10_000, models=("m", "n"))
        self.trouble = trouble
        self.chance = chance
        self.calls: list[Call] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._usage: dict[str, Usage] = {}
        self._out: dict[tuple[str, int], dict[str, Any]] = {}
        self._rules = rules

    def at(self, time: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, what))

    def run(self) -> None:
        """Until nothing happens any more."""
        steps = 0
        while True:
            due = self.b.core.next_deadline()
            first = self._events[0][0] if self._events else None
            if due is None and first is None:
                return
            steps += 1
            assert steps < 50_000, f"it never ends: {due} after {self.b.time}"
            if first is not None and (due is None or first <= due):
                self.b.time = max(self.b.time, first)
                heapq.heappop(self._events)[2]()
            elif due is not None:
                self.b.time = max(self.b.time, due)
                self.sees(self.b.do(Tick()))

    def submit(self, request_id: str, usage: Usage, **more: Any) -> None:
        self._usage[request_id] = usage
        self.sees(self.b.submit(request_id, tokens=usage, timeout=80_000.0, **more))

    def cancel(self, request_id: str) -> None:
        self.sees(self.b.do(CancelAsked(None, request_id)))

    def sees(self, effects: list[Effect]) -> None:
        for order in to_workers(effects):
            if isinstance(order, Dispatch):
                self._goes_out(order)
            elif isinstance(order, CancelCall):
                call = self._out[order.request_id, order.attempt]
                call["cancelled"] = True
                self.at(self.b.time + 0.2 * self.chance.random(), lambda call=call: self._ends(call))  # type: ignore[misc]

    def _goes_out(self, order: Dispatch) -> None:
        chance, now = self.chance, self.b.time
        request = self.b.core.requests[order.request_id]
        call = {"order": order, "sent": now, "first": None, "client": request.name, "over": False, "cancelled": False}
        self._out[order.request_id, order.attempt] = call
        self.at(now, lambda: self._says(call, Started(order.request_id, order.attempt)))
        latency = chance.choice([0.01, 1.0, 20.0]) * chance.random()
        if chance.random() < self.trouble:
            call["fault"] = chance.choice([NO_MONEY, BUSY, WINDOW, None])
        elif chance.random() < 0.15:
            call["fault"] = chance.choice([RATE, RATE, FULL])
        elif chance.random() < 0.7:
            self.at(now + latency, lambda: self._first_byte(call))
        self.at(now + latency + chance.choice([0.0, 0.5, 30.0]) * chance.random(), lambda: self._ends(call))

    def _says(self, call: dict[str, Any], report: Started | Piece | Finished) -> None:
        if not call["over"]:
            self.sees(self.b.do(Reported(1, report)))

    def _first_byte(self, call: dict[str, Any]) -> None:
        if not call["over"]:
            call["first"] = self.b.time
            self._says(call, Piece(call["order"].request_id, call["order"].attempt, b"p"))

    def _ends(self, call: dict[str, Any]) -> None:
        if call["over"]:
            return
        order, why, now = call["order"], call.get("fault"), self.b.time
        request_id = order.request_id
        usage = self._usage[request_id]
        rules = self._rules.accounts[order.provider].counting
        done = now
        if why is NO_MONEY:
            self.at(now + 10.0, lambda: self.sees(self.b.do(AccountResumed(order.provider))))
        if self.trouble and "fault" in call and why is None and not call["cancelled"]:
            for other in self._out.values():
                other["over"] = True
            self.sees(self.b.do(WorkerDown(1, "died")))
            self.at(now + 1.0, lambda: self.sees(self.b.do(WorkerUp(1))))
            return
        known = now if call["first"] is None else call["first"]
        if call["cancelled"]:
            why, call["fault"] = Fault(code="cancelled", message="m"), None
            done += self.chance.random() * rules.cancel_lag
            known = done if call["first"] is None else known  # its request may still be on its way
        used = Usage(usage.prompt, self.chance.randint(0, usage.answer))
        if call.get("fault") is None:
            arrived = charged = self.chance.choice([call["sent"], known, self.chance.uniform(call["sent"], known)])
            tokens = usage.prompt + usage.answer
            if rules.charge == "actual":  # what was used is counted at some moment until it has been used
                charged = self.chance.choice([arrived, known, now, self.chance.uniform(arrived, max(now, known))])
                charged = max(arrived, charged)
                tokens = used.prompt + used.answer
            self.calls.append(
                Call(order.provider, order.model, call["client"], call["sent"], arrived, charged, done, tokens)
            )
        self._says(call, Finished(request_id, order.attempt, None if why else b"ok", why, usage=None if why else used))
        call["over"] = True


class Judge:
    """Tries every minute, and every moment."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls

    def requests(
        self, which: Callable[[Call], bool], *, by: Callable[[Call], float] = lambda call: call.arrived
    ) -> int:
        return self._most(which, by, lambda _: 1)

    def tokens(self, which: Callable[[Call], bool]) -> int:
        return self._most(which, lambda call: call.charged, lambda call: call.tokens)

    def _most(self, which: Callable[[Call], bool], by: Callable[[Call], float], size: Callable[[Call], int]) -> int:
        """The most in any minute: one that begins with a call has the most."""
        found = [(by(call), size(call)) for call in self.calls if which(call)]
        return max(
            (sum(amount for at, amount in found if begin <= at < begin + MINUTE) for begin, _ in found), default=0
        )

    def at_once(self, which: Callable[[Call], bool]) -> int:
        found = [(call.sent, call.ended) for call in self.calls if which(call)]
        return max((sum(sent <= moment < ended for sent, ended in found) for moment, _ in found), default=0)


def account(concurrency: int, *, models: dict[str, Limits] | None = None, **more: Any) -> AccountRules:
    counting = {name: more.pop(name) for name in ("charge", "cancel_lag") if name in more}
    organization = more.pop("organization", None)
    limits = Limits(concurrency=concurrency, **more)
    return AccountRules(limits=limits, models=models or {}, counting=Counting(**counting), organization=organization)


def busy(world: World, requests: int, *, largest: int = 60) -> World:
    """Let so many requests come, some be cancelled, and all of it come to its end."""
    chance, start = world.chance, world.b.time
    for number in range(requests):
        usage = Usage(chance.randint(1, largest), chance.randint(1, largest))
        more: dict[str, Any] = {
            "account": chance.choice(list(world._rules.accounts)),
            "client": chance.choice(NAMES),
            "priority": chance.choice(["interactive", "normal", "batch"]),
        }
        if world.trouble:
            more["queue_timeout"] = chance.choice([None, 5.0, 50.0])
            more["fallbacks"] = chance.choice([(), ("b/m",), ("b/n", "a/n")])
            more["retry_in_doubt"] = chance.random() < 0.5
        at = start + chance.uniform(0.0, 60.0)
        world.at(at, lambda name=f"r{number}", usage=usage, more=more: world.submit(name, usage, **more))  # type: ignore[misc]
        if chance.random() < 0.1:
            world.at(at + 20.0 * chance.random(), lambda name=f"r{number}": world.cancel(name))  # type: ignore[misc]
    world.run()
    b = world.b
    assert not b.core.requests, "everybody came to an end"
    assert len(b.core.scheduler) == 0
    assert is_clean(b)
    return world


@pytest.mark.parametrize("charge", ["actual", "advance"])
def test_an_accounts_limits_are_never_exceeded_in_any_minute(seed: int, charge: str) -> None:
    models = {"m": Limits(concurrency=3, requests_per_minute=25)}
    rules = LedgerRules(
        accounts={
            "a": account(
                5, models=models, requests_per_minute=30, tokens_per_minute=2_000, charge=charge, cancel_lag=2.0
            )
        }
    )
    for number in range(4):
        world = busy(World(rules, random.Random(seed + number), accounts={"a": 5}, pool=50), 120)
        judge = Judge(world.calls)
        assert 25 >= judge.requests(lambda call: call.model == "m") >= 10, "and used"
        assert judge.tokens(lambda _: True) <= 2_000
        assert judge.at_once(lambda _: True) <= 3


def test_tokens_of_a_minute_are_never_exceeded_where_they_are_what_is_short(seed: int) -> None:
    rules = LedgerRules(accounts={"a": account(20, tokens_per_minute=600, charge="advance")})
    for number in range(4):
        world = busy(World(rules, random.Random(seed + number), accounts={"a": 20}, pool=50), 60)
        assert 600 >= Judge(world.calls).tokens(lambda _: True) >= 400


def test_an_organisations_limits_are_never_exceeded_over_two_keys(seed: int) -> None:
    rules = LedgerRules(
        accounts={name: account(10, charge="advance", organization="o") for name in "ab"},
        organizations={"o": Limits(concurrency=6, requests_per_minute=20, tokens_per_minute=1_000)},
    )
    for number in range(4):
        world = busy(World(rules, random.Random(seed + number), accounts={"a": 10, "b": 10}, pool=50), 80)
        judge = Judge(world.calls)
        assert judge.requests(lambda _: True) <= 20
        assert judge.tokens(lambda _: True) <= 1_000
        assert judge.at_once(lambda _: True) <= 6


def test_the_rates_of_clients_and_of_the_supervisor_are_never_exceeded(seed: int) -> None:
    rules = LedgerRules(
        accounts={"a": account(20)},
        clients={"x": ClientRules(requests_per_minute=4), "default": ClientRules(requests_per_minute=12)},
        requests_per_minute=20,
    )
    for number in range(4):
        world = busy(World(rules, random.Random(seed + number), accounts={"a": 20}, pool=50), 80)
        judge = Judge(world.calls)
        assert judge.requests(lambda call: call.client == "x", by=lambda call: call.sent) <= 4
        assert judge.requests(lambda call: call.client == "y", by=lambda call: call.sent) <= 12
        assert judge.requests(lambda _: True, by=lambda call: call.sent) <= 20


def test_the_judge_sees_what_is_exceeded(seed: int) -> None:
    """Without limits the same calls break them all."""
    rules = LedgerRules(accounts={"a": account(20)})
    judge = Judge(busy(World(rules, random.Random(seed), accounts={"a": 20}, pool=50), 120).calls)
    assert judge.requests(lambda _: True) > 30
    assert judge.tokens(lambda _: True) > 2_000
    assert judge.at_once(lambda _: True) > 3


def test_a_day_of_a_client_is_never_overdrawn_and_what_was_not_used_can_be(seed: int) -> None:
    rules = LedgerRules(accounts={"a": account(20)}, clients={"x": ClientRules(tokens_per_day=1_500)})
    for number in range(4):
        world = busy(World(rules, random.Random(seed + number), accounts={"a": 20}, pool=50), 120)
        scope = world.b.core.ledger.clients["x"]
        assert 800 <= scope.days[0].window.used <= 1_500


def test_whatever_happens_everybody_comes_to_an_end_and_nothing_is_left(seed: int) -> None:
    rules = LedgerRules(
        accounts={
            "a": account(
                6, models={"m": Limits(concurrency=4)}, organization="o", cancel_lag=1.0, tokens_per_minute=900
            ),
            "b": account(3, requests_per_minute=20, tokens_per_day=20_000),
        },
        organizations={"o": Limits(tokens_per_minute=800)},
        clients={"x": ClientRules(tokens_per_day=900), "default": ClientRules(requests_per_minute=20, weight=2.0)},
        requests_per_minute=40,
    )
    for number in range(6):
        chance = random.Random(seed + number)
        busy(World(rules, chance, accounts={"a": 6, "b": 3}, pool=chance.choice([2, 50]), trouble=0.2), 120)


def test_a_look_needs_a_time() -> None:
    ledger = Ledger(LedgerRules(requests_per_minute=1))
    admission = Admission(ledger, Circuits(CircuitRules()), Scheduler(max_requests=1, max_bytes=1))
    with pytest.raises(RuntimeError, match="begin"):
        admission.any_open()
