"""What one request costs the supervisor's state machine while many wait: it begins, ends, another one goes, a new one comes.

The whole core with a real ledger, without processes, pipes or sockets. The cost must not rise with the number that waits.
"""

from __future__ import annotations

import gc
import time
from collections import deque

from callpool.manager.core.catalogue import Catalogue, ProviderEntry, Timeouts
from callpool.manager.core.events import Effect, Reported, Submitted, ToWorker, WorkerUp
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.lifecycle import Lifecycle
from callpool.manager.core.limits import AccountRules, ClientRules, LedgerRules, Limits, Usage
from callpool.manager.core.machine import Core
from callpool.manager.core.messages import Dispatch, Finished, Started, Submit
from callpool.manager.core.requests import Now
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.sessions import SessionTable

SLOTS = 50
CLIENTS = 10
ENOUGH = 10**12
"""Of a limit that is counted and never reached."""
STEP = 0.001
"""Seconds between requests, in the core's own time: thousands of entries lie in each window."""

_SLOTS_ALONE = LedgerRules(accounts={"account": AccountRules(limits=Limits(concurrency=SLOTS))})
_ALL_LIMITS = LedgerRules(
    accounts={
        "account": AccountRules(
            limits=Limits(concurrency=SLOTS, requests_per_minute=ENOUGH, tokens_per_minute=ENOUGH),
            models={"model": Limits(concurrency=SLOTS)},
            organization="organization",
        )
    },
    organizations={"organization": Limits(tokens_per_day=ENOUGH)},
    clients={"default": ClientRules(requests_per_minute=ENOUGH, tokens_per_day=ENOUGH)},
    requests_per_minute=ENOUGH,
)
RULES = {"slots alone": _SLOTS_ALONE, "limits of every kind": _ALL_LIMITS}


class Machine:
    """A core with a full account and so many requests that wait for it."""

    def __init__(self, queued: int, rules: LedgerRules) -> None:
        ledger = Ledger(rules)
        entry = ProviderEntry(timeouts=Timeouts(30.0), limit=SLOTS, models={"model": Timeouts(30.0)})
        self._core = Core(
            catalogue=Catalogue(providers={"account": entry}, max_metadata_size=1_000),
            sessions=SessionTable(max_concurrent=2 * SLOTS, max_metadata_bytes=ENOUGH),
            ledger=ledger,
            scheduler=Scheduler(max_requests=queued + 1, max_bytes=ENOUGH, weight_of=ledger.weight_of),
            lifecycle=Lifecycle(max_requests=1_000),
        )
        self._queued = queued
        self._time = 1_000.0
        self._submitted = 0
        self._out: deque[tuple[int, Dispatch]] = deque()
        self._seen(self._core.apply(WorkerUp(1), self._now))
        for _ in range(SLOTS + queued):
            self._submit()

    def serve(self, requests: int) -> float:
        """Microseconds of one request."""
        core = self._core
        gc.collect()
        gc.disable()  # a full collection looks at every waiting request; what it costs is no request's
        began = time.perf_counter()
        for _ in range(requests):
            self._time += STEP
            worker, order = self._out.popleft()
            core.apply(Reported(worker, Started(order.request_id, order.attempt)), self._now)
            end = Finished(order.request_id, order.attempt, b"answer", None, Usage(100, 50))
            self._seen(core.apply(Reported(worker, end), self._now))
            self._submit()
        took = time.perf_counter() - began
        gc.enable()
        assert (len(self._out), len(core.scheduler)) == (SLOTS, self._queued)
        return took / requests * 1e6

    @property
    def _now(self) -> Now:
        return Now(self._time, self._time)

    def _submit(self) -> None:
        self._submitted += 1
        submit = Submit(f"r{self._submitted}", "account", "model", b"{}", acknowledge=False, tokens=Usage(100, 100))
        client = f"client{self._submitted % CLIENTS}"
        self._seen(self._core.apply(Submitted(client, submit, f"session{self._submitted}", client), self._now))

    def _seen(self, effects: list[Effect]) -> None:
        self._out.extend((each.worker, each.order) for each in effects if type(each) is ToWorker)  # type: ignore[misc]
