"""What the tests of the command line share: a running supervisor, the program as users start it, and a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest

from callpool.tools.cli.app import run

PROGRAM = (sys.executable, "-Im", "callpool")
HANG = 30.0
"""Seconds after which a command counts as hanging."""
CONFIG = """
[supervisor]
workers = 1
max_attempts = 1
[providers.fake]
kind = "scripted"
concurrency = 4
[providers.fake.models.echo]
[providers.fake.models.slow]
delay = 60.0
[providers.fake.models.drip]
chunks = 100
chunk_delay = 0.5
[providers.fake.models.limited]
error = "rate_limited"
[providers.fake.models.rejected]
error = "rejected"
[providers.fake.models.evil]
reply = "a\\u001b[31mb\\u009bc\\u202ed\\r\\ne\\tf"
[providers.fake.models.silent]
reply = ""
"""

Run = Callable[..., CompletedProcess[str]]


def plain_environment(**changes: str) -> dict[str, str]:
    """The test's environment as a script has it: no colours asked for, 80 columns, no other supervisor."""
    dropped = {"NO_COLOR", "FORCE_COLOR", "CALLPOOL_ADDRESS", "CALLPOOL_CLIENT", "CALLPOOL_DEBUG", "PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"COLUMNS": "80", "TERM": "xterm-256color", **changes}


@pytest.fixture(scope="module")
def supervisor() -> Iterator[dict[str, str]]:
    """A daemon with scripted models, started and stopped by the program itself; yields the environment that finds it."""
    folder = Path(tempfile.mkdtemp(prefix="cp-", dir="/tmp"))
    config = folder / "callpool.toml"
    config.write_text(CONFIG)
    environment = plain_environment(
        CALLPOOL_HOME=str(folder / "home"),
        CALLPOOL_RUNTIME_DIR=str(folder / "run"),
        CALLPOOL_KEY_LOCK_DIR=str(folder / "keys"),
        CALLPOOL_CONFIG=str(config),
    )
    (folder / "run").mkdir(mode=0o700)
    started = _run(environment, "start", "--detach", "--json")
    assert started.returncode == 0, started.stderr
    process = psutil.Process(json.loads(started.stdout)["pid"])
    try:
        yield environment
        stopped = _run(environment, "stop", "--timeout", "0", "--json")
        assert stopped.returncode == 0, stopped.stderr
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        shutil.rmtree(folder)


@pytest.fixture
def callpool(supervisor: dict[str, str]) -> Run:
    """The program, talking to that supervisor: `callpool("submit", …)`; keywords are those of `subprocess.run`."""
    return lambda *arguments, **options: _run(supervisor, *arguments, **options)


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The program within this process, where starting one would show nothing more: a fifth of a second saved each time."""
    for name in ("NO_COLOR", "FORCE_COLOR", "CALLPOOL_ADDRESS", "CALLPOOL_CLIENT", "CALLPOOL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> CompletedProcess[str]:
        status = run(arguments)
        return CompletedProcess(arguments, status, *capsys.readouterr())

    return call


@pytest.fixture
def asking(inside: Run, supervisor: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same, talking to the running supervisor."""
    monkeypatch.setenv("CALLPOOL_RUNTIME_DIR", supervisor["CALLPOOL_RUNTIME_DIR"])
    return inside


@pytest.fixture
def alone() -> Run:
    """The program in the test's own directories, where no supervisor runs until the test starts one."""
    return lambda *arguments, **options: _run(plain_environment(), *arguments, **options)


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the program and go on: `begin(environment, "submit", …)`. What still runs at the end is killed."""
    begun: list[subprocess.Popen[str]] = []

    def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Terminal:
    """The program on a terminal of 80 columns: what it shows, and keys for it."""

    def __init__(self, environment: dict[str, str], arguments: tuple[str, ...]) -> None:
        self._ours, theirs = pty.openpty()
        self._seen = b""
        environment = {name: value for name, value in environment.items() if name != "COLUMNS"}
        subprocess.run(["stty", "rows", "24", "columns", "80"], stdin=theirs, check=True)
        self._process = subprocess.Popen(
            [*PROGRAM, *arguments], env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._ours, keys.encode())

    def interrupt(self) -> None:
        """Ctrl-C. By signal: the terminal's own needs it to be the controlling one, which a test cannot lend."""
        self._process.send_signal(2)

    def until(self, text: str) -> None:
        """Read until it shows this text after what was waited for before."""
        while text.encode() not in self._seen:
            piece = self._read()
            assert piece, f"ended without {text!r}: {self._seen!r}"
            self._seen += piece
        self._seen = self._seen.partition(text.encode())[2]

    def rest(self) -> tuple[int, str]:
        """Wait for its end: the exit status, and everything it showed since the last wait."""
        while piece := self._read():
            self._seen += piece
        return self._process.wait(timeout=HANG), self._seen.decode()

    def close(self) -> None:
        """Take the terminal away."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(timeout=HANG)
        os.close(self._ours)

    def _read(self) -> bytes:
        try:
            return os.read(self._ours, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            return b""


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., Any]]:
    """Start the program on a terminal: `on_terminal(environment, "chat", …)` is a `Terminal`."""
    opened: list[Terminal] = []

    def start(environment: dict[str, str], *arguments: str) -> Terminal:
        opened.append(Terminal(environment, arguments))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def _run(environment: dict[str, str], *arguments: str, **options: Any) -> CompletedProcess[str]:
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": HANG, "stdin": subprocess.DEVNULL}
    if "input" in options or "stdin" in options:
        del settings["stdin"]
    if "stdout" in options:
        settings |= {"capture_output": False, "stderr": subprocess.PIPE}
    changes = options.pop("env", {})
    return subprocess.run([*PROGRAM, *arguments], env=environment | changes, check=False, **settings | options)
