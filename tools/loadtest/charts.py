"""Charts as inline SVG, without a library: each function takes numbers and returns one `<svg>`. Pure.

All have the same width, drawn to be readable at 340 CSS pixels; a wider place scales them. Colours are classes, which the page
sets for light and dark. Texts are escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import floor, log10
from typing import Final

WIDTH: Final = 360.0
LEFT: Final = 40.0
RIGHT: Final = 10.0
TOP: Final = 18.0
BOTTOM: Final = 30.0
PLOT: Final = WIDTH - LEFT - RIGHT
"""Width of the plot itself."""
ROW: Final = 20.0
"""Height of one row of horizontal bars."""
NAME: Final = 62.0
"""Width of a row's name."""
LETTER: Final = 6.4
"""Width that a letter of a chart's text takes at most, in the mean."""


class Axes:
    """The plot's coordinates: 0 to `across` from left to right, 0 to `up` from bottom to top."""

    def __init__(self, across: float, up: float, height: float) -> None:
        self.across = across or 1.0
        self.up = up or 1.0
        self.height = height

    @property
    def floor(self) -> float:
        """The plot's lower edge."""
        return self.height - BOTTOM

    def x(self, value: float) -> float:
        """From a value to a coordinate."""
        return LEFT + PLOT * value / self.across

    def y(self, value: float) -> float:
        """From a value to a coordinate."""
        return self.floor - (self.floor - TOP) * value / self.up

    def drawn(self, what: str, below: str, *, suffix: str = "") -> str:
        """Lines and numbers. `what` is counted upwards, and written above the plot; `below` under it."""
        parts = []
        for value in ticks(self.up, 4):
            at = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(text(LEFT - 5, at + 3.5, f"{short(value)}{suffix}", "end"))
        parts += [text(self.x(value), self.floor + 13, short(value), "middle") for value in ticks(self.across, 6)]
        parts.append(text(WIDTH - RIGHT, self.height - 4, below, "end"))
        parts.append(text(LEFT, 10, what, "start"))
        return "".join(parts)


def ticks(top: float, about: int) -> list[float]:
    """Round numbers from 0 up to `top`, about so many."""
    if top <= 0:
        return [0.0]
    rough = top / about
    power = 10.0 ** floor(log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999)
    return [step * number for number in range(int(top / step * 1.0001) + 1)]


def short(value: float) -> str:
    """A number for an axis: `1.5k` for 1,500."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value / 1e3:.4g}k" if abs(value) >= 1e4 else f"{value:.4g}"


def text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    """Words at a place; `anchor` is start, middle or end."""
    shown = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{shown}>{escape(words)}</text>'


def svg(height: float, label: str, parts: Iterable[str]) -> str:
    """A whole chart. `label` tells it to who cannot see it."""
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def open_calls(levels: Sequence[float], limit: int, seconds: float, style: str) -> str:
    """Open calls over time as a stepped area, with the limit as a dashed line. `levels`: equal pieces of `seconds`."""
    axes = Axes(seconds, 1.15 * max([float(limit), *levels]), 170)
    width = axes.across / max(1, len(levels))
    path = [f"M{axes.x(0):.1f} {axes.floor:.1f}"]
    for piece, level in enumerate(levels):
        path.append(f"V{axes.y(level):.1f}H{axes.x((piece + 1) * width):.1f}")
    path.append(f"V{axes.floor:.1f}Z")
    at = axes.y(limit)
    return svg(
        axes.height,
        f"open calls over {seconds:.0f} seconds; the limit is {limit}",
        [
            axes.drawn("open calls", "seconds"),
            f'<path class="area {escape(style)}" d="{"".join(path)}"/>',
            f'<line class="limit" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{at:.1f}" y2="{at:.1f}"/>',
            text(WIDTH - RIGHT, at - 4, f"limit {limit:,}", "end", "strong"),
        ],
    )


def refusals(counts: Sequence[int], top: int, seconds: float) -> str:
    """Refused calls over time as bars. `top` is the scale, the same one for charts to be compared."""
    axes = Axes(seconds, 1.15 * max(1, top), 110)
    width = PLOT / max(1, len(counts))
    bars = [
        f'<rect class="refused" x="{LEFT + piece * width:.2f}" y="{axes.y(count):.1f}" width="{max(0.5, width - 0.5):.2f}" '
        f'height="{axes.floor - axes.y(count):.1f}"/>'
        for piece, count in enumerate(counts)
        if count
    ]
    none = [] if bars else [text(LEFT + PLOT / 2, (TOP + axes.floor) / 2 + 4, "none", "middle")]
    return svg(axes.height, f"{sum(counts)} refused calls over time", [axes.drawn("refused", "seconds"), *bars, *none])


def waits(curves: Mapping[str, tuple[Sequence[float], int]]) -> str:
    """For each style its waits (seconds, sorted) and the number of all requests: which share had begun after so long."""
    axes = Axes(max([ordered[-1] for ordered, _ in curves.values() if ordered], default=1.0), 100, 210)
    lines = []
    for style, (ordered, total) in curves.items():
        points = [(ordered[place], 100 * (place + 1) / total) for place in sampled(len(ordered), 240)]
        path = f"M{axes.x(0):.1f} {axes.y(0):.1f}"
        path += "".join(f"H{axes.x(wait):.1f}V{axes.y(share):.1f}" for wait, share in points)
        lines.append(f'<path class="curve {escape(style)}" d="{path}H{WIDTH - RIGHT:.1f}"/>')
    return svg(
        axes.height,
        "share of all requests that had begun after so many seconds",
        [axes.drawn("share of requests that have begun", "seconds of waiting", suffix=" %"), *lines],
    )


def sampled(count: int, most: int) -> list[int]:
    """At most `most` places of a sequence, evenly, the last one among them."""
    if count <= most:
        return list(range(count))
    return [(place + 1) * count // most - 1 for place in range(most)]


def shares(rows: Sequence[tuple[str, int, int, str]], style: str) -> str:
    """For each row a name, what was done, what failed, and a few words: two bars in one."""
    most = max([done + failed for _, done, failed, _ in rows], default=1) or 1
    told = [f"{done:,}{f', {failed:,} failed' if failed else ''}{more}" for _, done, failed, more in rows]
    room = WIDTH - NAME - 8 - LETTER * max(map(len, told), default=0)
    parts = []
    for number, (name, done, failed, _) in enumerate(rows):
        top = number * ROW + 4
        width, lost = room * done / most, room * failed / most
        parts.append(text(NAME - 6, top + 11, name, "end"))
        parts.append(f'<rect class="{escape(style)}" x="{NAME:g}" y="{top:g}" width="{width:.1f}" height="14"/>')
        parts.append(f'<rect class="refused" x="{NAME + width:.1f}" y="{top:g}" width="{lost:.1f}" height="14"/>')
        parts.append(text(NAME + width + lost + 5, top + 11, told[number], "start"))
    return svg(len(rows) * ROW + 6, "answers of each client", parts)
