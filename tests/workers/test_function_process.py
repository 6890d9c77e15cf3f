"""One process of the function lane, by its pipe: it survives its calls, keeps nothing of them, and ends with its pipe."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import multiprocess
import psutil
import pytest

from callpool.manager import wire
from callpool.manager.core.messages import Dispatch, Finished, Ready, Retire, Started
from callpool.manager.errors import NotSerializable
from callpool.workers.callables import Outcome, decode_outcome, encode_call
from callpool.workers.function_process import FunctionBoot, main
from tests.ground import wait_for

HANG = 20.0


class Lane:
    """The supervisor's end of one process."""

    def __init__(self) -> None:
        self.pipe, theirs = socket.socketpair()
        self.pipe.settimeout(HANG)
        boot = msgspec.msgpack.encode(FunctionBoot(number=0, supervisor_pid=os.getpid()))
        self.process = multiprocess.get_context("spawn").Process(target=main, args=(theirs, boot), daemon=True)
        self.process.start()
        theirs.close()
        self._framer = wire.Framer()
        self._reports: list[Any] = []
        self._attempt = 0
        assert self.report() == Ready(self.process.pid)

    def report(self) -> Any:
        while not self._reports:
            data = self.pipe.recv(65536)
            assert data, "the process has closed its pipe"
            for body in self._framer.feed(data):
                self._reports += wire.decode(wire.worker_reports, body, "message")
        return self._reports.pop(0)

    def order(self, order: Any) -> None:
        self.pipe.sendall(wire.encode_frame([order]))

    def dispatch(self, payload: bytes) -> None:
        self._attempt += 1
        self.order(Dispatch("r", self._attempt, "p", "m", 60.0, stream=False, payload=payload))
        assert self.report() == Started("r", self._attempt)

    def finish(self) -> tuple[Outcome, Finished]:
        finished = self.report()
        assert type(finished) is Finished
        assert (finished.request_id, finished.attempt) == ("r", self._attempt)
        assert finished.body is not None
        outcome = decode_outcome(finished.body)
        assert (outcome.exception is None) == (finished.fault is None)
        return outcome, finished

    def call(self, func: Callable[..., Any], *args: Any) -> Outcome:
        self.dispatch(encode_call(func, args, {}))
        return self.finish()[0]

    def close(self) -> None:
        if self.pipe.fileno() < 0:
            return
        self.pipe.close()
        self.process.join(HANG)
        assert self.process.exitcode is not None
        self.process.close()


@pytest.fixture
def lane(clean_ground: None) -> Iterator[Lane]:
    subject = Lane()
    yield subject
    subject.close()


def _is_gone(pid: int) -> bool:
    """Also where nobody has reaped it: an orphan's new parent may take its time."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_one_process_survives_all_that_calls_do(lane: Lane, tmp_path: Path) -> None:
    """One test, one process: that the next call works is the point."""
    assert lane.call(os.getpid).value == lane.process.pid
    assert lane.call(lambda: (os.getsid(0), os.getpgrp())).value == (lane.process.pid, lane.process.pid)

    # Exceptions that end other processes.
    assert type(lane.call(lambda: sys.exit(3)).exception) is SystemExit
    interrupted: Callable[[], Any] = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    assert type(lane.call(interrupted).exception) is KeyboardInterrupt

    # What cannot be opened is told by the same way as what the function raises.
    lane.dispatch(b"no call at all")
    outcome, finished = lane.finish()
    assert finished.fault is not None
    assert finished.fault.code == "function_failed"
    assert "malformed call" in str(outcome.exception)
    assert type(lane.call(lambda: (_ for _ in ())).exception) is NotSerializable

    # Signals, and the programs that the function starts: those must not inherit our deafness.
    def signals() -> list[int]:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        started = subprocess.Popen(["sleep", "1000"])
        started.terminate()
        forked = os.fork()
        if not forked:
            signal.pause()
        os.kill(forked, signal.SIGTERM)
        return [started.wait(10), os.WTERMSIG(os.waitpid(forked, 0)[1])]

    assert lane.call(signals).value == [-signal.SIGTERM, signal.SIGTERM]

    def sets_a_handler() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    assert lane.call(sets_a_handler) == Outcome(None)
    os.kill(lane.process.pid, signal.SIGTERM)

    # What it printed is out before its end is reported. One that forks and comes back twice speaks once.
    def prints(path: Path) -> int:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 1)
        print("printed")
        return os.fork() and os.wait()[1]

    assert lane.call(prints, tmp_path / "out") == Outcome(0)
    assert (tmp_path / "out").read_text() == "printed\n"

    # `multiprocess` is at its service.
    def starts_a_process() -> int:
        process = multiprocess.get_context("fork").Process(target=time.sleep, args=(1000,))
        process.start()
        process.terminate()
        process.join(10)
        return int(process.exitcode)

    assert lane.call(starts_a_process).value == -signal.SIGTERM

    # Retired, it ends by itself.
    lane.order(Retire())
    lane.process.join(HANG)
    assert lane.process.exitcode == 0


def test_nothing_of_a_call_is_kept(lane: Lane) -> None:
    def mark(*, fails: bool) -> Any:
        # `logging` is a module that the process has already, so the next call sees what this one leaves there.
        class Marked(Exception):
            def __init__(self) -> None:
                super().__init__()
                logging.marked = weakref.ref(self)  # type: ignore[attr-defined]

        if fails:
            raise Marked  # its traceback holds every frame up to the one that catches it
        return Marked()

    gone: Callable[[], Any] = lambda: logging.marked() is None  # type: ignore[attr-defined]  # noqa: E731
    lane.call(lambda: __import__("gc").disable())  # what only a collection would free is kept for too long
    outcome = lane.call(lambda: mark(fails=False))
    assert outcome.exception is None
    assert lane.call(gone).value
    assert lane.call(lambda: mark(fails=True)).exception is not None
    assert lane.call(gone).value


def _tell() -> Callable[[Path, int], None]:
    """A function that tells a number by a file. Made here, it travels by value: the process need not import this module."""

    def tell(path: Path, number: int) -> None:
        new = path.with_suffix(".new")
        new.write_text(str(number))
        new.rename(path)

    return tell


def test_the_end_of_the_pipe_ends_it_in_the_middle_of_a_call_with_what_it_started(lane: Lane, tmp_path: Path) -> None:
    told, tell = tmp_path / "pid", _tell()

    def never_ends(path: Path) -> None:
        tell(path, subprocess.Popen(["sleep", "1000"]).pid)
        while True:
            pass

    lane.dispatch(encode_call(never_ends, [told], {}))
    wait_for("the call", told.exists)
    started = int(told.read_text())
    lane.close()
    wait_for("the end of what it started", lambda: _is_gone(started))


def test_a_descendant_that_lives_on_does_not_hide_its_end(lane: Lane, tmp_path: Path) -> None:
    """It has none of our descriptors: neither the pipe nor the sentinel."""
    told, tell = tmp_path / "pid", _tell()

    def forks_and_dies(path: Path) -> None:
        forked = os.fork()
        if forked:
            tell(path, forked)
            os._exit(7)
        time.sleep(1000)

    lane.dispatch(encode_call(forks_and_dies, [told], {}))
    try:
        assert lane.pipe.recv(1) == b""
        lane.process.join(HANG)
        assert lane.process.exitcode == 7
    finally:
        os.kill(int(told.read_text()), signal.SIGKILL)
