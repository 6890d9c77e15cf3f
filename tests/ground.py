"""Clean ground: what a test process holds, and what a test left behind.

    before = survey()
    ...                                 # the test
    left = leftovers(before, marker)    # waits a bounded time for things that are just ending
    remove(left)                        # so that the next test starts clean
    assert not left

Held are child processes of every depth (a zombie is one that nobody waited for), open file descriptors by what they
refer to, and threads that keep a process alive. A daemon that gave up its parent is found by its environment: the marker,
`NAME=value`, is a variable that only this test's processes have.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing.resource_tracker
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import multiprocess.resource_tracker
import psutil

PATIENCE = 5.0
"""Seconds that ending processes, threads and descriptors get: a hang limit, no measurement."""
PAUSE = 0.01
"""Seconds between two looks. Nothing here can be waited for in one call: descriptors and threads send no event."""

DESCRIPTORS = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
TRACKERS = ("multiprocess.resource_tracker", "multiprocessing.resource_tracker")
"""The standard library starts one for a process and keeps it until the end, by design: no test's leftover."""


@dataclass(frozen=True)
class Ground:
    """What this process holds at one moment."""

    processes: frozenset[psutil.Process]
    descriptors: Counter[str]
    threads: frozenset[threading.Thread]


@dataclass(frozen=True)
class Leftovers:
    """What is there now and was not before. False where there is nothing."""

    processes: frozenset[psutil.Process]
    descriptors: Counter[str]
    threads: frozenset[threading.Thread]

    def __bool__(self) -> bool:
        return bool(self.processes or self.descriptors or self.threads)

    def __str__(self) -> str:
        lines = [f"process {describe(process)}" for process in self.processes]
        lines += [f"descriptor of {target}, {count} times" for target, count in self.descriptors.items()]
        lines += [f"thread {thread.name}" for thread in self.threads]
        return "\n".join(sorted(lines))


def survey() -> Ground:
    """Look around."""
    return Ground(frozenset(children()), open_descriptors(), keeping_alive())


def children() -> set[psutil.Process]:
    """Child processes of every depth, zombies among them, without the resource trackers."""
    return {child for child in psutil.Process().children(recursive=True) if not is_tracker(child)}


def is_tracker(process: psutil.Process) -> bool:
    """Whether this is the resource tracker of the standard library or of `multiprocess`."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(f"from {tracker} import main" in command for tracker in TRACKERS)


def marked(marker: str) -> set[psutil.Process]:
    """Every process but this one whose environment at its start had the variable, given as `NAME=value`."""
    name, _, value = marker.partition("=")
    found = set()
    for process in psutil.process_iter():
        # Not ours to read, or just gone: neither can be one that this test started and left.
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.add(process)
    return found


def open_descriptors() -> Counter[str]:
    """Open descriptors by what they refer to, like `socket:[4711]`; by number where the system does not tell."""
    targets: Counter[str] = Counter()
    for descriptor in DESCRIPTORS.iterdir():
        try:
            targets[str(descriptor.readlink())] += 1
        except FileNotFoundError:
            continue  # the descriptor that listed the folder
        except OSError:
            targets[str(descriptor)] += 1
    # Each tracker's process is fed through a pipe of its own.
    targets.subtract(tracker_pipes())
    return +targets


def tracker_pipes() -> list[str]:
    """What the descriptors of running resource trackers refer to."""
    pipes = []
    for module in (multiprocessing.resource_tracker, multiprocess.resource_tracker):
        descriptor = getattr(module, "_resource_tracker")._fd  # noqa: B009  # no public way to ask, and no type of it
        with contextlib.suppress(OSError):
            if descriptor is not None:
                pipes.append(str((DESCRIPTORS / str(descriptor)).readlink()))
    return pipes


def keeping_alive() -> frozenset[threading.Thread]:
    """Threads that are no daemons: the interpreter waits for them at its end."""
    return frozenset(thread for thread in threading.enumerate() if not thread.daemon)


def leftovers(before: Ground, marker: str | None = None, patience: float | None = None) -> Leftovers:
    """What is held beyond `before`: nothing, as soon as that is so, or what is left after `patience` seconds."""
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        left = compare(before, marker)
        if not left or time.monotonic() >= deadline:
            return left
        if left.descriptors:
            gc.collect()  # a descriptor in a reference cycle closes here, with the ResourceWarning that makes it a failure
        time.sleep(PAUSE)


def compare(before: Ground, marker: str | None) -> Leftovers:
    """What is held now beyond `before`."""
    now = survey()
    strangers = marked(marker) if marker else set()
    return Leftovers(
        processes=(now.processes | strangers) - before.processes,
        descriptors=now.descriptors - before.descriptors,
        threads=now.threads - before.threads,
    )


def remove(left: Leftovers) -> None:
    """End and reap the processes that a test left. Descriptors and threads cannot be taken from their owners."""
    for process in left.processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left.processes, timeout=PATIENCE)


def describe(process: psutil.Process) -> str:
    """`4711 sleeping: sleep 60`; a zombie has no arguments any more, only its program's name."""
    try:
        status = process.status()
        command = [process.name()] if status == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.Error:
        return f"{process.pid}, just gone"
    return f"{process.pid} {status}: {' '.join(command)}"


def wait_for(what: str, holds: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait until the condition holds. Raises TimeoutError, naming `what`, after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not holds():
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {patience} s for {what}")
        time.sleep(PAUSE)
