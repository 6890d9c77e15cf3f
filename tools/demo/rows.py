"""The terminal's screen: one row a client, all growing at once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from callpool.tools.demo.lines import printable
from callpool.tools.demo.stage import Seat, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FRAMES = 12
"""Drawings a second."""

SIDE = 27
"""Columns beside the text: client, state and the gaps."""

STYLES = {
    State.STARTING: "dim",
    State.CONNECTED: "dim",
    State.WAITING: "yellow",
    State.ANSWERING: "cyan",
    State.DONE: "green",
    State.BROKEN: "bold red",
}


class RowScreen:
    """Shows the end of each growing answer, and all of each when they have ended."""

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, highlight=False)

    @contextlib.contextmanager
    def showing(self, seats: Sequence[Seat]) -> Iterator[None]:
        """Draw the seats until the block ends; then leave the whole answers on the screen."""
        live = Live(
            get_renderable=lambda: self.table(seats, self.lines_each(len(seats))),
            console=self.console,
            refresh_per_second=FRAMES,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            with live:
                yield
        finally:
            self.console.print(self.table(seats, None))

    def piece(self, seat: Seat, text: str) -> None:
        """Nothing: the next drawing reads the seat."""

    def moved(self, seat: Seat) -> None:
        """Nothing: the next drawing reads the seat."""

    def say(self, text: str) -> None:
        """Print above the rows; steps stand out."""
        self.console.print(Text(text))

    def lines_each(self, seats: int) -> int:
        """Lines of text for each row, so that all rows fit: a taller live table would scroll instead of growing."""
        return max(1, min(6, (self.console.height - 3) // seats))

    def table(self, seats: Sequence[Seat], lines: int | None) -> Table:
        """`lines` is how many lines of the end of each text to show; None shows the prompt and all of the text."""
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=8)
        table.add_column(width=15)
        table.add_column(ratio=1)
        width = max(20, self.console.width - SIDE)
        for seat in seats:
            style = STYLES[seat.state]
            text = Text(printable(seat.error or seat.text), style="red" if seat.error else "")
            shown = Text("\n").join(text.wrap(self.console, width)[-lines:]) if lines else _with_prompt(seat, text)
            table.add_row(Text(f"client {seat.number}", style="bold"), Text(_state(seat), style=style), shown)
        return table


def _with_prompt(seat: Seat, text: Text) -> Group:
    return Group(Text(seat.prompt, style="italic dim"), text, Text())


def _state(seat: Seat) -> str:
    if seat.state is State.DONE:
        return f"{seat.tokens} tok, {seat.seconds:.1f} s"
    return str(seat.state.value)
