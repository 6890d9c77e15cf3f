"""The main function of one process of the function lane: it runs callables, one at a time, and can be killed at any moment.

    pipe ─► reader thread ─► orders ─► main thread: open, run, encode ─► pipe

The main thread runs the calls, because user code may want signals and event loops that only a main thread has. So a thread
reads the pipe, and ends the process with the pipe, whatever the main thread is doing. No provider key ever comes here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import queue
import resource
import signal
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import multiprocess
from multiprocess import resource_tracker

from callpool.manager import wire
from callpool.manager.core.messages import Dispatch, Finished, Ready, Retire, Started
from callpool.manager.errors import ProtocolError
from callpool.workers.callables import Outcome, decode_call, encode_outcome
from callpool.workers.lifeline import die_with

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from types import FrameType

    from callpool.manager.core.faults import Fault

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
ENDINGS = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask a process to end."""


class FunctionBoot(msgspec.Struct, frozen=True, kw_only=True):
    """What a process of the lane is told at its start."""

    number: int
    supervisor_pid: int


def main(pipe: socket.socket, boot: bytes) -> None:
    """Run the calls that come by the pipe until it ends or the process is retired."""
    settings = msgspec.msgpack.decode(boot, type=FunctionBoot)
    die_with(settings.supervisor_pid)
    os.setsid()  # a group of its own: whatever the calls start can be killed with it, and no terminal reaches it
    _ignore_endings()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)  # blocked while it was spawned
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the caller's data
    _keep_from_descendants()
    multiprocess.current_process().daemon = False  # or `multiprocess` would refuse to start processes for user code
    pipe.setblocking(True)
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(pipe, orders), name="orders", daemon=True).start()
    runner = _Runner(pipe)
    runner.send(Ready(os.getpid()))
    while runner.obey(orders.get()):
        pass


class _Runner:
    """Runs calls in the main thread. Keeps nothing of a call once its end has been reported."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._pid = os.getpid()
        self._path = tuple(sys.path)
        """As it was before the first caller's."""

    def obey(self, order: Any) -> bool:
        """Follow one order; whether more may come."""
        if type(order) is Dispatch:
            self._run(order)
        return type(order) is not Retire

    def send(self, report: Started | Finished | Ready) -> None:
        """Write a report; waits while the pipe is full. Without a reader, nobody is left to work for."""
        try:
            self._pipe.sendall(wire.encode_frame([report]))
        except OSError:
            _end_group()

    def _run(self, order: Dispatch) -> None:
        self.send(Started(order.request_id, order.attempt))
        body, fault = self._outcome(order.payload)
        if os.getpid() != self._pid:
            os._exit(0)  # the function forked and both came back: only the first speaks for the call
        _ignore_endings()  # the function may have set handlers of its own
        with contextlib.suppress(
            OSError, ValueError
        ):  # what it printed; where nobody reads that, its outcome still counts
            sys.stdout.flush()
            sys.stderr.flush()
        self.send(Finished(order.request_id, order.attempt, body, fault))

    def _outcome(self, payload: bytes) -> tuple[bytes, Fault | None]:
        call = outcome = None
        try:
            try:
                call = decode_call(payload, own_path=self._path)
                outcome = Outcome(call.run())
            except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt end the call, not the process
                outcome = Outcome(exception=error)
            return encode_outcome(outcome, call.classes if call is not None else None)
        finally:
            # The exception's traceback holds this frame: these two would hold each other, and the caller's data with them.
            del call, outcome


def _read_orders(pipe: socket.socket, orders: queue.SimpleQueue[Any]) -> None:
    """Until the pipe ends, and the process with it."""
    framer = wire.Framer()
    try:
        while _read_once(pipe, framer, orders):
            pass
    except (OSError, ProtocolError) as error:
        log.error("a function's process cannot read its orders: %s", error)  # noqa: TRY400 - its pipe broke, not its code
    finally:
        _end_group()


def _read_once(pipe: socket.socket, framer: wire.Framer, orders: queue.SimpleQueue[Any]) -> bool:
    """Read what is there; False at the end of the pipe. A function of its own, so that no payload lives on in its variables."""
    data = pipe.recv(READ_BYTES)
    for body in framer.feed(data):
        for order in wire.decode(wire.worker_orders, body, "message"):
            orders.put(order)
    return bool(data)


def _end_group() -> None:
    """End this process at once, and what its calls have started."""
    if os.getpgrp() == os.getpid():  # not so in a child that was forked: its end is its own
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


# Signals and descriptors.


def _ignore_endings() -> None:
    """The pipe and the supervisor decide when this process ends.

    By a handler and not by SIG_IGN, which programs that the function starts would inherit: they could not be terminated.
    """
    for number in ENDINGS:
        signal.signal(number, _pass_over)


def _pass_over(_number: int, _frame: FrameType | None) -> None:
    """Do nothing."""


def _keep_from_descendants() -> None:
    """Processes that user code starts get none of our pipes, and obey signals.

    One that is forked and lives on would else hold the pipe and the sentinel open, and nobody would see our end.
    """
    ours = dict(_pipes())
    for descriptor in ours:
        os.set_inheritable(descriptor, False)

    masks = threading.local()

    def before() -> None:
        masks.old = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # one that comes too early waits for `in_child`

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.old)

    def in_child() -> None:
        for number in ENDINGS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.old)
        for descriptor, identity in ours.items():
            with contextlib.suppress(OSError):  # user code has closed it
                if _identity(os.fstat(descriptor)) == identity:
                    os.close(descriptor)

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _pipes() -> Iterator[tuple[int, tuple[int, int]]]:
    """The open pipes and sockets but the standard streams and the resource tracker's, which descendants share by design."""
    shared = {0, 1, 2, resource_tracker.getfd()}
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    for descriptor in {int(name) for name in os.listdir(folder)} - shared:  # noqa: PTH208 - names alone
        with contextlib.suppress(OSError):  # the one that listed the folder
            status = os.fstat(descriptor)
            if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                yield descriptor, _identity(status)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
