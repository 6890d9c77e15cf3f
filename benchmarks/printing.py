"""Results as text for people."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from measuring import Noise, Result


def facts_lines(facts: Mapping[str, str]) -> Iterator[str]:
    """One line a fact."""
    width = max(map(len, facts))
    for name, value in facts.items():
        yield f"{name:<{width}}  {value}"


def table_lines(result: Result) -> Iterator[str]:
    """A result as a table: contenders, ratios, targets, counts."""
    rows = [(name, result.unit, values) for name, values in result.figures.items()]
    rows += [(name, "", values) for name, values in result.ratios.items()]
    width = max(len(name) for name, _, _ in rows)
    yield f"{result.name}: {result.what}"
    heading = f"rounds: {len(rows[0][2])}; {result.better} is better"
    width = max(width, len(heading))
    yield f"  {heading:<{width}} {'median':>10} {'min':>10} {'max':>10}"
    for name, unit, values in rows:
        yield f"  {name:<{width}} {_cells(values)} {unit}".rstrip()
    for target in result.targets:
        verdict = "reached" if target.reached else "NOT reached"
        yield f"  target: {target.text}: {verdict} ({_number(target.seen)})"
    if result.counts:
        yield "  counted: " + ", ".join(f"{name} {count:,}" for name, count in result.counts.items())


def noise_line(noise: Noise) -> str:
    """What else happened on the machine."""
    return (
        f"  (noise of the whole benchmark: wall {noise.wall:.1f} s, own CPU {noise.own_cpu:.1f} s, "
        f"CPU of others {noise.other_cpu:.1f} s, stolen {noise.stolen:.1f} s)"
    )


def _cells(values: Sequence[float]) -> str:
    summary = (statistics.median(values), min(values), max(values))
    return " ".join(f"{_number(value):>10}" for value in summary)


def _number(value: float) -> str:
    """Three digits that count, thousands apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
