"""The demo, step by step. Every step says what it does; the end says what was checked."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from callpool.tools.demo.checks import DemoFailed, check_answers, check_sessions
from callpool.tools.demo.prompts import LAST_PROMPT, PROMPTS
from callpool.tools.demo.screen import choose
from callpool.tools.demo.stage import Seat, Stage
from callpool.tools.demo.supervisor import PROGRAM, Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from callpool.tools.demo.screen import DemoScreen

STEPS = 6

DEADLINE = 170.0
"""Seconds for everything; it takes about ten. A demo that hangs is a failed one."""

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def client_command(number: int) -> list[str]:
    """The command line of one client."""
    return [sys.executable, "-Im", "callpool.tools.demo", "client", str(number)]


def main(program: Sequence[str] = PROGRAM, client: Callable[[int], list[str]] = client_command) -> int:
    """Run the demo. Returns 0 when everything was as promised, 1 with the reason, 130 after Ctrl-C.

    Nothing is left of it in any case: no process, no file.
    """
    # A terminal that closes and a `kill` end the demo as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    directory = Path(tempfile.mkdtemp(prefix="callpool-", dir=_short_place()))
    supervisor = Supervisor(directory, program)
    status = EXIT_FAILED
    try:
        asyncio.run(Story(supervisor, choose(), client).tell())
        status = 0
    except DemoFailed as error:
        _complain(f"the demo failed: {error}\n{supervisor.last_log_lines()}")
    except TimeoutError:
        _complain(f"the demo was not over after {DEADLINE:.0f} s\n{supervisor.last_log_lines()}")
    except KeyboardInterrupt:
        _complain("interrupted; everything that was started is being stopped")
        status = EXIT_INTERRUPTED
    finally:
        if left := supervisor.clear_away():
            _complain(f"{len(left)} processes had to be killed")
        shutil.rmtree(directory)
    return status


def _complain(message: str) -> None:
    print(message.rstrip(), file=sys.stderr)


def _short_place() -> str | None:
    """A socket's path is at most 104 bytes long on some systems: better /tmp than a long TMPDIR."""
    return "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108 (mkdtemp makes a directory of its own in it)


@dataclass
class Story:
    """One run."""

    supervisor: Supervisor
    screen: DemoScreen
    client: Callable[[int], list[str]]
    """The command line of client N."""

    async def tell(self) -> None:
        """All steps. Raises `DemoFailed`, or `TimeoutError` at the deadline."""
        async with asyncio.timeout(DEADLINE):
            begun = time.monotonic()
            await self._start()
            eight = await self._ask_all()
            await self._look_again(len(eight.seats))
            last = await self._drain()
            self._look_around()
            self._sum_up(eight, last, time.monotonic() - begun)

    def _step(self, number: int, text: str) -> None:
        self.screen.say(f"\n{number}/{STEPS} {text}")

    async def _start(self) -> None:
        self._step(1, "starting a supervisor with 2 workers and a language model on this machine …")
        await self.supervisor.start()
        self.screen.say(f"    it runs as process {self.supervisor.pid}; its files are in {self.supervisor.home}")

    async def _ask_all(self) -> Stage:
        """Steps 2 and 3: eight clients at once, and a look at the supervisor while they are served."""
        self._step(2, f"starting {len(PROMPTS)} programs; they all ask at the same moment …")

        async def look() -> None:
            text = await self.supervisor.command("status")
            await self.supervisor.status()
            self._step(3, "`callpool status`, in the middle of it:")
            self.screen.say(f"{text.rstrip()}\n\n")

        return await self._perform([Seat(number, prompt) for number, prompt in enumerate(PROMPTS, 1)], look)

    async def _perform(self, seats: Sequence[Seat], midway: Callable[[], Awaitable[None]]) -> Stage:
        stage = Stage(seats, self.client, self.supervisor.environment, self.screen, midway)
        with self.screen.showing(seats):
            await stage.run()
        check_answers(seats)
        return stage

    async def _look_again(self, answers: int) -> None:
        self._step(4, "`callpool status`, after the last answer:")
        self.screen.say((await self.supervisor.command("status")).rstrip())
        check_sessions((await self.supervisor.status())["sessions"], expected=answers)

    async def _drain(self) -> Seat:
        """Step 5: SIGTERM in the middle of one more answer. A drain refuses what is new and finishes what is active."""
        self._step(5, "one more question; SIGTERM for the supervisor while its answer grows …")

        async def terminate() -> None:
            self.supervisor.terminate()

        last = Seat(len(PROMPTS) + 1, LAST_PROMPT)
        await self._perform([last], terminate)
        await self.supervisor.ended()
        self.screen.say("    that answer is whole, and the supervisor has ended; its drain report:")
        for name, value in self.supervisor.drain_report().items():
            self.screen.say(f"    {name:36}{f'{value:.3f}' if isinstance(value, float) else value}")
        return last

    def _look_around(self) -> None:
        self._step(6, "looking for anything left behind …")
        if left := self.supervisor.left_over():
            raise DemoFailed(f"still running: {', '.join(str(process.pid) for process in left)}")
        self.screen.say(f"    all {len(self.supervisor.family)} processes of the supervisor have ended")

    def _sum_up(self, eight: Stage, last: Seat, seconds: float) -> None:
        tokens = sum(seat.tokens for seat in eight.seats)
        answering = max(seat.seconds for seat in eight.seats)
        self.screen.say(
            f"\n{len(eight.seats)} answers, {eight.peak} of them growing at once: {tokens} tokens in {answering:.1f} s "
            f"({tokens / answering:.0f} a second).\n"
            f"1 more answer of {last.tokens} tokens finished during the drain.\n"
            f"Nothing is left of it. It took {seconds:.1f} s."
        )
