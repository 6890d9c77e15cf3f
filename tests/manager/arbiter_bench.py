"""An arbiter on the bench: real processes that behave badly, and what it told of them. Use the fixture `importable`."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from callpool.manager.arbiter import Arbiter
from callpool.manager.recycling import Limits

HANG = 20.0
NO_LIMITS = Limits()


class Events:
    """What the arbiter told."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.asked_to_retire = self.holds_back = 0
        self.drains = False
        self.busy: set[int] = set()
        """Workers that somebody's call is with."""

    def worker_up(self, worker: int) -> None:
        self.log.append(("up", worker))

    def worker_down(self, worker: int, reason: str) -> None:
        self.log.append(("down", worker, reason))

    def worker_retiring(self, worker: int) -> None:
        self.log.append(("retiring", worker))

    def may_retire(self, worker: int) -> bool:
        self.asked_to_retire += 1
        return self.asked_to_retire > self.holds_back

    @property
    def is_draining(self) -> bool:
        return self.drains

    def worker_is_idle(self, worker: int) -> bool:
        return worker not in self.busy

    def start_failed(self, cause: str) -> None:
        self.log.append(("start failed", cause))

    def handle_reports(self, worker: int, reports: Iterable[Any]) -> None:
        self.log += [("report", worker, report.request_id) for report in reports]

    def count(self, kind: str) -> int:
        return sum(entry[0] == kind for entry in self.log)


def only_the_pipe(_worker: int, pipe: socket.socket) -> Sequence[Any]:
    return (pipe,)


def run(
    target: Callable[..., None],
    test: Callable[[Arbiter, Events], Awaitable[None]],
    *,
    count: int = 1,
    heartbeat: float = 10.0,
    grace: float = 0.2,
    limits: Limits = NO_LIMITS,
    draw: Callable[[], float] = random.random,
    arguments: Callable[[int, socket.socket], Sequence[Any]] = only_the_pipe,
) -> Events:
    events = Events()

    async def body() -> None:
        subject = Arbiter(
            events,
            count=count,
            target=target,
            arguments=arguments,
            heartbeat_interval=heartbeat,
            limits=limits,
            draw=draw,
        )
        subject.start()
        try:
            async with asyncio.timeout(HANG):
                await test(subject, events)
        finally:
            await asyncio.wait_for(subject.stop(grace=grace), HANG)

    asyncio.run(body())
    return events


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)
