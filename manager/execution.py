"""Running a caller's function in its own process, under a deadline.

A plain function cannot be stopped from outside. With a deadline it therefore runs in a thread of its own: at the deadline the caller
goes on, and the thread is abandoned, counted, and uncounted when it ends. A coroutine is cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
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

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._done = Sleeper()
        self._ended = False
        self._at_end: Callable[[], None] | None = None
        self._abandoned = False
        self._value: Any = None
        self._error: BaseException | None = None
        # A daemon: an abandoned function that hangs must not keep the program from ending.
        threading.Thread(target=self._run, name="callpool-work", daemon=True).start()

    def wait(self, seconds: float | None) -> bool:
        """Wait for the end; whether it came in time."""
        self._done.sleep(seconds)
        with self._lock:
            return self._ended

    def call_at_end(self, tell: Callable[[], None]) -> bool:
        """Have `tell` called at the end, on the job's thread; False if it has ended already."""
        with self._lock:
            if self._ended:
                return False
            self._at_end = tell
            return True

    def abandon(self) -> None:
        """Nobody waits for it any more: what it comes to is disposed of."""
        with self._lock:
            self._abandoned = True
            if self._ended:
                _dispose(self._value)

    def outcome(self) -> Any:
        """The function's value; raises its exception. Once: the job lets go of both."""
        error, value, self._error, self._value = self._error, self._value, None, None
        if error is None:
            return value
        try:
            raise error
        finally:
            del (
                error
            )  # or its traceback would hold this frame, which holds it: the arguments would wait for the collector

    def _run(self) -> None:
        try:
            self._value = self._context.run(self._work)
        except BaseException as error:  # noqa: BLE001 - it is the caller's, and is raised there
            self._error = error
        del self._work  # its arguments are not needed any more
        with self._lock:
            self._ended = True
            if self._abandoned:
                _dispose(self._value)
            tell = self._at_end
            self._done.wake()
        if tell is not None:
            tell()


def _dispose(value: object) -> None:
    if inspect.iscoroutine(value):
        value.close()  # or Python would warn that it was never awaited


def is_coroutine_function(func: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine: also an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004 - its kind is asked for


def run_in_caller(work: Callable[[], Any], seconds: float | None, on_abandon: Callable[[Job], None]) -> Any:
    """Run `work`, which may return a coroutine, in this process. At the deadline raises Overdue.

    `on_abandon` is told of the job whose thread works on, after a deadline or after Ctrl-C.
    """
    coroutines: list[object] = []
    begin = time.monotonic()

    def whole() -> Any:
        value = work()
        if not inspect.iscoroutine(value):
            return value
        coroutines.append(None)
        left = None if seconds is None else seconds - (time.monotonic() - begin)
        if left is not None and left <= 0.0:
            value.close()  # its time is over before it has begun
            raise Overdue
        return asyncio.run(within(value, left))

    if seconds is None and not _has_running_loop():
        return whole()
    job = Job(whole)
    try:
        in_time = job.wait(seconds) or (bool(coroutines) and job.wait(CANCEL_GRACE))
    except BaseException:  # Ctrl-C: nobody waits for the thread any more
        job.abandon()
        on_abandon(job)
        raise
    if not in_time:
        job.abandon()
        on_abandon(job)
        raise Overdue
    return job.outcome()


def _has_running_loop() -> bool:
    """Whether this thread is in the middle of an event loop, where no other can be run."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def within(work: Coroutine[Any, Any, Any], seconds: float | None) -> Any:
    """Await `work`; at the deadline cancel it and raise Overdue, whatever it makes of that.

    One that does not end within `CANCEL_GRACE` of its cancellation is left to itself. So is it when this task is cancelled.
    """
    if seconds is None:
        return await work
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if done:
            return task.result()
    except asyncio.CancelledError:
        if not task.done():
            await _end(task)
        raise
    await _end(task)
    raise Overdue


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    task.add_done_callback(_retrieve)
    await asyncio.wait({task}, timeout=CANCEL_GRACE)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """What it came to after its end was ordered interests nobody."""
    if not task.cancelled():
        task.exception()


async def run_in_thread(work: Callable[[], Any], seconds: float | None, on_abandon: Callable[[Job], None]) -> Any:
    """Run a plain `work` beside this event loop; a coroutine that it returns is awaited in this loop, within the same deadline."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell() -> None:
        try:
            loop.call_soon_threadsafe(ended.set)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    begin = loop.time()
    job = Job(work)
    if not job.call_at_end(tell):
        ended.set()
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        job.abandon()
        on_abandon(job)
        raise Overdue from None
    except BaseException:
        job.abandon()
        on_abandon(job)
        raise
    value = job.outcome()
    if not inspect.iscoroutine(value):
        return value
    left = None if seconds is None else seconds - (loop.time() - begin)
    if left is not None and left <= 0.0:
        value.close()
        raise Overdue
    return await within(value, left)
