"""The journal at work: one thread commits what the event loop hands it, a batch at a time.

    event loop ──records, and what must wait for them──► open batch ──when the writer is free──► thread: one transaction
        ▲                                                                                            │
        └──── what waited is done: answers, dispatches, results ◄──── committed ─────────────────────┘

Nothing is delayed to make a batch: while the thread waits for the disk, the next one gathers. An effect about a request whose records
are not durable yet waits behind them, so the order of what is sent is the order of what was decided.

When the disk refuses, nothing is acknowledged: acceptances are refused and starts are taken back (`JournalDown`), ends are kept and
written when it can be written again, which is tried several times a second. Owner: the event loop's thread, but for the `Store`, which
is the writing thread's from `start` to `close`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

from callpool.manager import failpoints
from callpool.manager.clocks import WallClock
from callpool.manager.core.pending import Batch, Pending, is_order
from callpool.manager.core.records import AttemptStarted, JobAccepted, JobEnded, JobWaits
from callpool.manager.core.states import State
from callpool.manager.errors import UNWRITABLE, CallpoolError, JournalUnavailable, from_fault, to_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from callpool.manager.core.carried import Carried
    from callpool.manager.core.events import Effect
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.pending import Undone
    from callpool.manager.core.records import Job, Record
    from callpool.manager.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")

TRY_AGAIN: Final = 0.25
"""Seconds between two tries to write, while the disk refuses."""
SLOW: Final = 1.0
"""Seconds for a commit after which live calls do not wait for it any more: less than a request that is ended waits for its worker."""
IDLE_CHECKPOINT: Final = 1.0
"""Seconds without a record after which the write-ahead log is copied into the file."""
SWEEP_INTERVAL: Final = 60.0
"""Seconds between two looks for results that are past their time."""
_POINTS: Final = {JobAccepted: "accepted", AttemptStarted: "started", JobWaits: "waits", JobEnded: "ended"}
CLOSE_SECONDS: Final = 10.0
"""For what is still to be written when the supervisor ends; a disk that hangs must not keep it."""


def _same(found: T) -> T:
    return found


class JournalOwner(Protocol):
    """What the journal tells the service, on the event loop's thread."""

    def perform(self, effects: Sequence[Effect]) -> None:
        """Do what waited for records that are durable now."""

    def jobs_known(self, jobs: dict[str, Job], submits: dict[str, tuple[bytes, list[str]]]) -> None:
        """The journal has jobs of these ids already: what was recorded of new ones was left out.

        `submits`: (fingerprint of the new one, clients that were to be told something).
        """

    def journal_down(self, fault: Fault, undone: Undone) -> None:
        """Nothing can be written; some jobs were refused, and the starts of some taken back."""

    def journal_up(self) -> None:
        """It can be written again."""

    def journal_slow(self) -> None:
        """The disk takes its time."""

    def windows_written(self, number: int) -> None:
        """What is written ahead of windows is durable up to this number."""


class Journal:
    """The supervisor's one writer."""

    def __init__(self, store: Store, owner: JournalOwner, *, keep_seconds: float) -> None:
        """`keep_seconds`: for how long ended jobs are remembered with their results."""
        self._store = store
        self._owner = owner
        self._keep_seconds = keep_seconds
        self._loop = asyncio.get_running_loop()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending = Pending()
        self.fault: Fault | None = None
        """Why nothing can be written now."""
        self.commits = 0
        self.records = 0
        self.conflicts = 0
        """Records that the journal refused because it held something else: always 0, or a defect."""
        self.in_doubt = 0
        """Jobs that are interrupted, and wait for a person's word. Counted once, and then by what is written."""
        self._retry: asyncio.TimerHandle | None = None
        self._slow: asyncio.TimerHandle | None = None
        self._was_slow = False
        self._asking = False
        """Whether the writing thread is asked just now if it can write again."""
        self._undone: list[Record] = []
        """What was given up and is on the disk all the same: taken back before anything else is written."""
        self._housekeeping: asyncio.TimerHandle | None = None
        self._written_at = self._swept_at = 0.0
        self._checkpointed = True
        self._clock = WallClock(time.time(), time.monotonic())
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="callpool-journal", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._tasks.put(self._count)
        self._thread.start()
        self._keep_house()

    async def close(self) -> None:
        """Write what there is, and close the file. What a disk that hangs does not take is lost, and said."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._retry, self._housekeeping, self._slow):
            if timer is not None:
                timer.cancel()
        if not self._thread.is_alive():  # it was never started
            self._store.close()
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._write_rest()
        except TimeoutError:
            log.error("the journal did not come back from its disk: %d records are lost", len(self._pending))  # noqa: TRY400 - no defect of ours
            self._tasks.put(None)  # if it does come back, the thread closes the file and ends
        else:
            self._tasks.put(None)
            await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)
            if len(self._pending):
                log.error("%d records could not be written: %s", len(self._pending), self.fault)
        for batch in (self._pending.flying, self._pending.open):
            for waiter in () if batch is None else batch.waiters:
                _fail(waiter, _closed())

    async def _write_rest(self) -> None:
        """Until all is written, or a last try has failed."""
        if self.fault is not None and not self._asking and self._pending.flying is None:
            self._try_again()
        ended: asyncio.Future[None] = self._loop.create_future()
        self._tasks.put(lambda: self._back(_settle, ended))
        await ended
        while self._asking or self._pending.flying is not None or (len(self._pending) and self.fault is None):
            if not self._asking:
                self._fly()
            await asyncio.sleep(0.005)

    # Records, and what waits for them.

    def record(self, record: Record | Carried) -> None:
        """Write this down as soon as the writer is free."""
        self._pending.record(record)

    def defer(self, effect: Effect) -> bool:
        """Keep an effect back until the records of its request are durable; False where there are none to wait for."""
        return self._pending.defer(effect)

    def worker_down(self, worker: int) -> list[str]:
        """A worker has ended: what waits for it is not for the next one of its number. Returns whose calls it never heard of."""
        return self._pending.worker_down(worker)

    def holds_for(self, worker: int) -> bool:
        """Whether anything that a worker is to be sent is held back."""
        return self._pending.holds_for(worker)

    async def settled(self) -> None:
        """Wait until all records until now are durable. Raises JournalUnavailable where they cannot be."""
        batch = self._pending.open if self._pending.open.records else self._pending.flying
        if batch is not None:
            await self._written(batch)

    def is_behind(self, request_id: str) -> bool:
        """Whether something about this request is still to be written."""
        return self._pending.behind(request_id) is not None

    async def durable(self, request_id: str) -> None:
        """Wait until nothing about this request is still to be written. Raises JournalUnavailable where it cannot be."""
        while (batch := self._pending.behind(request_id)) is not None:
            await self._written(batch)

    async def current(self, request_id: str) -> Job | None:
        """A job as it is now, with nothing about it still to be written. Raises JournalUnavailable where that cannot be."""
        while True:
            # Looked at when the answer comes, not when we wake: in between, what it does not have yet may have become durable.
            job, is_old = await self.ask(
                lambda store: store.one(request_id), lambda found: (found, self.is_behind(request_id))
            )
            if not is_old and not self.is_behind(request_id):
                return job
            await self.durable(request_id)

    def _written(self, batch: Batch) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        batch.waiters.append(future)
        return future

    def turn(self) -> None:
        """After each step: let the writer begin, if it is free."""
        if self.fault is None and (self._pending.open.records or self._pending.open.windows):
            self._fly()

    def _fly(self) -> None:
        batch = self._pending.fly()
        if batch is not None:
            self._written_at, self._checkpointed = self._loop.time(), False
            self._slow = self._loop.call_later(SLOW, self._is_slow)
            self._tasks.put(lambda: self._commit(batch))

    def _is_slow(self) -> None:
        """The disk has not come back: live calls go on without what would be written ahead for them."""
        log.warning("the journal's disk takes more than %g s", SLOW)
        self._was_slow = True
        self._owner.journal_slow()
        self._owner.perform(self._pending.let_go())

    # On the writing thread.

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception:
                log.exception("a task of the journal broke")
        self._store.close()

    def _back(self, tell: Callable[..., None], *values: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(tell, *values)
        except RuntimeError:  # the loop is closed: nobody is there any more
            log.warning("the journal has outlived its supervisor's loop")

    def _commit(self, batch: Batch) -> None:
        known: dict[str, Job] = {}
        try:
            known = self._known(batch)
            records = [each for each in batch.records if each.request_id not in known] if known else batch.records
            if failpoints.armed:
                _pass(records, "before_commit")
            refused = self._write(records, batch.windows)
            if failpoints.armed:
                _pass(records, "after_commit")
        except Exception as error:
            if not isinstance(error, CallpoolError):
                log.exception("the journal broke")
            self._back(self._failed, batch, _unavailable(error), known)
        else:
            self._back(self._committed, batch, known, refused)

    def _count(self) -> None:
        """On the writing thread: look how many are in doubt. What this tells comes in its order between commits."""
        try:
            found = self._store.counts().get(State.INTERRUPTED.value, 0)
        except CallpoolError as error:
            log.warning("the jobs in doubt cannot be counted: %s", error)
        else:
            self._back(self._counted, found)

    def _known(self, batch: Batch) -> dict[str, Job]:
        """The jobs that the journal has already of those that are new here."""
        new = [each.request_id for each in batch.records if type(each) is JobAccepted]
        found = self._store.known(new) if new else ()
        return {key: job for key in found if (job := self._store.one(key, texts=False)) is not None}

    def _write(self, records: Sequence[Record], windows: Sequence[Carried] = ()) -> list[Record]:
        """Write all; where one is of a past that is over, or can never be written, all but such ones. Returns these.

        Or it would keep all others from the disk, for ever. What is new is not left out: its submitter must not hear that it was taken.
        """
        try:
            self._store.write([*windows, *records])
        except UNWRITABLE:
            if windows:
                self._store.write(windows)
            refused = self._store.write_each(records)
            for each in refused:
                log.error("a record was refused: %s", type(each).__name__)  # noqa: TRY400 - where it was found tells nothing
            return refused
        return []

    # Back on the loop.

    def _counted(self, in_doubt: int) -> None:
        self.in_doubt = in_doubt

    def _committed(self, batch: Batch, known: dict[str, Job], refused: list[Record]) -> None:
        if failpoints.armed:
            failpoints.hit("batch.told")
        self._stop_waiting()
        self.commits += 1
        self.records += len(batch.records) + len(batch.windows)
        self.conflicts += len(refused)
        self.in_doubt += sum(map(_doubt_of, batch.records))
        was_down, self.fault = self.fault, None
        for record in refused:
            if type(record) is AttemptStarted:  # a call that is not on the disk must not be made
                batch.effects = [each for each in batch.effects if not is_order(each, record.request_id)]
        effects = self._pending.committed(batch, known)
        for waiter in batch.waiters:
            _settle(waiter)
        if known:  # before anything that lets the queue move on: what is known must not go out
            self._owner.jobs_known(known, self._submits(batch, known))
        if batch.windows or self._was_slow:
            self._was_slow = False
            self._owner.windows_written(batch.windows[-1].number if batch.windows else 0)
        if was_down is not None:
            log.info("the journal can be written again")
            self._tasks.put(self._count)  # a disk that failed may have written all the same
            self._owner.journal_up()
        if effects:
            self._owner.perform(effects)
        self.turn()

    def _submits(self, batch: Batch, known: Collection[str]) -> dict[str, tuple[bytes, list[str]]]:
        """Known job → (fingerprint of the submit that met it, clients that were to be told something)."""
        return {
            each.request_id: (each.fingerprint, self._pending.bereft.get(each.request_id, []))
            for each in batch.records
            if type(each) is JobAccepted and each.request_id in known
        }

    def _failed(self, batch: Batch, fault: Fault, known: Collection[str]) -> None:
        self._stop_waiting()
        undone = self._pending.failed(batch)
        if known:  # of these the disk has something else, which says nothing of the batch
            self._pending.suspect = [each for each in self._pending.suspect if each.request_id not in known]
        if self.fault is None or self.fault.message != fault.message:
            log.error("the journal cannot be written: %s", fault.message)
        self.fault = fault
        for waiter in undone.waiters:
            _fail(waiter, from_fault(fault))
        self._owner.journal_down(fault, undone)
        if undone.at_once:
            self._owner.perform(undone.at_once)
        if not self._closed:
            self._retry = self._loop.call_later(TRY_AGAIN, self._try_again)

    def _stop_waiting(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _try_again(self) -> None:
        suspect, undone = self._pending.suspect, self._undone
        self._asking = True
        self._tasks.put(lambda: self._probe(suspect, undone))

    def _probe(self, suspect: Sequence[Record], undone: Sequence[Record]) -> None:
        """On the writing thread: whether it can be written, with a fresh look at the file where the disk had failed."""
        try:
            if not self.is_full:  # without room, SQLite has done nothing wrong; all else it may remember wrongly
                self._store.reopen()
            self._store.undo(undone)  # also where there is nothing to undo: it writes
            written = self._store.holds(suspect)
        except Exception as error:
            if not isinstance(error, (CallpoolError, OSError)):
                log.exception("the journal broke")
            self._back(self._still_down, _unavailable(error))
        else:
            self._back(self._can_write, written)

    def _still_down(self, fault: Fault) -> None:
        self._asking = False
        if self.fault is not None and self.fault.message != fault.message:
            log.error("the journal cannot be written: %s", fault.message)
        self.fault = fault
        if not self._closed:
            self._retry = self._loop.call_later(TRY_AGAIN, self._try_again)

    def _can_write(self, written: bool) -> None:  # noqa: FBT001 - called by the loop
        self._asking = False
        self._undone = self._pending.settle(written=written)
        if self._undone:
            self._try_again()
        elif self._pending.open:
            self._fly()  # what was kept first: `_committed` says that all is well
        else:
            self._committed(Batch(), {}, [])

    # Questions and housekeeping.

    @overload
    def ask(self, question: Callable[[Store], T]) -> asyncio.Future[T]: ...

    @overload
    def ask(self, question: Callable[[Store], T], then: Callable[[T], U]) -> asyncio.Future[U]: ...

    def ask(self, question: Callable[[Store], Any], then: Callable[[Any], Any] = _same) -> asyncio.Future[Any]:
        """Ask the file, after everything that was handed over before. The answer is a future; it raises what the question raises.

        `then` makes the answer of what was found, on the event loop's thread, before anything that was committed later is known there.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closed:
            future.set_exception(_closed())
            return future

        def answer() -> None:
            try:
                found = question(self._store)
            except Exception as error:  # noqa: BLE001 - it is the asker's
                self._back(_fail, future, error)
            else:
                self._back(lambda: _settle(future, then(found)))

        self._tasks.put(answer)
        return future

    def _keep_house(self) -> None:
        """In idle moments: copy the log into the file, and forget what is past its time. A full one forgets, too: it makes room."""
        now = self._loop.time()
        if self.is_full or (self.fault is None and self._pending.flying is None):
            if not self._checkpointed and now - self._written_at >= IDLE_CHECKPOINT:
                self._checkpointed = True
                self.ask(_checkpoint).add_done_callback(_say)
            if now - self._swept_at >= SWEEP_INTERVAL:
                self._swept_at = now
                self.ask(self._sweep).add_done_callback(self._swept)
        self._housekeeping = self._loop.call_later(IDLE_CHECKPOINT, self._keep_house)

    def _sweep(self, store: Store) -> int:
        failpoints.hit("sweep.before")
        wall = time.time()
        if not self._clock.is_steady(wall, time.monotonic()):
            return 0
        swept = store.sweep(wall - self._keep_seconds)
        failpoints.hit("sweep.after")
        if swept and self.in_doubt:  # they may be among them
            self._count()
        return swept

    def _swept(self, done: asyncio.Future[int]) -> None:
        _say(done)
        if not done.cancelled() and done.exception() is None and done.result():
            self._swept_at = -math.inf  # there may be more of them: go on at the next look

    @property
    def is_full(self) -> bool:
        """Whether nothing can be written because there is no room: what makes room is written all the same."""
        return self.fault is not None and self.fault.details.get("reason") == "SQLITE_FULL"

    def describe(self) -> dict[str, Any]:
        """What `status` says of it."""
        return {
            "path": str(self._store.path),
            "bytes": self._store.size(),
            "commits": self.commits,
            "records": self.records,
            "conflicts": self.conflicts,
            "waiting": len(self._pending),
            "in_doubt": self.in_doubt,
            "fault": None if self.fault is None else self.fault.message,
        }


def _doubt_of(record: Record) -> int:
    """By how many a record makes more jobs in doubt."""
    if type(record) is JobEnded:
        return (record.state == State.INTERRUPTED.value) - (record.was == "interrupted")
    return -(record.was == "interrupted") if type(record) is JobWaits else 0


def _checkpoint(store: Store) -> None:
    failpoints.hit("checkpoint.before")
    store.checkpoint()
    failpoints.hit("checkpoint.after")


def _pass(records: Sequence[Record], side: str) -> None:
    """The failpoints of a commit."""
    for record in records:
        failpoints.hit(f"{_POINTS[type(record)]}.{side}")


def _unavailable(error: Exception) -> Fault:
    """What submitters are told, whatever it was."""
    found = to_fault(error)
    if found.code == JournalUnavailable.code:
        return found
    return JournalUnavailable(found.message, hint=found.hint, reason=found.code).fault


def _closed() -> JournalUnavailable:
    return JournalUnavailable("the journal is closed: the supervisor ends", reason="closed")


def _settle(future: asyncio.Future[Any], value: Any = None) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _say(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("the journal's housekeeping: %s", error)
