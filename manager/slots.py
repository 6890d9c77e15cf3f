"""One worker's place: the process that fills it now, what happened to those before, and whom that is told.

Owner: the event loop's thread.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from callpool.manager.children import Child
    from callpool.manager.core.messages import Finished, Piece, Started
    from callpool.manager.core.pools import PoolCounts
    from callpool.manager.core.restarts import Failure
    from callpool.manager.link import Link
    from callpool.manager.recycling import Why


class WorkerState(StrEnum):
    """Where a worker slot is."""

    STARTING = "starting"
    UP = "up"
    RETIRING = "retiring"
    """Somebody else has taken its place; it finishes its calls."""
    STUCK = "stuck"
    DOWN = "down"
    SPARE = "spare"
    """Nobody is there, and nobody is missed: the next recycling begins here."""
    STOPPED = "stopped"


class WorkerEvents(Protocol):
    """What the arbiter tells the service."""

    def worker_up(self, worker: int) -> None:
        """This worker can make calls."""

    def worker_retiring(self, worker: int) -> None:
        """This worker is to end when its calls have, and gets no new ones."""

    def may_retire(self, worker: int) -> bool:
        """Whether a worker that retires can be told: nothing that it is to be sent is held back any more."""

    @property
    def is_draining(self) -> bool:
        """Whether the pool is about to end: nobody need be recycled any more."""

    def worker_is_idle(self, worker: int) -> bool:
        """Whether nobody's call is with this worker."""

    def worker_down(self, worker: int, reason: str) -> None:
        """This worker has ended, and its pipe was read to the end."""

    def start_failed(self, cause: str) -> None:
        """No worker has ever been ready, and none will be for a while."""

    def handle_reports(self, worker: int, reports: Iterable[Started | Piece | Finished]) -> None:
        """What a worker says of its calls."""


class Slot:
    """One worker's place."""

    def __init__(self, number: int, *, spare: bool = False) -> None:
        self.number = number
        self.state = WorkerState.SPARE if spare else WorkerState.DOWN
        self.spare = spare
        """Whether the pool has all its workers without this one."""
        self.child: Child | None = None
        self.exit_reason: str | None = None
        """How the child has exited; None while it lives. The worker is gone only when its pipe is empty as well."""
        self.link: Link | None = None
        self.restarts = 0
        self.recycled = 0
        """Planned replacements. These two and the last reasons move along when another slot takes over."""
        self.last_reason = ""
        self.last_failure: Failure | None = None
        self.last_recycled: Why | None = None
        self.spawned_at = 0.0
        self.heard_at = 0.0
        self.idle_since: float | None = None
        """Of one that retires: since when it has had no call."""
        self.loop_delay = 0.0
        self.calls = 0
        """Calls that have ended in the process that is there."""
        self.memory: int | None = None
        """Its resident bytes, where they are measured, and ..."""
        self.first_memory: int | None = None
        """... what they were when it was new."""
        self.pools: dict[str, PoolCounts] = {}
        """Provider → what this worker's connections had come to at its last heartbeat."""
        self.timers: list[asyncio.TimerHandle] = []

    @property
    def pid(self) -> int | None:
        """Process id, or None between two processes."""
        return self.child.pid if self.child is not None else None

    @property
    def last_death(self) -> str | None:
        """How the last one died, and whether it had been ready; None where none has."""
        return f"{self.last_reason} ({self.last_failure} failure)" if self.last_failure else None

    def begin(self, now: float) -> None:
        """A process has been spawned."""
        self.state, self.exit_reason = WorkerState.STARTING, None
        self.spawned_at = self.heard_at = now
        self.loop_delay, self.calls = 0.0, 0
        self.memory = self.first_memory = self.idle_since = None

    def measured(self, memory: int | None) -> None:
        """Its resident bytes were looked at; None where the system did not tell."""
        self.memory = memory
        if self.first_memory is None:
            self.first_memory = memory

    def take_place_of(self, old: Slot) -> None:
        """The pool counts on this one from now on, and has no need of the old one."""
        self.spare, old.spare = False, True
        self.restarts, self.recycled = old.restarts, old.recycled
        self.last_reason, self.last_failure, self.last_recycled = old.last_reason, old.last_failure, old.last_recycled
        old.restarts = old.recycled = 0
        old.last_reason, old.last_failure, old.last_recycled = "", None, None

    def describe(self) -> dict[str, Any]:
        """The row of this worker in `status`."""
        return {
            "id": self.number,
            "pid": self.pid,
            "state": self.state.value,
            "restarts": self.restarts,
            "recycled": self.recycled,
            "loop_delay_seconds": self.loop_delay,
            "last_death": self.last_reason or None,
            "last_failure": self.last_failure.value if self.last_failure else None,
            "last_recycled": self.last_recycled.value if self.last_recycled else None,
        }

    def cancel_timers(self) -> None:
        """Forget every planned step."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
