"""Scopes: what is limited, and what counts against it at the moment.

A scope is one thing that a provider, or the configuration, limits: an account, a model of it, an organisation, a client, the whole
supervisor. It has slots with owners, windows of a minute and of a day, and what refusals have taught it. It decides nothing: the ledger
reserves in all the scopes of a call at once.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from callpool.manager.core.learning import Concurrency, History, Pause
from callpool.manager.core.limits import Limits, Usage
from callpool.manager.core.windows import DAY, DAY_GRAIN, MINUTE, NEVER, Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from callpool.manager.core.faults import Fault
    from callpool.manager.core.requests import Now, Request

MICRO: Final = 1_000_000
"""Money is counted in millionths, tokens times price per million: whole numbers that come back exactly."""

Moment = Literal["dispatch", "answer", "end"]
"""What stamps an entry: our own sending, the first byte that comes back, the end of the call."""
ScopeKind = Literal["account", "model", "organization", "client", "supervisor"]
Key = tuple[str, str, str]
"""Kind and name of a scope, name of a measure: what a window is called from one run to the next."""


class Cost(NamedTuple):
    """What a call will take, as far as that can be known before it."""

    usage: Usage
    tokens: int
    micros: int
    """Money, in millionths."""
    estimate: int = 0
    """Tokens of the prompt as they came with the call: what was known when it went out is not in it."""
    answers: bool = True
    """Whether any text will come: vectors and lists of models have none."""


NO_COST: Final = Cost(Usage(), 0, 0)


class Overdraft(NamedTuple):
    """A day's limit that a call cannot keep, whatever becomes of what is under way."""

    scope: Scope
    limit: str
    """Its name, as in the configuration."""
    wanted: float
    """What the call would take of it, in the limit's unit."""
    at: float
    """Monotonic seconds when there will be room; `NEVER` where it is more than the whole limit."""


class Stop(NamedTuple):
    """Why an account serves nothing until somebody does something."""

    fault: Fault
    until: float
    """Monotonic seconds at which it goes on by itself; `NEVER` where only a person can mend it."""


class Measure:
    """One window of a scope, and how calls count in it."""

    __slots__ = ("key", "moment", "name", "what", "window")

    def __init__(
        self, name: str, what: Literal["requests", "tokens", "money"], limit: int, moment: Moment, *, day: bool
    ) -> None:
        self.key: Key = ("", "", name)
        self.name = name
        """As in the configuration."""
        self.what = what
        self.moment = moment
        self.window = Window(limit, DAY, grain=DAY_GRAIN) if day else Window(limit, MINUTE)

    @property
    def is_of_a_day(self) -> bool:
        """Whether nobody waits for it."""
        return self.name.endswith("_per_day")

    def amount(self, cost: Cost) -> int:
        """What a call of this cost takes; never more than there is at all, or it would wait for ever."""
        if self.what == "requests":
            return 1
        wanted = cost.tokens if self.what == "tokens" else cost.micros
        return wanted if self.is_of_a_day else min(wanted, self.window.limit)


class Scope:
    """One thing that is limited."""

    __slots__ = (
        "closed", "concurrency", "days", "history", "holders", "kind", "lagging", "measured", "minutes", "name",
        "pause", "resumed", "stop", "waits_for",
    )  # fmt: skip

    def __init__(self, kind: ScopeKind, name: str, limits: Limits, *, charge: str = "actual") -> None:
        self.kind = kind
        self.name = name
        self.concurrency = None if limits.concurrency is None else Concurrency(limits.concurrency)
        self.holders: dict[str, int] = {}
        """Ids of the requests that hold a slot, with the numbers of their calls: owners, never a bare count."""
        self.lagging: list[float] = []
        """A heap: monotonic seconds until which slots of calls count that we have ended: the provider may not know yet."""
        own = kind in ("client", "supervisor")
        arrival: Moment = "dispatch" if own else "answer"
        self.minutes: list[Measure] = []
        if limits.requests_per_minute is not None:
            self.minutes.append(
                Measure("requests_per_minute", "requests", limits.requests_per_minute, arrival, day=False)
            )
        if limits.tokens_per_minute is not None:
            moment: Moment = "answer" if charge == "advance" else "end"
            self.minutes.append(Measure("tokens_per_minute", "tokens", limits.tokens_per_minute, moment, day=False))
        self.days: list[Measure] = []
        if limits.tokens_per_day is not None:
            self.days.append(Measure("tokens_per_day", "tokens", limits.tokens_per_day, "end", day=True))
        if limits.money_per_day is not None:
            micros = math.floor(limits.money_per_day * MICRO)
            self.days.append(Measure("money_per_day", "money", micros, "end", day=True))
        for measure in self.measures():
            measure.key = (kind, name, measure.name)
        self.measured = any(measure.what != "requests" for measure in self.measures())
        """Whether what a call costs matters here."""
        self.pause = Pause()
        self.stop: Stop | None = None
        self.resumed = 0.0
        """Monotonic seconds at which an operator resumed it last."""
        self.history = History()
        self.closed: str | None = None
        """Why nothing is dispatched now although there are slots (its server is starting), or None."""
        self.waits_for: Request | None = None
        """Who goes next here as soon as its tokens fit: others must not use them up."""

    @property
    def active(self) -> int:
        """Slots in use by requests."""
        return len(self.holders)

    @property
    def limit(self) -> int:
        """Calls at once that were configured; 0 where nothing limits them."""
        return 0 if self.concurrency is None else self.concurrency.configured

    def is_full(self, now: float) -> bool:
        """Whether every slot is in use."""
        if self.concurrency is None:
            return False
        lagging = self.lagging
        while lagging and lagging[0] <= now:
            heapq.heappop(lagging)
        return len(self.holders) + len(lagging) >= self.concurrency.limit

    def opens_at(self, now: Now) -> float:
        """Monotonic seconds at which a call of any size may go: now or before, later, or `NEVER` where an end must come first."""
        time = now.monotonic
        if self.stop is not None and time < self.stop.until:
            return self.stop.until
        if self.closed is not None:
            return NEVER
        if self.pause.lasts(time):
            return self.pause.until
        learned = self.concurrency
        if learned is not None and self.is_full(time):
            lag_ends = self.lagging[0] if self.lagging else NEVER
            if len(self.holders) + len(self.lagging) > learned.limit:
                return lag_ends  # it was cut below what is out: one more would be more than one too many
            if not learned.probe(time):
                return min(lag_ends, learned.next_probe() or NEVER)
            self.history.add("raised", "all in use and nothing refused", now, limit=learned.limit)
        for measure in self.minutes:
            if measure.what == "requests" and not measure.window.has_room(1, time):
                return measure.window.room_at(1, time)
        return time

    def fits_at(self, cost: Cost, now: float) -> float:
        """Monotonic seconds at which a call of this cost fits its windows, as `opens_at` says it."""
        latest = now
        for measures in (self.minutes, self.days):
            for measure in measures:
                amount = measure.amount(cost)
                if not measure.window.has_room(amount, now):
                    latest = max(latest, measure.window.room_at(amount, now))
        return latest

    def overdrawn(self, cost: Cost, now: float) -> tuple[Measure, float] | None:
        """The day's limit that this cost does not fit, whatever becomes of what is under way, and when it will; else None."""
        for measure in self.days:
            amount, window = measure.amount(cost), measure.window
            if window.settled(now) + amount > window.limit:
                return measure, window.room_at(amount, now)
        return None

    def measures(self) -> Iterator[Measure]:
        """All of its windows."""
        yield from self.minutes
        yield from self.days

    def is_idle(self, now: float) -> bool:
        """Whether nothing is remembered here."""
        for measure in self.measures():
            measure.window.forget(now)
        return not self.holders and not any(measure.window.used for measure in self.measures())

    def shown(self, measure: Measure) -> str:
        """A limit's name in this scope's table of the configuration."""
        own = self.kind in ("client", "supervisor") and measure.what == "requests"
        return f"max_{measure.name}" if own else measure.name

    def as_plain(self, now: float) -> dict[str, Any]:
        """What `status` says of it."""
        self.is_full(now)
        found: dict[str, Any] = {
            "kind": self.kind,
            "name": self.name,
            "active": self.active,
            "lagging": len(self.lagging),
            "limit": None if self.concurrency is None else self.concurrency.configured,
            "effective_limit": None if self.concurrency is None else self.concurrency.limit,
            "refused": 0 if self.concurrency is None else self.concurrency.refused,
            "paused_seconds": max(0.0, self.pause.until - now),
            "stopped": None if self.stop is None or now >= self.stop.until else self.stop.fault.message,
            "windows": {},
            "history": self.history.as_plain(),
        }
        for measure in self.measures():
            measure.window.forget(now)
            scale = MICRO if measure.what == "money" else 1
            found["windows"][self.shown(measure)] = {
                "limit": measure.window.limit / scale,
                "used": measure.window.used / scale,
                "reserved": measure.window.under_way / scale,
            }
        return found
