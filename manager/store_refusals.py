"""Which files are opened as a journal, and what SQLite's errors mean.

Whatever is refused is left as it is, so these look before SQLite does: it would already fold the log of a stranger's database into it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Final

from callpool.manager.errors import JournalConflict, JournalRefused, JournalUnavailable
from callpool.manager.mounts import network_file_system
from callpool.manager.private import open_private_dir
from callpool.manager.store_schema import APPLICATION_ID, FIRST_VERSION, VERSION

if TYPE_CHECKING:
    from pathlib import Path

HEADER_BYTES: Final = 100
"""Of every SQLite database: https://www.sqlite.org/fileformat.html, section 1.3."""
_MAGIC: Final = b"SQLite format 3\0"
_VERSION: Final = slice(60, 64)
_APPLICATION: Final = slice(68, 72)
_BEGIN_ANEW: Final = "restore it from a copy, or move it away to begin without the jobs that it held"
_ELSEWHERE: Final = "move it away, or name another directory (CALLPOOL_HOME)"


def is_there(path: Path) -> bool:
    """Whether there is a journal, or was one: a log without its file means that somebody took the file away."""
    if path.is_symlink() or path.exists():
        return True
    log = next((each for each in beside(path) if each.exists()), None)
    if log is not None:
        raise JournalRefused(
            f"{path} is gone, and {log.name} is still there",
            hint=f"put the file back, or move {log.name} away to begin without the jobs that it held",
            path=str(path),
        )
    return False


def beside(path: Path) -> list[Path]:
    """The files that SQLite keeps beside a database."""
    return [path.with_name(f"{path.name}{end}") for end in ("-wal", "-shm", "-journal")]


def refuse_place(path: Path) -> None:
    """Make the directory, and refuse one that others can enter, or where locks and syncs lie."""
    os.close(open_private_dir(path.parent, create=True))
    found = network_file_system(path.parent)
    if found is not None:
        raise JournalRefused(
            f"{path.parent} is on a network file system ({found}), where locks and syncs cannot be trusted",
            hint="name a directory on a local disk (CALLPOOL_HOME)",
            path=str(path),
            file_system=found,
        )


def refuse_header(path: Path, header: bytes) -> None:
    """Refuse a file that does not begin as a journal of ours does. Ours is moved into place with a whole header."""
    if not header:
        raise JournalRefused(
            f"{path} is empty: it was cut off, for a journal never is", hint=_BEGIN_ANEW, path=str(path)
        )
    if not header.startswith(_MAGIC) and not (len(header) < len(_MAGIC) and _MAGIC.startswith(header)):
        raise JournalRefused(f"{path} is no database at all", hint=_ELSEWHERE, path=str(path))
    if len(header) < HEADER_BYTES:
        raise damaged(path, f"it was cut off after {len(header)} bytes")
    if int.from_bytes(header[_APPLICATION], "big") != APPLICATION_ID:
        raise JournalRefused(f"{path} is a database of another program", hint=_ELSEWHERE, path=str(path))
    refuse_version(path, int.from_bytes(header[_VERSION], "big"))


def refuse_version(path: Path, version: int) -> None:
    """Refuse a schema that is newer than ours, or never was."""
    if version > VERSION:
        raise JournalRefused(
            f"{path} was written by a newer callpool: its schema is {version}, this one knows up to {VERSION}",
            hint="start the newer version again",
            path=str(path),
            version=version,
            known=VERSION,
        )
    if version < FIRST_VERSION:
        raise damaged(path, f"there never was a schema {version}")


def sync_directory(path: Path) -> None:
    """Make the name of a file durable."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damaged(path: Path, found: str) -> JournalRefused:
    """What is said of a file that is not whole."""
    return JournalRefused(f"{path} is damaged: {found[:300]}", hint=_BEGIN_ANEW, path=str(path))


class explained(contextlib.AbstractContextManager[None]):  # noqa: N801 - it reads as a word
    """Turns what SQLite says into our words."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise _explain(self._path, error) from error


def _explain(path: Path, error: sqlite3.Error) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    kind = None if code is None else code & 0xFF
    said = str(error)
    if kind == sqlite3.SQLITE_CONSTRAINT:
        return JournalConflict(f"the journal holds something else: {said}", path=str(path), reason=said)
    if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, said)
    if kind == sqlite3.SQLITE_BUSY:
        return JournalRefused(
            f"{path} is open in another program", hint="close it there: only the supervisor may", path=str(path)
        )
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return JournalUnavailable(
            f"{path} cannot be written: {said}", hint="look at its rights and at the disk", path=str(path), reason=name
        )
    if kind == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return JournalUnavailable(
            f"there is no room for the journal {path}: {said}",
            hint="free some space, raise max_bytes in [journal], or keep results for a shorter time",
            path=str(path),
            reason=name,
        )
    return JournalUnavailable(f"the journal {path} fails: {said} ({name})", path=str(path), reason=name)
