"""What a careful user writes without callpool: one process, aiohttp on uvloop, a semaphore.

No limits that hold across processes, no queue that others share, no isolation: the least that the same calls can cost.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import aiohttp
import uvloop

from work import PATIENCE, REPLY, requests_for


class PlainProcess:
    """That program, in a process of its own that keeps its connections between rounds."""

    def __init__(self, url: str, at_once: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, url, at_once), daemon=True)
        self._process.start()
        theirs.close()

    def make(self, count: int) -> tuple[float, float]:
        """Make this many calls; wall and CPU seconds. TimeoutError after `PATIENCE`, EOFError if the process failed."""
        self._ours.send(count)
        if not self._ours.poll(PATIENCE):
            raise TimeoutError(f"the calls did not end within {PATIENCE:g} s")
        wall, cpu = self._ours.recv()
        return wall, cpu

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()  # ends its loop
        self._process.join(PATIENCE)


def _serve(pipe: Connection, url: str, at_once: int) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        session = runner.run(_open_session())
        try:
            while True:
                count: int = pipe.recv()
                requests = requests_for("m", count)
                wall, cpu = time.perf_counter(), time.process_time()
                answers = runner.run(_make(session, url, requests, at_once))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                assert answers == [REPLY] * count
                pipe.send((wall, cpu))
        except EOFError:
            return
        finally:
            runner.run(session.close())


async def _open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def _make(session: aiohttp.ClientSession, url: str, requests: list[dict[str, Any]], at_once: int) -> list[str]:
    slots = asyncio.Semaphore(at_once)

    async def one(request: dict[str, Any]) -> str:
        body = {"model": request["model"], "messages": request["messages"]}
        async with slots, session.post(url, json=body) as response:
            answer = await response.json()
        content: str = answer["choices"][0]["message"]["content"]
        return content

    return await asyncio.gather(*(one(request) for request in requests))
