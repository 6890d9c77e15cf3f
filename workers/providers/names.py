"""The addresses of a provider's name: looked up once, kept for a minute, and looked up again as soon as they fail.

aiohttp's own cache keeps an address that refuses connections until it expires, and does not tell whether an address came from
it; this one does both. Many connections that are opened at once share one lookup.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult

KEEP_ADDRESSES = 60.0
"""Seconds. Load balancers ask for 60 or more in their DNS records, so most of what a shorter time looks up again is the same;
a longer one would hold on to a balancer that is being taken out of service."""


class Addresses:
    """One lookup's result. Each connection begins at another address, as a name with several is meant to be used."""

    def __init__(self, found: list[ResolveResult], until: float) -> None:
        self._found = deque(found)
        self.until = until
        """Loop time at which it is looked up again."""

    def take(self) -> list[ResolveResult]:
        """All of them, in the order in which to try them."""
        found = list(self._found)
        self._found.rotate(-1)
        return found


class NameCache(AbstractResolver):
    """A resolver that remembers. It holds as many names as it is asked for, and a pool asks for one."""

    def __init__(self, resolver: AbstractResolver) -> None:
        """`resolver` does the lookups, and is closed with this one. Make it in the running loop."""
        self._resolver = resolver
        self._loop = asyncio.get_running_loop()
        self._known: dict[tuple[str, int], Addresses] = {}
        self._lookups: dict[tuple[str, int], asyncio.Task[Addresses]] = {}
        self.lookups = 0
        self.hits = 0

    def known(self, host: str, port: int | None) -> Addresses | None:
        """What `resolve` would answer without a lookup."""
        addresses = self._known.get((host, port or 0))
        return addresses if addresses is not None and self._loop.time() < addresses.until else None

    def forget(self, host: str, port: int | None, failed: Addresses) -> None:
        """These led nowhere. What was looked up since then stays."""
        if self._known.get((host, port or 0)) is failed:
            del self._known[host, port or 0]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises OSError; what failed is not remembered."""
        addresses = self.known(host, port)
        if addresses is not None:
            self.hits += 1
            return addresses.take()
        lookup = self._lookups.get((host, port))
        if lookup is None:
            self.lookups += 1
            lookup = self._lookups[host, port] = self._loop.create_task(self._look_up(host, port, family))
            lookup.add_done_callback(_retrieve)
        else:
            self.hits += 1
        return (await asyncio.shield(lookup)).take()  # a cancelled call must not end the lookup that others wait for

    async def close(self) -> None:
        """Let go of lookups under way: nobody waits for them."""
        for lookup in self._lookups.values():
            lookup.cancel()
        await self._resolver.close()

    async def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> Addresses:
        try:
            found = await self._resolver.resolve(host, port, family)
        finally:
            del self._lookups[host, port]
        addresses = self._known[host, port] = Addresses(found, self._loop.time() + KEEP_ADDRESSES)
        return addresses


def _retrieve(lookup: asyncio.Task[Addresses]) -> None:
    """A failure that every waiter was cancelled before is nobody's."""
    if not lookup.cancelled():
        lookup.exception()
