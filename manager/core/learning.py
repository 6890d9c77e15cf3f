"""What refusals teach of how many calls an account may have at once, and for how long to leave it alone.

    50 sent, 30 allowed:   refused, refused, … (20 times, one burst) ──► 30 were being served: that is the limit from now on
    30 in use, all well:   after 1 s one more is tried ──► refused: 30 again, the next try after 2 s, 4 s, … (at most 64)
                                                     └──► served: 31, the next try sooner

The cut is to the number of calls that were being served at the first refusal of a burst: those that were out then and are not
refused themselves. Halving, as TCP does, would leave half of a paid limit idle: a provider's limit is a step and says exactly where.
Time is an argument.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from callpool.manager.core.requests import Now

FIRST_PROBE: Final = 1.0
"""Seconds after a cut until one more call than that is tried."""
LONGEST_PROBE: Final = 64.0
SHORTEST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds; a minute's limit has passed by then, whatever the provider says."""
USUAL_PAUSE: Final = 2.0
"""Seconds of the first pause, where the provider names none; it doubles while nothing succeeds."""
JITTER: Final = 0.1
"""Part of a pause by which it is longer at random: never shorter than what was asked for."""
BURST: Final = 1.0
"""Seconds within which cuts are told as one."""
HISTORY: Final = 20
"""Lessons that are remembered."""


class Lesson(msgspec.Struct, frozen=True, gc=False):
    """One change of what is allowed, and why."""

    at: float
    """Wall-clock seconds since the epoch."""
    what: str
    """`cut`, `raised`, `restored`, `paused`, `stopped` or `resumed`."""
    limit: int | None
    """Calls at once from then on; None where that is not what changed."""
    seconds: float
    """Of a pause."""
    why: str
    times: int = 1
    """How often that was found, by then: each further try of one more call that was refused counts here."""


class Concurrency:
    """How many calls at once: what was configured, and what is known to be allowed."""

    __slots__ = ("_burst", "_burst_size", "_interval", "_next_probe", "_probes", "configured", "limit", "refused")

    def __init__(self, configured: int) -> None:
        self.configured = configured
        self.limit = configured
        """Calls that may be out now."""
        self.refused = 0
        """Calls that were refused by it."""
        self._burst: set[int] = set()
        """Numbers of the calls that were out at the first refusal of the last burst, and were not refused themselves."""
        self._burst_size = 0
        self._interval = FIRST_PROBE
        self._next_probe = 0.0
        self._probes = False
        """Whether the last try of one more has not been refused."""

    @property
    def is_cut(self) -> bool:
        """Whether less is allowed than was configured."""
        return self.limit < self.configured

    def refuse(self, call: int, others: Iterable[int], lagging: int, now: float) -> bool:
        """A call was refused; whether the limit is lower now. `others`: numbers of the calls that are out besides it.

        `lagging`: calls that have ended here, and that the provider may still count.
        """
        self.refused += 1
        before = self.limit
        if call in self._burst:
            self._burst.discard(call)  # it was not being served, as we had thought
            self._burst_size -= 1
        else:
            self._burst = set(others)
            self._burst_size = len(self._burst) + lagging
            if self._probes:  # it was one too many; a refusal without a try says that the limit has fallen
                self._interval = min(2 * self._interval, LONGEST_PROBE)
            self._probes = False
        self.limit = max(1, min(self.limit, self._burst_size))
        self._next_probe = now + self._interval
        return self.limit < before

    def probe(self, now: float) -> bool:
        """Every slot is in use, and somebody waits: whether one more may be tried, counted."""
        if not self.is_cut or now < self._next_probe:
            return False
        self.limit += 1
        self._burst_size += 1  # a late refusal of the last burst takes one away, not what was raised since
        if self._probes:  # the one before was served: the limit has risen
            self._interval = max(FIRST_PROBE, self._interval / 2)
        self._probes = True
        self._next_probe = now + self._interval
        return True

    def restore(self) -> None:
        """An operator says that what was configured is right."""
        self.limit = self.configured
        self._interval = FIRST_PROBE
        self._burst.clear()
        self._probes = False

    def next_probe(self) -> float | None:
        """Monotonic seconds at which one more may be tried; None where nothing is cut."""
        return self._next_probe if self.is_cut else None


class Pause:
    """One pause for everybody."""

    __slots__ = ("_began", "_failures", "until")

    def __init__(self) -> None:
        self.until = 0.0
        """Monotonic seconds."""
        self._began = 0.0
        self._failures = 0
        """Pauses since something was served."""

    def lasts(self, now: float) -> bool:
        """Whether nothing may go now."""
        return now < self.until

    def begin(self, named: float | None, dispatched: float, now: float, draw: Callable[[], float]) -> float:
        """Pause for what the provider names, else for a time that doubles; the seconds, or 0 where this is no new pause.

        `dispatched`: when the call that was refused had gone out. One from before the last pause teaches no more than that pause
        did, unless it names a longer time.
        """
        wait = USUAL_PAUSE * 2 ** min(self._failures, 10) if named is None else named
        wait = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, wait))  # in this order: what is no number is the shortest
        wait += draw() * JITTER * wait
        if dispatched < self._began:
            if named is not None and self.lasts(now):
                self.until = max(self.until, now + wait)
            return 0.0
        self._failures += 1
        self._began, self.until = now, now + wait
        return wait

    def succeeded(self) -> None:
        """A call was served."""
        self._failures = 0

    def end(self) -> None:
        """An operator says so."""
        self.until = 0.0
        self._failures = 0


class History:
    """The last lessons, for people."""

    __slots__ = ("_lessons",)

    def __init__(self) -> None:
        self._lessons: deque[Lesson] = deque(maxlen=HISTORY)

    def add(self, what: str, why: str, now: Now, *, limit: int | None = None, seconds: float = 0.0) -> None:
        """Note a lesson. A burst of cuts is one, so is a row of tries that were served; refused tries and pauses are counted."""
        lessons = self._lessons
        times = 1
        if (
            lessons
            and lessons[-1].what == what
            and (what == "raised" or (what == "cut" and now.wall - lessons[-1].at < BURST))
        ):
            times = lessons.pop().times
        elif what == "paused" and lessons and lessons[-1].what == what:
            times = lessons.pop().times + 1
        elif what == "cut" and len(lessons) > 1 and lessons[-1].what == "raised" and lessons[-2].limit == limit:
            lessons.pop()
            times = lessons.pop().times + 1
        lessons.append(Lesson(now.wall, what, limit, seconds, why, times))

    def as_plain(self) -> list[dict[str, Any]]:
        """The oldest first."""
        return [msgspec.structs.asdict(lesson) for lesson in self._lessons]
