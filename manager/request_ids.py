"""Ids for requests and sessions: a prefix, sixteen hexadecimal digits of this process, eight of a counter."""

from __future__ import annotations

import itertools
import os


class RequestIds:
    """Makes ids that no other process and no restart will make. Safe in threads, and in a forked child."""

    __slots__ = ("_kind", "_numbers", "_pid", "_prefix")

    def __init__(self, kind: str = "req_") -> None:
        self._kind = kind
        self._pid = -1
        self._prefix = ""
        self._numbers = itertools.count(1)

    def next(self) -> str:
        """Another id."""
        if os.getpid() != self._pid:  # the first one, or a fork: a child that went on with the prefix would repeat us
            self._prefix, self._pid = f"{self._kind}{os.urandom(8).hex()}", os.getpid()
        return f"{self._prefix}{next(self._numbers):08x}"
