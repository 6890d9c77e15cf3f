"""The demo's own supervisor: started, asked and stopped by the command line, in a directory of its own.

The user's supervisor, if there is one, has other directories and never hears of this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import psutil

from callpool.tools.demo.checks import DemoFailed
from callpool.tools.demo.prompts import PROMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROGRAM = (sys.executable, "-Im", "callpool")
"""The command line, as the demo runs it."""

CONFIG = f"""\
[supervisor]
workers = 2

[providers.local]
kind = "local"
concurrency = {len(PROMPTS)}

[providers.local.models.smollm2]
timeout = 120.0
"""

COMMAND_TIMEOUT = 60.0
"""Seconds for one command; `start` waits for the model to load, which takes one or two."""

DRAIN_TIMEOUT = 45.0
"""Seconds for the drain: the supervisor's own `shutdown_timeout` of 30, and some for its end."""

END_GRACE = 5.0
"""Seconds that a supervisor gets to end when the demo has failed or was interrupted."""

KILL_WAIT = 1.0
"""Seconds for the kernel to carry out a kill."""

LOG_LINES = 20
"""Lines of each log that a failure shows."""


class Supervisor:
    """Owner of everything here: the demo's event loop."""

    def __init__(self, directory: Path, program: Sequence[str] = PROGRAM) -> None:
        self._program = program
        self.home = directory / "home"
        self._config = directory / "callpool.toml"
        self._config.write_text(CONFIG)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CALLPOOL_")}
        if verbose := os.environ.get("CALLPOOL_MODEL_VERBOSE"):
            kept["CALLPOOL_MODEL_VERBOSE"] = verbose
        places = {"CALLPOOL_HOME": str(self.home), "CALLPOOL_RUNTIME_DIR": str(directory / "run")}
        self.environment = kept | places | {"NO_COLOR": "1", "COLUMNS": "80"}
        self._process: psutil.Process | None = None
        self.family: set[psutil.Process] = set()
        """Every process of the supervisor that was ever seen."""

    @property
    def pid(self) -> int:
        """The supervisor's process id, once it has been seen."""
        return int(self._seen().pid)

    async def start(self) -> None:
        """Return when the supervisor says that it runs: `--detach` waits for its ready signal."""
        await self.command("start", "--config", str(self._config), "--detach")
        state = (await self.status())["state"]
        if state != "running":
            raise DemoFailed(f"the supervisor is {state!r}, not running")

    async def command(self, *arguments: str) -> str:
        """What `callpool …` prints. Raises `DemoFailed` with its error output where it fails or does not end."""
        shown = " ".join(["callpool", *arguments])
        process = await asyncio.create_subprocess_exec(
            *self._program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                out, err = await process.communicate()
        except TimeoutError:
            raise DemoFailed(f"`{shown}` did not end within {COMMAND_TIMEOUT:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            words = (err or out).decode(errors="replace").strip()
            raise DemoFailed(f"`{shown}` ended with status {process.returncode}:\n{words}")
        return out.decode(errors="replace")

    async def status(self) -> dict[str, Any]:
        """`callpool status --json`; takes down the process family on the way."""
        status: dict[str, Any] = json.loads(await self.command("status", "--json"))
        if self._process is None:
            self._process = psutil.Process(status["pid"])
        with contextlib.suppress(psutil.NoSuchProcess):
            self.family |= {self._process, *self._process.children(recursive=True)}
        return status

    def terminate(self) -> None:
        """Send SIGTERM: the order to drain. Raises `DemoFailed` where there is nobody to send it to."""
        try:
            self._seen().send_signal(signal.SIGTERM)  # psutil makes sure that the pid is still the same process
        except psutil.NoSuchProcess:
            raise DemoFailed("the supervisor has ended before it was told to") from None

    async def ended(self) -> None:
        """Return when the supervisor's process has ended. Raises `DemoFailed` where it does not."""
        try:
            await asyncio.to_thread(self._seen().wait, DRAIN_TIMEOUT)
        except psutil.TimeoutExpired:
            raise DemoFailed(f"the supervisor has not ended {DRAIN_TIMEOUT:.0f} s after SIGTERM") from None

    def _seen(self) -> psutil.Process:
        if self._process is None:
            raise DemoFailed("the supervisor was never seen")
        return self._process

    def drain_report(self) -> dict[str, Any]:
        """What the drain left behind for a reader."""
        path = self.home / "drain-report.json"
        try:
            report: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DemoFailed(f"there is no drain report: {error}") from None
        return report

    def left_over(self) -> set[psutil.Process]:
        """Processes of this supervisor that still run: those once seen, and any that carries its directory."""
        return {process for process in self.family | self._with_our_directory() if _runs(process)}

    def _with_our_directory(self) -> set[psutil.Process]:
        found = set()
        for process in psutil.process_iter():
            # Other users' processes do not let us look, and some end while we do.
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("CALLPOOL_HOME") == str(self.home) and process.pid != os.getpid():
                    found.add(process)
        return found

    def clear_away(self) -> set[psutil.Process]:
        """End what still runs, all of it started by this demo. Returns what had to be killed for it."""
        if self._process is not None and _runs(self._process):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                self._process.terminate()  # its clients are gone, so the drain has nothing to wait for
                self._process.wait(END_GRACE)
        left = self.left_over()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=KILL_WAIT)
        return left

    def last_log_lines(self) -> str:
        """The end of each log, for the message of a failure."""
        parts = []
        for path in sorted(self.home.rglob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
            parts.append("\n".join([f"--- {path.name}", *lines]))
        return "\n".join(parts)


def _runs(process: psutil.Process) -> bool:
    """A zombie has ended: only its parent has not asked yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
