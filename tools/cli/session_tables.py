"""How sessions look to a person: a row for each, and the totals below."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from callpool.tools.cli import tables, terminal
from callpool.tools.cli.figures import byte_size

if TYPE_CHECKING:
    from collections.abc import Iterable

_OUTCOMES: Final = ("completed", "error", "timeout", "cancelled", "interrupted")
_REJECTIONS: Final = {"capacity": "capacity", "metadata": "metadata_size", "creation": "creation_error"}
"""Why a session was refused → the end of its counter's name."""


def show_sessions(rows: list[dict[str, Any]], statistics: dict[str, Any]) -> None:
    """Rows of `Session.describe`, and the statistics with the pool's limit."""
    listed = _rows(rows) if rows else Text("no active session")
    tables.print_parts(listed, Text(), _totals(statistics))


def _rows(rows: Iterable[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("request", "model", "state"):
        table.add_column(name, overflow="fold", no_wrap=name == "state")
    for name in ("age", "timeout"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("holder", overflow="fold")
    table.add_column("metadata", justify="right", no_wrap=True)
    now = time.time()
    for row in rows:
        table.add_row(
            _text(row["request_id"]),
            _text(f"{row['provider']}/{row['model']}"),
            Text(
                f"{row['state']}, late" if row["timed_out"] else row["state"], style="red" if row["timed_out"] else ""
            ),
            f"{max(0.0, now - row['created_at']):.0f} s",
            f"{row['timeout_seconds']:g} s",
            _text(row["holder"]),
            byte_size(row["metadata_bytes"]),
        )
    return table


def _totals(statistics: dict[str, Any]) -> Table:
    ended = ", ".join(f"{statistics[f'total_sessions_{outcome}']} {outcome}" for outcome in _OUTCOMES)
    rejected = ", ".join(f"{statistics[f'sessions_rejected_{name}']} {why}" for why, name in _REJECTIONS.items())
    fields = tables.pairs()
    fields.add_row(
        "active",
        f"{statistics['active_sessions']} of {statistics['max_concurrent_sessions']}, "
        f"{statistics['peak_concurrent_sessions']} at the peak, {statistics['total_sessions_created']} created",
    )
    fields.add_row("ended", ended)
    fields.add_row("rejected", rejected)
    return fields


def _text(text: str) -> Text:
    return Text(terminal.one_line(text))
