"""Holders: the processes whose leases live as long as they do.

    connection ──join──► Holder (process, name) ──┬── its process ends ────────────────► gone, at once
    connection ──join──►                          ├── its last connection is gone ─1 s─► gone, unless one comes back
                                                  └── it lets go ──────────────────────► its leases end, it stays

A client has several connections (a channel, and one for each thread that makes lockstep calls), and a connection may break while
its process works on; so sessions are held by the process, under a name that each client makes up for itself. The kernel tells
the process id, so that no other process can take the name. Owner of everything here: the event loop's thread.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from callpool.manager import peers

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

RESUME_GRACE = 1.0
"""Seconds that the leases of a process wait for a new connection of it after its last one is gone. The specification's."""


class Caller(NamedTuple):
    """Who calls a verb."""

    client: str
    """The connection."""
    holder: str
    """The process behind it, as the owner of sessions."""
    door: str
    """What kind of program it is: `python` for the Python client, or a door's name."""
    name: str = ""
    """Under which its share, rates and budgets are reckoned: the one it gave itself, else its holder's."""


class Link(Protocol):
    """What a holder needs of its connections."""

    def abort(self, why: str) -> None:
        """End the connection at once."""


class Holder:
    """One client of one process."""

    __slots__ = ("connections", "holder_id", "key", "pidfd", "timer")

    def __init__(self, holder_id: str, key: tuple[int, str]) -> None:
        self.holder_id = holder_id
        """With the process id in it, for people: `pid_4711_3` is the third holder that came."""
        self.key = key
        self.connections: set[Link] = set()
        self.pidfd: int | None = None
        self.timer: asyncio.TimerHandle | None = None
        """Armed while no connection is left."""

    @property
    def pid(self) -> int:
        """The process, or 0 where the kernel does not tell."""
        return self.key[0]


class Holders:
    """All holders that have a connection, or had one within the grace."""

    def __init__(
        self,
        on_gone: Callable[[str], None],
        *,
        holds: Callable[[str], bool] = lambda _holder: True,
        grace: float = RESUME_GRACE,
    ) -> None:
        """`on_gone(holder_id)` is called once for each, when nothing can be held by it any more.

        `holds(holder_id)` says whether anything is: who holds nothing has nothing to come back to, and is not waited for.
        """
        self._on_gone = on_gone
        self._holds = holds
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._holders: dict[tuple[int, str], Holder] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._holders)

    def join(self, pid: int, name: str, connection: Link) -> Holder:
        """A connection of this process has proved itself; the holder that it belongs to, new or known."""
        key = (pid, name)
        holder = self._holders.get(key)
        if holder is None:
            holder = self._holders[key] = Holder(f"pid_{pid or 'unknown'}_{next(self._numbers)}", key)
            holder.pidfd = peers.open_pidfd(pid)
            if holder.pidfd is not None:
                self._loop.add_reader(holder.pidfd, self._process_ended, holder)
        if holder.timer is not None:
            holder.timer.cancel()
            holder.timer = None
        holder.connections.add(connection)
        return holder

    def leave(self, holder: Holder, connection: Link) -> None:
        """A connection has ended."""
        holder.connections.discard(connection)
        if holder.connections or self._holders.get(holder.key) is not holder:
            return
        if not self._holds(holder.holder_id):
            self._end(holder)
        elif holder.timer is None:
            holder.timer = self._loop.call_later(self._grace, self._end, holder)

    def close(self) -> None:
        """Watch nobody any more: the supervisor ends."""
        for holder in list(self._holders.values()):
            self._forget(holder)

    def _process_ended(self, holder: Holder) -> None:
        """A forked child may keep the process's sockets open, so its connections are ended from here."""
        log.info("%s (pid %s) has ended", holder.holder_id, holder.pid)
        self._end(holder)
        for connection in list(holder.connections):
            connection.abort("its process has ended")

    def _end(self, holder: Holder) -> None:
        self._forget(holder)
        self._on_gone(holder.holder_id)

    def _forget(self, holder: Holder) -> None:
        del self._holders[holder.key]
        if holder.timer is not None:
            holder.timer.cancel()
            holder.timer = None
        if holder.pidfd is not None:
            self._loop.remove_reader(holder.pidfd)
            os.close(holder.pidfd)
            holder.pidfd = None
