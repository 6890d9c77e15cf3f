"""What windows must remember across a restart, written ahead in blocks: a new supervisor never begins with an empty minute.

    reserve ──► cover ──► Carried: all that has ended, and a block for what comes ──► journal ──► committed ──► the block may be used
                   └── the block is long committed: nothing to do

A call may go only while the last durable record of each of its windows has a place for it. A record's block is a fixed part of the
limit, so that a window's worth of calls writes a handful of records; the next one is written while a part of the block is left, so
that calls practically never wait for the disk.

What a block has to hold is counted by `Window.taken`: all that was reserved since the record, as far as it was not found to be less
before it ended. It does not matter what has ended or expired since: what expires makes no room in a record that is on the disk, so
its amounts stay true whatever clocks do, and each record buys a block's worth of calls. What a worker or a provider finds to be more
than was estimated is taken from the block, too; where that exceeds it the call is out already, and only the next record makes it up.

A start reads records (`restore`) and then watches each scope as it is made (`watch`). A journal that fails holds nobody back: `down`,
and `up` when it works again; a crash in between forgets what was used since. The shell keeps the order: records become durable in
the order of their numbers, or are lost from the end.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from callpool.manager.core.carried import MINUTE_GRAIN, Aside, Carried, Left, still_counts
from callpool.manager.core.windows import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from callpool.manager.core.requests import Now
    from callpool.manager.core.scopes import Key, Measure, Scope
    from callpool.manager.core.windows import Entry

BLOCKS_A_MINUTE: Final = 8
"""Blocks of a minute's limit: about eleven records in a minute that uses all of it. A crash costs a block for a minute."""
BLOCKS_A_DAY: Final = 128
"""Blocks of a day's limit: what a crash costs is gone for a day, so it is less than a hundredth."""
LOWER_AFTER: Final = 15.0
"""Seconds after a window's last record until one is written only to hold less: four a minute at most."""
FINAL_GRAIN: Final = 0.125
"""Seconds into which the last record of a run gathers the ends of a minute's entries: exact enough, and about 500 sums at most."""
MAX_DOUBLINGS: Final = 8
"""How often a block is doubled while records wait for the disk: then it is more than the whole limit of a minute."""


class Claim(NamedTuple):
    """What a reservation asks of the journal."""

    records: Sequence[Carried]
    """To be written now, in this order."""
    waits: bool
    """Whether the call may go only when all records that were handed out by now are durable."""


COVERED: Final = Claim((), waits=False)


class _Line:
    """One window: what the disk may hold of it."""

    __slots__ = ("at", "block", "durable", "early", "measure", "rest", "under_way")

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        blocks = BLOCKS_A_DAY if measure.is_of_a_day else BLOCKS_A_MINUTE
        self.block = max(1, measure.window.limit // blocks)
        self.durable = 0.0
        """How far `taken` may rise by the record that is on the disk for certain. Without one of this run: not at all."""
        self.under_way: deque[tuple[int, int]] = deque()
        """(number of a record that may be on the disk already or not, how far `taken` may rise by it)."""
        self.early = 0
        """How far it may rise until the next record is written."""
        self.rest = 0
        """Of the newest record."""
        self.at = 0.0
        """Monotonic seconds of the newest record."""

    def allowed(self) -> float:
        """How far `taken` may rise by every record that the disk may hold: a later one may allow less."""
        return min(self.durable, *(mark for _, mark in self.under_way)) if self.under_way else self.durable

    def set_mark(self) -> None:
        self.measure.window.mark = min(self.early, self.allowed())


class Carryover:
    """Everything that is written ahead. `numbers` of records count from 1 in each run."""

    def __init__(self, *, boot: str = "", trusts_wall: bool = False, lag: float = 0.0) -> None:
        """`boot`: which boot of the machine this is, empty where that is not known. `lag`: the longest `cancel_lag`, in seconds.

        `trusts_wall`: whether somebody vouches for the wall clock (it is kept by NTP, and was set). Only after a boot it matters:
        without it the time for which the machine was off does not count.
        """
        self._boot = boot
        self._trusts_wall = trusts_wall
        self._lag = lag
        self._lines: dict[Key, _Line] = {}
        self._aside = Aside()
        self._number = 0
        self._under_way: deque[tuple[int, _Line]] = deque()
        """Records that are not durable yet, in order."""
        self._is_down = False
        self._look_at = NEVER
        """Monotonic seconds."""

    @property
    def is_down(self) -> bool:
        """Whether nothing is written, and nobody waits for that."""
        return self._is_down

    @property
    def newest(self) -> int:
        """Number of the newest record; 0 before the first."""
        return self._number

    # A start.

    def restore(self, records: Iterable[Carried], now: Now) -> list[Carried]:
        """Keep what still counts for the scopes that `watch` will name. Call it once, before anything is watched.

        Of several records of one window the last counts. Returns records to write at once: they say the same in figures of this
        run, or that nothing is left; so no later restart counts a rest anew.
        """
        left: dict[Key, Left] = {}
        for record in records:
            found = still_counts(record, now, boot=self._boot, trusts_wall=self._trusts_wall, lag=self._lag)
            if found is not None:
                left[record.key] = found
        for key in self._aside.put({key: found for key, found in left.items() if found}):
            left[key] = []
        self._look_at = self._aside.fades_at()
        return [self._record(key, 0, found, now) for key, found in left.items()]

    def watch(self, scope: Scope) -> None:
        """A scope is made: what an earlier run used of it counts, and what is reserved in it is written ahead from now on."""
        for measure in scope.measures():
            for expires, amount in self._aside.take(measure.key):
                measure.window.carry(amount, expires)
            line = self._lines[measure.key] = _Line(measure)
            line.set_mark()

    def forget(self, scope: Scope, now: Now) -> list[Carried]:
        """A scope of which nothing counts any more is dropped: its records may go."""
        gone = [measure.key for measure in scope.measures() if self._lines.pop(measure.key, None) is not None]
        return [] if self._is_down else [self._record(key, 0, [], now) for key in gone]

    # A call.

    def cover(self, entries: Sequence[tuple[Measure, Entry]], now: Now) -> Claim:
        """What has to be written after these entries were reserved or corrected, and whether their call has to wait for it.

        It is on the way of every call: nearly always it compares two numbers of each window.
        """
        for measure, _ in entries:
            window = measure.window
            if window.taken > window.mark:
                return self._cover(entries, now)
        return COVERED

    def _cover(self, entries: Sequence[tuple[Measure, Entry]], now: Now) -> Claim:
        records: list[Carried] = []
        waits = False
        for measure, entry in entries:
            window = measure.window
            line = self._lines.get(measure.key)
            if self._is_down or line is None or line.measure is not measure:
                window.mark = NEVER
                continue
            if window.taken > line.early:
                records.append(self._extend(line, entry.amount, now))
            waits = waits or window.taken > line.allowed()
        return Claim(records, waits)

    def committed(self, number: int) -> None:
        """Every record up to this number is durable."""
        under_way = self._under_way
        while under_way and under_way[0][0] <= number:
            line = under_way.popleft()[1]
            line.durable = line.under_way.popleft()[1]
            line.set_mark()

    def _extend(self, line: _Line, amount: int, now: Now) -> Carried:
        """The next block. `amount`: of the call that needs it; there is room for two more like it.

        The block doubles with each record that still waits for the disk: a burst is quicker than that.
        """
        most = max(line.measure.window.limit, 2 * amount)
        room = min(max(line.block << min(len(line.under_way), MAX_DOUBLINGS), 2 * amount), most)
        return self._write(line, room, max(line.block // 4, amount), now)

    def _write(self, line: _Line, room: int, ahead: int, now: Now, *, grain: float = MINUTE_GRAIN) -> Carried:
        """The window as it is now, with room for so much more. `ahead`: what shall be left of it when the next is written."""
        measure, window = line.measure, line.measure.window
        settled = window.ended(grain, now.monotonic)  # a day's ends lie on multiples of it already
        line.rest = window.under_way + room
        line.at = now.monotonic
        record = self._record(measure.key, line.rest, settled, now)
        line.early = window.taken + room - ahead
        line.under_way.append((record.number, window.taken + room))
        self._under_way.append((record.number, line))
        self._look_at = min(self._look_at, line.at + LOWER_AFTER)
        line.set_mark()
        return record

    def _record(self, key: Key, rest: int, settled: Left, now: Now) -> Carried:
        self._number += 1
        wall = now.wall if self._trusts_wall else None
        return Carried(self._number, *key, rest, tuple(settled), now.monotonic, self._boot, wall)

    # Now and then, and at the end.

    def next_due(self) -> float | None:
        """Monotonic seconds at which `lower` should look; None where only a new record can give it anything to do."""
        return None if self._look_at == NEVER else self._look_at

    def lower(self, now: Now) -> list[Carried]:
        """Records that hold less, where the newest one holds a good deal more than counts: a crash then costs less.

        Half a block is kept for what comes next, nothing of a limit below 16. O(windows); each writes at most one in `LOWER_AFTER`.
        """
        self._look_at = NEVER
        if self._is_down:
            return []
        records = [self._record(key, 0, [], now) for key in self._aside.fade(now.monotonic)]
        look_at = self._aside.fades_at()
        for line in self._lines.values():
            room = line.block // 2
            worthwhile = max(1, room)
            over = line.rest - room
            if over < worthwhile:
                continue  # it holds little, whatever ends
            if now.monotonic - line.at < LOWER_AFTER:
                look_at = min(look_at, line.at + LOWER_AFTER)
                continue
            if over - line.measure.window.under_way >= worthwhile:
                records.append(self._write(line, room, line.block // 4, now))
            look_at = min(look_at, now.monotonic + LOWER_AFTER)  # what is still under way will end
        self._look_at = look_at
        return records

    def final(self, now: Now) -> list[Carried]:
        """An orderly end: exact records of everything, without room for more. Also while the journal is down: it may work again."""
        return [self._write(line, 0, 0, now, grain=FINAL_GRAIN) for line in self._lines.values()]

    # A journal that fails.

    def down(self) -> None:
        """The journal does not work: nothing is written and nothing waits until `up`. The shell lets go whatever it holds."""
        self._is_down = True
        for line in self._lines.values():
            line.durable = line.allowed()  # any of its records may have reached the disk
            line.under_way.clear()
        self._under_way.clear()

    def up(self, now: Now) -> list[Carried]:
        """It works again: records of everything, to be written now."""
        self._is_down = False
        return [self._extend(line, 0, now) for line in self._lines.values()]
