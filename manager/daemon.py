"""The supervisor process from its first line to its last: locks, loop, readiness, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager import failpoints, logs
from callpool.manager.boot import Began, Boot, read_memory_file
from callpool.manager.errors import AlreadyRunning, CallpoolError, StartFailed, UnsafePath, to_fault
from callpool.manager.exits import Exit
from callpool.manager.locks import InstanceLock, KeyLocks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)

RUNTIME_LOCK = "supervisor.lock"
HOME_LOCK = "home.lock"
MAX_DESCRIPTORS = 65_536


def run(boot_descriptor: int) -> int:
    """Be a supervisor. Returns the exit status; what kept it from starting goes to the log and to whoever waits."""
    boot = msgspec.msgpack.decode(read_memory_file(boot_descriptor), type=Boot)
    for descriptor in (boot.secrets_descriptor, boot.ready_descriptor, boot.lifeline_descriptor):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)  # children get what they are given, and nothing else
    logs.configure()
    failpoints.arm(boot.failpoint, failpoints.SUPERVISOR_POINTS)
    os.umask(0o077)
    _raise_descriptor_limit()
    try:
        return _serve(boot)
    except CallpoolError as error:
        log.error("cannot start: %s%s", error.message, f" ({error.hint})" if error.hint else "")  # noqa: TRY400 - no defect
        _tell(boot, error)
        return _exit_of(error)
    except OSError as error:
        failed = StartFailed(f"{error.filename or boot.home}: {error.strerror or error}")
        log.error("cannot go on: %s", failed.message)  # noqa: TRY400 - the system's fault, not the code's
        _tell(boot, failed)
        return Exit.FAILED
    except Exception as error:
        log.exception("the supervisor ended by a defect")
        _tell(boot, error)
        return Exit.INTERNAL


def _serve(boot: Boot) -> int:
    with contextlib.ExitStack() as stack:
        stack.enter_context(InstanceLock(Path(boot.socket).parent / RUNTIME_LOCK, boot.socket))
        stack.enter_context(InstanceLock(Path(boot.home) / HOME_LOCK, boot.socket))
        key_locks = KeyLocks(Path(boot.key_lock_dir), boot.key_facts, boot.socket)
        key_locks.acquire()
        stack.callback(key_locks.release)
        from callpool.manager.supervisor import Supervisor  # noqa: PLC0415 - a second start is refused without it

        async def live() -> Exit:
            supervisor = Supervisor(boot, on_ready=lambda address: _ready(boot, address))
            gc.freeze()  # what was imported stays: the collector need not look at it again
            status = await supervisor.run()
            if not supervisor.was_ready and boot.mode != "foreground":
                raise StartFailed("the supervisor was told to stop while it started")
            return status

        return _run_loop(live)


def _run_loop(main: Callable[[], Coroutine[Any, Any, Exit]]) -> Exit:
    try:
        import uvloop  # noqa: PLC0415 - absent on some platforms
    except ImportError:
        return asyncio.run(main())
    return uvloop.run(main())


def _ready(boot: Boot, address: str) -> None:
    log.info("ready: pid %s, %s", os.getpid(), address)
    if boot.ready_descriptor is not None:
        with contextlib.suppress(OSError):  # whoever waited has gone
            _write_line(boot.ready_descriptor, msgspec.json.encode(Began(pid=os.getpid(), address=address)))


def _tell(boot: Boot, error: Exception) -> None:
    """Tell whoever waits for readiness that there will be none."""
    if boot.ready_descriptor is not None:
        with contextlib.suppress(OSError):  # told before, or nobody waits
            _write_line(boot.ready_descriptor, msgspec.json.encode(to_fault(error)))


def _write_line(descriptor: int, line: bytes) -> None:
    os.write(descriptor, line + b"\n")
    os.close(descriptor)


def _exit_of(error: CallpoolError) -> Exit:
    if isinstance(error, AlreadyRunning):
        return Exit.ALREADY_RUNNING
    if isinstance(error, UnsafePath):
        return Exit.NOT_ALLOWED
    return Exit.FAILED


def _raise_descriptor_limit() -> None:
    """A connection, a pidfd and a provider socket each take one; the usual soft limit of 1,024 is soon reached."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        log.warning("cannot raise the limit of open files: %s", error)
