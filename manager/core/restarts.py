"""When a worker that has died may be replaced: the back-off of each place, and the pace of the whole pool.

             started              ready                 up for a minute: its failures are forgotten
    WAITS ──────────► STARTING ─────────► UP ──────────────────────────────────────────────────────►
      ▲                  │ boot failure    │ run failure
      └──────────────────┴─────────────────┘   back-off: full jitter, 0.1 s doubling up to 30 s

    calm ──more than 10 deaths in 60 s, or 5 boot failures in a row──► in trouble: one start every 15 s, whose turn it is
      ▲                                                                      │
      └────── a worker that was ready since then has stayed up: all who wait follow at once ─────┘

So of starts that come to nothing there are at most 14 in any 60 s (`MOST_STARTS` allows 15), however many places there are: a
replacement goes ahead only while the deaths of the last minute, and those starts that may still be the next ones, are at most
ten; after that come three more within the minute. Only the first starts of a pool are not held back, and those who follow a proof. A
proof that did not hold within a minute makes the next one take twice as long.

Pure: times are monotonic seconds, and arguments; so is chance.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

BACKOFF_FIRST: Final = 0.1
"""Seconds: the longest pause after one death. Short, because one death is mostly one bad request."""
BACKOFF_LIMIT: Final = 30.0
"""Seconds: the longest pause after many."""
MOST_DOUBLINGS: Final = 20
"""Far beyond the limit, and far below where two to the power of it is no float any more."""
HEALTHY_AFTER: Final = 60.0
"""Seconds up after which the failures of a place are forgotten."""
WINDOW: Final = 60.0
"""Seconds over which deaths are counted."""
INTENSITY: Final = 10
"""Deaths of the whole pool within `WINDOW`; with one more it is in trouble. Ten requests that kill are still requests' faults."""
BOOT_INTENSITY: Final = 4
"""Boot failures in a row, without any worker getting ready; with one more the pool is in trouble. No request has any part in
these, so the fifth one tells as much as the eleventh, and health can say so within seconds."""
PROBE_EVERY: Final = 15.0
"""Seconds between two starts of a pool in trouble: half of the 30 in which one must be tried, and 4 starts a minute."""
MOST_STARTS: Final = 15
"""Starts within `WINDOW`, once a pool is in trouble: what a machine does not feel."""
PROVEN_AFTER: Final = 5.0
"""Seconds up after which a start counts as good: what dies by itself when it begins to work has died by then."""
LONGEST_PROOF: Final = HEALTHY_AFTER
"""Seconds up that a proof takes at most, where shorter ones did not hold."""


class Failure(StrEnum):
    """When a worker died."""

    BOOT = "boot"
    """Before it was ready: it could not be spawned, died at an import, or took too long."""
    RUN = "run"
    """After it was ready."""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """How a pool fares. The counts are of the last `WINDOW` seconds."""

    deaths: int = 0
    boot_failures: int = 0
    """Those of them that were never ready."""
    is_in_trouble: bool = False
    cause: str = ""
    """The last death, for a person; empty before the first one."""


class _Place:
    """One place of the pool, and what is known of the worker in it."""

    __slots__ = ("due", "failures", "follows", "is_replacement", "lives", "ready_at", "waits_since")

    def __init__(self) -> None:
        self.lives = False
        self.ready_at: float | None = None
        self.is_replacement = False
        """Whether its worker has been started after a death, and may turn out to be the next one."""
        self.failures = 0
        """Deaths in a row, without `HEALTHY_AFTER` seconds up between them."""
        self.waits_since: float | None = None
        """Since when it waits for a start; None where it has a worker, or needs none."""
        self.due = 0.0
        """When its back-off is over."""
        self.follows = False
        """Whether a proof has let it go."""

    def is_unproven(self, now: float) -> bool:
        """Whether its worker may still come to nothing: it is not ready, or it replaces a dead one and is new."""
        young = self.ready_at is None or (self.is_replacement and now - self.ready_at < PROVEN_AFTER)
        return self.lives and young


def backoff_ceiling(failures: int) -> float:
    """Seconds that a pause may take after so many deaths in a row (from 1)."""
    return min(BACKOFF_LIMIT, BACKOFF_FIRST * 2.0 ** min(failures - 1, MOST_DOUBLINGS))


class Restarts:
    """The books of one pool. Its owner tells what happens and asks `next_start` until it is None, then again at `next_due`."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """`draw` gives numbers from 0 to below 1, all as likely."""
        self._draw = draw
        self._places: dict[int, _Place] = {}
        self._deaths: deque[tuple[float, Failure]] = deque()
        """Those of the last `WINDOW` seconds."""
        self._boots_in_a_row = 0
        self._last_start = float("-inf")
        self._trouble_since: float | None = None
        self._let_go_at = float("-inf")
        self._proof = PROVEN_AFTER
        """Seconds up that the present trouble's proof takes."""
        self._cause = ""
        self.failed = dict.fromkeys(Failure, 0)
        """All deaths so far."""

    # What happens.

    def started(self, place: int, now: float) -> None:
        """A worker was started there: the first one, or whoever `next_start` has named."""
        found = self._places.setdefault(place, _Place())
        found.lives, found.ready_at = True, None
        found.is_replacement = found.waits_since is not None
        found.waits_since, found.follows = None, False
        self._last_start = now

    def ready(self, place: int, now: float) -> None:
        """It can make calls."""
        self._places[place].ready_at = now
        self._boots_in_a_row = 0

    def left(self, place: int) -> None:
        """No worker is there, and none is needed there: it has ended as planned, or somebody else has taken its part."""
        found = self._places[place]
        found.lives, found.waits_since, found.failures = False, None, 0

    def died(self, place: int, reason: str, now: float) -> Failure:
        """It has died; the place waits for another one. `reason` is a phrase such as "exited with code 3"."""
        found = self._places[place]
        failure = Failure.BOOT if found.ready_at is None else Failure.RUN
        found.failures = self.failures(place, now) + 1
        found.lives, found.waits_since = False, now
        found.due = now + self._draw() * backoff_ceiling(found.failures)
        self._cause = f"worker {place} {reason} ({failure} failure)"
        self.failed[failure] += 1
        self._boots_in_a_row += failure is Failure.BOOT
        self._deaths.append((now, failure))
        self._forget_old(now)
        if len(self._deaths) > INTENSITY or self._boots_in_a_row > BOOT_INTENSITY:
            self._meet_trouble(now)
        return failure

    def _meet_trouble(self, now: float) -> None:
        if self._trouble_since is not None:
            return
        relapsed = now - self._let_go_at < HEALTHY_AFTER
        self._proof = min(LONGEST_PROOF, 2 * self._proof) if relapsed else PROVEN_AFTER
        self._trouble_since = now
        for found in self._places.values():
            found.follows = False

    # What may happen.

    def next_start(self, now: float) -> int | None:
        """The place whose worker is to be started now; None where no start is due."""
        self._forget_old(now)
        since = self._trouble_since
        if since is not None and (proven_at := self._proven_at(since)) is not None and proven_at <= now:
            self._let_go(now)
        waiting = self._waiting()
        if self._trouble_since is not None:
            if not waiting or now < self._last_start + PROBE_EVERY:
                return None
            return min(waiting, key=lambda each: self._places[each].waits_since or 0.0)
        place = min(waiting, key=self._due_of, default=None)
        if place is None or now < self._due_of(place):
            return None
        free = self._places[place].follows or self._has_room(now) or now >= self._last_start + PROBE_EVERY
        return place if free else None

    def next_due(self, now: float) -> float | None:
        """When to ask `next_start` again, at the latest, after it was None; None where only an event can change its answer."""
        waiting = self._waiting()
        probe = self._last_start + PROBE_EVERY
        if self._trouble_since is not None:
            times = [probe] if waiting else []
            if (proven_at := self._proven_at(self._trouble_since)) is not None:
                times.append(proven_at)
            return min(times, default=None)
        if not waiting:
            return None
        due = min(map(self._due_of, waiting))
        if due > now or self._has_room(now):
            return due
        frees = [self._deaths[0][0] + WINDOW] if self._deaths else []
        frees += [
            found.ready_at + PROVEN_AFTER
            for found in self._places.values()
            if found.ready_at is not None and found.is_unproven(now)
        ]
        return min([probe, *frees])

    def _let_go(self, now: float) -> None:
        """The trouble is over: whoever waits follows. Its deaths still count, so that one more of them is a relapse."""
        self._trouble_since, self._let_go_at = None, now
        self._boots_in_a_row = 0
        for place in self._waiting():
            self._places[place].follows = True

    def _proven_at(self, since: float) -> float | None:
        """When the trouble is proven to be over if nothing more happens: a worker that got ready in it stays up.

        Where nobody waits and nobody starts there will be no such worker, and no need of one.
        """
        living = [found for found in self._places.values() if found.lives]
        ready = [found.ready_at for found in living if found.ready_at is not None and found.ready_at >= since]
        if ready:
            return min(ready) + self._proof
        starting = any(found.ready_at is None for found in living)
        return None if starting or any(self._waiting()) or not living else since + self._proof

    def _has_room(self, now: float) -> bool:
        unproven = sum(found.is_unproven(now) for found in self._places.values())
        return len(self._deaths) + unproven <= INTENSITY

    def _waiting(self) -> list[int]:
        return [place for place, found in self._places.items() if found.waits_since is not None]

    def _due_of(self, place: int) -> float:
        found = self._places[place]
        return float("-inf") if found.follows else found.due

    def _forget_old(self, now: float) -> None:
        while self._deaths and self._deaths[0][0] <= now - WINDOW:
            self._deaths.popleft()

    # What is said of it.

    @property
    def is_in_trouble(self) -> bool:
        """Whether workers die faster than a pool can bear."""
        return self._trouble_since is not None

    @property
    def any_lives(self) -> bool:
        """Whether there is any worker, ready or not."""
        return any(found.lives for found in self._places.values())

    def failures(self, place: int, now: float) -> int:
        """Deaths in a row at this place."""
        found = self._places[place]
        forgotten = found.ready_at is not None and found.lives and now - found.ready_at >= HEALTHY_AFTER
        return 0 if forgotten else found.failures

    def starts_in(self, place: int, now: float) -> float | None:
        """Seconds until the next start there at the earliest, as things are; None where none is planned."""
        found = self._places[place]
        if found.waits_since is None:
            return None
        earliest = self._last_start + PROBE_EVERY if self._trouble_since is not None else found.due
        return max(0.0, earliest - now)

    def condition(self, now: float) -> Condition:
        """How the pool fares."""
        recent = [failure for at, failure in self._deaths if at > now - WINDOW]
        return Condition(
            deaths=len(recent),
            boot_failures=recent.count(Failure.BOOT),
            is_in_trouble=self.is_in_trouble,
            cause=self._cause,
        )
