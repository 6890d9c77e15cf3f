"""What the connections to a provider account come to: counts that only grow, and what is there at the moment.

each worker's pool ──Heartbeat──► the latest of each worker ─┐
                                  what ended workers had done ┴─► total(...)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec


class PoolCounts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One account's pool in one worker, or the sum of several. The second group is of the moment.

    `requests = reused + opened - warmed` + what got no connection (it failed, or was cancelled before).
    """

    requests: int = 0
    """Requests that asked for a connection."""
    opened: int = 0
    """Connections opened, those that were warmed among them."""
    reused: int = 0
    """Requests that got a connection that was open already."""
    failed: int = 0
    """Attempts to open one that failed: no address, refused, no TLS."""
    warmed: int = 0
    """Connections opened ahead of any request."""
    dns_lookups: int = 0
    dns_cache_hits: int = 0
    """Names that needed no lookup, because their address was known or just being looked up."""
    connect_seconds: float = 0.0
    """Sum for the `opened`, from the lookup to the end of the TLS handshake."""
    connect_seconds_max: float = 0.0

    open: int = 0
    """Connections that are open."""
    idle: int = 0
    """Of these, those that no request has."""
    waiting: int = 0
    """Requests that wait for a connection."""

    def ended(self) -> PoolCounts:
        """What stays when the pool is gone."""
        return msgspec.structs.replace(self, open=0, idle=0, waiting=0)

    def as_plain(self) -> dict[str, Any]:
        """The counts by name, and the mean time to connect."""
        return {**msgspec.structs.asdict(self), "connect_seconds_mean": self.connect_seconds / max(1, self.opened)}


def total(counts: Iterable[PoolCounts]) -> PoolCounts:
    """Everything added up; of the longest time, the longest."""
    each = list(counts)
    added = {
        name: sum(getattr(one, name) for one in each)
        for name in PoolCounts.__struct_fields__
        if name != "connect_seconds_max"
    }
    return PoolCounts(**added, connect_seconds_max=max((one.connect_seconds_max for one in each), default=0.0))
