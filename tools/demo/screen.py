"""The choice of a screen: moving rows on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol, TextIO

from callpool.tools.demo.lines import LineScreen
from callpool.tools.demo.rows import RowScreen
from callpool.tools.demo.stage import Screen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from callpool.tools.demo.stage import Seat


class DemoScreen(Screen, Protocol):
    """A stage's screen that also prints what the demo itself says."""

    def showing(self, seats: Sequence[Seat]) -> AbstractContextManager[None]:
        """Show these seats while the block runs."""
        ...

    def say(self, text: str) -> None:
        """Print a block of plain text; its lines keep their shape."""
        ...


def choose(stream: TextIO | None = None, environment: Mapping[str, str] = os.environ) -> DemoScreen:
    """Rows need a terminal that can move its cursor; who asks for no colour gets plain text as well."""
    stream = stream or sys.stdout
    plain = bool(environment.get("NO_COLOR")) or environment.get("TERM", "dumb") == "dumb"
    return LineScreen(stream) if plain or not stream.isatty() else RowScreen(stream)
