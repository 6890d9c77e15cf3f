"""What a client process of a load test can be told to do. The process is `parent`'s, the test's end of it is `crew`'s."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.managers import BaseManager
from pathlib import PurePosixPath
from typing import IO, Any, TypeVar

import callpool
from callpool.manager import proxy
from callpool.manager.embedded import connect  # `callpool.connect` is imported at its first use: in each forked client
from callpool.manager.session import Session
from callpool.manager.sessions import SessionManager

T = TypeVar("T")

HANG = 20.0
"""Seconds after which a wait is a hang."""
LONG = 600.0
"""Seconds of a timeout that must not come, however slow the machine is."""
SHORT = 0.02
"""Seconds of a timeout that is meant to come."""
STREAM = 1_000_000
"""Sessions of a stream that nobody stops."""
LETTERS = ("a", "é", "😀", "\x00", '"')
"""One, six, twelve, six and two bytes as JSON."""
BARE_KEY = b"load"


class Planned(Exception):
    """The error of a session that is meant to fail."""


def metadata_of(number: int) -> dict[str, Any]:
    """Metadata of a size that differs from its neighbours', up to about 9,000 bytes; some of it is no JSON by itself."""
    letter = LETTERS[number % len(LETTERS)]
    length = number * 397 % 9_000 // (len(json.dumps(letter)) - 2)
    return {"text": letter * length, "number": number, "path": PurePosixPath(f"/data/{number}"), letter: [number] * 3}


def outcome_of(number: int) -> str:
    """How session `number` of a mixed load ends: of each ten, seven succeed, two fail, one times out."""
    return "completed" if number % 10 < 7 else "error" if number % 10 < 9 else "timeout"


class Client:
    """One client process."""

    def __init__(self, orders: IO[str]) -> None:
        self._orders = orders
        self._sessions: SessionManager | None = None
        self._held: dict[int, Session] = {}
        self._working: list[Future[dict[str, Any]]] = []
        self._pool: ThreadPoolExecutor | None = None
        self._gate = threading.Event()
        self.verbs: dict[str, Callable[..., Any]] = {
            "connect": self.connect,
            "hold": self.hold,
            "start": self.start,
            "complete": self.complete,
            "release": self.release,
            "overflow": self.overflow,
            "live": self.live,
            "work": self.work,
            "begin_work": self.begin_work,
            "end_work": self.end_work,
            "mixed": self.mixed,
            "stream": self.stream,
            "join_holder": self.join_holder,
            "fork": self.fork,
            "creation_times": self.creation_times,
            "bare_times": self.bare_times,
        }

    @property
    def sessions(self) -> SessionManager:
        if self._sessions is None:
            raise RuntimeError("this client was not told to connect")
        return self._sessions

    def connect(self, address: str) -> None:
        self._sessions = connect(address).sessions

    # Sessions that are held.

    def hold(self, numbers: list[int], *, metadata: bool = False, start: bool = False, threads: int = 1) -> list[str]:
        """Create the sessions of these numbers and keep them; their request ids."""

        def create(number: int) -> str:
            session = self.sessions.create_session("load", "m", None, LONG, **(metadata_of(number) if metadata else {}))
            if start:
                session.start()
            self._held[number] = session
            return session.request_id

        return in_threads(threads, create, numbers)

    def start(self) -> None:
        for session in self._held.values():
            session.start()

    def complete(self) -> None:
        for session in self._held.values():
            session.complete()

    def release(self, numbers: list[int] | None = None) -> None:
        """Release these, or all."""
        for number in list(self._held) if numbers is None else numbers:
            self._held.pop(number).release()

    def overflow(self, count: int) -> list[str]:
        """Try to create so many at once, each in a thread; what the refusals say."""

        def attempt(_number: int) -> str:
            try:
                session = self.sessions.create_session("load", "m")
            except callpool.CapacityExceeded as error:
                return error.message
            return f"created {session.request_id}"

        return in_threads(count, attempt, list(range(count)))

    def live(self, numbers: list[int], *, threads: int) -> None:
        """Full lives, each verb for all of a thread's sessions before the next verb, so that their lives overlap."""
        together = threading.Barrier(threads)

        def lives(share: list[int]) -> None:
            held = [self.sessions.create_session("load", "m", number=number) for number in share]
            together.wait(HANG)  # now all of this process's sessions exist at once
            for session in held:
                session.start()
            for session in held:
                session.complete({"fine": True})
            for session in held:
                session.release()

        in_threads(threads, lives, [numbers[first::threads] for first in range(threads)])

    # Work in sessions.

    def work(self, count: int, seconds: float) -> list[dict[str, Any]]:
        """Work so long in as many sessions at once: what each found, with its seconds from call to return."""

        def one(number: int) -> dict[str, Any]:
            began = time.perf_counter()
            result = self.sessions.execute_with_session("load", "m", do_work, number, seconds)
            return {**result, "seconds": time.perf_counter() - began}

        return in_threads(count, one, list(range(count)))

    def begin_work(self, count: int) -> None:
        """Have so many sessions at work at once, each in a thread, until they are told to end."""
        inside = threading.Barrier(count + 1)

        def stay(number: int) -> dict[str, Any]:
            inside.wait(HANG)
            self._gate.wait(HANG)
            return do_work(number, 0.01)

        self._pool = ThreadPoolExecutor(count)
        self._working = [
            self._pool.submit(self.sessions.execute_with_session, "load", "m", stay, number) for number in range(count)
        ]
        inside.wait(HANG)

    def end_work(self) -> list[dict[str, Any]]:
        """Let them do their work: what each found."""
        self._gate.set()
        found = [each.result(HANG) for each in self._working]
        if self._pool is not None:
            self._pool.shutdown()
        return found

    def mixed(self, numbers: list[int], *, threads: int) -> dict[str, int]:
        """Sessions that end as `outcome_of` says, in three ways; how many the callers saw end so."""
        ways = (self._execute, self._enter, self._move)

        def one(number: int) -> str:
            try:
                ways[number // 10 % len(ways)](outcome_of(number))
            except Planned:
                return "error"
            except TimeoutError:
                return "timeout"
            return "completed"

        seen = in_threads(threads, one, numbers)
        return {outcome: seen.count(outcome) for outcome in ("completed", "error", "timeout")}

    def _execute(self, outcome: str) -> None:
        works: dict[str, Callable[[], Any]] = {"completed": int, "error": fail, "timeout": oversleep}
        seconds = SHORT if outcome == "timeout" else HANG
        self.sessions.execute_with_session("load", "m", works[outcome], timeout_seconds=seconds)

    def _enter(self, outcome: str) -> None:
        with self.sessions.create_session("load", "m", outcome=outcome) as session:
            if outcome == "error":
                fail()
            if outcome == "timeout":
                session.timeout()
        if outcome == "timeout":
            raise TimeoutError

    def _move(self, outcome: str) -> None:
        session = self.sessions.create_session("load", "m", outcome=outcome)
        session.start()
        end = {"completed": session.complete, "error": session.fail, "timeout": session.timeout}[outcome]
        end()
        session.release()
        if outcome != "completed":
            raise Planned if outcome == "error" else TimeoutError

    # Deaths.

    def stream(self, seed: int) -> None:
        """Create, start, end and release sessions, at most three at once, until killed."""
        chance = random.Random(seed)

        def run() -> None:
            held: list[Session] = []
            for number in range(STREAM):
                if len(held) == 3 or (held and chance.random() < 0.5):
                    session = held.pop(chance.randrange(len(held)))
                    if chance.random() < 0.5:
                        session.start()
                        session.complete()
                    session.release()
                else:
                    held.append(self.sessions.create_session("load", "m", **metadata_of(number)))

        threading.Thread(target=run, daemon=True).start()

    def join_holder(self, address: str, holder: str) -> None:
        """Connect under another process's name, and stay connected."""
        self._stranger = proxy.connect(address, holder=holder)

    def fork(self) -> dict[str, Any]:
        """Fork a child that keeps this process's sockets open, holds a session itself, and lives until all are told to end."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            request_id = self.sessions.create_session("load", "m", child=True).request_id
            os.write(writing, request_id.encode())
            os.read(self._orders.fileno(), 1)
            os._exit(0)
        os.close(writing)
        request_id = os.read(reading, 100).decode()
        os.close(reading)
        return {"pid": pid, "request_id": request_id}

    # Times.

    def creation_times(self, count: int) -> list[float]:
        """Seconds that each of so many creations takes; each session is released before the next."""
        times = []
        for number in range(count):
            began = time.perf_counter()
            session = self.sessions.create_session("load", "m", number=number)
            times.append(time.perf_counter() - began)
            session.release()
        return times

    def bare_times(self, address: str, count: int) -> list[float]:
        """Seconds that each of so many calls of the standard library's Manager takes, which does nothing."""
        manager = BareManager(address, BARE_KEY)
        manager.connect()
        nothing = manager.thing()  # type: ignore[attr-defined]  # registered below
        times = []
        for _ in range(count):
            began = time.perf_counter()
            nothing.nothing()
            times.append(time.perf_counter() - began)
        return times


def do_work(number: int, seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {"number": number}


def fail() -> None:
    raise Planned("as planned")


async def oversleep() -> None:
    await asyncio.sleep(HANG)


def in_threads(threads: int, work: Callable[[Any], T], arguments: list[Any]) -> list[T]:
    """`work` of each argument, in so many threads that begin together; results in order, or the first error."""
    together = threading.Barrier(threads)
    results: dict[int, T] = {}

    def share(first: int) -> None:
        together.wait(HANG)
        for at in range(first, len(arguments), threads):
            results[at] = work(arguments[at])

    with ThreadPoolExecutor(threads) as pool:
        for each in [pool.submit(share, first) for first in range(threads)]:
            each.result()
    return [results[at] for at in range(len(arguments))]


class _Thing:
    def nothing(self) -> None:
        """What the bare Manager serves."""


class BareManager(BaseManager):
    """The standard library's Manager, with one object that does nothing."""


BareManager.register("thing", _Thing)
