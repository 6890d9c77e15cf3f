"""What the journal's file keeps, and when it refuses a record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callpool.manager.core.faults import Fault
from callpool.manager.core.records import AttemptStarted, JobAccepted, JobEnded, JobWaits, Record, fingerprint
from callpool.manager.errors import JournalConflict
from callpool.manager.store import STATEMENT_ROWS, SWEEP_ROWS, Durability, Store
from tests.manager.journaled import (
    ELSEWHERE,
    FAULT,
    KEPT,
    SUBMIT,
    USAGE,
    accepted,
    copied,
    ended,
    started,
    the,
    waits,
    whole,
)

LARGE = 16 * 1024 * 1024


@pytest.fixture
def path(base_folder: Path) -> Path:
    return base_folder / "state" / "journal.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path, durability="process")
    yield store
    assert store.integrity() == []
    store.close()


# Records, there and back.


def test_an_acceptance_comes_back_with_every_option(store: Store) -> None:
    store.write([accepted(**{name: getattr(SUBMIT, name) for name in SUBMIT.__struct_fields__})])
    job = the(store)
    assert job.submit == SUBMIT
    options = SUBMIT.__struct_fields__[-len(SUBMIT.__struct_defaults__) :]
    usual = dict(zip(options, SUBMIT.__struct_defaults__, strict=True))
    assert not [name for name in options if getattr(SUBMIT, name) == usual[name]], "as it always is, it proves nothing"
    assert (job.number, job.request_id, job.name, job.session_id) == (1, "a", "client", "s-a")
    assert (job.provider, job.model, job.priority) == ("kimi", "large", "batch")
    assert (job.fingerprint, job.accepted_at) == (fingerprint(SUBMIT), 1000.25)
    assert (job.state, job.attempt, job.tries, job.started_at, job.ended_at) == ("queued", 0, 0, None, None)
    assert (job.usage, job.fault, job.kept, job.payload, job.body) == (None, None, None, None, None)
    assert (job.duration, job.had_session) == (0.0, False)


def test_a_start_comes_back(store: Store) -> None:
    store.write([accepted(), started(attempt=7, tries=3, at=5.125)])
    job = the(store)
    assert (job.state, job.attempt, job.tries, job.started_at) == ("started", 7, 3, 5.125)
    assert job.submit is not None


def test_an_end_comes_back_with_every_field(store: Store) -> None:
    end = ended(at=9.5, tries=6, duration=1.75, started=True, body=b"\0answer\xff", fault=FAULT, usage=USAGE)
    store.write([accepted(), started(tries=2), end])
    job = the(store)
    assert (job.state, job.ended_at, job.tries, job.duration, job.had_session) == ("completed", 9.5, 6, 1.75, True)
    assert (job.body, job.fault, job.usage) == (b"\0answer\xff", FAULT, USAGE)
    assert job.submit is None, "nobody needs the prompt of a job that is over"


def test_an_end_that_counts_fewer_tries_takes_none_back(store: Store) -> None:
    store.write([accepted(), started(tries=5), ended(tries=0)])
    assert the(store).tries == 5


@pytest.mark.parametrize("state", ["completed", "error", "timeout", "cancelled", "interrupted"])
def test_only_a_job_in_doubt_keeps_what_it_takes_to_go_on(store: Store, state: str) -> None:
    store.write([accepted(), started(), ended(state=state)])
    assert (the(store).submit is not None) == (state == "interrupted")


def test_a_job_that_waits_again_comes_back_with_what_it_may_still_try(store: Store) -> None:
    store.write([accepted(), started(), waits(kept=KEPT, payload=b"the next call")])
    job = the(store)
    assert (job.kept, job.payload) == (KEPT, b"the next call")
    assert (job.state, job.attempt, job.provider, job.model) == ("queued", 1, "glm", "small")
    assert job.submit == accepted().submit, "its own provider is that of the submit"
    store.write([started(was=1, attempt=2), waits(attempt=2, kept=ELSEWHERE)])
    assert (the(store).kept, the(store).payload) == (ELSEWHERE, b"the next call"), "no payload: that of before"


def test_a_job_in_doubt_that_goes_on_is_no_longer_over(store: Store) -> None:
    store.write([accepted(), started(), ended(state="interrupted", fault=FAULT, duration=2.0, body=b"a part")])
    store.write([waits(was="interrupted", kept=KEPT)])
    job = the(store)
    assert (job.state, job.ended_at, job.fault, job.duration) == ("queued", None, None, 0.0)
    assert [each.request_id for each in store.unfinished()] == ["a"]
    store.write([started(was=1, attempt=2), ended(attempt=2, body=b"the answer")])
    assert the(store).body == b"the answer"


def test_texts_of_sixteen_mebibytes_come_back(store: Store) -> None:
    prompt, following, answer = b"p" * LARGE, b"n" * LARGE, b"r" * LARGE
    store.write([accepted(payload=prompt), started(), waits(payload=following)])
    job = the(store)
    assert job.submit is not None
    assert job.submit.payload == prompt
    assert job.payload == following
    store.write([started(was=1, attempt=2), ended(attempt=2, body=answer)])
    assert the(store).body == answer


def test_what_is_no_record_is_refused(store: Store) -> None:
    with pytest.raises(TypeError, match="no record: Kept"):
        store.write([KEPT])  # type: ignore[list-item]


# Compare-and-set.

PASTS: dict[str, list[Record]] = {
    "nothing": [],
    "queued": [accepted()],
    "started": [accepted(), started()],
    "waiting": [accepted(), started(), waits()],
    "completed": [accepted(), started(), ended()],
    "interrupted": [accepted(), started(), ended(state="interrupted")],
}
HELD = {"queued": ("queued", 0), "started": ("started", 1), "waiting": ("queued", 1), "interrupted": ("interrupted", 1)}
"""What the journal holds after a past that can go on."""
NEXT: list[tuple[Record, tuple[str, int]]] = [
    *((started(was=was, attempt=9), ("queued", was)) for was in (0, 1, 2)),
    *(
        (waits(was=was, attempt=n, kept=KEPT), (was, n))
        for was in ("queued", "started", "interrupted")
        for n in (0, 1, 2)
    ),
    *((ended(was=was, attempt=n), (was, n)) for was in ("queued", "started", "interrupted") for n in (0, 1, 2)),
]
"""Every record, and what it says that the journal holds."""


@pytest.mark.parametrize("past", PASTS)
def test_a_record_is_written_where_the_journal_holds_what_it_says_and_nowhere_else(store: Store, past: str) -> None:
    store.write([accepted("other")])
    for record, said in NEXT:
        store.write(PASTS[past])
        before = store.one("a")
        if said == HELD.get(past):
            store.write([record])
            assert store.one("a") != before
        else:
            with pytest.raises(JournalConflict, match="the job is not in the state that it was said to be in"):
                store.write([record])
            assert store.one("a") == before
        store._database.execute("DELETE FROM jobs WHERE request_id = 'a'")
    assert the(store, "other").state == "queued"


@pytest.mark.parametrize("past", [each for each in PASTS if each != "nothing"])
def test_an_id_is_accepted_once(store: Store, past: str) -> None:
    store.write(PASTS[past])
    before = the(store)
    with pytest.raises(JournalConflict, match="UNIQUE"):
        store.write([accepted()])
    assert the(store) == before


@pytest.mark.parametrize("rows", [2, STATEMENT_ROWS, STATEMENT_ROWS + 1, 3 * STATEMENT_ROWS + 5])
@pytest.mark.parametrize("where", ["first", "last"])
def test_one_conflict_takes_the_whole_batch_back(store: Store, rows: int, where: str) -> None:
    store.write(whole("old"))
    good: list[Record] = [accepted(f"r{number}") for number in range(rows - 2)]
    good.append(started("r0", attempt=50)) if rows > 2 else good.append(accepted("r"))
    before, attempt = store.page(limit=1000), store.last_attempt()
    with pytest.raises(JournalConflict):
        store.write([ended("old"), *good] if where == "first" else [*good, ended("old")])
    assert (store.page(limit=1000), store.last_attempt()) == (before, attempt)
    assert [job.body for job in store.find(["old"]).values()] == [None]
    store.write(good)
    assert len(store.page(limit=1000)) == len({each.request_id for each in good}) + 1


@pytest.mark.parametrize("rows", [1, STATEMENT_ROWS, STATEMENT_ROWS + 1, 2 * STATEMENT_ROWS + 1])
def test_a_batch_of_any_size_is_written(store: Store, rows: int) -> None:
    store.write([accepted(f"r{number}") for number in range(rows)])
    assert [job.request_id for job in store.unfinished()] == [f"r{number}" for number in range(rows)]


def test_nothing_is_written_without_records(store: Store) -> None:
    changes = store._database.total_changes
    store.write([])
    assert store._database.total_changes == changes


def test_one_by_one_all_but_what_can_never_be_written_is(store: Store) -> None:
    store.write(whole("old"))
    unspeakable = ended("new", attempt=2, fault=Fault(code="x", message="\ud800"))
    bad: list[Record] = [ended("old"), started("nobody"), unspeakable]
    good = whole("new", attempt=2)
    assert store.write_each([bad[0], good[0], bad[1], good[1], bad[2], good[2]]) == bad
    assert the(store, "new").state == "completed"
    assert the(store, "old").ended_at == 1002.75


def test_one_by_one_an_acceptance_is_not_left_out_but_all_is_taken_back(store: Store) -> None:
    store.write([*whole("old"), accepted("runs"), started("runs", attempt=5)])
    with pytest.raises(JournalConflict, match="UNIQUE"):
        store.write_each([ended("runs", attempt=5), ended("old"), accepted("new"), accepted("old")])
    assert (store.one("new"), the(store, "runs").state) == (None, "started")
    store.write([accepted("new"), ended("runs", attempt=5)])


# Questions.


def test_unfinished_jobs_come_in_the_order_of_their_acceptance_with_what_it_takes_to_go_on(store: Store) -> None:
    for name in ("c", "a", "d", "b", "e"):
        store.write([accepted(name, payload=name.encode())])
    store.write(
        [started("d", attempt=1), ended("d"), started("e", attempt=2), ended("e", attempt=2, state="interrupted")]
    )
    store.write([started("c", attempt=3), waits("c", attempt=3, kept=KEPT, payload=b"next"), started("b", attempt=4)])
    found = store.unfinished()
    assert [(job.request_id, job.state, job.payload) for job in found] == [
        ("c", "queued", b"next"),
        ("a", "queued", None),
        ("b", "started", None),
    ]
    assert [job.submit.payload for job in found if job.submit is not None] == [b"c", b"a", b"b"]
    assert [job.kept for job in found] == [KEPT, None, None]


def test_known_and_found_are_those_that_are_there(store: Store) -> None:
    names = [f"r{number}" for number in range(2 * STATEMENT_ROWS + 3)]
    store.write([accepted(name) for name in names])
    store.write([started("r1"), ended("r1", body=b"answer")])
    assert store.known([*names, "nobody"]) == set(names)
    assert store.known([]) == set()
    found = store.find(["r1", "nobody", "r0"])
    assert set(found) == {"r0", "r1"}
    assert (found["r1"].body, found["r1"].submit, found["r0"].submit) == (b"answer", None, None)
    assert store.find([]) == {}
    assert store.one("nobody") is None


def test_pages_go_from_the_last_acceptance_to_the_first(store: Store) -> None:
    for number in range(7):
        store.write([accepted(f"r{number}")])
    store.write([started("r2", attempt=1), started("r4", attempt=2), ended("r4", attempt=2, body=b"answer")])

    def names(**asked: Any) -> list[str]:
        return [job.request_id for job in store.page(**asked)]

    assert names() == ["r6", "r5", "r4", "r3", "r2", "r1", "r0"]
    assert names(limit=3) == ["r6", "r5", "r4"]
    assert names(limit=3, before=store.page(limit=3)[-1].number) == ["r3", "r2", "r1"]
    assert names(states=["started", "completed"]) == ["r4", "r2"]
    assert names(states=["queued"], before=4, limit=2) == ["r1", "r0"]
    assert names(limit=0) == []
    assert [job.body for job in store.page(states=["completed"])] == [None], "a page brings no texts"
    assert store.counts() == {"queued": 5, "started": 1, "completed": 1}


def test_the_highest_attempt_never_falls(store: Store) -> None:
    assert store.last_attempt() == 0
    store.write([accepted("a"), accepted("b"), started("b", attempt=9), started("a", attempt=5)])
    assert store.last_attempt() == 9
    store.write([ended("b", attempt=9, state="interrupted"), ended("b", was="interrupted", attempt=9, state="error")])
    assert store.sweep(1e12) == 1
    assert store.last_attempt() == 9
    store.undo([started("a", attempt=5)])
    assert store.last_attempt() == 9


# In doubt whether a batch is there.


@pytest.mark.parametrize(
    "batch",
    [
        [accepted("n")],
        [started("q")],
        [ended("s")],
        [waits("s")],
        whole("n", attempt=8),
        [accepted("n"), started("n", attempt=8), waits("n", attempt=8)],
        [accepted("known"), ended("s")],
    ],
)
def test_whether_a_batch_is_there_is_told_from_the_file(store: Store, batch: list[Record]) -> None:
    store.write([accepted("q"), accepted("s"), started("s"), *whole("known", attempt=4)])
    assert store.holds(batch) is False
    store.write([each for each in batch if each.request_id != "known"])
    assert store.holds(batch) is True
    assert store.holds([]) is False


def test_what_was_given_up_is_taken_back(store: Store) -> None:
    store.write([accepted("old"), started("old", attempt=1), waits("old")])
    given_up: list[Record] = [accepted("new", payload=b"x"), started("old", was=1, attempt=2)]
    store.write(given_up)
    store.undo(given_up)
    assert store.one("new") is None
    assert (the(store, "old").state, the(store, "old").attempt) == ("queued", 1)
    assert store._database.execute("SELECT count(*) FROM payloads").fetchone() == (1,), "its prompt is gone too"
    store.undo(given_up)
    store.write([accepted("new"), started("old", was=1, attempt=3)])


def test_what_was_not_given_up_is_left(store: Store) -> None:
    store.write([*whole("over"), accepted("runs"), started("runs", attempt=3)])
    before = store.page()
    store.undo([accepted("over"), started("over"), started("runs", attempt=2), ended("runs"), accepted("nobody")])
    assert store.page() == before


def test_taking_back_is_all_or_nothing(store: Store) -> None:
    store.write([accepted("a"), accepted("b")])
    store._database.execute(
        "CREATE TEMP TRIGGER refuse BEFORE DELETE ON main.jobs WHEN OLD.request_id = 'b' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    with pytest.raises(JournalConflict):
        store.undo([accepted("a"), accepted("b")])
    assert store.known(["a", "b"]) == {"a", "b"}
    store.write([accepted("c")])


# Housekeeping.


def test_a_sweep_forgets_the_oldest_ends_and_no_more_than_it_may(store: Store) -> None:
    number = SWEEP_ROWS + 20
    for each in range(number):
        store.write(whole(f"r{each}", attempt=each + 1, at=100.0 + each))
    store.write(
        [accepted("queued"), accepted("late"), started("late", attempt=9999), ended("late", attempt=9999, at=1e6)]
    )
    assert store.sweep(100.0) == 0, "an end at that very second is kept"
    assert store.sweep(1e6) == SWEEP_ROWS
    assert {job.request_id for job in store.page(limit=1000)} == {
        "queued", "late", *(f"r{each}" for each in range(SWEEP_ROWS, number))
    }  # fmt: skip
    assert store.sweep(1e6) == 20
    assert store.sweep(1e6) == 0
    assert store.counts() == {"queued": 1, "completed": 1}


def test_a_sweep_forgets_texts_too_and_gives_their_space_back(store: Store) -> None:
    store.write([accepted("doubt", payload=b"x" * 2_000_000), started("doubt"), ended("doubt", state="interrupted")])
    store.write([accepted("over"), started("over", attempt=2), ended("over", attempt=2, body=b"x" * 2_000_000)])
    store.checkpoint()
    before = store.path.stat().st_size
    assert store.sweep(1e12) == 2
    store.checkpoint()
    for table in ("jobs", "payloads", "results"):
        assert store._database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608
    assert before - store.path.stat().st_size > 3_900_000


def test_numbers_of_forgotten_jobs_are_not_given_again(store: Store) -> None:
    store.write(whole("a"))
    store.sweep(1e12)
    store.write([accepted("b")])
    assert the(store, "b").number == 2


def test_compacting_gives_all_unused_space_back_and_keeps_the_rest(store: Store) -> None:
    store.write([accepted(f"r{number}", payload=b"x" * 20_000) for number in range(200)])
    store.checkpoint()
    before, kept = store.size(), the(store, "r199")
    store._database.execute("DELETE FROM jobs WHERE request_id <> 'r199'")
    store.compact()
    assert store.size() < before / 10
    assert the(store, "r199") == kept
    assert store._database.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def test_a_checkpoint_copies_the_log_and_leaves_no_head_of_it_to_be_written(store: Store) -> None:
    log = store.path.with_name("journal.db-wal")
    store.write([accepted(payload=b"x" * 1_000_000)])
    assert log.stat().st_size > 1_000_000
    store.checkpoint()
    assert 0 < log.stat().st_size < 10_000
    assert store.path.stat().st_size > 1_000_000


def test_the_size_counts_the_log(store: Store) -> None:
    before = store.size()
    store.write([accepted(payload=b"x" * 1_000_000)])
    assert store.size() - before > 1_000_000


# Durability, and opening again.


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("process", 1)])
def test_durability_is_what_was_asked_for_also_when_it_is_opened_again(
    path: Path, durability: Durability, level: int
) -> None:
    store = Store(path, durability=durability)
    assert store._database.execute("PRAGMA synchronous").fetchone() == (level,)
    store.reopen()
    assert store._database.execute("PRAGMA synchronous").fetchone() == (level,)
    assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._database.execute("PRAGMA locking_mode").fetchone() == ("exclusive",)
    store.close()


def test_what_was_written_is_there_when_it_is_opened_again(path: Path) -> None:
    first = Store(path)
    first.write(
        [*whole("a"), accepted("b"), started("b", attempt=4), waits("b", attempt=4, kept=KEPT, payload=b"next")]
    )
    before = [the(first, "a"), the(first, "b")]
    first.close()
    first.close()
    assert [each.name for each in path.parent.iterdir()] == ["journal.db"], "nothing is left beside it"
    second = Store(path)
    assert [the(second, "a"), the(second, "b")] == before
    assert second.last_attempt() == 4
    second.reopen()
    assert [the(second, "a"), the(second, "b")] == before
    second.write([started("b", was=4, attempt=5)])
    second.close()


def test_it_is_written_to_before_it_is_called_open_or_well_again(store: Store) -> None:
    """A file that can be read alone is no journal."""

    def written(name: str) -> int:
        [number] = store._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return int(number)

    assert (written("opened"), written("probed")) == (1, 0)
    store.reopen()
    store.undo([])
    assert (written("opened"), written("probed")) == (2, 1)


def test_what_was_written_is_there_after_a_crash(store: Store, tmp_path: Path) -> None:
    store.write([*whole("a"), accepted("b")])
    later = Store(copied(store.path, tmp_path / "copy"))
    assert (the(later, "a"), the(later, "b")) == (the(store, "a"), the(store, "b"))
    assert later.integrity() == []
    later.close()


def test_the_file_and_its_directory_are_private(store: Store) -> None:
    store.write([accepted()])
    assert store.path.parent.stat().st_mode & 0o777 == 0o700
    for each in store.path.parent.iterdir():
        assert each.stat().st_mode & 0o077 == 0, each


def test_a_leftover_of_a_crash_while_it_was_made_is_in_nobodys_way(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    for end in (".new", ".new-wal", ".new-journal"):
        path.with_name(path.name + end).write_bytes(b"half")
    store = Store(path)
    store.write([accepted()])
    assert not list(path.parent.glob("*.new*"))
    store.close()


def test_the_file_says_whose_it_is(store: Store) -> None:
    store.checkpoint()
    header = store.path.read_bytes()[:100]
    assert header[68:72] == b"CPJ1"
    assert int.from_bytes(header[60:64], "big") == 1


def test_every_field_of_a_record_has_its_place_in_a_row(store: Store) -> None:
    """A new field that is written nowhere is lost: then this is to be taught, and so is the file."""
    fields: dict[Any, set[str]] = {
        AttemptStarted: {"request_id", "was", "attempt", "tries", "at"},
        JobWaits: {"request_id", "was", "attempt", "kept", "payload"},
        JobEnded: {
            "request_id", "was", "attempt", "state", "at", "tries", "duration", "started", "body", "fault", "usage"
        },
        JobAccepted: {"request_id", "name", "submit", "fingerprint", "session_id", "at"},
    }  # fmt: skip
    assert {kind: set(kind.__struct_fields__) for kind in fields} == fields
