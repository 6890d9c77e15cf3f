"""Counts, sums and extremes are exact; quantiles are near; nothing grows with traffic."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from callpool.manager.core.metrics import (
    BUCKETS,
    FOLD,
    MAX_PROVIDERS,
    NANOSECONDS,
    OTHER_PROVIDERS,
    WINDOW,
    Histogram,
    Rate,
    Tally,
)

from .build import STEADY

SECONDS = st.floats(0.0, 100_000.0) | st.floats(0.0, 0.01) | st.integers(0, 86_400).map(float)


@STEADY
@given(st.lists(SECONDS, max_size=3 * FOLD))
@example([0.1, 0.2, 0.3] * 50)
@example([0.1] + [0.2] * 2 * FOLD)
@example([0.3] + [0.2] * 2 * FOLD)
def test_a_histogram_is_exact_but_for_its_quantiles(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    assert histogram.count == len(values)
    total = sum(int(value * NANOSECONDS + 0.5) for value in values)
    assert histogram.total == total / NANOSECONDS
    assert histogram.mean == (
        float(Fraction(total, len(values)) / NANOSECONDS) if values else 0.0
    ) or histogram.mean == (pytest.approx(total / len(values) / NANOSECONDS, rel=1e-15))
    plain = histogram.as_plain()
    assert (plain["min"], plain["max"]) == ((min(values), max(values)) if values else (0.0, 0.0))
    ordered = sorted(values)
    for name, share in {"p50": 0.5, "p90": 0.9, "p99": 0.99}.items():
        if values:
            place = next(number for number in range(1, len(values) + 1) if number >= share * len(values))
            true = ordered[place - 1]
            assert true <= plain[name] * (1 + 1e-12)
            assert plain[name] <= max(true * (1 + 1 / 16) + 1e-6, ordered[0])


def test_a_histogram_stays_small_and_takes_what_no_clock_should_give() -> None:
    histogram = Histogram()
    for exponent in range(-400, 300):
        histogram.add(2.0**exponent if exponent < 200 else 2.0**199)
    histogram.add(-5.0)
    assert histogram.as_plain()["min"] == 0.0
    assert histogram.count == 701
    assert len(histogram._buckets) <= BUCKETS
    histogram.clear()
    assert histogram.as_plain() == dict.fromkeys(plain_names(), 0.0)


def plain_names() -> list[str]:
    return ["count", "sum", "mean", "min", "max", "p50", "p90", "p95", "p99"]


@STEADY
@given(st.lists(st.floats(0.0, 30.0), max_size=60))
def test_a_rate_counts_the_last_minute(gaps: list[float]) -> None:
    rate, now, times = Rate(), 1_000.0, []
    for gap in gaps:
        now += gap
        rate.add(now)
        times.append(now)
    recent = [time for time in times if int(now) - WINDOW < int(time)]
    span = min(float(WINDOW), max(1.0, now - times[0])) if times else 1.0
    assert rate.per_second(now) == len(recent) / span
    assert rate.per_second(now + 2 * WINDOW) == 0.0
    rate.clear(now)
    assert rate.per_second(now) == 0.0


def test_outcomes_are_told_apart_by_provider_for_so_many_names() -> None:
    tally = Tally()
    for number in range(2 * MAX_PROVIDERS):
        tally.add(f"p{number}", "error")
    tally.add("p0", "completed")
    tally.add("p0", "timeout")
    plain = tally.as_plain()
    assert len(plain) == MAX_PROVIDERS + 1
    assert plain["p0"] == {"ended": 3, "error_rate": 1 / 3, "timeout_rate": 1 / 3}
    assert plain[OTHER_PROVIDERS]["ended"] == MAX_PROVIDERS
