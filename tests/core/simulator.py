"""The seeded simulator of the core: a fake clock, fake workers, accounts, clients, and everything that can go wrong.

One seed is one short life of a supervisor: random limits, submits, cancels, deaths, refusals, drains; then faults stop, and
everything must settle. The simulated shell performs effects as the real one does: a FIFO pipe to and from each worker, what
a worker wrote before its death is applied before `WorkerDown`, a `Tick` when `next_deadline` has come.

Three judge, each by what it knows: the witness (`sim_witness`) every effect by what went in and out, with limits (`sim_limits`,
`sim_ledger`) and order (`sim_order`) of its own; the audit (`sim_audit`) the core's books by the witness's, after every
event; and the providers (`sim_provider`), who allow what was configured and know of nothing else, by refusing.

Replay a seed with every event and effect, from the root of a checkout:

    python -m tests.core.simulator SEED --trace
    python -m tests.core.simulator FIRST --count 10000
"""

from __future__ import annotations

import argparse
import time
from bisect import bisect
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager.core.events import (
    AccountClosed,
    AccountResumed,
    CancelAsked,
    ClientGone,
    CutAsked,
    DrainAsked,
    Submitted,
    Tick,
    WorkerRetiring,
    WorkerUp,
)
from callpool.manager.core.limits import PRIORITIES, Usage
from callpool.manager.core.messages import Retire, Submit
from callpool.manager.core.requests import Now

from .sim_audit import audit_rest
from .sim_model import Violation
from .sim_provider import Bill
from .sim_shell import MAX_METADATA, MAX_PAYLOAD, Parts, Shell, line
from .sim_worker import FakeWorker
from .sim_world import MOST_ANSWER, MOST_PROMPT, NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .sim_witness import Witness

STEPS = 45
"""Random steps of a life, before faults stop."""
MAX_SETTLING_STEPS = 2_000
MAX_AGE = 3_600.0
"""Seconds after which a record may be forgotten."""
HEALTHY = Parts()
BAD_INPUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("unknown_provider", {"provider": "nobody", "fallbacks": None}),
    ("unknown_model", {"model": "m2"}),
    ("credential_missing", {"provider": "keyless", "model": "m", "fallbacks": None}),
    ("bad_input", {"request_id": "bad/id"}),
    ("bad_input", {"timeout": float("nan")}),
    ("bad_input", {"payload": b"x" * (MAX_PAYLOAD + 1)}),
)
"""(code of the refusal that is deserved, fields that deserve it)"""


class SimulationFailed(AssertionError):
    """A seed broke a rule: `seed` and `rule`; the message has the last events and how to replay."""

    def __init__(self, seed: int, cause: BaseException, events: list[str]) -> None:
        self.seed = seed
        self.rule = cause.rule if isinstance(cause, Violation) else type(cause).__name__
        replay = f"python -m tests.core.simulator {seed} --trace"
        super().__init__("\n".join([f"seed {seed}: {cause!r}", "last events:", *events, f"replay: {replay}"]))


class Simulator(Shell):
    """One life of one core."""

    def __init__(self, seed: int, parts: Parts = HEALTHY, *, trace: bool = False) -> None:
        super().__init__(seed, parts, trace=trace)
        self.seed = seed
        chance = self.chance
        self.clients = ["c1", "c2", "c3"]
        self.gone: list[str] = []
        """Clients that have died, and the shell has not noticed yet."""
        self.numbers = 1
        self.tokens = 0
        # Each life has its own mix: a fault that is rare on average is frequent in some.
        self.deafness, self.hanging, self.trouble = chance.random() ** 2, chance.random() ** 3, self.world.trouble
        self.calm = chance.random() < 0.5
        """Whether workers work well in this life: then limits and their refusals are what most happens."""
        if self.calm:
            self.deafness, self.hanging = 0.2 * self.deafness, 0.2 * self.hanging
        self.actions: list[Callable[[], None]] = [
            self._submit, self._carry_order, self._work, self._carry_report, self._pass_time,
            self._cancel, self._client_dies, self._notice_client, self._worker_dies, self._worker_comes,
            self._toggle_account, self._resume, self._drain, self._cut, self._worker_retires,
        ]  # fmt: skip
        rare = (3, 1, 2, 2, 3, 1, 2 if self.trouble else 0.3, 0.3, 0.15)
        often = (8, 14, 24, 22, 4) if self.calm else (10, 10, 12, 12, 4)
        weights = [*often, *(weight * (0.5 if self.calm else 2.0) * chance.random() ** 2 for weight in rare)]
        # In a third of the lives workers retire. The others draw from chance what they drew before there was such a thing.
        weights.append(0.0 if seed % 3 else 3.0)
        self.weights = list(accumulate(weights))

    def run(self) -> Witness:
        """Live, settle, drain. Raises `SimulationFailed`; returns the witness, for what it has seen."""
        try:
            if self.chance.random() < 0.9:
                self._worker_comes()
            for _ in range(self.world.max_requests if self.world.is_crowded else 0):
                self._submit()
            for _ in range(STEPS * (2 if self.world.is_crowded or self.calm else 1)):
                self.actions[bisect(self.weights, self.chance.random() * self.weights[-1])]()
            self._settle()
        except Exception as error:
            raise SimulationFailed(self.seed, error, [line(*each) for each in self.last]) from error
        return self.witness

    def _pick(self, number: int) -> int:
        return int(self.chance.random() * number)

    # What clients do.

    def _submit(self) -> None:
        self.tokens += 1
        draw = self.chance.random()
        payload = b"%d " % self.tokens + b"x" * self._pick(30)
        self.bills[payload] = bill = self._some_bill()
        submit = Submit(
            self._some_id(draw),
            self.accounts[self._pick(len(self.accounts))],
            self.world.models[self._pick(len(self.world.models))],
            payload,
            b"m" * self._pick(MAX_METADATA + (2 if draw > 0.9 else 1)),
            0.1 + 5 * self.chance.random() if draw > 0.6 else None,
            acknowledge=self.chance.random() < 0.5,
            tokens=self._estimate(bill),
            priority=PRIORITIES[self._pick(3)],
            queue_timeout=20 * self.chance.random() if self.chance.random() < 0.1 else None,
            affinity="talk" if self.chance.random() < 0.2 else None,
            fallbacks=self._some_fallbacks(),
        )
        refusal = None
        if 0.24 <= draw < 0.32:
            refusal, changes = BAD_INPUTS[self._pick(len(BAD_INPUTS))]
            submit = msgspec.structs.replace(submit, **changes)
        client = self.clients[self._pick(len(self.clients))]
        name = NAMES[self._pick(len(NAMES))] if self.chance.random() < 0.95 else ""
        self.apply(Submitted(client, submit, f"session_{self.tokens}", name), refusal=refusal)

    def _some_bill(self) -> Bill:
        most = 1 + self._pick(MOST_ANSWER)
        prompt = 1 + self._pick(MOST_PROMPT)
        if not self.world.honest and self.chance.random() < 0.3:
            prompt *= 4  # such that estimates are corrected
        return Bill(prompt, most, self._pick(most + 1))

    def _estimate(self, bill: Bill) -> Usage:
        """What the client says of it: enough, in an honest world."""
        draw = self.chance.random()
        if self.world.honest or draw < 0.5:
            return Usage(bill.prompt + self._pick(3), bill.most)
        return Usage(1 + self._pick(2 * bill.prompt), 0 if draw < 0.7 else bill.most)

    def _some_fallbacks(self) -> list[str] | None:
        if not self.world.has_fallbacks or self.chance.random() < 0.6:
            return None
        models = self.world.models
        return [
            f"{account}/{models[self._pick(len(models))]}" for account in self.accounts if self.chance.random() < 0.6
        ]

    def _some_id(self, draw: float) -> str:
        """A new id; now and then that of a live request, or of an ended one, which may be used again."""
        if draw < 0.08 and self.witness.live:
            return self._some_live_id()
        if draw < 0.24 and self.witness.final:
            return list(self.witness.final)[self._pick(len(self.witness.final))]
        return f"r{self.tokens}"

    def _some_live_id(self) -> str:
        ids = list(self.witness.live)
        return ids[self._pick(len(ids))]

    def _cancel(self) -> None:
        if not self.witness.live:
            self.apply(CancelAsked("c1", "r1"))  # unknown, ended, or never there
            return
        request_id = self._some_live_id()
        owner = self.witness.live[request_id].client
        draw = self.chance.random()
        self.apply(CancelAsked(None if draw < 0.2 else "stranger" if draw < 0.35 else owner, request_id))

    def _client_dies(self) -> None:
        if len(self.clients) > 1:
            self.gone.append(self.clients.pop(self._pick(len(self.clients))))

    def _notice_client(self) -> None:
        """The shell notices a client's end; then the client comes back, under its old name or a new one."""
        if self.gone:
            client = self.gone.pop(0)
            self.apply(ClientGone(client))
            self.clients.append(client if self.chance.random() < 0.5 else f"{client}'")

    # What workers do, and their pipes.

    def _some_worker(self) -> FakeWorker | None:
        workers = list(self.workers.values())
        return workers[self._pick(len(workers))] if workers else None

    def _worker_comes(self) -> None:
        if len(self.workers) < 3 or not self._has_able_worker():
            number = 1 if 1 not in self.workers and self.chance.random() < 0.5 else self.numbers + 1
            self.numbers = max(self.numbers, number)
            self.workers[number] = FakeWorker(number, self)
            self.apply(WorkerUp(number))

    def _has_able_worker(self) -> bool:
        return any(worker.alive and worker.number not in self.witness.retiring for worker in self.workers.values())

    def _worker_retires(self) -> None:
        """Any one, in any state: one that is down already, or told before, too; orders may still be in its pipe."""
        worker = self._some_worker()
        if worker is not None:
            self.apply(WorkerRetiring(worker.number))
            if worker.alive:
                worker.inbox.append(Retire())

    def _worker_dies(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            worker.die()

    def _carry_order(self) -> None:
        worker = self._some_worker()
        if worker is not None and worker.inbox:
            worker.read_order(deafness=self.deafness, hanging=self.hanging)

    def _work(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            self.work(worker)

    def _carry_report(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            self.read(worker)

    # What accounts, operators and time do.

    def _toggle_account(self) -> None:
        account = self.accounts[self._pick(len(self.accounts))]
        self.apply(AccountClosed(account, None if account in self.witness.closed else "its server starts"))

    def _resume(self) -> None:
        """An operator looks at the account that is stopped, else at any."""
        stopped = [name for name in self.accounts if self.witness.limits.is_stopped(name, self.now)]
        names = stopped or self.accounts
        self.apply(AccountResumed(names[self._pick(len(names))]))

    def _drain(self) -> None:
        self.apply(DrainAsked(self.chance.random() * 8 - 0.5))

    def _cut(self) -> None:
        self.apply(CutAsked())

    def _pass_time(self) -> None:
        draw = self.chance.random()
        target = self.now + self.chance.random() ** 3 * (8 if draw < 0.85 else 90 if draw < 0.97 else 100_000)
        if self.chance.random() < 0.1:
            self.apply(Tick())  # the shell may look too early
        for _ in range(100):
            due = self.core.next_deadline()
            if due is None or due > target:
                self.now = max(self.now, target)  # the last look may have been late
                return
            self.pass_until(due)

    # The end: faults stop, and everything must settle.

    def _settle(self) -> None:
        way = 0 if self.calm else self._pick(3)  # 0: workers work; 1: they only obey; 2: they do nothing at all
        self._stop_faults()
        for _ in range(MAX_SETTLING_STEPS):
            if not self.witness.live:
                break
            if way == 2 or not self._turn(way):
                due = self.core.next_deadline()
                if due is None:
                    raise Violation("stuck", f"nothing will ever happen to {self.witness.live}")
                self.pass_until(due)
        else:
            raise Violation("stuck", f"after {MAX_SETTLING_STEPS} more steps there are still {self.witness.live}")
        self._finish()

    def _stop_faults(self) -> None:
        self.deafness, self.hanging, self.trouble = 0.0, 0.0, 0.0
        while self.gone:
            self._notice_client()
        if self.chance.random() < (0.1 if self.calm else 0.5):
            self._drain()
        for worker in list(self.workers.values()):
            while not worker.alive and worker.number in self.workers:
                self.read(worker)
        while not self._has_able_worker():
            self._worker_comes()
        for account in self.accounts:
            if self.witness.limits.is_stopped(account, self.now):
                self.apply(AccountResumed(account))
        for account in sorted(self.witness.closed):
            self.apply(AccountClosed(account, None))

    def _turn(self, way: int) -> bool:
        """Every worker reads, works (`way` 0) and is read. Returns whether anything happened."""
        moved = False
        for worker in list(self.workers.values()):
            moved |= bool(worker.inbox or worker.outbox)
            while worker.inbox:
                worker.read_order(deafness=0.0, hanging=0.0)
            before = len(worker.outbox)
            if way == 0:
                self.work(worker)
            moved |= len(worker.outbox) > before
            while worker.outbox:
                self.read(worker)
            if not worker.alive and worker.number in self.workers:
                self.read(worker)  # it retired
                moved = True
        return moved

    def _finish(self) -> None:
        for worker in self.workers.values():
            while worker.outbox:
                self.read(worker)  # late words
        self.apply(DrainAsked(5.0))
        self.apply(Submitted("c1", Submit("late", self.accounts[0], "m", b""), "session_late"))
        audit_rest(self.core, self.witness, self.now)
        for request_id, state in self.witness.final.items():
            record = self.core.show(request_id, Now(self.now, self.now))
            if record is None and self.now - self.witness.ended_at[request_id] > MAX_AGE:
                continue  # long ago
            if record is None or record.state != state:
                raise Violation("record", f"{request_id} ended as {state}, its record is {record}")


def run(first: int, count: int = 1, parts: Parts = HEALTHY, *, trace: bool = False) -> Counter[str]:
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
