"""Running a caller's function in its own process, under a deadline.

A plain function cannot be stopped from outside. With a deadline it therefore runs in a thread of its own: at the deadline the caller
goes on, and the thread is abandoned, counted, and uncounted when it ends. A coroutine is cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from callpool.manager.channel import Sleeper

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

CANCEL_GRACE = 0.5
"""Seconds for a cancelled coroutine to end before its thread counts as abandoned."""


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """What `execute_sync` returns: the result or the exception of the function, and whether it completed."""

    result: Any = None
    exception: BaseException | None = None
    completed: bool = False


class Overdue(Exception):
    """The function was not done at its deadline."""


class Job:
    """One function in a thread of its own, with the caller's context variables."""

    def __init__(self, work: Callable[[], Any], seconds: float | None = None) -> None:
        """`seconds` is for a coroutine that `work` may return: it is cancelled then."""
        self._work = work
        self._seconds = seconds
        self.is_coroutine = False
        """Whether it has come to a coroutine, which ends by itself soon after its deadline."""
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._done = Sleeper()
        self._ended = False
        self._tell: Callable[[], None] | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        # A daemon: an abandoned function that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="callpool-work", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; whether it came in time."""
        self._done.sleep(seconds)
        with self._lock:
            return self._ended

    def call_at_end(self, tell: Callable[[], None]) -> bool:
        """Have `tell` called when it ends; False if it has ended."""
        with self._lock:
            if self._ended:
                return False
            self._tell = tell
            return True

    def outcome(self, *, wait: bool = False) -> Any:
        """Its value; raises its exception."""
        if wait:
            self._done.sleep()
        if self.error is not None:
            raise self.error
        return self.value

    def _run(self) -> None:
        try:
            self.value = self._context.run(self._settle)
        except BaseException as error:  # noqa: BLE001 - it is the caller's, and is raised there
            self.error = error
        with self._lock:
            self._ended = True
            tell = self._tell
        self._done.wake()
        if tell is not None:
            tell()

    def _settle(self) -> Any:
        value = self._work()
        if not inspect.iscoroutine(value):
            return value
        self.is_coroutine = True
        return asyncio.run(_within(value, self._seconds))


def run_in_caller(work: Callable[[], Any], seconds: float | None, on_abandon: Callable[[Job], None]) -> Any:
    """Run `work`, which may return a coroutine, in this process. At the deadline raises Overdue.

    `on_abandon` is told of the job whose thread works on, after a deadline or after Ctrl-C.
    """
    if seconds is None:
        value = work()
        if not inspect.iscoroutine(value):
            return value
        return Job(lambda: value).outcome(wait=True)  # in a thread: this one may have a loop that runs
    job = Job(work, seconds)
    try:
        in_time = job.wait(seconds) or (job.is_coroutine and job.wait(CANCEL_GRACE))
    except BaseException:  # Ctrl-C: nobody waits for the thread any more
        on_abandon(job)
        raise
    if not in_time:
        on_abandon(job)
        raise Overdue
    return job.outcome()


async def _within(work: Coroutine[Any, Any, Any], seconds: float | None) -> Any:
    deadline: asyncio.Timeout | None = None
    try:
        async with asyncio.timeout(seconds) as deadline:
            return await work
    except TimeoutError:
        if deadline is not None and deadline.expired():
            raise Overdue from None
        raise  # the function's own
