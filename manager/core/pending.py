"""What is not durable yet, and what waits for that.

    record ─► open batch ──fly──► on its way to the disk ──committed──► what waited is done, in the order in which it was decided
                  ▲                        │
                  └─────────failed─────────┘   what began is undone, what ended is kept

An effect about a request whose records are not durable waits behind the newest of them: so a worker never hears of a call that is not
recorded, a cancel never overtakes its dispatch, and nobody hears of an end that a crash could take back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from callpool.manager.core.carried import Carried
from callpool.manager.core.events import ToClient, ToWorker
from callpool.manager.core.messages import Dispatch, Done
from callpool.manager.core.records import AttemptStarted, JobAccepted, JobEnded, JobWaits

if TYPE_CHECKING:
    from collections.abc import Collection

    from callpool.manager.core.events import Effect
    from callpool.manager.core.records import Record


_OVER: Final = frozenset({JobWaits, JobEnded})
"""Records with which an attempt is over."""


class Batch:
    """Records that are committed together, and what waits for that."""

    __slots__ = ("effects", "held", "records", "waiters", "windows")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.windows: list[Carried] = []
        """What is written ahead of windows: live calls may wait for that, too."""
        self.held: set[str] = set()
        """Live requests that do."""
        self.effects: list[Effect] = []
        self.waiters: list[Any] = []
        """Whoever else wants to know; the shell's."""

    def __bool__(self) -> bool:
        return bool(self.records or self.windows or self.effects or self.waiters)


class Undone(NamedTuple):
    """What becomes of records that could not be written."""

    refused: list[str]
    """Jobs that nobody was told of: they were never taken."""
    unstarted: list[str]
    """Jobs whose worker was never told: they wait."""
    at_once: list[Effect]
    """What waited for nothing that is kept."""
    bereft: dict[str, list[str]]
    """Refused job → the clients that were to be told something of it."""
    waiters: list[Any]


class Pending:
    """The open batch, the one on its way, and who waits behind which."""

    def __init__(self) -> None:
        self.open = Batch()
        self.flying: Batch | None = None
        self._behind: dict[str, Batch] = {}
        """request_id → the newest batch with a record of it."""
        self.suspect: list[Record] = []
        """The batch that failed last: a disk that said so may have it all the same, whole as every batch."""
        self._undone: list[Record] = []
        """Of these, what was given up."""
        self.bereft: dict[str, list[str]] = {}
        """Of the last commit: known job → the clients that were to be told something of it."""

    def __len__(self) -> int:
        """Records that are not durable."""
        return sum(len(batch.records) + len(batch.windows) for batch in self._batches())

    def _batches(self) -> list[Batch]:
        return [self.open] if self.flying is None else [self.flying, self.open]

    def record(self, record: Record | Carried) -> None:
        """This is to be written."""
        if isinstance(record, Carried):
            self.open.windows.append(record)
            return
        if record.request_id in self._behind:
            if type(record) is JobAccepted:
                raise RuntimeError(f"{record.request_id} is accepted again before its last end is durable")
            if type(record) in _OVER:
                self._never_send(record.request_id)
        self.open.records.append(record)
        self._behind[record.request_id] = self.open

    def _never_send(self, request_id: str) -> None:
        """Its attempt is over before its worker heard of it, and the worker's number may be another process's by now."""
        for batch in self._batches():
            batch.effects = [each for each in batch.effects if not is_order(each, request_id)]

    def worker_down(self, worker: int) -> list[str]:
        """A worker has ended: what it was to be sent is not for the next one of its number. Returns whose calls it never heard of."""
        unsent = []
        for batch in self._batches():
            kept: list[Effect] = []
            for each in batch.effects:
                if type(each) is not ToWorker or each.worker != worker:
                    kept.append(each)
                elif type(each.order) is Dispatch:
                    unsent.append(each.order.request_id)
            batch.effects = kept
        return unsent

    def holds_for(self, worker: int) -> bool:
        """Whether anything that a worker is to be sent is held back."""
        return any(
            type(each) is ToWorker and each.worker == worker for batch in self._batches() for each in batch.effects
        )

    def behind(self, request_id: str) -> Batch | None:
        """What must be durable before anything about this request is done; None where all is."""
        return self._behind.get(request_id)

    def defer(self, effect: Effect) -> bool:
        """Keep an effect back until the records of its request, and of the windows that it needs, are durable; else False."""
        if type(effect) is ToWorker and effect.after:
            return self._defer_for_windows(effect, effect.after)
        if not self._behind:
            return False
        request_id = about(effect)
        batch = None if request_id is None else self._behind.get(request_id)
        if request_id is None or batch is None:
            return False
        if request_id in batch.held and type(effect) is ToClient and type(effect.message) is Done:
            self._never_send(request_id)  # it is over; of a job its record has said so
        batch.effects.append(effect)
        return True

    def _defer_for_windows(self, effect: ToWorker, number: int) -> bool:
        request_id = about(effect)
        newest = next(
            (each for each in reversed(self._batches()) if each.windows and each.windows[0].number <= number), None
        )
        behind = None if request_id is None else self._behind.get(request_id)
        batch = self.open if self.open in (newest, behind) else newest or behind
        if batch is None or request_id is None:
            return False
        if behind is not batch:
            self._behind[request_id] = batch
            batch.held.add(request_id)
        batch.effects.append(effect)
        return True

    def let_go(self) -> list[Effect]:
        """What waits for windows alone: the disk takes too long, and live calls go on without it."""
        effects: list[Effect] = []
        for batch in self._batches():
            effects += [each for each in batch.effects if about(each) in batch.held]
            batch.effects = [each for each in batch.effects if about(each) not in batch.held]
            self._free(batch)
        return effects

    def _free(self, batch: Batch) -> None:
        for request_id in batch.held:
            if self._behind.get(request_id) is batch:
                del self._behind[request_id]
        batch.held.clear()

    def fly(self) -> Batch | None:
        """The batch that is to be written now, unless one is on its way or there is nothing."""
        if self.flying is not None or not self.open:
            return None
        self.flying, self.open = self.open, Batch()
        return self.flying

    def committed(self, batch: Batch, known: Collection[str] = ()) -> list[Effect]:
        """A batch is durable, but for what was about these ids: the journal had jobs of them already. What may be done now."""
        self.flying = None
        effects = batch.effects
        self.bereft = clients_of([*effects, *self.open.effects], known) if known else {}
        if known:
            effects = [each for each in effects if about(each) not in known]
            self.open.records = [each for each in self.open.records if each.request_id not in known]
            self.open.effects = [each for each in self.open.effects if about(each) not in known]
            for request_id in known:
                self._behind.pop(request_id, None)
        for record in batch.records:
            if self._behind.get(record.request_id) is batch:
                del self._behind[record.request_id]
        self._free(batch)
        return effects

    def failed(self, batch: Batch) -> Undone:
        """Nothing of a batch is on the disk. What began is undone, with what was to follow it; what ended is kept for later."""
        later, self.open, self.flying = self.open, Batch(), None
        records, effects = batch.records + later.records, batch.effects + later.effects
        refused = {each.request_id for each in records if type(each) is JobAccepted}
        last = {each.request_id: each for each in records}
        unstarted = {
            request_id
            for request_id, record in last.items()
            if type(record) is AttemptStarted and request_id not in refused
        }
        undone = [
            each
            for each in records
            if each.request_id in refused or (each.request_id in unstarted and each is last[each.request_id])
        ]
        bereft = clients_of(effects, refused)
        gone = {id(each) for each in undone}
        self.suspect, self._undone = batch.records, [each for each in batch.records if id(each) in gone]
        self.open.records = [each for each in records if id(each) not in gone]
        kept = {each.request_id for each in self.open.records}
        effects = [
            each
            for each in effects
            if about(each) not in refused and not (type(each) is ToWorker and about(each) in unstarted)
        ]
        self.open.effects = [each for each in effects if about(each) in kept]
        self._behind = dict.fromkeys(kept, self.open)
        at_once = [each for each in effects if about(each) not in kept]
        waiters = batch.waiters + later.waiters
        return Undone(sorted(refused), sorted(unstarted), at_once, bereft, waiters)

    def settle(self, *, written: bool) -> list[Record]:
        """The disk can be written again, and holds the batch that failed last, or does not. Returns what must be taken back there."""
        suspect, undone = self.suspect, self._undone
        self.suspect, self._undone = [], []
        if not written:
            return []
        there = {id(each) for each in suspect}
        self.open.records = [each for each in self.open.records if id(each) not in there]
        return undone


def about(effect: Effect) -> str | None:
    """The id of the request that an effect is about."""
    said: Any = effect.message if type(effect) is ToClient else effect.order if type(effect) is ToWorker else None
    return getattr(said, "request_id", None)


def clients_of(effects: list[Effect], request_ids: Collection[str]) -> dict[str, list[str]]:
    """Which clients these effects are for, by the requests that they are about."""
    found: dict[str, list[str]] = {}
    for each in effects:
        request_id = about(each)
        if type(each) is ToClient and request_id is not None and request_id in request_ids:
            clients = found.setdefault(request_id, [])
            if each.client not in clients:
                clients.append(each.client)
    return found


def is_order(effect: Effect, request_id: str) -> bool:
    """Whether it is for a worker, about this request."""
    return type(effect) is ToWorker and about(effect) == request_id
