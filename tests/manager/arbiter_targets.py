"""Workers that behave badly. Spawned by test_arbiter, so they live in a module that a new process can import."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from callpool.manager import wire
from callpool.manager.core.messages import Finished, Heartbeat, Ready
from callpool.manager.core.pools import PoolCounts


def _say(pipe: socket.socket, *reports: object) -> None:
    pipe.sendall(wire.encode_frame(list(reports)))


def _hold(pipe: socket.socket) -> None:
    """Until the pipe ends."""
    while pipe.recv(65536):
        pass


def good(pipe: socket.socket) -> None:
    """Ready, and obeys the end of the pipe."""
    _say(pipe, Ready(os.getpid()))
    _hold(pipe)


def dies_at_once(_pipe: socket.socket) -> None:
    """A fault at import, a missing library."""
    os._exit(3)


def ill_while(pipe: socket.socket, cause: str) -> None:
    """Dies of a fault at import as long as a file is there, and is well afterwards."""
    if Path(cause).exists():
        raise ImportError("no module of that name")
    good(pipe)


def worn_out(pipe: socket.socket) -> None:
    """Has ended five calls as soon as it is ready; beats until it is spoken to, then goes."""
    _say(pipe, Ready(os.getpid()), *(Finished(f"r{number}", 1) for number in range(5)))
    _beat_until_told(pipe)


def worn_out_unless(pipe: socket.socket, cause: str) -> None:
    """The same, unless a file keeps it from starting."""
    if Path(cause).exists():
        os._exit(3)
    worn_out(pipe)


def worn_out_and_deaf(pipe: socket.socket) -> None:
    """The same, but it never goes."""
    worn_out(pipe)
    _hold(pipe)


def ready_when_told(pipe: socket.socket, gate: str) -> None:
    """Worn out; not ready before a file is there, where one is named."""
    while gate and not Path(gate).exists():
        signal.sigtimedwait([signal.SIGUSR1], 0.01)  # its pause
    worn_out(pipe)


def _beat_until_told(pipe: socket.socket) -> None:
    pipe.settimeout(0.02)
    while True:
        try:
            pipe.recv(65536)
        except TimeoutError:
            _say(pipe, Heartbeat(0, 0.0, {}))
        else:
            pipe.settimeout(None)
            return


def never_ready(pipe: socket.socket) -> None:
    """Starts and says nothing."""
    _hold(pipe)


def closes_its_pipe(pipe: socket.socket) -> None:
    """Lives on without a pipe."""
    _say(pipe, Ready(os.getpid()))
    pipe.close()
    signal.pause()


def stubborn(pipe: socket.socket) -> None:
    """Ends for nobody."""
    _say(pipe, Ready(os.getpid()))
    while True:
        signal.pause()


def last_words(pipe: socket.socket) -> None:
    """Reports a great many results and dies in the middle of nothing."""
    _say(pipe, Ready(os.getpid()), *(Finished(f"r{number}", 1, b"x" * 100) for number in range(500)))
    os.kill(os.getpid(), signal.SIGKILL)


def counts_and_ends(pipe: socket.socket) -> None:
    """Tells twice of its connections, and dies once it is spoken to."""
    early = PoolCounts(requests=1, opened=1, open=1)
    late = PoolCounts(requests=5, opened=2, connect_seconds=0.5, connect_seconds_max=0.4, open=2, idle=1, waiting=3)
    beats = [Heartbeat(0, 0.0, {"a": early}), Heartbeat(0, 0.0, {"a": late, "b": early})]
    _say(pipe, Ready(os.getpid()), *beats)
    pipe.recv(1)
    os._exit(4)
