"""What the command line asks the operating system about a supervisor's processes."""

from __future__ import annotations

import time

import psutil

PAUSE = 0.02
"""Seconds between two looks at a process that is no child of ours."""


def find(pid: int) -> psutil.Process | None:
    """The process, or None where it cannot be seen (gone, or in another container)."""
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def wait_ended(process: psutil.Process, seconds: float) -> bool:
    """Wait until a process has ended; False if it has not after so many seconds."""
    deadline = time.monotonic() + seconds
    while not has_ended(process):
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE)
    return True


def has_ended(process: psutil.Process) -> bool:
    """Whether it has. A zombie has: in a container without an init, nobody may ever collect it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def memory_of(pid: int | None) -> int | None:
    """Bytes of resident memory, or None where that cannot be read."""
    if pid is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
