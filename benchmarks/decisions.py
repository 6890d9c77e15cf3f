"""What one scheduling decision costs while many wait: a request comes, another one goes.

First the queue alone: requests of a number of clients wait, and for each one that goes another one comes. Then the whole core with
its ledger (`core_step`). The cost must not rise with the number that waits.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Literal

from callpool.manager.core.messages import Submit
from callpool.manager.core.requests import Request
from callpool.manager.core.retry import Target
from callpool.manager.core.scheduler import Scheduler
from core_step import CLIENTS as CLIENTS_OF_CORE
from core_step import RULES, Machine
from measuring import Result, Sizes, ratio_name, take_turns

QUEUED = (100, 1_000, 10_000, 100_000)
CLIENTS = (1, 10, 1_000)
MOST_RISE = 2.0
"""What a thousand times as many may cost at most: O(log n) is allowed, and what no longer fits into the caches."""


class Open:
    """A gate that lets everything through, so that the choice alone is measured."""

    def is_open(self, _account: str) -> bool:
        return True

    def is_shut(self, _target: Target) -> bool:
        return False

    def admits(self, _request: Request) -> Literal["go"]:
        return "go"

    def held_until(self) -> float:
        return 0.0


class Queue:
    """A scheduler with so many requests of so many clients, and the next ones to come."""

    def __init__(self, queued: int, clients: int) -> None:
        self.scheduler = Scheduler(max_requests=queued + 1, max_bytes=1_000_000_000)
        self._names = [f"client{number}" for number in range(clients)]
        self._number = 0
        self._queued = queued
        for request in self.requests(queued):
            self.scheduler.push(request)

    def requests(self, count: int) -> list[Request]:
        """The next ones, of each client in turn."""
        made = []
        for _ in range(count):
            self._number += 1
            submit = Submit(f"r{self._number}", "account", "model", b"{}")
            name = self._names[self._number % len(self._names)]
            made.append(Request("connection", submit, "session", self._number, 30.0, name=name))
        return made

    def decide(self, decisions: int) -> float:
        """Microseconds of one decision: `push` and `next`."""
        coming, gate, scheduler = self.requests(decisions), Open(), self.scheduler
        gone = 0
        gc.collect()
        gc.disable()  # a full collection looks at every waiting request; what it costs is no decision's
        began = time.perf_counter()
        for request in coming:
            scheduler.push(request)
            if scheduler.next(gate, 0.0) is not None:
                gone += 1
        took = time.perf_counter() - began
        gc.enable()
        assert gone == decisions
        assert len(scheduler) == self._queued
        return took / decisions * 1e6


def run(sizes: Sizes) -> list[Result]:
    """Push and next, for each number of clients and of requests that wait; then a request's whole way through the core."""
    return [
        *(_decisions(clients, sizes) for clients in CLIENTS),
        *(_requests(limits, sizes) for limits in RULES),
    ]


def _decisions(clients: int, sizes: Sizes) -> Result:
    decisions = 2 * sizes.noops
    return _measure(
        sizes,
        lambda queued: Queue(queued, clients).decide,
        decisions,
        name=f"scheduling decision, {clients:,} clients",
        what=f"push and next, on one account, while the requests of {clients:,} clients wait",
        counted="decisions",
    )


def _requests(limits: str, sizes: Sizes) -> Result:
    return _measure(
        sizes,
        lambda queued: Machine(queued, RULES[limits]).serve,
        sizes.noops,
        name=f"a request through the core, {limits}",
        what=f"start, end, the next one's dispatch and a submit, while the requests of {CLIENTS_OF_CORE} clients wait",
        counted="requests",
    )


def _measure(
    sizes: Sizes, make: Callable[[int], Callable[[int], float]], count: int, *, name: str, what: str, counted: str
) -> Result:
    sizes_of_queues = [queued for queued in QUEUED if queued <= 10 * sizes.queued]
    measured = {_name(queued): make(queued) for queued in sizes_of_queues}
    for run_once in measured.values():
        run_once(count)  # heaps and tables reach the size that they keep
    contenders = {name: (lambda run_once=run_once: run_once(count)) for name, run_once in measured.items()}
    result = Result(
        name=name,
        what=what,
        unit="µs",
        better="less",
        figures=take_turns(contenders, sizes.rounds),
        counts={counted: count * sizes.rounds * len(measured)},
    )
    least, most = _name(sizes_of_queues[0]), _name(sizes_of_queues[-1])
    return result.compare(most, least).aim(ratio_name(most, least), at_most=MOST_RISE)


def _name(queued: int) -> str:
    return f"{queued:,} queued"
