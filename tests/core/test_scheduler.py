"""Who goes next: classes, shares, ageing, places, and what is left behind."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.fair import MOST_DEBTS
from callpool.manager.core.limits import PRIORITIES
from callpool.manager.core.messages import Submit
from callpool.manager.core.requests import Request
from callpool.manager.core.retry import Target
from callpool.manager.core.scheduler import AGED_TURN, AGEING, MANY_FLOWS, SPARE, Scheduler

from .build import STEADY

if TYPE_CHECKING:
    from callpool.manager.core.limits import Priority
    from callpool.manager.core.scheduler import Held

ACCOUNTS = "abc"
MODELS = "mn"


def request(
    number: int,
    account: str = "a",
    size: int = 1,
    request_id: str | None = None,
    *,
    name: str = "c",
    model: str = "m",
    priority: Priority = "normal",
    since: float = 0.0,
) -> Request:
    submit = Submit(request_id or f"r{number}", account, model, b"x" * size, metadata=b"", priority=priority)
    made = Request("connection", submit, f"session_{number}", number, 10.0, name=name)
    made.since = since
    return made


def queue(*requests: Request, max_requests: int = 100_000, max_bytes: int = 1_000_000, **more: Any) -> Scheduler:
    scheduler = Scheduler(max_requests=max_requests, max_bytes=max_bytes, **more)
    for each in requests:
        scheduler.push(each)
    return scheduler


class Gate:
    """Open, but for what a test names."""

    def __init__(self, *, closed: str = "", shut: tuple[Target, ...] = (), **held: Held) -> None:
        self.closed = closed
        self.shut = shut
        self.held = held
        """By request id."""
        self.until = float("inf")
        self.asked: list[str] = []

    def is_open(self, account: str) -> bool:
        return account not in self.closed

    def is_shut(self, target: Target) -> bool:
        return target in self.shut

    def admits(self, request: Request) -> Held:
        self.asked.append(request.request_id)
        return self.held.get(request.request_id, "go")

    def held_until(self) -> float:
        return self.until


OPEN = Gate()


def taken(scheduler: Scheduler, gate: Gate = OPEN, now: float = 0.0, most: int = 1_000_000) -> list[Request]:
    """All that go now, in order."""
    found: list[Request] = []
    while len(found) < most and (each := scheduler.next(gate, now)) is not None:
        found.append(each)
    return found


class TestOrder:
    def test_first_come_first_served_and_an_old_place_is_found_again(self) -> None:
        first, second, third = (request(number) for number in (1, 2, 3))
        scheduler = queue(first, second, third)
        assert scheduler.next(OPEN, 0.0) is first
        scheduler.push(first)
        assert taken(scheduler) == [first, second, third]

    def test_a_place_is_found_again_after_a_rest(self) -> None:
        first, second = request(1), request(2)
        scheduler = queue(second)
        scheduler.rest(first)
        assert scheduler.count("a") == 2
        assert scheduler.counts("a")["normal"] == 1, "who rests takes no part"
        scheduler.wake("r1")
        assert taken(scheduler) == [first, second]

    def test_who_rests_is_not_taken_and_may_be_removed(self) -> None:
        scheduler = queue()
        first = request(1)
        scheduler.rest(first)
        assert scheduler.next(OPEN, 0.0) is None
        assert scheduler.remove("r1") is first
        assert (len(scheduler), scheduler.count("a"), scheduler.queued_bytes) == (0, 0, 0)

    def test_classes_go_in_order(self) -> None:
        requests = [request(number, priority=PRIORITIES[-number % 3]) for number in range(1, 10)]
        served = taken(queue(*requests))
        assert [each.rank for each in served] == [0] * 3 + [1] * 3 + [2] * 3

    @pytest.mark.parametrize("weights", [{}, {"x": 3.0}, {"x": 1.0, "y": 7.0}])
    def test_within_a_class_shares_follow_the_weights(self, weights: dict[str, float]) -> None:
        scheduler = queue(weight_of=lambda name: weights.get(name, 1.0))
        for number in range(3_000):
            scheduler.push(request(number, name="xyz"[number % 3]))
        served = Counter(each.name for each in taken(scheduler, most=1_000))
        for name in "xyz":
            due = 1_000 * weights.get(name, 1.0) / sum(weights.get(each, 1.0) for each in "xyz")
            assert abs(served[name] - due) <= max(1.0, 0.05 * due)

    def test_nine_short_queues_beside_a_long_one(self) -> None:
        """They finish no later than half as late again as among ten that have as little."""

        def last_turn(long: int) -> int:
            scheduler = queue(*(request(number, name="long") for number in range(long)))
            for number in range(9 * 20):
                scheduler.push(request(10_000 + number, name=f"short{number % 9}"))
            served = taken(scheduler)
            return max(index for index, each in enumerate(served) if each.name != "long")

        assert last_turn(5_000) <= 1.5 * last_turn(20)

    def test_accounts_that_compete_for_the_last_session_share_it_between_clients(self) -> None:
        scheduler = queue(*(request(number, "a", name="x") for number in range(100)))
        for number in range(100, 200):
            scheduler.push(request(number, "b", name="y"))
        served = Counter(each.name for each in taken(scheduler, most=100))
        assert abs(served["x"] - 50) <= 1

    def test_and_follow_the_weights(self) -> None:
        scheduler = queue(weight_of=lambda name: 3.0 if name == "x" else 1.0)
        for number in range(400):
            scheduler.push(request(number, "ab"[number % 2], name="xy"[number % 2]))
        served = Counter(each.name for each in taken(scheduler, most=200))
        assert abs(served["x"] - 150) <= 2

    def test_who_comes_later_earns_no_credit_there(self) -> None:
        scheduler = queue(*(request(number, "ab"[number % 2], name="xy"[number % 2]) for number in range(600)))
        taken(scheduler, most=200)
        for number in range(600, 800):
            scheduler.push(request(number, "c", name="z"))
        served = Counter(each.name for each in taken(scheduler, most=90))
        assert abs(served["z"] - 30) <= 2

    def test_a_higher_class_goes_first_on_whichever_account(self) -> None:
        batch, interactive = request(1, "a", priority="batch"), request(2, "b", priority="interactive")
        assert taken(queue(batch, interactive)) == [interactive, batch]


class TestBlocking:
    def test_an_account_without_a_slot_blocks_nobody(self) -> None:
        blocked, free = request(1, "a"), request(2, "b")
        scheduler = queue(blocked, free)
        assert taken(scheduler, Gate(closed="a")) == [free]
        assert taken(scheduler) == [blocked]

    def test_a_model_that_is_shut_blocks_nobody(self) -> None:
        blocked, free = request(1), request(2, model="n")
        scheduler = queue(blocked, free)
        assert taken(scheduler, Gate(shut=(Target("a", "m"),))) == [free]
        assert taken(scheduler) == [blocked]

    def test_a_model_whose_limit_the_first_one_does_not_fit_blocks_no_other_model(self) -> None:
        large, small, other = request(1), request(2, name="d"), request(3, name="e", model="n")
        scheduler = queue(large, small, other)
        gate = Gate(r1="target")
        assert taken(scheduler, gate) == [other]
        assert "r2" not in gate.asked, "or small ones would overtake it for ever"
        assert taken(scheduler) == [large, small]

    def test_who_does_not_fit_its_account_keeps_it_from_being_overtaken(self) -> None:
        large, small, other = request(1), request(2, name="d", model="n"), request(3, "b")
        scheduler = queue(large, small, other)
        assert taken(scheduler, Gate(r1="account")) == [other]
        assert taken(scheduler) == [large, small]

    def test_a_client_at_a_limit_of_its_own_holds_back_itself_alone(self) -> None:
        requests = [request(number, "ab"[number % 2], name="xy"[number % 4 // 2]) for number in range(8)]
        scheduler = queue(*requests)
        gate = Gate()
        gate.held = {each.request_id: "client" for each in requests if each.name == "x"}
        assert [each.name for each in taken(scheduler, gate)] == ["y"] * 4
        assert scheduler.next_release() is None
        asked = len(gate.asked)
        assert taken(scheduler, gate) == []
        assert len(gate.asked) == asked, "it is not even asked"
        late = request(99, "c", name="x")
        scheduler.push(late)
        assert taken(scheduler) == [], "nor is what it sends later"
        scheduler.let_go("x")
        assert not scheduler.any_held
        assert len(taken(scheduler)) == 5

    def test_a_client_that_is_held_for_a_time_takes_part_again(self) -> None:
        only = request(1, name="x")
        scheduler = queue(only)
        gate = Gate(r1="client")
        gate.until = 60.0
        assert taken(scheduler, gate) == []
        release = scheduler.next_release()
        assert release is not None
        assert 60.0 <= release <= 60.02
        assert taken(scheduler, now=59.9) == []
        assert taken(scheduler, now=release) == [only]
        assert scheduler.next_release() is None

    def test_let_go_of_a_stranger_is_nothing(self) -> None:
        scheduler = queue(request(1))
        scheduler.let_go("stranger")
        assert len(taken(scheduler)) == 1


class TestAgeing:
    def served_after(self, scheduler: Scheduler, old: Request, *, most: int = 1_000) -> int:
        """Turns until it goes, while ten of a higher class always wait and one comes with each turn."""
        number = 10_000
        for _ in range(10):
            number += 1
            scheduler.push(request(number, priority="interactive", name=f"i{number % 3}", since=AGEING))
        for turn in range(most):
            number += 1
            scheduler.push(request(number, priority="interactive", name=f"i{number % 3}", since=AGEING))
            if scheduler.next(OPEN, AGEING + 1.0) is old:
                return turn
        pytest.fail("never")

    def test_a_batch_request_is_served_within_its_bound(self) -> None:
        old = request(1, priority="batch")
        assert self.served_after(queue(old), old) < AGED_TURN

    def test_and_so_are_those_after_it_in_order(self) -> None:
        olds = [request(number, priority="batch", name="xyz"[number % 3]) for number in range(1, 6)]
        scheduler = queue(*olds)
        turns = [self.served_after(scheduler, old) for old in olds]
        assert max(turns) < AGED_TURN

    def test_nobody_ages_before_the_time(self) -> None:
        old = request(1, priority="batch", since=10.0)
        scheduler = queue(old, *(request(number, priority="interactive") for number in range(2, 50)))
        assert old not in taken(scheduler, now=10.0 + AGEING - 0.1, most=40)

    def test_another_age(self) -> None:
        old = request(1, priority="batch")
        scheduler = queue(
            old, *(request(number, priority="interactive", since=1.0) for number in range(2, 50)), ageing=2.0
        )
        assert taken(scheduler, now=2.5, most=AGED_TURN)[-1] is old

    def test_most_turns_are_the_higher_classes(self) -> None:
        scheduler = queue(*(request(number, priority="batch") for number in range(500)))
        for number in range(1_000, 1_500):
            scheduler.push(request(number, priority="interactive", since=AGEING))
        served = Counter(each.rank for each in taken(scheduler, now=AGEING + 1.0, most=10 * AGED_TURN))
        assert served[2] == 10

    @pytest.mark.parametrize("until", [1_000.0, float("inf")])
    def test_an_old_request_of_a_client_that_is_held_keeps_nobody_from_ageing(self, until: float) -> None:
        held, old = request(1, name="held", priority="batch"), request(2, priority="batch", name="other")
        scheduler = queue(held, old)
        scheduler.hold("held", until)
        assert self.served_after(scheduler, old) < AGED_TURN

    def test_nor_does_one_whose_model_is_shut(self) -> None:
        shut, old = request(1, model="n", priority="batch"), request(2, priority="batch")
        scheduler = queue(
            shut, old, *(request(number, priority="interactive", since=AGEING) for number in range(3, 50))
        )
        served = taken(scheduler, Gate(shut=(Target("a", "n"),)), now=AGEING + 1.0, most=AGED_TURN)
        assert old in served

    def test_between_accounts_too(self) -> None:
        old = request(1, "b", priority="batch")
        scheduler = queue(old, *(request(number, priority="interactive", since=AGEING) for number in range(2, 50)))
        assert old in taken(scheduler, now=AGEING + 1.0, most=3)


class TestBounds:
    def test_in_requests_and_bytes(self) -> None:
        scheduler = queue(request(1, size=10), max_requests=2, max_bytes=15)
        assert scheduler.has_room(5)
        assert not scheduler.has_room(6)
        assert not scheduler.has_room(5, promised=1)
        assert not scheduler.has_room(5, promised_bytes=1_000_000)
        scheduler.push(request(2, size=5))
        assert not scheduler.has_room(0)
        scheduler.remove("r1")
        assert scheduler.has_room(10)
        assert scheduler.queued_bytes == 5

    def test_an_id_used_again_does_not_meet_its_old_entry(self) -> None:
        old, other = request(1, request_id="same"), request(2)
        scheduler = queue(old, other)
        scheduler.remove("same")
        new = request(3, request_id="same")
        scheduler.push(new)
        assert taken(scheduler) == [other, new]

    def test_remove_of_a_stranger_is_nothing(self) -> None:
        assert queue(request(1)).remove("r2") is None


def size_of(scheduler: Scheduler) -> int:
    """Everything that it remembers."""
    size = len(scheduler._tags) + len(scheduler._held) + len(scheduler._endlessly)
    for account in scheduler._accounts.values():
        size += len(account.targets) + sum(map(len, account.ages.values()))
        for each in account.classes:
            size += sum(map(len, each._heaps.values()))
            for flow in each._flows.values():
                size += 1 + len(flow.entered) + sum(map(len, flow.queues.values()))
    return size


class TestMemory:
    """What has left leaves nothing behind, while something else waits all the time."""

    def test_cancelled_requests(self) -> None:
        scheduler = queue(request(0))
        for number in range(1, 5_000):
            scheduler.push(request(number))
            scheduler.remove(f"r{number}")
            assert size_of(scheduler) < 4 * SPARE
        assert scheduler.waiting()[0].request_id == "r0"

    def test_requests_that_come_back(self) -> None:
        scheduler = queue(request(0), request(1), request(2, name="d"))
        for _ in range(2_000):
            again = scheduler.next(OPEN, 0.0)
            assert again is not None
            scheduler.push(again)
            assert size_of(scheduler) < 10 * SPARE

    def test_models_that_nobody_waits_for(self) -> None:
        """Any name may be a model's, where an account allows all."""
        scheduler = queue(request(0))
        for number in range(1, 1_000):
            scheduler.push(request(number, f"account{number % 3}", model=f"m{number}"))
            scheduler.remove(f"r{number}")
            scheduler.push(request(number, model=f"m{number}"))
            scheduler.remove(f"r{number}")
        assert [*scheduler._accounts] == ["a"]
        assert size_of(scheduler) < 10

    def test_models_of_a_client_that_is_held(self) -> None:
        scheduler = queue(request(0))
        scheduler.hold("c", 1_000.0)
        for number in range(1, 1_000):
            scheduler.push(request(number, model=f"m{number}"))
            scheduler.next(OPEN, 0.0)
            scheduler.remove(f"r{number}")
        assert size_of(scheduler) < 10

    @pytest.mark.parametrize("accounts", ["b", "bc"])
    def test_clients_that_come_once(self, accounts: str) -> None:
        scheduler = queue(request(0))
        for number in range(1, 4 * MOST_DEBTS):
            scheduler.push(request(number, accounts[number % len(accounts)], name=f"client{number}"))
            assert scheduler.next(Gate(closed="a"), 0.0) is not None
        assert size_of(scheduler) < 3 * MOST_DEBTS

    def test_everything_when_all_have_gone(self) -> None:
        scheduler = queue(*(request(number, "ab"[number % 2], name=f"c{number % 7}") for number in range(100)))
        scheduler.hold("c3", 50.0)
        taken(scheduler)
        taken(scheduler, now=51.0)
        assert size_of(scheduler) == 0
        assert (scheduler._counts, scheduler._waiting) == ({"a": 0, "b": 0}, {})


class TestPosition:
    def test_within_one_client_of_an_older_request(self) -> None:
        requests = [request(number) for number in range(1, 8)]
        scheduler = queue(*requests)
        scheduler.next(OPEN, 0.0)
        assert [scheduler.position(each) for each in requests[1:]] == [0, 1, 2, 3, 4, 5]

    def test_who_is_not_in_the_queue_or_rests_has_none_before_it(self) -> None:
        scheduler = queue(request(1), request(2))
        rests = request(3)
        scheduler.rest(rests)
        assert scheduler.position(rests) == 0
        assert scheduler.position(request(4, "b")) == 0

    def test_a_higher_class_goes_before(self) -> None:
        scheduler = queue(*(request(number, priority="interactive") for number in range(5)))
        last = request(9, priority="batch", name="x")
        scheduler.push(last)
        assert scheduler.position(last) == 5

    @pytest.mark.parametrize("weights", [{}, {"c0": 4.0}])
    def test_about_as_many_go_before_it_as_it_says(self, seed: int, weights: dict[str, float]) -> None:
        chance = random.Random(seed)
        for _ in range(50):
            scheduler = queue(weight_of=lambda name: weights.get(name, 1.0))
            requests = [request(number, name=f"c{chance.randrange(6)}") for number in range(chance.randint(5, 60))]
            for each in requests:
                scheduler.push(each)
            clients = len({each.name for each in requests})
            told = {each.request_id: scheduler.position(each) for each in requests}
            for index, each in enumerate(taken(scheduler)):
                slack = clients * max(1.0, *weights.values()) if weights else clients
                assert abs(told[each.request_id] - index) <= slack

    def test_with_many_clients_it_is_estimated(self) -> None:
        scheduler = queue(*(request(number, name=f"c{number}") for number in range(MANY_FLOWS + 10)))
        last = request(9_999, name="new")
        scheduler.push(last)
        assert 0 <= scheduler.position(last) <= MANY_FLOWS + 10
        assert taken(scheduler)[-1] is last


class TestWaitingFor:
    def test_in_order_of_arrival(self) -> None:
        requests = [request(number, model="mn"[number % 2], priority=PRIORITIES[number % 3]) for number in (4, 2, 6, 1)]
        scheduler = queue(*requests)
        assert [each.sequence for each in scheduler.waiting_for(Target("a", "m"))] == [2, 4, 6]
        assert scheduler.waiting_for(Target("b", "m")) == []

    def test_one_that_came_back_is_there_once(self) -> None:
        """Its old entry has not come up yet; to end it twice would be the end of the supervisor."""
        first, second = request(1), request(2)
        scheduler = queue(first, second)
        assert scheduler.next(OPEN, 0.0) is first
        scheduler.push(first)
        assert scheduler.waiting_for(Target("a", "m")) == [first, second]


Step = tuple[str, int, str, str, str]
steps = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "remove", "next", "next", "again", "rest", "wake", "move", "hold", "let_go"]),
        st.integers(0, 30),
        st.sampled_from(ACCOUNTS),
        st.sampled_from(MODELS),
        st.sampled_from("xyz"),
    ),
    min_size=20,
    max_size=60,
)
open_accounts = st.sets(st.sampled_from(ACCOUNTS))
shut_targets = st.sets(
    st.sampled_from([Target(account, model) for account in ACCOUNTS for model in MODELS]), max_size=3
)


@STEADY
@given(steps, open_accounts, shut_targets)
def test_against_a_list(  # noqa: C901 - one branch for each verb
    script: list[Step], with_slot: set[str], shut: set[Target]
) -> None:
    """Whoever goes may go, is of the highest class there, and is the first of its client; if any may, one goes."""
    scheduler = queue()
    gate = Gate(closed="".join(set(ACCOUNTS) - with_slot), shut=tuple(shut))
    waiting: list[Request] = []
    resting: list[Request] = []
    gone: list[Request] = []
    held: set[str] = set()
    for number, (verb, choice, account, model, name) in enumerate(script, start=1):
        if verb == "push":
            new = request(number, account, choice, name=name, model=model, priority=PRIORITIES[choice % 3])
            scheduler.push(new)
            waiting.append(new)
        elif verb == "remove" and waiting:
            left = waiting.pop(choice % len(waiting))
            assert scheduler.remove(left.request_id) is left
        elif verb == "next":
            able = [
                each
                for each in waiting
                if each.provider in with_slot and each.target not in shut and each.name not in held
            ]
            taken_now = scheduler.next(gate, 0.0)
            if not able:
                assert taken_now is None
                continue
            assert taken_now is not None
            assert taken_now in able
            assert taken_now.rank == min(each.rank for each in able)
            alike = (taken_now.target, taken_now.name, taken_now.rank)
            same = [each.sequence for each in able if (each.target, each.name, each.rank) == alike]
            assert taken_now.sequence == min(same)
            waiting.remove(taken_now)
            gone.append(taken_now)
        elif verb in ("again", "rest") and gone:
            back = gone.pop(choice % len(gone))
            if verb == "again":
                scheduler.push(back)
                waiting.append(back)
            else:
                scheduler.rest(back)
                resting.append(back)
        elif verb == "wake" and resting:
            back = resting.pop(choice % len(resting))
            scheduler.wake(back.request_id)
            waiting.append(back)
        elif verb == "move" and waiting:
            moved = waiting[choice % len(waiting)]
            scheduler.remove(moved.request_id)
            moved.target = Target(account, model)
            moved.provider, moved.model = moved.target
            scheduler.push(moved)
        elif verb == "hold":
            scheduler.hold(name, float("inf") if choice % 2 else 1_000.0)
            held.add(name)
        elif verb == "let_go":
            scheduler.let_go(name)
            held.discard(name)
        everybody = sorted(waiting + resting, key=lambda each: each.sequence)
        assert scheduler.waiting() == everybody
        assert len(scheduler) == len(everybody)
        assert scheduler.queued_bytes == sum(len(each.payload) for each in everybody)
        for each in ACCOUNTS:
            assert scheduler.count(each) == sum(one.provider == each for one in everybody)
            assert sum(scheduler.counts(each).values()) == sum(one.provider == each for one in waiting)
            for which in MODELS:
                target = Target(each, which)
                expected = sorted((one for one in waiting if one.target == target), key=lambda one: one.sequence)
                assert scheduler.waiting_for(target) == expected
        assert size_of(scheduler) <= 8 * len(waiting) + 6 * SPARE


@STEADY
@given(st.lists(st.one_of(st.just(-1), st.just(-1), st.integers(0, 30)), min_size=8, max_size=60))
def test_position_against_a_list(script: list[int]) -> None:
    """-1 lets one more request wait; 0 takes the next one; another number takes one out of the middle."""
    scheduler, waiting = queue(), list[Request]()
    for number, step in enumerate(script, start=1):
        if step == -1:
            waiting.append(request(number))
            scheduler.push(waiting[-1])
        elif step == 0:
            assert scheduler.next(OPEN, 0.0) is (waiting.pop(0) if waiting else None)
        elif waiting:
            scheduler.remove(waiting.pop(step % len(waiting)).request_id)
        assert [scheduler.position(each) for each in waiting] == list(range(len(waiting)))
