from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from callpool.manager import locks
from callpool.manager.errors import AlreadyRunning, KeyInUse, StartFailed, UnsafePath
from callpool.manager.keys import KeyFact
from callpool.manager.locks import InstanceLock, KeyLocks

ROUNDS = 50

# A process that does what its standard input says, a word a line, and answers each with one line.
ACTOR = """
import json, subprocess, sys
from pathlib import Path
from callpool.manager.errors import AlreadyRunning
from callpool.manager.locks import InstanceLock

lock = InstanceLock(Path(sys.argv[1]), sys.argv[2])
for order in sys.stdin:
    match order.strip():
        case "acquire":
            try:
                lock.acquire()
                print("won", flush=True)
            except AlreadyRunning as error:
                print("lost", json.dumps(error.details), flush=True)
        case "release":
            lock.release()
            print("done", flush=True)
        case "child":
            child = subprocess.Popen(["sleep", "60"], close_fds=False)
            print(child.pid, flush=True)
"""


class Actor:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout

    def order(self, word: str) -> None:
        self._orders.write(word + "\n")
        self._orders.flush()

    def answer(self) -> str:
        return self._answers.readline().strip()

    def ask(self, word: str) -> str:
        self.order(word)
        return self.answer()


@pytest.fixture
def place(base_folder: Path) -> Path:
    place = base_folder / "place"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def path(place: Path) -> Path:
    return place / "supervisor.lock"


@contextmanager
def actor(path: Path, address: str = "/their.sock") -> Iterator[Actor]:
    command = [sys.executable, "-c", ACTOR, str(path), address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Actor(process)
        finally:
            process.kill()


# One lock.


def test_one_holder_at_a_time_and_it_tells_who_it_is(path: Path) -> None:
    lock, other = InstanceLock(path, "/our.sock"), InstanceLock(path, "/other.sock")
    lock.acquire()
    assert (lock.held, other.held) == (True, False)
    with pytest.raises(AlreadyRunning) as caught:
        other.acquire()
    assert (caught.value.pid, caught.value.address) == (os.getpid(), "/our.sock")
    assert str(caught.value) == f"already running (pid {os.getpid()}): connect to /our.sock"
    assert not other.held
    lock.release()
    assert not lock.held
    with other:
        assert json.loads(path.read_text())["address"] == "/other.sock"
    assert path.read_bytes() == b""
    lock.release()
    other.release()


def test_the_file_is_private_and_its_directory_must_be(path: Path) -> None:
    with InstanceLock(path, ""):
        assert path.stat().st_mode & 0o777 == 0o600
    path.parent.chmod(0o777)
    with pytest.raises(UnsafePath):
        InstanceLock(path, "").acquire()


def test_a_planted_link_is_refused_and_its_target_untouched(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_text("precious")
    victim.chmod(0o600)
    path.symlink_to(victim)
    with pytest.raises(UnsafePath, match="is a symbolic link"):
        InstanceLock(path, "").acquire()
    assert victim.read_text() == "precious"


def test_taking_it_twice_is_a_defect_of_the_caller(path: Path) -> None:
    with InstanceLock(path, "") as lock:
        with pytest.raises(RuntimeError, match="holds .* already"):
            lock.acquire()
        assert lock.held


def test_of_two_processes_that_start_at_once_exactly_one_wins(path: Path) -> None:
    outcomes = []
    with actor(path, "/a.sock") as first, actor(path, "/b.sock") as second:
        actors = first, second
        for number in range(ROUNDS):
            if number % 2:
                path.unlink(missing_ok=True)  # as a cleaner of old files does; the next round makes a new one
            for each in actors if number % 3 else actors[::-1]:
                each.order("acquire")
            answers = [each.answer() for each in actors]
            assert sorted(answer.split()[0] for answer in answers) == ["lost", "won"], answers
            winner = actors[answers.index("won")]
            outcomes.append(winner)
            told = json.loads(max(answers, key=len).removeprefix("lost "))
            assert told["pid"] in {None, winner.process.pid}
            assert [each.ask("release") for each in actors] == ["done", "done"]
    assert len(outcomes) == ROUNDS


def test_the_holder_that_is_killed_frees_the_lock_and_its_record_is_taken_over(path: Path) -> None:
    with actor(path) as holder:
        assert holder.ask("acquire") == "won"
        with pytest.raises(AlreadyRunning) as caught:
            InstanceLock(path, "").acquire()
        assert (caught.value.pid, caught.value.address) == (holder.process.pid, "/their.sock")
        holder.process.kill()
        holder.process.wait()
        assert json.loads(path.read_text())["pid"] == holder.process.pid, "it had no time to tidy up"
        with InstanceLock(path, "/our.sock"):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_child_that_outlives_the_holder_does_not_keep_the_lock(path: Path) -> None:
    """The descriptor must close on exec: with `close_fds=False` a child inherits everything that may be inherited."""
    with actor(path) as holder:
        assert holder.ask("acquire") == "won"
        child = int(holder.ask("child"))
        try:
            holder.process.kill()
            holder.process.wait()
            with InstanceLock(path, ""):
                os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_record_with_the_pid_of_a_living_stranger_blocks_nothing_and_harms_nobody(path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            path.write_text(json.dumps({"pid": stranger.pid, "address": "/gone.sock", "started": 1.0}))
            path.chmod(0o600)
            with InstanceLock(path, "/our.sock"):
                assert json.loads(path.read_text())["pid"] == os.getpid()
            assert stranger.poll() is None
        finally:
            stranger.kill()


@contextmanager
def held_without_record(path: Path, content: str) -> Iterator[None]:
    """A holder between its lock and its record: the file still has what it had before."""
    path.write_text(content)
    path.chmod(0o600)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


@pytest.mark.parametrize(
    "content",
    [
        lambda: "",
        lambda: '{"pid": ',
        lambda: "\x00" * 1_000_000,
        lambda: '{"pid": -1, "address": "", "started": 0}',
        lambda: '{"pid": 99999999999999999999, "address": "", "started": 0}',
        lambda: json.dumps({"pid": dead_pid(), "address": "", "started": 0}),
    ],
    ids=["empty", "torn", "zeros", "negative", "huge", "dead"],
)
def test_a_record_that_cannot_be_the_holders_is_not_told(path: Path, content: Callable[[], str]) -> None:
    with (
        held_without_record(path, content()),
        pytest.raises(AlreadyRunning, match="just starting or stopping") as caught,
    ):
        InstanceLock(path, "").acquire()
    assert (caught.value.pid, caught.value.address) == (None, None)


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_not_believed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our opening and our locking of the file, another process removes it, and a third one locks a new one."""
    flock, removals = fcntl.flock, 3
    inodes = []

    def remove_first(descriptor: int, operation: int) -> None:
        inodes.append(os.fstat(descriptor).st_ino)
        if len(inodes) <= removals:
            path.unlink()
            if len(inodes) == removals:
                path.touch(mode=0o600)
        flock(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", remove_first)
        lock = InstanceLock(path, "")
        lock.acquire()
    assert len(inodes) == removals + 1
    assert path.stat().st_ino == inodes[-1]
    with pytest.raises(AlreadyRunning):
        InstanceLock(path, "").acquire()
    lock.release()


def test_a_file_that_is_removed_again_and_again_is_an_error_in_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(_descriptor: int, _operation: int) -> None:
        path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", remove)
        with pytest.raises(StartFailed, match="was removed 100 times"):
            InstanceLock(path, "").acquire()


def test_a_file_system_without_locks_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", unsupported)
        with pytest.raises(StartFailed, match="cannot be locked: No locks available"):
            InstanceLock(path, "").acquire()


def test_a_lock_whose_record_cannot_be_written_is_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    lock = InstanceLock(path, "")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            lock.acquire()
    assert not lock.held
    with InstanceLock(path, ""):
        pass


# The locks on keys.


def fact(fingerprint: str | None) -> KeyFact:
    return KeyFact(source="env:K", present=fingerprint is not None, fingerprint=fingerprint, host="h")


def test_a_second_supervisor_with_one_of_the_keys_is_refused_and_takes_none(base_folder: Path) -> None:
    directory = base_folder / "keys"
    first = KeyLocks(directory, {"kimi": fact("bb")}, "/first.sock")
    second = KeyLocks(directory, {"a": fact("aa"), "moon": fact("bb"), "c": fact("cc")}, "/second.sock")
    first.acquire()
    with pytest.raises(KeyInUse) as caught:
        second.acquire()
    error = caught.value
    assert (error.provider, error.pid, error.address) == ("moon", os.getpid(), "/first.sock")
    expected = f"the key of provider 'moon' is in use by another supervisor (pid {os.getpid()}): connect to /first.sock"
    assert str(error) == expected
    assert second.held == 0
    third = KeyLocks(directory, {"x": fact("aa"), "y": fact("cc")}, "/third.sock")
    third.acquire()
    assert third.held == 2
    third.release()
    first.release()
    second.acquire()
    assert second.held == 3
    second.release()
    second.release()
    assert second.held == 0


def test_providers_without_a_key_are_not_locked_and_two_with_the_same_key_are_locked_once(base_folder: Path) -> None:
    directory = base_folder / "keys"
    facts = {"fast": fact("aa"), "slow": fact("aa"), "fake": fact(None)}
    locked = KeyLocks(directory, facts, "/first.sock")
    locked.acquire()
    assert locked.held == 1
    assert [entry.name for entry in directory.iterdir()] == ["aa.lock"]
    with pytest.raises(KeyInUse, match="the key of provider 'fast' and 'slow' is in use"):
        KeyLocks(directory, facts, "/second.sock").acquire()
    locked.release()


def test_the_key_of_a_killed_supervisor_is_free(base_folder: Path) -> None:
    directory = base_folder / "keys"
    directory.mkdir(mode=0o700)
    with actor(directory / "aa.lock") as holder:
        assert holder.ask("acquire") == "won"
        ours = KeyLocks(directory, {"kimi": fact("aa")}, "/our.sock")
        with pytest.raises(KeyInUse, match=f"pid {holder.process.pid}"):
            ours.acquire()
        holder.process.kill()
        holder.process.wait()
        ours.acquire()
        ours.release()


def test_a_holder_that_just_starts_is_told_as_such(base_folder: Path) -> None:
    directory = base_folder / "keys"
    directory.mkdir(mode=0o700)
    with (
        held_without_record(directory / "aa.lock", ""),
        pytest.raises(KeyInUse, match="that is just starting") as caught,
    ):
        KeyLocks(directory, {"kimi": fact("aa")}, "").acquire()
    assert caught.value.pid is None


def test_the_directory_of_key_locks_must_be_private(base_folder: Path) -> None:
    directory = base_folder / "keys"
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(UnsafePath, match="others could enter"):
        KeyLocks(directory, {}, "").acquire()


def test_all_supervisors_take_their_keys_in_one_order(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In different orders, two supervisors could each get one key of two, and both be refused."""
    taken: list[str] = []
    acquire = InstanceLock.acquire

    def noted(lock: InstanceLock) -> None:
        taken.append(lock.path.name)
        acquire(lock)

    monkeypatch.setattr(locks.InstanceLock, "acquire", noted)
    with ExitStack() as stack:
        key_locks = KeyLocks(base_folder / "keys", {"z": fact("cc"), "a": fact("bb"), "m": fact("aa")}, "")
        key_locks.acquire()
        stack.callback(key_locks.release)
    assert taken == ["aa.lock", "bb.lock", "cc.lock"]
