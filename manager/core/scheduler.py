"""Who goes next: by class, in a class by fair shares, and nobody waits for ever.

    submitted ─► account ─► class (interactive, normal, batch) ─► client's flow ─► in order of arrival
                    │              the highest that has any     `fair`: by weight
                    └─ every 8th turn: the oldest of all, if it has waited for `ageing` seconds

A request whose account or model can take none never blocks one whose account or model can. One that has to wait again finds its old
place by its sequence number, at once or after a rest. One whose tokens do not fit yet holds back whoever wants tokens of the same
limit, or small requests would overtake a large one for ever; one whose client is at a limit of its own holds back that client alone.

Ageing: an oldest request takes the turn of its client, so its shares stay what they are; and among accounts that compete for the
last session of the pool, who has waited that long counts as of the highest class. A request is therefore served at the latest after
`ageing` and eight turns for each request that came before it.

Cost: O(log n) in the requests of a client and in the clients of a class, O(targets that wait on accounts with a slot) to choose.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, Literal, Protocol

from callpool.manager.core.deadlines import Deadlines
from callpool.manager.core.fair import MOST_DEBTS, FairQueue
from callpool.manager.core.limits import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.requests import Request
    from callpool.manager.core.retry import Target

AGEING: Final = 30.0
"""Seconds after which a request gets turns ahead of higher classes."""
AGED_TURN: Final = 8
"""Of so many turns of an account one is for whoever has waited longest."""
MANY_FLOWS: Final = 128
"""With more flows than these, a position in the queue is estimated."""
MANY_REQUESTS: Final = 1_000
"""With more waiting requests than these, the place of an old one in its client's queue is estimated."""
HELD_TICK: Final = 0.02
"""Seconds by which a client that was held back may come late."""
SPARE: Final = 64

Held = Literal["go", "account", "target", "client"]
"""Whether a request may go, or what is to be held back with it."""


class Gate(Protocol):
    """What says which calls may go now."""

    def is_open(self, account: str) -> bool:
        """Whether any call may go there."""

    def is_shut(self, target: Target) -> bool:
        """Whether none may go to this model of it."""

    def admits(self, request: Request) -> Held:
        """Whether this one may."""

    def held_until(self) -> float:
        """Monotonic seconds at which a client that `admits` just held back may go on, if nothing ends before."""


class _Account:
    """What waits for one account."""

    __slots__ = ("ages", "classes", "count", "latest", "targets", "turns")

    def __init__(
        self, weight_of: Callable[[str], float], is_waiting: Callable[[tuple[int, str], Target], bool]
    ) -> None:
        self.classes = tuple(FairQueue(weight_of, is_waiting) for _ in PRIORITIES)
        self.ages: dict[Target, list[tuple[int, str]]] = {}
        """By target, in order of arrival: only those that somebody waits for."""
        self.targets: dict[Target, int] = {}
        """How many wait for each."""
        self.count = 0
        """Requests that take part."""
        self.latest = 0
        self.turns = 0


class Scheduler:
    """The queue of the pool, bounded in count and in bytes of payload and metadata."""

    def __init__(
        self,
        *,
        max_requests: int,
        max_bytes: int,
        weight_of: Callable[[str], float] = lambda _name: 1.0,
        ageing: float = AGEING,
    ) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.ageing = ageing
        self._weight_of = weight_of
        self._waiting: dict[str, Request] = {}
        """request_id → request that waits, or rests."""
        self._taking_part: dict[str, Request] = {}
        """Those that do not rest. What is in a heap but not here (or with another sequence or target) has left."""
        self._accounts: dict[str, _Account] = {}
        """Those that somebody ever waited for: accounts are as many as the configuration has."""
        self._busy: dict[str, _Account] = {}
        """Those that somebody waits for."""
        self._counts: dict[str, int] = {}
        """By account, resting requests included."""
        self._bytes = 0
        self._held = Deadlines(HELD_TICK)
        """Clients that take no part for now."""
        self._endlessly: set[str] = set()
        """Of these, the ones for whom something must end first."""
        self._tags: dict[str, float] = {}
        self._clock = 0.0
        """Virtual time between accounts, by client: it decides where they compete for the pool's last session."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    @property
    def queued_bytes(self) -> int:
        """Bytes of payload and metadata that wait."""
        return self._bytes

    @property
    def any_held(self) -> bool:
        """Whether any client takes no part for now."""
        return bool(len(self._held) or self._endlessly)

    def next_release(self) -> float | None:
        """Monotonic seconds at which a client that was held back takes part again."""
        return self._held.next()

    def has_room(self, size: int, *, promised: int = 0, promised_bytes: int = 0) -> bool:
        """Whether one more request of this size may wait besides what is promised to others."""
        if len(self._waiting) + promised >= self.max_requests:
            return False
        return self._bytes + promised_bytes + size <= self.max_bytes

    def count(self, account: str) -> int:
        """How many requests wait for this account."""
        return self._counts.get(account, 0)

    def counts(self, account: str) -> dict[str, int]:
        """How many of each class take part."""
        found = self._accounts.get(account)
        return {name: 0 if found is None else found.classes[rank].count for rank, name in enumerate(PRIORITIES)}

    # Coming and leaving.

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

    def wake(self, request_id: str) -> None:
        """Let a resting request take part again."""
        request = self._waiting[request_id]
        account = self._accounts.get(request.provider)
        if account is None:
            account = self._accounts[request.provider] = _Account(self._weight_of, self._is_waiting)
        if not account.count:
            self._busy[request.provider] = account
        target, entry = request.target, (request.sequence, request_id)
        self._taking_part[request_id] = request
        account.count += 1
        account.latest = max(account.latest, request.sequence)
        account.targets[target] = account.targets.get(target, 0) + 1
        heapq.heappush(account.ages.setdefault(target, []), entry)
        queue = account.classes[request.rank]
        queue.push(request.name, target, entry)
        if self.any_held and self.is_held(request.name):
            queue.hold(request.name)

    def remove(self, request_id: str) -> Request | None:
        """Take a request out of the queue (cancelled, expired); the places of the others stay."""
        if request_id not in self._waiting:
            return None
        return self._leave(request_id)

    def _leave(self, request_id: str) -> Request:
        request = self._waiting.pop(request_id)
        self._counts[request.provider] -= 1
        self._bytes -= request.payload_bytes + request.metadata_bytes
        if request_id in self._taking_part:
            del self._taking_part[request_id]
            self._retire(request)
        return request

    def _retire(self, request: Request) -> None:
        """It takes part no more."""
        account, target = self._accounts[request.provider], request.target
        account.count -= 1
        account.classes[request.rank].left(request.name, target)
        account.targets[target] -= 1
        if account.count == 0:
            account.targets.clear()
            account.ages.clear()
            del self._busy[request.provider]
            if not self._busy:
                self._tags.clear()
                self._clock = 0.0
        elif account.targets[target] == 0:
            del account.targets[target], account.ages[target]
            for queue in account.classes:
                queue.forget(target)
        else:
            ages = account.ages[target]
            if len(ages) > 2 * account.targets[target] + SPARE:  # more have left than wait
                ages[:] = [entry for entry in ages if self._is_waiting(entry, target)]
                heapq.heapify(ages)

    # Choosing.

    def next(self, gate: Gate, now: float) -> Request | None:
        """Take the request that goes next, or None where none may."""
        self.release(now)
        best: tuple[tuple[int, float, int], Request] | None = None
        for name, account in self._busy.items():
            if not gate.is_open(name):
                continue
            found = self._candidate(account, gate, now)
            if found is not None:
                rank = 0 if now - found.since >= self.ageing else found.rank
                key = (rank, max(self._clock, self._tags.get(found.name, 0.0)), found.sequence)
                if best is None or key < best[0]:
                    best = key, found
        if best is None:
            return None
        request = best[1]
        account = self._accounts[request.provider]
        account.turns += 1
        account.classes[request.rank].charge(request.name)
        if len(self._busy) > 1:
            self._clock = best[0][1]
            self._tags[request.name] = self._clock + 1.0 / self._weight_of(request.name)
            if len(self._tags) > 2 * MOST_DEBTS:
                debts = [(name, tag) for name, tag in self._tags.items() if tag > self._clock]
                self._tags = dict(debts[-MOST_DEBTS:])
        return self._leave(request.request_id)

    def _candidate(self, account: _Account, gate: Gate, now: float) -> Request | None:
        """Who goes next of one account."""
        targets = [target for target in account.targets if not gate.is_shut(target)]
        while targets:
            request = self._oldest(account, targets, now) or self._fairest(account, targets)
            if request is None:
                return None
            held = gate.admits(request)
            if held == "go":
                return request
            if held == "account":
                return None
            if held == "target":
                targets.remove(request.target)
            else:
                self.hold(request.name, gate.held_until())
        return None

    def _oldest(self, account: _Account, targets: list[Target], now: float) -> Request | None:
        """Whoever has waited longest, where it is its turn and that was long enough."""
        if account.turns % AGED_TURN != AGED_TURN - 1:
            return None
        oldest: tuple[int, str] | None = None
        for target in targets:
            ages = account.ages[target]
            while not self._is_waiting(ages[0], target):
                heapq.heappop(ages)
            if oldest is None or ages[0] < oldest:
                oldest = ages[0]
        if oldest is None:
            return None
        if self.any_held and self.is_held(self._waiting[oldest[1]].name):
            oldest = min(filter(None, (queue.oldest(targets) for queue in account.classes)), default=None)
            if oldest is None:
                return None
        request = self._waiting[oldest[1]]
        return request if now - request.since >= self.ageing else None

    def _fairest(self, account: _Account, targets: list[Target]) -> Request | None:
        """Whoever is due in the highest class that has any."""
        for queue in account.classes:
            if not queue.count:
                continue
            best: tuple[tuple[float, int, str], Target] | None = None
            for target in targets:
                flow = queue.best(target)
                if flow is not None and (best is None or flow < best[0]):
                    best = flow, target
            if best is not None:
                request_id = queue.head(best[0][2], best[1])
                return None if request_id is None else self._waiting[request_id]
        return None

    # Clients at a limit of their own.

    def hold(self, name: str, until: float) -> None:
        """Let a client's requests take no part until then, or until it is let go."""
        if until == float("inf"):
            self._endlessly.add(name)
        else:
            self._held.set(name, until)
        for account in self._busy.values():
            for queue in account.classes:
                queue.hold(name)

    def release(self, now: float) -> None:
        """Let the clients take part again whose time has come."""
        if self.any_held:
            for name in self._held.pop_due(now):
                self._take_part(name)

    def let_go(self, name: str) -> None:
        """Let a client's requests take part again."""
        if self.is_held(name):
            self._held.clear(name)
            self._take_part(name)

    def _take_part(self, name: str) -> None:
        self._endlessly.discard(name)
        for account in self._accounts.values():
            for queue in account.classes:
                queue.let_go(name)

    def is_held(self, name: str) -> bool:
        """Whether a client's requests take no part for now."""
        return name in self._endlessly or name in self._held

    # Looking.

    def position(self, request: Request) -> int:
        """About how many requests of its account go before this one, as it stands. O(clients of its class) where these are few.

        Whoever is of a higher class goes first, and each other client of its own has its share of turns until its own turn comes.
        """
        account = self._accounts.get(request.provider)
        if account is None or request.request_id not in self._taking_part:
            return 0
        queue = account.classes[request.rank]
        flow = queue.flow(request.name)
        if flow is None:
            return 0
        before = sum(each.count for each in account.classes[: request.rank])
        own = flow.count - 1 if request.sequence >= flow.latest else self._before(request, queue)
        others, flows = queue.count - flow.count, queue.busy
        if flows > MANY_FLOWS:
            return before + own + min(others, (own + 1) * (flows - 1))
        turns = (own + 1) / self._weight_of(request.name)
        for each in queue.flows():
            if each is not flow:
                before += min(each.count, round(turns * self._weight_of(each.name)))
        return before + own

    def _before(self, request: Request, queue: FairQueue) -> int:
        """How many of the same client, class and account came before it; where very many wait, the most that there may be."""
        if queue.head(request.name, request.target) == request.request_id:
            return 0
        flow = queue.flow(request.name)
        if flow is None or len(self._taking_part) > MANY_REQUESTS:
            return 0 if flow is None else flow.count - 1
        return sum(
            1
            for other in self._taking_part.values()
            if other.sequence < request.sequence
            and (other.name, other.rank, other.provider) == (request.name, request.rank, request.provider)
        )

    def waiting_for(self, target: Target) -> list[Request]:
        """The requests that wait for a target, in order of arrival. O(n log n): for when its circuit opens, not for dispatch."""
        account = self._accounts.get(target.provider)
        ages = () if account is None else account.ages.get(target, ())
        # One that came back may have more than one entry.
        return [self._waiting[entry[1]] for entry in sorted(set(ages)) if self._is_waiting(entry, target)]

    def waiting(self) -> list[Request]:
        """All waiting requests in order of arrival. O(n log n): for draining, not for dispatch."""
        return sorted(self._waiting.values(), key=lambda request: request.sequence)

    def _is_waiting(self, entry: tuple[int, str], target: Target) -> bool:
        request = self._taking_part.get(entry[1])
        return request is not None and request.sequence == entry[0] and request.target == target
