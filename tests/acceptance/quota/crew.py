"""Client processes for the tests of limits, each running one function of `programs`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HANG = 120.0
_PROGRAM = f"""
import json, sys
sys.path.append({str(Path(__file__).resolve().parents[3])!r})  # last: nothing installed is hidden by the checkout
from tests.acceptance.quota import programs
name, arguments = json.loads(sys.argv[1])
getattr(programs, name)(*arguments)
"""


class Program:
    """One of them. Leaving the block kills it."""

    def __init__(self, function: str, *arguments: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-Ic", _PROGRAM, json.dumps([function, arguments])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # who is killed in the middle of anything may say anything
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait for its end. Idempotent."""
        self._process.kill()
        self._process.wait(HANG)
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()

    def go(self) -> None:
        """Write it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """A line of it. The test's own limit of time guards it."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()

    def told(self) -> Any:
        """Its line, as JSON; it must have ended well."""
        line = self.hear()
        assert line, "the program ended without a word"
        return json.loads(line)
