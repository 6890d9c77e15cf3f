"""How jobs look to a person: a row for each, the counts below, and what to do about those in doubt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from callpool.tools.cli import tables, terminal
from callpool.tools.cli.figures import counted, span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

STATES: Final = ("queued", "started", "completed", "error", "timeout", "cancelled", "interrupted")
"""In the order of a job's life; a newer supervisor may know others, which come last."""
_STYLES: Final = {"completed": "green", "error": "red", "timeout": "red", "cancelled": "yellow", "interrupted": "red"}


def show_jobs(document: dict[str, Any], *, filtered: bool) -> None:
    """What `callpool jobs --json` prints."""
    rows, counts = document["jobs"], document["counts"]
    empty = "no such job" if filtered else "no job"
    parts: list[RenderableType] = [_rows(rows) if rows else Text(empty), Text(), Text(counts_line(counts))]
    if document["more"]:
        parts.append(Text("there are more: --limit N lists so many, --all lists all"))
    if counts.get("interrupted"):
        parts.append(Text("interrupted: in doubt, see `callpool jobs resolve --help`"))
    blocked = {row["blocked"] for row in rows if row["blocked"]}
    parts += [Text(terminal.one_line(f"blocked: {why}")) for why in sorted(blocked)]
    tables.print_parts(*parts)


def counts_line(counts: dict[str, int]) -> str:
    """`12 jobs: 3 queued, 9 completed`."""
    known = [state for state in STATES if counts.get(state)]
    others = sorted(state for state in counts if state not in STATES)
    each = ", ".join(f"{counts[state]} {terminal.one_line(state)}" for state in (*known, *others))
    return f"{counted(sum(counts.values()), 'job')} in the journal" + (f": {each}" if each else "")


def _rows(rows: Iterable[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("id", overflow="fold")
    table.add_column("state", overflow="fold")
    table.add_column("model", overflow="fold")
    table.add_column("client", overflow="fold")
    for name in ("age", "attempts", "took"):
        table.add_column(name, justify="right", no_wrap=True)
    now = time.time()
    for row in rows:
        state = f"{row['state']}, blocked" if row["blocked"] else row["state"]
        table.add_row(
            _text(row["request_id"]),
            Text(terminal.one_line(state), style=_STYLES.get(row["state"], "")),
            _text(f"{row['provider']}/{row['model']}"),
            _text(row["client"]),
            span(max(0.0, now - row["accepted_at"])),
            str(row["attempts"]),
            _took(row, now),
        )
    return table


def _took(row: dict[str, Any], now: float) -> str:
    """How long its call took, or takes so far; nothing where none was made."""
    if row["state"] == "started" and row["started_at"] is not None:
        return span(max(0.0, now - row["started_at"]))
    if not row["duration"]:
        return "-"
    return f"{row['duration']:.1f} s" if row["duration"] < 60 else span(row["duration"])


def _text(text: str) -> Text:
    return Text(terminal.one_line(text))
