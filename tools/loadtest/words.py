"""The figures of a run in words: the rows that the table and the page have in common."""

from __future__ import annotations

from callpool.tools.loadtest.judge import CAUSES, Figures
from callpool.tools.loadtest.runs import DIRECT, OURS, SPLIT
from callpool.tools.loadtest.scenario import Scenario

SHORT = {OURS: "callpool", DIRECT: "direct", SPLIT: "direct, split"}
"""A run's name as a column's head."""
NONE = "-"


def rows(scenario: Scenario, figures: Figures) -> list[tuple[str, str]]:
    """What each figure is, and how much it is. The names are the same for every run of a scenario."""
    waits = figures.waits
    return [
        ("concurrency in use, while requests wait", share(figures.utilisation)),
        ("calls refused with 429", f"{figures.rejections:,}"),
        *((f"  by {cause}", f"{figures.rejections_by_limit[cause]:,}") for cause in CAUSES),
        ("  share of calls after 20 s", share(figures.rejections_after_20s)),
        (f"answered, of {figures.requests:,} requests", f"{figures.done:,}"),
        ("failed", f"{figures.failed:,}"),
        ("wait until admitted, median", seconds(waits.p50)),
        ("wait until admitted, 95 %", seconds(waits.p95)),
        ("wait until admitted, 99 %", seconds(waits.p99)),
        ("wait until admitted, longest", seconds(waits.max)),
        (f"most calls at once, of {scenario.true_concurrency:,}", f"{figures.peak_concurrency:,}"),
        (f"most requests in 60 s, of {scenario.rpm:,}", f"{figures.requests_in_60s:,}"),
        (f"most tokens in 60 s, of {scenario.tpm:,}", f"{figures.tokens_in_60s:,}"),
        ("the whole run", seconds(figures.seconds)),
    ]


def failures(figures: Figures) -> str:
    """The errors of a run by their codes, the most frequent first; empty where there were none."""
    counts = sorted(figures.errors.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{code} {count:,}" for code, count in counts)


def head(scenario: Scenario) -> str:
    """The scenario in a few sentences."""
    told = (
        ""
        if scenario.concurrency == scenario.true_concurrency
        else f" (the clients were told {scenario.concurrency:,})"
    )
    skewed = ", four fifths of them by the first client" if scenario.skew else ""
    return (
        f"{scenario.requests:,} requests of {scenario.clients:,} client processes on one account{skewed}; "
        f"calls of {scenario.seconds:g} s. "
        f"The provider allows {scenario.true_concurrency:,} calls at once{told}, {scenario.rpm:,} requests and "
        f"{scenario.tpm:,} tokens a minute."
    )


def share(value: float | None) -> str:
    """A share as per cent."""
    return NONE if value is None else f"{100 * value:.1f} %"


def seconds(value: float | None) -> str:
    """A duration."""
    return NONE if value is None else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
