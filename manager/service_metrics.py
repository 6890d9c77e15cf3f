"""What the service measures of itself: the lock, the loop, and how long each verb waits and takes."""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from callpool.manager.core.messages import Submit
from callpool.manager.core.metrics import Histogram
from callpool.manager.core.requests import Kind, Now, Phase, Request
from callpool.manager.core.sessions import Session

if TYPE_CHECKING:
    from collections.abc import Iterable

LOOP_INTERVAL = 0.1
"""Seconds between two looks at how late the event loop wakes."""
LONGEST_WAIT = 60.0
"""Seconds; a longer wait is a clock of another kind (a container with a time of its own), not a wait."""
SAMPLE = 64
"""Live sessions that are weighed for the mean."""
TABLES = 4
"""Tables that a live session has an entry in: requests, sessions, its holder's, and the one of its deadline."""
ENTRY_BYTES = 100
"""One entry of a table, where there is no table to weigh."""


class VerbTimes:
    """One verb: from the caller's send to the supervisor's beginning, and from there to the answer."""

    __slots__ = ("handling", "wait")

    def __init__(self) -> None:
        self.wait = Histogram()
        self.handling = Histogram()


class ServiceMetrics:
    """Owner: the event loop's thread; `lock_wait` and `lock_hold` are written under the lock."""

    def __init__(self, verbs: Iterable[str]) -> None:
        self.lock_wait = Histogram()
        self.lock_hold = Histogram()
        self.loop_delay = Histogram()
        self.last_loop_delay = 0.0
        self.verbs = {name: VerbTimes() for name in verbs}
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look at the loop."""
        self._due = time.monotonic() + LOOP_INTERVAL
        self._timer = self._loop.call_later(LOOP_INTERVAL, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self.last_loop_delay = max(0.0, time.monotonic() - self._due)
        self.loop_delay.add(self.last_loop_delay)
        self.start()

    def record(self, verb: str, sent: float | None, began: float, ended: float) -> None:
        """A verb was answered. `sent` is the caller's monotonic clock, which is the machine's."""
        times = self.verbs[verb]
        times.handling.add(ended - began)
        if sent is not None and 0.0 <= began - sent <= LONGEST_WAIT:
            times.wait.add(began - sent)

    def clear(self) -> None:
        """Zero every distribution."""
        for histogram in (self.lock_wait, self.lock_hold, self.loop_delay):
            histogram.clear()
        for times in self.verbs.values():
            times.wait.clear()
            times.handling.clear()

    def as_plain(self) -> dict[str, Any]:
        """All distributions, in seconds; verbs that were never called are left out."""
        return {
            # How long the supervisor takes to create a session, or to refuse it.
            "creation_latency_seconds": self.verbs["create_session"].handling.as_plain(),
            "event_loop_delay_seconds": self.loop_delay.as_plain(),
            "verbs": {
                name: {"wait_seconds": times.wait.as_plain(), "handling_seconds": times.handling.as_plain()}
                for name, times in self.verbs.items()
                if times.handling.count
            },
        }


def weigh_sessions(live: dict[str, Request]) -> dict[str, float]:
    """Bytes that a session takes in this process, by `sys.getsizeof` of its parts: the mean of a sample, metadata apart.

    Its share of the tables that it stands in is part of it. Without a live session a specimen is weighed.
    """
    sample = list(islice((request for request in live.values() if request.session is not None), SAMPLE))
    weighed = [_weigh(request) for request in sample or [_specimen()]]
    tables = TABLES * (sys.getsizeof(live) / len(live) if live else ENTRY_BYTES)
    return {
        "sampled": len(sample),
        "bytes_per_session": sum(weighed) / len(weighed) + tables,
        "metadata_bytes_per_session": sum(request.metadata_bytes for request in sample) / len(sample)
        if sample
        else 0.0,
    }


def _specimen() -> Request:
    submit = Submit("req_" + "0" * 24, "provider", "model", b"")
    request = Request("pid_1_1", submit, "session_" + "0" * 16, 1, 30.0, Kind.HELD)
    now = Now(0.5, 0.5)
    request.phases += [(Phase.RECEIVED, now), (Phase.SESSION_ALLOCATED, now)]
    request.session = Session(request.session_id, request.request_id, "provider", "model", 2, 0.5)
    return request


def _weigh(request: Request) -> int:
    """The request, its session, their texts, its phases and times; what several of them share is not theirs."""
    times = {id(at): at for _phase, at in request.phases}.values()
    phases = sum(sys.getsizeof(entry) for entry in request.phases)
    moments = sum(sys.getsizeof(at) + 2 * sys.getsizeof(0.5) for at in times)
    objects = sum(sys.getsizeof(each) for each in (request, request.session, request.phases))
    texts = sum(
        sys.getsizeof(text) for text in (request.request_id, request.session_id, request.provider, request.model)
    )
    return objects + phases + moments + texts
