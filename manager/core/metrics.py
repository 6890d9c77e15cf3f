"""Measures that cost a constant: histograms with fixed buckets, rates over the last minute, outcomes by provider.

Nothing here grows with traffic. Counts, sums, minima and maxima are exact (times are added as whole nanoseconds, so that a
mean has no error of summing); only quantiles are read from buckets, which are at most 1/16 wide.
"""

from __future__ import annotations

from array import array
from collections import Counter

STEPS = 16
"""Buckets for each power of two: a quantile is at most 6 % above the true one, and never beyond the largest value."""
LOWEST = -20
"""Exponent of the first bucket: below two to the power of -21, half a microsecond, everything is one bucket."""
HIGHEST = 17
"""Exponent of the last bucket: 131,072 seconds; a day has 86,400."""
BUCKETS = (HIGHEST - LOWEST + 1) * STEPS
FOLD = 128
"""Values that wait together: folding them takes 50 to 100 microseconds, which is the most that one `add` can take."""
_FRACTION_BITS = 52 - (STEPS.bit_length() - 1)
"""Bits of an IEEE 754 double below those that tell buckets apart."""
_FIRST = (1022 + LOWEST) * STEPS
"""Bucket 0, as those bits write it: 1022 is the exponent of numbers from a half to one."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
WINDOW = 60
"""Seconds that a rate looks back."""
MAX_PROVIDERS = 256
"""Provider names that are told apart. Bookkeeping accepts any name, so the names are not ours to bound otherwise."""
OTHER_PROVIDERS = "(other)"
NANOSECONDS = 1_000_000_000


class Histogram:
    """A distribution of seconds in a fixed number of buckets.

    Values wait in a list of at most `FOLD` and are put into their buckets together: counting one costs an append on the hot path,
    and a hot loop later.
    """

    __slots__ = ("_buckets", "_count", "_fresh", "_largest", "_smallest", "_total")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._fresh: list[float] = []
        self._buckets: dict[int, int] = {}
        """Bucket → count; at most `BUCKETS` of them. Most distributions touch a few."""
        self._count = 0
        self._total = 0
        """Nanoseconds."""
        self._smallest = 0.0
        self._largest = 0.0

    def add(self, seconds: float) -> None:
        """Count one value; a negative one (a clock of another machine's making) counts as 0."""
        fresh = self._fresh
        fresh.append(seconds)
        if len(fresh) >= FOLD:
            self._fold()

    def _fold(self) -> None:
        fresh, buckets = self._fresh, self._buckets
        if not fresh:
            return
        self._fresh = []
        if min(fresh) < 0.0:
            fresh = [max(0.0, seconds) for seconds in fresh]
        # A float's exponent and the first bits of its fraction, read as they lie in memory: less than half of what `frexp` costs.
        bits = memoryview(array("d", fresh)).cast("B").cast("q")
        for number, count in Counter([each >> _FRACTION_BITS for each in bits]).items():
            bucket = max(0, min(BUCKETS - 1, number - _FIRST))
            buckets[bucket] = buckets.get(bucket, 0) + count
        smallest, largest = min(fresh), max(fresh)
        self._smallest = min(self._smallest, smallest) if self._count else smallest
        self._largest = max(self._largest, largest)
        self._total += sum([int(seconds * NANOSECONDS + 0.5) for seconds in fresh])
        self._count += len(fresh)

    @property
    def count(self) -> int:
        """How many values there were."""
        return self._count + len(self._fresh)

    @property
    def total(self) -> float:
        """Sum of all values, in seconds."""
        self._fold()
        return self._total / NANOSECONDS

    @property
    def mean(self) -> float:
        """The exact mean; 0.0 without values."""
        self._fold()
        return self._total / self._count / NANOSECONDS if self._count else 0.0

    def quantile(self, share: float) -> float:
        """The upper end of the bucket in which this share of the values is reached; 0.0 without values."""
        self._fold()
        wanted, seen = share * self._count, 0
        for number in sorted(self._buckets):
            seen += self._buckets[number]
            if seen >= wanted:
                return max(self._smallest, min(self._largest, _upper_end(number)))
        return 0.0

    def as_plain(self) -> dict[str, float]:
        """Count, sum, mean, extremes and quantiles, in seconds."""
        self._fold()
        plain: dict[str, float] = {
            "count": self._count,
            "sum": self.total,
            "mean": self.mean,
            "min": self._smallest,
            "max": self._largest,
        }
        return plain | {name: self.quantile(share) for name, share in QUANTILES.items()}


def _upper_end(number: int) -> float:
    exponent, step = divmod(number, STEPS)
    return float((0.5 + (step + 1) / (2 * STEPS)) * 2.0 ** (exponent + LOWEST))


class Rate:
    """How often something happened in the last minute, by the second."""

    __slots__ = ("_counts", "_seconds", "_since")

    def __init__(self) -> None:
        self._counts = [0] * WINDOW
        self._seconds = [-1] * WINDOW
        """Which second each place holds; a place is used again after a minute."""
        self._since: float | None = None

    def clear(self, now: float) -> None:
        """Forget everything; the next figure is of the time from `now` on."""
        self._counts = [0] * WINDOW
        self._seconds = [-1] * WINDOW
        self._since = now

    def add(self, now: float) -> None:
        """It happened once, at `now` in monotonic seconds."""
        if self._since is None:
            self._since = now
        second = int(now)
        place = second % WINDOW
        if self._seconds[place] != second:
            self._seconds[place] = second
            self._counts[place] = 0
        self._counts[place] += 1

    def per_second(self, now: float) -> float:
        """Mean over the last 60 seconds, or over the time since the first event if that is shorter (at least a second)."""
        if self._since is None:
            return 0.0
        oldest = int(now) - WINDOW
        happened = sum(
            count for count, second in zip(self._counts, self._seconds, strict=True) if oldest < second <= int(now)
        )
        return happened / min(float(WINDOW), max(1.0, now - self._since))


class Tally:
    """Outcomes by provider, for a bounded number of names."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._counts = {}

    def add(self, provider: str, outcome: str) -> None:
        """One session of this provider ended so."""
        if provider not in self._counts and len(self._counts) >= MAX_PROVIDERS:
            provider = OTHER_PROVIDERS
        counts = self._counts.setdefault(provider, {})
        counts[outcome] = counts.get(outcome, 0) + 1

    def as_plain(self) -> dict[str, dict[str, float]]:
        """Provider → ended sessions and the shares of them that failed and that timed out."""
        plain: dict[str, dict[str, float]] = {}
        for provider, counts in sorted(self._counts.items()):
            ended = sum(counts.values())
            plain[provider] = {
                "ended": ended,
                "error_rate": counts.get("error", 0) / ended,
                "timeout_rate": counts.get("timeout", 0) / ended,
            }
        return plain
