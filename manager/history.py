"""What became of sessions, kept over restarts: written a second late, in batches, and never waited for.

A crash loses the last second of it. Sessions that had not ended when a run did read as `interrupted` in the next one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Final, Protocol

from callpool.manager.clocks import WallClock
from callpool.manager.store import Past

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from callpool.manager.core.machine import Core
    from callpool.manager.core.requests import Now
    from callpool.manager.core.sessions import Session
    from callpool.manager.journal import Journal
    from callpool.manager.store import Store

log = logging.getLogger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two batches."""
SWEEP_INTERVAL: Final = 60.0
"""Seconds between two looks for what is past its time, where the last one found less than a lot."""
MOST_SESSIONS: Final = 500_000
"""Sessions that are kept at most, whatever their age: about 330 bytes each, so 165 MB of the journal's `max_bytes`."""
DAY: Final = 86_400.0


class Looker(Protocol):
    """What it needs of the service."""

    def look(self, read: Callable[[Core, Now], Any]) -> Any:
        """Read the core under the lock."""


class History:
    """Takes the news of sessions to the journal. Owner: the event loop's thread."""

    def __init__(self, service: Looker, journal: Journal, *, days: float) -> None:
        """`days`: for how long what has ended is kept."""
        self._service = service
        self._journal = journal
        self._seconds = days * DAY
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._swept_at = 0.0
        self._clock = WallClock(time.time(), self._loop.time())
        self.failures = 0
        """Batches that could not be written: their sessions are not in the history."""

    def start(self) -> None:
        """Begin to write."""
        self._timer = self._loop.call_later(INTERVAL, self._tick)

    def stop(self) -> None:
        """Write what there is; the journal is about to be closed."""
        if self._timer is not None:
            self._timer.cancel()
        self._write()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(INTERVAL, self._tick)
        if not self._busy and (self._journal.fault is None or self._journal.is_full):
            self._write()

    def _write(self) -> None:
        rows, totals, wall = self._service.look(_news)
        sweeps = self._loop.time() - self._swept_at >= SWEEP_INTERVAL
        if not rows and not sweeps:
            return
        self._busy = True
        before = wall - self._seconds if self._clock.is_steady(wall, self._loop.time()) else None
        if sweeps:
            self._swept_at = self._loop.time()

        def write(store: Store) -> int:
            swept = store.sweep_history(before, MOST_SESSIONS) if sweeps else 0  # first, for it makes room
            if rows:
                store.write_history(rows, totals)
            return swept

        self._journal.ask(write).add_done_callback(self._written)

    def _written(self, done: asyncio.Future[int]) -> None:
        self._busy = False
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            self.failures += 1
            log.warning("the history of sessions could not be written: %s", error)
        elif done.result():
            self._swept_at = -math.inf  # there may be more of them: go on with the next batch


def _news(core: Core, now: Now) -> tuple[list[Past], dict[str, int], float]:
    rows = [_past(session, now) for session in core.sessions.take_news()]
    return rows, core.sessions.lifetime_totals(), now.wall


def _past(session: Session, now: Now) -> Past:
    def wall(at: float | None) -> float | None:
        return None if at is None else now.wall - (now.monotonic - at)

    return Past(
        session.session_id,
        session.request_id,
        session.provider,
        session.model,
        "active" if session.outcome is None else session.outcome.value,
        now.wall - (now.monotonic - session.created_at),
        wall(session.started_at),
        wall(session.ended_at),
    )
