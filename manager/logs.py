"""Logging of the supervisor and its children: one line an event, to standard error (a daemon's is its log file)."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from callpool.manager.core.strict import printable

MAX_LINE = 4000
"""Characters of one event's text."""


class _Formatter(logging.Formatter):
    """`2026-11-21T10:00:00.123Z INFO callpool.manager.arbiter[4711]: text`; the text cannot forge a line or move a cursor."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - the library's
        """UTC with milliseconds."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """The line, with what outsiders wrote in it made harmless."""
        record.message = printable(record.message, MAX_LINE)
        return super().formatMessage(record)


def configure(level: int = logging.INFO) -> None:
    """Set up logging for this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
