"""Places in the queue that are promised to clients in advance, so that a submit need not wait for an answer.

A submit that uses a place cannot be refused for a full queue. A client gets places when it joins and as it uses them, as
long as what waits and what is promised fill at most a quarter of the queue; beyond that its submits ask and wait for an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core.messages import PLACE_BYTES

if TYPE_CHECKING:
    from callpool.manager.core.scheduler import Scheduler

WINDOW = 128
"""Places that one client holds at most: what it can submit in the time of a round trip."""
SHARE = 0.25
"""Part of the queue that promises may fill together with what waits."""


class Places:
    """Who holds how many promised places."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held: dict[str, int] = {}
        self.total = 0

    @property
    def total_bytes(self) -> int:
        """Bytes of payload and metadata that the promises may bring."""
        return self.total * PLACE_BYTES

    def join(self, client: str) -> None:
        """This client can be promised places."""
        self._held.setdefault(client, 0)

    def leave(self, client: str) -> None:
        """This client's promises are void."""
        self.total -= self._held.pop(client, 0)

    def use(self, client: str) -> bool:
        """Take one of the client's places for a submit; whether it had one."""
        held = self._held.get(client, 0)
        if held == 0:
            return False
        self._held[client] = held - 1
        self.total -= 1
        return True

    def grant(self, client: str) -> int:
        """How many more places to promise this client now; they are promised when this returns. 0 while it has enough."""
        held = self._held.get(client)
        if held is None or held > WINDOW // 2:
            return 0
        taken, taken_bytes = len(self._scheduler) + self.total, self._scheduler.queued_bytes + self.total_bytes
        by_count = int(self._scheduler.max_requests * SHARE) - taken
        by_bytes = (int(self._scheduler.max_bytes * SHARE) - taken_bytes) // PLACE_BYTES
        more = max(0, min(WINDOW - held, by_count, by_bytes))
        self._held[client] = held + more
        self.total += more
        return more

    def revoke_all(self) -> list[str]:
        """Take every promise back, for good; returns who held any."""
        holders = [client for client, held in self._held.items() if held]
        self._held.clear()
        self.total = 0
        return holders
