"""Open calls over time, from spans of (start, end) in seconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

Span = tuple[float, float]
"""When a call began and when it ended; an end before its start counts as no time at all."""


def steps(spans: Iterable[Span]) -> list[tuple[float, int]]:
    """`(from when, how many are open)`, in order of time, one for each moment at which the number changes."""
    changes: dict[float, int] = {}
    for start, end in spans:
        if end > start:
            changes[start] = changes.get(start, 0) + 1
            changes[end] = changes.get(end, 0) - 1
    found, count = [], 0
    for at in sorted(changes):
        count += changes[at]
        found.append((at, count))
    return found


def peak(spans: Iterable[Span]) -> int:
    """The most that were open at one moment."""
    return max((count for _, count in steps(spans)), default=0)


def area(spans: Iterable[Span], begin: float, end: float, limit: int) -> float:
    """Call-seconds between `begin` and `end`; of more than `limit` open calls, `limit` count."""
    total = 0.0
    points = [*steps(spans), (end, 0)]
    for (at, count), (until, _) in pairwise(points):
        total += min(count, limit) * max(0.0, min(until, end) - max(at, begin))
    return total


def utilisation(spans: Iterable[Span], begin: float, end: float, limit: int) -> float | None:
    """Share of `limit` that was in use from `begin` to `end`, 0 to 1; None where no time passed.

    More than the limit counts as the limit, so that an excess (which the peak tells) makes up for no idle time.
    """
    if end <= begin:
        return None
    return min(1.0, area(spans, begin, end, limit) / (limit * (end - begin)))


def levels(spans: Iterable[Span], begin: float, end: float, count: int) -> list[float]:
    """Mean number of open calls in each of `count` equal pieces of the time from `begin` to `end`."""
    width = (end - begin) / count
    totals = [0.0] * count
    if width <= 0:
        return totals
    for since, until in spans:
        start, stop = max(since, begin), min(until, end)
        if stop <= start:
            continue
        first, last = min(count - 1, int((start - begin) / width)), min(count - 1, int((stop - begin) / width))
        for piece in range(first, last + 1):
            left, right = begin + piece * width, begin + (piece + 1) * width
            totals[piece] += max(0.0, min(stop, right) - max(start, left))
    return [total / width for total in totals]


def tally(moments: Iterable[float], begin: float, end: float, count: int) -> list[int]:
    """How many of `moments` fall into each of `count` equal pieces of the time from `begin` to `end`; others do not count."""
    found = [0] * count
    for at in moments:
        if begin <= at <= end and end > begin:
            found[min(count - 1, int((at - begin) / (end - begin) * count))] += 1
    return found
