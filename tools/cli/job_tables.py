"""How jobs look to a person: a row for each, the counts below, and what to do about those in doubt."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from callpool.tools.cli import tables, terminal
from callpool.tools.cli.figures import span

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS: Final = ("id", "state", "model", "client", "age", "attempts", "took")
FIRST_NUMBER: Final = COLUMNS.index("age")
LEAST: Final = 6
"""Characters of model and client at least."""
STATES: Final = ("queued", "started", "completed", "error", "timeout", "cancelled", "interrupted")
"""In the order of a job's life; a newer supervisor may know others, which come last."""
WHOLE_ID: Final = 30
"""Characters of an id that are kept on one line, to be copied: those of ids that callpool makes, and two more."""
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
    """`in the journal: 3 queued, 9 completed`."""
    known = [state for state in STATES if counts.get(state)]
    others = sorted(state for state in counts if state not in STATES)
    each = ", ".join(f"{counts[state]} {terminal.one_line(state)}" for state in (*known, *others))
    return f"in the journal: {each}" if each else "the journal is empty"


def _rows(rows: list[dict[str, Any]]) -> Table:
    now = time.time()
    cells = [_cells(row, now) for row in rows]
    widths = _widths([max(map(len, column)) for column in zip(COLUMNS, *cells, strict=True)])
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for number, (name, width) in enumerate(zip(COLUMNS, widths, strict=True)):
        table.add_column(name, overflow="fold", width=width, justify="right" if number >= FIRST_NUMBER else "left")
    for row, (first, state, *others) in zip(rows, cells, strict=True):
        table.add_row(Text(first), Text(state, style=_STYLES.get(row["state"], "")), *map(Text, others))
    return table


def _cells(row: dict[str, Any], now: float) -> list[str]:
    texts = (
        row["request_id"],
        "blocked" if row["blocked"] else row["state"],
        f"{row['provider']}/{row['model']}",
        row["client"],
        _short(now - row["accepted_at"]),
        str(row["attempts"]),
        _took(row, now),
    )
    return [terminal.one_line(text) for text in texts]


def _widths(wanted: list[int]) -> list[int]:
    """What each column gets: model and client share what the others leave, and a long id gives way to them."""
    room = shutil.get_terminal_size().columns - len(wanted) + 1
    first, state, model, client, *numbers = wanted
    left = room - state - sum(numbers)
    first = max(1, min(first, max(WHOLE_ID, left - model - client), left - 2 * LEAST))
    left -= first
    if model + client > left:
        model = max(LEAST, min(model, left - min(client, LEAST)))
        client = max(LEAST, left - model)
    return [first, state, model, client, *numbers]


def _took(row: dict[str, Any], now: float) -> str:
    """How long its call took, or takes so far; nothing where none was made."""
    if row["state"] == "started" and row["started_at"] is not None:
        return _short(now - row["started_at"])
    seconds: float = row["duration"]
    if not row["attempts"] or not row["ended"] or (row["state"] == "interrupted" and not seconds):
        return "-"
    return f"{seconds:.1f} s" if seconds < 60 else _short(seconds)


def _short(seconds: float) -> str:
    """A duration by its largest unit, so that the id has room."""
    return " ".join(span(max(0.0, seconds)).split()[:2])
