"""A comparison as one page: HTML with its styles and charts in it, and nothing from anywhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Final

from callpool.tools.loadtest import charts, timeline, words
from callpool.tools.loadtest.judge import Verdict
from callpool.tools.loadtest.report import versions
from callpool.tools.loadtest.runs import MEANINGS
from callpool.tools.loadtest.scenario import Scenario

PIECES: Final = 240
"""Pieces of time in the chart of open calls: no more than a screen can show."""
BARS: Final = 60
"""Bars of refusals."""
MOST_CLIENTS: Final = 40
"""Rows of clients in a chart."""

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5b6570; --paper: #f6f7f8; --card: #fff; --line: #d9dde2;
  --callpool: #1769c2; --direct: #b7791f; --direct_split: #6b46c1; --refused: #c53030; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --dim: #9aa5b1; --paper: #14171a; --card: #1d2125;
  --line: #343a41; --callpool: #63a9f2; --direct: #e0a84a; --direct_split: #b39af0; --refused: #f27878; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 24px 16px 48px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1320px; margin: 0 auto; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 18px; margin: 32px 0 12px; }
h3 { font-size: 15px; margin: 0; }
p { margin: 0 0 8px; max-width: 80ch; }
.dim, footer { color: var(--dim); font-size: 13px; }
footer { margin-top: 32px; }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px; min-width: 0; }
.wide { max-width: 480px; }
.scroll { overflow-x: auto; padding: 4px 14px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 0 5px 14px; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; font-weight: normal; padding-left: 0; }
th.in { padding-left: 16px; color: var(--dim); }
tr:last-child > * { border-bottom: 0; }
td { white-space: nowrap; width: 19%; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim); }
svg text.strong { fill: var(--ink); }
svg .grid { stroke: var(--line); }
svg .limit { stroke: var(--ink); stroke-dasharray: 5 4; }
svg .area { fill-opacity: .75; }
svg .curve { fill: none; stroke-width: 2; }
svg .curve.direct_split { stroke-dasharray: 7 5; }
svg .refused { fill: var(--refused); }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
.legend > span { white-space: nowrap; margin-right: 16px; }
@media (max-width: 520px) { body { font-size: 14px; } th, td { padding-left: 8px; font-size: 12.5px; }
  td { width: auto; } th.in { padding-left: 8px; } .scroll { padding: 4px 10px; } }
"""


def page(scenario: Scenario, verdicts: Mapping[str, Verdict]) -> str:
    """The whole document."""
    title = f"callpool: {scenario.clients} programs, one account"
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_colours(verdicts)}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p>{_prose(words.head(scenario))}</p>"
        f'<p class="dim">{_prose(_judged())}</p>'
        f"{_table(scenario, verdicts)}"
        "<h2>Open calls and refusals over time</h2>"
        f'<div class="grid">{"".join(_time_cards(scenario, verdicts))}</div>'
        f"<h2>How long requests waited</h2>{_waits(verdicts)}"
        f'<h2>What each client got, and when it was done</h2><div class="grid">{"".join(_client_cards(verdicts))}</div>'
        f"<footer>{escape(_footer(scenario))}</footer></main></body></html>\n"
    )


def _colours(verdicts: Mapping[str, Verdict]) -> str:
    return "".join(
        f"svg .{name}{{fill:var(--{name})}}svg .curve.{name}{{fill:none;stroke:var(--{name})}}"
        f".key.{name}{{background:var(--{name})}}"
        for name in verdicts
    )


def _judged() -> str:
    return (
        "The provider is a fake on this machine that enforces its limits by refusing with 429. All figures but the "
        "submissions and the failures are from its own log. The same requests in every run."
    )


def _table(scenario: Scenario, verdicts: Mapping[str, Verdict]) -> str:
    heads = "".join(f"<td>{_key(name)}{escape(words.SHORT[name])}</td>" for name in verdicts)
    columns = [words.rows(scenario, verdict.figures) for verdict in verdicts.values()]
    body = ""
    for cells in zip(*columns, strict=True):
        name = cells[0][0]
        inner = ' class="in"' if name.startswith(" ") else ""
        values = "".join(f"<td>{escape(value)}</td>" for _, value in cells)
        body += f"<tr><th{inner}>{escape(name.strip())}</th>{values}</tr>"
    return f'<div class="card scroll"><table><tr><th></th>{heads}</tr>{body}</table></div>'


def _time_cards(scenario: Scenario, verdicts: Mapping[str, Verdict]) -> list[str]:
    """One card a run, all on the same scales."""
    longest = max(verdict.figures.seconds for verdict in verdicts.values()) or 1.0
    counts = {name: timeline.tally(verdict.refusals, 0.0, longest, BARS) for name, verdict in verdicts.items()}
    top = max(max(each) for each in counts.values())
    cards = []
    for name, verdict in verdicts.items():
        levels = timeline.levels(verdict.spans, 0.0, longest, PIECES)
        calls = charts.open_calls(levels, scenario.true_concurrency, longest, name)
        cards.append(_card(name, calls + charts.refusals(counts[name], top, longest)))
    return cards


def _waits(verdicts: Mapping[str, Verdict]) -> str:
    curves = {name: (verdict.waits, verdict.figures.requests) for name, verdict in verdicts.items()}
    legend = "".join(f"<span>{_key(name)}{escape(words.SHORT[name])}</span>" for name in verdicts)
    note = "From submission to the provider's admission. What failed never begins: its line ends below 100 %."
    return f'<div class="card wide"><p class="legend">{legend}</p>{charts.waits(curves)}<p class="dim">{_prose(note)}</p></div>'


def _client_cards(verdicts: Mapping[str, Verdict]) -> list[str]:
    cards = []
    for name, verdict in verdicts.items():
        clients = verdict.figures.clients
        rows = [
            (f"client {each.client}", each.done, each.failed, f" · {words.seconds(each.finished)}")
            for each in clients[:MOST_CLIENTS]
        ]
        more = len(clients) - len(rows)
        notes = [f"and {more} more"] if more else []
        if told := words.failures(verdict.figures):
            notes.append(f"errors: {told}")
        cards.append(_card(name, charts.shares(rows, name) + "".join(f'<p class="dim">{_prose(n)}</p>' for n in notes)))
    return cards


def _card(name: str, inner: str) -> str:
    meaning = MEANINGS[name].partition(": ")[2]
    return f'<div class="card"><h3>{_key(name)}{escape(words.SHORT[name])}</h3><p class="dim">{escape(meaning)}</p>{inner}</div>'


def _key(name: str) -> str:
    return f'<span class="key {escape(name)}"></span>'


def _prose(text: str) -> str:
    """Text as HTML; a number and its unit stay on one line."""
    return escape(re.sub(r"(?<=\d) (?=(?:s|%)(?:\W|$))", "\u00a0", text))


def _footer(scenario: Scenario) -> str:
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"callpool loadtest quota, dialect {scenario.dialect}, seed {scenario.seed}. {told}."
