"""The session table: capacity, metadata bytes and counters, every operation O(1).

A session is the lease that a request holds while it is active: one slot of the pool plus its metadata bytes. The charge
is remembered at opening, so that closing gives back exactly that. Counters conserve: created = live + ended by outcome.
The names of the statistics and the texts of the refusals are fixed: clients and dashboards read them.
"""

from __future__ import annotations

from typing import Any, Final

from callpool.manager.core.faults import Fault
from callpool.manager.core.metrics import Histogram, Rate, Tally
from callpool.manager.core.refusals import capacity_full
from callpool.manager.core.states import Word

MAX_NEWS: Final = 10_000
"""Sessions whose news wait for whoever writes history: those beyond it are counted, not kept."""


class Outcome(Word):
    """How a session ended."""

    COMPLETED = "completed"
    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class Session:
    """One lease. Times are monotonic seconds."""

    __slots__ = (
        "created_at",
        "ended_at",
        "held",
        "metadata_bytes",
        "model",
        "outcome",
        "provider",
        "request_id",
        "session_id",
        "started_at",
    )

    def __init__(
        self, session_id: str, request_id: str, provider: str, model: str, metadata_bytes: int, now: float
    ) -> None:
        self.session_id = session_id
        self.request_id = request_id
        self.provider = provider
        self.model = model
        self.metadata_bytes = metadata_bytes
        self.created_at = now
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.held = True
        """Whether the lease is out. A session whose request waits again keeps its id and gives the lease back."""
        self.outcome: Outcome | None = None

    def duration(self, now: float) -> float:
        """Seconds from start (creation, if it never started) to the end, or to `now`."""
        begin = self.created_at if self.started_at is None else self.started_at
        return (now if self.ended_at is None else self.ended_at) - begin


class SessionTable:
    """All live sessions and the totals since the start."""

    def __init__(self, *, max_concurrent: int, max_metadata_bytes: int) -> None:
        self.max_concurrent = max_concurrent
        self.max_metadata_bytes = max_metadata_bytes
        self.live: dict[str, Session] = {}
        """request_id → session that has been created and has not ended."""
        self.active = 0
        """Leases that are out: never above `max_concurrent`."""
        self.metadata_bytes = 0
        """Sum of the charges of the leases that are out."""
        self.peak = 0
        self.created = 0
        self.ended: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.live_at_reset = 0
        """Sessions that lived when the counters were last zeroed: created + these = live + ended."""
        self.rejected_capacity = 0
        self.rejected_metadata_size = 0
        self.rejected_creation_error = 0
        self.durations = Histogram()
        self.queue_waits = Histogram()
        """Seconds from the queue to the session, of requests that were submitted."""
        self.cancels = Histogram()
        """Seconds from the order to end a call to its worker's word that it has let go of the provider."""
        self.creations = Rate()
        self.completions = Rate()
        self.by_provider = Tally()
        self.lifetime: dict[str, int] = dict.fromkeys(("created", "completed", "timeout", "error"), 0)
        """What earlier runs have counted."""
        self.writes_history = False
        """Whether somebody takes the news."""
        self._news: dict[str, Session] = {}
        """session_id → session that has begun or ended since they were taken."""
        self.forgotten_news = 0

    @property
    def has_room(self) -> bool:
        """Whether one more lease fits."""
        return self.active < self.max_concurrent

    def refuse_metadata(self, size: int) -> Fault | None:
        """The fault if `size` bytes of metadata are too many, counted; else None."""
        if size <= self.max_metadata_bytes:
            return None
        self.rejected_metadata_size += 1
        return Fault(
            code="metadata_too_large",
            message=f"Metadata size ({size} bytes) exceeds limit ({self.max_metadata_bytes} bytes)",
            param="metadata",
            hint="send less metadata, or raise max_metadata_size",
            details={"size": size, "limit": self.max_metadata_bytes},
        )

    def refuse_capacity(self, waiting: int = 0, wait: float | None = None) -> Fault | None:
        """The fault if no lease is free, counted; else None. For callers that do not wait.

        `waiting` and `wait`: how many do, and for how many seconds they probably will.
        """
        if self.has_room:
            return None
        self.rejected_capacity += 1
        return capacity_full(self.max_concurrent, self.active, waiting=waiting, wait=wait)

    def open(
        self, session_id: str, request_id: str, provider: str, model: str, metadata_bytes: int, now: float
    ) -> Session:
        """Create a session and take its lease. The caller has checked room, size and that the id is free."""
        session = Session(session_id, request_id, provider, model, metadata_bytes, now)
        self.live[request_id] = session
        self.created += 1
        self.creations.add(now)
        self._take(session)
        if self.writes_history:
            self._tell(session)
        return session

    def take_news(self) -> list[Session]:
        """Sessions that have begun or ended since the last call, each once."""
        news, self._news = self._news, {}
        return list(news.values())

    def _tell(self, session: Session) -> None:
        if len(self._news) < MAX_NEWS or session.session_id in self._news:
            self._news[session.session_id] = session
        else:
            self.forgotten_news += 1

    def suspend(self, session: Session) -> None:
        """Give the lease back while the request waits again; the session lives on and counts once."""
        self._give_back(session)

    def resume(self, session: Session) -> None:
        """Take the lease again. The caller has checked that there is room."""
        session.held = True
        self._take(session)

    def set_aside(self, session: Session) -> None:
        """A session without its lease leaves this run, and will be counted by the one that takes it up again."""
        del self.live[session.request_id]
        self.created -= 1

    def close(self, session: Session, outcome: Outcome, now: float) -> None:
        """End a session: count the outcome once, give back slot and bytes once."""
        del self.live[session.request_id]
        if session.held:
            self._give_back(session)
        session.ended_at = now
        session.outcome = outcome
        self.ended[outcome] += 1
        self.durations.add(session.duration(now))
        self.completions.add(now)
        self.by_provider.add(session.provider, outcome.value)
        if self.writes_history:
            self._tell(session)

    def _take(self, session: Session) -> None:
        self.active += 1
        self.peak = max(self.peak, self.active)
        self.metadata_bytes += session.metadata_bytes

    def _give_back(self, session: Session) -> None:
        session.held = False
        self.active -= 1
        self.metadata_bytes -= session.metadata_bytes

    def reset(self, now: float) -> None:
        """Zero every counter and distribution; live sessions, their bytes and their leases stay as they are."""
        self.created = 0
        self.ended = dict.fromkeys(Outcome, 0)
        self.live_at_reset = len(self.live)
        self.peak = self.active
        self.rejected_capacity = self.rejected_metadata_size = self.rejected_creation_error = 0
        for histogram in (self.durations, self.queue_waits, self.cancels):
            histogram.clear()
        for rate in (self.creations, self.completions):
            rate.clear(now)
        self.by_provider.clear()
        self.lifetime = dict.fromkeys(self.lifetime, 0)

    def lifetime_totals(self) -> dict[str, int]:
        """Sessions created and ended in all runs since the counters were zeroed."""
        now = {
            "created": self.created,
            "completed": self.ended[Outcome.COMPLETED],
            "timeout": self.ended[Outcome.TIMEOUT],
            "error": self.ended[Outcome.ERROR],
        }
        return {name: self.lifetime[name] + count for name, count in now.items()}

    def statistics(self, *, shutdown_requested: bool) -> dict[str, int | float | bool]:
        """The statistics of the contract, by its names. O(live) for `metrics_drift` alone, which audits every charge."""
        ended = self.ended
        audit = sum(session.metadata_bytes for session in self.live.values() if session.held)
        return {
            "total_sessions": len(self.live) + sum(ended.values()),
            "total_sessions_created": self.created,
            "total_sessions_completed": ended[Outcome.COMPLETED],
            "total_sessions_timeout": ended[Outcome.TIMEOUT],
            "total_sessions_error": ended[Outcome.ERROR],
            "total_sessions_cancelled": ended[Outcome.CANCELLED],
            "total_sessions_interrupted": ended[Outcome.INTERRUPTED],
            **{f"lifetime_total_{name}": count for name, count in self.lifetime_totals().items()},
            "active_sessions": self.active,
            "completed_sessions": ended[Outcome.COMPLETED],
            "error_sessions": ended[Outcome.ERROR],
            "timeout_sessions": ended[Outcome.TIMEOUT],
            "peak_concurrent_sessions": self.peak,
            "current_metadata_bytes": self.metadata_bytes,
            "sessions_rejected_capacity": self.rejected_capacity,
            "sessions_rejected_metadata_size": self.rejected_metadata_size,
            "sessions_rejected_creation_error": self.rejected_creation_error,
            "average_session_duration": self.durations.mean,
            "metrics_drift": audit - self.metadata_bytes,
            "shutdown_requested": shutdown_requested,
        }

    def metrics(self, *, now: float, shutdown_requested: bool) -> dict[str, Any]:
        """The statistics, and rates and distributions beside them. Rates divide by all ended sessions, 0.0 without any."""
        ended = sum(self.ended.values())

        def share(outcome: Outcome) -> float:
            return self.ended[outcome] / ended if ended else 0.0

        return {
            **self.statistics(shutdown_requested=shutdown_requested),
            "sessions_live_at_reset": self.live_at_reset,
            "success_rate": share(Outcome.COMPLETED),
            "error_rate": share(Outcome.ERROR),
            "timeout_rate": share(Outcome.TIMEOUT),
            "duration_seconds": self.durations.as_plain(),
            "queue_wait_seconds": self.queue_waits.as_plain(),
            "cancel_seconds": self.cancels.as_plain(),
            "creations_per_second": self.creations.per_second(now),
            "completions_per_second": self.completions.per_second(now),
            "providers": self.by_provider.as_plain(),
        }
