"""A comparison as a person reads it on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from callpool.tools.cli import tables, terminal
from callpool.tools.loadtest import words
from callpool.tools.loadtest.judge import Figures, Verdict
from callpool.tools.loadtest.runs import MEANINGS, OURS
from callpool.tools.loadtest.scenario import Scenario

MOST_CLIENTS = 20
"""Rows of clients; a longer table is nobody's reading, and the JSON has them all."""


def show(scenario: Scenario, verdicts: Mapping[str, Verdict]) -> None:
    """Print the comparison, and what each client got of callpool."""
    figures = {name: verdict.figures for name, verdict in verdicts.items()}
    notes = [Text(MEANINGS[name], style="dim") for name in figures if name != OURS]
    notes += [
        Text(f"errors of {words.SHORT[name]}: {terminal.one_line(told)}")
        for name, each in figures.items()
        if (told := words.failures(each))
    ]
    tables.print_parts(
        Text(words.head(scenario)),
        Text(),
        _comparison(scenario, figures),
        *([Text(), *notes] if notes else []),
        Text("\nClients of callpool", style="bold"),
        _clients(figures[OURS]),
    )


def _comparison(scenario: Scenario, figures: Mapping[str, Figures]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    for name in figures:
        table.add_column(words.SHORT[name], justify="right", no_wrap=True, style="bold" if name == OURS else "")
    columns = [words.rows(scenario, each) for each in figures.values()]
    for cells in zip(*columns, strict=True):
        table.add_row(cells[0][0], *(value for _, value in cells))
    return table


def _clients(figures: Figures) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for name in ("client", "requests", "done", "failed", "share", "while all wait", "wait", "finished"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in figures.clients[:MOST_CLIENTS]:
        table.add_row(
            str(each.client),
            f"{each.requests:,}",
            f"{each.done:,}",
            Text(f"{each.failed:,}", style="red" if each.failed else ""),
            words.share(each.share),
            words.share(each.share_while_all_wait),
            words.seconds(each.wait),
            words.seconds(each.finished),
        )
    if len(figures.clients) > MOST_CLIENTS:
        table.add_row(f"+{len(figures.clients) - MOST_CLIENTS}")
    return table
