"""The function lane: processes that run callables, one call each, so that killing one touches only that call.

    waiting ──(idle process of its holder, or a new one)──► process ──Started, Finished──► events
       ▲                                                       │
       └──── spawn trouble: back-off, at most 3 times ◄────────┘

    STARTING ──Ready──► IDLE ◄──► BUSY          any ──retired, killed, died──► ENDING ──exited, pipe empty──► gone

A process belongs to the holder whose call it ran first and never serves another: modules of different programs may have
the same name. To the core the lane looks like one worker. Every dispatched call gets exactly one `Finished`.
Owner: the event loop's thread.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
from collections import OrderedDict
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from callpool.manager import wire
from callpool.manager.children import Child, spawn_with_pipe
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import CancelCall, Dispatch, Finished, Ready, Retire, Started
from callpool.manager.link import Link
from callpool.workers.function_process import FunctionBoot
from callpool.workers.function_process import main as function_main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from callpool.manager.core.messages import WorkerOrder

log = logging.getLogger(__name__)

LANE = -1
"""The lane's number among the workers."""
START_DEADLINE = 30.0
"""Seconds for a spawned process to report that it is ready."""
SPAWN_TRIES = 3
"""Processes that may fail before a call has started in one."""
BACKOFF_FIRST = 0.1
"""Seconds before the next spawn after a first failure; doubled with each further one of the same call."""
RETIRE_GRACE = 2.0
"""Seconds for an idle process to end by itself."""
EVICT_GRACE = 0.5
"""As above, while another holder's call waits for its place."""
PIPE_GRACE = 0.5
"""Seconds after an exit for the pipe to end by itself; a descendant may hold it open."""


class LaneEvents(Protocol):
    """What the lane tells the service. Never from inside `send` or `release_holder`, but in a later turn of the loop."""

    def handle_reports(self, worker: int, reports: Iterable[Started | Finished]) -> None:
        """What the lane says of its calls; `worker` is `LANE`."""


class ProcessState(StrEnum):
    """Where a process of the lane is."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    ENDING = "ending"


class _Call:
    """One dispatched call, until its `Finished`."""

    __slots__ = ("ending", "failures", "holder", "order", "started")

    def __init__(self, order: Dispatch, holder: str) -> None:
        self.order = order
        self.holder = holder
        self.started = False
        self.failures = 0
        """Processes that failed before it started."""
        self.ending: Fault | None = None
        """Why its process is being killed, if it is: what to report when the process is gone."""

    @property
    def key(self) -> tuple[str, int]:
        return self.order.request_id, self.order.attempt


class _Process:
    """One process of the lane."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = ProcessState.STARTING
        self.holder: str | None = None
        """Whose calls it runs; None until its first."""
        self.call: _Call | None = None
        """What it runs, or, while it starts, what it is meant for."""
        self.calls = 0
        self.child: Child | None = None
        self.link: Link | None = None
        self.exit_reason: str | None = None
        self.end_reason: str | None = None
        """Why we end it, where that explains a call's fate better than how it exited."""
        self.timer: asyncio.TimerHandle | None = None
        """The one planned step: start deadline, end of idleness, kill, or giving up on the pipe."""

    def describe(self) -> dict[str, Any]:
        """The row of this process in `status`."""
        return {
            "id": self.number,
            "pid": self.child.pid if self.child is not None else None,
            "state": self.state.value,
            "request_id": self.call.order.request_id if self.call is not None else None,
            "calls": self.calls,
        }


class FunctionLane:
    """Runs callables in at most `limit` processes, which are spawned when calls come and end when none come."""

    def __init__(
        self,
        events: LaneEvents,
        *,
        limit: int,
        idle_seconds: float = 60.0,
        target: Callable[..., None] = function_main,
    ) -> None:
        """`target(pipe, boot)` runs in each process."""
        self._events = events
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._processes: dict[int, _Process] = {}
        """By number; those that became idle last stand last."""
        self._waiting: OrderedDict[tuple[str, int], _Call] = OrderedDict()
        self._running: dict[tuple[str, int], _Process] = {}
        """Calls that a process has, or is being started for."""
        self._backing_off: asyncio.TimerHandle | None = None
        self._reports: list[Started | Finished] = []
        self._stopping = False
        self._ended = asyncio.Event()

    # Orders.

    def send(self, order: WorkerOrder, holder: str) -> None:
        """Run a call for this holder, or cancel one. Other orders mean nothing here."""
        if type(order) is Dispatch:
            call = _Call(order, holder)
            if self._stopping:
                self._finish(call, _cancelled("the function lane has stopped"))
                return
            self._waiting[call.key] = call
            self._place()
        elif type(order) is CancelCall:
            self._cancel((order.request_id, order.attempt), _cancelled("cancelled"))

    def release_holder(self, holder: str) -> None:
        """The holder is gone: cancel what it has here and kill its processes."""
        keys = [key for key, call in self._waiting.items() if call.holder == holder]
        keys += [key for key, process in self._running.items() if process.call and process.call.holder == holder]
        for key in keys:
            self._cancel(key, _cancelled("its client is gone"))
        for process in self._processes.values():
            if process.holder == holder:
                self._kill(process, "its client is gone")

    def describe(self) -> list[dict[str, Any]]:
        """The rows of `status`."""
        return [process.describe() for _, process in sorted(self._processes.items())]

    def children(self) -> list[Child]:
        """The processes that have not been reaped."""
        return [process.child for process in self._processes.values() if process.child is not None]

    async def stop(self, *, grace: float) -> None:
        """Take no more calls, and end every process: by force after `grace` seconds. Returns when all have been reaped."""
        self._stopping = True
        if self._backing_off is not None:
            self._backing_off.cancel()
        for key in list(self._waiting):
            self._cancel(key, _cancelled("the function lane has stopped"))
        for process in list(self._processes.values()):
            if process.call is not None:
                process.call.ending = process.call.ending or _cancelled("the function lane has stopped")
            self._retire(process, grace)
        self._check_all_ended()
        await self._ended.wait()
        self._deliver()

    def _cancel(self, key: tuple[str, int], why: Fault) -> None:
        """Finish a call that has not reached a process; kill the process of one that has."""
        call = self._waiting.pop(key, None)
        if call is not None:
            self._finish(call, why)
            return
        process = self._running.get(key)
        if process is None or process.call is None:
            return  # its end has been reported
        if process.state is ProcessState.STARTING:
            call, process.call = process.call, None
            self._finish(call, why)
            self._place()  # somebody else may want the process
            return
        process.call.ending = process.call.ending or why
        self._kill(process, why.message)

    # Placing calls.

    def _place(self) -> None:
        """Give each waiting call, in order, a process; as far as there are any."""
        if self._stopping:
            return
        room = self._limit - len(self._processes)
        leaving = sum(process.state is ProcessState.ENDING for process in self._processes.values())
        # Each turn takes one of at most `limit` places: further calls need no look.
        for call in list(itertools.islice(self._waiting.values(), self._limit + 1)):
            process = self._find(call.holder)
            if process is not None:
                self._give(process, call)
            elif self._backing_off is not None:
                continue  # nothing can be spawned, but a later call's holder may have a process
            elif room > 0:
                room -= 1
                self._spawn(call)
            elif leaving > 0:
                leaving -= 1  # the call gets that one's place
            elif (idle := self._find_idle()) is not None:
                self._retire(idle, EVICT_GRACE)
            else:
                return

    def _find(self, holder: str) -> _Process | None:
        """A process that can take a call of this holder: the one that was idle last, else one that nobody has used."""
        unused = None
        for process in reversed(self._processes.values()):
            if process.call is None and process.state is ProcessState.IDLE and process.holder == holder:
                return process
            if process.call is None and process.holder is None and process.state is not ProcessState.ENDING:
                unused = process
        return unused

    def _find_idle(self) -> _Process | None:
        """The process that has been idle for longest."""
        return next((each for each in self._processes.values() if each.state is ProcessState.IDLE), None)

    def _give(self, process: _Process, call: _Call) -> None:
        self._waiting.pop(call.key, None)
        self._running[call.key] = process
        process.call = call
        if process.state is ProcessState.IDLE:
            self._dispatch(process, call)

    def _dispatch(self, process: _Process, call: _Call) -> None:
        self._plan(process, None)
        process.state = ProcessState.BUSY
        process.holder = call.holder
        process.calls += 1
        if process.link is not None:
            process.link.send(call.order)

    def _spawn(self, call: _Call) -> None:
        process = _Process(next(self._numbers))
        boot = msgspec.msgpack.encode(FunctionBoot(number=process.number, supervisor_pid=os.getpid()))
        self._give(process, call)
        try:
            ours, process.child = spawn_with_pipe(
                self._target,
                lambda pipe: (pipe, boot),
                name=f"callpool-function-{process.number}",
                on_exit=lambda reason: self._on_exit(process, reason),
            )
        except OSError as error:
            process.call = None
            self._spawn_failed(call, f"could not be spawned: {error}")
            return
        self._processes[process.number] = process
        process.link = Link(
            ours,
            wire.worker_reports,
            on_messages=lambda reports: self._on_reports(process, reports),
            on_end=lambda _why: self._on_pipe_end(process),
        )
        self._plan(process, START_DEADLINE, self._kill, process, f"was not ready after {START_DEADLINE:g} s")

    def _spawn_failed(self, call: _Call, reason: str) -> None:
        """A process failed before the call started in it: later another one, or the end of the call."""
        del self._running[call.key]
        call.failures += 1
        log.warning("a function's process %s (%s of %s tries)", reason, call.failures, SPAWN_TRIES)
        if call.ending is not None:
            self._finish(call, call.ending)
        elif call.failures >= SPAWN_TRIES:
            message = f"no process could be started for the function: the last one {reason}"
            self._finish(call, Fault(code="not_started", message=message, details={"tries": call.failures}))
        else:
            self._waiting[call.key] = call
            self._waiting.move_to_end(call.key, last=False)  # it was first, and still is
            if self._backing_off is None:
                delay = BACKOFF_FIRST * 2 ** (call.failures - 1)
                self._backing_off = self._loop.call_later(delay, self._back_off_ended)

    def _back_off_ended(self) -> None:
        self._backing_off = None
        self._place()

    # Reports.

    def _on_reports(self, process: _Process, reports: list[Any]) -> None:
        for report in reports:
            call = process.call
            if type(report) is Ready and process.state is ProcessState.STARTING:
                self._on_ready(process)
            elif call is None or not isinstance(report, Started | Finished):
                continue
            elif (report.request_id, report.attempt) != call.key:  # user code runs there, and can write what it likes
                self._kill(process, "reported of a call that it has not got")
            elif type(report) is Started:
                call.started = True
                self._report(report)
            elif type(report) is Finished:
                self._end_call(process, report)
        self._place()

    def _on_ready(self, process: _Process) -> None:
        if process.call is not None:
            self._dispatch(process, process.call)
        else:
            self._rest(process)

    def _end_call(self, process: _Process, report: Finished) -> None:
        process.call = None
        del self._running[report.request_id, report.attempt]
        self._report(report)
        if process.state is ProcessState.BUSY:
            self._rest(process)

    def _rest(self, process: _Process) -> None:
        process.state = ProcessState.IDLE
        self._processes[process.number] = self._processes.pop(process.number)
        self._plan(process, self._idle_seconds, self._retire, process, RETIRE_GRACE)

    def _finish(self, call: _Call, fault: Fault) -> None:
        """Report the end of a call that no process reports."""
        self._running.pop(call.key, None)
        self._report(Finished(*call.key, fault=fault))

    def _report(self, report: Started | Finished) -> None:
        if not self._reports:
            self._loop.call_soon(self._deliver)
        self._reports.append(report)

    def _deliver(self) -> None:
        reports, self._reports = self._reports, []
        if reports:
            self._events.handle_reports(LANE, reports)

    # Ends of processes.

    def _plan(
        self, process: _Process, delay: float | None, step: Callable[..., None] | None = None, *what: Any
    ) -> None:
        """Plan the process's next step instead of the one planned before."""
        if process.timer is not None:
            process.timer.cancel()
        process.timer = self._loop.call_later(delay, step, *what) if delay is not None and step is not None else None

    def _retire(self, process: _Process, grace: float) -> None:
        """Let it end by itself, and kill it after `grace` seconds."""
        process.state = ProcessState.ENDING
        if process.exit_reason is None:
            if process.link is not None:
                process.link.send(Retire())
            self._plan(process, grace, self._kill, process, "did not end when told")

    def _kill(self, process: _Process, why: str) -> None:
        """End it by force, with what its calls have started."""
        process.state = ProcessState.ENDING
        process.end_reason = process.end_reason or why
        if process.child is not None and process.exit_reason is None:
            self._plan(process, None)
            _kill_group(process.child.pid)
            process.child.kill()  # it may not have made its group yet

    def _on_pipe_end(self, process: _Process) -> None:
        process.link = None
        if process.exit_reason is None and process.state is not ProcessState.ENDING:
            # It is dying, and how will be known in a moment; or it has closed its pipe and can do nothing more for us.
            process.state = ProcessState.ENDING
            self._plan(process, PIPE_GRACE, self._kill, process, "closed its pipe")
        self._check_gone(process)

    def _on_exit(self, process: _Process, reason: str) -> None:
        process.state = ProcessState.ENDING
        process.exit_reason = reason
        # What its calls have started and left. While the group has members, the system gives its number to nobody else.
        if process.child is not None:
            _kill_group(process.child.pid)
        self._plan(process, None)
        if process.link is not None:
            process.link.read_rest()
        if process.link is not None:
            self._plan(process, PIPE_GRACE, process.link.close_as_ended)
        self._check_gone(process)

    def _check_gone(self, process: _Process) -> None:
        """Once it has exited and its pipe is empty, the process is gone, and what it had not finished with it."""
        if process.exit_reason is None or process.link is not None:
            return
        if self._processes.pop(process.number, None) is None:
            return
        call, process.call = process.call, None
        pid = process.child.pid if process.child is not None else None
        process.child = None
        if call is not None:
            self._call_lost(call, pid, process.end_reason or process.exit_reason)
        self._place()
        self._check_all_ended()

    def _call_lost(self, call: _Call, pid: int | None, reason: str) -> None:
        if call.ending is not None:
            self._finish(call, call.ending)
        elif call.started:
            message = f"the function's process {reason} during the call"
            self._finish(call, Fault(code="worker_lost", message=message, details={"pid": pid, "exit": reason}))
        else:
            self._spawn_failed(call, reason)

    def _check_all_ended(self) -> None:
        if self._stopping and not self._processes:
            self._ended.set()


def _cancelled(message: str) -> Fault:
    return Fault(code="cancelled", message=message)


def _kill_group(pid: int) -> None:
    """Kill the group that this process leads or led; without one this does nothing."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # no such group; on macOS a group of zombies alone is not permitted
        return
