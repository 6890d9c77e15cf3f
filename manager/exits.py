"""Exit statuses, by name. Those above 63 are sysexits(3), which service managers and scripts know."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What the exit status of a callpool program means."""

    OK = 0
    FAILED = 1
    """The request, or the program, failed: the message says how."""
    USAGE = 2
    """The command line is wrong."""
    REQUEST_ENDED = 3
    """The request ended without an answer: timed out, cancelled or interrupted."""
    UNHEALTHY = 4
    """A supervisor answers, and `callpool health` finds that not all is well with it."""
    NOT_YET = 5
    """The job has not ended: ask again, or wait."""
    DAMAGED = 65
    """The journal is not as it should be (EX_DATAERR)."""
    NOT_RUNNING = 69
    """No supervisor answers (EX_UNAVAILABLE)."""
    INTERNAL = 70
    """A defect of callpool (EX_SOFTWARE)."""
    ALREADY_RUNNING = 75
    """Another supervisor holds the directory or a provider key (EX_TEMPFAIL)."""
    NOT_ALLOWED = 77
    """A directory or file is not safe to use (EX_NOPERM)."""
    CONFIG = 78
    """The configuration is refused (EX_CONFIG)."""
    INTERRUPTED = 130
    """Ctrl-C."""
    KILLED = 137
    """A third signal ended a drain by force."""
