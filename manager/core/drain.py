"""The bookkeeping of a drain: when it began, when it cuts, and what became of whom."""

from __future__ import annotations

from callpool.manager.core.events import DrainReport
from callpool.manager.core.states import State

CUT_GRACE = 1.0
"""Seconds between the cut and giving up on calls whose worker does not acknowledge the end."""


class Drain:
    """One drain, from the order to the report. Times are monotonic seconds."""

    def __init__(self, *, now: float, timeout: float, active: int, total_sessions: int) -> None:
        self.began_at = now
        self.deadline = now + timeout
        self.cut_at: float | None = None
        self.reported = False
        self.parked = 0
        """Jobs that wait in the journal for the next start."""
        self._initial_active = active
        self._final_active: int | None = None
        self._total_sessions = total_sessions
        self._ended = dict.fromkeys(State, 0)
        self._cut = 0
        self._sessions = 0
        """Sessions that ended before the deadline, whatever they came to."""

    def count(self, state: State, *, by_cut: bool, session: bool) -> None:
        """A request ended in this state; `by_cut` when the drain's deadline ended it. `session`: whether it ever had one."""
        if by_cut and state is State.CANCELLED:
            self._cut += 1
        else:
            self._ended[state] += 1
            self._sessions += session and self.cut_at is None

    def cut(self, *, now: float, active: int) -> None:
        """The deadline has come (or was called) with so many sessions active."""
        self.cut_at = now
        self._final_active = active

    def seconds_left(self, now: float) -> float:
        """Seconds until the cut; 0 after it."""
        return 0.0 if self.cut_at is not None else max(0.0, self.deadline - now)

    @property
    def give_up_at(self) -> float | None:
        """When to stop waiting for acknowledgements, once the cut was made."""
        return None if self.cut_at is None else self.cut_at + CUT_GRACE

    def next_due(self) -> float | None:
        """When to look again: at the deadline, then at the end of the wait for acknowledgements; None after the report."""
        if self.reported:
            return None
        return self.deadline if self.give_up_at is None else self.give_up_at

    def report(self, now: float) -> DrainReport:
        """The figures, at the end."""
        finished = sum(self._ended[state] for state in (State.COMPLETED, State.ERROR, State.TIMEOUT, State.CANCELLED))
        return DrainReport(
            finished=finished,
            parked=self.parked,
            cancelled=self._cut,
            interrupted=self._ended[State.INTERRUPTED],
            shutdown_duration=now - self.began_at,
            initial_active_sessions=self._initial_active,
            final_active_sessions=self._final_active or 0,
            sessions_completed_during_shutdown=self._sessions,
            timeout_reached=self.cut_at is not None,
            total_sessions_at_shutdown=self._total_sessions,
        )
