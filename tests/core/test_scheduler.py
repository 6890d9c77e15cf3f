from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.messages import Submit
from callpool.manager.core.requests import Request
from callpool.manager.core.retry import Target
from callpool.manager.core.scheduler import Scheduler

from .build import STEADY

ACCOUNTS = "abc"


def request(number: int, account: str = "a", size: int = 1, request_id: str | None = None) -> Request:
    submit = Submit(request_id or f"r{number}", account, "m", b"x" * size, metadata=b"")
    return Request("c", submit, f"session_{number}", number, 10.0)


def queue(*requests: Request, max_requests: int = 1_000, max_bytes: int = 1_000) -> Scheduler:
    scheduler = Scheduler(max_requests=max_requests, max_bytes=max_bytes)
    for each in requests:
        scheduler.push(each)
    return scheduler


def always(_account: str) -> bool:
    return True


def test_first_come_first_served_and_an_old_place_is_found_again() -> None:
    first, second, third = (request(number) for number in (1, 2, 3))
    scheduler = queue(first, second, third)
    assert scheduler.next_for(always) is first
    scheduler.push(first)
    assert [scheduler.next_for(always) for _ in range(4)] == [first, second, third, None]


def test_an_account_without_a_slot_blocks_nobody() -> None:
    blocked, free = request(1, "a"), request(2, "b")
    scheduler = queue(blocked, free)
    assert scheduler.next_for(lambda account: account == "b") is free
    assert scheduler.next_for(lambda account: account == "b") is None
    assert scheduler.next_for(always) is blocked


def test_bounds_in_requests_and_bytes() -> None:
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


def test_an_id_used_again_does_not_meet_its_old_entry() -> None:
    old, other = request(1, request_id="same"), request(2)
    scheduler = queue(old, other)
    scheduler.remove("same")
    new = request(3, request_id="same")
    scheduler.push(new)
    assert [scheduler.next_for(always) for _ in range(3)] == [other, new, None]


def test_position_of_an_older_request() -> None:
    requests = [request(number) for number in range(1, 8)]
    scheduler = queue(*requests)
    scheduler.next_for(always)
    assert [scheduler.position(each) for each in requests[1:]] == [0, 1, 2, 3, 4, 5]


def test_departed_entries_do_not_pile_up() -> None:
    """A closed account whose requests come and are cancelled for ever: memory follows those that wait."""
    scheduler = queue(request(0))
    for number in range(1, 5_000):
        scheduler.push(request(number))
        scheduler.remove(f"r{number}")
        assert len(scheduler._heaps["a"][Target("a", "m")]) <= 2 * len(scheduler) + 65
    assert scheduler.waiting()[0].request_id == "r0"
    assert len(scheduler) == 1


def test_targets_that_nobody_waits_for_leave_nothing_behind() -> None:
    """Any name may be a model's, where an account allows all."""
    scheduler = queue(request(0))
    for number in range(1, 100):
        waiting = request(number, account=f"account{number % 3}")
        waiting.target = Target(waiting.provider, f"m{number}")
        scheduler.push(waiting)
        scheduler.remove(waiting.request_id)
    assert [*scheduler._heaps] == ["a"]
    assert len(scheduler._heaps["a"]) == 1


def test_remove_of_a_stranger_is_nothing() -> None:
    assert queue(request(1)).remove("r2") is None


Step = tuple[str, int, str]
steps = st.lists(
    st.tuples(st.sampled_from(["push", "remove", "next", "again"]), st.integers(0, 30), st.sampled_from(ACCOUNTS))
)


@STEADY
@given(steps, st.sets(st.sampled_from(ACCOUNTS)))
def test_against_a_list(script: list[Step], with_slot: set[str]) -> None:
    scheduler = queue(max_bytes=10_000)
    waiting: list[Request] = []
    taken: list[Request] = []
    for number, (verb, choice, account) in enumerate(script, start=1):
        if verb == "push":
            new = request(number, account, size=choice)
            scheduler.push(new)
            waiting.append(new)
        elif verb == "remove" and waiting:
            gone = waiting.pop(choice % len(waiting))
            assert scheduler.remove(gone.request_id) is gone
        elif verb == "next":
            able = [each for each in waiting if each.provider in with_slot]
            expected = min(able, key=lambda each: each.sequence, default=None)
            assert scheduler.next_for(with_slot.__contains__) is expected
            if expected is not None:
                waiting.remove(expected)
                taken.append(expected)
        elif verb == "again" and taken:
            back = taken.pop(choice % len(taken))
            scheduler.push(back)
            waiting.append(back)
        waiting.sort(key=lambda each: each.sequence)
        assert scheduler.waiting() == waiting
        assert len(scheduler) == len(waiting)
        assert scheduler.queued_bytes == sum(len(each.payload) for each in waiting)
        for name in ACCOUNTS:
            assert scheduler.count(name) == sum(each.provider == name for each in waiting)


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
            assert scheduler.next_for(always) is (waiting.pop(0) if waiting else None)
        elif waiting:
            scheduler.remove(waiting.pop(step % len(waiting)).request_id)
        assert [scheduler.position(each) for each in waiting] == list(range(len(waiting)))
