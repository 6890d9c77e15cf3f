"""Several client processes at once: start them, give the word to begin, and join their streams into one.

client 1 ──stdout──┐
client 2 ──stdout──┼──► one event loop ──► seats (what is known of each) ──► screen
…                  ┘
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import msgspec

from callpool.tools.demo.news import Broken, Connected, Done, News, Piece, decode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

END_GRACE = 5.0
"""Seconds that a client gets to end by itself before it is killed."""

STDERR_BYTES = 2_000
"""As much of a broken client's last words as a person wants to read."""


class State(Enum):
    """Where a client is, in the words that the screen shows."""

    STARTING = "starting"
    CONNECTED = "connected"
    WAITING = "waiting"
    ANSWERING = "answering"
    DONE = "done"
    BROKEN = "broken"


@dataclass
class Seat:
    """What is known of one client. Owner: the event loop's thread."""

    number: int
    prompt: str
    state: State = State.STARTING
    text: str = ""
    """The pieces of the stream so far, joined."""
    content: str = ""
    """The text of the result; the same, when all is well."""
    tokens: int = 0
    session_id: str = ""
    seconds: float = 0.0
    """From the word to begin to the end of the answer."""
    error: str = ""

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        return self.state in (State.DONE, State.BROKEN)


class Screen(Protocol):
    """What shows the seats."""

    def piece(self, seat: Seat, text: str) -> None:
        """A piece of text arrived; `seat.text` has it already."""
        ...

    def moved(self, seat: Seat) -> None:
        """The seat's state changed."""
        ...


@dataclass
class Stage:
    """Runs one client process for each seat."""

    seats: Sequence[Seat]
    command: Callable[[int], list[str]]
    """The command line of client N."""
    environment: Mapping[str, str]
    screen: Screen
    midway: Callable[[], Awaitable[None]] | None = None
    """Awaited once, when every answer has begun or one has ended, beside the streams."""
    peak: int = 0
    """Most answers that grew at the same time."""
    _begun: float = 0.0
    _connected: dict[int, asyncio.Event] = field(default_factory=dict)
    _halfway: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Return when every client has ended; what became of them is in the seats. It never leaves a process."""
        processes: list[asyncio.subprocess.Process] = []
        try:
            for seat in self.seats:
                self._connected[seat.number] = asyncio.Event()
                processes.append(await self._start(seat.number))
            async with asyncio.TaskGroup() as group:
                for seat, process in zip(self.seats, processes, strict=True):
                    group.create_task(self._follow(seat, process))
                group.create_task(self._give_the_word(processes))
                group.create_task(self._call_midway())
        except ExceptionGroup as group:  # only `midway` raises, so there is one
            raise group.exceptions[0] from None
        finally:
            await asyncio.gather(*(_end(process) for process in processes))

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.command(number),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(self.environment),
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends its clients in order
        )

    async def _give_the_word(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        """All ask at the same moment: nobody begins before the last one has connected (or broken)."""
        for connected in self._connected.values():
            await connected.wait()
        self._begun = time.monotonic()
        for seat, process in zip(self.seats, processes, strict=True):
            if seat.ended or process.stdin is None:
                continue
            self._move(seat, State.WAITING)
            with contextlib.suppress(ConnectionError):  # a client that is gone: `_follow` reports it
                process.stdin.write(b"go\n")
                process.stdin.close()

    async def _call_midway(self) -> None:
        await self._halfway.wait()
        if self.midway is not None:
            await self.midway()

    async def _follow(self, seat: Seat, process: asyncio.subprocess.Process) -> None:
        """Take in everything that one client says, until it has ended."""
        stdout, stderr = _pipes(process)
        last_words = asyncio.create_task(stderr.read())
        try:
            while line := await stdout.readline():
                self._take(seat, decode(line))
        except (msgspec.DecodeError, ValueError) as error:  # ValueError: a line without end
            self._break(seat, f"the client said something strange: {error}")
            process.kill()
        words = (await last_words).decode(errors="replace").strip()[-STDERR_BYTES:]
        status = await process.wait()
        if not seat.ended:
            self._break(seat, f"the client ended with status {status} and no answer{': ' + words if words else ''}")

    def _take(self, seat: Seat, news: News) -> None:
        match news:
            case Connected():
                self._move(seat, State.CONNECTED)
                self._connected[seat.number].set()
            case Piece(text=text) if text:
                if seat.state is not State.ANSWERING:
                    self._move(seat, State.ANSWERING)
                seat.text += text
                self.screen.piece(seat, text)
            case Done(content=content, tokens=tokens, session_id=session_id):
                seat.content, seat.tokens, seat.session_id = content, tokens, session_id
                seat.seconds = time.monotonic() - self._begun
                self._move(seat, State.DONE)
            case Broken(message=message):
                self._break(seat, message)

    def _break(self, seat: Seat, message: str) -> None:
        seat.error = message
        self._move(seat, State.BROKEN)
        self._connected[seat.number].set()

    def _move(self, seat: Seat, state: State) -> None:
        seat.state = state
        answering = sum(other.state is State.ANSWERING for other in self.seats)
        self.peak = max(self.peak, answering)
        if answering == len(self.seats) or any(other.ended for other in self.seats):
            self._halfway.set()
        self.screen.moved(seat)


def _pipes(process: asyncio.subprocess.Process) -> tuple[asyncio.StreamReader, asyncio.StreamReader]:
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("the client was started without pipes")
    return process.stdout, process.stderr


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a client that is still there: ask, wait, kill."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_GRACE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
