"""Who goes next. Today: first come, first served, among the targets (an account's model) that can take a call.

A request whose target can take none never blocks one whose target can. Each target has a queue of its own, ordered by
arrival; a request that has to wait again finds its old place by its sequence number, at once or after a rest. The interface is what
later policies (priorities, fair shares, ageing) keep: `push`, `rest`, `wake`, `next_for`, `remove`, `position`.

Cost: O(log n) in the requests of a target, O(targets that wait on accounts with a slot) to choose among them.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.requests import Request
    from callpool.manager.core.retry import Target


class Scheduler:
    """The queue of the pool, bounded in count and in bytes of payload and metadata."""

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self._waiting: dict[str, Request] = {}
        """request_id → waiting request; what is in a heap but not here (or with another sequence) has left."""
        self._heaps: dict[str, dict[Target, list[tuple[int, str]]]] = {}
        """By account and target: only those that somebody waits for."""
        self._counts: dict[str, int] = {}
        self._bytes = 0
        self._latest: dict[str, int] = {}
        """account → the highest sequence that ever waited for it."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def queued_bytes(self) -> int:
        """Bytes of payload and metadata that wait."""
        return self._bytes

    def has_room(self, size: int, *, promised: int = 0, promised_bytes: int = 0) -> bool:
        """Whether one more request of this size may wait besides what is promised to others."""
        if len(self._waiting) + promised >= self.max_requests:
            return False
        return self._bytes + promised_bytes + size <= self.max_bytes

    def count(self, account: str) -> int:
        """How many requests wait for this account."""
        return self._counts.get(account, 0)

    def push(self, request: Request) -> None:
        """Let a request wait, at the place of its sequence number."""
        self.rest(request)
        self.wake(request.request_id)

    def rest(self, request: Request) -> None:
        """Let a request wait without taking part, until it is woken."""
        account = request.provider
        self._waiting[request.request_id] = request
        self._counts[account] = self._counts.get(account, 0) + 1
        self._bytes += request.payload_bytes + request.metadata_bytes
        self._latest[account] = max(self._latest.get(account, 0), request.sequence)

    def wake(self, request_id: str) -> None:
        """Let a resting request take part again."""
        request = self._waiting[request_id]
        heaps = self._heaps.setdefault(request.provider, {})
        heapq.heappush(heaps.setdefault(request.target, []), (request.sequence, request_id))

    def next_for(
        self, has_slot: Callable[[str], bool], is_shut: Callable[[Target], bool] = lambda _target: False
    ) -> Request | None:
        """Take the request that goes next, of the accounts that have a slot and their targets that are not shut; or None."""
        best: tuple[int, str] | None = None
        chosen: list[tuple[int, str]] = []
        for account, heaps in list(self._heaps.items()):
            if not has_slot(account):
                continue
            for target, heap in list(heaps.items()):
                self._drop_departed(target, heap)
                if not heap:
                    self._forget(target)
                elif (best is None or heap[0] < best) and not is_shut(target):
                    best, chosen = heap[0], heap
        if best is None:
            return None
        heapq.heappop(chosen)
        return self._leave(best[1])

    def waiting_for(self, target: Target) -> list[Request]:
        """The requests that wait for a target, in order of arrival. O(n log n): for when its circuit opens, not for dispatch."""
        heap = self._heaps.get(target.provider, {}).get(target, ())
        return [self._waiting[entry[1]] for entry in sorted(heap) if self._is_waiting(target, entry)]

    def remove(self, request_id: str) -> Request | None:
        """Take a request out of the queue (cancelled, expired); the places of the others stay."""
        if request_id not in self._waiting:
            return None
        request = self._leave(request_id)
        target = request.target
        heap = self._heaps.get(target.provider, {}).get(target, [])
        if len(heap) > 2 * self._counts[request.provider] + 64:  # departed entries outnumber the waiting ones
            heap[:] = [entry for entry in heap if self._is_waiting(target, entry)]
            heapq.heapify(heap)
        elif heap:
            self._drop_departed(target, heap)
        if not heap:
            self._forget(target)
        return request

    def _forget(self, target: Target) -> None:
        """Nobody waits for it any more."""
        heaps = self._heaps.get(target.provider)
        if heaps is not None and heaps.pop(target, None) is not None and not heaps:
            del self._heaps[target.provider]

    def position(self, request: Request) -> int:
        """How many requests of the same account wait before this one. O(1) for the newest, the case of every submit."""
        count = self._counts.get(request.provider, 0)
        if count and request.sequence == self._latest.get(request.provider):
            return count - 1
        return sum(
            1
            for other in self._waiting.values()
            if other.provider == request.provider and other.sequence < request.sequence
        )

    def waiting(self) -> list[Request]:
        """All waiting requests in order of arrival. O(n log n): for draining, not for dispatch."""
        return sorted(self._waiting.values(), key=lambda request: request.sequence)

    def _leave(self, request_id: str) -> Request:
        request = self._waiting.pop(request_id)
        self._counts[request.provider] -= 1
        self._bytes -= request.payload_bytes + request.metadata_bytes
        if not self._waiting:
            self._heaps.clear()
        return request

    def _is_waiting(self, target: Target, entry: tuple[int, str]) -> bool:
        request = self._waiting.get(entry[1])
        return request is not None and request.sequence == entry[0] and request.target == target

    def _drop_departed(self, target: Target, heap: list[tuple[int, str]]) -> None:
        while heap and not self._is_waiting(target, heap[0]):
            heapq.heappop(heap)
