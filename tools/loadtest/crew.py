"""The parent's side of client processes: start them, wait until all are ready, give the word, collect what they tell.

client 1 ──stdout──┐
client 2 ──stdout──┼──► one event loop ──► outcomes
…                  ┘
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from callpool import errors
from callpool.tools.loadtest.judge import Outcome
from callpool.tools.loadtest.messages import News, Order, Ready, decode_news, encode

COMMAND: Final = (sys.executable, "-Im", "callpool.tools.loadtest")
READY_LIMIT: Final = 90.0
"""Seconds until every client must be ready; each needs a fraction of one of CPU time, on a busy machine more."""
END_GRACE: Final = 5.0
"""Seconds that a client gets to end by itself before it is killed."""
LOOK_INTERVAL: Final = 0.5
"""Seconds between two looks for the line that tells how far the run is."""
LINE_LIMIT: Final = 1 << 16
"""Bytes; a line of news has about a hundred."""
STDERR_BYTES: Final = 2_000
"""As much of a broken client's last words as a person wants to read."""


class LoadtestFailed(errors.CallpoolError):
    """The load test could not be carried out: its figures would mean nothing. The message says what happened."""

    code = "loadtest_failed"


async def perform(orders: Sequence[Order], *, within: float, look: Callable[[int], None]) -> list[Outcome]:
    """Have every order carried out by a process of its own; what became of each request. It never leaves a process.

    `look` gets the number of requests that are over, now and then. Raises LoadtestFailed where a client breaks or the run is not
    over `within` seconds.
    """
    crew: list[_Member] = []
    try:
        async with asyncio.timeout(READY_LIMIT):
            for order in orders:
                crew.append(await _Member.start(order))  # noqa: PERF401 - each is known as soon as it is there, and ended
            for member in crew:
                await member.ready()
        for member in crew:
            member.give_the_word()
        looking = asyncio.create_task(_look_on(crew, look))
        try:
            async with asyncio.timeout(within):
                await asyncio.gather(*(member.follow() for member in crew))
        finally:
            looking.cancel()
    except TimeoutError:
        raise LoadtestFailed(
            f"the clients were not ready or not done in time ({within:.0f} s for the requests)"
        ) from None
    finally:
        await asyncio.gather(*(member.end() for member in crew))
    return [outcome for member in crew for outcome in member.outcomes]


async def _look_on(crew: Sequence[_Member], look: Callable[[int], None]) -> None:
    while True:
        look(sum(len(member.outcomes) for member in crew))
        await asyncio.sleep(LOOK_INTERVAL)


class _Member:
    """One client process. Owner: the event loop's thread."""

    def __init__(self, order: Order, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise RuntimeError("the client was started without pipes")
        self.outcomes: list[Outcome] = []
        self._order = order
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._last_words = asyncio.create_task(process.stderr.read())

    @classmethod
    async def start(cls, order: Order) -> _Member:
        """Start the process and give it its order."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            start_new_session=True,  # Ctrl-C reaches the load test alone, which then ends its clients in order
        )
        member = cls(order, process)
        member._write(encode(order))
        return member

    async def ready(self) -> None:
        """Return when it waits for the word. Raises LoadtestFailed."""
        line = await self._stdout.readline()
        if not line or not isinstance(self._decode(line), Ready):
            raise await self._broken()

    def give_the_word(self) -> None:
        """Let it begin."""
        self._write(b"go\n")

    async def follow(self) -> None:
        """Take in what it tells until it ends. Raises LoadtestFailed unless every request was told of."""
        while line := await self._stdout.readline():
            news = self._decode(line)
            if isinstance(news, Ready):
                raise LoadtestFailed(f"client {self._order.client} is ready twice")
            self.outcomes.append(
                Outcome(
                    client=self._order.client,
                    number=news.number,
                    submitted=news.submitted,
                    ended=news.ended,
                    error=news.error,
                )
            )
        if await self._process.wait() or len(self.outcomes) != len(self._order.delays):
            raise await self._broken()

    async def end(self) -> None:
        """End it if it is still there: let go of it, ask, wait, kill."""
        self._stdin.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(END_GRACE):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self._last_words

    def _decode(self, line: bytes) -> News:
        try:
            return decode_news(line)
        except msgspec.DecodeError as error:
            raise LoadtestFailed(f"client {self._order.client} said something strange: {error}") from None

    def _write(self, line: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # a client that is gone: its end is found by whoever reads from it
            self._stdin.write(line)

    async def _broken(self) -> LoadtestFailed:
        self._stdin.close()
        async with asyncio.timeout(END_GRACE):
            words = (await self._last_words).decode(errors="replace").strip()[-STDERR_BYTES:]
            status = await self._process.wait()
        told = f"{len(self.outcomes)} of {len(self._order.delays)} requests told"
        return LoadtestFailed(
            f"client {self._order.client} ended with status {status}, {told}{': ' + words if words else ''}"
        )
