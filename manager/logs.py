"""Logging of the supervisor and its children: one line an event, to standard error (a daemon's is its log file)."""

from __future__ import annotations

import logging
import time


class _Formatter(logging.Formatter):
    """`2026-11-21T10:00:00.123Z INFO callpool.manager.arbiter: text`, UTC, one line whatever the text holds."""

    converter = time.gmtime
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Escape what could forge a line or move a terminal's cursor."""
        return super().formatMessage(record).encode("unicode_escape").decode("ascii") if _is_odd(record) else super().formatMessage(record)


def _is_odd(record: logging.LogRecord) -> bool:
    return not record.getMessage().isprintable()


def configure(level: int = logging.INFO) -> None:
    """Set up logging for this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
