"""A journal of an older version becomes one of ours, a version at a time, each whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from callpool.manager import store as store_module
from callpool.manager import store_refusals
from callpool.manager.errors import JournalRefused, JournalUnavailable
from callpool.manager.store import Store
from callpool.manager.store_schema import FIRST_VERSION, MIGRATIONS, VERSION
from tests.manager.journaled import accepted, the, whole

SECOND = "ALTER TABLE jobs ADD COLUMN note TEXT NOT NULL DEFAULT 'none'; CREATE TABLE second (x);"
BROKEN = "INSERT INTO second VALUES (3); CREATE TABLE third (x); INSERT INTO nowhere VALUES (1);"
THIRD = "INSERT INTO second VALUES (3); CREATE TABLE third (x);"


@pytest.fixture
def path(base_folder: Path) -> Path:
    path = base_folder / "state" / "journal.db"
    with closing(Store(path, durability="process")) as store:
        store.write([accepted("waits"), *whole("over")])
    return path


def migrates(monkeypatch: pytest.MonkeyPatch, *steps: str) -> None:
    """From the version that there is, by these."""
    for module in (store_module, store_refusals):
        monkeypatch.setattr(module, "VERSION", VERSION + len(steps))
    monkeypatch.setattr(store_module, "MIGRATIONS", {VERSION + number: step for number, step in enumerate(steps)})


def version(store: Store) -> int:
    [number] = store._database.execute("PRAGMA user_version").fetchone()
    return int(number)


def tables(store: Store) -> set[str]:
    return {row[0] for row in store._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_every_older_version_has_a_way_to_ours() -> None:
    assert set(MIGRATIONS) == set(range(FIRST_VERSION, VERSION))


def test_it_is_brought_up_a_version_at_a_time_and_keeps_its_jobs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migrates(monkeypatch, SECOND, THIRD)
    with closing(Store(path)) as store:
        assert version(store) == VERSION + 2
        assert store._database.execute("SELECT x FROM second").fetchall() == [(3,)]
        assert store._database.execute("SELECT DISTINCT note FROM jobs").fetchall() == [("none",)]
        assert (the(store, "waits").state, the(store, "over").state) == ("queued", "completed")
        assert store.integrity() == []
    with closing(Store(path)) as store:
        assert version(store) == VERSION + 2
    monkeypatch.undo()
    with pytest.raises(JournalRefused, match="written by a newer callpool"):
        Store(path)


def test_a_step_that_fails_leaves_the_version_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migrates(monkeypatch, SECOND, BROKEN)
    with pytest.raises(JournalUnavailable, match="no such table: main.nowhere|no such table: nowhere"):
        Store(path)
    migrates(monkeypatch, SECOND)
    with closing(Store(path)) as store:
        assert version(store) == VERSION + 1
        assert "third" not in tables(store)
        assert store._database.execute("SELECT x FROM second").fetchall() == []
    migrates(monkeypatch, SECOND, THIRD)
    with closing(Store(path)) as store:
        assert version(store) == VERSION + 2
        assert "third" in tables(store)


ENDLESS = """
import sys
from pathlib import Path
from callpool.manager import store, store_refusals
store.VERSION = store_refusals.VERSION = store.VERSION + 1
store.MIGRATIONS = {store.VERSION - 1: '''
    CREATE TABLE second (x);
    WITH RECURSIVE endless(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM endless) INSERT INTO second SELECT randomblob(4000) FROM endless;
'''}
store.Store(Path(sys.argv[1]))
"""


def test_a_kill_in_the_middle_leaves_the_version_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = path.with_name("journal.db-wal")
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)]) as process:
        while size(log) < 4_000_000:  # until much of it is in the log; and it has no end
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    with closing(Store(path)) as store:
        assert version(store) == VERSION
        assert "second" not in tables(store)
        assert (the(store, "waits").state, the(store, "over").state) == ("queued", "completed")
    migrates(monkeypatch, SECOND)
    with closing(Store(path)) as store:
        assert version(store) == VERSION + 1
