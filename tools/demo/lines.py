"""The plain screen: whole sentences, each with its client's name before it. For pipes, files and NO_COLOR."""

from __future__ import annotations

import contextlib
import re
import textwrap
from typing import TYPE_CHECKING, TextIO

from callpool.tools.demo.stage import Seat, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH = 80
"""Columns; nothing printed here is wider."""

SENTENCE_END = re.compile(r"(?<!\d)[.!?…][\"'\u201d\u2019)\]*]*\s+|\n+")
"""Not after a digit: `1. Sunscreen` is one thing."""

LONGEST = 3 * WIDTH
"""Characters after which a sentence is printed although it has not ended."""


def printable(text: str) -> str:
    """The text without control characters: what a model says must not move the cursor."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)


class LineScreen:
    """Prints each answer sentence by sentence, as the sentences end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar = "│" if _can_show(stream, "│") else "|"
        self._rest: dict[int, str] = {}

    @contextlib.contextmanager
    def showing(self, seats: Sequence[Seat]) -> Iterator[None]:
        """Nothing to prepare but what each client asks."""
        for seat in seats:
            self._rest[seat.number] = ""
            self._print(seat, f"asks: {seat.prompt}")
        yield

    def piece(self, seat: Seat, text: str) -> None:
        """Print what this piece completes."""
        rest = self._rest[seat.number] + printable(text)
        while end := _cut(rest):
            self._print(seat, rest[:end])
            rest = rest[end:]
        self._rest[seat.number] = rest

    def moved(self, seat: Seat) -> None:
        """At the end, print what is left of the answer, and how it ended."""
        if not seat.ended:
            return
        self._print(seat, self._rest.get(seat.number, ""))
        self._rest[seat.number] = ""
        if seat.state is State.DONE:
            self._print(seat, f"[done: {seat.tokens} tokens, {seat.seconds:.1f} s]")
        else:
            self._print(seat, f"[failed: {printable(seat.error)}]")

    def say(self, text: str) -> None:
        """Print a block as it is."""
        self._write(text.splitlines() or [""])

    def _print(self, seat: Seat, text: str) -> None:
        before = f"client {seat.number} {self._bar} "
        self._write([before + line for line in textwrap.wrap(text, WIDTH - len(before))])

    def _write(self, lines: list[str]) -> None:
        for line in lines:
            shown = line if _can_show(self._stream, line) else line.encode("ascii", "replace").decode()
            self._stream.write(shown.rstrip() + "\n")
        self._stream.flush()


def _cut(text: str) -> int:
    """Where the first finished sentence ends, or 0."""
    if found := SENTENCE_END.search(text):
        return found.end()
    return text.rfind(" ", 0, LONGEST) + 1 if len(text) > LONGEST else 0


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")  # a StringIO has none and takes all
    except UnicodeEncodeError:
        return False
    return True
