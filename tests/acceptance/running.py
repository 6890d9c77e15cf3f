"""Supervisors for tests: real processes, real sockets, watched from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

import callpool
from callpool.manager import launch

T = TypeVar("T")

HANG = 20.0
"""Seconds after which a wait is a hang. No figure of the product: those are asserted where they are promised."""

HELLO = [{"role": "user", "content": "hello"}]
FOREGROUND = """
import os, sys
from callpool.manager import launch
launch.run_in_foreground(launch.plan(sys.argv[1], os.environ))
"""


def eventually(look: Callable[[], T], *, within: float = HANG, why: str = "") -> T:
    """Wait until `look` returns something true, and return it. Its errors of a state not reached yet count as false."""
    deadline = time.monotonic() + within
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within} s: {why or look}")
        time.sleep(0.005)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run. A zombie does not run any more: it waits for its parent, which may be the test or a slow init."""
    return [each for each in processes if not _has_ended(each)]


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Running:
    """A supervisor that a test started, and everything below it."""

    def __init__(self, process: psutil.Process) -> None:
        self.process = process
        self.pid = process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it whatever the test did to it; an orderly end is for the test to ask for."""
        family = self.family()
        for each in family:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        self.reap()
        eventually(lambda: not alive(family), why="killed processes live on")

    def family(self) -> list[psutil.Process]:
        """The supervisor and its descendants, as they are now."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return [self.process]

    def reap(self) -> None:
        """Nothing to reap: a detached supervisor is nobody's child."""

    def connect(self) -> callpool.Client:
        """A client of it."""
        return callpool.connect()

    def workers(self) -> list[dict[str, Any]]:
        """The workers' rows of `status`."""
        with self.connect() as client:
            rows: list[dict[str, Any]] = client.status()["workers"]
            return rows

    def worker_pids(self) -> list[int]:
        """The workers that are up."""
        return [worker["pid"] for worker in self.workers() if worker["state"] == "up"]

    def ended(self, within: float = HANG) -> None:
        """Wait for its end."""
        eventually(lambda: not alive([self.process]), within=within, why="the supervisor still runs")


def detached(config: Any) -> Running:
    """A daemon of this test's own directories, with all its workers up (it is ready with the first)."""
    began = launch.start_detached(launch.plan(config, os.environ))
    running = Running(psutil.Process(began.pid))
    eventually(lambda: {worker["state"] for worker in running.workers()} == {"up"}, why="a worker is not up")
    return running


class Foreground(Running):
    """A supervisor in the foreground of a session of its own, as under a terminal or a service manager."""

    def __init__(self, config_file: Path, output: Path) -> None:
        self._output = output
        with output.open("wb") as sink:
            self._popen = subprocess.Popen(
                [sys.executable, "-Ic", FOREGROUND, str(config_file)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        super().__init__(psutil.Process(self._popen.pid))
        eventually(lambda: " ready: " in self.output() or self._popen.poll() is not None, why="not ready")
        assert self._popen.returncode is None, self.output()

    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(errors="replace")

    def signal_group(self, signum: signal.Signals) -> None:
        """What Ctrl-C in a terminal does, and service managers at a stop: the signal goes to every process."""
        os.killpg(self.pid, signum)

    def status(self, within: float = HANG) -> int:
        """Wait for its end; the exit status."""
        return self._popen.wait(timeout=within)

    def reap(self) -> None:
        """Collect it: it is the test's own child."""
        self._popen.wait(timeout=5.0)


def scripted(**models: dict[str, Any]) -> dict[str, Any]:
    """A configuration with one scripted provider, `fake`."""
    return {"providers": {"fake": {"kind": "scripted", "models": models or {"m": {"reply": "hello"}}}}}


def openai_at(base_url: str, **settings: Any) -> dict[str, Any]:
    """A configuration with one OpenAI-compatible provider, `fake`, at this address."""
    return {"providers": {"fake": {"kind": "openai", "base_url": base_url, **settings}}}


def as_toml(config: dict[str, Any], path: Path) -> Path:
    """Write a configuration of two levels and models as TOML."""
    lines: list[str] = []
    for name, value in config.get("supervisor", {}).items():
        lines += ["[supervisor]"] if not lines else []
        lines.append(f"{name} = {value!r}")
    for name, provider in config.get("providers", {}).items():
        lines.append(f"[providers.{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in provider.items() if key != "models"]
        for model, settings in provider.get("models", {}).items():
            lines.append(f'[providers.{name}.models."{model}"]')
            lines += [f"{key} = {_toml(value)}" for key, value in settings.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
