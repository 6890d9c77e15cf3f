"""Who reads a channel's socket: whoever waits for an answer, else a thread in the background.

A thread that waits reads for itself and for all others (the leader); those that come meanwhile sleep until their own answer
is there, or until the leader leaves and wakes one of them to take over. So an answer reaches a lone caller without a change
of threads, which costs more than all the rest of a round trip. When nobody waits, the background thread reads, so that
nothing is left lying in the socket: it steps aside when a caller waits, and looks again every `NAP` seconds whether callers
still do the reading.

Shared state: `_role`, the lock of the one who reads; `_followers`, under `lock`; `_led`, which only grows; `_wanted`, set by
those who wait while somebody else reads.
"""

from __future__ import annotations

import select
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

NAP = 0.05
"""Seconds that the background thread leaves the socket to callers: the longest that an event nobody waits for lies unread."""
PATIENCE = 1.0
"""Seconds after which a blocking receive returns, so that its caller can look at its deadline."""


class Sleeper:
    """One waiting thread's bed: `sleep` returns when `wake` was called, before or meanwhile. Wake under the channel's lock."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, seconds: float | None) -> None:
        """Until somebody wakes this thread, or so many seconds."""
        self._lock.acquire(timeout=-1 if seconds is None else seconds)

    def wake(self) -> None:
        """End the sleep, or the next one."""
        if self._lock.locked():
            self._lock.release()


class Reading:
    """The reading side of one socket, whose receives return after `PATIENCE` seconds at the latest.

    `read_once()` receives and handles what is there; false when the socket has ended, and everybody has been told.
    """

    def __init__(self, connected: socket.socket, lock: threading.Lock, *, read_once: Callable[[], bool]) -> None:
        self._socket = connected
        self._lock = lock
        self._read_once = read_once
        self._role = threading.Lock()
        self._followers: list[Sleeper] = []
        self._wanted = False
        self._led = 0

    def wait(self, ready: Callable[[], bool], sleeper: Sleeper, deadline: float | None) -> bool:
        """Read, or sleep while somebody else does, until `ready()`; false at the deadline (monotonic seconds).

        `ready` must become true when the socket ends. The caller has put `sleeper` where its events wake it.
        """
        while not ready():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            with self._lock:
                self._followers.append(sleeper)
            try:
                # In this order: who leaves the role looks for followers after that, so one of the two sees the other.
                if self._role.acquire(blocking=False):
                    self._lead(ready, deadline)
                else:
                    self._wanted = True
                    sleeper.sleep(left)
            finally:
                with self._lock:
                    self._followers.remove(sleeper)
        return True

    def run_background(self) -> None:
        """The background thread's work, until the socket ends."""
        led = 0
        while True:
            if led != self._led or self._wanted:  # callers do the reading, or one would like to
                led, self._wanted = self._led, False
                time.sleep(NAP)
                continue
            with self._role:
                while self._is_mine():
                    if not self._read_once():
                        return
            self._hand_over()

    def _is_mine(self) -> bool:
        return not self._wanted

    def _lead(self, ready: Callable[[], bool], deadline: float | None) -> None:
        self._led += 1
        try:
            while not ready():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left < PATIENCE and not self._readable_within(left):
                    return
                if not self._read_once():
                    return
        finally:
            self._role.release()
            self._hand_over()

    def _readable_within(self, seconds: float) -> bool:
        return seconds > 0 and bool(select.select([self._socket], [], [], seconds)[0])

    def _hand_over(self) -> None:
        with self._lock:
            for follower in self._followers:
                follower.wake()
                return
