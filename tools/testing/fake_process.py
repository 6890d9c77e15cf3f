"""The fake provider in a process of its own: it can be killed, and does not share the caller's event loop."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import msgspec

from callpool.tools.testing.fake_records import CallRecord, LogReader, Totals

START_LIMIT = 20.0
"""Seconds until the process must be ready; it needs a fraction of one, on a busy machine more."""
STOP_LIMIT = 5.0
"""Seconds until the process must have ended by itself; then it is killed."""
LOOK_AGAIN = 0.005
"""Seconds between two looks at the log: a file has no event that the standard library can wait for."""
KEY_VARIABLE = "CALLPOOL_FAKE_API_KEY"
"""The key travels in the environment, because an argument can be read by every user of the machine."""


class Ready(msgspec.Struct, frozen=True):
    """The one line that the process prints."""

    base_url: str
    pid: int


class FakeProviderProcess:
    """A running fake; leaving the `with` block stops it, and it ends with this process too, however that ends.

    Takes the options of `FakeProvider`. Without `log_path` the log is a temporary file that goes with `stop`;
    `log()` still knows it then.
    """

    def __init__(
        self,
        *,
        log_path: Path | str | None = None,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if log_path is None:
            self._folder = tempfile.TemporaryDirectory(prefix="callpool-fake-")
            log_path = Path(self._folder.name, "calls.jsonl")
        self._log_path = Path(log_path)
        self._reader = LogReader(self._log_path)
        self._final: list[CallRecord] | None = None
        options |= {"log": self._log_path, "api_key_env": KEY_VARIABLE if api_key is not None else None}
        arguments = [
            _argument(name, value) for name, value in options.items() if value is not None and value is not False
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-Im", "callpool.tools.testing.fake_provider", "--lifeline", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ({KEY_VARIABLE: api_key} if api_key is not None else {}),
        )
        try:
            ready = self._wait_until_ready(cast("IO[bytes]", self._process.stdout))
        except BaseException:
            self._end()
            raise
        self.base_url = ready.base_url
        self.pid = ready.pid

    @property
    def totals(self) -> Totals:
        """Connections accepted and calls seen, as far as they are in the log."""
        self.log()
        return self._reader.totals

    def log(self) -> list[CallRecord]:
        """All calls in the log so far, in order of arrival."""
        return self._reader.read() if self._final is None else list(self._final)

    def wait_for(self, predicate: Callable[[list[CallRecord]], bool], timeout: float = 5.0) -> list[CallRecord]:
        """Wait until `predicate` holds of the log; TimeoutError after `timeout` seconds, or once the fake is dead."""
        deadline = time.monotonic() + timeout
        while True:
            dead = self._process.poll() is not None  # asked before the look, so that the last look sees all
            calls = self.log()
            if predicate(calls):
                return calls
            if dead:
                raise TimeoutError(f"the fake ended ({self._process.returncode}) before; calls: {calls[-5:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not seen within {timeout} s; calls: {calls[-5:]}")
            time.sleep(LOOK_AGAIN)

    def stop(self) -> None:
        """End the process and take its last words in. Harmless if it was killed or stopped before.

        RuntimeError where the fake ended by a defect of its own, which is on standard error.
        """
        if self._final is not None:
            return
        code = self._end()
        if code > 0:  # below 0 is a signal: somebody killed it
            raise RuntimeError(f"the fake provider ended with {code}")

    def _end(self) -> int:
        try:
            self._process.communicate(timeout=STOP_LIMIT)  # closes its standard input first
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._final = self._reader.read() if self._log_path.exists() else []
        if self._folder is not None:
            self._folder.cleanup()
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, stdout: IO[bytes]) -> Ready:
        if not select.select([stdout], [], [], START_LIMIT)[0]:
            raise TimeoutError(f"the fake provider was not ready within {START_LIMIT} s")
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the fake provider ended with {self._process.wait(STOP_LIMIT)} before it was ready")
        return msgspec.json.decode(line, type=Ready)


def _argument(name: str, value: Any) -> str:
    """One option of the command line. Lists and objects travel as JSON."""
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return option
    return f"{option}={msgspec.json.encode(value).decode() if isinstance(value, (list, dict)) else value}"
