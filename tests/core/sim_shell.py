"""The simulated shell: a core, its pipes to fake workers, and a clock that moves when told."""

from __future__ import annotations

import random
import sys
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from callpool.manager.core.events import Effect, Event, Reported, Tick, ToWorker, WorkerDown
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.limits import Usage
from callpool.manager.core.machine import Core
from callpool.manager.core.requests import Now
from callpool.manager.core.retry import RetryRules
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.sessions import SessionTable

from .build import make_core
from .sim_audit import audit
from .sim_model import Violation
from .sim_provider import Providers
from .sim_witness import Witness
from .sim_world import make_world

if TYPE_CHECKING:
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.messages import Dispatch

    from .sim_provider import Bill
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
        self.world = world = make_world(chance)
        self.core = make_core(
            pool=world.pool,
            accounts=world.concurrency,
            max_requests=world.max_requests,
            max_bytes=world.max_bytes,
            max_metadata=MAX_METADATA,
            max_payload=MAX_PAYLOAD,
            models=world.models,
            retry_rules=RetryRules(attempts=world.attempts, first_wait=0.5),
            rules=world.rules,
            **parts._asdict(),
        )
        self.core.scheduler.ageing = world.ageing
        self.witness = Witness(world, self.core, max_metadata=MAX_METADATA)
        self.providers = Providers(world, chance)
        self.accounts = list(world.concurrency)
        self.workers: dict[int, FakeWorker] = {}
        self.bills: dict[bytes, Bill] = {}
        """payload → what a call with it really takes."""
        self.now = 1000.0
        self.trouble = 0.0
        """How often a call meets what only a person can mend."""
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
        audit(self.core, self.witness, self.now)
        for effect in effects:
            if type(effect) is ToWorker and self.workers[effect.worker].alive:  # else its pipe is broken
                self.workers[effect.worker].inbox.append(effect.order)
        self.providers.let_go_of_others({each.attempt for each in self.witness.live.values() if each.worker}, self.now)

    # What workers meet outside.

    def bill(self, payload: bytes) -> Bill:
        """What a call with this payload takes."""
        return self.bills[payload]

    def reckoned(self, payload: bytes) -> Usage | None:
        """What its worker says of it: the truth, or nothing; in a world that is not honest it may be wrong."""
        draw, bill = self.chance.random(), self.bills[payload]
        if draw < 0.5:
            return None
        if self.world.honest or draw < 0.8:
            return Usage(bill.prompt, bill.most)
        return Usage(1 + int(self.chance.random() * 80), int(self.chance.random() * 60))

    def arrives(self, order: Dispatch) -> Fault | None:
        """A call comes to its provider. One that the core has given up on is nobody's any more: it is not seen."""
        if not self._is_owned(order):
            return None
        late = self.providers.catch_up(self.now)
        bill = self.bills[order.payload]
        fault = self.providers.arrive(order.attempt, order.provider, order.model, bill, self.now)
        for refusal in (late, fault):
            if refusal is not None and self.world.honest:
                raise Violation("provider_refused", f"{order} came to {order.provider}: {refusal.message}")
        return fault

    def arrives_late(self, order: Dispatch) -> None:
        """Its worker ended it, or died, as it was on its way."""
        if self._is_owned(order):
            bill = self.bills[order.payload]
            self.providers.arrive_late(order.attempt, order.provider, order.model, bill, self.now)

    def _is_owned(self, order: Dispatch) -> bool:
        found = self.witness.live.get(order.request_id)
        return found is not None and found.worker is not None and found.attempt == order.attempt

    def ends(self, order: Dispatch, *, by_us: bool, forgiven: bool) -> None:
        """A provider is done with a call."""
        if forgiven:
            self.providers.forgive(order.attempt, order.provider)
        self.providers.leave(order.attempt, self.now, ended_by_us=by_us)

    # Pipes and time.

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
        payload = worker.work(trouble=self.trouble)
        if payload is not None:
            self.witness.spend(payload)

    def pass_until(self, due: float) -> None:
        """Wait for a deadline, wake up a little late, and tick."""
        self.now = max(self.now, due + (0.2 * self.chance.random() if self.chance.random() < 0.5 else 0.0))
        self.apply(Tick())


def line(now: float, event: Event, effects: list[Effect]) -> str:
    """One event and its effects, for people."""
    return "\n".join([f"{now:9.2f} {event}", *(f"          → {effect}" for effect in effects)])
