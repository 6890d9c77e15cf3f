"""The life of workers: spawn, watch, replace, recycle.

Per worker slot:

    STARTING ──Ready──► UP ──pipe ended and process gone──► DOWN ──`core.restarts` says when──► STARTING
        └──────────────────► (the same way down, also when heartbeats stop: dump, then kill)

A death is known when both have happened: the process has exited and has been reaped, and its pipe has been read to the
end. Only then does the service hear of it, so that no report of the dead is lost.

Where workers are recycled there is one slot more, the spare:

    old: UP ─────────────────────────► RETIRING ──calls end, exits──► SPARE
    new: SPARE ──► STARTING ──Ready──► UP

Owner: the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import socket
from typing import TYPE_CHECKING, Any

from callpool.manager import wire
from callpool.manager.children import spawn_with_pipe
from callpool.manager.core.messages import Continues, Finished, Heartbeat, Ready, Retire
from callpool.manager.core.pools import PoolCounts, total
from callpool.manager.core.restarts import Failure, Restarts
from callpool.manager.link import Link
from callpool.manager.recycling import (
    RECYCLE_AGAIN,
    RECYCLE_EVERY,
    RETIRE_AGAIN,
    RETIRE_GRACE,
    Limits,
    Why,
    choose,
    resident_bytes,
)
from callpool.manager.slots import Slot, WorkerEvents, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from callpool.manager.children import Child
    from callpool.manager.core.messages import Piece, Started, WorkerOrder

log = logging.getLogger(__name__)

MISSED_HEARTBEATS = 3
START_DEADLINE = 30.0
"""Seconds for a spawned worker to report that it is ready."""
DUMP_GRACE = 1.0
"""Seconds between SIGABRT (which prints where the worker hangs) and SIGKILL."""
PIPE_GRACE = 0.5
"""Seconds after an exit for the pipe to end by itself; a descendant of the worker may hold it open."""
TIMER_LATE = 0.005
"""Seconds by which a look comes later than what it is for: timers are rounded, and one that is early would look in vain."""
OWN_GAP = 2.0
"""Seconds late of our own check from which we, not the workers, were asleep: their clocks start again."""


_CALLS_ENDED = frozenset({Finished, Continues})
_NO_LIMITS = Limits()


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
        limits: Limits = _NO_LIMITS,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`target(*arguments(worker, pipe))` runs in each worker; `greet(worker)` are the orders that it gets first.

        `limits` say when workers are recycled. `draw` gives numbers from 0 to below 1, for the jitter of restarts.
        """
        self.slots = [Slot(number, spare=number >= count) for number in range(count + limits.any)]
        self.restarts = Restarts(draw)
        self.recycled = dict.fromkeys(Why, 0)
        """How often workers were recycled, by reason."""
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
        self._next_start: asyncio.TimerHandle | None = None
        self._limits = limits
        self._recycling: tuple[Slot, Slot, Why] | None = None
        """(the old worker, the new one, why) until the old one has gone."""
        self._recycle_at = 0.0
        """When the next recycling may begin."""
        self._was_ready = False
        self._said_trouble = False
        self._stopping = False
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Spawn every worker and begin to watch."""
        for slot in self.slots:
            if not slot.spare:
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
        """The rows of `status`: each worker that is there or will be, and what retires or takes over."""
        return [slot.describe() for slot in self.slots if slot.state is not WorkerState.SPARE]

    def describe_supervision(self) -> dict[str, Any]:
        """What `status` and the metrics say of restarts and recyclings, over all workers."""
        condition = self.restarts.condition(self._loop.time())
        return {
            "state": "degraded" if condition.is_in_trouble else "steady",
            "cause": condition.cause or None,
            "deaths_last_minute": condition.deaths,
            "boot_failures": self.restarts.failed[Failure.BOOT],
            "run_failures": self.restarts.failed[Failure.RUN],
            "recycled": {why.value: count for why, count in self.recycled.items()},
        }

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
        for timer in (self._watch, self._next_start):
            if timer is not None:
                timer.cancel()
        for slot in self.slots:
            slot.cancel_timers()
            if slot.link is not None:
                slot.link.send(Retire())
            if slot.child is None:
                slot.state = WorkerState.SPARE if slot.spare else WorkerState.STOPPED
            else:
                slot.timers.append(self._loop.call_later(grace, slot.child.kill))
        self._check_all_ended()
        await self._ended.wait()

    # Spawning.

    def _spawn(self, slot: Slot) -> None:
        self.restarts.started(slot.number, self._loop.time())
        try:
            ours, slot.child = spawn_with_pipe(
                self._target,
                lambda pipe: self._arguments(slot.number, pipe),
                name=f"callpool-worker-{slot.number}",
                on_exit=lambda reason: self._on_exit(slot, reason),
            )
        except OSError as error:
            log.error("cannot spawn worker %s: %s", slot.number, error)  # noqa: TRY400 - the system's fault, not the code's
            self._died(slot, f"could not be spawned: {error}")
            return
        slot.begin(self._loop.time())
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
                self._on_ready(slot)
            else:
                slot.calls += type(report) in _CALLS_ENDED
                calls.append(report)
        if calls:
            self._events.handle_reports(slot.number, calls)

    def _on_ready(self, slot: Slot) -> None:
        if slot.state is not WorkerState.STARTING:
            return  # it was too late, and is being ended
        slot.state = WorkerState.UP
        self._was_ready = True
        self.restarts.ready(slot.number, self._loop.time())
        self._events.worker_up(slot.number)
        if self._recycling is not None and self._recycling[1] is slot and self._recycling[0].state is WorkerState.UP:
            self._take_over(*self._recycling)  # else the old one is being ended, and its death comes to the same
        self._look_for_starts()  # a proof may have begun

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
            beats = slot.state is WorkerState.UP or (slot.state is WorkerState.RETIRING and not self._leaves(slot, now))
            if beats and silent > MISSED_HEARTBEATS * self._interval:
                self._end_stuck(slot, f"did not give a heartbeat for {silent:.1f} s")
            elif slot.state is WorkerState.STARTING and silent > START_DEADLINE:
                self._end_stuck(slot, f"was not ready after {silent:.1f} s")
        if self._limits.any and not self._stopping:
            self._look_for_recycling(now)
        self._plan_watch()

    def _leaves(self, slot: Slot, now: float) -> bool:
        """Whether the last call of one that retires has ended: it closes its connections, and beats no more."""
        if not self._events.worker_is_idle(slot.number):
            return False
        if slot.idle_since is None:
            slot.idle_since = now
        elif now - slot.idle_since > RETIRE_GRACE and slot.child is not None:
            log.warning("worker %s (pid %s) has no call and does not go: killed", slot.number, slot.pid)
            slot.child.kill()
        return True

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
        planned = slot.state is WorkerState.RETIRING and self._events.worker_is_idle(slot.number)
        self._events.worker_down(slot.number, reason)
        if self._stopping:
            slot.state = WorkerState.STOPPED
            self._check_all_ended()
        elif planned:
            self._recycled(slot)
        else:
            self._died(slot, reason)

    def _died(self, slot: Slot, reason: str) -> None:
        """What was not planned: the pool has a worker less until the next start, but for what was to go anyway."""
        now = self._loop.time()
        slot.last_reason = reason
        slot.last_failure = failure = self.restarts.died(slot.number, reason, now)
        slot.state = WorkerState.DOWN
        slot.restarts += not slot.spare
        if self._recycling is not None:
            self._call_off(slot, *self._recycling)
        if slot.spare:
            self.restarts.left(slot.number)
            slot.state = WorkerState.SPARE
        wait = self.restarts.starts_in(slot.number, now)
        follows = "its place is taken" if wait is None else f"the next start in {wait:.1f} s at the earliest"
        log.warning("worker %s %s (%s failure): %s", slot.number, reason, failure, follows)
        self._say_if_in_trouble(now)
        if not self._was_ready and self.restarts.is_in_trouble and not self.restarts.any_lives:
            self._events.start_failed(self.restarts.condition(now).cause)
        self._look_for_starts()

    # Starting those who wait.

    def _look_for_starts(self) -> None:
        """Start what may start now, and look again when more may."""
        if self._stopping:
            return
        now = self._loop.time()
        while (number := self.restarts.next_start(now)) is not None:
            self._spawn(self.slots[number])
        self._say_if_in_trouble(now)
        if self._next_start is not None:
            self._next_start.cancel()
        due = self.restarts.next_due(now)
        wait = None if due is None else max(0.0, due - now) + TIMER_LATE
        self._next_start = None if wait is None else self._loop.call_later(wait, self._look_for_starts)

    def _say_if_in_trouble(self, now: float) -> None:
        condition = self.restarts.condition(now)
        if condition.is_in_trouble and not self._said_trouble:
            log.error(
                "workers die too fast: %s in the last minute, the last one: %s", condition.deaths, condition.cause
            )
        elif self._said_trouble and not condition.is_in_trouble:
            log.info("workers stay up again")
        self._said_trouble = condition.is_in_trouble

    # Recycling.

    def _look_for_recycling(self, now: float) -> None:
        """At the pace of heartbeats: measure, and begin to replace the worker that is furthest beyond its limits."""
        serving = [slot for slot in self.slots if not slot.spare]
        if self._limits.memory:
            for slot in serving:
                if slot.state is WorkerState.UP and slot.pid is not None:
                    slot.measured(resident_bytes(slot.pid))
        spare = next((slot for slot in self.slots if slot.state is WorkerState.SPARE), None)
        all_up = all(slot.state is WorkerState.UP for slot in serving)
        if spare is None or not all_up or now < self._recycle_at:
            return
        if self.restarts.is_in_trouble or self._events.is_draining:
            return
        chosen = choose(serving, self._limits)
        if chosen is None:
            return
        old, why = serving[chosen[0]], chosen[1]
        self._recycling = old, spare, why
        self._recycle_at = now + RECYCLE_EVERY
        self._spawn(spare)

    def _take_over(self, old: Slot, new: Slot, why: Why) -> None:
        """The new worker is ready, and the old one may go: its calls end, new ones go elsewhere."""
        log.info("worker %s (pid %s) has had enough %s: worker %s takes over", old.number, old.pid, why, new.number)
        new.take_place_of(old)
        old.state = WorkerState.RETIRING
        self._events.worker_retiring(old.number)
        self._tell_to_retire(old, old.child)

    def _tell_to_retire(self, slot: Slot, child: Child | None) -> None:
        """Send it behind all calls that it was given: some may still wait for the journal's disk."""
        if slot.child is not child or slot.state is not WorkerState.RETIRING:
            return  # it has ended meanwhile
        if self._events.may_retire(slot.number):
            self.send(slot.number, Retire())
        else:
            slot.timers.append(self._loop.call_later(RETIRE_AGAIN, self._tell_to_retire, slot, child))

    def _recycled(self, slot: Slot) -> None:
        """One that retired has gone, and was replaced before."""
        if self._recycling is not None:
            _old, new, why = self._recycling
            self.recycled[why] += 1
            new.recycled += 1
            new.last_recycled = why
        self._recycling = None
        self.restarts.left(slot.number)
        slot.state = WorkerState.SPARE

    def _call_off(self, dead: Slot, old: Slot, new: Slot, _why: Why) -> None:
        """One of the two has died. If it was the new one, the old one goes on; if it was the old one, the new one is for it."""
        if dead is new and new.spare:
            self._recycling = None
            self._recycle_at = self._loop.time() + RECYCLE_AGAIN
        elif dead is old:
            self._recycling = None
            if not old.spare:
                new.take_place_of(old)

    def _check_all_ended(self) -> None:
        if all(slot.child is None for slot in self.slots):
            self._ended.set()
