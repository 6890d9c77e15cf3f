"""The history of sessions in the journal's file: what is kept, for how long, and how much of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from callpool.manager.clocks import LARGEST_JUMP, WallClock
from callpool.manager.store import SWEEP_ROWS, Past, Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "journal.db"


def past(number: int, *, ended_at: float | None = None, state: str = "completed") -> Past:
    return Past(f"session_{number}", f"r{number}", "kimi", "large", state, 1.0 * number, None, ended_at)


def test_the_last_word_about_a_session_counts(path: Path) -> None:
    store = Store(path)
    store.write_history([past(1, state="active"), past(2, state="active")], {"created": 2})
    store.write_history([past(1, ended_at=5.0)], {"created": 2, "completed": 1})
    assert store.past("r1") == past(1, ended_at=5.0)
    assert store.past("r2") == past(2, state="active")
    assert store.past("r3") is None
    assert store.sessions() == 2
    store.close()


def test_a_new_run_finds_who_lived_interrupted_and_the_totals_of_all_runs(path: Path) -> None:
    store = Store(path)
    assert store.begin_history(0.0) == {}
    store.write_history([past(1, state="active"), past(2, ended_at=3.0, state="error")], {"created": 7, "error": 1})
    store.close()
    store = Store(path)
    assert store.begin_history(9.0) == {"created": 7, "error": 1}
    assert store.past("r1") == past(1, ended_at=9.0, state="interrupted")
    assert store.past("r2") == past(2, ended_at=3.0, state="error")
    store.close()


def test_the_later_of_two_sessions_of_one_id_is_told_of(path: Path) -> None:
    store = Store(path)
    first, second = past(1, ended_at=2.0), past(2, ended_at=3.0)._replace(request_id="r1")
    store.write_history([first, second], {})
    assert store.past("r1") == second
    store.close()


def test_what_is_past_its_time_is_forgotten_a_lot_at_a_time(path: Path) -> None:
    store = Store(path)
    many = SWEEP_ROWS + 10
    store.write_history([past(number, ended_at=1.0 * number) for number in range(many)], {})
    store.write_history([past(many, state="active")], {})
    assert store.sweep_history(1e9, 10_000) == SWEEP_ROWS
    assert store.past("r0") is None, "the oldest first"
    assert store.sweep_history(1e9, 10_000) == 10
    assert store.sweep_history(1e9, 10_000) == 0
    assert store.past(f"r{many}") is not None, "it has not ended"
    store.close()


@pytest.mark.parametrize("before", [None, 0.0])
def test_there_is_a_bound_whatever_their_age(path: Path, before: float | None) -> None:
    store = Store(path)
    store.write_history([past(number, ended_at=1_000.0 + number) for number in range(30)], {})
    assert store.sweep_history(before, 20) == 10
    assert (store.past("r9"), store.sessions()) == (None, 20)
    assert store.sweep_history(before, 20) == 0
    store.close()


@pytest.mark.parametrize(
    ("wall", "steady"), [(0.0, True), (LARGEST_JUMP - 1, True), (LARGEST_JUMP + 1, False), (-1e6, False)]
)
def test_a_clock_that_was_set_is_not_believed(wall: float, steady: bool) -> None:  # noqa: FBT001 - of the table
    clock = WallClock(1_000_000.0, 50.0)
    assert clock.is_steady(1_000_000.0 + 10.0 + wall, 60.0) is steady
