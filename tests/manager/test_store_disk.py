"""Disks that get full or fail while the journal is open, and processes that are killed: what was acknowledged is there."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from callpool.manager import store_refusals
from callpool.manager.core.records import Record
from callpool.manager.errors import CallpoolError, JournalRefused, JournalUnavailable
from callpool.manager.store import PAGE_BYTES, STATEMENT_ROWS, Store
from tests.manager.journaled import accepted, copied, ended, files, started, the

ROUNDS = 12
"""Of killed writers."""


@pytest.fixture
def path(base_folder: Path) -> Path:
    place = base_folder / "state"
    place.mkdir(mode=0o700)
    return place / "journal.db"


@pytest.fixture
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of one mebibyte under the journal."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "callpool-test", str(path.parent)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr!r}")
    try:
        yield path.parent
    finally:
        subprocess.run(["umount", str(path.parent)], check=True)


def batch(name: str, rows: int = 3, *, size: int = 10_000) -> list[Record]:
    return [accepted(f"{name}-{number}", payload=b"x" * size) for number in range(rows)]


def fails(work: Callable[[], object], reason: str) -> str:
    with pytest.raises(JournalUnavailable) as caught:
        work()
    assert caught.value.reason == reason
    return str(caught.value)


def write_until_full(store: Store, name: str, *, rows: int = 3, size: int = 10_000) -> list[str]:
    """Write batches until one is refused, of which nothing is there. Returns the ids of those before it."""
    names: list[str] = []
    for number in range(10_000):
        records = batch(f"{name}-{number}", rows, size=size)
        try:
            store.write(records)
        except JournalUnavailable as error:
            assert error.reason == "SQLITE_FULL"  # noqa: PT017 - what came before it is told
            assert not store.holds(records)
            assert store.known([each.request_id for each in records]) == set()
            return names
        names += [each.request_id for each in records]
    raise AssertionError("it never got full")


# No room.


@pytest.mark.parametrize("rows", [3, STATEMENT_ROWS + 1])
def test_at_its_bound_nothing_is_half_written_and_with_room_it_goes_on(path: Path, rows: int) -> None:
    store = Store(path, durability="process", max_bytes=200 * PAGE_BYTES)
    names = write_until_full(store, "first", rows=rows, size=2_000)
    assert names
    assert store.known(names) == set(names)
    assert store._database.execute("PRAGMA page_count").fetchone()[0] <= 200
    store.undo([])  # a probe says that it can be written: it needs no room
    store.write([started(names[0], attempt=1), ended(names[0], attempt=1)])
    assert store.sweep(1e12) == 1
    for name in names[1:]:
        store._database.execute("DELETE FROM jobs WHERE request_id = ?", (name,))
    store.write(batch("later", rows, size=2_000))
    assert store.integrity() == []
    store.reopen()
    write_until_full(store, "last")
    store.close()


def test_on_a_full_disk_nothing_is_half_written_and_with_room_it_goes_on(small_disk: Path, path: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 400_000)
    with closing(Store(path)) as store:
        names = write_until_full(store, "first")
        assert "there is no room for the journal" in fails(lambda: store.write(batch("more")), "SQLITE_FULL")
        assert store.known(names) == set(names)
        assert store.integrity() == []
        filler.unlink()
        store.write(batch("later"))
        names += [each.request_id for each in batch("later")]
        store.reopen()
        assert store.known(names) == set(names)
        assert store.integrity() == []
        names += write_until_full(store, "last")
        with closing(Store(copied(path, small_disk.parent / "copy"))) as copy:
            assert copy.known(names) == set(names), "a crash at this moment loses nothing"
    before = files(small_disk)
    assert "there is no room for the journal" in fails(lambda: Store(path), "SQLITE_IOERR_SHMSIZE")
    assert files(small_disk) == before
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    with closing(Store(path)) as again:
        assert again.known(names) == set(names)


def test_no_journal_is_begun_where_there_is_no_room_for_one(small_disk: Path, path: Path) -> None:
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4_096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    with pytest.raises(CallpoolError) as caught:
        Store(path)
    assert caught.value.reason == "SQLITE_FULL"
    assert not path.exists()
    filler.unlink()
    Store(path).close()


BOUNDED = """
import resource, signal, sys
from pathlib import Path
from callpool.manager.core.messages import Submit
from callpool.manager.core.records import JobAccepted
from callpool.manager.errors import JournalUnavailable
from callpool.manager.store import Store

def batch(number):
    return [JobAccepted(f"{number}-{n}", "c", Submit(f"{number}-{n}", "p", "m", b"x" * 5000), b"f" * 16, "s", 1.0) for n in range(3)]

assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN, "Python would be killed"
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
number = 0
try:
    while True:
        store.write(batch(number))
        number += 1
except JournalUnavailable as error:
    print(number, error.reason)
assert not store.holds(batch(number)) and store.known([f"{number}-0"]) == set()
assert len(store.page(limit=10_000)) == 3 * number
try:
    store.reopen()
    store.undo([])
except JournalUnavailable as error:
    print("closed", error.reason)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.reopen()
assert len(store.page(limit=10_000)) == 3 * number
store.write(batch(number))
print(store.integrity(), len(store.page(limit=10_000)) == 3 * (number + 1))
store.close()
"""


def test_a_write_that_the_system_refuses_is_an_error_of_the_disk_and_kills_nobody(path: Path) -> None:
    """A limit of file sizes stands for all that goes wrong below: it is no lack of room, so the file is looked at afresh."""
    done = subprocess.run([sys.executable, "-c", BOUNDED, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.split()[1] == "SQLITE_IOERR_WRITE"
    assert int(first.split()[0]) > 3
    assert last == "[] True"


# What SQLite says, and what we say.


@pytest.mark.parametrize(
    ("code", "name", "kind", "words"),
    [
        (sqlite3.SQLITE_FULL, "SQLITE_FULL", JournalUnavailable, "there is no room for the journal"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, "SQLITE_IOERR_SHMSIZE", JournalUnavailable, "there is no room for the journal"),
        (sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC", JournalUnavailable, r"fails: said \(SQLITE_IOERR_FSYNC\)"),
        (sqlite3.SQLITE_NOMEM, "SQLITE_NOMEM", JournalUnavailable, "fails"),
        (sqlite3.SQLITE_READONLY_DBMOVED, "SQLITE_READONLY_DBMOVED", JournalUnavailable, "cannot be written"),
        (sqlite3.SQLITE_CANTOPEN, "SQLITE_CANTOPEN", JournalUnavailable, "cannot be written"),
        (sqlite3.SQLITE_BUSY, "SQLITE_BUSY", JournalRefused, "is open in another program"),
        (sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT", JournalRefused, "is damaged: said"),
        (sqlite3.SQLITE_NOTADB, "SQLITE_NOTADB", JournalRefused, "is damaged: said"),
        (None, "OperationalError", JournalUnavailable, r"fails: said \(OperationalError\)"),
    ],
)
def test_every_error_of_sqlite_has_words_of_ours(
    code: int | None, name: str, kind: type[CallpoolError], words: str
) -> None:
    error = sqlite3.OperationalError("said")
    if code is not None:
        error.sqlite_errorcode, error.sqlite_errorname = code, name
    with pytest.raises(kind, match=words) as caught, store_refusals.explained(Path("journal.db")):
        raise error
    assert caught.value.__cause__ is error
    if kind is JournalUnavailable:
        assert caught.value.reason == name


def test_a_file_that_cannot_be_opened_again_is_asked_again(path: Path) -> None:
    store = Store(path, durability="process")
    store.write([accepted()])
    away = path.with_name("away.db")
    store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.rename(away)
    with pytest.raises(FileNotFoundError):
        store.reopen()
    assert "closed database" in fails(lambda: store.write([accepted("b")]), "ProgrammingError")
    with pytest.raises(JournalUnavailable):
        store.page()
    away.rename(path)
    store.reopen()
    store.write([accepted("b")])
    assert store.known(["a", "b"]) == {"a", "b"}
    store.close()


def test_a_file_that_was_damaged_meanwhile_is_not_written_to(path: Path) -> None:
    store = Store(path, durability="process")
    store.write([accepted()])
    store._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    path.write_bytes(content[: 5 * PAGE_BYTES])
    with pytest.raises(JournalRefused, match="is damaged"):
        store.reopen()
    assert path.read_bytes() == content[: 5 * PAGE_BYTES]
    path.write_bytes(content)
    store.reopen()
    assert the(store).state == "queued"
    store.close()


def test_closing_waits_for_no_disk_that_fails(path: Path) -> None:
    store = Store(path, durability="process")
    store.write([accepted()])
    store._database.close()
    store.close()
    later = Store(path)
    assert the(later).state == "queued"
    later.close()


# Killed.

WRITER = """
import sys
from pathlib import Path
from callpool.manager.core.messages import Submit
from callpool.manager.core.records import AttemptStarted, JobAccepted, JobEnded
from callpool.manager.store import Store

store, first = Store(Path(sys.argv[1]), durability="process"), int(sys.argv[2])
for number in range(first, 1_000_000):
    rows = (1, 3, 40)[number % 3]
    names = [f"{number}-{row}" for row in range(rows)]
    if number % 50 == 0:
        store.checkpoint()
    records = [JobAccepted(name, "c", Submit(name, "p", "m", b"x" * 900), b"f" * 16, "s", 1.0) for name in names]
    records += [AttemptStarted(name, 0, number + 1, 1, 2.0) for name in names]
    print("try", number, flush=True)
    store.write(records)
    print("did", number, flush=True)
    store.write([JobEnded(name, "started", number + 1, "completed", 3.0, body=b"y" * 700) for name in names])
    print("end", number, flush=True)
"""


def rows_of(number: int) -> int:
    return (1, 3, 40)[number % 3]


def test_what_was_acknowledged_is_there_after_a_kill_at_any_moment(path: Path, seed: int) -> None:
    choose = random.Random(seed)
    said: dict[str, set[int]] = {"try": set(), "did": set(), "end": set()}
    for _ in range(ROUNDS):
        first = max(said["try"], default=-1) + 1
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(choose.randrange(1, 150))]
            assert lines[-1], "it ended by itself"
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.readlines()
        for line in lines:
            if line.endswith(b"\n"):
                word, _, serial = line.decode().partition(" ")
                said[word].add(int(serial))
        store = Store(path, durability="process")
        assert store.integrity() == []
        found: dict[int, list[str]] = {}
        for job in store.page(limit=1_000_000):
            found.setdefault(int(job.request_id.partition("-")[0]), []).append(job.state)
        store.close()
        assert said["did"] <= set(found) <= said["try"]
        for number, states in found.items():
            assert len(states) == rows_of(number), "a batch is half there"
            assert len(set(states)) == 1, "a batch is half over"
            assert states[0] == "completed" or number not in said["end"]
    assert len(said["end"]) > ROUNDS
