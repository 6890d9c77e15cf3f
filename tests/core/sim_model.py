"""The witness's own books: what is live, who holds what, who waits, built from events and effects alone."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

from callpool.manager.core.events import (
    AccountClosed,
    CancelAsked,
    ClientGone,
    CutAsked,
    DrainAsked,
    Submitted,
    Tick,
    WorkerRetiring,
    WorkerUp,
)
from callpool.manager.core.limits import PRIORITIES, Usage
from callpool.manager.core.retry import Target

from .build import TIMEOUT
from .sim_ledger import LimitBooks

if TYPE_CHECKING:
    from callpool.manager.core.events import Event
    from callpool.manager.core.messages import Dispatch, Submit

    from .sim_world import World

States: TypeAlias = frozenset[str]


def size_of(submit: Submit) -> int:
    """What a submit takes of the queue's bytes."""
    return len(submit.payload) + len(submit.metadata)


class Violation(AssertionError):
    """The core broke a rule. `rule` is its name."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


class Submission:
    """One accepted submit, from outside: a request id may name several in turn, never at once."""

    __slots__ = (
        "attempt", "client", "deadline", "dispatched_at", "ending", "entitled", "fallbacks", "left", "lost", "name", "number",
        "older", "ordered_at", "passed", "pieces", "queue_until", "rank", "rests_until", "session_id", "started", "submit",
        "submitted_at", "target", "timeout", "tokens", "tries", "worker",
    )  # fmt: skip

    def __init__(self, number: int, event: Submitted, now: float) -> None:
        self.number = number
        self.client = event.client
        self.submit = submit = event.submit
        self.name = event.name or event.client
        self.rank = PRIORITIES.index(submit.priority)
        self.target = Target(submit.provider, submit.model)
        self.fallbacks = [Target(*name.split("/")) for name in submit.fallbacks or ()]
        """Where it may go instead, in order, and has not been yet."""
        self.tokens: Usage = submit.tokens
        """What its next call will use, as far as anybody has said."""
        self.submitted_at = now
        self.queue_until = None if submit.queue_timeout is None else now + submit.queue_timeout
        self.deadline: float | None = None
        """Seconds at which all its calls are over; None while it waits for a first one, or was told to wait."""
        self.rests_until = 0.0
        """It may take part before that, and has to afterwards."""
        self.lost = 0
        """Workers that died before its call began."""
        self.passed = 0
        """Turns that younger ones of its account had although it had waited for long enough to be due."""
        self.older = 0
        """Turns that older ones had meanwhile."""
        self.session_id = event.session_id
        self.timeout = TIMEOUT if event.submit.timeout is None else event.submit.timeout
        self.left = self.timeout
        """Seconds that its present call had at its dispatch."""
        self.worker: int | None = None
        """The worker that holds it; None while it waits."""
        self.attempt = 0
        """The number of its last dispatch: the fencing token between core and worker."""
        self.tries = 0
        self.dispatched_at = 0.0
        self.started = False
        self.pieces = 0
        self.entitled = False
        """Somebody who may end it asked for its end."""
        self.ordered_at: float | None = None
        self.ending: States = frozenset()
        """Final states that the order to end it can lead to."""

    def __repr__(self) -> str:
        return (
            f"<{self.submit.request_id} #{self.number} {self.name} {PRIORITIES[self.rank]} {self.target.provider}/{self.target.model} "
            f"worker={self.worker} tries={self.tries}>"
        )


class Books:
    """Everything that can be known from outside, kept by event and effect."""

    def __init__(self, world: World, *, max_metadata: int) -> None:
        self.world = world
        self.pool = world.pool
        self.limits = LimitBooks(world.rules)
        self.max_requests = world.max_requests
        self.max_bytes = world.max_bytes
        self.max_metadata = max_metadata
        self.live: dict[str, Submission] = {}
        self.held: dict[str, set[str]] = {name: set() for name in world.concurrency}
        """account → ids of the requests that hold a slot of it."""
        self.waiting: dict[str, list[Submission]] = {name: [] for name in world.concurrency}
        """account → the requests that wait for it, in order of arrival."""
        self.waiting_bytes = 0
        self.up: dict[int, set[str]] = {}
        self.retiring: set[int] = set()
        """Those of `up` that may get nothing more."""
        self.closed: set[str] = set()
        self.ended: Counter[str] = Counter()
        """Ends of requests that held a session, by state."""
        self.created = 0
        self.seen: Counter[str] = Counter()
        """What happened at all: a simulator that never gets somewhere proves nothing about it."""
        self.spent: Counter[bytes] = Counter()
        """payload → how often a worker contacted the provider for it."""
        self.allowed: Counter[bytes] = Counter()
        """payload → how often a call that had begun was rightly made again."""
        self.final: dict[str, str] = {}
        """request_id → state in which its last submission ended."""
        self.ended_at: dict[str, float] = {}
        self.drain_deadline: float | None = None
        self.cut_at: float | None = None
        self.drained = False
        self._live_at_drain = 0
        self._held_at_drain = 0
        self._ended_in_drain: Counter[str] = Counter()
        self._sessions_in_drain = 0
        """Those that ever held a session and ended before the cut."""
        self._numbers = 0

    @property
    def active(self) -> int:
        """Sessions that are out."""
        return sum(map(len, self.held.values()))

    def spend(self, payload: bytes) -> None:
        """A worker contacts the provider for this payload."""
        self.spent[payload] += 1
        if self.spent[payload] > 1 + self.allowed[payload]:
            raise Violation("paid_twice", f"two calls were made for {payload!r}")

    def enter(self, event: Submitted, now: float) -> Submission:
        """A submit was accepted: it waits."""
        submit = event.submit
        self._numbers += 1
        found = self.live[submit.request_id] = Submission(self._numbers, event, now)
        self._wait(found)
        return found

    def _wait(self, found: Submission) -> None:
        insort(self.waiting[found.target.provider], found, key=lambda each: each.number)
        self.waiting_bytes += size_of(found.submit)

    def move(self, found: Submission, target: Target) -> None:
        """A request that waits does so for another target."""
        self.waiting[found.target.provider].remove(found)
        found.target = target
        insort(self.waiting[target.provider], found, key=lambda each: each.number)

    def hold(self, found: Submission, worker: int, order: Dispatch, now: float) -> None:
        """A request was dispatched: it holds a session, a slot and a worker."""
        request_id, account = found.submit.request_id, found.target.provider
        self.waiting[account].remove(found)
        self.waiting_bytes -= size_of(found.submit)
        self.held[account].add(request_id)
        self.up[worker].add(request_id)
        self.created += found.tries == 0
        found.tries += 1
        found.worker, found.attempt, found.dispatched_at, found.left = worker, order.attempt, now, order.timeout
        found.passed = found.older = 0
        if found.deadline is None:
            found.deadline = now + found.left
        self.limits.reserve(found, now)

    def requeue(self, found: Submission) -> None:
        """A request holds nothing any more and waits again, at its old place. What it had reserved is settled."""
        self.seen["requeued"] += 1
        request_id, account = found.submit.request_id, found.target.provider
        self.held[account].discard(request_id)
        self.up.get(found.worker or 0, set()).discard(request_id)
        found.worker, found.started, found.pieces = None, False, 0
        self._wait(found)

    def end(self, found: Submission, state: str, now: float) -> None:
        """A request ended: everything it held is free."""
        request_id, account = found.submit.request_id, found.target.provider
        del self.live[request_id]
        if found.worker is None:
            self.waiting[account].remove(found)
            self.waiting_bytes -= size_of(found.submit)
        else:
            self.held[account].discard(request_id)
            self.up.get(found.worker, set()).discard(request_id)
        if found.tries:
            self.ended[state] += 1
        if self.drain_deadline is not None:
            self._ended_in_drain[state] += 1
            self._sessions_in_drain += found.tries > 0 and self.cut_at is None
        self.final[request_id] = state
        self.ended_at[request_id] = now
        self.seen[f"{'waiting' if found.worker is None else 'active'} {state}"] += 1

    def note(self, event: Event, now: float) -> None:
        """Note what an event entitles the core to do: who may be ended, who may be dispatched to."""
        match event:
            case WorkerUp() | WorkerRetiring():
                self._note_worker(event)
            case AccountClosed(account, reason):
                (self.closed.discard if reason is None else self.closed.add)(account)
            case CancelAsked(client, request_id):
                found = self.live.get(request_id)
                if found is not None and client in {None, found.client}:
                    found.entitled = True
            case ClientGone(client):
                for found in self.live.values():
                    found.entitled |= found.client == client
            case DrainAsked(timeout):
                self._note_drain(now, timeout)
            case CutAsked():
                self._note_drain(now, 0.0)
                self._cut_if_due(now)
            case Tick():
                self._cut_if_due(now)

    def _note_worker(self, event: WorkerUp | WorkerRetiring) -> None:
        worker = event.worker
        if type(event) is WorkerUp:
            self.up.setdefault(worker, set())
        elif worker in self.up:
            self.retiring.add(worker)
            self.seen["retired busy"] += bool(self.up[worker])

    def _note_drain(self, now: float, timeout: float) -> None:
        if self.drain_deadline is not None:
            self.drain_deadline = min(self.drain_deadline, now + timeout)
            return
        self.drain_deadline = now + timeout
        self._live_at_drain, self._held_at_drain = len(self.live), self.active
        self._cut_if_due(now)

    def _cut_if_due(self, now: float) -> None:
        due = self.drain_deadline is not None and now >= self.drain_deadline
        if (
            self.cut_at is None and due and self.live
        ):  # without anything left there is nothing that a deadline could cut
            self.cut_at = now
            self.seen["cut"] += 1
            for found in self.live.values():
                found.entitled = True
