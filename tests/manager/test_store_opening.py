"""What is no journal of ours, or no whole one, is refused in words of its own, and left as it is to the byte."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from callpool.manager import store as store_module
from callpool.manager.errors import CallpoolError, JournalRefused, JournalUnavailable, UnsafePath
from callpool.manager.mounts import file_system_of, network_file_system
from callpool.manager.store import PAGE_BYTES, Store
from tests.manager.journaled import accepted, copied, ended, files, started, the, whole

TABLE_LEAF = 13
"""First byte of a page with rows of a table."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def path(base_folder: Path) -> Path:
    place = base_folder / "state"
    place.mkdir(mode=0o700)
    return place / "journal.db"


@pytest.fixture
def journal(path: Path) -> Path:
    """A file with some jobs, closed."""
    store = Store(path, durability="process")
    for number in range(30):
        store.write([accepted(f"r{number}", payload=b"x" * 600 * number)])
    store.write([started("r1", attempt=1), ended("r1", body=b"y" * 9_000)])
    store.close()
    return path


def refused(path: Path, kind: type[CallpoolError] = JournalRefused, **options: Any) -> str:
    """The message with which it is refused; and nothing was changed, nor left beside it."""
    before = files(path.parent)
    with pytest.raises(kind) as caught:
        Store(path, **options)
    assert files(path.parent) == before
    assert caught.value.hint or kind is UnsafePath, "it says what to do"
    return str(caught.value)


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


def foreign(path: Path, *, log: bool) -> None:
    """Another program's database, closed or as a crash leaves it."""
    place = path.with_name("theirs")
    place.mkdir(mode=0o700)
    with closing(sqlite3.connect(place / path.name, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE theirs AS SELECT 1")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if log:
            database.execute("INSERT INTO theirs VALUES (2)")
        for each in place.iterdir():
            if log or each.name == path.name:
                put(path.with_name(each.name), each.read_bytes())


# Not ours.


@pytest.mark.parametrize("left", ["closed", "after a crash"])
def test_a_database_of_another_program(path: Path, left: str) -> None:
    foreign(path, log=left == "after a crash")
    assert path.with_name("journal.db-wal").exists() == (left == "after a crash")
    assert refused(path) == f"{path} is a database of another program"


@pytest.mark.parametrize(
    "content", [random.Random(1).randbytes(20_000), b"a text\n", b"S", b"\0" * 8_192, b"SQLite format 2\0"]
)
def test_no_database_at_all(path: Path, content: bytes) -> None:
    put(path, content)
    if content != b"S":
        assert refused(path) == f"{path} is no database at all"
    else:
        assert refused(path) == f"{path} is damaged: it was cut off after 1 bytes"


def test_an_empty_file(path: Path) -> None:
    put(path, b"")
    assert refused(path) == f"{path} is empty: it was cut off, for a journal never is"


def test_a_file_of_a_newer_version(journal: Path) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as database:
        database.execute("PRAGMA user_version=7")
    with pytest.raises(
        JournalRefused, match="written by a newer callpool: its schema is 7, this one knows up to 1"
    ) as caught:
        Store(journal)
    assert (caught.value.version, caught.value.known) == (7, 1)
    assert "newer" in refused(journal)


def test_a_newer_version_that_only_the_log_tells_of(journal: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as database:
        database.execute("PRAGMA user_version=7")
        copy = copied(journal, tmp_path / "copy")
    assert int.from_bytes(copy.read_bytes()[60:64], "big") == 1
    assert "written by a newer callpool" in refused(copy)


def test_a_version_that_never_was(journal: Path) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as database:
        database.execute("PRAGMA user_version=0")
    assert refused(journal) == f"{journal} is damaged: there never was a schema 0"


def test_a_log_whose_file_is_gone(path: Path) -> None:
    for end in ("-wal", "-shm", "-journal"):
        log = path.with_name(path.name + end)
        put(log, b"what was in it")
        assert refused(path) == f"{path} is gone, and {log.name} is still there"
        log.unlink()
    Store(path).close()


# No file of ours alone.


def test_a_link_is_refused_and_its_target_is_left(journal: Path, path: Path) -> None:
    real = journal.rename(path.with_name("real.db"))
    path.symlink_to(real)
    assert refused(path, UnsafePath) == f"{path} is a symbolic link"
    real.unlink()
    assert refused(path, UnsafePath) == f"{path} is a symbolic link", "one to nowhere is not made into a file"
    assert not real.exists()


def test_what_is_no_file(path: Path) -> None:
    path.mkdir()
    assert refused(path, UnsafePath) == f"{path} cannot be opened: Is a directory"
    path.rmdir()
    os.mkfifo(path, 0o600)
    assert refused(path, UnsafePath) == f"{path} is not a regular file"


def test_a_file_that_others_could_read(journal: Path) -> None:
    journal.chmod(0o644)
    assert refused(journal, UnsafePath) == f"{journal} has mode 0644: others could read it"


def test_a_directory_that_others_could_enter(journal: Path) -> None:
    journal.parent.chmod(0o755)
    assert refused(journal, UnsafePath) == f"{journal.parent} has mode 0755: others could enter it"


@as_root
def test_a_file_or_a_directory_of_somebody_else(journal: Path) -> None:
    os.chown(journal, 12_345, -1)
    assert refused(journal, UnsafePath) == f"{journal} belongs to user 12345, not to us (0)"
    os.chown(journal, 0, -1)
    os.chown(journal.parent, 12_345, -1)
    assert refused(journal, UnsafePath) == f"{journal.parent} belongs to user 12345, not to us (0)"
    os.chown(journal.parent, 0, -1)


@contextmanager
def unchangeable(path: Path) -> Iterator[None]:
    """Binds root, too."""
    if os.geteuid() != 0:
        mode = path.stat().st_mode
        path.chmod(0o500 if path.is_dir() else 0o400)
        try:
            yield
        finally:
            path.chmod(mode)
        return
    try:
        done = subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("without chattr, nothing keeps root from writing")
    if done.returncode:
        pytest.skip(f"this file system has no immutable files: {done.stderr!r}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


def test_a_file_that_cannot_be_written(journal: Path) -> None:
    with unchangeable(journal):
        assert refused(journal, UnsafePath).startswith(f"{journal} cannot be opened: ")
    Store(journal).close()


def test_a_directory_that_cannot_be_written(journal: Path) -> None:
    with unchangeable(journal.parent):
        message = refused(journal, JournalUnavailable)
        assert message == f"{journal} cannot be written: unable to open database file"
        missing = journal.with_name("missing.db")
        assert refused(missing, UnsafePath).startswith(f"{missing}.new cannot be opened: ")
    Store(journal).close()


HOLDER = """
import sqlite3, sys
from pathlib import Path
from callpool.manager.store import Store
if sys.argv[2] == "supervisor":
    held = Store(Path(sys.argv[1]))
else:
    held = sqlite3.connect(sys.argv[1], isolation_level=None)
    held.execute("BEGIN" if sys.argv[2] == "reader" else "BEGIN IMMEDIATE")
    held.execute("SELECT count(*) FROM jobs").fetchone()
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("who", ["supervisor", "reader", "writer"])
def test_a_file_that_another_process_has_open(journal: Path, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.0)
    command = [sys.executable, "-c", HOLDER, str(journal), who]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        before = {name: content for name, (_, content) in files(journal.parent).items()}
        with pytest.raises(JournalRefused) as caught:
            Store(journal)
        assert str(caught.value) == f"{journal} is open in another program"
        after = {name: content for name, (_, content) in files(journal.parent).items()}
        assert {**after, "journal.db-shm": b""} == {**before, "journal.db-shm": b""}, (
            "readers note themselves in the index"
        )
        holder.stdin.close()
    store = Store(journal)
    assert len(store.page()) == 30
    store.close()


# Places.


def planted(monkeypatch: pytest.MonkeyPatch, *mounts: tuple[str, str]) -> None:
    table = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: table)


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "CIFS", "9p", "ceph", "fuse.sshfs", "fuse.s3fs", "fuse.cephfs", "smb3"]
)
def test_a_network_file_system(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, ("/", "ext4"), (str(path.parent.parent), kind))
    message = refused(path)
    assert message == f"{path.parent} is on a network file system ({kind}), where locks and syncs cannot be trusted"
    assert not path.exists()


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "apfs", "zfs", "fuse.ntfs-3g", "fuseblk", ""]
)
def test_a_disk_of_this_machine(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, ("/", "nfs"), (str(path.parent), kind))
    assert network_file_system(path.parent) is None


def test_the_innermost_and_last_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, link = tmp_path / "inside", tmp_path / "link"
    inside.mkdir()
    link.symlink_to(inside)
    beside = str(inside) + "-beside"
    planted(
        monkeypatch,
        (str(inside), "first"),
        (str(tmp_path), "outer"),
        (str(inside), "last"),
        ("/", "root"),
        (beside, "x"),
    )
    assert file_system_of(inside) == file_system_of(link) == file_system_of(inside / "missing") == "last"
    assert file_system_of(tmp_path) == "outer"
    assert file_system_of(tmp_path / "inside-out") == "outer", "its name only begins as that of another"
    assert file_system_of(Path("/")) == "root"
    planted(monkeypatch)
    assert network_file_system(inside) is None


# Not whole.


def test_a_file_that_was_cut_off_anywhere(journal: Path, seed: int) -> None:
    content = journal.read_bytes()
    pages = len(content) // PAGE_BYTES
    assert pages > 30
    choose = random.Random(seed)
    sizes = [page * PAGE_BYTES for page in range(1, pages)]
    sizes += [1, 15, 16, 50, 99, 100, 101, 511, 512, 513, len(content) - 1]
    sizes += [choose.randrange(1, len(content)) for _ in range(40)]
    for size in sizes:
        put(journal, content[:size])
        assert refused(journal).startswith(f"{journal} is damaged: "), size
    put(journal, content)
    Store(journal).close()


def test_a_page_that_is_overwritten(journal: Path, seed: int) -> None:
    store = Store(journal)
    [tables] = store._database.execute("SELECT group_concat(rootpage) FROM sqlite_master WHERE rootpage > 0").fetchone()
    store.close()
    content = journal.read_bytes()
    for page in map(int, tables.split(",")):
        start = (page - 1) * PAGE_BYTES
        put(journal, content[:start] + random.Random(seed).randbytes(PAGE_BYTES) + content[start + PAGE_BYTES :])
        assert refused(journal).startswith(f"{journal} is damaged: "), page


def test_a_damaged_file_keeps_its_log(journal: Path, tmp_path: Path) -> None:
    """Whoever closes a database copies the log into it: the one good copy of the last commits would be gone."""
    store = Store(journal)
    store.write(whole("late", attempt=9))
    copy = copied(journal, tmp_path / "copy")
    store.close()
    content, log = copy.read_bytes(), copy.with_name("journal.db-wal").read_bytes()
    newer = {int.from_bytes(log[at : at + 4], "big") for at in range(32, len(log), PAGE_BYTES + 24)}
    seen = 0
    for page in set(range(2, 40)) - newer:
        start = (page - 1) * PAGE_BYTES
        put(copy, content[:start] + b"\0" * PAGE_BYTES + content[start + PAGE_BYTES :])
        put(copy.with_name("journal.db-wal"), log)
        if content[start] == TABLE_LEAF:
            assert " is damaged: " in refused(copy), page
            seen += 1
    assert seen


def test_a_file_whose_last_page_is_in_its_log_may_end_in_the_middle_of_it(journal: Path, tmp_path: Path) -> None:
    """A disk that got full while the log was copied into it leaves that."""
    store = Store(journal)
    store.write([accepted("late", payload=b"z" * 50_000)])
    copy = copied(journal, tmp_path / "copy")
    store.close()
    put(copy, copy.read_bytes() + b"z" * 1_000)
    later = Store(copy)
    assert the(later, "late").submit == accepted("late", payload=b"z" * 50_000).submit
    assert later.integrity() == []
    later.close()


@pytest.mark.parametrize("harm", ["cut off", "a byte changed"])
def test_a_log_that_is_not_whole_gives_an_earlier_state(path: Path, tmp_path: Path, seed: int, harm: str) -> None:
    store = Store(path, durability="process")
    states = [store.page()]
    for number in range(8):
        store.write([accepted(f"a{number}"), accepted(f"b{number}", payload=b"x" * 3_000)])
        states.append(store.page())
    copy = copied(path, tmp_path / "copy")
    store.close()
    file, log = copy.read_bytes(), copy.with_name("journal.db-wal").read_bytes()
    frame = PAGE_BYTES + 24
    choose = random.Random(seed)
    at = [*range(32, len(log), 3 * frame), *(choose.randrange(len(log)) for _ in range(20)), 0]
    last = 0
    for offset in sorted(at):
        put(copy, file)
        put(copy.with_name("journal.db-wal"), harmed(log, offset, harm))
        later = Store(copy, durability="process")
        assert later.page() in states[last:], "never earlier than with a harm before this one"
        last = states.index(later.page())
        assert later.integrity() == []
        later.close()
    assert last >= len(states) - 3


def harmed(log: bytes, offset: int, harm: str) -> bytes:
    if harm == "cut off":
        return log[:offset]
    return log[:offset] + bytes([log[offset] ^ 0xFF]) + log[offset + 1 :]


# Full.


def test_a_file_that_has_reached_its_bound_still_tells_and_forgets(journal: Path) -> None:
    store = Store(journal, max_bytes=PAGE_BYTES)
    assert len(store.page()) == 30
    with pytest.raises(JournalUnavailable, match="there is no room for the journal") as caught:
        store.write([accepted("new", payload=b"x" * 100_000)])
    assert caught.value.reason == "SQLITE_FULL"
    store.write([started("r2", attempt=2), ended("r2", attempt=2)])
    assert store.sweep(1e12) == 2
    store.close()


# One after the other.


def test_whatever_was_refused_can_be_put_right(journal: Path, path: Path) -> None:
    content = journal.read_bytes()
    wrongs: list[Callable[[], object]] = [
        lambda: put(path, b""),
        lambda: put(path, b"text"),
        lambda: put(path, content[:9_000]),
    ]
    for wrong in wrongs:
        wrong()
        refused(path)
        put(path, content)
        store = Store(path)
        assert the(store, "r1").state == "completed"
        store.close()
        content = path.read_bytes()
