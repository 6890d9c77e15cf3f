"""The journal's thread: what is committed together, what waits for it in which order, questions, housekeeping and the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from callpool.manager import journal as journal_module
from callpool.manager.core.events import Effect, ToClient
from callpool.manager.core.messages import Revoke
from callpool.manager.core.records import Record
from callpool.manager.errors import JournalUnavailable
from callpool.manager.store import Store
from tests.manager.desk import HANG, Desk, answered, at_work, broken, dispatched, told
from tests.manager.journaled import accepted, ended, started, the, waits, whole


@pytest.fixture
def path(base_folder: Path) -> Path:
    return base_folder / "state" / "journal.db"


# Together, and in order.


def test_the_first_record_is_handed_over_in_the_same_turn(path: Path) -> None:
    async def test(desk: Desk) -> None:
        desk.take(accepted("a"))
        flying = desk.journal._pending.flying
        assert flying is not None
        assert flying.records == [accepted("a")]
        await desk.journal.settled()

    at_work(path, test)


def test_what_comes_while_a_commit_runs_travels_together(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.held_up(accepted("first"))
        later = [accepted(f"r{number}") for number in range(100)]
        for each in later:
            desk.take(each)
        assert desk.store.batches == [[accepted("first")]]
        desk.store.gate.set()
        await desk.journal.settled()
        assert desk.store.batches == [[accepted("first")], later]
        assert (desk.journal.commits, desk.journal.records) == (2, 101)

    at_work(path, test)


def test_a_record_is_in_the_file_before_anything_that_waits_for_it_is_done(path: Path) -> None:
    async def test(desk: Desk) -> None:
        there: list[set[str]] = []
        perform = desk.perform

        def looking(effects: Sequence[Effect]) -> None:
            there.append(desk.store.known(["a", "b"]))
            perform(effects)

        desk.perform = looking  # type: ignore[method-assign]
        await desk.held_up(accepted("a"))
        assert desk.journal.defer(told("a"))
        assert desk.heard == []
        desk.store.gate.set()
        await desk.until(lambda: desk.heard)
        assert (there, desk.heard) == ([{"a"}], [told("a")])

    at_work(path, test)


def test_effects_keep_the_order_in_which_they_were_decided(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.held_up(accepted("a"), accepted("b"))
        assert desk.journal.defer(told("a"))
        assert desk.journal.defer(told("b"))
        desk.take(started("a", attempt=1))
        assert desk.journal.defer(dispatched("a", 1))
        assert desk.journal.defer(told("b"))
        assert desk.journal.defer(told("a"))
        desk.store.gate.set()
        await desk.journal.settled()
        assert desk.heard == [told("a"), told("b"), told("b"), dispatched("a", 1), told("a")]

    at_work(path, test)


def test_a_worker_is_not_sent_what_has_ended_before_it_could_be(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.held_up(accepted("a"))
        desk.take(started("a", attempt=1))
        assert desk.journal.defer(dispatched("a", 1))
        desk.take(ended("a"))
        assert desk.journal.defer(answered("a"))
        desk.store.gate.set()
        await desk.journal.settled()
        assert desk.heard == [answered("a")]

    at_work(path, test)


def test_what_waits_for_nothing_is_not_kept_back(path: Path) -> None:
    async def test(desk: Desk) -> None:
        assert not desk.journal.defer(told("a"))
        await desk.held_up(accepted("a"))
        assert not desk.journal.defer(told("b"))
        assert not desk.journal.defer(ToClient("client", Revoke()))
        assert (desk.journal.is_behind("a"), desk.journal.is_behind("b")) == (True, False)
        desk.store.gate.set()
        await desk.journal.durable("a")
        assert not desk.journal.is_behind("a")
        assert not desk.journal.defer(told("a"))

    at_work(path, test)


def test_a_turn_without_records_asks_nothing_of_the_disk(path: Path) -> None:
    async def test(desk: Desk) -> None:
        desk.journal.turn()
        await desk.journal.settled()
        await desk.journal.durable("a")
        await desk.journal.ask(lambda _: None)
        assert desk.store.calls == [call for call in desk.store.calls if call == "sweep"]

    at_work(path, test)


# Known, and in conflict.


def test_an_id_that_the_journal_has_is_told_and_all_about_it_is_dropped(path: Path) -> None:
    with_answer: list[Record] = [accepted("old"), started("old"), ended("old", body=b"answer")]

    async def test(desk: Desk) -> None:
        await desk.written(*with_answer)
        desk.heard.clear()
        await desk.held_up(accepted("old"), accepted("new"))
        desk.journal.defer(told("old"))
        desk.journal.defer(told("new"))
        desk.take(started("old", attempt=7), started("new", attempt=8))
        desk.journal.defer(dispatched("old", 7))
        desk.journal.defer(dispatched("new", 8))
        desk.store.gate.set()
        await desk.journal.settled()
        await desk.until(lambda: len(desk.heard) == 3)
        known, *effects = desk.heard
        assert isinstance(known, dict)
        assert {name: (job.state, job.body) for name, job in known.items()} == {"old": ("completed", None)}, (
            "answers are fetched one by one"
        )
        [(_print, clients)] = desk.submits[0].values()
        assert clients == ["client"], "who submitted it again is told, whatever has become of the new one"
        assert effects == [told("new"), dispatched("new", 8)]
        assert desk.journal.conflicts == 0
        assert the(desk.store, "old").attempt == 1

    at_work(path, test)


def test_a_call_whose_start_is_refused_is_not_made(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.held_up(accepted("a"), accepted("b"))
        desk.take(started("a", attempt=1, was=7), started("b", attempt=2))
        assert desk.journal.defer(dispatched("a", 1))
        assert desk.journal.defer(dispatched("b", 2))
        desk.store.gate.set()
        await desk.journal.settled()
        assert desk.heard == [dispatched("b", 2)]

    at_work(path, test)


def test_a_conflict_takes_nothing_else_with_it(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(desk: Desk) -> None:
        await desk.written(*whole("old"))
        await desk.written(
            accepted("a"), ended("old"), accepted("b"), started("nobody", attempt=3), started("a", attempt=4)
        )
        assert (the(desk.store, "a").state, the(desk.store, "b").state) == ("started", "queued")
        assert desk.journal.conflicts == 2
        assert desk.journal.fault is None

    at_work(path, test)
    assert [each.getMessage() for each in caplog.records] == [
        "a record was refused: JobEnded",
        "a record was refused: AttemptStarted",
    ]


# Questions.


def test_a_question_is_answered_after_what_was_handed_over_before(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.held_up(accepted("a"))
        question = desk.journal.ask(lambda store: store.known(["a", "b"]))
        desk.take(accepted("b"))
        desk.store.gate.set()
        assert await question == {"a"}

    at_work(path, test)


def test_a_question_raises_what_it_raises_and_the_thread_goes_on(path: Path) -> None:
    async def test(desk: Desk) -> None:
        with pytest.raises(ZeroDivisionError):
            await desk.journal.ask(lambda _: 1 / 0)
        cancelled = desk.journal.ask(lambda _: 1)
        cancelled.cancel()
        assert await desk.journal.ask(lambda _: 2) == 2
        assert cancelled.cancelled()

    at_work(path, test)


def test_the_current_job_is_the_one_with_all_that_is_still_to_be_written(path: Path) -> None:
    async def test(desk: Desk) -> None:
        assert await desk.journal.current("a") is None
        await desk.held_up(accepted("a"))
        asked = asyncio.ensure_future(desk.journal.current("a"))
        desk.take(started("a"))
        desk.store.gate.set()
        job = await asked
        assert job is not None
        assert job.state == "started"
        desk.take(ended("a", body=b"answer"))
        job = await desk.journal.current("a")
        assert job is not None
        assert job.body == b"answer"

    at_work(path, test)


def test_the_current_job_is_not_the_one_before_what_was_written_meanwhile(path: Path) -> None:
    """The answer and the news of a later commit come in the same turn: whoever wakes then finds nothing still to be written."""

    async def test(desk: Desk) -> None:
        await desk.written(accepted("a"))
        asked = asyncio.ensure_future(desk.journal.current("a"))
        await asyncio.sleep(0)  # it is asked
        desk.take(started("a"))
        both_are_told = threading.Event()
        desk.journal._tasks.put(both_are_told.set)
        assert both_are_told.wait(HANG)
        job = await asked
        assert job is not None
        assert job.state == "started"

    at_work(path, test)


def test_the_current_job_is_not_the_one_before_what_is_just_recorded(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.written(accepted("a"))
        asked = asyncio.ensure_future(desk.journal.current("a"))
        await asyncio.sleep(0)  # it is asked
        answer_is_told = threading.Event()
        desk.journal._tasks.put(lambda: desk.journal._back(desk.take, started("a")))
        desk.journal._tasks.put(answer_is_told.set)
        assert answer_is_told.wait(HANG)
        job = await asked
        assert job is not None
        assert job.state == "started"

    at_work(path, test)


def test_whoever_waits_and_goes_away_is_in_nobodys_way(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.held_up(accepted("a"))
        gone, stays = (asyncio.ensure_future(desk.journal.durable("a")) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        desk.store.gate.set()
        await stays
        assert gone.cancelled()

    at_work(path, test)


# Housekeeping.


def test_an_idle_journal_copies_its_log_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "IDLE_CHECKPOINT", 0.002)

    async def test(desk: Desk) -> None:
        looks = 0
        await desk.written(accepted("a"))
        await desk.until(lambda: "checkpoint" in desk.store.calls)
        keep_house = desk.journal._keep_house

        def counted() -> None:
            nonlocal looks
            looks += 1
            keep_house()

        desk.journal._keep_house = counted  # type: ignore[method-assign]
        await desk.until(lambda: looks > 5)
        assert desk.store.calls.count("checkpoint") == 1
        await desk.written(accepted("b"))
        await desk.until(lambda: desk.store.calls.count("checkpoint") == 2)

    at_work(path, test)


def test_what_is_past_its_time_is_forgotten_lot_after_lot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "IDLE_CHECKPOINT", 0.002)
    monkeypatch.setattr("callpool.manager.store.SWEEP_ROWS", 2)
    now = time.time()

    async def test(desk: Desk) -> None:
        records: list[Record] = []
        for number in range(9):
            records += whole(f"old{number}", attempt=number + 1, at=now - 1_000)
        await desk.written(*records, *whole("young", attempt=99, at=now))
        desk.journal._swept_at = -1e9
        await desk.until(lambda: desk.store.counts() == {"completed": 1})
        assert the(desk.store, "young").state == "completed"

    at_work(path, test, keep_seconds=500.0)


def test_housekeeping_that_fails_is_said_and_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "IDLE_CHECKPOINT", 0.002)

    async def test(desk: Desk) -> None:
        desk.store.deaf["checkpoint"] += [broken()]
        desk.store.deaf["sweep"] += [broken()]
        await desk.written(accepted("a"))
        await desk.until(lambda: "checkpoint" in desk.store.calls)
        await desk.until(lambda: "the journal's housekeeping: the disk says SQLITE_IOERR_WRITE" in caplog.messages)
        await desk.written(accepted("b"))
        await desk.until(lambda: desk.store.calls.count("checkpoint") == 2)

    at_work(path, test)


def test_it_describes_itself(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.written(accepted("a"))
        await desk.held_up(accepted("b"))
        found = desk.journal.describe()
        assert found.pop("bytes") > 40_000
        assert found == {
            "path": str(path), "commits": 1, "records": 1, "conflicts": 0, "waiting": 1, "in_doubt": 0, "fault": None
        }  # fmt: skip
        desk.store.gate.set()

    at_work(path, test)


# The end.


def left(path: Path) -> dict[str, str]:
    """Id → state of what a journal has in the end."""
    store = Store(path, durability="process")
    try:
        return {job.request_id: job.state for job in store.page()}
    finally:
        store.close()


def test_what_is_still_to_be_written_is_written_when_it_closes(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.held_up(accepted("a"))
        desk.take(accepted("b"))
        desk.journal.defer(told("b"))
        closing = asyncio.ensure_future(desk.journal.close())
        await asyncio.sleep(0)
        desk.take(accepted("c"))  # by what is done meanwhile
        desk.store.gate.set()
        await closing
        await desk.journal.close()
        assert desk.heard == [told("b")]

    at_work(path, test)
    assert left(path) == {"a": "queued", "b": "queued", "c": "queued"}


def test_after_its_end_it_answers_nothing(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.journal.close()
        with pytest.raises(JournalUnavailable, match="the journal is closed"):
            await desk.journal.ask(lambda _: None)

    at_work(path, test)


def test_one_that_was_never_started_lets_go_of_its_file(path: Path) -> None:
    async def body() -> None:
        desk = Desk(path)
        await desk.journal.close()
        assert desk.store.closed == 1

    asyncio.run(body())


def test_a_disk_that_hangs_does_not_keep_the_supervisor(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "CLOSE_SECONDS", 0.05)

    async def body() -> Desk:
        desk = Desk(path)
        desk.journal.start()
        await desk.held_up(accepted("a"))
        desk.take(accepted("b"))
        waiters = [asyncio.ensure_future(desk.journal.durable(name)) for name in ("a", "b")]
        await asyncio.sleep(0)
        await desk.journal.close()
        for each in waiters:
            with pytest.raises(JournalUnavailable, match="the journal is closed"):
                await each
        assert desk.journal._thread.is_alive()
        assert desk.heard == []
        return desk

    desk = asyncio.run(body())
    assert caplog.messages == ["the journal did not come back from its disk: 2 records are lost"]
    desk.store.gate.set()  # it comes back when nobody is there any more
    desk.journal._thread.join()
    assert desk.store.closed == 1
    assert "the journal has outlived its supervisor's loop" in caplog.messages
    assert left(path) == {"a": "queued"}


def test_a_task_that_breaks_ends_no_thread(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(desk: Desk) -> None:
        def breaks() -> None:
            raise ZeroDivisionError

        desk.journal._tasks.put(breaks)
        await desk.written(accepted("a"), started("a"), waits("a"))

    at_work(path, test)
    assert caplog.messages == ["a task of the journal broke"]
