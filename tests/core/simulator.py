"""The seeded simulator of the core: a fake clock, fake workers, accounts, clients, and everything that can go wrong.

One seed is one short life of a supervisor: random submits, cancels, deaths, drains; then faults stop, and everything
must settle. The simulated shell performs effects as the real one does: a FIFO pipe to and from each worker, what a
worker wrote before its death is applied before `WorkerDown`, a `Tick` when `next_deadline` has come. After every event
the witness (`sim_witness`) judges the effects and the audit (`sim_audit`) compares the books.

Replay a seed with every event and effect, from the root of a checkout:

    python -m tests.core.simulator SEED --trace
    python -m tests.core.simulator FIRST --count 10000
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from bisect import bisect
from collections import Counter, deque
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from callpool.manager.core.events import (
    AccountClosed,
    CancelAsked,
    ClientGone,
    CutAsked,
    DrainAsked,
    Effect,
    Event,
    Reported,
    Submitted,
    Tick,
    ToWorker,
    WorkerDown,
    WorkerUp,
)
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.machine import Core
from callpool.manager.core.messages import Submit
from callpool.manager.core.requests import Now
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.sessions import SessionTable

from .build import make_core
from .sim_audit import audit, audit_rest
from .sim_witness import Violation, Witness
from .sim_worker import FakeWorker

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 45
"""Random steps of a life, before faults stop."""
MAX_SETTLING_STEPS = 2_000
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


class SimulationFailed(AssertionError):
    """A seed broke a rule: `seed` and `rule`; the message has the last events and how to replay."""

    def __init__(self, seed: int, cause: BaseException, events: list[str]) -> None:
        self.seed = seed
        self.rule = cause.rule if isinstance(cause, Violation) else type(cause).__name__
        replay = f"python -m tests.core.simulator {seed} --trace"
        super().__init__("\n".join([f"seed {seed}: {cause!r}", "last events:", *events, f"replay: {replay}"]))


class Simulator:
    """One life of one core."""

    def __init__(self, seed: int, parts: Parts = Parts(), *, trace: bool = False) -> None:
        self.seed = seed
        self.chance = chance = random.Random(seed)
        accounts = {name: 1 + int(chance.random() * 3) for name in "abc"[: 1 + int(chance.random() * 3)]}
        pool, max_requests, max_bytes = 1 + int(chance.random() * 4), 1 + int(chance.random() * 8), 120
        limits = {"accounts": accounts, "max_requests": max_requests, "max_bytes": max_bytes, "max_metadata": MAX_METADATA}
        self.core = make_core(pool=pool, max_payload=MAX_PAYLOAD, **limits, **parts._asdict())
        self.witness = Witness(pool=pool, **limits)
        self.now = 1000.0
        self.accounts = list(accounts)
        self.clients = ["c1", "c2", "c3"]
        self.gone: list[str] = []
        """Clients that have died, and the shell has not noticed yet."""
        self.workers: dict[int, FakeWorker] = {}
        self.numbers = 0
        self.tokens = 0
        self.last: deque[tuple[float, Event, list[Effect]]] = deque(maxlen=KEPT_EVENTS)
        self.trace = trace
        # Each life has its own mix: a fault that is rare on average is frequent in some.
        self.deafness, self.hanging = chance.random() ** 2, chance.random() ** 3
        self.actions: list[Callable[[], None]] = [
            self._submit, self._carry_order, self._work, self._carry_report, self._pass_time,
            self._cancel, self._client_dies, self._notice_client, self._worker_dies, self._worker_comes,
            self._toggle_account, self._drain, self._cut,
        ]  # fmt: skip
        weights = [10, 10, 10, 12, 4, *(weight * 2 * chance.random() ** 2 for weight in (3, 1, 2, 2, 3, 1, 0.3, 0.15))]
        self.weights = list(accumulate(weights))

    def run(self) -> Witness:
        """Live, settle, drain. Raises `SimulationFailed`; returns the witness, for what it has seen."""
        try:
            if self.chance.random() < 0.9:
                self._worker_comes()
            for _ in range(STEPS):
                self.actions[bisect(self.weights, self.chance.random() * self.weights[-1])]()
            self._settle()
        except Exception as error:
            raise SimulationFailed(self.seed, error, [_line(*each) for each in self.last]) from error
        return self.witness

    def _apply(self, event: Event, *, payload: bytes | None = None, refusal: str | None = None) -> None:
        """What the shell does with an event: apply it, perform the effects. And what a test adds: judge both."""
        self.last.append((self.now, event, []))
        effects = self.core.apply(event, Now(self.now, self.now))
        self.last[-1][2].extend(effects)
        if self.trace:
            sys.stdout.write(_line(self.now, event, effects) + "\n")
        self.witness.observe(event, effects, self.now, payload=payload, refusal=refusal)
        audit(self.core, self.witness)
        for effect in effects:
            if type(effect) is ToWorker and self.workers[effect.worker].alive:  # else its pipe is broken
                self.workers[effect.worker].inbox.append(effect.order)

    def _pick(self, number: int) -> int:
        return int(self.chance.random() * number)

    # What clients do.

    def _submit(self) -> None:
        self.tokens += 1
        request_id, refusal = f"r{self.tokens}", None
        account, model, timeout = self.accounts[self._pick(len(self.accounts))], "m", None
        payload = b"%d " % self.tokens + b"x" * self._pick(30)
        draw = self.chance.random()
        if draw < 0.08 and self.witness.live:
            request_id = self._some_live_id()
        elif draw < 0.24 and self.witness.final:  # an id may be used again after its request ended
            request_id = list(self.witness.final)[self._pick(len(self.witness.final))]
        elif draw < 0.32:
            bad = self._pick(6)
            account, refusal = [(account, "unknown_model"), ("nobody", "unknown_provider"), ("keyless", "credential_missing")][
                min(bad, 2)
            ]
            model = "m2" if bad == 0 else model
            if bad > 2:
                account, refusal = self.accounts[0], "bad_input"
                request_id = "bad/id" if bad == 3 else request_id
                timeout = float("nan") if bad == 4 else None
                payload += b"x" * MAX_PAYLOAD if bad == 5 else b""
        if timeout is None and draw > 0.6:
            timeout = 0.1 + 5 * self.chance.random()
        metadata = b"m" * self._pick(MAX_METADATA + (2 if draw > 0.9 else 1))
        acknowledge = self.chance.random() < 0.5
        submit = Submit(request_id, account, model, payload, metadata, timeout, acknowledge=acknowledge)
        client = self.clients[self._pick(len(self.clients))]
        self._apply(Submitted(client, submit, f"session_{self.tokens}"), refusal=refusal)

    def _some_live_id(self) -> str:
        ids = list(self.witness.live)
        return ids[self._pick(len(ids))]

    def _cancel(self) -> None:
        if not self.witness.live:
            self._apply(CancelAsked("c1", "r1"))  # unknown, ended, or never there
            return
        request_id = self._some_live_id()
        owner = self.witness.live[request_id].client
        draw = self.chance.random()
        self._apply(CancelAsked(None if draw < 0.2 else "stranger" if draw < 0.35 else owner, request_id))

    def _client_dies(self) -> None:
        if len(self.clients) > 1:
            self.gone.append(self.clients.pop(self._pick(len(self.clients))))

    def _notice_client(self) -> None:
        """The shell notices a client's end; then the client comes back, under its old name or a new one."""
        if self.gone:
            client = self.gone.pop(0)
            self._apply(ClientGone(client))
            self.clients.append(client if self.chance.random() < 0.5 else f"{client}'")

    # What workers do, and their pipes.

    def _some_worker(self) -> FakeWorker | None:
        workers = list(self.workers.values())
        return workers[self._pick(len(workers))] if workers else None

    def _worker_comes(self) -> None:
        if len(self.workers) < 3:
            number = 1 if 1 not in self.workers and self.chance.random() < 0.5 else self.numbers + 2
            self.numbers = max(self.numbers, number)
            self.workers[number] = FakeWorker(number)
            self._apply(WorkerUp(number))

    def _worker_dies(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            worker.die()

    def _carry_order(self) -> None:
        worker = self._some_worker()
        if worker is not None and worker.inbox:
            worker.read_order(self.chance, deafness=self.deafness, hanging=self.hanging)

    def _work(self) -> None:
        worker = self._some_worker()
        if worker is not None and (payload := worker.work(self.chance)) is not None:
            self.witness.spend(payload)

    def _carry_report(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            self._read(worker)

    def _read(self, worker: FakeWorker) -> None:
        """Read one report of a worker; at the end of the pipe of a dead one, its end."""
        if worker.outbox:
            report, payload = worker.outbox.popleft()
            self._apply(Reported(worker.number, report), payload=payload)
        elif not worker.alive:
            self._apply(WorkerDown(worker.number, "was killed"))
            del self.workers[worker.number]

    # What accounts, operators and time do.

    def _toggle_account(self) -> None:
        account = self.accounts[self._pick(len(self.accounts))]
        self._apply(AccountClosed(account, None if account in self.witness.closed else "its server starts"))

    def _drain(self) -> None:
        self._apply(DrainAsked(self.chance.random() * 8 - 0.5))

    def _cut(self) -> None:
        self._apply(CutAsked())

    def _pass_time(self) -> None:
        target = self.now + self.chance.random() ** 3 * 8
        if self.chance.random() < 0.1:
            self._apply(Tick())  # the shell may look too early
        for _ in range(100):
            due = self.core.next_deadline()
            if due is None or due > target:
                self.now = target
                return
            self._pass_until(due)

    def _pass_until(self, due: float) -> None:
        """Wait for a deadline, wake up a little late, and tick."""
        self.now = max(self.now, due + (0.2 * self.chance.random() if self.chance.random() < 0.5 else 0.0))
        self._apply(Tick())

    # The end: faults stop, and everything must settle.

    def _settle(self) -> None:
        way = self._pick(3)  # 0: workers work; 1: they only obey; 2: they do nothing at all
        self.deafness, self.hanging = 0.0, 0.0
        while self.gone:
            self._notice_client()
        if self.chance.random() < 0.5:
            self._drain()
        for worker in list(self.workers.values()):
            while not worker.alive and worker.number in self.workers:
                self._read(worker)
        while not self.workers:
            self._worker_comes()
        for account in sorted(self.witness.closed):
            self._apply(AccountClosed(account, None))
        for _ in range(MAX_SETTLING_STEPS):
            if not self.witness.live:
                break
            if way == 2 or not self._turn(way):
                due = self.core.next_deadline()
                if due is None:
                    raise Violation("stuck", f"nothing will ever happen to {self.witness.live}")
                self._pass_until(due)
        else:
            raise Violation("stuck", f"after {MAX_SETTLING_STEPS} more steps there are still {self.witness.live}")
        self._finish()

    def _turn(self, way: int) -> bool:
        """Every worker reads, works (`way` 0) and is read. Returns whether anything happened."""
        moved = False
        for worker in list(self.workers.values()):
            moved |= bool(worker.inbox or worker.outbox)
            while worker.inbox:
                worker.read_order(self.chance, deafness=0.0, hanging=0.0)
            before = len(worker.outbox)
            if way == 0 and (payload := worker.work(self.chance)) is not None:
                self.witness.spend(payload)
            moved |= len(worker.outbox) > before
            while worker.outbox:
                self._read(worker)
        return moved

    def _finish(self) -> None:
        for worker in self.workers.values():
            while worker.outbox:
                self._read(worker)  # late words
        self._apply(DrainAsked(5.0))
        self._apply(Submitted("c1", Submit("late", self.accounts[0], "m", b""), "session_late"))
        audit_rest(self.core, self.witness)
        for request_id, state in self.witness.final.items():
            record = self.core.show(request_id, Now(self.now, self.now))
            if record is None or record.state != state:
                raise Violation("record", f"{request_id} ended as {state}, its record is {record}")


def _line(now: float, event: Event, effects: list[Effect]) -> str:
    return "\n".join([f"{now:9.2f} {event}", *(f"          → {effect}" for effect in effects)])


def run(first: int, count: int = 1, parts: Parts = Parts(), *, trace: bool = False) -> Counter[str]:
    """Run `count` seeds from `first`; returns what was seen, counted. Raises `SimulationFailed` at the first failure."""
    seen: Counter[str] = Counter()
    for seed in range(first, first + count):
        seen.update(Simulator(seed, parts, trace=trace).run().seen)
    return seen


def main() -> None:
    """Replay seeds from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="print every event and effect")
    options = parser.parse_args()
    began = time.perf_counter()
    seen = run(options.seed, options.count, trace=options.trace)
    for what, number in sorted(seen.items()):
        print(f"{number:8} {what}")
    print(f"{options.count} seeds in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
