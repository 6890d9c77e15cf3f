from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from callpool.manager.core.sessions import Outcome, Session, SessionTable

from .build import STEADY

LIMIT = 3
MAX_BYTES = 50

CONTRACT = """
    total_sessions_created total_sessions_completed total_sessions_timeout total_sessions_error lifetime_total_created
    lifetime_total_completed lifetime_total_timeout lifetime_total_error total_sessions_cancelled
    total_sessions_interrupted total_sessions active_sessions completed_sessions error_sessions timeout_sessions
    peak_concurrent_sessions current_metadata_bytes sessions_rejected_capacity sessions_rejected_metadata_size
    sessions_rejected_creation_error average_session_duration metrics_drift shutdown_requested
"""
"""The statistics' names, from the specification."""


def table() -> SessionTable:
    return SessionTable(max_concurrent=LIMIT, max_metadata_bytes=MAX_BYTES)


def opened(sessions: SessionTable, number: int, size: int = 10, now: float = 0.0) -> Session:
    return sessions.open(f"session_{number}", f"r{number}", "kimi", "k3", size, now)


def test_statistics_have_the_names_of_the_contract() -> None:
    assert sorted(table().statistics(shutdown_requested=False)) == sorted(CONTRACT.split())


def test_capacity_is_refused_with_the_text_of_the_contract_and_counted() -> None:
    sessions = table()
    for number in range(LIMIT):
        assert sessions.refuse_capacity() is None
        opened(sessions, number)
    fault = sessions.refuse_capacity()
    assert fault is not None
    assert (fault.code, fault.message) == ("capacity_full", "Maximum concurrent sessions reached (limit 3, active 3)")
    assert fault.details == {"limit": 3, "active": 3, "waiting": 0, "predicted_wait": None}
    assert sessions.statistics(shutdown_requested=False)["sessions_rejected_capacity"] == 1


@pytest.mark.parametrize(("size", "refused"), [(0, False), (MAX_BYTES, False), (MAX_BYTES + 1, True)])
def test_metadata_size(size: int, *, refused: bool) -> None:
    sessions = table()
    fault = sessions.refuse_metadata(size)
    assert (fault is not None) is refused
    assert sessions.rejected_metadata_size == int(refused)
    if fault is not None:
        assert fault.message == "Metadata size (51 bytes) exceeds limit (50 bytes)"
        assert (fault.code, fault.param, fault.details) == ("metadata_too_large", "metadata", {"size": 51, "limit": 50})


def test_the_charge_of_the_opening_is_given_back_whatever_happens_to_the_session() -> None:
    sessions = table()
    session = opened(sessions, 1, size=30)
    assert (sessions.active, sessions.metadata_bytes) == (1, 30)
    sessions.suspend(session)
    assert (sessions.active, sessions.metadata_bytes, sessions.created) == (0, 0, 1)
    sessions.resume(session)
    assert (sessions.active, sessions.metadata_bytes, sessions.created, sessions.peak) == (1, 30, 1, 1)
    sessions.close(session, Outcome.ERROR, 5.0)
    assert (sessions.active, sessions.metadata_bytes, sessions.live) == (0, 0, {})


def test_a_suspended_session_can_end_and_gives_nothing_back_twice() -> None:
    sessions = table()
    first, second = opened(sessions, 1, size=30), opened(sessions, 2, size=5)
    sessions.suspend(first)
    sessions.close(first, Outcome.CANCELLED, 1.0)
    assert (sessions.active, sessions.metadata_bytes) == (1, 5)
    sessions.close(second, Outcome.COMPLETED, 1.0)
    assert (sessions.active, sessions.metadata_bytes) == (0, 0)


def test_a_session_ends_once() -> None:
    sessions = table()
    session = opened(sessions, 1)
    sessions.close(session, Outcome.COMPLETED, 1.0)
    before = sessions.statistics(shutdown_requested=False)
    with pytest.raises(KeyError):
        sessions.close(session, Outcome.ERROR, 2.0)
    assert sessions.statistics(shutdown_requested=False) == before
    assert session.outcome is Outcome.COMPLETED


def test_duration_counts_from_the_start_and_stops_at_the_end() -> None:
    sessions = table()
    session = opened(sessions, 1, now=10.0)
    assert session.duration(12.0) == 2.0
    session.started_at = 11.0
    assert session.duration(12.0) == 1.0
    sessions.close(session, Outcome.COMPLETED, 14.0)
    assert session.duration(99.0) == 3.0
    assert sessions.statistics(shutdown_requested=True)["average_session_duration"] == 3.0


def test_a_session_that_is_taken_up_again_lasts_from_its_first_start() -> None:
    sessions = table()
    session = opened(sessions, 1, now=10.0)
    session.started_at = 11.0
    sessions.suspend(session)
    sessions.resume(session)
    assert session.duration(12.0) == 1.0
    assert (session.session_id, session.provider, session.model) == ("session_1", "kimi", "k3")


def test_drift_is_seen() -> None:
    sessions = table()
    opened(sessions, 1, size=7)
    sessions.metadata_bytes += 2
    assert sessions.statistics(shutdown_requested=False)["metrics_drift"] == -2


class Lives(RuleBasedStateMachine):
    """The table beside a model that knows only a list."""

    def __init__(self) -> None:
        super().__init__()
        self.table = table()
        self.model: list[tuple[Session, int]] = []
        self.made = self.peak = 0
        self.ended = dict.fromkeys(Outcome, 0)

    def held(self) -> list[tuple[Session, int]]:
        return [each for each in self.model if each[0].held]

    @rule(size=st.integers(0, MAX_BYTES))
    def open(self, size: int) -> None:
        room = len(self.held()) < LIMIT
        assert self.table.has_room is room is (self.table.refuse_capacity() is None)
        if room:
            self.made += 1
            self.model.append((opened(self.table, self.made, size), size))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def close(self, data: st.DataObject, outcome: Outcome) -> None:
        session, _ = self.model.pop(data.draw(st.integers(0, len(self.model) - 1)))
        self.table.close(session, outcome, 1.0)
        self.ended[outcome] += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def suspend_or_resume(self, data: st.DataObject) -> None:
        session, _ = data.draw(st.sampled_from(self.model))
        if session.held:
            self.table.suspend(session)
        elif len(self.held()) < LIMIT:
            self.table.resume(session)

    @invariant()
    def agrees(self) -> None:
        self.peak = max(self.peak, len(self.held()))
        figures = self.table.statistics(shutdown_requested=False)
        assert figures["active_sessions"] == len(self.held()) <= LIMIT
        assert figures["current_metadata_bytes"] == sum(size for _, size in self.held())
        assert figures["metrics_drift"] == 0
        assert figures["peak_concurrent_sessions"] == self.peak
        assert figures["total_sessions_created"] == self.made == len(self.model) + sum(self.ended.values())
        assert self.table.ended == self.ended
        assert figures["total_sessions_cancelled"] == self.ended[Outcome.CANCELLED]


def test_lives_against_a_model() -> None:
    run_state_machine_as_test(Lives, settings=STEADY)
