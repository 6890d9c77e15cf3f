"""Windows across restarts: no provider ever sees more than a limit, whatever was killed when; and what that costs."""

from __future__ import annotations

import random
from collections import deque

import msgspec
import pytest

from callpool.manager.core.carried import MINUTE_GRAIN, Aside, Carried
from callpool.manager.core.carryover import COVERED, FINAL_GRAIN, LOWER_AFTER, Carryover, Claim
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.limits import LedgerRules, Limits
from callpool.manager.core.requests import Now
from callpool.manager.core.scopes import Key, Measure, Scope
from callpool.manager.core.windows import DAY, DAY_GRAIN, MINUTE, NEVER, Entry

from .carry_world import CLIENTS, LAG, World, live, rules_of

MINUTES = [
    rules_of(requests=1),
    rules_of(requests=7),
    rules_of(requests=40, organization=100),
    rules_of(requests=200, tokens=60, charge="advance"),
    rules_of(tokens=300, client_day=500),
    rules_of(requests=25, tokens=200, day=2_000, organization=220, client_day=900, supervisor=30),
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
    @pytest.mark.parametrize("trusts_wall", [False, True])
    def test_in_any_day(self, rules: LedgerRules, *, trusts_wall: bool) -> None:
        """A clock that somebody vouches for does not jump."""
        for number in range(25):
            world = World(rules, random.Random(number), pace=PACE, trusts_wall=trusts_wall)
            live(world, 150)
            assert world.excess() == [], number
            assert world.sent


class NeverWrites(Carryover):
    """No block is ever written."""

    def cover(self, entries: object, now: Now) -> Claim:
        return COVERED


class NeverWaits(Carryover):
    """A block is written, and used before it is on the disk."""

    def cover(self, entries: list[tuple[Measure, Entry]], now: Now) -> Claim:  # type: ignore[override]
        return super().cover(entries, now)._replace(waits=False)


class Worn(Carryover):
    """What a record says is read wrong."""

    def worn(self, record: Carried, now: Now) -> Carried:
        return record

    def restore(self, records: object, now: Now) -> list[Carried]:
        return super().restore([self.worn(each, now) for each in records], now)  # type: ignore[attr-defined]


class RestForgotten(Worn):
    """Only what had settled counts after a restart."""

    def worn(self, record: Carried, now: Now) -> Carried:
        return msgspec.structs.replace(record, rest=0)


class SettledForgotten(Worn):
    """Only the rest counts after a restart."""

    def worn(self, record: Carried, now: Now) -> Carried:
        return msgspec.structs.replace(record, settled=())


class RestFromTheWriting(Worn):
    """The rest counts from the writing on, not from the restart."""

    def worn(self, record: Carried, now: Now) -> Carried:
        seconds = DAY if record.measure.endswith("day") else MINUTE
        more = (record.monotonic + seconds + LAG, record.rest)
        left = now.monotonic < more[0] or record.boot != self._boot
        return msgspec.structs.replace(record, rest=0, settled=(*record.settled, more) if left and record.rest else ())


class WallBelieved(Worn):
    """The wall clock says how much time has passed, also where it has jumped."""

    def worn(self, record: Carried, now: Now) -> Carried:
        passed = now.wall - 1e9 - record.monotonic  # the world's wall is that far from its first boot's clock
        at = now.monotonic - max(0.0, passed - (now.monotonic - record.monotonic))
        return msgspec.structs.replace(
            record, settled=tuple((ends + at - now.monotonic, n) for ends, n in record.settled)
        )


class NoLag(Carryover):
    """What was out at the kill has arrived by the restart."""

    def __init__(self, *, boot: str, trusts_wall: bool, lag: float) -> None:
        super().__init__(boot=boot, trusts_wall=trusts_wall)


class FreshScopes(Carryover):
    """What an earlier run has used is not put into scopes."""

    def watch(self, scope: Scope) -> None:
        self._aside = Aside()
        super().watch(scope)


class LessIsNotLess(Carryover):
    """A record that holds less is thought to allow as much as the one before it."""

    def lower(self, now: Now) -> list[Carried]:
        found = super().lower(now)
        for line in self._lines.values():
            line.under_way = deque((number, max(mark, int(line.durable))) for number, mark in line.under_way)
        return found


class ExpiryMakesRoom(Carryover):
    """A block is measured by what counts now, so that what has expired since its record was written makes room in it."""

    def cover(self, entries: list[tuple[Measure, Entry]], now: Now) -> Claim:  # type: ignore[override]
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


REQUESTS: Key = ("account", "a", "requests_per_minute")


class TestRestart:
    def test_an_orderly_end_restores_everything_as_it_was(self) -> None:
        rules = rules_of(requests=50, tokens=900, day=9_000, organization=1_000, client_day=3_000, supervisor=60)
        for number in range(20):
            world = World(rules, random.Random(number))
            for _ in range(60):
                world.submit(world.chance.choice(CLIENTS), 12, world.chance.randint(1, 12))
                world.run(world.chance.random() * 3)
            world.stop()
            before = world.ledger
            world.start()
            for client in CLIENTS:
                world.ledger.scope_of_client(client)
            assert len(world.used()) > 6
            for _ in range(40):
                after, again = world.used(), world.ledger
                world.ledger = before
                assert after == world.used(), "at each time the same counts"
                world.ledger = again
                world.time = (world.time // FINAL_GRAIN + 13) * FINAL_GRAIN

    @pytest.mark.parametrize("limit", [1, 7, 15, 16, 40, 1_000, 10**6])
    def test_after_an_idle_minute_a_kill_costs_little(self, limit: int) -> None:
        world = World(rules_of(requests=limit), random.Random(1))
        world.load(30.0, 1.0, 1)
        world.run(2 * MINUTE)
        assert world.used() == {}
        world.kill()
        assert world.used().get(REQUESTS, 0) <= (limit // 8 if limit >= 16 else 0)
        world.run(MINUTE + LAG)
        assert world.used() == {}

    def test_a_kill_under_load_costs_a_block_of_a_minute(self) -> None:
        for number in range(20):
            world = World(rules_of(requests=600), random.Random(number))
            world.commit_takes = 0.02
            world.load(90.0 + world.chance.random() * 9, 0.1, 1)
            before = world.used()[REQUESTS]
            world.kill(after=0.0)
            assert before <= world.used()[REQUESTS] < before + 600 / 8 + 2 * MINUTE_GRAIN / 0.1
            world.run(MINUTE + MINUTE_GRAIN)
            assert world.used() == {}

    def test_a_kill_costs_less_than_a_hundredth_of_a_day_besides_what_was_out(self) -> None:
        world = World(rules_of(day=100_000), random.Random(1))
        world.commit_takes = 0.02
        world.load(200.0, 1.0, 30)
        world.run(2 * MINUTE)
        (before,) = world.used().values()
        for kills in range(1, 4):
            world.kill()
            (after,) = world.used().values()
            assert before < after <= before + kills * 100_000 // 256, "half a block each"
            world.load(1.0, 1.0, 30)
            world.run(2 * MINUTE)
            before += 30
        world.run(DAY + DAY_GRAIN + MINUTE)
        assert world.used() == {}

    def test_a_row_of_kills_does_not_use_up_what_nobody_used(self) -> None:
        world = World(rules_of(requests=160, day=1_000), random.Random(1))
        world.load(5.0, 1.0, 1)
        world.run(2 * MINUTE)
        world.kill()
        first = world.used()
        for _ in range(10):
            world.run(1.0)
            world.kill()
        assert world.used().items() <= first.items()

    @pytest.mark.parametrize(("before", "after"), [(100, 10), (10, 100)])
    def test_a_limit_that_was_changed(self, before: int, after: int) -> None:
        world = World(rules_of(requests=before), random.Random(1))
        world.load(20.0, 0.2, 1)
        world.rules = rules_of(requests=after)
        world.kill()
        assert world.used()[REQUESTS] >= 10
        assert world.submit("x", 1, 1) is (after == 100)
        world.run(MINUTE + LAG)
        assert world.submit("x", 1, 1)

    def test_a_scope_that_is_gone_leaves_the_disk_when_nothing_of_it_counts(self) -> None:
        world = World(rules_of(requests=10, client_day=100), random.Random(1))
        world.load(20.0, 1.0, 1)
        assert ("client", "x", "tokens_per_day") in world.disk
        world.rules = rules_of(organization=100)
        world.kill()
        assert REQUESTS in world.disk, "another restart may have it again"
        world.run(DAY + 2 * DAY_GRAIN)
        assert world.disk == {}

    def test_clients_that_were_many_leave_the_disk_when_they_are_forgotten(self) -> None:
        carryover = Carryover(boot="b")
        ledger = Ledger(rules_of(client_day=100), carryover)
        scope = ledger.scope_of_client("x")
        assert scope is not None
        entry = scope.days[0].window.reserve(5)
        carryover.cover([(scope.days[0], entry)], now(1.0))
        scope.days[0].window.refund(entry, 2.0)
        (record,) = carryover.forget(scope, now(2.0))
        assert record.is_empty
        assert record.key == scope.days[0].key
        assert all(each.kind != "client" for each in carryover.final(now(3.0)))


class TestWrites:
    """Records, not seconds."""

    @pytest.mark.parametrize(
        ("what", "limit", "amount"),
        [
            ("requests", 1, 1),
            ("requests", 10, 1),
            ("requests", 60, 1),
            ("requests", 3_000, 1),
            ("tokens", 1_000_000, 1_000),
            ("tokens", 20_000, 3_000),
            ("organization", 10**12, 10**9),
        ],
    )
    @pytest.mark.parametrize("burst", [False, True])
    def test_a_full_minute_writes_about_a_dozen_records(
        self, what: str, limit: int, amount: int, *, burst: bool
    ) -> None:
        world = World(rules_of(**{what: limit}), random.Random(1))  # type: ignore[arg-type]  # none of them is `charge`
        world.commit_takes = 0.02
        world.load(5 * MINUTE, 60.0 * amount / limit / (1_000 if burst and limit < 100 else 1), amount)
        assert world.sent >= 2
        assert world.written <= 5 * 14

    def test_at_an_even_pace_no_call_waits_for_the_disk_but_the_first(self) -> None:
        world = World(rules_of(requests=1_200, tokens=120_000), random.Random(1))
        world.commit_takes = 0.04
        world.load(5 * MINUTE, 0.05, 10)
        assert world.sent > 4_000
        assert world.waited == 1

    def test_nothing_is_written_while_nothing_happens(self) -> None:
        world = World(rules_of(requests=1_000, day=1_000), random.Random(1))
        world.load(20.0, 0.1, 1)
        world.run(3 * MINUTE)
        written = world.written
        world.run(10 * MINUTE)
        assert world.written == written
        assert world.carryover.next_due() is None, "nor is anything looked at"


class Desk:
    """One window, by hand."""

    def __init__(self, limit: int = 80) -> None:
        self.carryover = Carryover(boot="b", lag=LAG)
        self.scope = Scope("account", "a", Limits(requests_per_minute=limit))
        self.measure = self.scope.minutes[0]
        self.carryover.watch(self.scope)
        self.entries: list[Entry] = []

    def reserve(self, count: int = 1, time: float = 100.0) -> list[Claim]:
        found = []
        for _ in range(count):
            self.entries.append(self.measure.window.reserve(1))
            found.append(self.carryover.cover([(self.measure, self.entries[-1])], now(time)))
        return found


class TestBlocks:
    def test_the_first_call_waits_and_the_rest_of_its_block_does_not(self) -> None:
        desk = Desk()
        (first,) = desk.reserve()
        assert first.waits
        assert [record.rest for record in first.records] == [11], "itself, and ten more"
        desk.carryover.committed(1)
        assert desk.reserve(8) == [COVERED] * 8
        (early,) = desk.reserve()
        assert [record.rest for record in early.records] == [20]
        assert not early.waits, "two places are left"
        last, one_more = desk.reserve(2)
        assert (last, one_more) == (COVERED, Claim([], waits=True))

    def test_a_large_call_leaves_room_for_another_like_it(self) -> None:
        desk = Desk(limit=200)
        window = desk.measure.window
        rests = []
        for amount in (30, 20, 20):
            entry = window.reserve(amount)
            records, _ = desk.carryover.cover([(desk.measure, entry)], now(100.0))
            rests += [record.rest for record in records]
        assert rests == [30 + 60, 70 + 50], "the second of them left 40, the third 20"

    @pytest.mark.parametrize("trusts_wall", [False, True])
    def test_a_record_tells_the_wall_clock_only_if_somebody_vouches_for_it(self, *, trusts_wall: bool) -> None:
        carryover = Carryover(trusts_wall=trusts_wall)
        carryover.watch(Scope("account", "a", Limits(requests_per_minute=1)))
        (record,) = carryover.final(now(1.0, 2.0))
        assert record.wall == (2.0 if trusts_wall else None)

    def test_a_record_that_allows_less_counts_from_its_writing_on(self) -> None:
        desk = Desk()
        desk.reserve()
        desk.carryover.committed(1)
        desk.measure.window.stamp(desk.entries[0], 100.0)
        (less,) = desk.carryover.lower(now(100.0 + LOWER_AFTER))
        assert less.rest == 5
        assert less.settled == ((160.0, 1),)
        dues = desk.reserve(6)
        assert [due.waits for due in dues] == [False] * 5 + [True]

    def test_records_are_lowered_only_where_that_is_worth_it_and_not_at_once(self) -> None:
        desk = Desk()
        desk.reserve()
        assert desk.carryover.lower(now(100.0 + LOWER_AFTER - 1)) == []
        (less,) = desk.carryover.lower(now(100.0 + LOWER_AFTER))
        assert less.rest == 6
        assert desk.carryover.lower(now(500.0)) == []

    def test_blocks_double_while_the_disk_is_slow(self) -> None:
        desk = Desk(limit=8_000)
        records = [record for due in desk.reserve(8_000) for record in due.records]
        assert len(records) == 4
        desk.carryover.committed(4)
        assert not desk.reserve()[0].waits, "the last of them is what counts"
        assert records[-1].rest >= 8_000

    def test_what_is_found_to_be_more_is_taken_from_the_block(self) -> None:
        desk = Desk()
        desk.reserve()
        desk.carryover.committed(1)
        desk.measure.window.correct(desk.entries[0], 30, 101.0)
        due = desk.carryover.cover([(desk.measure, desk.entries[0])], now(101.0))
        assert due.waits, "the call is out already: whoever corrects does not ask"
        assert due.records[0].rest >= 30 + 10

    def test_what_is_found_to_be_less_makes_room_as_long_as_it_has_not_ended(self) -> None:
        window = Desk().measure.window
        early, late = window.reserve(5), window.reserve(5)
        window.refund(early, 1.0)
        assert window.taken == 5
        window.stamp(late, 1.0)
        window.refund(late, 2.0)
        assert window.taken == 5, "it may be written down as ended"
        window.correct(late, 3, 3.0)
        assert window.taken == 8

    def test_a_journal_that_is_down_holds_nobody_back(self) -> None:
        desk = Desk()
        (first,) = desk.reserve()
        assert first.waits
        desk.carryover.down()
        assert desk.reserve(60) == [Claim([], waits=False), *[COVERED] * 59]
        assert desk.measure.window.mark == NEVER, "and costs nothing"
        assert (
            desk.carryover.lower(now(500.0)) == desk.carryover.forget(Scope("client", "x", Limits()), now(500.0)) == []
        )
        assert desk.carryover.next_due() is None
        (record,) = desk.carryover.up(now(500.0))
        assert record.rest == 61 + 10
        desk.carryover.committed(1)
        assert desk.reserve()[0].waits, "an old word says nothing of the new record"
        desk.carryover.committed(record.number)
        assert not desk.reserve()[0].waits

    def test_what_was_on_its_way_to_a_journal_that_failed_may_have_arrived(self) -> None:
        desk = Desk()
        desk.reserve()
        desk.carryover.committed(1)
        (less,) = desk.carryover.lower(now(100.0 + LOWER_AFTER))
        assert less.rest == 6
        desk.carryover.down()
        (record,) = desk.carryover.up(now(200.0))
        assert [due.waits for due in desk.reserve(6)] == [False] * 5 + [True]
        desk.carryover.committed(record.number)
        assert not desk.reserve()[0].waits

    def test_after_the_last_record_anything_needs_another(self) -> None:
        desk = Desk()
        desk.reserve()
        (last,) = desk.carryover.final(now(101.0))
        assert last.rest == 1
        assert desk.reserve()[0].waits

    def test_what_is_not_watched_costs_nothing(self) -> None:
        scope = Scope("account", "a", Limits(requests_per_minute=1))
        entry = scope.minutes[0].window.reserve(1)
        assert Carryover().cover([(scope.minutes[0], entry)], now(1.0)) is COVERED
