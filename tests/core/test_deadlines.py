from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.deadlines import MAX_STALE, TICK, Deadlines

from .build import STEADY

times = st.integers(0, 60_000).map(lambda milliseconds: milliseconds / 1000)


def test_due_at_its_tick_and_once() -> None:
    deadlines = Deadlines()
    deadlines.set("r1", 10.1)
    assert deadlines.next() == 10.25
    assert deadlines.pop_due(10.2) == []
    assert deadlines.pop_due(10.25) == ["r1"]
    assert deadlines.pop_due(99.0) == []
    assert (len(deadlines), deadlines.next()) == (0, None)


@pytest.mark.parametrize("move_to", [3.0, 10.1, 10.2, 50.0])
def test_a_deadline_can_be_moved(move_to: float) -> None:
    deadlines = Deadlines()
    deadlines.set("r1", 10.1)
    deadlines.set("r1", move_to)
    assert len(deadlines) == 1
    assert deadlines.pop_due(move_to - TICK) == []
    assert deadlines.pop_due(move_to + TICK) == ["r1"]


def test_clearing_twice_or_a_stranger_is_nothing() -> None:
    deadlines = Deadlines()
    deadlines.set("r1", 1.0)
    deadlines.clear("r1")
    deadlines.clear("r1")
    deadlines.clear("r2")
    assert (len(deadlines), deadlines.next(), deadlines.pop_due(9.0)) == (0, None, [])


def test_finished_requests_leave_nothing_behind() -> None:
    """30 s deadlines of 100,000 requests that finish at once: a heap would hold them all."""
    deadlines = Deadlines()
    for number in range(100_000):
        now = number / 10_000
        deadlines.set("r", now + 30.0)
        deadlines.clear("r")
        assert len(deadlines._buckets) == 0
        assert len(deadlines._order) <= MAX_STALE
    assert deadlines.next() is None
    assert (deadlines._buckets, deadlines._order) == ({}, [])


Script = list[tuple[str, str, float]]
scripts = st.lists(st.tuples(st.sampled_from(["set", "set", "clear", "pass"]), st.sampled_from("pqrs"), times))


@STEADY
@given(scripts)
def test_against_a_dict(script: Script) -> None:
    deadlines, model, now = Deadlines(), dict[str, float](), 0.0
    for verb, key, number in script:
        if verb == "set":
            deadlines.set(key, now + number)
            model[key] = now + number
        elif verb == "clear":
            deadlines.clear(key)
            model.pop(key, None)
        else:
            now += number / 10
            due = deadlines.pop_due(now)
            assert len(due) == len(set(due))
            assert all(model.pop(each) <= now for each in due), "fired early"
            assert all(at > now - TICK for at in model.values()), "a tick late or more"
        look = deadlines.next()
        assert len(deadlines) == len(model)
        assert (look is None) is (not model)
        if look is not None:
            assert min(model.values()) <= look < min(model.values()) + TICK
