"""A supervisor's core with a journal, in a world where everything fails: workers die, the disk fills, the process is killed.

It plays the shell by the product's own rules (`Pending`) and keeps books of its own: what the disk holds, who was told what, which
calls a provider has seen. Each broken promise is an assertion with the seed in its message.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from typing import Any

import msgspec

from callpool.manager.core.carried import Carried
from callpool.manager.core.carryover import Carryover
from callpool.manager.core.events import (
    CancelAsked,
    ClientGone,
    ClientJoined,
    CutAsked,
    DrainAsked,
    Drained,
    Effect,
    Event,
    FromJournal,
    JobKnown,
    JobResolved,
    JobsRecovered,
    JobWatched,
    JournalDown,
    JournalSlow,
    JournalUp,
    Reported,
    Submitted,
    Tick,
    ToClient,
    ToJournal,
    ToWorker,
    WindowsWritten,
    WorkerDown,
    WorkerUp,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.jobs import done_of
from callpool.manager.core.limits import AccountRules, Counting, LedgerRules, Limits
from callpool.manager.core.machine import Core
from callpool.manager.core.messages import (
    Accepted,
    CancelCall,
    Chunk,
    Continues,
    Dispatch,
    Done,
    Finished,
    Piece,
    Started,
    Submit,
)
from callpool.manager.core.pending import Batch, Pending
from callpool.manager.core.records import AttemptStarted, Job, JobAccepted, JobEnded, JobWaits, Record, outcome
from callpool.manager.core.requests import Now
from callpool.manager.core.retry import RetryRules
from callpool.manager.health_facts import inconsistencies, survey_pool

from .attempts import BUSY, fault
from .build import make_core

RATE_LIMITED = fault("rate_limited", limit="concurrency", scope="account")
IN_DOUBT = ("timeout", "cancelled", "interrupted", "worker_lost")
CLIENTS = ("c1", "c2", "c3")
FULL = Fault(code="journal_unavailable", message="there is no room")
ATTEMPTS = 3


class Disk:
    """What survives. A plain table with the compare-and-set of the journal."""

    def __init__(self) -> None:
        self.rows: dict[str, Job] = {}
        self.windows: dict[Any, Carried] = {}
        self.history: dict[str, list[str]] = {}
        """request_id → each state that was ever recorded, in order."""
        self._number = 0

    def write(self, records: list[Record], windows: list[Carried]) -> None:
        for record in records:
            self._write(record)
        self.windows.update({each.key: each for each in windows})

    def _write(self, record: Record) -> None:
        rows, key = self.rows, record.request_id
        if type(record) is JobAccepted:
            assert key not in rows, f"{key} is accepted twice"
            self._number += 1
            rows[key] = Job(
                number=self._number,
                request_id=key,
                name=record.name,
                fingerprint=record.fingerprint,
                session_id=record.session_id,
                state="queued",
                attempt=0,
                tries=0,
                accepted_at=record.at,
                provider=record.submit.provider,
                model=record.submit.model,
                submit=record.submit,
            )
        elif type(record) is AttemptStarted:
            self._expect(record, "queued", record.was)
            rows[key] = replaced(rows[key], state="started", attempt=record.attempt, tries=record.tries)
        elif type(record) is JobWaits:
            self._expect(record, record.was, record.attempt)
            rows[key] = replaced(rows[key], state="queued", kept=record.kept, ended_at=None, fault=None)
            if record.payload is not None:
                rows[key] = replaced(rows[key], payload=record.payload)
        elif type(record) is JobEnded:
            self._expect(record, record.was, record.attempt)
            rows[key] = replaced(
                rows[key], state=record.state, ended_at=record.at, body=record.body, fault=record.fault
            )
        if self.history.setdefault(key, [])[-1:] != [rows[key].state] or rows[key].state == "started":
            self.history[key].append(rows[key].state)

    def _expect(self, record: Record, was: str, was_attempt: int) -> None:
        row = self.rows.get(record.request_id)
        assert row is not None, f"{record} is about nothing"
        held = (row.state, row.attempt)
        assert held == (was, was_attempt), f"{record} is of the past: the disk holds {held}"

    def holds(self, records: list[Record]) -> bool:
        last = {record.request_id: record for record in records}
        rows = self.rows
        return any(
            key in rows and (rows[key].state, rows[key].attempt) == outcome(record) for key, record in last.items()
        )

    def undo(self, records: list[Record]) -> None:
        for record in records:
            row = self.rows.get(record.request_id)
            if row is None:
                continue
            if type(record) is JobAccepted and row.ended_at is None:
                del self.rows[record.request_id]
                self.history.pop(record.request_id, None)
            elif type(record) is AttemptStarted and (row.state, row.attempt) == ("started", record.attempt):
                self.rows[record.request_id] = replaced(row, state="queued", attempt=record.was)


def replaced(job: Job, **changes: Any) -> Job:
    return msgspec.structs.replace(job, **changes)


class FakeCall:
    """A call in a worker."""

    def __init__(self, order: Dispatch) -> None:
        self.order = order
        self.started = False
        self.arrived = 0.0


class JobsWorld:
    """One life of it, from a seed."""

    def __init__(self, seed: int, *, core: type[Core] = Core, pending: type[Pending] = Pending) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.disk = Disk()
        self.time = 1_000.0
        self._core_class = core
        self._pending_class = pending
        self._lag = self.chance.choice([0.0, 0.5])
        self.rpm = self.chance.choice([None, 4, 12, 40])
        self.arrivals: dict[str, list[float]] = {"a": [], "b": []}
        self.may_exceed = False
        """Whether a crash has taken what nobody could write down: the disk had failed, or was slow."""
        self.numbers = 0
        self.bodies: dict[str, bytes] = {}
        """request_id → the payload that it was first accepted with."""
        self.allowed: set[str] = set()
        """Jobs that may be called again when they are in doubt."""
        self.acknowledged: set[str] = set()
        self.ends: dict[str, list[Done]] = {}
        self.calls: Counter[str] = Counter()
        self.doubts: set[str] = set()
        """Jobs with a call that may have been paid for, and whose outcome is not known."""
        self.seen: Counter[str] = Counter()
        """What has happened, so that a test can see that it did."""
        self.boot()

    # Lives of the supervisor.

    def boot(self) -> None:
        rules = LedgerRules(
            accounts={
                name: AccountRules(
                    limits=Limits(concurrency=slots, requests_per_minute=self.rpm),
                    counting=Counting(cancel_lag=self._lag),
                )
                for name, slots in (("a", 2), ("b", 1))
            }
        )
        carryover = Carryover(boot="b", lag=max(0.5, self._lag))
        restored = carryover.restore(sorted(self.disk.windows.values(), key=lambda each: each.number), self.now)
        self.core = make_core(
            core=self._core_class,
            pool=3,
            accounts={"a": 2, "b": 1},
            max_requests=8,
            rules=rules,
            retry_rules=RetryRules(attempts=ATTEMPTS),
            journaled=True,
            carryover=carryover,
        )
        self.core.ledger.records += restored
        self.pending = self._pending_class()
        self.down = self.slow = self.unwritten = False
        self.workers: dict[int, list[FakeCall]] = {}
        self.drained = False
        jobs = [job for job in sorted(self.disk.rows.values(), key=lambda each: each.number) if job.ended_at is None]
        self.apply(JobsRecovered(jobs, max((job.attempt for job in self.disk.rows.values()), default=0)))
        for client in CLIENTS:
            self.apply(ClientJoined(client))

    def crash(self) -> None:
        """Everything in memory is gone; what was on its way to the disk has come there, or not."""
        self.seen["crash"] += 1
        self.may_exceed |= self.unwritten
        flying = self.pending.flying
        if flying is not None and self.chance.random() < 0.5:
            self.disk.write(self.new_to_the_disk(flying), flying.windows)
        for calls in self.workers.values():
            for call in calls:
                self.lose(call)
        self.time += self.chance.random() * 5
        self.boot()

    def lose(self, call: FakeCall) -> None:
        """Nobody hears of this call any more."""
        if call.started:
            self.doubts.add(call.order.request_id)

    # The shell.

    def apply(self, *events: Event) -> Any:
        answer = None
        for effect in self.core.apply_batch(list(events), self.now):
            if type(effect) is ToJournal:
                self.pending.record(effect.record)
            elif not self.pending.defer(effect):
                answer = self.perform(effect) or answer
        assert inconsistencies(self.core_facts()) == [], self.seed
        return answer

    @property
    def now(self) -> Now:
        return Now(self.time, self.time)

    def core_facts(self) -> Any:
        return survey_pool(self.core, self.now)

    def perform(self, effect: Effect) -> Any:
        if type(effect) is ToWorker:
            self.to_worker(effect.worker, effect.order)
        elif type(effect) is ToClient:
            self.to_client(effect.client, effect.message)
        elif type(effect) is FromJournal:
            self.seen["told by the journal"] += 1
            self.to_client(effect.client, Accepted(effect.request_id, 0, 0.0))
            self.to_client(effect.client, done_of(self.disk.rows[effect.request_id]))
        elif type(effect) is Drained:
            self.drained = True
        elif hasattr(effect, "value"):
            return effect
        return None

    def to_worker(self, worker: int, order: Any) -> None:
        if worker not in self.workers:
            return  # its pipe is broken
        if type(order) is Dispatch:
            if order.request_id in self.bodies:
                row = self.disk.rows.get(order.request_id)
                held = None if row is None else (row.state, row.attempt)
                assert held == ("started", order.attempt), f"{self.seed}: {order} goes out, the disk holds {held}"
            self.workers[worker].append(FakeCall(order))
        elif type(order) is CancelCall:
            for call in self.workers[worker]:
                if (call.order.request_id, call.order.attempt) == (order.request_id, order.attempt):
                    if self.chance.random() < 0.8:
                        self.report_end(worker, call, Fault(code="cancelled", message="cancelled"))
                    return

    def to_client(self, _client: str, message: Any) -> None:
        key = getattr(message, "request_id", None)
        if key not in self.bodies:
            return
        if type(message) is Accepted:
            assert key in self.disk.rows, f"{self.seed}: {key} is acknowledged and not on the disk"
            self.acknowledged.add(key)
        elif type(message) is Done:
            row = self.disk.rows[key]
            assert row.ended_at is not None, f"{self.seed}: {message} is told, the disk holds {row.state}"
            assert (row.state, row.body) == (message.state, message.body), f"{self.seed}: {message} is told, not {row}"
            self.ends.setdefault(key, []).append(message)
        elif type(message) is Chunk:
            assert self.disk.rows[key].state == "started", f"{self.seed}: text of {key}, which never started"

    def new_to_the_disk(self, batch: Batch) -> list[Record]:
        known = self.known(batch)
        return [each for each in batch.records if each.request_id not in known]

    def known(self, batch: Batch) -> dict[str, Job]:
        new = [each.request_id for each in batch.records if type(each) is JobAccepted]
        return {key: self.disk.rows[key] for key in new if key in self.disk.rows}

    def commit(self) -> None:
        """The disk takes a batch."""
        if self.down:
            return
        batch = self.pending.flying or self.pending.fly()
        if batch is None:
            return
        known = self.known(batch)
        self.disk.write(self.new_to_the_disk(batch), batch.windows)
        effects = self.pending.committed(batch, known)
        if known:
            self.seen["known"] += len(known)
            prints = {each.request_id: each.fingerprint for each in batch.records if type(each) is JobAccepted}
            bereft = self.pending.bereft
            self.apply(*(JobKnown(key, job, prints[key], bereft.get(key, [])) for key, job in known.items()))
        if batch.windows or self.slow:
            self.unwritten = self.slow
            self.slow = False
            self.apply(WindowsWritten(batch.windows[-1].number if batch.windows else 0))
        for effect in effects:
            self.perform(effect)

    def fail(self) -> None:
        """The disk refuses a batch; it may have taken it all the same."""
        if self.down:
            return
        batch = self.pending.flying or self.pending.fly()
        if batch is None:
            return
        self.seen["disk failed"] += 1
        if self.chance.random() < 0.3:
            self.seen["disk lied"] += 1
            self.disk.write(self.new_to_the_disk(batch), batch.windows)
        undone = self.pending.failed(batch)
        self.down, self.slow, self.unwritten = True, False, True
        self.seen["refused"] += len(undone.refused)
        self.seen["unstarted"] += len(undone.unstarted)
        self.apply(JournalDown(FULL, undone.refused, undone.unstarted, undone.bereft))
        for effect in undone.at_once:
            self.perform(effect)

    def is_slow(self) -> None:
        """The disk takes its time: live calls go on."""
        if self.down:
            return
        self.pending.fly()
        if self.pending.flying is not None and self.chance.random() < 0.2:
            self.slow = self.unwritten = True
            self.seen["slow"] += 1
            self.apply(JournalSlow())
            for effect in self.pending.let_go():
                self.perform(effect)

    def recover_disk(self) -> None:
        if not self.down:
            return
        self.down = False
        self.disk.undo(self.pending.settle(written=self.disk.holds(self.pending.suspect)))
        self.commit()
        self.apply(JournalUp())

    # What happens.

    def step(self) -> None:
        if self.drained:
            self.crash()
            return
        steps = (
            [self.submit] * 6 + [self.commit] * 8 + [self.work] * 12 + [self.pass_time] * 3 + [self.worker_comes] * 2
            + [self.worker_dies, self.cancel, self.leave, self.watch, self.fail, self.is_slow]
            + [self.recover_disk] * 2
        )  # fmt: skip
        draw = self.chance.random()
        if draw < 0.01:
            self.crash()
        elif draw < 0.014:
            self.apply(DrainAsked(self.chance.choice([0.0, 1.0, 30.0])))
        elif draw < 0.018:
            self.apply(CutAsked())
        elif draw < 0.03:
            self.resolve()
        else:
            self.chance.choice(steps)()

    def submit(self) -> None:
        chance = self.chance
        durable = chance.random() < 0.85
        if durable and self.bodies and chance.random() < 0.3:
            key = chance.choice(list(self.bodies))
            payload = self.bodies[key] if chance.random() < 0.8 else b"another"
        else:
            self.numbers += 1
            key, payload = f"r{self.numbers}", f"payload {self.numbers}".encode()
        if key not in self.core.requests and self.pending.behind(key) is not None:
            return  # its last end is not durable yet: the shell waits for that
        if durable and key not in self.bodies:
            self.bodies[key] = payload
            if chance.random() < 0.4:
                self.allowed.add(key)
        self.apply(
            Submitted(
                chance.choice(CLIENTS),
                Submit(
                    key,
                    "a" if int(key[1:]) % 3 else "b",
                    "m",
                    payload,
                    durable=durable,
                    retry_in_doubt=key in self.allowed,
                    stream=int(key[1:]) % 2 == 0,
                    queue_timeout=20.0 if int(key[1:]) % 5 == 0 else None,
                ),
                f"session {key}",
            )
        )

    def work(self) -> None:
        calls = [(worker, call) for worker, held in self.workers.items() for call in held]
        if not calls:
            return
        worker, call = self.chance.choice(calls)
        order, draw = call.order, self.chance.random()
        if not call.started:
            if draw < 0.1:
                self.report_end(worker, call, Fault(code="bad_input", message="no"))
                return
            call.started, call.arrived = True, self.time
            self.provider_sees(order)
            self.apply(Reported(worker, Started(order.request_id, order.attempt)))
        elif draw < 0.2 and order.stream:
            self.apply(Reported(worker, Piece(order.request_id, order.attempt, b"piece")))
        elif draw < 0.3:
            self.workers[worker].remove(call)
            self.apply(Reported(worker, Continues(order.request_id, order.attempt, order.payload + b"+", partial="p")))
        elif draw < 0.4:
            self.report_end(worker, call, RATE_LIMITED)
        elif draw < 0.5:
            self.report_end(worker, call, BUSY)
        elif draw < 0.55:
            self.report_end(worker, call, Fault(code="timeout", message="late", details={"which": "total"}))
        else:
            self.report_end(worker, call, None)

    def provider_sees(self, order: Dispatch) -> None:
        key, seen = order.request_id, self.arrivals[order.provider]
        live = self.core.requests.get(key)
        if (
            live is not None and live.attempt == order.attempt
        ):  # else it was given up long ago, by a worker that hears nothing
            seen.append(self.time)
        if self.rpm is not None and not self.may_exceed:
            within = sum(self.time - 60.0 < each for each in seen)
            assert within <= self.rpm, f"{self.seed}: {within} calls of {order.provider} in a minute"
        if key not in self.bodies:
            return
        self.calls[key] += 1
        assert key not in self.doubts or key in self.allowed, f"{self.seed}: {key} is called again, and is in doubt"
        self.doubts.discard(key)
        submit = self.disk.rows[key].submit
        assert submit is not None
        assert order.payload.startswith(submit.payload), self.seed

    def report_end(self, worker: int, call: FakeCall, fault: Fault | None) -> None:
        self.workers[worker].remove(call)
        order = call.order
        if fault is RATE_LIMITED:  # a refused call counts nowhere
            with contextlib.suppress(ValueError):  # of a call that was given up it was not noted
                self.arrivals[order.provider].remove(call.arrived)
        if call.started and fault is not None and fault.code in IN_DOUBT:
            self.doubts.add(order.request_id)
        body = None if fault else b"answer to " + order.payload
        self.apply(Reported(worker, Finished(order.request_id, order.attempt, body, fault)))

    def worker_comes(self) -> None:
        if len(self.workers) < 2:
            number = next(each for each in (1, 2) if each not in self.workers)
            self.workers[number] = []
            self.apply(WorkerUp(number))

    def worker_dies(self) -> None:
        if self.workers:
            number = self.chance.choice(list(self.workers))
            unsent = self.pending.worker_down(number)
            for call in self.workers.pop(number):
                self.lose(call)
            self.apply(WorkerDown(number, "was killed", unsent))

    def cancel(self) -> None:
        if self.bodies and self.chance.random() < 0.5:
            self.seen["cancel"] += 1
            client = self.chance.choice([None, *CLIENTS])
            self.apply(CancelAsked(client, self.chance.choice(list(self.bodies))))

    def leave(self) -> None:
        client = self.chance.choice(CLIENTS)
        self.apply(ClientGone(client))
        self.apply(ClientJoined(client))

    def watch(self) -> None:
        if self.bodies:
            self.apply(JobWatched(self.chance.choice(CLIENTS), self.chance.choice(list(self.bodies))))

    def resolve(self) -> None:
        settled = [job for job in self.disk.rows.values() if self.pending.behind(job.request_id) is None]
        found = [job for job in settled if job.state == "interrupted"]
        if found and self.core.drain is None:
            job, retry = self.chance.choice(found), self.chance.random() < 0.5
            answer = self.apply(JobResolved(job, retry))
            if answer is not None and answer.fault is None:
                self.seen["resolved"] += 1
                if retry:
                    self.allowed.add(job.request_id)

    def pass_time(self) -> None:
        target = self.time + self.chance.choice([0.05, 1.0, 10.0]) * self.chance.random()
        for _ in range(200):
            due = self.core.next_deadline()
            if due is None or due > target:
                break
            self.time = max(self.time, due) + 0.03
            self.apply(Tick())
        self.time = max(self.time, target)

    # The end.

    def settle(self) -> None:
        """Faults stop: everything comes to its end."""
        for _ in range(3_000):
            if self.drained:
                self.crash()
            self.recover_disk()
            self.commit()
            self.worker_comes()
            for worker, calls in list(self.workers.items()):
                for call in list(calls):
                    if not call.started:
                        call.started, call.arrived = True, self.time
                        self.provider_sees(call.order)
                        self.apply(Reported(worker, Started(call.order.request_id, call.order.attempt)))
                    elif call in self.workers[worker]:
                        self.report_end(worker, call, None)
            if not self.core.requests and not self.pending and not self.drained:
                break
            self.pass_time()
        else:
            raise AssertionError(f"{self.seed}: it never ends: {list(self.core.requests)}")
        self.judge()

    def judge(self) -> None:
        for key in self.acknowledged:
            row = self.disk.rows.get(key)
            assert row is not None, f"{self.seed}: {key} was acknowledged, and is gone"
            assert row.ended_at is not None, f"{self.seed}: {key} is still {row.state}"
        if not self.seen["crash"]:  # else one may have come between the commit and the answer
            assert self.disk.rows.keys() == self.acknowledged, f"{self.seed}: some were refused, and are on the disk"
        for key, told in self.ends.items():
            finals = {(each.state, each.body) for each in told if each.state != "interrupted"}
            assert len(finals) <= 1, f"{self.seed}: {key} had several ends: {finals}"
        asked = self.seen["cancel"]
        for key, row in self.disk.rows.items():
            assert asked or row.state != "cancelled", f"{self.seed}: {key} is cancelled, and nobody asked for that"
        for key, history in self.disk.history.items():
            assert sum(state in ("completed", "error", "timeout", "cancelled") for state in history) <= 1, (
                f"{self.seed}: {key} went {history}"
            )
        assert not self.core.ledger.holds
        assert not self.core.sessions.live
        assert len(self.core.scheduler) == 0
        due = self.core.next_deadline()
        carryover = self.core.ledger.carryover
        assert carryover is not None
        assert due in (None, carryover.next_due()), f"{self.seed}: nothing is left, and it wakes for something"
