"""What a supervisor process is told at its start: one document on an inherited descriptor.

The process that starts a supervisor (a command line, or a program that embeds one) reads configuration, environment and keys;
the supervisor itself gets settings without keys, and a descriptor of the keys that it hands on to workers unread.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from callpool.manager.keys import KeyFact
from callpool.manager.settings import Settings

Mode = Literal["foreground", "detached", "embedded"]


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a supervisor needs to begin. Descriptors are numbers in the new process."""

    mode: Mode
    settings: Settings
    key_facts: dict[str, KeyFact]
    home: str
    runtime: str
    socket: str
    key_lock_dir: str
    secrets_descriptor: int
    ready_descriptor: int | None = None
    """Where one line of JSON says `Began` or the fault; None in the foreground, where a person reads the log."""
    owner_pid: int | None = None
    """The embedding process. It is watched besides the lifeline, which a child that it forks keeps open."""
    failpoint: str | None = None
    """Where it, or a worker of it, is to die: for tests (`failpoints`)."""
    lifeline_descriptor: int | None = None
    """A byte on it, or its end, means that the embedding process has let go: drain."""


class Began(msgspec.Struct, frozen=True, kw_only=True, tag="began"):
    """The supervisor accepts requests."""

    pid: int
    address: str


def memory_file(name: str, content: bytes) -> int:
    """A descriptor of an anonymous file with this content: in memory on Linux, unlinked and private elsewhere."""
    if sys.platform == "linux":
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        descriptor, path = tempfile.mkstemp(prefix="callpool-")
        Path(path).unlink()
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


def read_memory_file(descriptor: int) -> bytes:
    """The whole content of such a file, at an offset of its own; the descriptor is closed."""
    try:
        content = b""
        while piece := os.pread(descriptor, 1 << 20, len(content)):
            content += piece
        return content
    finally:
        os.close(descriptor)
