"""What refusals teach: a provider with a limit of its own, played event by event in virtual time, and the rules one by one."""

from __future__ import annotations

import heapq
import random

import pytest

from callpool.manager.core.learning import (
    BURST,
    FIRST_PROBE,
    HISTORY,
    JITTER,
    LONGEST_PAUSE,
    LONGEST_PROBE,
    SHORTEST_PAUSE,
    USUAL_PAUSE,
    Concurrency,
    History,
    Pause,
)
from callpool.manager.core.requests import Now

CONFIGURED = 50


class Provider:
    """It serves so many calls at once, and refuses the others a moment after they come; somebody always waits to be sent."""

    def __init__(
        self, limit: int, chance: random.Random, *, way: float = 0.05, seconds: tuple[float, float] = (1.0, 5.0)
    ) -> None:
        self.limit = limit
        self.learned = Concurrency(CONFIGURED)
        self.now = 0.0
        self.sent: list[float] = []
        self.refused: list[float] = []
        self.served: list[tuple[float, float]] = []
        """(end, seconds of service) of each call."""
        self._chance = chance
        self._way = way
        self._seconds = seconds
        self._out: set[int] = set()
        self._serving: set[int] = set()
        self._events: list[tuple[float, int, str, float]] = []

    def run(self, until: float) -> None:
        """Keep every slot in use until then."""
        self._fill()
        while True:
            probe = self.learned.next_probe()
            at = self._events[0][0] if self._events else until
            if probe is not None and self.now < probe < at:
                at = probe
            if at >= until:
                self.now = until
                return
            self.now = at
            while self._events and self._events[0][0] <= self.now:
                _, number, what, seconds = heapq.heappop(self._events)
                self._happens(number, what, seconds)
            self._fill()

    def _happens(self, number: int, what: str, seconds: float) -> None:
        if what == "arrives":
            if len(self._serving) >= self.limit:
                self._later(self._way, number, "refused", 0.0)
            else:
                self._serving.add(number)
                self._later(seconds, number, "ends", seconds)
        elif what == "ends":
            self._serving.discard(number)
            self.served.append((self.now, seconds))
            self._later(self._way, number, "answered", seconds)
        else:
            self._out.discard(number)
            if what == "refused":
                self.refused.append(self.now)
                self.learned.refuse(number, list(self._out), 0, self.now)

    def _fill(self) -> None:
        while len(self._out) < self.learned.limit or self.learned.probe(self.now):
            number = len(self.sent)
            self.sent.append(self.now)
            self._out.add(number)
            self._later(self._way * self._chance.random(), number, "arrives", self._chance.uniform(*self._seconds))

    def _later(self, after: float, number: int, what: str, seconds: float) -> None:
        heapq.heappush(self._events, (self.now + after, number, what, seconds))

    def share_refused(self, begin: float, end: float) -> float:
        return sum(begin <= at < end for at in self.refused) / max(1, sum(begin <= at < end for at in self.sent))

    def load(self, begin: float, end: float) -> float:
        """Calls in service on average, of those that ended by now."""
        overlap = (max(0.0, min(at, end) - max(at - took, begin)) for at, took in self.served)
        return sum(overlap) / (end - begin)


@pytest.mark.parametrize("seconds", [(1.0, 5.0), (0.5, 30.0), (4.0, 4.0)])
def test_it_finds_the_true_limit_and_stays_there(seed: int, seconds: tuple[float, float]) -> None:
    provider = Provider(30, random.Random(seed), seconds=seconds)
    provider.run(20.0)
    assert 27 <= provider.learned.limit <= 33
    provider.run(400.0)
    assert 27 <= provider.learned.limit <= 33
    assert provider.share_refused(20.0, 360.0) < 0.02
    assert provider.load(20.0, 360.0) >= 0.95 * 30


def test_a_limit_that_falls_is_followed(seed: int) -> None:
    provider = Provider(30, random.Random(seed))
    provider.run(60.0)
    provider.limit = 10
    provider.run(80.0)
    assert 9 <= provider.learned.limit <= 11
    provider.run(300.0)
    assert provider.share_refused(80.0, 260.0) < 0.02
    assert provider.load(80.0, 260.0) >= 0.95 * 10


def test_a_limit_that_rises_is_followed_up_to_what_is_configured(seed: int) -> None:
    provider = Provider(20, random.Random(seed))
    provider.run(120.0)
    assert 18 <= provider.learned.limit <= 22
    provider.limit = 100
    provider.run(120.0 + 6 * LONGEST_PROBE)
    assert provider.learned.limit == CONFIGURED
    assert not provider.learned.is_cut
    assert provider.learned.next_probe() is None


def cut(limit: int = 50, served: int = 30, now: float = 100.0) -> Concurrency:
    """A burst that fills the slots: the last ones are refused."""
    learned = Concurrency(limit)
    out = list(range(limit))
    while len(out) > served:
        call = out.pop()
        learned.refuse(call, out, 0, now)
    return learned


class TestConcurrency:
    def test_a_burst_cuts_once_to_those_that_were_served(self) -> None:
        learned = cut(50, 30)
        assert (learned.limit, learned.refused, learned.is_cut) == (30, 20, True)
        assert learned.next_probe() == 100.0 + FIRST_PROBE, "the next try is the first one, not the twentieth"

    def test_those_that_were_served_and_end_during_the_burst_still_count(self) -> None:
        learned = Concurrency(5)
        learned.refuse(4, [0, 1, 2, 3], 0, 0.0)
        learned.refuse(3, [2], 0, 0.1)  # 0 and 1 were answered meanwhile
        assert learned.limit == 3

    def test_a_slot_that_may_not_be_free_yet_counts_as_served(self) -> None:
        learned = Concurrency(5)
        learned.refuse(9, [1, 2], 2, 0.0)
        assert learned.limit == 4

    def test_never_below_one(self) -> None:
        learned = Concurrency(5)
        assert learned.refuse(1, [], 0, 0.0)
        assert learned.limit == 1
        assert not learned.refuse(2, [], 0, 1.0)
        assert learned.limit == 1

    def test_a_refusal_never_raises(self) -> None:
        learned = cut(50, 3)
        assert not learned.refuse(77, range(20), 0, 200.0)
        assert learned.limit == 3

    def test_a_late_refusal_of_a_burst_takes_one_away_and_not_what_was_raised_since(self) -> None:
        learned = cut(50, 30)
        for now in (200.0, 300.0, 400.0):
            assert learned.probe(now)
        assert learned.refuse(29, range(30), 0, 401.0)
        assert learned.limit == 32

    def test_tries_come_at_doubling_intervals_while_they_are_refused(self) -> None:
        learned, now, intervals = cut(50, 30), 100.0, []
        for number in range(100, 110):
            at = learned.next_probe()
            assert at is not None
            intervals.append(at - now)
            now = at
            assert not learned.probe(now - 0.001)
            assert learned.probe(now)
            assert not learned.probe(now), "one more, not two"
            assert learned.limit == 31
            assert learned.refuse(number, range(30), 0, now)
            assert learned.limit == 30
        assert intervals == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]

    def test_tries_that_are_served_come_sooner(self) -> None:
        learned = cut(50, 30)
        for number in range(6):
            learned.probe(1e3 * (number + 1))
            learned.refuse(100 + number, range(30), 0, 1e3 * (number + 1))
        now, intervals = 1e4, []
        for _ in range(8):
            assert learned.probe(now)
            at = learned.next_probe()
            assert at is not None
            intervals.append(at - now)
            now = at
        assert intervals == [64, 32, 16, 8, 4, 2, 1, 1]
        assert learned.limit == 38

    def test_nothing_is_tried_where_nothing_is_cut(self) -> None:
        learned = Concurrency(3)
        assert not learned.probe(1e9)
        assert learned.next_probe() is None
        assert learned.limit == 3

    def test_an_operator_restores_it(self) -> None:
        learned = cut(50, 30)
        learned.probe(101.0)
        learned.restore()
        assert (learned.limit, learned.next_probe()) == (50, None)
        assert learned.refuse(29, range(29), 0, 200.0), "one of an old burst begins a new one"
        assert learned.limit == 29
        assert learned.next_probe() == 200.0 + FIRST_PROBE


class TestPause:
    def test_what_is_named_with_jitter_above_it(self, seed: int) -> None:
        draw = random.Random(seed).random
        for named in (1.0, 7.0, 60.0):
            waits = [Pause().begin(named, 0.0, 100.0, draw) for _ in range(200)]
            assert all(named <= wait < named * (1 + JITTER) for wait in waits)
            assert len(set(waits)) > 1

    @pytest.mark.parametrize(
        ("named", "expected"),
        [(0.0, SHORTEST_PAUSE), (-5.0, SHORTEST_PAUSE), (1e9, LONGEST_PAUSE), (float("inf"), LONGEST_PAUSE),
         (float("nan"), SHORTEST_PAUSE)],
    )  # fmt: skip
    def test_what_is_named_has_bounds(self, named: float, expected: float) -> None:
        pause = Pause()
        assert pause.begin(named, 0.0, 100.0, lambda: 0.0) == expected
        assert pause.lasts(100.0 + expected - 0.001)
        assert not pause.lasts(100.0 + expected)

    def test_without_a_name_it_doubles_until_something_is_served(self) -> None:
        pause, now, waits = Pause(), 0.0, []
        for _ in range(6):
            waits.append(pause.begin(None, now, now, lambda: 0.0))
            now += 1000.0
        assert waits == [2, 4, 8, 16, 32, 60]
        pause.succeeded()
        assert pause.begin(None, now, now, lambda: 0.0) == USUAL_PAUSE

    def test_it_has_a_bound_however_long_nothing_is_served(self) -> None:
        pause = Pause()
        waits = [pause.begin(None, now, now, lambda: 0.0) for now in map(float, range(0, 200_000, 100))]
        assert waits[-1] == LONGEST_PAUSE

    def test_the_refusals_of_one_burst_make_one_pause(self) -> None:
        pause = Pause()
        assert pause.begin(None, 99.0, 100.0, lambda: 0.0) == USUAL_PAUSE
        for late in (100.1, 101.9, 103.0):
            assert pause.begin(None, 99.5, late, lambda: 0.0) == 0.0
        assert pause.until == 100.0 + USUAL_PAUSE
        assert pause.begin(None, 102.5, 103.0, lambda: 0.0) == 2 * USUAL_PAUSE, "one that went out after it"

    def test_a_longer_time_that_one_of_a_burst_names_counts_from_then(self) -> None:
        pause = Pause()
        pause.begin(5.0, 99.0, 100.0, lambda: 0.0)
        assert pause.begin(20.0, 99.0, 101.0, lambda: 0.0) == 0.0
        assert pause.until == 121.0
        pause.begin(1.0, 99.0, 102.0, lambda: 0.0)
        assert pause.until == 121.0, "a shorter one takes nothing away"
        pause.begin(60.0, 99.0, 130.0, lambda: 0.0)
        assert not pause.lasts(131.0), "it is long over"

    def test_an_operator_ends_it(self) -> None:
        pause = Pause()
        pause.begin(None, 0.0, 100.0, lambda: 0.0)
        pause.end()
        assert not pause.lasts(100.0)
        assert pause.begin(None, 101.0, 101.0, lambda: 0.0) == USUAL_PAUSE


class TestHistory:
    def test_a_burst_of_cuts_and_a_row_of_tries_are_one_lesson_each(self) -> None:
        history = History()
        for number in range(5):
            history.add("cut", "refused", Now(0.0, 100.0 + number * BURST / 10), limit=40 - number)
        for number in range(3):
            history.add("raised", "served", Now(0.0, 200.0 + number), limit=37 + number)
        history.add("cut", "refused", Now(0.0, 300.0), limit=30)
        history.add("cut", "refused", Now(0.0, 300.0 + 2 * BURST), limit=29)
        history.add("paused", "refused", Now(0.0, 400.0), seconds=5.0)
        history.add("paused", "refused", Now(0.0, 400.1), seconds=5.0)
        told = [(lesson["what"], lesson["limit"]) for lesson in history.as_plain()]
        assert told == [("cut", 36), ("raised", 39), ("cut", 30), ("cut", 29), ("paused", None)]
        assert history.as_plain()[-1]["times"] == 2

    def test_it_has_a_bound(self) -> None:
        history = History()
        for number in range(5 * HISTORY):
            history.add("cut", "refused", Now(0.0, 100.0 * number), limit=number)
        told = history.as_plain()
        assert len(told) == HISTORY
        assert told[-1]["limit"] == 5 * HISTORY - 1
