"""Supervisors that this process has shut down, and what they said at their end: every manager of them answers the same."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

MAX_ENDINGS = 64
"""Remembered at most; a program that starts and shuts down more is a test."""
_endings: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()
"""(address, supervisor's process id) → `{report, statistics, metrics}`. Each step on it is one operation of the dict."""


def remember(address: str, pid: int, said: dict[str, Any]) -> None:
    """This supervisor was shut down from here; the first word stands."""
    _endings.setdefault((address, pid), said)
    if len(_endings) > MAX_ENDINGS:
        _endings.popitem(last=False)


def recall(address: str, pid: int) -> dict[str, Any] | None:
    """What it said, or None if it was not shut down from here."""
    return _endings.get((address, pid)) if _endings else None
