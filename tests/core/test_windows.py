"""Sliding windows, against a list that is summed anew each time, and against a judge that tries every arrival."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.windows import DAY, DAY_GRAIN, MINUTE, NEVER, Entry, Window

from .build import STEADY

LIMIT = 20


class Model:
    """What each entry is: its amount, and when it expires."""

    def __init__(self) -> None:
        self.entries: dict[Entry, tuple[int, float | None]] = {}
        self.carried: list[tuple[int, float]] = []

    def all(self) -> list[tuple[int, float | None]]:
        return [*self.entries.values(), *self.carried]

    def used(self, now: float) -> int:
        return sum(amount for amount, expires in self.all() if expires is None or expires > now)

    def under_way(self) -> int:
        return sum(amount for amount, expires in self.entries.values() if expires is None)

    def ended(self, now: float) -> list[tuple[float, int]]:
        """What has ended and counts: amounts by their ends."""
        found: dict[float, int] = {}
        for amount, expires in self.all():
            if amount and expires is not None and expires > now:
                found[expires] = found.get(expires, 0) + amount
        return sorted(found.items())

    def room_at(self, amount: int, now: float) -> float:
        """The first of all the moments at which anything changes."""
        moments = sorted({now, *(at for _, at in self.all() if at is not None and at > now)})
        return next((at for at in moments if self.used(at) + amount <= LIMIT), NEVER)


Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "stamp", "soon", "refund", "correct", "carry", "pass", "look"]),
        st.integers(0, 12),
        st.integers(0, 9),
    ),
    min_size=20,
    max_size=60,
)


@STEADY
@given(steps)
def test_against_a_list(script: list[Step]) -> None:  # noqa: C901 - one branch for each verb
    window, model, now = Window(LIMIT), Model(), 1000.0
    for verb, number, which in script:
        entries = list(model.entries)
        entry = entries[which % len(entries)] if entries else None
        if verb == "reserve":
            if window.has_room(number, now):
                model.entries[window.reserve(number)] = number, None
        elif verb == "carry":
            window.carry(number, now + 3.0 * which)
            model.carried.append((number, now + 3.0 * which))
        elif verb == "pass":
            now += number * 7.0
        elif verb == "look":
            assert window.has_room(number, now) is (model.used(now) + number <= LIMIT)
            assert window.room_at(number, now) == model.room_at(number, now)
        elif entry is not None:
            amount, expires = model.entries[entry]
            if verb in ("stamp", "soon"):
                at = now if verb == "stamp" else now + number
                window.stamp(entry, at)
                model.entries[entry] = amount, at + MINUTE if expires is None else expires
            elif verb == "correct":
                window.correct(entry, number, now)
                if expires is None or expires > now:
                    model.entries[entry] = number, expires
            else:
                window.refund(entry, now)
                if expires is None or expires > now:
                    model.entries[entry] = 0, expires
        window.forget(now)
        assert (window.used, window.under_way) == (model.used(now), model.under_way())
        assert window.settled(now) == model.used(now) - model.under_way()
        assert window.ended(0.0, now) == model.ended(now)
    now += MINUTE + 12
    window.forget(now)
    assert window.used == window.under_way == model.under_way()


@STEADY
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40), st.integers(0, 90)), max_size=40), st.randoms())
def test_a_provider_never_sees_more_in_any_minute(script: list[tuple[int, int, int]], chance: random.Random) -> None:
    """Each call arrives somewhere between its dispatch and its first byte; every minute that begins with an arrival is summed."""
    window, now = Window(LIMIT), 0.0
    open_calls: list[tuple[float, Entry, float, int]] = []
    arrivals: list[tuple[float, int]] = []
    for amount, pause, latency in script:
        now += pause
        while open_calls and min(open_calls, key=lambda each: each[0])[0] <= now:
            call = min(open_calls, key=lambda each: each[0])
            open_calls.remove(call)
            window.stamp(call[1], call[0])
        if window.has_room(amount, now):
            open_calls.append((now + latency, window.reserve(amount), now, amount))
            arrivals.append((now + chance.choice([0.0, 1.0, chance.random()]) * latency, amount))
    for begin, _ in arrivals:
        assert sum(amount for at, amount in arrivals if begin <= at < begin + MINUTE) <= LIMIT


def test_a_call_counts_from_its_reservation_on_and_its_minute_begins_with_its_stamp() -> None:
    window = Window(1)
    entry = window.reserve(1)
    assert not window.has_room(1, 500.0), "it is under way, however long"
    assert window.room_at(1, 500.0) == NEVER
    window.stamp(entry, 500.0)
    assert window.room_at(1, 510.0) == 560.0
    assert not window.has_room(1, 559.9)
    assert window.has_room(1, 560.0)


def test_a_second_stamp_changes_nothing() -> None:
    window = Window(2)
    entry = window.reserve(1)
    window.stamp(entry, 0.0)
    window.stamp(entry, 30.0)
    window.forget(60.0)
    assert (window.used, window.under_way) == (0, 0)


def test_what_was_stamped_as_it_was_sent_can_be_given_back_as_long_as_it_counts() -> None:
    window = Window(2)
    entry, late = window.reserve(1), window.reserve(1)
    window.stamp(entry, 0.0)
    window.stamp(late, 0.0)
    window.refund(entry, 59.0)
    assert (window.used, window.under_way) == (1, 0)
    window.refund(late, 60.0)
    window.forget(60.0)
    assert (window.used, window.under_way) == (0, 0)


@pytest.mark.parametrize("looked", [True, False])
def test_a_correction_that_comes_too_late_is_nothing(*, looked: bool) -> None:
    window = Window(10)
    entry = window.reserve(5)
    window.stamp(entry, 0.0)
    if looked:
        window.forget(60.0)
    window.correct(entry, 9, 60.0)
    window.forget(60.0)
    assert (window.used, window.under_way) == (0, 0)


def test_more_than_the_limit_never_fits() -> None:
    assert Window(5).room_at(6, 0.0) == NEVER
    assert not Window(5).has_room(6, 0.0)


def test_what_has_ended_can_be_told_in_a_few_sums_that_end_no_sooner() -> None:
    window = Window(100)
    for second in range(10):
        window.stamp(window.reserve(second), float(second))
    assert window.ended(4.0, 9.0) == [(64.0, 1 + 2 + 3 + 4), (68.0, 5 + 6 + 7 + 8), (72.0, 9)]
    assert window.ended(4.0, 65.0) == [(68.0, 6 + 7 + 8), (72.0, 9)], "what has expired is not among them"


def test_what_is_carried_over_into_a_day_is_gathered_with_the_rest() -> None:
    window = day()
    window.carry(3, DAY + 1.0)
    window.carry(4, DAY + DAY_GRAIN)
    window.stamp(window.reserve(5), 2.0)
    assert window.ended(0.0, 2.0) == [(DAY + DAY_GRAIN, 12)]


def day() -> Window:
    return Window(1_000, DAY, grain=DAY_GRAIN)


@pytest.mark.parametrize("later", [0.0, 200.0, 1_000.0])
def test_a_day_keeps_few_sums_and_none_too_short(later: float) -> None:
    """`later`: every third one is stamped for a moment that is yet to come."""
    window, now = day(), 12_345.0
    ends = []
    for number in range(2_000):
        entry = window.reserve(1)
        at = now + (later if number % 3 == 0 else 0.0)
        window.stamp(entry, at)
        ends.append(at + DAY)
        now += 86.4
        window.forget(now)
        assert len(window._ended) <= (DAY + later) / DAY_GRAIN + 2
        assert [each.expires for each in window._ended] == sorted({each.expires or 0.0 for each in window._ended})
        counted = sum(at > now for at in ends)
        assert counted <= window.used <= counted + DAY_GRAIN / 86.4 + 1


@STEADY
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 40_000)), max_size=30))
def test_a_days_amounts_come_back_exactly_even_when_they_are_corrected_after_their_end(
    script: list[tuple[int, int, int]],
) -> None:
    window, now = day(), 0.0
    for amount, better, pause in script:
        entry = window.reserve(amount)
        window.stamp(entry, now)
        window.correct(entry, better, now)
        now += pause
        window.forget(now)
        assert window.used >= 0
    window.forget(now + DAY + DAY_GRAIN)
    assert (window.used, window.under_way) == (0, 0)
