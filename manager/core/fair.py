"""Fair shares between the clients of one class on one account, by virtual time.

Each client's *flow* has a tag: the virtual time at which its next call is due. The flow with the least tag goes, and its tag moves
on by 1 / weight; the clock is the tag of whoever went last. A flow that comes, or comes back, starts at the clock: waiting earns it
no credit, and leaving loses it no debt. Over time each gets its weight's share of calls, and a client with thousands of requests is
one flow among the others. (Start-time fair queueing, Goyal, Vin and Cheng 1996; deficit round robin gives the same shares, but would
have to look at every flow to pass over those that wait for another model.)

A flow has a queue of its own for each target, in order of arrival. Entries in the heaps are left behind when they lose their
meaning, and dropped when they come up: choosing costs O(log flows), and O(targets) where several are open.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from callpool.manager.core.retry import Target

SPARE = 64
"""Entries that have lost their meaning, or flows without requests, that are kept beside as many as have one."""
MOST_DEBTS = 1_000
"""Flows without requests whose turns before are remembered: clients that come once and never again are no reason to grow."""


class Flow:
    """What one client has waiting in one class of one account."""

    __slots__ = ("count", "entered", "held", "latest", "name", "queues", "tag")

    def __init__(self, name: str, tag: float) -> None:
        self.name = name
        self.tag = tag
        self.queues: dict[Target, list[tuple[int, str]]] = {}
        """By target: (sequence, request id), the oldest first; some have left."""
        self.count = 0
        """Requests that wait here."""
        self.latest = 0
        """The highest sequence that ever waited here."""
        self.entered: set[Target] = set()
        """Targets in whose heaps it has its one entry."""
        self.held = False
        """Whether it takes no part for now: the client itself is at a limit."""


class FairQueue:
    """The flows of one class."""

    def __init__(
        self, weight_of: Callable[[str], float], is_waiting: Callable[[tuple[int, str], Target], bool]
    ) -> None:
        """`is_waiting` says whether an entry of a queue still stands for a request that waits for that target."""
        self._weight_of = weight_of
        self._is_waiting = is_waiting
        self._flows: dict[str, Flow] = {}
        self._heaps: dict[Target, list[tuple[float, int, str]]] = {}
        """By target: (tag, a sequence, name), of flows with requests for it that take part; of equal tags who came first goes first."""
        self._held: set[str] = set()
        """Names of flows that take no part."""
        self._clock = 0.0
        self._most_flows = SPARE
        """With more of them it is looked which can be forgotten."""
        self.count = 0
        """Requests that wait."""
        self.busy = 0
        """Flows that have any."""

    def flows(self) -> Iterator[Flow]:
        """Those with requests."""
        return (flow for flow in self._flows.values() if flow.count)

    def flow(self, name: str) -> Flow | None:
        """A client's flow."""
        return self._flows.get(name)

    def push(self, name: str, target: Target, entry: tuple[int, str]) -> None:
        """A request of this client waits."""
        flow = self._flows.get(name)
        if flow is None:
            if len(self._flows) >= self._most_flows:
                self._forget_empty()
            flow = self._flows[name] = Flow(name, self._clock)
        if not flow.count:
            flow.tag = max(flow.tag, self._clock)
            self.busy += 1
        heapq.heappush(flow.queues.setdefault(target, []), entry)
        flow.count += 1
        flow.latest = max(flow.latest, entry[0])
        self.count += 1
        self._enter(flow, target, entry[0])

    def left(self, name: str, target: Target) -> None:
        """A request has left, whichever way."""
        flow = self._flows[name]
        flow.count -= 1
        self.count -= 1
        queue = flow.queues.get(target, ())
        if flow.count == 0:
            flow.queues.clear()
            self.busy -= 1
        elif len(queue) > 2 * flow.count + SPARE:  # more have left than wait
            flow.queues[target] = queue = [entry for entry in queue if self._is_waiting(entry, target)]
            heapq.heapify(queue)
        if not self.count and (len(self._flows) > SPARE or len(self._heaps) > SPARE):
            self._rest()

    def best(self, target: Target) -> tuple[float, int, str] | None:
        """(tag, a sequence, name) of the flow that goes next for this target; None where nobody waits for it, or only who is held."""
        heap = self._heaps.get(target)
        while heap:
            tag, _, name = heap[0]
            flow = self._flows.get(name)
            head = None if flow is None or flow.held else self._head(flow, target)
            if flow is None or head is None:
                heapq.heappop(heap)
                if flow is not None:
                    flow.entered.discard(target)
            elif flow.tag > tag:
                heapq.heapreplace(heap, (flow.tag, head[0], name))  # it has been served meanwhile
            else:
                return heap[0]
        self._heaps.pop(target, None)
        return None

    def head(self, name: str, target: Target) -> str | None:
        """The id of the request that goes first in a client's queue."""
        flow = self._flows.get(name)
        entry = None if flow is None else self._head(flow, target)
        return None if entry is None else entry[1]

    def oldest(self, targets: list[Target]) -> tuple[int, str] | None:
        """The first of all entries of these targets that take part. O(flows × targets)."""
        heads = (self._head(flow, target) for flow in self.flows() if not flow.held for target in targets)
        return min(filter(None, heads), default=None)

    def charge(self, name: str) -> None:
        """A request of this client goes."""
        flow = self._flows[name]
        self._clock = max(self._clock, flow.tag)
        flow.tag += 1.0 / self._weight_of(name)

    def hold(self, name: str) -> None:
        """Let a client take no part."""
        flow = self._flows.get(name)
        if flow is not None:
            flow.held = True
            self._held.add(name)

    def let_go(self, name: str) -> None:
        """Let it take part again."""
        flow = self._flows.get(name)
        if flow is None or not flow.held:
            return
        flow.held = False
        self._held.discard(name)
        flow.tag = max(flow.tag, self._clock)
        for target, queue in flow.queues.items():
            if queue:
                self._enter(flow, target, queue[0][0])

    def forget(self, target: Target) -> None:
        """Nobody waits for this target any more."""
        entered = {name for _, _, name in self._heaps.pop(target, ())}
        for name in entered | self._held:
            flow = self._flows.get(name)
            if flow is not None:
                flow.entered.discard(target)
                flow.queues.pop(target, None)

    def _enter(self, flow: Flow, target: Target, sequence: int) -> None:
        if not flow.held and target not in flow.entered:
            flow.entered.add(target)
            heapq.heappush(self._heaps.setdefault(target, []), (flow.tag, sequence, flow.name))

    def _head(self, flow: Flow, target: Target) -> tuple[int, str] | None:
        queue = flow.queues.get(target)
        while queue and not self._is_waiting(queue[0], target):
            heapq.heappop(queue)
        if queue:
            return queue[0]
        flow.queues.pop(target, None)
        return None

    def _rest(self) -> None:
        """Nobody waits, and many names are remembered: the next busy time begins anew."""
        self._flows = {name: flow for name, flow in self._flows.items() if flow.held}
        self._heaps.clear()
        self._clock = 0.0
        for flow in self._flows.values():
            flow.tag = 0.0
            flow.queues.clear()
            flow.entered.clear()

    def _forget_empty(self) -> None:
        """Names are many: those without requests whose debt is paid are forgotten."""
        empty = [flow for flow in self._flows.values() if not flow.count and not flow.held]
        debts = [flow for flow in empty if flow.tag > self._clock][-MOST_DEBTS:]
        for flow in empty:
            del self._flows[flow.name]
        for flow in debts:
            self._flows[flow.name] = flow
        self._most_flows = 2 * len(self._flows) + SPARE
