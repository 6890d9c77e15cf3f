"""The lifecycle log: which phases each request went through, while it lives and for a while after it ended.

    live requests ──their own phases──┐
    clients' notes ───────────────────┼──► events · durations · statistics   (read when asked)
    ended requests ───────────────────┘
                     └─ bounded by count, by bytes and by age; what falls out is counted

Recording is an append to the request's own list; everything else is done when somebody asks. A client may add notes of its own,
also for requests that the supervisor never saw: those are kept apart, so that nobody can write the supervisor's phases.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from callpool.manager.core.requests import Now, Phase, Record
from callpool.manager.core.strict import printable

if TYPE_CHECKING:
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.messages import Note
    from callpool.manager.core.requests import Request

MAX_NOTES = 200
"""Notes for one request; further ones are dropped and counted."""
MAX_NOTE_BYTES = 262_144
"""Bytes of all notes for one request; further ones are dropped and counted."""
LONGEST_DELAY = 60.0
"""Seconds that a note may have been under way; what claims more comes from another clock."""
ENTRY_BYTES = 1_200
"""What an ended request costs besides its texts: measured, objects and table entries included."""
EVENT_BYTES = 130
"""What one event costs besides its texts."""
ATTEMPT_BYTES = 250
"""What the record of a call costs besides its texts."""
NOTE_BYTES = 400
"""What one note costs besides its texts: its strings are its own."""
FINAL = frozenset({
    Phase.COMPLETED, Phase.TIMEOUT, Phase.ERROR, Phase.CANCELLED, Phase.INTERRUPTED,
})  # fmt: skip
"""Phases after which a request is over."""


ANOTHER_CALL = frozenset({Phase.RETRY, Phase.CONTINUED})
"""Phases in which a call has ended and the request waits for the next one."""


class Event(NamedTuple):
    """One line of the log."""

    phase: str
    at: Now
    metadata: bytes | None
    note: bool
    """Whether a client wrote it."""


class _Ended(NamedTuple):
    request: Request
    now: Now
    fault: Fault | None
    size: int


class _Trail:
    """The notes of one request id."""

    __slots__ = ("model", "noted", "provider", "session_id", "size")

    def __init__(self) -> None:
        self.noted: list[Event] = []
        self.session_id: str | None = None
        self.provider: str | None = None
        self.model: str | None = None
        self.size = 0

    @property
    def is_over(self) -> bool:
        """Whether the client has noted an end."""
        return any(event.phase in FINAL for event in self.noted)


class Fresh(NamedTuple):
    """An event that has just happened, for whoever writes the log elsewhere."""

    request_id: str
    session_id: str | None
    client: str
    provider: str | None
    model: str | None
    phase: str
    at: Now
    metadata: bytes | None


class Lifecycle:
    """The log. `live` is the machine's own table of requests, written by the machine alone."""

    def __init__(
        self,
        *,
        max_requests: int,
        max_bytes: int = 32 * 1024 * 1024,
        max_age: float = 3600.0,
        stream: bool = False,
    ) -> None:
        self.live: dict[str, Request] = {}
        """request_id → every request that has not ended."""
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self._bytes = 0
        self._trails: OrderedDict[str, _Trail] = OrderedDict()
        self._trail_bytes = 0
        self.forgotten = 0
        """Ended requests that a bound has pushed out."""
        self.dropped_notes = 0
        self._fresh: list[Fresh] | None = [] if stream else None

    def __len__(self) -> int:
        return len(self._ended)

    @property
    def size(self) -> int:
        """Bytes of what is kept of ended requests and of notes, as reckoned by this table."""
        return self._bytes + self._trail_bytes

    # Recording.

    def mark(self, request: Request, phase: Phase, now: Now) -> None:
        """A request reached a phase."""
        request.phases.append((phase, now))
        if self._fresh is not None:
            metadata = _said_with(request, phase, -1)
            self._fresh.append(
                Fresh(
                    request.request_id,
                    request.session_id,
                    request.client,
                    request.provider,
                    request.model,
                    phase.value,
                    now,
                    metadata,
                )
            )

    def add_ended(self, request: Request, now: Now, fault: Fault | None) -> None:
        """Remember an ended request without its payload; the oldest beyond a bound are forgotten."""
        self._forget(request.request_id)  # an id may be used again after its request ended
        if self._max_requests == 0:
            return
        size = ENTRY_BYTES + EVENT_BYTES * len(request.phases) + _attempts_bytes(request)
        size += request.metadata_bytes + len(request.result or b"")
        size += _text_bytes(request.provider, request.model) + (_fault_bytes(fault) if fault else 0)
        self._ended[request.request_id] = _Ended(request, now, fault, size)
        self._bytes += size
        self._trim(now)

    def note(self, client: str, note: Note, now: Now) -> None:
        """A client's own line. The client's clock says when; a line that came late is put back by as much, up to a minute."""
        late = min(max(0.0, now.wall - note.at), LONGEST_DELAY)
        at = Now(now.monotonic - late, note.at)
        trail = self._trails.get(note.request_id)
        if trail is None:
            trail = self._trails[note.request_id] = _Trail()
        size = NOTE_BYTES + len(note.metadata) + _text_bytes(note.phase, note.session_id, note.provider, note.model)
        if len(trail.noted) >= MAX_NOTES or trail.size + size > MAX_NOTE_BYTES:
            self.dropped_notes += 1
            return
        trail.noted.append(Event(note.phase, at, note.metadata, note=True))
        trail.session_id = note.session_id or trail.session_id
        trail.provider = note.provider or trail.provider
        trail.model = note.model or trail.model
        trail.size += size
        self._trail_bytes += size
        self._trim_trails(now)
        if self._fresh is not None:
            self._fresh.append(
                Fresh(
                    note.request_id,
                    note.session_id,
                    client,
                    note.provider,
                    note.model,
                    note.phase,
                    at,
                    note.metadata,
                )
            )

    def forget_old(self, now: Now) -> None:
        """Forget what is past its age, also when nothing happens that would push it out."""
        self._trim(now)
        self._trim_trails(now)

    def take_fresh(self) -> list[Fresh]:
        """The events since the last call; empty where nobody writes them elsewhere."""
        if not self._fresh:
            return []
        fresh, self._fresh = self._fresh, []
        return fresh

    def _trim(self, now: Now) -> None:
        ended, youngest_old = self._ended, now.monotonic - self._max_age
        while ended:
            oldest = next(iter(ended.values()))
            if (
                len(ended) <= self._max_requests
                and self.size <= self._max_bytes
                and oldest.now.monotonic >= youngest_old
            ):
                return
            self._forget(oldest.request.request_id)
            self.forgotten += 1

    def _trim_trails(self, now: Now) -> None:
        while self._trails:
            request_id, oldest = next(iter(self._trails.items()))
            too_many = len(self._trails) > max(1, self._max_requests) or self.size > self._max_bytes
            if not too_many and now.monotonic - oldest.noted[0].at.monotonic <= self._max_age:
                return
            self._forget_trail(request_id)

    def _forget(self, request_id: str) -> None:
        found = self._ended.pop(request_id, None)
        if found is not None:
            self._bytes -= found.size
            self._forget_trail(request_id)

    def _forget_trail(self, request_id: str) -> None:
        trail = self._trails.pop(request_id, None)
        if trail is not None:
            self._trail_bytes -= trail.size

    # Asking.

    def find_ended(self, request_id: str) -> tuple[Request, Now, Fault | None] | None:
        """An ended request with the time and the reason of its end, or None if it is unknown or forgotten."""
        found = self._ended.get(request_id)
        return None if found is None else (found.request, found.now, found.fault)

    def record(self, request_id: str) -> Record | None:
        """The record of an ended request, or None if it is unknown or forgotten."""
        found = self._ended.get(request_id)
        return None if found is None else Record.of(found.request, found.now, found.fault)

    def events(self, request_id: str) -> list[dict[str, Any]]:
        """Every event of a request in order, those of clients among them; empty if it is unknown.

        Metadata is as it came: `sanitize` is for whoever shows it, outside of the lock.
        """
        request = self._find(request_id)
        trail = self._trails.get(request_id)
        told = self._events(request, trail)
        envelope = {
            "request_id": request_id,
            "session_id": request.session_id if request else trail.session_id if trail else None,
            "provider": request.provider if request else trail.provider if trail else None,
            "model": request.model if request else trail.model if trail else None,
        }
        return [
            {
                **envelope,
                "phase": event.phase,
                "timestamp": event.at.wall,
                "after_seconds": event.at.monotonic - told[0].at.monotonic,
                "by_client": event.note,
                "metadata": event.metadata,
            }
            for event in told
        ]

    def active(self) -> list[str]:
        """Ids of requests that have not ended, those that only clients have told of included."""
        noted = [
            request_id
            for request_id, trail in self._trails.items()
            if request_id not in self.live and request_id not in self._ended and not trail.is_over
        ]
        return [*self.live, *noted]

    def request_duration_ms(self, request_id: str, now: Now) -> float | None:
        """Milliseconds from a request's first event to its end, or to `now`; None if it is unknown."""
        told = self._timeline(request_id)
        return _span_ms(told, now) if told else None

    def phase_duration_ms(self, request_id: str, phase: str, until: str | None, now: Now) -> float | None:
        """Milliseconds that a request spent in a phase: to its next event, or to the first `until` after it.

        None if the request, the phase or `until` is unknown. A phase that still lasts is measured to `now`.
        """
        told = self._timeline(request_id)
        begin = next((number for number, event in enumerate(told) if event.phase == phase), None)
        if begin is None:
            return None
        later = told[begin + 1 :]
        end = next((event for event in later if until is None or event.phase == until), None)
        if end is not None:
            return (end.at.monotonic - told[begin].at.monotonic) * 1000
        if until is not None or told[begin].phase in FINAL:
            return None if until is not None else 0.0
        return (now.monotonic - told[begin].at.monotonic) * 1000

    def statistics(self, now: Now) -> dict[str, Any]:
        """Totals of what the log holds now. O(n) in that."""
        ids = list(dict.fromkeys([*self.live, *self._ended, *self._trails]))
        active = len(self.active())
        spans, events = [], 0
        for request_id in ids:
            request, trail = self._find(request_id), self._trails.get(request_id)
            events += (len(request.phases) if request else 0) + (len(trail.noted) if trail else 0)
            told = self._timeline(request_id)
            if told and any(event.phase in FINAL for event in told):
                spans.append(_span_ms(told, now))
        return {
            "total_requests": len(ids),
            "active_requests": active,
            "completed_requests": len(spans),
            "average_duration_ms": sum(spans) / len(spans) if spans else 0.0,
            "min_duration_ms": min(spans, default=0.0),
            "max_duration_ms": max(spans, default=0.0),
            "total_events": events,
            "forgotten_requests": self.forgotten,
            "dropped_notes": self.dropped_notes,
            "bytes": self.size,
        }

    def clean_up(self, older_than: float, now: Now) -> int:
        """Forget requests that ended more than `older_than` seconds ago; returns how many."""
        old = [key for key, ended in self._ended.items() if now.monotonic - ended.now.monotonic > older_than]
        for request_id in old:
            self._forget(request_id)
        noted = [
            key
            for key, trail in self._trails.items()
            if key not in self.live
            and key not in self._ended
            and trail.is_over
            and now.monotonic - trail.noted[-1].at.monotonic > older_than
        ]
        for request_id in noted:
            self._forget_trail(request_id)
        return len(old) + len(noted)

    def _find(self, request_id: str) -> Request | None:
        live = self.live.get(request_id)
        if live is not None:
            return live
        ended = self._ended.get(request_id)
        return ended.request if ended else None

    def _timeline(self, request_id: str) -> list[Event]:
        """The events that time is measured by: the supervisor's own, and those of clients only where it has none."""
        request = self._find(request_id)
        return self._events(request, None if request is not None else self._trails.get(request_id))

    def _events(self, request: Request | None, trail: _Trail | None) -> list[Event]:
        own, ended = list[Event](), 0
        for phase, at in request.phases if request is not None else ():
            own.append(Event(phase.value, at, _said_with(request, phase, ended), note=False))
            ended += phase in ANOTHER_CALL
        noted = trail.noted if trail else []
        return sorted([*own, *noted], key=lambda event: event.at.monotonic)


def _said_with(request: Request | None, phase: Phase, call: int) -> bytes | None:
    """JSON beside a phase: a request's metadata with its arrival; with its waiting again, call number `call` that had ended."""
    if request is None or phase is Phase.RECEIVED:
        return None if request is None else request.metadata
    if phase not in ANOTHER_CALL or request.route is None:
        return None
    return msgspec.json.encode(request.route.tried[call])


def _text_bytes(*texts: str | None) -> int:
    """Bytes that these texts take, at most four a character."""
    return sum(len(text) if text.isascii() else 4 * len(text) for text in texts if text)


def _fault_bytes(fault: Fault) -> int:
    texts = [each for each in fault.details.values() if isinstance(each, str)]
    return _text_bytes(fault.message, fault.hint, *texts)


def _attempts_bytes(request: Request) -> int:
    tried = request.route.tried if request.route else None
    if not tried:
        return 0
    return sum(ATTEMPT_BYTES + _text_bytes(each.provider, each.model, each.message) for each in tried)


def _span_ms(told: list[Event], now: Now) -> float:
    end = next((event.at for event in reversed(told) if event.phase in FINAL), now)
    return (end.monotonic - told[0].at.monotonic) * 1000


def as_line(fresh: Fresh) -> dict[str, Any]:
    """A fresh event as the dict that a writer of the log takes: `wall`, the fields, and the metadata as they came."""
    line: dict[str, Any] = {
        "wall": fresh.at.wall,
        "request_id": fresh.request_id,
        "session_id": fresh.session_id,
        "client": fresh.client,
        "provider": printable(fresh.provider or "", 200),
        "model": printable(fresh.model or "", 200),
        "phase": fresh.phase,
    }
    if fresh.metadata is not None:
        line["metadata"] = fresh.metadata
    return line
