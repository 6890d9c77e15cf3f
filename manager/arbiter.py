"""The life of workers: spawn, watch, replace.

Per worker slot:

    STARTING ──Ready──► UP ──pipe ended and process gone──► DOWN ──back-off──► STARTING
        └──────────────────► (the same way down, also when heartbeats stop: dump, then kill)

A death is known when both have happened: the process has exited and has been reaped, and its pipe has been read to the
end. Only then does the service hear of it, so that no report of the dead is lost. Owner: the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import socket
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from callpool.manager import wire
from callpool.manager.children import Child, spawn_with_pipe
from callpool.manager.core.messages import Heartbeat, Ready, Retire
from callpool.manager.core.pools import PoolCounts, total
from callpool.manager.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from callpool.manager.core.messages import Finished, Piece, Started, WorkerOrder

log = logging.getLogger(__name__)

MISSED_HEARTBEATS = 3
START_DEADLINE = 30.0
"""Seconds for a spawned worker to report that it is ready."""
DUMP_GRACE = 1.0
"""Seconds between SIGABRT (which prints where the worker hangs) and SIGKILL."""
PIPE_GRACE = 0.5
"""Seconds after an exit for the pipe to end by itself; a descendant of the worker may hold it open."""
BACKOFF_FIRST = 0.1
BACKOFF_LIMIT = 30.0
HEALTHY_AFTER = 60.0
"""Seconds up after which a slot's failures are forgotten."""
OWN_GAP = 2.0
"""Seconds late of our own check from which we, not the workers, were asleep: their clocks start again."""


class WorkerState(StrEnum):
    """Where a worker slot is."""

    STARTING = "starting"
    UP = "up"
    STUCK = "stuck"
    DOWN = "down"
    STOPPED = "stopped"


class WorkerEvents(Protocol):
    """What the arbiter tells the service."""

    def worker_up(self, worker: int) -> None:
        """This worker can make calls."""

    def worker_down(self, worker: int, reason: str) -> None:
        """This worker has ended, and its pipe was read to the end."""

    def handle_reports(self, worker: int, reports: Iterable[Started | Piece | Finished]) -> None:
        """What a worker says of its calls."""


class Slot:
    """One worker's place: the process that fills it now, and what happened to those before."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = WorkerState.DOWN
        self.child: Child | None = None
        self.exit_reason: str | None = None
        """How the child has exited; None while it lives. The worker is gone only when its pipe is empty as well."""
        self.link: Link | None = None
        self.restarts = 0
        self.failures = 0
        """Deaths in a row without `HEALTHY_AFTER` seconds up between them: decides the back-off."""
        self.spawned_at = 0.0
        self.heard_at = 0.0
        self.loop_delay = 0.0
        self.pools: dict[str, PoolCounts] = {}
        """Provider → what this worker's connections had come to at its last heartbeat."""
        self.last_reason = ""
        self.timers: list[asyncio.TimerHandle] = []

    @property
    def pid(self) -> int | None:
        """Process id, or None between two processes."""
        return self.child.pid if self.child is not None else None

    def describe(self) -> dict[str, Any]:
        """The row of this worker in `status`."""
        return {
            "id": self.number,
            "pid": self.pid,
            "state": self.state.value,
            "restarts": self.restarts,
            "loop_delay_seconds": self.loop_delay,
            "last_death": self.last_reason or None,
        }

    def cancel_timers(self) -> None:
        """Forget every planned step."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()


class Arbiter:
    """Keeps `count` workers running."""

    def __init__(
        self,
        events: WorkerEvents,
        *,
        count: int,
        target: Callable[..., None],
        arguments: Callable[[int, socket.socket], Sequence[Any]],
        heartbeat_interval: float,
        greet: Callable[[int], Iterable[WorkerOrder]] = lambda _worker: (),
    ) -> None:
        """`target(*arguments(worker, pipe))` runs in each worker; `greet(worker)` are the orders that it gets first."""
        self.slots = [Slot(number) for number in range(count)]
        self._events = events
        self._target = target
        self._arguments = arguments
        self._interval = heartbeat_interval
        self._greet = greet
        self._loop = asyncio.get_running_loop()
        self._past_pools: dict[str, PoolCounts] = {}
        """What the connections of workers that are gone had come to."""
        self._watch: asyncio.TimerHandle | None = None
        self._watch_due = 0.0
        self._stopping = False
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Spawn every worker and begin to watch."""
        for slot in self.slots:
            self._spawn(slot)
        self._plan_watch()

    def send(self, worker: int, order: WorkerOrder) -> None:
        """Send an order; dropped when that worker is gone (its requests are about to be lost or ended anyway)."""
        link = self.slots[worker].link
        if link is not None:
            link.send(order)

    def flush(self, worker: int) -> None:
        """Send a worker what this turn of the loop has brought so far."""
        link = self.slots[worker].link
        if link is not None:
            link.flush()

    def broadcast(self, order: WorkerOrder) -> None:
        """Send an order to every worker that is there; `greet` tells those that come later."""
        for slot in self.slots:
            if slot.link is not None:
                slot.link.send(order)

    def describe(self) -> list[dict[str, Any]]:
        """The rows of `status`."""
        return [slot.describe() for slot in self.slots]

    def describe_pools(self) -> dict[str, dict[str, Any]]:
        """Provider → what the connections to it have come to, with those of each worker that is there under `workers`."""
        names = dict.fromkeys([*self._past_pools, *(name for slot in self.slots for name in slot.pools)])
        return {name: self._describe_pool(name) for name in names}

    def _describe_pool(self, provider: str) -> dict[str, Any]:
        now = {slot.number: slot.pools[provider] for slot in self.slots if provider in slot.pools}
        everything = total([self._past_pools.get(provider, PoolCounts()), *now.values()])
        return {
            **everything.as_plain(),
            "workers": [{"id": number, **counts.as_plain()} for number, counts in now.items()],
        }

    async def stop(self, *, grace: float) -> None:
        """Let every worker go: retire it, and kill what is left after `grace` seconds. Returns when all have been reaped."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
        for slot in self.slots:
            slot.cancel_timers()
            if slot.link is not None:
                slot.link.send(Retire())
            if slot.child is None:
                slot.state = WorkerState.STOPPED
            else:
                slot.timers.append(self._loop.call_later(grace, slot.child.kill))
        self._check_all_ended()
        await self._ended.wait()

    # Spawning.

    def _spawn(self, slot: Slot) -> None:
        try:
            ours, slot.child = spawn_with_pipe(
                self._target,
                lambda pipe: self._arguments(slot.number, pipe),
                name=f"callpool-worker-{slot.number}",
                on_exit=lambda reason: self._on_exit(slot, reason),
            )
        except OSError as error:
            log.error("cannot spawn worker %s: %s", slot.number, error)  # noqa: TRY400 - the system's fault, not the code's
            self._plan_respawn(slot, f"could not be spawned: {error}")
            return
        slot.state, slot.exit_reason = WorkerState.STARTING, None
        slot.spawned_at = slot.heard_at = self._loop.time()
        slot.link = Link(
            ours,
            wire.worker_reports,
            on_messages=lambda reports: self._on_reports(slot, reports),
            on_end=lambda _why: self._on_pipe_end(slot),
        )
        for order in self._greet(slot.number):
            slot.link.send(order)

    def _on_reports(self, slot: Slot, reports: list[Any]) -> None:
        slot.heard_at = self._loop.time()
        calls: list[Started | Piece | Finished] = []
        for report in reports:
            if type(report) is Heartbeat:
                slot.loop_delay, slot.pools = report.delay, report.pools
            elif type(report) is Ready:
                slot.state = WorkerState.UP
                self._events.worker_up(slot.number)
            else:
                calls.append(report)
        if calls:
            self._events.handle_reports(slot.number, calls)

    # Watching.

    def _plan_watch(self) -> None:
        self._watch_due = self._loop.time() + self._interval
        self._watch = self._loop.call_later(self._interval, self._check_heartbeats)

    def _check_heartbeats(self) -> None:
        now = self._loop.time()
        if now - self._watch_due > OWN_GAP:
            log.warning("the supervisor was not running for %.1f s: heartbeats are counted anew", now - self._watch_due)
            for slot in self.slots:
                slot.heard_at = now
        for slot in self.slots:
            silent = now - slot.heard_at
            if slot.state is WorkerState.UP and silent > MISSED_HEARTBEATS * self._interval:
                self._end_stuck(slot, f"did not give a heartbeat for {silent:.1f} s")
            elif slot.state is WorkerState.STARTING and silent > START_DEADLINE:
                self._end_stuck(slot, f"was not ready after {silent:.1f} s")
        self._plan_watch()

    def _end_stuck(self, slot: Slot, reason: str) -> None:
        """Have it print where it hangs (faulthandler), then kill it. Stopped processes only know the second."""
        log.error("worker %s (pid %s) %s: ending it", slot.number, slot.pid, reason)
        slot.state = WorkerState.STUCK
        slot.last_reason = reason
        if slot.child is not None:
            slot.child.send_signal(signal.SIGABRT)
            slot.timers.append(self._loop.call_later(DUMP_GRACE, slot.child.kill))

    # Ends.

    def _on_pipe_end(self, slot: Slot) -> None:
        slot.link = None
        if slot.child is not None and slot.exit_reason is None and not self._stopping:
            # It closed its pipe and may live on: it can do nothing more for us.
            slot.timers.append(self._loop.call_later(DUMP_GRACE, slot.child.kill))
        self._check_ended(slot)

    def _on_exit(self, slot: Slot, reason: str) -> None:
        slot.exit_reason = slot.last_reason if slot.state is WorkerState.STUCK else reason
        if slot.link is not None:
            slot.link.read_rest()
        if slot.link is not None:
            slot.timers.append(self._loop.call_later(PIPE_GRACE, slot.link.close_as_ended))
        self._check_ended(slot)

    def _check_ended(self, slot: Slot) -> None:
        """Once it has exited and its pipe is empty, the worker is gone."""
        reason = slot.exit_reason
        if slot.child is None or reason is None or slot.link is not None:
            return
        slot.cancel_timers()
        slot.child = None
        for provider, counts in slot.pools.items():
            past = self._past_pools.get(provider, PoolCounts())
            self._past_pools[provider] = total([past, counts.ended()])
        slot.pools = {}
        self._events.worker_down(slot.number, reason)
        if self._stopping:
            slot.state = WorkerState.STOPPED
            self._check_all_ended()
            return
        log.warning("worker %s %s", slot.number, reason)
        self._plan_respawn(slot, reason)

    def _plan_respawn(self, slot: Slot, reason: str) -> None:
        up_for = self._loop.time() - slot.spawned_at
        slot.failures = 1 if up_for >= HEALTHY_AFTER else slot.failures + 1
        slot.restarts += 1
        slot.state = WorkerState.DOWN
        slot.last_reason = reason
        ceiling = min(BACKOFF_LIMIT, BACKOFF_FIRST * 2 ** (slot.failures - 1))
        delay = random.uniform(0.0, ceiling)  # noqa: S311 - jitter, not a secret
        slot.timers.append(self._loop.call_later(delay, self._respawn, slot))

    def _respawn(self, slot: Slot) -> None:
        slot.timers.clear()
        if not self._stopping:
            self._spawn(slot)

    def _check_all_ended(self) -> None:
        if all(slot.child is None for slot in self.slots):
            self._ended.set()
