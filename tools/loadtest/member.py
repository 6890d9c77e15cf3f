"""What both kinds of client process share: take an order, wait for the word, tell what becomes of each request.

The process ends when its standard input does: a parent that is gone, however that came, leaves no client behind.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable

from callpool.tools.loadtest.messages import Ended, News, Ready, encode

STDIN = 0

Ask = Callable[[int], Awaitable[str | None]]
"""Makes request N, from 1; returns None for an answer, else the code of the error."""


def read_order_line() -> bytes:
    """The first line of standard input; empty where the parent is gone."""
    return sys.stdin.buffer.readline()


async def perform(count: int, ask: Ask, *, wait: float) -> None:
    """Say that all is ready, and after the word make `count` requests, all at once. TimeoutError after `wait` seconds."""
    tell(Ready())
    await _word()
    async with asyncio.timeout(wait), asyncio.TaskGroup() as group:
        for number in range(1, count + 1):
            group.create_task(_follow(number, ask))


async def _follow(number: int, ask: Ask) -> None:
    submitted = time.monotonic()
    error = await ask(number)
    tell(Ended(number, submitted, time.monotonic(), error))


async def _word() -> None:
    """Return when the parent has given the word; from then on the end of standard input ends this process."""
    loop = asyncio.get_running_loop()
    given = asyncio.Event()

    def heard() -> None:
        if not os.read(STDIN, 4_096):
            os._exit(1)  # nobody is left to tell; the system closes the connections
        given.set()

    loop.add_reader(STDIN, heard)
    await given.wait()


def tell(news: News) -> None:
    """Write one line for the parent."""
    sys.stdout.buffer.write(encode(news))
    sys.stdout.buffer.flush()
