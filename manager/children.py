"""Child processes of the supervisor: spawned so that no signal finds them unprepared, and reaped exactly once.

Owner: the event loop's thread, which must be the main thread: the kernel's parent-death signal, which children ask for,
follows the thread that spawned them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import multiprocess
import multiprocess.connection  # `Process.join` imports it at its first call: not when descriptors have run out
from multiprocess import resource_tracker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UNKNOWN_STATUS = 255
REAP_AGAIN = 0.002
"""Seconds between an exit's first sign (its descriptors close) and another look for its status, which comes a moment later."""


def spawn_with_pipe(
    target: Callable[..., None],
    arguments: Callable[[socket.socket], Sequence[Any]],
    *,
    name: str,
    on_exit: Callable[[str], None],
) -> tuple[socket.socket, Child]:
    """Spawn a child that is given one end of a socket pair; returns our end and the child. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        return ours, Child(target, arguments(theirs), name=name, on_exit=on_exit)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()


class Child:
    """One spawned process. `on_exit(reason)` is called once, when it has exited and has been reaped."""

    def __init__(
        self, target: Callable[..., None], arguments: Sequence[Any], *, name: str, on_exit: Callable[[str], None]
    ) -> None:
        """Spawn it. Raises OSError where the system refuses another process."""
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._exited = False
        process = multiprocess.get_context("spawn").Process(
            target=target, args=tuple(arguments), name=name, daemon=True
        )
        resource_tracker.ensure_running()  # it unblocks the two signals when it starts: so before we block them
        # Between its start and the line where it ignores them, SIGINT and SIGTERM would end it: they wait instead.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._process = process
        self.pid: int = process.pid
        self._loop.add_reader(process.sentinel, self._sentinel_closed)

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal, unless it has exited: a number that was given back may name a stranger."""
        if not self._exited:
            with contextlib.suppress(ProcessLookupError):  # somebody else's wait has reaped it
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it by force, unless it has exited."""
        self.send_signal(signal.SIGKILL)

    def _sentinel_closed(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._reap()

    def _reap(self) -> None:
        self._process.join(timeout=0)
        code = self._process.exitcode
        if code is None and _is_waitable(self.pid):
            self._loop.call_later(REAP_AGAIN, self._reap)
            return
        self._exited = True
        if code is None:  # or `close` would refuse: for all it knows, the process runs
            self._process._popen.returncode = UNKNOWN_STATUS  # noqa: SLF001
        self._process.close()
        self._on_exit(_describe(code))


def _is_waitable(pid: int) -> bool:
    """Whether this process is still ours to wait for; not so when a library has waited for any child and got ours."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _describe(code: int | None) -> str:
    if code is None:
        return "ended (its exit status was taken by somebody else's wait)"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
