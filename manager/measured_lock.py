"""A lock that knows how often it was waited for, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter


class MeasuredLock:
    """A `threading.Lock` for `with`, measured. Not reentrant: a thread that takes it twice waits for ever.

    All that is counted is counted while the lock is held, so it is exact, and what counts needs no lock of its own.
    """

    __slots__ = ("_acquire", "_lock", "_record_hold", "_record_wait", "_release", "_since", "acquisitions", "contended")

    def __init__(self, record_wait: Callable[[float], None], record_hold: Callable[[float], None]) -> None:
        """Both are called once for each acquisition, with seconds, by the thread that holds the lock: keep them short."""
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release  # looked up once: this is a hot path
        self._record_wait = record_wait
        self._record_hold = record_hold
        # Guarded by the lock itself.
        self._since = 0.0  # perf_counter() at the last acquisition
        self.acquisitions = 0
        self.contended = 0  # acquisitions for which the lock was not free at once

    def __enter__(self) -> None:
        # First without waiting: only who has to wait pays for one more look at the clock.
        if self._acquire(False):
            asked = now = perf_counter()
        else:
            asked = perf_counter()
            self._acquire()
            now = perf_counter()
            self.contended += 1
        try:
            self._since = now
            self.acquisitions += 1
            self._record_wait(now - asked)
        except BaseException:
            self._release()  # `with` calls __exit__ only after an entry that succeeded
            raise

    def __exit__(self, _kind: object, _error: object, _trace: object) -> None:
        try:
            self._record_hold(perf_counter() - self._since)
        finally:
            self._release()

    def locked(self) -> bool:
        """Whether somebody holds it at this moment."""
        return self._lock.locked()
