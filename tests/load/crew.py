"""The test's end of `parent`: client processes that are told what to do, all at once."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import callpool
from callpool.manager.sessions import SessionManager
from tests.load.programs import HANG

CLIENTS = 4
PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).resolve().parents[2])!r})  # last: nothing installed is hidden by the checkout
from tests.load import parent
parent.main()
"""
OUTCOMES = ("completed", "error", "timeout", "cancelled", "interrupted")
GONE = "gone"
"""The answer of a client that was killed before it gave one."""


class Program:
    """A program that answers lines with lines. It ends when nobody can write to it any more."""

    def __init__(self, argument: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-Ic", PROGRAM, argument], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and wait for its end. Idempotent."""
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()
        try:
            self._process.wait(HANG)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its clients end with it
            self._process.wait(HANG)
            raise

    def write(self, line: str) -> None:
        """Write a line."""
        data = memoryview(f"{line}\n".encode())
        assert self._process.stdin is not None
        while data:
            data = data[self._process.stdin.write(data) or 0 :]

    def has_line(self, within: float = 0.0) -> bool:
        """Whether a line has come, or comes within so many seconds."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + within
        while b"\n" not in self._unread:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
            data = self._process.stdout.read(1 << 20)
            assert data, "the client programs ended: see their standard error"
            self._unread += data
        return True

    def read(self, within: float = HANG) -> str:
        """The next line."""
        assert self.has_line(within), f"no answer within {within:g} s: a hang"
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()


class Crew(Program):
    """Client processes. What several are asked, they do at the same time; the answers come together."""

    def __init__(self, count: int = CLIENTS) -> None:
        super().__init__(str(count))
        self.count = count
        self.pids: list[int] = json.loads(self.read())

    def tell(
        self,
        verb: str,
        *,
        to: Sequence[int] | None = None,
        each: Mapping[str, Sequence[Any]] | None = None,
        **arguments: Any,
    ) -> None:
        """Give an order to all clients, or to some. `each` has a value a client, by argument."""
        numbers = range(self.count) if to is None else to
        orders = [
            (number, (verb, arguments | {name: values[at] for name, values in (each or {}).items()}))
            for at, number in enumerate(numbers)
        ]
        self.write(json.dumps(orders))

    def hear(self, within: float = HANG) -> list[Any]:
        """The answers to the last order. Raises what a client raised; one that was killed answers `GONE`."""
        answers = json.loads(self.read(within))
        for answer in answers:
            if "error" in answer:
                raise AssertionError(answer["error"])
        return [GONE if "gone" in answer else answer["value"] for answer in answers]

    def ask(self, verb: str, *, within: float = HANG, **order: Any) -> list[Any]:
        """Give an order and wait for all answers, at most `within` seconds."""
        self.tell(verb, **order)
        return self.hear(within)


class Load(NamedTuple):
    """A supervisor, and clients of it in processes of their own."""

    manager: SessionManager
    crew: Crew


@contextlib.contextmanager
def under_load(limit: int, clients: int = CLIENTS, *, connect: bool = True) -> Iterator[Load]:
    """An embedded supervisor with this limit of sessions, and clients, which are connected unless the test sees to it."""
    with contextlib.ExitStack() as stack:
        crew = stack.enter_context(Crew(clients))  # first: the two start at the same time
        manager = stack.enter_context(SessionManager(max_concurrent_sessions=limit))
        stack.callback(crew.close)  # before the supervisor, which would wait for the sessions of a test that failed
        if connect:
            crew.ask("connect", address=manager.address)
        yield Load(manager, crew)


def shares(total: int, parts: int = CLIENTS) -> list[list[int]]:
    """The numbers below `total`, dealt out."""
    return [list(range(first, total, parts)) for first in range(parts)]


def assert_conserved(address: str, **exact: object) -> dict[str, Any]:
    """From a new connection: nothing is held, nothing is lost, and these statistics have these values. The statistics."""
    with callpool.connect(address) as client:
        return check_conserved(client.sessions.get_statistics(), **exact)


def check_conserved(statistics: dict[str, Any], **exact: object) -> dict[str, Any]:
    """The same, of statistics that are here."""
    exact = {"active_sessions": 0, "current_metadata_bytes": 0, "metrics_drift": 0} | exact
    assert {name: statistics[name] for name in exact} == exact
    assert statistics["total_sessions_created"] == ended(statistics)
    return statistics


def ended(statistics: Mapping[str, Any]) -> int:
    """Sessions that ended, however they did."""
    return sum(statistics[f"total_sessions_{outcome}"] for outcome in OUTCOMES)


def is_running(pid: int) -> bool:
    """Whether a process that is not ours exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
