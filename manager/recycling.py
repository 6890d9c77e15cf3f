"""Which worker has done enough, or grown too large, and is to be replaced while it is still well.

A recycling is planned: nothing has failed. The replacement is started first, in the one place that the pool has to spare;
the old worker retires when the new one is ready, so that there is never a worker less. One at a time. Owner: the event loop's
thread.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

RECYCLE_EVERY: Final = 5.0
"""Seconds between two recyclings of a pool: a start takes a third of a second of one core, and the smallest `max_calls_per_worker`
must not become a loop of starts. So there are at most twelve a minute."""
RECYCLE_AGAIN: Final = 60.0
"""Seconds until another attempt after a replacement that never got ready: the old worker still works."""
RETIRE_AGAIN: Final = 0.02
"""Seconds between two looks whether all that a retiring worker was given has been sent to it."""
RETIRE_GRACE: Final = 10.0
"""Seconds for a worker to go when its last call has ended: twice what it takes at most to close its connections."""


class Why(StrEnum):
    """What a worker is recycled for."""

    CALLS = "calls"
    MEMORY = "memory"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When a worker has done enough; 0 is never."""

    calls: int = 0
    memory: int = 0
    """Bytes of resident memory."""

    @property
    def any(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self.calls or self.memory)


class Candidate(Protocol):
    """What is known of a worker that is up."""

    calls: int
    """Calls that have ended in it."""
    memory: int | None
    """Resident bytes when they were last measured."""
    first_memory: int | None
    """The same when it was new."""


def has_had_enough(worker: Candidate, limits: Limits) -> tuple[float, Why] | None:
    """By how much a worker has reached a limit (1.0: just so), and which; None where it has not.

    One that was too large as it began would be followed by another such: memory is no reason then.
    """
    if limits.calls and worker.calls >= limits.calls:
        return worker.calls / limits.calls, Why.CALLS
    memory, first = worker.memory, worker.first_memory
    if limits.memory and memory is not None and first is not None and first < limits.memory <= memory:
        return memory / limits.memory, Why.MEMORY
    return None


def choose(workers: Iterable[Candidate], limits: Limits) -> tuple[int, Why] | None:
    """The index of the worker that is furthest beyond its limits, and why it is to go; None where none is."""
    found = [
        (*enough, index)
        for index, worker in enumerate(workers)
        if (enough := has_had_enough(worker, limits)) is not None
    ]
    if not found:
        return None
    _most, why, index = max(found, key=lambda each: each[0])
    return index, why


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process; None where the system does not tell. Some 30 µs: it reads a file of the kernel's."""
    import psutil  # noqa: PLC0415 - a supervisor without a limit of memory need not load it

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):  # it has just gone, or there is no descriptor left to look with
        return None
