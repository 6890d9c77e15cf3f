"""The main function of a worker process, and the guards that tie its life to the supervisor's.

A worker ignores SIGINT and SIGTERM: it obeys its pipe. It ends when the pipe ends, and on Linux the kernel kills it when
the supervisor dies, even if it is stopped or stuck in C.
"""

from __future__ import annotations

import asyncio
import faulthandler
import resource
import signal
from typing import TYPE_CHECKING

import msgspec

from callpool.manager import failpoints
from callpool.workers.boot import WorkerBoot
from callpool.workers.lifeline import die_with

if TYPE_CHECKING:
    import socket

    from callpool.workers.boot import SecretsFile


def main(pipe: socket.socket, boot: bytes, secrets: SecretsFile) -> None:
    """Run one worker until its pipe ends or it is retired."""
    settings = msgspec.msgpack.decode(boot, type=WorkerBoot)
    die_with(settings.supervisor_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # blocked while it was spawned
    faulthandler.enable()  # SIGABRT of a supervisor that misses heartbeats prints where the worker hangs
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold keys and prompts
    failpoints.arm(settings.failpoint, failpoints.WORKER_POINTS)
    keys = secrets.read()
    secrets.close()
    from callpool.workers.loop import WorkerLoop  # noqa: PLC0415 - after the guards: imports take time

    async def run() -> None:
        await WorkerLoop(pipe, settings, keys).run()

    try:
        import uvloop  # noqa: PLC0415 - absent on some platforms
    except ImportError:
        asyncio.run(run())
    else:
        uvloop.run(run())
