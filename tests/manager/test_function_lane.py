"""The function lane with real processes: each call ends exactly once, and what is killed is gone with all that it started."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from callpool.manager import children, function_lane, link, wire
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import CancelCall, Dispatch, Finished, Ready, Started
from callpool.manager.function_lane import LANE, FunctionLane
from callpool.workers.callables import Outcome, decode_outcome, encode_call
from callpool.workers.function_process import main
from tests.ground import wait_for

HANG = 30.0


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned processes get this process's path: let them find the targets below."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


class Pool:
    """A lane, and what it has told. Not more than one `Finished` a call, and none of a call that was not sent."""

    def __init__(self, **options: Any) -> None:
        self.started: list[str] = []
        self.finished: dict[str, Finished] = {}
        self._sent: set[str] = set()
        self._in_send = False
        self.lane = FunctionLane(self, **options)

    def handle_reports(self, worker: int, reports: Iterable[Started | Finished]) -> None:
        assert worker == LANE
        assert not self._in_send, "the core is not to be entered from inside its own effects"
        for report in reports:
            assert report.request_id in self._sent - self.finished.keys()
            if type(report) is Started:
                self.started.append(report.request_id)
            elif type(report) is Finished:
                self.finished[report.request_id] = report

    def send(self, name: str, func: Callable[..., Any], *args: Any, holder: str = "a") -> None:
        self._sent.add(name)
        payload = encode_call(func, args, {})
        self._order(Dispatch(name, 1, "p", "m", 60.0, stream=False, payload=payload), holder)

    def cancel(self, name: str, holder: str = "a") -> None:
        self._order(CancelCall(name, 1), holder)

    def _order(self, order: Any, holder: str) -> None:
        self._in_send = True
        self.lane.send(order, holder)
        self._in_send = False

    async def outcome(self, name: str) -> Outcome:
        await until(lambda: name in self.finished)
        body = self.finished[name].body
        assert body is not None, self.finished[name].fault
        return decode_outcome(body)

    async def fault(self, name: str) -> Fault:
        await until(lambda: name in self.finished)
        fault = self.finished[name].fault
        assert fault is not None
        return fault

    async def call(self, name: str, func: Callable[..., Any], *args: Any, holder: str = "a") -> Any:
        self.send(name, func, *args, holder=holder)
        outcome = await self.outcome(name)
        assert outcome.exception is None
        return outcome.value

    def states(self) -> list[str]:
        return [row["state"] for row in self.lane.describe()]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def run(test: Callable[[Pool], Awaitable[None]], *, limit: int = 2, **options: Any) -> Pool:
    """Run a test; at its end nothing is left, and each call has its end."""

    async def body() -> Pool:
        pool = Pool(limit=limit, **options)
        try:
            async with asyncio.timeout(HANG):
                await test(pool)
        finally:
            await asyncio.wait_for(pool.lane.stop(grace=0.0), HANG)
        assert pool.lane.describe() == []
        assert pool.lane.children() == []
        assert pool.finished.keys() == pool._sent
        return pool

    return asyncio.run(body())


def is_gone(pid: int) -> bool:
    """Also where nobody has reaped it: an orphan's new parent may take its time."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _functions() -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Made here, they travel by value: the lane's processes need not import this module."""

    def spin(told: Path) -> None:
        """Tells its process and two that it has started, and never ends."""
        started = subprocess.Popen(["sleep", "1000"])
        libc = ctypes.PyDLL(None)
        forked = libc.fork()  # unknown to Python, so it holds the pipe, and what tells of our end
        if not forked:
            libc.pause()
        new = told.with_suffix(".new")
        new.write_text(json.dumps([os.getpid(), started.pid, forked]))
        new.rename(told)
        while True:
            pass

    def wait(gate: Path) -> None:
        """Ends when the file is there."""
        while not gate.exists():
            time.sleep(0.002)

    return spin, wait


spin, wait = _functions()


def test_results_exceptions_and_the_reuse_of_a_process(tmp_path: Path) -> None:
    class Refused(Exception):
        pass

    def refuse() -> None:
        raise Refused("no")

    async def test(pool: Pool) -> None:
        first = await pool.call("r1", os.getpid)
        pool.send("r2", refuse)
        outcome = await pool.outcome("r2")
        assert type(outcome.exception) is Refused
        assert (await pool.fault("r2")).code == "function_failed"
        assert await pool.call("r3", os.getpid) == first
        assert [child.pid for child in pool.lane.children()] == [first]
        assert pool.lane.describe() == [{"id": 0, "pid": first, "state": "idle", "request_id": None, "calls": 3}]
        assert pool.started == ["r1", "r2", "r3"]

    run(test)


def test_a_cancelled_call_is_gone_with_its_children_and_its_neighbour_goes_on(tmp_path: Path) -> None:
    told, gate = tmp_path / "told", tmp_path / "gate"

    async def test(pool: Pool) -> None:
        pool.send("loops", spin, told)
        pool.send("neighbour", wait, gate)
        pool.send("waits", os.getpid)
        pool.send("never", os.getpid)
        await until(lambda: told.exists() and len(pool.started) == 2)
        assert [row["request_id"] for row in pool.lane.describe()] == ["loops", "neighbour"]
        pool.cancel("never")
        assert (await pool.fault("never")).code == "cancelled"
        pids = json.loads(told.read_text())
        pool.cancel("loops")
        pool.cancel("loops")
        assert pool.finished.keys() == {"never"}, "it is over when its process has been reaped"
        assert (await pool.fault("loops")).code == "cancelled"
        assert not psutil.pid_exists(pids[0])
        await until(lambda: all(map(is_gone, pids)))
        await pool.outcome("waits")  # in the place of the one that was killed
        assert "neighbour" not in pool.finished
        gate.touch()
        assert await pool.outcome("neighbour") == Outcome(None)
        pool.cancel("neighbour")  # its end wins
        assert set(pool.started) == {"loops", "neighbour", "waits"}

    run(test)


def test_a_result_that_has_arrived_wins_over_a_cancel() -> None:
    async def test(pool: Pool) -> None:
        pid = await pool.call("r0", os.getpid)
        pool.send("r1", os.getpid)
        await asyncio.sleep(0)  # the order leaves; what follows does not let the loop look at the answer
        wait_for("the answer", lambda: "r1" in _unread(pool))
        pool.cancel("r1")
        assert (await pool.outcome("r1")).value == pid
        await until(lambda: pool.lane.describe() == [])  # it was killed all the same: the cancel could not know

    run(test)


def _unread(pool: Pool) -> list[str]:
    """The requests whose end lies in the pipe of the only process."""
    (process,) = pool.lane._processes.values()
    assert process.link is not None
    try:
        data = process.link._socket.recv(65536, socket.MSG_PEEK)
    except BlockingIOError:
        return []
    reports = [each for body in wire.Framer().feed(data) for each in wire.decode(wire.worker_reports, body, "message")]
    return [each.request_id for each in reports if type(each) is Finished]


def last_words(pipe: socket.socket, _boot: bytes) -> None:
    """A result, and the end."""
    pipe.sendall(wire.encode_frame([Ready(os.getpid())]))
    pipe.recv(65536)
    pipe.sendall(wire.encode_frame([Started("r1", 1)]))
    pipe.sendall(wire.encode_frame([Finished("r1", 1, b"x" * 150_000)]))
    os._exit(0)


def test_what_a_process_said_is_heard_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_lane, "PIPE_GRACE", 0.0)
    monkeypatch.setattr(link, "READ_BYTES", 1000)  # many turns of the loop, unless it reads on by itself

    async def test(pool: Pool) -> None:
        pool.send("r1", os.getpid)
        (child,) = pool.lane.children()
        while pool.states() != ["busy"]:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the order leaves
        # Nobody reads while it dies, so its exit and its words are seen together.
        wait_for("its end", lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        await until(lambda: pool.finished)
        assert pool.finished["r1"].body == b"x" * 150_000

    run(test, target=last_words)


def test_a_process_that_dies_in_a_call_ends_that_call_alone(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def dies(path: Path) -> None:
        """And leaves a descendant that holds what it can."""
        started = os.fork()
        if not started:
            time.sleep(1000)
        path.write_text(str(started))
        os._exit(7)

    async def test(pool: Pool) -> None:
        pool.send("dies", dies, told)
        pool.send("next", os.getpid)
        fault = await pool.fault("dies")
        assert fault.code == "worker_lost"
        assert fault.message == "the function's process exited with code 7 during the call"
        assert fault.details["exit"] == "exited with code 7"
        assert fault.details["pid"] != await pool.call("again", os.getpid)
        await until(lambda: is_gone(int(told.read_text())))
        segfault: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGSEGV)  # noqa: E731
        pool.send("crash", segfault)
        assert "was killed by SIGSEGV" in (await pool.fault("crash")).message
        await pool.outcome("next")

    run(test, limit=1)


def test_a_process_serves_one_holder_only_and_gives_up_its_place(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def test(pool: Pool) -> None:
        first = await pool.call("a1", os.getpid, holder="a")
        second = await pool.call("b1", os.getpid, holder="b")
        assert first != second
        assert await pool.call("a2", os.getpid, holder="a") == first
        assert await pool.call("c1", os.getpid, holder="c") not in {first, second}
        assert is_gone(second), "the longest idle one went"
        assert await pool.call("a3", os.getpid, holder="a") == first
        # While both are busy, calls wait in order, whoever sent them.
        pool.send("a4", wait, gate, holder="a")
        pool.send("c2", wait, gate, holder="c")
        for number, holder in enumerate("dade"):
            pool.send(f"w{number}", os.getpid, holder=holder)
        await until(lambda: {"a4", "c2"} <= set(pool.started))
        assert pool.states() == ["busy", "busy"]
        gate.touch()
        await until(lambda: len(pool.finished) == 11)
        assert len(pool.lane.children()) <= 2
        holders: dict[Any, set[str]] = {}
        for name, finished in pool.finished.items():
            if finished.body is not None and (pid := decode_outcome(finished.body).value) is not None:
                holders.setdefault(pid, set()).add({"w0": "d", "w1": "a", "w2": "d", "w3": "e"}.get(name, name[0]))
        assert all(len(each) == 1 for each in holders.values())

    run(test)


def test_waiting_calls_of_one_holder_start_in_order() -> None:
    async def test(pool: Pool) -> None:
        names = [f"r{number}" for number in range(20)]
        for name in names:
            pool.send(name, os.getpid)
        assert pool.states() == ["starting"]
        await until(lambda: len(pool.finished) == 20)
        assert pool.started == names
        assert pool.lane.describe()[0]["calls"] == 20

    run(test, limit=1)


def test_a_call_cancelled_before_its_process_is_ready_ends_at_once_and_leaves_it_to_the_next() -> None:
    async def test(pool: Pool) -> None:
        pool.send("r1", os.getpid, holder="a")
        pool.cancel("r1")
        await asyncio.sleep(0)
        assert pool.finished["r1"].fault == Fault(code="cancelled", message="cancelled")
        (child,) = pool.lane.children()
        assert await pool.call("r2", os.getpid, holder="b") == child.pid
        pool.cancel("unknown")

    run(test)


def test_an_idle_process_ends() -> None:
    async def test(pool: Pool) -> None:
        pid = await pool.call("r1", os.getpid)
        await until(lambda: not pool.lane.describe())
        assert is_gone(pid)
        assert await pool.call("r2", os.getpid) != pid

    run(test, idle_seconds=0.01)


def test_a_released_holder_leaves_nothing_and_others_stay(tmp_path: Path) -> None:
    told = tmp_path / "told"

    async def test(pool: Pool) -> None:
        other = await pool.call("b1", os.getpid, holder="b")
        pool.send("a1", spin, told)
        pool.send("a2", wait, tmp_path / "never")
        await until(lambda: told.exists() and len(pool.started) == 3)
        pool.lane.release_holder("a")
        for name in ("a1", "a2"):
            assert await pool.fault(name) == Fault(code="cancelled", message="its client is gone")
        pids = json.loads(told.read_text())
        await until(lambda: all(map(is_gone, pids)))
        assert await pool.call("b2", os.getpid, holder="b") == other
        pool.lane.release_holder("b")
        await until(lambda: not pool.lane.describe())

    run(test, limit=3)


def test_stop_ends_everything_and_every_call(tmp_path: Path) -> None:
    told = tmp_path / "told"

    async def test(pool: Pool) -> None:
        pool.send("runs", spin, told)
        await until(told.exists)
        pool.send("starts", os.getpid)
        pool.send("waits", os.getpid)
        await pool.lane.stop(grace=0.0)
        assert {report.fault.code for report in pool.finished.values() if report.fault} == {"cancelled"}
        assert pool.finished.keys() == {"runs", "starts", "waits"}
        await until(lambda: all(map(is_gone, json.loads(told.read_text()))))
        pool.send("late", os.getpid)
        assert (await pool.fault("late")).code == "cancelled"

    run(test)


# Spawn trouble.


def dies_at_once(_pipe: socket.socket, _boot: bytes) -> None:
    os._exit(3)


def never_ready(pipe: socket.socket, _boot: bytes) -> None:
    while pipe.recv(65536):
        pass


def dies_once(pipe: socket.socket, boot: bytes) -> None:
    """The first time: the mark is a folder that only one can make."""
    try:
        Path(os.environ["CALLPOOL_TEST_MARK"]).mkdir()
    except FileExistsError:
        main(pipe, boot)
    else:
        os._exit(3)


def lies(pipe: socket.socket, _boot: bytes) -> None:
    """Ends a call that it has not got."""
    pipe.sendall(wire.encode_frame([Ready(os.getpid())]))
    pipe.recv(65536)
    pipe.sendall(wire.encode_frame([Started("mine", 1), Finished("other", 1, b"")]))
    never_ready(pipe, b"")


def test_a_call_gets_three_processes_to_start_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_lane, "BACKOFF_FIRST", 0.001)

    async def test(pool: Pool) -> None:
        pool.send("r1", os.getpid)
        fault = await pool.fault("r1")
        assert fault.code == "not_started"
        assert "the last one exited with code 3" in fault.message
        assert fault.details == {"tries": 3}
        assert not pool.started

    run(test, target=dies_at_once)


def test_a_spawn_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_lane, "BACKOFF_FIRST", 0.001)
    monkeypatch.setenv("CALLPOOL_TEST_MARK", str(tmp_path / "mark"))
    refusals = [OSError(errno.EAGAIN, "Resource temporarily unavailable")]

    def spawn(*args: Any, **options: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return children.spawn_with_pipe(*args, **options)

    monkeypatch.setattr(function_lane, "spawn_with_pipe", spawn)

    async def test(pool: Pool) -> None:
        pool.send("r1", os.getpid)
        pool.send("r2", os.getpid)
        await pool.outcome("r1")
        await pool.outcome("r2")
        assert pool.started == ["r1", "r2"]

    run(test, limit=1, target=dies_once)


def test_a_process_that_is_never_ready_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_lane, "START_DEADLINE", 0.01)
    monkeypatch.setattr(function_lane, "SPAWN_TRIES", 1)

    async def test(pool: Pool) -> None:
        pool.send("r1", os.getpid)
        assert "was not ready after 0.01 s" in (await pool.fault("r1")).message

    run(test, target=never_ready)


def test_a_process_cannot_end_a_call_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: Pool) -> None:
        pool.send("mine", os.getpid)
        await until(lambda: pool.started)
        pool.send("other", os.getpid, holder="b")
        assert (await pool.fault("mine")).code == "worker_lost"
        pool.cancel("other")
        await pool.fault("other")

    run(test, target=lies, limit=1)
