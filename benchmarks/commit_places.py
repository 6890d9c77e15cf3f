"""Where a supervisor could commit: on its event loop, in a thread, or in a process of its own. All three write the product's own file.

Each request works on the loop, waits for the commit of its acceptance and start, works again, and waits for the commit of its end.
Records that come while a commit is under way travel with the next one.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import msgspec
import uvloop

from callpool.manager.core.messages import Submit
from callpool.manager.core.records import AttemptStarted, JobAccepted, JobEnded, Record, fingerprint
from callpool.manager.store import Store

WORK = 60e-6
"""Seconds of the loop for a request's way in, and again for its way out: about what the core and the frames take."""
_SUBMIT = Submit("r", "provider", "model", b"p" * 500)
_PRINT = fingerprint(_SUBMIT)
_BODY = b"r" * 500


class Place(Protocol):
    """Somewhere to commit."""

    def commit(self, records: Sequence[Record], then: Callable[[], None]) -> None:
        """Write these; call `then` on the loop when they are durable. One batch at a time."""

    def close(self) -> None:
        """End it."""


class OnTheLoop:
    """Everybody waits while the disk works."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        self._loop = asyncio.get_running_loop()

    def commit(self, records: Sequence[Record], then: Callable[[], None]) -> None:
        """Write, with the next turn of the loop."""
        self._store.write(records)
        self._loop.call_soon(then)

    def close(self) -> None:
        """Close the file."""
        self._store.close()


class InAThread:
    """What callpool does."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        self._loop = asyncio.get_running_loop()
        self._batches: queue.SimpleQueue[tuple[Sequence[Record], Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def commit(self, records: Sequence[Record], then: Callable[[], None]) -> None:
        """Hand it to the thread."""
        self._batches.put((records, then))

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._store.write(batch[0])
            self._loop.call_soon_threadsafe(batch[1])

    def close(self) -> None:
        """End the thread, close the file."""
        self._batches.put(None)
        self._thread.join()
        self._store.close()


class InAProcess:
    """Records travel over a pipe, encoded."""

    def __init__(self, path: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_write_all, args=(str(path), theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv_bytes()
        self._then: Callable[[], None] = _nothing
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pipe.fileno(), self._written)

    def commit(self, records: Sequence[Record], then: Callable[[], None]) -> None:
        """Send it."""
        self._then = then
        self._pipe.send_bytes(msgspec.msgpack.encode([(type(each).__name__, each) for each in records]))

    def _written(self) -> None:
        self._pipe.recv_bytes()
        self._then()

    def close(self) -> None:
        """End the process."""
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        self._process.join()


def _nothing() -> None:
    pass


def _write_all(path: str, pipe: Connection) -> None:
    kinds = {each.__name__: each for each in (JobAccepted, AttemptStarted, JobEnded)}
    store = Store(Path(path))
    pipe.send_bytes(b"ready")
    while True:
        try:
            batch = pipe.recv_bytes()
        except EOFError:
            store.close()
            return
        records: list[Any] = [msgspec.convert(fields, kinds[kind]) for kind, fields in msgspec.msgpack.decode(batch)]
        store.write(records)
        pipe.send_bytes(b"written")


PLACES: dict[str, Callable[[Path], Place]] = {
    "on the loop": OnTheLoop,
    "in a thread": InAThread,
    "in a process": InAProcess,
}


class Gather:
    """Gathers records while a commit is under way."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._records: list[Record] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._flies = False

    def write(self, *records: Record) -> asyncio.Future[None]:
        """A future of the moment at which these are durable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._records += records
        self._waiters.append(future)
        if not self._flies:
            self._flies = True
            asyncio.get_running_loop().call_soon(self._fly)
        return future

    def _fly(self) -> None:
        records, waiters = self._records, self._waiters
        self._records, self._waiters = [], []

        def then() -> None:
            for waiter in waiters:
                waiter.set_result(None)
            self._flies = bool(self._records)
            if self._flies:
                self._fly()

        self._place.commit(records, then)


def jobs_per_second(name: str, path: Path, *, jobs: int, at_once: int) -> float:
    """Jobs that come to their end in a second, with so many at once."""
    return uvloop.run(_run(PLACES[name], path, jobs, at_once))


async def _run(make: Callable[[Path], Place], path: Path, jobs: int, at_once: int) -> float:
    place = make(path)
    gather, numbers = Gather(place), iter(range(1, jobs + 1))

    async def client() -> None:
        for number in numbers:
            request_id = f"request_{number}"
            _work()
            await gather.write(
                JobAccepted(request_id, "client", _SUBMIT, _PRINT, "session", 0.0),
                AttemptStarted(request_id, 0, number, 1, 0.0),
            )
            _work()
            await gather.write(
                JobEnded(request_id, "started", number, "completed", 0.0, 1, 0.1, started=True, body=_BODY)
            )

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    took = time.perf_counter() - began
    place.close()
    return jobs / took


def _work() -> None:
    until = time.perf_counter() + WORK
    while time.perf_counter() < until:
        pass
