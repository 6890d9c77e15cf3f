"""Sliding windows: what was used within any so many seconds, with what is still under way counted as used.

    reserve ──► under way ──stamp──► ended, counts for `seconds` more ──► forgotten
                    └──refund──► never was          ▲
                                  an earlier run ──carry

A provider's window counts arrivals, and what we know of an arrival is only that it lies between our dispatch and the first byte that
comes back. So an entry counts from its reservation on, and its seconds begin when it is stamped: whatever lies in a window of the
provider's lies in ours too. Where no byte will come any more, because we ended the call or its worker died, the request may still be
on its way: it is stamped for a moment that is yet to come. Amounts are whole numbers, so that what is given back is exactly what was
taken.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

MINUTE: Final = 60.0
DAY: Final = 86_400.0
DAY_GRAIN: Final = 300.0
"""Seconds into which the ends of a day's entries are gathered: each counts up to that much longer, and 289 sums are kept."""
NEVER: Final = math.inf
"""When there will be room: at no known time, it depends on what is under way; or it is more than the limit."""


class Entry:
    """One reservation in one window."""

    __slots__ = ("amount", "expires")

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.expires: float | None = None
        """Monotonic seconds; None while it is under way."""


class Window:
    """What counts against one limit over time."""

    __slots__ = ("_ended", "_grain", "_seconds", "limit", "mark", "taken", "under_way", "used")

    def __init__(self, limit: int, seconds: float = MINUTE, *, grain: float = 0.0) -> None:
        self.limit = limit
        self.used = 0
        """All that counts now, as of the last look."""
        self.under_way = 0
        """Of that, what has not ended."""
        self.taken = 0
        """All that was ever reserved, as far as it was not found to be less before it ended. What ends or expires stays in it."""
        self.mark: float = NEVER
        """How far `taken` may rise until whoever writes ahead what is taken here (`carryover`) has to look; `NEVER`: nobody does."""
        self._seconds = seconds
        self._grain = grain
        self._ended: deque[Entry] = deque()
        """In the order in which they expire."""

    def reserve(self, amount: int) -> Entry:
        """Count an amount from now on. The caller has looked whether there is room."""
        self.used += amount
        self.under_way += amount
        self.taken += amount
        return Entry(amount)

    def carry(self, amount: int, expires: float) -> None:
        """Count what an earlier run has used until then, in monotonic seconds, gathered as all that has ended here."""
        self.used += amount
        entry = Entry(amount)
        self._end(entry, expires)

    def correct(self, entry: Entry, amount: int, now: float) -> None:
        """An entry's amount is known better."""
        if entry.expires is not None and entry.expires <= now:
            return  # it counts no more
        change = amount - entry.amount
        entry.amount = amount
        self.used += change
        if entry.expires is None:
            self.under_way += change
            self.taken += change
            return
        if change > 0:  # what became less may be written down as ended already: it makes no room there
            self.taken += change
        if self._grain:  # it was gathered with others
            next(each for each in reversed(self._ended) if each.expires == entry.expires).amount += change

    def stamp(self, entry: Entry, at: float) -> None:
        """By then, now or soon, it has certainly arrived: it counts for so many seconds more. A second stamp changes nothing."""
        if entry.expires is not None:
            return
        self.under_way -= entry.amount
        self._end(entry, at + self._seconds)

    def _end(self, entry: Entry, expires: float) -> None:
        if self._grain:
            expires = math.ceil(expires / self._grain) * self._grain
        entry.expires = expires
        ended = self._ended
        place = len(ended)
        while place and ended[place - 1].expires > expires:  # type: ignore[operator]  # all of them have ended
            place -= 1  # past those that were stamped for later
        if not self._grain:
            ended.insert(place, entry)
        elif place and ended[place - 1].expires == expires:
            ended[place - 1].amount += entry.amount
        else:
            gathered = Entry(entry.amount)
            gathered.expires = expires
            ended.insert(place, gathered)

    def refund(self, entry: Entry, now: float) -> None:
        """It never arrived; an entry may be stamped already where it is our own sending that counts."""
        self.correct(entry, 0, now)

    def forget(self, now: float) -> None:
        """Time passed."""
        ended = self._ended
        while ended and (ended[0].expires or 0.0) <= now:
            self.used -= ended.popleft().amount

    def has_room(self, amount: int, now: float) -> bool:
        """Whether so much may be reserved now."""
        if self.used + amount <= self.limit:
            return True
        self.forget(now)
        return self.used + amount <= self.limit

    def room_at(self, amount: int, now: float) -> float:
        """Monotonic seconds when so much will fit if nothing else changes: `now` or later, or `NEVER`."""
        self.forget(now)
        excess = self.used + amount - self.limit
        if excess <= 0:
            return now
        if amount > self.limit:
            return NEVER
        for entry in self._ended:
            excess -= entry.amount
            if excess <= 0:
                return entry.expires or now
        return NEVER

    def ended(self, grain: float, now: float) -> list[tuple[float, int]]:
        """(monotonic seconds at which it expires, amount) of all that counts and has ended, in order.

        `grain`: seconds into which ends are gathered, each to the later one; 0 leaves them as they are. O(entries).
        """
        self.forget(now)
        found: list[tuple[float, int]] = []
        edge, total = -math.inf, 0
        for entry in self._ended:
            expires: float = entry.expires  # type: ignore[assignment]  # all of them have ended
            if expires > edge:
                if total:
                    found.append((edge, total))
                edge, total = math.ceil(expires / grain) * grain if grain else expires, 0
            total += entry.amount
        if total:
            found.append((edge, total))
        return found

    def settled(self, now: float) -> int:
        """What counts and has ended."""
        self.forget(now)
        return self.used - self.under_way
