"""Habits of the model server's process: it obeys its pipe alone, leaves no core file, and keeps llama.cpp quiet."""

from __future__ import annotations

import os
import resource
import signal
import tempfile

_TAIL_BYTES = 16_384
"""As much of the log's end as `Output.last_lines` reads."""


def obey_the_pipe_alone() -> None:
    """Ignore what a terminal or an init system sends to the whole process group: the supervisor decides when we end."""
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in endings:
        signal.signal(number, signal.SIG_IGN)
    # The supervisor blocks these around a spawn and a child inherits the mask; ignored first, a pending one is dropped.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, endings)


def leave_no_core() -> None:
    """A core file of a crashed engine would hold prompts, answers and the key."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Output:
    """Where llama.cpp's own lines go: C++ writes to descriptors 1 and 2, which no Python stream can catch.

    With a log file they are appended to it, for good. Without one they are kept in an unnamed file until the model is
    loaded, so that a failure can quote them, and are dropped from then on: nothing grows.
    """

    def __init__(self, log: str | None) -> None:
        if log is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        else:
            descriptor = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "r+b")
        self._named = log is not None
        self._begin = os.fstat(self._file.fileno()).st_size
        self._point_at(self._file.fileno())

    @staticmethod
    def _point_at(descriptor: int) -> None:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)

    def last_lines(self, count: int) -> list[str]:
        """At most `count` lines, the newest last, of what was written since this object was made."""
        size = os.fstat(self._file.fileno()).st_size
        start = max(self._begin, size - _TAIL_BYTES)
        text = os.pread(self._file.fileno(), _TAIL_BYTES, start).decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-count:]

    def loaded(self) -> None:
        """The model is loaded: an unnamed file has done its work."""
        if self._named:
            return
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._point_at(nowhere)
        os.close(nowhere)
        self._file.close()
