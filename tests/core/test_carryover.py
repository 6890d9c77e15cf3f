"""Windows across restarts: no provider ever sees more than a limit, whatever was killed when; and what that costs."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import msgspec
import pytest

from callpool.manager.core import carried
from callpool.manager.core.carried import MINUTE_GRAIN, Aside, Record, still_counts
from callpool.manager.core.carryover import COVERED, FINAL_GRAIN, LOWER_AFTER, Carryover, Due
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.limits import LedgerRules, Limits
from callpool.manager.core.requests import Now
from callpool.manager.core.scopes import Key, Measure, Scope
from callpool.manager.core.windows import DAY, DAY_GRAIN, MINUTE, NEVER, Entry

from .carry_world import CLIENTS, LAG, TARGET, WatchedLedger, World, live, rules_of

MINUTES = [
    rules_of(requests=1),
    rules_of(requests=7),
    rules_of(requests=40, organization=100),
    rules_of(requests=200, tokens=60, charge="advance"),
    rules_of(tokens=300, client_day=500),
]
DAYS = [rules_of(day=90), rules_of(day=1_000, requests=10_000), rules_of(client_day=60), rules_of(day=10**12)]
PACE = 1_440.0
"""A minute of a world in which a day's limit is what matters: then a day is as long as a minute elsewhere."""


def now(time: float, wall: float = 0.0) -> Now:
    return Now(time, wall)


class TestNeverMore:
    """The provider's log, across kills, reboots, orderly ends and clocks that jump."""

    @pytest.mark.parametrize("rules", MINUTES)
    def test_in_any_minute(self, rules: LedgerRules) -> None:
        sent = kills = 0
        for number in range(40):
            world = World(rules, random.Random(number))
            live(world, 150)
            assert world.excess() == [], number
            sent, kills = sent + world.sent, kills + world.boot
        assert sent > 40 * 5, "something goes, too"
        assert kills > 2 * 40, "and machines are booted"

    @pytest.mark.parametrize("rules", DAYS)
    def test_in_any_day(self, rules: LedgerRules) -> None:
        for number in range(25):
            world = World(rules, random.Random(number), pace=PACE)
            live(world, 150)
            assert world.excess() == [], number
            assert world.sent


class NeverWrites(Carryover):
    """No block is ever written."""

    def cover(self, entries: object, now: Now) -> Due:  # noqa: ARG002
        return COVERED


class NeverWaits(Carryover):
    """A block is written, and used before it is on the disk."""

    def cover(self, entries: list[tuple[Measure, Entry]], now: Now) -> Due:  # type: ignore[override]
        return super().cover(entries, now)._replace(waits=False)


class Worn(Carryover):
    """What a record says is read wrong."""

    def worn(self, record: Record, now: Now) -> Record:  # noqa: ARG002
        return record

    def restore(self, records: object, now: Now) -> list[Record]:
        return super().restore([self.worn(each, now) for each in records], now)  # type: ignore[attr-defined]


class RestForgotten(Worn):
    """Only what had settled counts after a restart."""

    def worn(self, record: Record, now: Now) -> Record:  # noqa: ARG002
        return msgspec.structs.replace(record, rest=0)


class SettledForgotten(Worn):
    """Only the rest counts after a restart."""

    def worn(self, record: Record, now: Now) -> Record:  # noqa: ARG002
        return msgspec.structs.replace(record, settled=())


class RestFromTheWriting(Worn):
    """The rest counts from the writing on, not from the restart."""

    def worn(self, record: Record, now: Now) -> Record:
        seconds = DAY if record.measure.endswith("day") else MINUTE
        more = (record.monotonic + seconds + LAG, record.rest)
        left = now.monotonic < more[0] or record.boot != self._boot
        return msgspec.structs.replace(record, rest=0, settled=(*record.settled, more) if left and record.rest else ())


class WallBelieved(Worn):
    """The wall clock says how much time has passed, also where it has jumped."""

    def worn(self, record: Record, now: Now) -> Record:
        passed = now.wall - 1e9 - record.monotonic  # the world's wall is that far from its first boot's clock
        at = now.monotonic - max(0.0, passed - (now.monotonic - record.monotonic))
        return msgspec.structs.replace(record, settled=tuple((ends + at - now.monotonic, n) for ends, n in record.settled))


class NoLag(Carryover):
    """What was out at the kill has arrived by the restart."""

    def __init__(self, *, boot: str, lag: float) -> None:  # noqa: ARG002
        super().__init__(boot=boot)


class FreshScopes(Carryover):
    """What an earlier run has used is not put into scopes."""

    def watch(self, scope: Scope) -> None:
        self._aside = Aside()
        super().watch(scope)


class LessIsNotLess(Carryover):
    """A record that holds less is thought to allow as much as the one before it."""

    def lower(self, now: Now) -> list[Record]:
        found = super().lower(now)
        for line in self._lines.values():
            line.under_way = deque((number, max(mark, int(line.durable))) for number, mark in line.under_way)
        return found


class ExpiryMakesRoom(Carryover):
    """A block is measured by what counts now, so that what has expired since its record was written makes room in it."""

    def cover(self, entries: list[tuple[Measure, Entry]], now: Now) -> Due:  # type: ignore[override]
        for measure, _ in entries:
            measure.window.forget(now.monotonic)
            measure.window.taken = measure.window.used
        return super().cover(entries, now)


PLANTED: list[tuple[type[Carryover], LedgerRules, float]] = [
    (NeverWrites, MINUTES[1], 1.0),
    (NeverWaits, MINUTES[1], 1.0),
    (RestForgotten, MINUTES[2], 1.0),
    (SettledForgotten, MINUTES[2], 1.0),
    (RestFromTheWriting, MINUTES[2], 1.0),
    (WallBelieved, DAYS[0], PACE),
    (NoLag, MINUTES[0], 1.0),
    (FreshScopes, DAYS[2], PACE),
    (LessIsNotLess, MINUTES[1], 1.0),
    (ExpiryMakesRoom, MINUTES[2], 1.0),
]


@pytest.mark.parametrize(("made", "rules", "pace"), PLANTED)
def test_a_planted_fault_is_found(made: type[Carryover], rules: LedgerRules, pace: float) -> None:
    for number in range(200):
        world = World(rules, random.Random(number), pace=pace, made=made)
        live(world, 150)
        if world.excess():
            return
    pytest.fail(f"{made.__name__} is not found")
