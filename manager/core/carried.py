"""What a journal holds of windows, and what of it still counts in a later run.

A record says of one window: this much had ended, and expires then (`settled`); so much more may count besides (`rest`). Whoever
writes records (`carryover`) sees to it that at every moment the last durable one holds all that may have been sent. It need not hold
when that was: what had settled keeps the end that it was written with, and the rest counts a whole window from the restart on, and
`cancel_lag` more, because calls that were out may still arrive a moment later.

    written            crash      restart
    ──┬────────────────────┬──────────┬─────────────────────────────────────────────────► time
      settled: 8 until ────┼──────────┼──────► its end
      rest: 5              └ 3 sent   └ all 5 count ─────────────── 60 s ──► + cancel_lag

How much time has passed since the writing says the monotonic clock, as long as the machine was not booted since. After that nothing
says it but the wall clock, which may be a day off either way; so it is believed only if somebody vouches for it, in both runs. Else
no time at all has passed since the writing. That is safe, because what expires makes no room in a record: time that is not known to
have passed only makes entries count for longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from callpool.manager.core.windows import DAY, DAY_GRAIN, MINUTE, NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from callpool.manager.core.requests import Now
    from callpool.manager.core.scopes import Key

MINUTE_GRAIN: Final = 4.0
"""Seconds into which a record gathers the ends of a minute's entries: 15 sums and a few. A power of two: divided without rounding."""
MAX_ASIDE: Final = 10_000
"""Windows whose scopes have not appeared yet: mostly clients with a budget of a day. Those that end first are dropped."""

Left = list[tuple[float, int]]
"""(monotonic seconds of this run at which it expires, amount)."""


class Carried(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One window, as the journal keeps it: a later record of the same window takes the place of an earlier one."""

    number: int
    """Counts the records of one run."""
    kind: str
    """Of the scope."""
    name: str
    """Of the scope."""
    measure: str
    rest: int
    """What may count besides `settled`: what was under way at the writing, and what may be reserved since."""
    settled: tuple[tuple[float, int], ...]
    """(seconds of the clock of `monotonic` at which it expires, amount), in order."""
    monotonic: float
    """Seconds at which it was written."""
    boot: str
    """Which boot of the machine `monotonic` belongs to; empty where that is not known."""
    wall: float | None
    """Seconds since the epoch at which it was written; None where nobody vouches for that clock."""

    @property
    def key(self) -> Key:
        """The window."""
        return (self.kind, self.name, self.measure)

    @property
    def is_empty(self) -> bool:
        """Whether nothing counts: the journal need not keep it."""
        return not self.rest and not self.settled


def still_counts(record: Carried, now: Now, *, boot: str, trusts_wall: bool, lag: float) -> Left | None:
    """What of a record counts from now on; None where this version does not know its measure. Never raises.

    `boot`: of this run, empty where it is not known. `trusts_wall`: whether somebody vouches for `now.wall`. `lag`: seconds for which
    what had been sent before the crash may still arrive.
    """
    if record.measure.endswith("_per_minute"):
        seconds, grain = MINUTE, MINUTE_GRAIN
    elif record.measure.endswith("_per_day"):
        seconds, grain = DAY, DAY_GRAIN
    else:
        return None
    latest = now.monotonic + seconds + lag
    shift = _shift(record, now, boot=boot, trusts_wall=trusts_wall)
    found = [
        (min(expires + shift, latest + grain), amount)  # whatever was written, nothing counts for longer than a window
        for expires, amount in record.settled
        if expires + shift > now.monotonic and amount > 0
    ]
    if record.rest > 0:
        found.append((latest, record.rest))
    return found


def _shift(record: Carried, now: Now, *, boot: str, trusts_wall: bool) -> float:
    """What to add to a record's monotonic seconds to have them in this run's; never less, so that nothing expires too early."""
    if boot and record.boot == boot and record.monotonic <= now.monotonic:
        return 0.0
    passed = 0.0
    if trusts_wall and record.wall is not None:
        passed = max(0.0, now.wall - record.wall)
    return now.monotonic - passed - record.monotonic


class Aside:
    """What counts of windows whose scopes have not appeared yet, within a bound."""

    def __init__(self) -> None:
        self._left: dict[Key, Left] = {}
        """In the order in which the last of it expires."""

    def __len__(self) -> int:
        return len(self._left)

    def put(self, left: dict[Key, Left]) -> list[Key]:
        """Keep these and nothing else; returns what there was no place for."""
        order = sorted(left, key=lambda key: max(expires for expires, _ in left[key]))
        kept = order[-MAX_ASIDE:]
        self._left = {key: left[key] for key in kept}
        return order[: len(order) - len(kept)]

    def take(self, key: Key) -> Left:
        """What counts of a window that appears now: it is kept there from now on."""
        return self._left.pop(key, [])

    def fade(self, now: float) -> Iterator[Key]:
        """The windows of which nothing counts any more; they are forgotten."""
        while self.fades_at() <= now:
            key = next(iter(self._left))
            del self._left[key]
            yield key

    def fades_at(self) -> float:
        """Monotonic seconds at which nothing of the next window counts any more; `NEVER` without one."""
        return max(expires for expires, _ in next(iter(self._left.values()))) if self._left else NEVER
