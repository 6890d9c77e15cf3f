"""Supervisors that this process has shut down, and what they said at their end: every manager of them answers the same.

A drained supervisor ends at once, so another thread may find it gone before the one that shuts it down has read its last words.
Whoever loses the connection therefore waits a moment for them, if they are on their way.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ENDINGS = 64
"""Remembered at most; a program that starts and shuts down more is a test."""
_endings: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()
"""(address, supervisor's process id) → `{report, statistics, metrics}`. Each step on it is one operation of the dict."""

LAST_WORDS = 5.0
"""Seconds to wait for last words that are on their way; they left before the connection ended."""
_serial = itertools.count()
_under_way: dict[tuple[str, int, int], Future[None]] = {}
"""(address, supervisor's process id, number) → a shutdown in this process. Each step on it is one operation of the dict."""


@contextlib.contextmanager
def expected(address: str, pid: int) -> Iterator[None]:
    """Around the shutting down of this supervisor."""
    key, over = (address, pid, next(_serial)), Future[None]()
    _under_way[key] = over
    try:
        yield
    finally:
        _under_way.pop(key, None)  # gone already in a child that was forked meanwhile
        over.set_result(None)


def under_way(address: str, pid: int) -> list[Future[None]]:
    """The shutdowns of this supervisor in this process, to be waited for."""
    return [over for key, over in list(_under_way.items()) if key[:2] == (address, pid)]


os.register_at_fork(after_in_child=_under_way.clear)  # those are the parent's to end


def remember(address: str, pid: int, said: dict[str, Any]) -> None:
    """This supervisor was shut down from here; the first word stands."""
    _endings.setdefault((address, pid), said)
    if len(_endings) > MAX_ENDINGS:
        _endings.popitem(last=False)


def recall(address: str, pid: int) -> dict[str, Any] | None:
    """What it said, or None if it was not shut down from here."""
    return _endings.get((address, pid)) if _endings else None
