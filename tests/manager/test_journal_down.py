"""A disk that fails: nothing is acknowledged that is not written, what ended is kept, and it recovers by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from callpool.manager import journal as journal_module
from callpool.manager.core.faults import Fault
from callpool.manager.core.records import Record
from callpool.manager.errors import JournalUnavailable
from callpool.manager.store import PAGE_BYTES, Store
from tests.manager.desk import HANG, Desk, answered, at_work, broken, dispatched, told
from tests.manager.journaled import accepted, ended, started, the

DOWN = "the disk says SQLITE_IOERR_WRITE"


@pytest.fixture
def path(base_folder: Path) -> Path:
    return base_folder / "state" / "journal.db"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "TRY_AGAIN", 0.005)


async def three_jobs(desk: Desk) -> None:
    """One that waits, and one that runs; a third comes later."""
    await desk.written(accepted("waits"), accepted("runs"), started("runs", attempt=5))


def step(desk: Desk) -> None:
    """A new job is taken, one is dispatched and one ends; and who is to hear of it."""
    desk.take(
        accepted("new"),
        started("waits", attempt=6),
        started("new", attempt=7),
        ended("runs", attempt=5, body=b"answer"),
    )
    assert desk.journal.defer(told("new"))
    assert desk.journal.defer(dispatched("waits", 6))
    assert desk.journal.defer(dispatched("new", 7))
    assert desk.journal.defer(answered("runs"))


def states(desk: Desk) -> dict[str, str]:
    return {job.request_id: job.state for job in desk.store.page()}


AFTERWARDS = {"waits": "queued", "runs": "completed"}


def test_what_began_is_given_up_and_what_ended_is_kept_and_done_once(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.failures.append(broken())
        desk.store.gate.clear()
        step(desk)
        waiters = [asyncio.ensure_future(desk.journal.durable(name)) for name in ("new", "runs")]
        settled = asyncio.ensure_future(desk.journal.settled())
        await asyncio.sleep(0)
        desk.store.gate.set()
        await desk.until(lambda: desk.heard)
        assert desk.heard == [("down", DOWN, ["new"], ["waits"])], "nobody hears of anything that is not written"
        assert desk.journal.fault is not None
        for each in (*waiters, settled):
            with pytest.raises(JournalUnavailable, match=DOWN):
                await each
        await desk.until(lambda: desk.journal.fault is None)
        assert desk.heard[1:] == ["up", answered("runs")]
        assert desk.store.batches[-1] == [ended("runs", attempt=5, body=b"answer")]
        assert states(desk) == AFTERWARDS
        await desk.written(accepted("new"), started("waits", attempt=8))
        assert desk.journal.conflicts == 0

    at_work(path, test)


def test_what_gathered_behind_the_failed_batch_shares_its_fate(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.failures.append(broken())
        await desk.held_up(accepted("first"))
        desk.journal.defer(told("first"))
        step(desk)
        desk.store.gate.set()
        await desk.until(lambda: desk.journal.fault is not None)
        await desk.until(lambda: desk.journal.fault is None)
        assert desk.heard == [("down", DOWN, ["first", "new"], ["waits"]), "up", answered("runs")]
        assert states(desk) == AFTERWARDS

    at_work(path, test)


def test_a_disk_that_fails_and_has_written_all_the_same_is_believed(path: Path) -> None:
    """What was refused is taken back, for its submitter was told so; what ended is not written twice."""

    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.lies.append(broken())
        desk.store.deaf["undo"] += [broken(), broken()]
        step(desk)
        await desk.until(lambda: desk.journal.fault is not None)
        await desk.until(lambda: desk.journal.fault is None)
        assert desk.heard == [("down", DOWN, ["new"], ["waits"]), "up", answered("runs")]
        assert states(desk) == AFTERWARDS
        assert desk.journal.conflicts == 0
        assert [len(each) for each in desk.store.batches if each] == [3, 4], "nothing was written again"

    at_work(path, test)


def test_taking_back_is_tried_until_it_is_done(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.lies.append(broken())
        undo = desk.store.undo
        tries: list[int] = []

        def refusing(records: list[Record]) -> None:
            if records:
                tries.append(len(records))
                if len(tries) < 4:
                    raise broken()
            undo(records)

        desk.store.undo = refusing  # type: ignore[method-assign, assignment]
        step(desk)
        await desk.until(lambda: desk.journal.fault is not None)
        await desk.until(lambda: desk.journal.fault is None)
        assert tries == [3, 3, 3, 3]
        assert states(desk) == AFTERWARDS

    at_work(path, test)


@pytest.mark.parametrize(
    ("reason", "looks"), [("SQLITE_FULL", False), ("SQLITE_IOERR_FSYNC", True), ("ProgrammingError", True)]
)
def test_the_file_is_looked_at_afresh_unless_there_is_just_no_room(path: Path, reason: str, looks: bool) -> None:  # noqa: FBT001
    async def test(desk: Desk) -> None:
        desk.store.failures.append(broken(reason))
        desk.take(accepted("a"))
        await desk.until(lambda: desk.journal.fault is not None)
        await desk.until(lambda: desk.journal.fault is None)
        assert desk.heard == [("down", f"the disk says {reason}", ["a"], []), "up"]
        assert ("reopen" in desk.store.calls) == looks
        assert "undo" in desk.store.calls, "it is not called well before it has been written to"

    at_work(path, test)


def test_while_it_is_down_ends_are_gathered_and_nothing_is_written(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.deaf["reopen"] += [broken(f"number {number}") for number in range(4)]
        desk.store.failures.append(broken())
        desk.take(accepted("new"))
        await desk.until(lambda: desk.journal.fault is not None)
        desk.take(ended("runs", attempt=5))
        assert desk.journal.defer(answered("runs"))
        writes = len(desk.store.batches)
        asked = asyncio.ensure_future(desk.journal.current("runs"))
        await desk.until(lambda: desk.journal.fault is None)
        assert not desk.store.deaf["reopen"]
        assert desk.store.batches[writes:] == [[ended("runs", attempt=5)]]
        job = await asked
        assert job is not None
        assert job.state == "completed"
        assert desk.heard[-2:] == ["up", answered("runs")]

    at_work(path, test)


def test_it_says_each_new_reason_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(desk: Desk) -> None:
        desk.store.deaf["reopen"] += [broken(), broken(), broken("another"), broken("another"), OSError("gone")]
        desk.store.failures.append(broken())
        desk.take(accepted("new"))
        await desk.until(lambda: desk.journal.fault is not None)
        await desk.until(lambda: desk.journal.fault is None)

    at_work(path, test)
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == [
        f"the journal cannot be written: {DOWN}",
        "the journal cannot be written: the disk says another",
        "the journal cannot be written: OSError: gone",
    ]


def test_the_same_reason_with_every_try_is_said_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.failures += [broken("SQLITE_FULL") for _ in range(4)]
        desk.take(ended("runs", attempt=5))
        await desk.until(lambda: desk.journal.fault is not None)
        await desk.until(lambda: desk.journal.fault is None)
        assert desk.heard == [("down", "the disk says SQLITE_FULL", [], [])] * 4 + ["up"]

    at_work(path, test)
    assert len([each for each in caplog.records if each.levelname == "ERROR"]) == 1


def test_what_waited_for_a_start_that_was_given_up_and_is_no_order_is_done(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.failures.append(broken())
        desk.take(started("waits", attempt=6))
        assert desk.journal.defer(dispatched("waits", 6))
        assert desk.journal.defer(told("waits"))
        await desk.until(lambda: desk.journal.fault is not None)
        assert desk.heard == [("down", DOWN, [], ["waits"]), told("waits")]

    at_work(path, test)


def test_a_defect_in_writing_is_a_failure_as_any_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(desk: Desk) -> None:
        desk.store.failures.append(RuntimeError("a defect"))
        desk.store.deaf["reopen"].append(RuntimeError("another"))
        desk.take(accepted("a"))
        await desk.until(lambda: desk.journal.fault is not None)
        await desk.until(lambda: desk.journal.fault is None)
        assert desk.heard == [("down", "RuntimeError: a defect", ["a"], []), "up"]
        assert states(desk) == {}

    at_work(path, test)
    assert caplog.messages.count("the journal broke") == 2


def test_a_record_that_can_never_be_written_keeps_no_other_from_the_disk(path: Path) -> None:
    unspeakable = ended("waits", was="queued", attempt=0, state="error", fault=Fault(code="x", message="\ud800"))

    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        await desk.written(unspeakable, ended("runs", attempt=5))
        assert states(desk) == AFTERWARDS
        assert desk.journal.conflicts == 1

    at_work(path, test)


def test_an_acceptance_that_can_never_be_written_is_not_acknowledged(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        await desk.held_up(accepted("good"))
        desk.take(msgspec.structs.replace(accepted("bad"), session_id="\ud800"), ended("runs", attempt=5))
        desk.journal.defer(told("bad"))
        desk.journal.defer(answered("runs"))
        desk.store.gate.set()
        await desk.until(lambda: desk.journal.fault is not None)
        await desk.until(lambda: desk.journal.fault is None)
        down = desk.heard[0]
        assert isinstance(down, tuple)
        assert (down[2], down[3], desk.heard[1:]) == (["bad"], [], ["up", answered("runs")])
        assert states(desk) == {**AFTERWARDS, "good": "queued"}

    at_work(path, test)


def test_a_full_journal_forgets_what_is_past_its_time_and_so_makes_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "IDLE_CHECKPOINT", 0.002)
    Store(path).close()

    async def test(desk: Desk) -> None:
        await desk.written(accepted("runs"), started("runs", attempt=1), accepted("old"), started("old", attempt=2))
        await desk.written(ended("old", attempt=2, at=1.0, body=b"x" * 50 * PAGE_BYTES))
        [pages] = desk.store._database.execute("PRAGMA page_count").fetchone()
        desk.store._database.execute(f"PRAGMA max_page_count={pages}")
        desk.take(ended("runs", attempt=1, body=b"y" * 20 * PAGE_BYTES, at=1e12))
        assert desk.journal.defer(answered("runs"))
        await desk.until(lambda: desk.journal.fault is not None)
        assert desk.journal.fault is not None
        assert desk.journal.fault.details["reason"] == "SQLITE_FULL"
        desk.journal._swept_at = -1e9
        await desk.until(lambda: desk.journal.fault is None)
        assert desk.heard[-2:] == ["up", answered("runs")]
        assert desk.store.known(["old", "runs"]) == {"runs"}
        assert the(desk.store, "runs").body == b"y" * 20 * PAGE_BYTES

    at_work(path, test, keep_seconds=1_000.0)


# The end, while it is down.


@pytest.mark.parametrize("disk", ["fails", "lies"])
def test_closing_tries_a_last_time(path: Path, disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "TRY_AGAIN", 1_000.0)

    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        (desk.store.failures if disk == "fails" else desk.store.lies).append(broken())
        step(desk)
        await desk.until(lambda: desk.journal.fault is not None)
        await desk.journal.close()
        assert desk.heard == [("down", DOWN, ["new"], ["waits"]), "up", answered("runs")]
        assert desk.journal.conflicts == 0

    at_work(path, test)
    store = Store(path, durability="process")
    assert {job.request_id: job.state for job in store.page()} == AFTERWARDS
    store.close()


def test_closing_gives_up_on_a_disk_that_still_fails_and_says_what_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "TRY_AGAIN", 1_000.0)

    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.failures.append(broken())
        step(desk)
        await desk.until(lambda: desk.journal.fault is not None)
        desk.store.deaf["reopen"] += [broken("still")]
        await desk.journal.close()
        assert desk.heard == [("down", DOWN, ["new"], ["waits"])]

    at_work(path, test)
    assert any(each.startswith("1 records could not be written") for each in caplog.messages)


def test_closing_while_it_is_just_asked_again_waits_for_the_answer(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.lies.append(broken())
        answers, reopen = threading.Event(), desk.store.reopen
        desk.store.reopen = lambda: (answers.wait(HANG), reopen())[1]  # type: ignore[method-assign]
        step(desk)
        await desk.until(lambda: desk.journal._asking)
        closing = asyncio.ensure_future(desk.journal.close())
        for _ in range(10):
            await asyncio.sleep(0)
        answers.set()
        await closing
        assert desk.heard == [("down", DOWN, ["new"], ["waits"]), "up", answered("runs")]
        assert desk.store.calls.count("undo") == 2, "asked once, and taken back once"
        assert desk.journal.conflicts == 0

    at_work(path, test)


def test_closing_does_not_call_it_well_while_what_was_refused_is_still_there(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await three_jobs(desk)
        desk.store.lies.append(broken())
        answers, reopen, undo = threading.Event(), desk.store.reopen, desk.store.undo

        def refusing(records: Sequence[Record]) -> None:
            if records:
                raise broken()
            undo(records)

        desk.store.reopen = lambda: (answers.wait(HANG), reopen())[1]  # type: ignore[method-assign]
        desk.store.undo = refusing  # type: ignore[method-assign]
        step(desk)
        await desk.until(lambda: desk.journal._asking)
        closing = asyncio.ensure_future(desk.journal.close())
        await asyncio.sleep(0)
        answers.set()
        await closing
        assert desk.heard == [("down", DOWN, ["new"], ["waits"])]

    at_work(path, test)


def test_a_failure_while_it_closes_is_not_tried_again(path: Path) -> None:
    async def test(desk: Desk) -> None:
        await desk.held_up(accepted("a"))
        desk.store.failures.append(broken())
        closing = asyncio.ensure_future(desk.journal.close())
        await asyncio.sleep(0)
        desk.store.gate.set()
        await closing
        assert desk.journal._retry is None
        assert desk.heard == [("down", DOWN, ["a"], [])]

    at_work(path, test)
