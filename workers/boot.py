"""What a worker process is told at its start, and how descriptors reach it."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from multiprocess import reduction

from callpool.manager.core.parameter_rules import Rules
from callpool.manager.settings import ProviderSettings


class WorkerBoot(msgspec.Struct, frozen=True, kw_only=True):
    """Plain settings of one worker. Keys are not here: they come through `SecretsFile`."""

    number: int
    supervisor_pid: int
    providers: dict[str, ProviderSettings]
    """With their addresses filled in."""
    rules: dict[str, Rules]
    """What may be sent to the models of each."""
    limits: dict[str, int]
    """Calls at once on each account: the size of its connection pool where the settings name no other."""
    heartbeat_interval: float
    failpoint: str | None = None
    """Where the worker is to die, for tests."""


class SecretsFile:
    """An open descriptor of a memory file with the provider keys, handed to a worker through spawn.

    The supervisor holds the descriptor and never reads it; only workers do. Content: msgpack of {provider: key}.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return (_receive, (reduction.DupFd(self.descriptor),))

    def read(self) -> dict[str, str]:
        """The keys by provider. Reads at an offset of its own: the file position is shared with other workers."""
        size = os.fstat(self.descriptor).st_size
        return msgspec.msgpack.decode(os.pread(self.descriptor, size, 0), type=dict[str, str]) if size else {}

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


def _receive(passed: Any) -> SecretsFile:
    return SecretsFile(passed.detach())
