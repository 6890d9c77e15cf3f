"""The pace of restarts, in virtual time: pools whose workers die at once, later, by chance, and stop dying."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.restarts import (
    BACKOFF_FIRST,
    BACKOFF_LIMIT,
    BOOT_INTENSITY,
    HEALTHY_AFTER,
    INTENSITY,
    LONGEST_PROOF,
    MOST_STARTS,
    PROBE_EVERY,
    PROVEN_AFTER,
    WINDOW,
    Failure,
    Restarts,
    backoff_ceiling,
)

from .build import STEADY

FOR_EVER = float("inf")
LATE = 0.01
"""Seconds by which the simulated shell looks later than it was told to."""

HANGS = 31.0
"""Seconds after which one that never gets ready is ended."""

Fate = tuple[float | None, float]
"""Of one worker: seconds until it is ready (None: never), and seconds from then, or from its start, to its death."""


class Pool:
    """A pool in virtual time: each start gets a fate, and everything is noted."""

    def __init__(self, places: int, fate: Callable[[int, float], Fate], *, draw: Callable[[], float]) -> None:
        self.restarts = Restarts(draw)
        self.places = places
        self.now = 0.0
        self.starts: list[tuple[float, int]] = []
        self.failed: list[float] = []
        """When those replacements were started that have died within `PROVEN_AFTER`."""
        self.up: set[int] = set()
        self.down_since: dict[int, float] = {}
        self.longest_wait = 0.0
        """Seconds for which a place was without a worker."""
        self.episodes: list[list[float]] = []
        """Of each time in trouble: when it began, and when it ended where it did."""
        self._fate = fate
        self._events: list[tuple[float, int, str, int]] = []
        self._number = 0
        for place in range(places):
            self._start(place)

    def _plan(self, at: float, what: str, place: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, what, place))

    def _start(self, place: int) -> None:
        self.restarts.started(place, self.now)
        self.starts.append((self.now, place))
        if place in self.down_since:
            self.longest_wait = max(self.longest_wait, self.now - self.down_since.pop(place))
        boot, life = self._fate(place, self.now)
        if boot is not None:
            self._plan(self.now + boot, "ready", place)
        ends = self.now + (boot or 0.0) + life
        if ends < FOR_EVER:
            self._plan(ends, "died", place)
        if len(self.starts) > self.places and (boot is None or boot + life < PROVEN_AFTER):
            self.failed.append(self.now)

    def kill(self, place: int) -> None:
        """Somebody kills the worker that is there, for ever as its fate may have been."""
        self._events = [event for event in self._events if event[3] != place]
        heapq.heapify(self._events)
        self._die(place)
        self._look()

    def _die(self, place: int) -> None:
        self.up.discard(place)
        self.down_since[place] = self.now
        self.restarts.died(place, "exited", self.now)

    def run(self, until: float) -> None:
        """Let time pass. Fails where the pool would look again and again without anything to come of it."""
        looks, most = 0, (100 + 20 * (until - self.now)) * self.places
        while True:
            due = self.restarts.next_due(self.now)
            assert due is None or due > self.now - LATE
            at = min(self._events[0][0] if self._events else FOR_EVER, FOR_EVER if due is None else due + LATE)
            if at > until:
                self.now = until
                return
            looks += 1
            assert looks < most, "a busy loop"
            self.now = max(self.now, at)
            if self._events and self._events[0][0] <= self.now:
                _at, _number, what, place = heapq.heappop(self._events)
                if what == "ready":
                    self.up.add(place)
                    self.restarts.ready(place, self.now)
                else:
                    self._die(place)
            self._look()

    def _look(self) -> None:
        self._note_trouble()
        while (place := self.restarts.next_start(self.now)) is not None:
            assert place in self.down_since
            self._start(place)
        self._note_trouble()

    def _note_trouble(self) -> None:
        was = bool(self.episodes) and len(self.episodes[-1]) == 1
        if self.restarts.is_in_trouble and not was:
            self.episodes.append([self.now])
        elif was and not self.restarts.is_in_trouble:
            self.episodes[-1].append(self.now)

    def in_trouble(self) -> list[float]:
        """The starts that were made in trouble."""
        return [at for at, _ in self.starts if any(each[0] < at < [*each, FOR_EVER][1] for each in self.episodes)]


def most_within(times: list[float], seconds: float = WINDOW) -> int:
    """The most of these times that lie in any so many seconds."""
    return max((sum(begin <= at < begin + seconds for at in times) for begin in times), default=0)


def dies_at_import(_place: int, _now: float) -> Fate:
    return None, 0.2


def lives(_place: int, _now: float) -> Fate:
    return 0.3, FOR_EVER


def until(cured: float, ill: Callable[[int, float], Fate]) -> Callable[[int, float], Fate]:
    """Ill until then, and well afterwards."""
    return lambda place, now: ill(place, now) if now < cured else lives(place, now)


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("places", [1, 2, 3, 8, 11])
def test_a_worker_that_dies_at_import_is_started_15_times_a_minute_at_most(places: int, draw: float) -> None:
    pool = Pool(places, dies_at_import, draw=lambda: draw)
    pool.run(600.0)
    assert most_within([at for at, _ in pool.starts]) <= MOST_STARTS
    assert pool.episodes[0][0] < 5.0, "in trouble within 5 s"
    assert len(pool.starts) >= 600.0 / 30.0, "and yet one is tried in 30 s"
    condition = pool.restarts.condition(pool.now)
    assert condition.is_in_trouble
    assert condition.cause.endswith(" exited (boot failure)")
    assert condition.deaths == condition.boot_failures == most_within([at for at, _ in pool.starts if at > 540.0])


@pytest.mark.parametrize("places", [20, 64])
def test_many_first_starts_are_made_at_once_and_then_hardly_any(places: int) -> None:
    pool = Pool(places, dies_at_import, draw=lambda: 0.5)
    assert len(pool.starts) == places
    pool.run(600.0)
    assert most_within([at for at, _ in pool.starts[places:]]) <= MOST_STARTS


@pytest.mark.parametrize("cured", [0.5, 3.0, 17.0, 61.0, 200.0])
@pytest.mark.parametrize("places", [1, 2, 8, 64])
def test_it_is_whole_again_35_seconds_after_the_cause_is_gone(places: int, cured: float) -> None:
    pool = Pool(places, until(cured, dies_at_import), draw=lambda: 0.999)
    pool.run(cured + 30.0)
    assert len(pool.up) == places
    pool.run(cured + 35.0)
    assert not pool.restarts.condition(0.0).is_in_trouble


@pytest.mark.parametrize("places", [1, 2, 64])
def test_one_dead_worker_is_replaced_at_once(places: int) -> None:
    pool = Pool(places, lives, draw=lambda: 0.999)
    pool.run(5.0)
    pool.kill(0)
    pool.run(5.2)
    assert [place for at, place in pool.starts if at >= 5.0] == [0]
    assert not pool.episodes


def test_all_killed_at_once_are_back_within_seconds() -> None:
    pool = Pool(64, lives, draw=random.Random(1).random)
    pool.run(100.0)
    for place in range(64):
        pool.kill(place)
    assert pool.restarts.condition(0.0).is_in_trouble
    pool.run(110.0)
    assert len(pool.up) == 64


def test_eleven_deaths_in_a_minute_are_trouble_and_ten_are_none() -> None:
    pool = Pool(2, lives, draw=lambda: 0.0)
    for number in range(INTENSITY):
        pool.run(5.0 * (number + 1))
        pool.kill(0)
    assert not pool.restarts.condition(0.0).is_in_trouble
    pool.run(55.0)
    pool.kill(0)
    assert pool.restarts.condition(0.0).is_in_trouble
    assert pool.restarts.condition(pool.now).boot_failures == 0


def test_deaths_of_more_than_a_minute_ago_do_not_count() -> None:
    pool = Pool(2, lives, draw=lambda: 0.0)
    for number in range(3 * INTENSITY):
        pool.run(6.0 * (number + 1))
        pool.kill(0)
    assert not pool.restarts.condition(0.0).is_in_trouble


def test_boot_failures_in_a_row_are_trouble_earlier_and_a_ready_worker_ends_the_row() -> None:
    restarts = Restarts(lambda: 0.0)
    for number in range(2 * BOOT_INTENSITY):
        restarts.started(0, number)
        assert restarts.died(0, "exited", number + 0.1) is Failure.BOOT
        if number == BOOT_INTENSITY - 1:
            restarts.started(1, number + 0.2)
            restarts.ready(1, number + 0.3)
    assert not restarts.condition(0.0).is_in_trouble
    restarts.started(0, 9.0)
    restarts.died(0, "exited", 9.1)
    assert restarts.condition(0.0).is_in_trouble
    assert restarts.failed == {Failure.BOOT: 9, Failure.RUN: 0}


def test_a_proof_that_does_not_hold_makes_the_next_one_longer() -> None:
    """Workers that live a little longer than a proof takes: without that, each of them would bring all the others back."""
    pool = Pool(8, lambda _place, _now: (0.3, PROVEN_AFTER + 1.0), draw=random.Random(2).random)
    pool.run(1_200.0)
    assert len(pool.episodes) <= 3, "after the second one a proof takes longer than they live"
    assert most_within([at for at, _ in pool.starts if at > 120.0]) <= WINDOW / PROBE_EVERY


def test_a_proof_takes_a_minute_at_most_and_is_short_again_after_a_good_one() -> None:
    restarts = Restarts(lambda: 0.0)
    now, taken = 0.0, []
    for pause in (0.0, 1.0, 1.0, 1.0, 1.0, 1.0, HEALTHY_AFTER):
        now += pause
        while not restarts.condition(now).is_in_trouble:
            restarts.started(0, now)
            restarts.died(0, "exited", now)
        now += PROBE_EVERY
        assert restarts.next_start(now) == 0
        restarts.started(0, now)
        restarts.ready(0, now)
        due = restarts.next_due(now)
        assert due is not None
        taken.append(due - now)
        now = due
        assert restarts.next_start(now) is None
        assert not restarts.condition(0.0).is_in_trouble
    assert taken == [5.0, 10.0, 20.0, 40.0, LONGEST_PROOF, LONGEST_PROOF, 5.0]


def test_trouble_ends_also_where_nobody_need_be_started() -> None:
    """The last one that died was to go anyway: nobody waits, nobody starts."""
    restarts = Restarts(lambda: 0.0)
    restarts.started(0, 0.0)
    restarts.ready(0, 0.1)
    for number in range(BOOT_INTENSITY + 1):
        restarts.started(1, number)
        restarts.died(1, "exited", number + 0.5)
    restarts.left(1)
    assert restarts.condition(0.0).is_in_trouble
    due = restarts.next_due(10.0)
    assert due == 4.5 + PROVEN_AFTER
    assert restarts.next_start(due) is None
    assert not restarts.condition(0.0).is_in_trouble
    assert restarts.next_due(due) is None


def test_failures_are_forgotten_after_a_minute_up_and_not_before() -> None:
    restarts = Restarts(lambda: 0.0)
    for life, failures in ((0.1, 1), (HEALTHY_AFTER - 0.1, 2), (HEALTHY_AFTER, 1), (1.0, 2)):
        restarts.started(0, 0.0)
        restarts.ready(0, 30.0)  # the time to get ready is not up
        restarts.died(0, "exited", 30.0 + life)
        assert restarts.failures(0, 30.0 + life) == failures


def test_the_back_off_doubles_to_its_bound_with_full_jitter() -> None:
    assert [backoff_ceiling(number) for number in (1, 2, 3, 9, 10)] == [0.1, 0.2, 0.4, 25.6, 30.0]
    assert backoff_ceiling(5_000) == BACKOFF_LIMIT, "a day of failures is no overflow"
    for draw, wait in ((0.0, 0.0), (0.5, BACKOFF_FIRST / 2)):
        restarts = Restarts(lambda draw=draw: draw)  # type: ignore[misc]
        restarts.started(0, 0.0)
        restarts.died(0, "exited", 1.0)
        assert restarts.next_due(1.0) == 1.0 + wait
        assert restarts.starts_in(0, 1.0) == pytest.approx(wait)


@STEADY
@given(st.integers(0, 2**32), st.integers(1, 64))
def test_whatever_workers_do(seed: int, places: int) -> None:
    """Random fates: starts that come to nothing are few, nobody is forgotten, and what is cured is whole again."""
    chance = random.Random(seed)
    boots, lasts = chance.random(), chance.choice([0.05, 2.0, PROVEN_AFTER, 20.0, 70.0])
    cured = 200.0 * chance.random()

    def ill(_place: int, _now: float) -> Fate:
        boot = None if chance.random() < boots else 2.0 * chance.random()
        if boot is None:
            return None, (0.5 if chance.random() < 0.9 else HANGS)
        return boot, lasts * chance.random() if chance.random() < 0.9 else FOR_EVER

    pool = Pool(places, until(cured, ill), draw=chance.random)
    pool.run(cured)
    last_fates = max(pool._events, default=(cured, 0, "", 0))[0]  # those who are ill still die
    end = max(cured, last_fates) + PROBE_EVERY + LONGEST_PROOF + PROVEN_AFTER + 2.0
    pool.run(end)
    assert len(pool.up) == places
    assert not pool.restarts.condition(0.0).is_in_trouble
    assert most_within(pool.in_trouble()) <= WINDOW / PROBE_EVERY
    followed = [at for each in pool.episodes for at in each[1:]]
    first_end = min(followed, default=FOR_EVER)
    before = [at for at in pool.failed if at < first_end]
    assert most_within(before) <= MOST_STARTS, "until somebody stays up, few starts come to nothing"
    assert pool.longest_wait <= PROBE_EVERY * places + LONGEST_PROOF + BACKOFF_LIMIT, "nobody is forgotten"
