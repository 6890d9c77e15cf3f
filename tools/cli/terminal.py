"""The terminal: everything that the command line writes goes through here.

Two rules. What came from outside (a model's text, metadata, an error's message) is shown and never obeyed: control
characters are escaped by `safe`. And what a program reads is never decorated: colours go to terminals only.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from contextlib import suppress
from typing import Any, Final, TextIO

_UNSAFE: Final = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1: every escape sequence begins with one of these
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # turn the direction of text around
    "\u2028\u2029"  # further line ends
    "\ud800-\udfff"  # halves of a surrogate pair: no encoder takes them
    "\ufeff\U000e0000-\U000e007f"  # invisible, and able to carry text
    "]"
)
BOLD: Final = "1"
DIM: Final = "2"
RED: Final = "1;31"


class ReaderGone(Exception):
    """Whoever read standard output has stopped, like `head`: there is nobody left to tell."""


def safe(text: str) -> str:
    """The text with control characters as escapes, but for tabs and newlines."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """The text, safe and without line ends."""
    return safe(text).replace("\n", "\\n")


def prepare() -> None:
    """Make both streams write any text, also in a locale that lacks its characters."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # absent where a program embeds us with a stream of its own
            reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Write to standard output, at once. Raises ReaderGone, or OSError (a full disk)."""
    out = _standard_output()
    try:
        out.write(text)
        out.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def write_json(value: Any) -> None:
    """Write one line of JSON to standard output: UTF-8, whatever the locale, as RFC 8259 wants it."""
    out = _standard_output()
    try:
        out.flush()
        out.buffer.write(as_json(value).encode() + b"\n")
        out.buffer.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def as_json(value: Any) -> str:
    """One line of JSON, with JSON's own escapes for what `safe` escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)


def say(text: str) -> None:
    """Write a line to standard error. A standard error that takes nothing has nobody to be told about it."""
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def flush() -> None:
    """Write out what is left, so that the interpreter's end has nothing to complain about."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderGone from None


def drop_output() -> None:
    """Send whatever standard output still holds to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks at this stream."""
    return stream is not None and not stream.closed and stream.isatty()


def has_movement(stream: TextIO | None) -> bool:
    """Whether this stream can move its cursor: a terminal, and not a dumb one."""
    return is_terminal(stream) and os.environ.get("TERM", "dumb") != "dumb"


def has_colour(stream: TextIO | None) -> bool:
    """Whether this stream takes colours: a terminal that can, and nobody said NO_COLOR."""
    return has_movement(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, style: str, stream: TextIO | None) -> str:
    """The text in a style, if the stream takes it."""
    return f"\x1b[{style}m{text}\x1b[0m" if has_colour(stream) else text


def _standard_output() -> TextIO:
    if sys.stdout is None:  # started with `>&-`
        raise OSError(errno.EBADF, "standard output is closed")
    return sys.stdout
