"""The lifecycle log: what it tells, what it forgets, and that no bound can be outgrown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.faults import Fault
from callpool.manager.core.lifecycle import MAX_NOTES, Lifecycle, as_line
from callpool.manager.core.messages import Note, Submit
from callpool.manager.core.requests import Now, Phase, Request

from .build import STEADY


def at(seconds: float) -> Now:
    return Now(seconds, 1_000_000.0 + seconds)


def request(request_id: str = "r1", metadata: bytes = b"{}", began: float = 1.0) -> Request:
    made = Request("c", Submit(request_id, "kimi", "k3", b"secret prompt", metadata), f"session_{request_id}", 1, 30.0)
    made.phases.append((Phase.RECEIVED, at(began)))
    return made


def ended(log: Lifecycle, request_id: str, *, began: float = 1.0, end: float = 2.0, metadata: bytes = b"{}") -> None:
    made = request(request_id, metadata, began)
    made.phases.append((Phase.COMPLETED, at(end)))
    log.add_ended(made, at(end), None)


def test_the_log_is_bounded_by_count_and_forgets_the_oldest() -> None:
    log = Lifecycle(max_requests=2)
    for number in range(5):
        ended(log, f"r{number}")
    assert (len(log), log.forgotten) == (2, 3)
    assert log.record("r2") is None
    assert log.record("r4") is not None


def test_the_log_is_bounded_by_bytes() -> None:
    log = Lifecycle(max_requests=1_000, max_bytes=50_000)
    for number in range(100):
        ended(log, f"r{number}", metadata=b"x" * 10_000)
    assert len(log) == 4
    assert log.size <= 50_000


def test_the_log_is_bounded_by_age() -> None:
    log = Lifecycle(max_requests=1_000, max_age=100.0)
    ended(log, "old", end=2.0)
    ended(log, "young", began=90.0, end=100.0)
    ended(log, "new", began=102.0, end=103.0)
    assert [log.record(name) is None for name in ("old", "young", "new")] == [True, False, False]


def test_what_is_too_old_is_forgotten_also_when_nothing_happens() -> None:
    log = Lifecycle(max_requests=9, max_age=100.0)
    ended(log, "r1", end=2.0)
    log.note("c", Note("noted", "QUEUED", 1_000_002.0), at(2.0))
    log.forget_old(at(50.0))
    assert log.events("r1")
    log.forget_old(at(103.0))
    assert (log.events("r1"), log.events("noted"), log.size) == ([], [], 0)


def test_texts_are_part_of_the_bytes() -> None:
    log = Lifecycle(max_requests=1_000, max_bytes=100_000)
    for number in range(100):
        log.add_ended(request(f"r{number}"), at(2.0), Fault(code="session_failed", message="😀" * 2_000))
    assert len(log) == 10


def test_notes_of_an_earlier_request_do_not_show_under_its_id() -> None:
    log = Lifecycle(max_requests=9)
    ended(log, "r1")
    log.note("c", Note("r1", "QUEUED", 1_000_002.0), at(2.0))
    assert len(log.events("r1")) == 3
    ended(log, "r1", began=5.0, end=6.0)
    assert [event["by_client"] for event in log.events("r1")] == [False, False]


def test_an_id_used_again_has_one_record_the_newer() -> None:
    log = Lifecycle(max_requests=2)
    ended(log, "r1")
    ended(log, "r2")
    log.add_ended(request("r1"), at(2.0), Fault(code="timeout", message="newer"))
    ended(log, "r3")
    newer = log.record("r1")
    assert newer is not None
    assert newer.fault is not None
    assert (len(log), log.record("r2")) == (2, None)


def test_a_log_of_nothing_keeps_nothing() -> None:
    log = Lifecycle(max_requests=0)
    ended(log, "r1")
    assert (len(log), log.record("r1"), log.size) == (0, None, 0)


@STEADY
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5_000), st.booleans()), max_size=60))
def test_the_bytes_are_those_of_what_is_kept(steps: list[tuple[int, int, bool]]) -> None:
    log = Lifecycle(max_requests=6, max_bytes=20_000, max_age=20.0)
    for second, (number, size, noting) in enumerate(steps):
        if noting:
            log.note("c", Note(f"r{number}", "QUEUED", 0.0, metadata=b"x" * size), at(second))
        else:
            ended(log, f"r{number}", began=second, end=second, metadata=b"x" * size)
        assert len(log) <= 6
        assert log.size <= 40_000
    log.clean_up(-1.0, at(1_000.0))
    for number in range(10):  # a note that nobody ended goes when its request does
        ended(log, f"r{number}", began=2_000.0, end=2_000.0)
    log.clean_up(-1.0, at(3_000.0))
    assert log.size == sum(len(log.events(f"r{number}")) for number in range(10)) == 0


def test_events_tell_times_and_metadata_as_it_came_and_never_the_prompt() -> None:
    log = Lifecycle(max_requests=9)
    made = request("r1", b'{"job": 7}')
    made.phases.append((Phase.QUEUED, at(1.5)))
    log.live["r1"] = made
    first, second = log.events("r1")
    assert (first["phase"], first["timestamp"], first["after_seconds"]) == ("RECEIVED", 1_000_001.0, 0.0)
    assert (second["phase"], second["after_seconds"], second["metadata"]) == ("QUEUED", 0.5, None)
    assert first["metadata"] == b'{"job": 7}'
    assert "secret prompt" not in str([first, second])


def test_durations_are_those_between_events() -> None:
    log = Lifecycle(max_requests=9)
    made = request("r1", began=1.0)
    log.live["r1"] = made
    made.phases += [(Phase.PROVIDER_CALL_START, at(2.0)), (Phase.FIRST_TOKEN, at(2.25))]
    assert log.request_duration_ms("r1", at(4.0)) == 3000.0
    assert log.phase_duration_ms("r1", "FIRST_TOKEN", None, at(4.0)) == 1750.0
    made.phases += [(Phase.PROVIDER_CALL_END, at(5.0)), (Phase.COMPLETED, at(6.0))]
    assert log.request_duration_ms("r1", at(60.0)) == 5000.0
    assert log.phase_duration_ms("r1", "PROVIDER_CALL_START", None, at(60.0)) == 250.0
    assert log.phase_duration_ms("r1", "PROVIDER_CALL_START", "PROVIDER_CALL_END", at(60.0)) == 3000.0
    assert log.phase_duration_ms("r1", "COMPLETED", None, at(60.0)) == 0.0
    assert log.phase_duration_ms("r1", "QUEUED", None, at(60.0)) is None
    assert log.request_duration_ms("nobody", at(60.0)) is None


def test_statistics_are_of_what_the_log_holds() -> None:
    log = Lifecycle(max_requests=9)
    ended(log, "r1", began=1.0, end=2.0)
    ended(log, "r2", began=1.0, end=4.0)
    log.live["r3"] = request("r3")
    log.note("c", Note("r4", "RECEIVED", 0.0), at(5.0))
    assert log.active() == ["r3", "r4"]
    told = log.statistics(at(9.0))
    assert (told["total_requests"], told["active_requests"], told["completed_requests"]) == (4, 2, 2)
    assert (told["average_duration_ms"], told["min_duration_ms"], told["max_duration_ms"]) == (2000.0, 1000.0, 3000.0)
    assert told["total_events"] == 6


def test_notes_stand_beside_the_phases_and_cannot_write_them() -> None:
    log = Lifecycle(max_requests=9)
    made = request("r1")
    log.live["r1"] = made
    log.note("client_2", Note("r1", "COMPLETED", 1_000_003.0, metadata=b'{"token": "x"}'), at(3.0))
    assert log.active() == ["r1"]
    assert [phase for phase, _ in made.phases] == [Phase.RECEIVED]
    note = log.events("r1")[1]
    assert (note["by_client"], note["timestamp"], note["metadata"]) == (True, 1_000_003.0, b'{"token": "x"}')
    statistics = log.statistics(at(9.0))
    assert (statistics["active_requests"], statistics["completed_requests"], statistics["total_events"]) == (1, 0, 2)
    assert log.request_duration_ms("r1", at(9.0)) == 8000.0, "it lives on, whatever somebody notes"
    assert log.phase_duration_ms("r1", "RECEIVED", None, at(9.0)) == 8000.0


def test_notes_are_bounded() -> None:
    log = Lifecycle(max_requests=3)
    for number in range(MAX_NOTES + 50):
        log.note("c", Note("r1", "QUEUED", float(number)), at(number / 1000))
    assert len(log.events("r1")) == MAX_NOTES
    assert log.dropped_notes == 50
    for _ in range(60):
        log.note("c", Note("large", "QUEUED", 0.0, metadata=b"x" * 10_000), at(0.5))
    assert len(log.events("large")) < 30
    log.clean_up(-1.0, at(1.0))
    for number in range(10):
        log.note("c", Note(f"n{number}", "QUEUED", 0.0), at(1.0))
    assert sum(1 for number in range(10) if log.events(f"n{number}")) == 3


def test_cleaning_up_forgets_what_ended_long_ago_and_says_how_much() -> None:
    log = Lifecycle(max_requests=9, max_age=10_000.0)
    ended(log, "old", end=10.0)
    ended(log, "new", end=95.0)
    log.note("c", Note("noted", "ERROR", 0.0), at(5.0))
    log.note("c", Note("open", "QUEUED", 0.0), at(5.0))
    assert log.clean_up(60.0, at(100.0)) == 2
    assert [bool(log.events(name)) for name in ("old", "new", "noted", "open")] == [False, True, False, True]


def test_fresh_events_are_taken_once_and_only_where_somebody_writes_them() -> None:
    silent, writing = Lifecycle(max_requests=9), Lifecycle(max_requests=9, stream=True)
    for log in (silent, writing):
        made = request("r1", b'{"job": 1}')
        made.phases.clear()
        log.mark(made, Phase.RECEIVED, at(1.0))
        log.mark(made, Phase.QUEUED, at(1.0))
    assert silent.take_fresh() == []
    first, second = (as_line(fresh) for fresh in writing.take_fresh())
    assert (first["phase"], first["metadata"], second["phase"]) == ("RECEIVED", b'{"job": 1}', "QUEUED")
    assert "metadata" not in second
    assert writing.take_fresh() == []
