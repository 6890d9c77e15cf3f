"""A journal at work on a real event loop and thread, with a disk that blocks, fails or lies when it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from callpool.manager.core.carried import Carried
from callpool.manager.core.events import Effect, ToClient, ToWorker
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import Accepted, Dispatch, Done
from callpool.manager.core.pending import Undone
from callpool.manager.core.records import Job, Record
from callpool.manager.errors import JournalUnavailable
from callpool.manager.journal import Journal
from callpool.manager.store import Store

HANG = 20.0


def broken(reason: str = "SQLITE_IOERR_WRITE") -> JournalUnavailable:
    return JournalUnavailable(f"the disk says {reason}", reason=reason)


class PlantedStore(Store):
    """A real one, on a disk that does as it is told."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, durability="process")
        self.gate = threading.Event()
        self.gate.set()
        """While it is clear, whoever writes waits."""
        self.calls: list[str] = []
        self.batches: list[list[Record]] = []
        """That someone tried to write."""
        self.failures: list[Exception] = []
        """Of the next writes, nothing is written then."""
        self.lies: list[Exception] = []
        """Of the next writes, which are written all the same."""
        self.deaf: dict[str, list[Exception]] = {"undo": [], "reopen": [], "checkpoint": [], "sweep": []}
        """Of the next calls of these."""
        self.closed = 0

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.deaf.get(call):
            raise self.deaf[call].pop(0)

    def write(self, records: Sequence[Record | Carried]) -> None:
        self._note("write")
        self.batches.append([each for each in records if not isinstance(each, Carried)])
        assert self.gate.wait(HANG)
        if self.failures:
            raise self.failures.pop(0)
        super().write(records)
        if self.lies:
            raise self.lies.pop(0)

    def undo(self, records: Sequence[Record]) -> None:
        self._note("undo")
        super().undo(records)

    def reopen(self) -> None:
        self._note("reopen")
        super().reopen()

    def checkpoint(self) -> None:
        self._note("checkpoint")
        super().checkpoint()

    def sweep(self, ended_before: float) -> int:
        self._note("sweep")
        return super().sweep(ended_before)

    def close(self) -> None:
        self.closed += 1
        super().close()


class Desk:
    """Who owns a journal, and what it hears of it."""

    def __init__(self, path: Path, *, keep_seconds: float = 1e9) -> None:
        self.store = PlantedStore(path)
        self.slow = 0
        self.submits: list[dict[str, tuple[bytes, list[str]]]] = []
        self.undone: list[Undone] = []
        self.windows: list[int] = []
        self.heard: list[object] = []
        """In order: effects that were performed, dictionaries of known jobs, `down` tuples, and `up`."""
        self.journal = Journal(self.store, self, keep_seconds=keep_seconds)

    def perform(self, effects: Sequence[Effect]) -> None:
        self.heard += effects

    def jobs_known(self, jobs: dict[str, Job], submits: dict[str, tuple[bytes, list[str]]]) -> None:
        self.heard.append(jobs)
        self.submits.append(submits)

    def journal_down(self, fault: Fault, undone: Undone) -> None:
        self.heard.append(("down", fault.message, undone.refused, undone.unstarted))
        self.undone.append(undone)

    def journal_up(self) -> None:
        self.heard.append("up")

    def journal_slow(self) -> None:
        self.slow += 1

    def windows_written(self, number: int) -> None:
        self.windows.append(number)

    def take(self, *records: Record) -> None:
        """One step of the service's that came to these."""
        for each in records:
            self.journal.record(each)
        self.journal.turn()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.001)

    async def written(self, *records: Record) -> None:
        """These are in the file."""
        self.take(*records)
        await self.journal.settled()

    async def held_up(self, *records: Record) -> None:
        """These are on their way, and the disk waits."""
        self.store.gate.clear()
        before = len(self.store.batches)
        self.take(*records)
        await self.until(lambda: len(self.store.batches) > before)


def at_work(path: Path, test: Callable[[Desk], Awaitable[None]], *, keep_seconds: float = 1e9) -> None:
    """Run a test with a journal that is started, and see that it ends whole."""

    async def body() -> Desk:
        desk = Desk(path, keep_seconds=keep_seconds)
        desk.journal.start()
        try:
            async with asyncio.timeout(HANG):
                await test(desk)
        finally:
            desk.store.gate.set()
            await desk.journal.close()
        return desk

    desk = asyncio.run(body())
    assert not desk.journal._thread.is_alive()
    assert desk.store.closed == 1
    store = Store(path, durability="process")
    assert store.integrity() == []
    store.close()


def told(request_id: str) -> ToClient:
    """Its submitter hears that it was taken."""
    return ToClient("client", Accepted(request_id, 0))


def answered(request_id: str) -> ToClient:
    return ToClient("client", Done(request_id, "completed", f"s-{request_id}", 1.0, b"answer"))


def dispatched(request_id: str, attempt: int) -> ToWorker:
    return ToWorker(1, Dispatch(request_id, attempt, "kimi", "large", 1.0, False, b"{}"))
