"""Deadlines by the tick: setting and clearing cost O(1), and a cleared one leaves nothing behind.

A heap of deadlines would keep the entry of every finished request until its deadline: at 30,000 requests a second and a
30 s deadline nearly a million dead entries. Here entries lie in buckets of one tick; an emptied bucket is gone at once, and of
the heap of ticks at most about half is stale.
"""

from __future__ import annotations

import heapq
import math

MAX_STALE = 64
"""Numbers of buckets that are gone which may stay in the order, beyond as many as there are buckets."""
TICK = 0.25
"""Seconds. These deadlines are the outer guard around ones that workers keep exactly, so a coarse tick is enough."""


class Deadlines:
    """key → due time, one per key. Never fires early; late by less than a tick."""

    def __init__(self, tick: float = TICK) -> None:
        self._tick = tick
        self._bucket_of: dict[str, int] = {}
        self._buckets: dict[int, dict[str, None]] = {}
        self._order: list[int] = []

    def __len__(self) -> int:
        return len(self._bucket_of)

    def __contains__(self, key: str) -> bool:
        return key in self._bucket_of

    def set(self, key: str, due: float) -> None:
        """Set or move the deadline of `key`, in monotonic seconds."""
        number = math.ceil(due / self._tick)
        old = self._bucket_of.get(key)
        if old == number:
            return
        if old is not None:
            self.clear(key)
        self._bucket_of[key] = number
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = {}
            heapq.heappush(self._order, number)
        bucket[key] = None

    def clear(self, key: str) -> None:
        """Forget the deadline of `key`; without one this does nothing."""
        number = self._bucket_of.pop(key, None)
        if number is None:
            return
        bucket = self._buckets[number]
        del bucket[key]
        if not bucket:
            del self._buckets[number]
            if len(self._order) > 2 * len(self._buckets) + MAX_STALE:
                self._order = list(self._buckets)
                heapq.heapify(self._order)

    def next(self) -> float | None:
        """When to look again: the earliest due time, rounded up to a tick, or None."""
        while self._order and self._order[0] not in self._buckets:
            heapq.heappop(self._order)
        return self._order[0] * self._tick if self._order else None

    def pop_due(self, now: float) -> list[str]:
        """Remove and return every key that is due."""
        due: list[str] = []
        while (at := self.next()) is not None and at <= now:
            for key in self._buckets.pop(heapq.heappop(self._order)):
                del self._bucket_of[key]
                due.append(key)
        return due
