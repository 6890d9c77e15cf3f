"""The simulated shell: a core, its pipes to fake workers, and a clock that moves when told."""

from __future__ import annotations

import random
import sys
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from callpool.manager.core.events import Effect, Event, Reported, Tick, ToWorker, WorkerDown
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.machine import Core
from callpool.manager.core.requests import Now
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.sessions import SessionTable

from .build import make_core
from .sim_audit import audit
from .sim_witness import Witness

if TYPE_CHECKING:
    from .sim_worker import FakeWorker

MAX_METADATA = 20
MAX_PAYLOAD = 60
KEPT_EVENTS = 30
"""Last events that a failure shows."""


class Parts(NamedTuple):
    """The classes that a simulated core is made of, so that a test can plant a fault in one."""

    core: type[Core] = Core
    sessions: type[SessionTable] = SessionTable
    scheduler: type[Scheduler] = Scheduler
    ledger: type[Ledger] = Ledger


class Shell:
    """What surrounds the core: it performs effects as the real shell does, and has every step judged."""

    def __init__(self, seed: int, parts: Parts, *, trace: bool) -> None:
        self.chance = chance = random.Random(seed)
        accounts = {name: 1 + int(chance.random() * 3) for name in "abc"[: 1 + int(chance.random() * 3)]}
        pool, max_requests, max_bytes = 1 + int(chance.random() * 4), 1 + int(chance.random() * 8), 120
        self.core = make_core(
            pool=pool,
            accounts=accounts,
            max_requests=max_requests,
            max_bytes=max_bytes,
            max_metadata=MAX_METADATA,
            max_payload=MAX_PAYLOAD,
            **parts._asdict(),
        )
        self.witness = Witness(
            pool=pool, accounts=accounts, max_requests=max_requests, max_bytes=max_bytes, max_metadata=MAX_METADATA
        )
        self.accounts = list(accounts)
        self.workers: dict[int, FakeWorker] = {}
        self.now = 1000.0
        self.last: deque[tuple[float, Event, list[Effect]]] = deque(maxlen=KEPT_EVENTS)
        self._trace = trace

    def apply(self, event: Event, *, payload: bytes | None = None, refusal: str | None = None) -> None:
        """What the shell does with an event: apply it, perform the effects. And what a test adds: judge both."""
        effects: list[Effect] = []
        self.last.append((self.now, event, effects))
        effects += self.core.apply(event, Now(self.now, self.now))
        if self._trace:
            sys.stdout.write(line(self.now, event, effects) + "\n")
        self.witness.observe(event, effects, self.now, payload=payload, refusal=refusal)
        audit(self.core, self.witness)
        for effect in effects:
            if type(effect) is ToWorker and self.workers[effect.worker].alive:  # else its pipe is broken
                self.workers[effect.worker].inbox.append(effect.order)

    def read(self, worker: FakeWorker) -> None:
        """Read one report of a worker; at the end of the pipe of a dead one, its end."""
        if worker.outbox:
            report, payload = worker.outbox.popleft()
            self.apply(Reported(worker.number, report), payload=payload)
        elif not worker.alive:
            self.apply(WorkerDown(worker.number, "was killed"))
            del self.workers[worker.number]

    def work(self, worker: FakeWorker) -> None:
        """Let a worker make a step; money that it spends is noted."""
        payload = worker.work(self.chance)
        if payload is not None:
            self.witness.spend(payload)

    def pass_until(self, due: float) -> None:
        """Wait for a deadline, wake up a little late, and tick."""
        self.now = max(self.now, due + (0.2 * self.chance.random() if self.chance.random() < 0.5 else 0.0))
        self.apply(Tick())


def line(now: float, event: Event, effects: list[Effect]) -> str:
    """One event and its effects, for people."""
    return "\n".join([f"{now:9.2f} {event}", *(f"          → {effect}" for effect in effects)])
