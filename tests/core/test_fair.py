"""Fair shares of one class: by weight, whoever comes and goes."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.fair import MOST_DEBTS, SPARE, FairQueue
from callpool.manager.core.retry import Target

from .build import STEADY

M, N = Target("a", "m"), Target("a", "n")


class Played:
    """A fair queue, and beside it plain lists of what waits."""

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self.weights = weights or {}
        self.queue = FairQueue(lambda name: self.weights.get(name, 1.0), self.is_waiting)
        self.waiting: dict[str, tuple[str, Target, int]] = {}
        """By id: client, target, sequence."""
        self.held: set[str] = set()
        self.sequence = 0

    def is_waiting(self, entry: tuple[int, str], target: Target) -> bool:
        found = self.waiting.get(entry[1])
        return found is not None and found[1:] == (target, entry[0])

    def push(self, name: str, target: Target = M) -> str:
        self.sequence += 1
        request_id = f"{name}{self.sequence}"
        self.waiting[request_id] = name, target, self.sequence
        self.queue.push(name, target, (self.sequence, request_id))
        if name in self.held:
            self.queue.hold(name)
        return request_id

    def leave(self, request_id: str) -> None:
        name, target, _ = self.waiting.pop(request_id)
        self.queue.left(name, target)
        if all(each[1] != target for each in self.waiting.values()):
            self.queue.forget(target)

    def serve(self, *targets: Target) -> str | None:
        """Whoever is due first of these targets goes; its client."""
        found = [(flow, target) for target in targets or (M,) if (flow := self.queue.best(target)) is not None]
        if not found:
            return None
        flow, target = min(found)
        request_id = self.queue.head(flow[2], target)
        assert request_id is not None
        self.queue.charge(flow[2])
        self.leave(request_id)
        return flow[2]


@pytest.mark.parametrize("weights", [{}, {"a": 2.0}, {"a": 5.0, "b": 0.5, "c": 1.5}, {"a": 100.0}])
def test_shares_follow_the_weights_within_a_twentieth(weights: dict[str, float]) -> None:
    played = Played(weights)
    for name in "abc":
        for _ in range(3_000):
            played.push(name)
    served = Counter(played.serve() for _ in range(2_000))
    whole = sum(weights.get(name, 1.0) for name in "abc")
    for name in "abc":
        due = 2_000 * weights.get(name, 1.0) / whole
        assert abs(served[name] - due) <= max(0.05 * due, 1.0)


def test_a_long_queue_is_one_client_among_the_others() -> None:
    played = Played()
    for _ in range(5_000):
        played.push("long")
    for name in "bcdefghij":
        for _ in range(20):
            played.push(name)
    served = [played.serve() for _ in range(400)]
    last = max(index for index, name in enumerate(served) if name != "long")
    assert last < 200, "twenty rounds of ten"


def test_within_a_client_in_order_of_arrival() -> None:
    played = Played()
    for _ in range(20):
        played.push("a")
    order = []
    while (flow := played.queue.best(M)) is not None:
        head = played.queue.head(flow[2], M)
        assert head is not None
        order.append(played.waiting[head][2])
        played.serve()
    assert order == sorted(order)
    assert len(order) == 20


def test_waiting_for_nothing_earns_no_credit() -> None:
    played = Played()
    for _ in range(300):
        played.push("busy")
    for _ in range(100):
        played.serve()
    for _ in range(100):
        played.push("late")
    served = Counter(played.serve() for _ in range(100))
    assert abs(served["late"] - 50) <= 1


def test_leaving_loses_no_debt() -> None:
    """A client that sends its next request when the last one has gone has its share, and no more."""
    played = Played({"slow": 0.25})
    for _ in range(400):
        played.push("other")
    played.push("slow")
    served = Counter[str | None]()
    for _ in range(250):
        name = played.serve()
        served[name] += 1
        if name == "slow":
            played.push("slow")
    assert abs(served["slow"] - 50) <= 2


def test_who_is_held_takes_no_part_and_earns_nothing() -> None:
    played = Played()
    for name in "ab":
        for _ in range(200):
            played.push(name)
    played.queue.hold("a")
    assert {played.serve() for _ in range(50)} == {"b"}
    played.queue.let_go("a")
    served = Counter(played.serve() for _ in range(100))
    assert abs(served["a"] - 50) <= 1


def test_who_is_held_while_nobody_waits_is_still_held() -> None:
    played = Played()
    first = played.push("a")
    played.queue.hold("a")
    played.leave(first)
    played.push("a")
    assert played.serve() is None
    played.queue.let_go("a")
    assert played.serve() == "a"


def test_let_go_of_who_is_not_held_is_nothing() -> None:
    played = Played()
    played.push("a")
    played.queue.let_go("a")
    played.queue.let_go("stranger")
    played.queue.hold("stranger")
    assert [played.serve(), played.serve()] == ["a", None]


def test_the_clock_never_goes_back() -> None:
    """Or whoever comes would be given credit for the time before."""
    played = Played()
    for name in "aab":
        played.push(name)
    for _ in range(3):
        played.queue.charge("b")  # as whoever has waited longest is
    played.queue.charge("a")
    played.push("new")
    flow = played.queue.flow("new")
    assert flow is not None
    assert flow.tag == 2.0


def test_nothing_is_kept_when_all_have_gone() -> None:
    played = Played()
    for name in "abc":
        played.push(name)
    while played.serve() is not None:
        pass
    assert (played.queue._flows, played.queue._heaps) == ({}, {})
    held = played.push("held")
    played.queue.hold("held")
    assert played.queue.best(M) is None
    assert played.queue._heaps == {}
    played.leave(held)


def test_names_that_come_and_go_leave_nothing_behind() -> None:
    played = Played()
    played.push("always", N)
    for number in range(4 * MOST_DEBTS):
        played.push(f"client{number}")
        assert played.serve() == f"client{number}"
        assert len(played.queue._flows) <= 2 * MOST_DEBTS + 2 * SPARE
        assert len(played.queue._heaps.get(M, ())) <= 3 * SPARE


def test_departed_entries_leave_nothing_behind() -> None:
    played = Played()
    played.push("a")
    for _ in range(3_000):
        played.leave(played.push("a"))
        flow = played.queue.flow("a")
        assert flow is not None
        assert len(flow.queues[M]) <= 2 * flow.count + SPARE + 1


@pytest.mark.parametrize("held", [False, True])
def test_targets_that_nobody_waits_for_leave_nothing_behind(*, held: bool) -> None:
    played = Played()
    played.push("a")
    if held:
        played.queue.hold("a")
        played.held.add("a")
    for number in range(300):
        target = Target("a", f"m{number}")
        gone = played.push("a", target)
        if number % 2:
            played.queue.best(target)
        other = played.push("b", target)
        played.leave(gone)
        played.leave(other)
    flow = played.queue.flow("a")
    assert flow is not None
    assert [*flow.queues] == [M]
    assert flow.entered <= {M}
    assert [*played.queue._heaps] in ([M], [])
    if held:
        played.queue.let_go("a")
        played.queue.best(M)
        assert [*played.queue._heaps] == [M]


steps = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "push", "serve", "serve", "leave", "hold", "let_go"]),
        st.sampled_from("abcd"),
        st.sampled_from([M, N]),
        st.integers(0, 30),
    ),
    min_size=20,
    max_size=80,
)


@STEADY
@given(steps)
def test_against_lists(script: list[tuple[str, str, Target, int]]) -> None:
    """Whoever goes waited for an open target, was the first of its client there, and was not held; nobody is overlooked."""
    played = Played({"a": 3.0, "b": 0.5})
    for verb, name, target, number in script:
        if verb == "push":
            played.push(name, target)
        elif verb == "leave" and played.waiting:
            played.leave(list(played.waiting)[number % len(played.waiting)])
        elif verb == "hold":
            if played.queue.flow(name) is not None:
                played.queue.hold(name)
                played.held.add(name)
        elif verb == "let_go":
            played.queue.let_go(name)
            played.held.discard(name)
        elif verb == "serve":
            open_targets = [[M], [N], [M, N]][number % 3]
            able = {
                request_id: each
                for request_id, each in played.waiting.items()
                if each[1] in open_targets and each[0] not in played.held
            }
            before = dict(played.waiting)
            served = played.serve(*open_targets)
            assert (served is None) is (not able)
            if served is not None:
                [gone] = before.keys() - played.waiting.keys()
                same = [each[2] for each in able.values() if each[:2] == before[gone][:2]]
                assert gone in able
                assert before[gone][2] == min(same)
        assert played.queue.count == len(played.waiting)
        assert played.queue.busy == len({each[0] for each in played.waiting.values()})
        assert {flow.name for flow in played.queue.flows()} == {each[0] for each in played.waiting.values()}
        for flow in played.queue.flows():
            assert flow.count == sum(each[0] == flow.name for each in played.waiting.values())


@STEADY
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_no_client_waits_for_more_than_the_others_shares(number: int, clients: int) -> None:
    """Between two turns of a client that always waits, each other one of the same weight has at most two."""
    chance, played = random.Random(number), Played()
    names = [f"c{each}" for each in range(clients)]
    for name in names:
        played.push(name)
    since = Counter[str]()
    for _ in range(200):
        for name in names[1:]:
            if chance.random() < 0.5:
                played.push(name)
        played.push(names[0])
        served = played.serve()
        assert served is not None
        since[served] += 1
        if served == names[0]:
            since.clear()
        assert max(since.values(), default=0) <= 2
