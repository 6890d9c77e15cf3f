"""One supervisor a directory, one ledger a provider key: locks that the kernel frees when their holder dies.

The lock is `flock` on an open file, held for life. What is written in the file (pid, address) only helps people: no
start is ever refused, and no process ever ended, because of it. A holder that was killed leaves the file behind,
unlocked, and the next one takes it over. The files are never removed here: whoever removes one that another process
has opened and not yet locked lets two of them hold "the" lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, Self

import msgspec

from callpool.manager.errors import AlreadyRunning, KeyInUse, StartFailed
from callpool.manager.keys import KeyFact
from callpool.manager.private import ensure_private_dir, open_private_file

_MOST_TRIES: Final = 100
"""Each further try means that somebody removed the file in the microseconds between our opening and locking it."""
_LONGEST_RECORD: Final = 65_536


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock file tells about its holder; never a reason to refuse or to kill."""

    pid: Annotated[int, msgspec.Meta(gt=0, lt=2**31)]
    address: str
    """Where to connect to the holder; empty for one that only works on what the lock guards."""
    started: float
    """Seconds since the epoch."""


class InstanceLock:
    """An exclusive lock on the file `path`, whose directory must be private (`ensure_private_dir`).

    It belongs to the open file, so a child made by fork without exec shares it: take it in the process that shall hold
    it. Children that are executed do not inherit it.
    """

    def __init__(self, path: Path, address: str) -> None:
        """`address` is empty where the holder is no supervisor, and only works on what the lock guards."""
        self.path = path
        self._address = address
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock, or raise `AlreadyRunning` at once: `pid` and `address` are None if the holder just begins."""
        if self.held:
            raise RuntimeError(f"this object holds {self.path} already")
        for _try in range(_MOST_TRIES):
            descriptor = open_private_file(self.path, os.O_RDWR | os.O_CREAT)
            try:
                if self._lock(descriptor):
                    self._tell(descriptor)
                    self._descriptor = descriptor
                    return
            finally:
                if not self.held:
                    os.close(descriptor)
        raise StartFailed(f"{self.path} was removed {_MOST_TRIES} times while it was being locked: what removes it?")

    def release(self) -> None:
        """Free the lock; without it, nothing happens. The file stays, empty."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            try:
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _lock(self, descriptor: int) -> bool:
        """True with the lock; False if what was locked is no longer the file at `path`, so that it guards nothing."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _already_running(self.path, _holder(descriptor)) from None
        except OSError as error:
            if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
                raise
            raise StartFailed(
                f"{self.path} cannot be locked: {error.strerror}", hint="use a directory on a local file system"
            ) from None
        ours = os.fstat(descriptor)
        try:
            named = self.path.lstat()
        except FileNotFoundError:
            return False
        return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)

    def _tell(self, descriptor: int) -> None:
        record = msgspec.json.encode(Holder(pid=os.getpid(), address=self._address, started=time.time()))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, record, 0)


class KeyLocks:
    """The locks on all keys of one supervisor: all of them, or none. `directory` is `paths.user_lock_dir`."""

    def __init__(self, directory: Path, facts: Mapping[str, KeyFact], address: str) -> None:
        self._directory = directory
        # Two providers may share one key and so one lock: on two open files, a process would shut itself out.
        self._providers: dict[str, list[str]] = {}
        for provider, fact in facts.items():
            if fact.fingerprint is not None:
                self._providers.setdefault(fact.fingerprint, []).append(provider)
        self._address = address
        self._held: list[InstanceLock] = []

    @property
    def held(self) -> int:
        """How many locks are held: 0, or one for each key."""
        return len(self._held)

    def acquire(self) -> None:
        """Take every lock at once. Raises `KeyInUse` with `provider`, `pid` and `address`, and then holds none."""
        ensure_private_dir(self._directory)
        try:
            # In one order everywhere: of two that want the same keys, the first to get one gets all of them.
            for fingerprint, providers in sorted(self._providers.items()):
                lock = InstanceLock(self._directory / f"{fingerprint}.lock", self._address)
                try:
                    lock.acquire()
                except AlreadyRunning as error:
                    raise _key_in_use(providers, error) from None
                self._held.append(lock)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Free all locks; without any, nothing happens."""
        while self._held:
            self._held.pop().release()


def _holder(descriptor: int) -> Holder | None:
    """What the file tells, if that can be true: a new holder locks first and writes next, over what a dead one left."""
    try:
        holder = msgspec.json.decode(os.pread(descriptor, _LONGEST_RECORD, 0), type=Holder)
    except msgspec.DecodeError:
        return None
    try:
        os.kill(holder.pid, 0)  # signal 0 reaches nobody: it asks whether there is such a process
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # there is, of another user
    return holder


def _already_running(path: Path, holder: Holder | None) -> AlreadyRunning:
    if holder is None:
        return AlreadyRunning(f"a supervisor is just starting or stopping: it holds {path}", pid=None, address=None)
    if not holder.address:
        return AlreadyRunning(
            f"process {holder.pid} works on the journal: it holds {path}",
            hint="try again when it has ended: it is a `callpool journal` command",
            pid=holder.pid,
            address=None,
        )
    return AlreadyRunning(
        f"already running (pid {holder.pid}): connect to {holder.address}",
        hint=f"it holds {path}; stop it with `callpool stop`, or use another directory",
        pid=holder.pid,
        address=holder.address,
    )


def _key_in_use(providers: list[str], error: AlreadyRunning) -> KeyInUse:
    names = " and ".join(repr(provider) for provider in providers)
    who = "a supervisor that is just starting" if error.pid is None else f"another supervisor (pid {error.pid})"
    where = "" if error.address is None else f": connect to {error.address}"
    return KeyInUse(
        f"the key of provider {names} is in use by {who}{where}",
        hint="one key has one ledger: two supervisors on it would make the provider refuse both",
        provider=providers[0],
        pid=error.pid,
        address=error.address,
    )
