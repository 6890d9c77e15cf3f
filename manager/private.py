"""Directories and files that no other user can read, replace or slip a link under.

A check of a path followed by a use of the same path can be raced: in between, another user swaps a component. So every
path is walked here from the root, one component at a time, by directory descriptors: each is opened without following
links, examined through its descriptor, and the next one is opened relative to it. What was examined is what is used.

Rules. A parent belongs to root or to us, and others cannot write to it unless it is sticky (as /tmp is: there only
owners remove or rename their entries). A link among the parents is followed if root or we made it. The last component
is a real directory of ours, mode 0700.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from callpool.manager.errors import UnsafePath

LARGEST_PRIVATE_FILE: Final = 8_192
"""Bytes of a file that holds a secret; more is another kind of file."""
_MOST_LINKS: Final = 40  # as the kernel allows in one path
_REFUSALS: Final = frozenset({
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENXIO, errno.EPERM, errno.EROFS,
})  # fmt: skip
"""What the path itself is at fault for; the rest (no descriptors, no space, …) goes to the caller as it is."""
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022
_O_PATH: Final = getattr(os, "O_PATH", os.O_RDONLY)  # Linux: opens a directory that we may pass but not list
_DIRECTORY: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def ensure_private_dir(path: Path) -> None:
    """Make `path` and its missing parents, each 0700, and prove that it is private. Raises `UnsafePath`."""
    os.close(open_private_dir(path, create=True))


def check_private_dir(path: Path) -> None:
    """Prove that an existing directory is private. Raises `UnsafePath`, or FileNotFoundError if it is not there."""
    os.close(open_private_dir(path))


def open_private_dir(path: Path, *, create: bool = False) -> int:
    """A descriptor of a directory that is proven to be private, for use as `dir_fd`; the caller closes it.

    Raises `UnsafePath` with the reason and how to mend it. Without `create`, a missing component is FileNotFoundError.
    """
    walk = _Walk(path, create=create)
    try:
        walk.run()
    except BaseException:
        os.close(walk.descriptor)
        raise
    return walk.descriptor


def open_private_file(path: Path, flags: int, mode: int = 0o600) -> int:
    """A descriptor of a regular file of ours in a private directory; links are never followed, not even our own.

    `flags` and `mode` are those of `os.open`. Raises `UnsafePath`, or what `os.open` raises (FileNotFoundError, …).
    """
    directory = open_private_dir(path.parent)
    try:
        # O_TRUNC waits until the file has passed: a wrong one must come out of this unharmed.
        descriptor = _open_file(path, path.name, flags & ~os.O_TRUNC, mode, directory)
    finally:
        os.close(directory)
    if flags & os.O_TRUNC:
        os.ftruncate(descriptor, 0)
    return descriptor


def write_private_file(path: Path, content: bytes) -> None:
    """Put a file of mode 0600 into a private directory, whole or not at all; an older file or link is replaced."""
    directory = open_private_dir(path.parent)
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    try:
        # O_EXCL refuses any existing name, links included.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.unlink(temporary, dir_fd=directory)
            raise
    finally:
        os.close(directory)


def read_private_file(path: Path) -> bytes:
    """A small file that only we can read, such as a provider key; it may lie anywhere, its own owner and mode count.

    Raises `UnsafePath` if it is a link, no regular file, not ours, open to others or over 8 KiB; FileNotFoundError.
    """
    descriptor = _open_file(path, path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(LARGEST_PRIVATE_FILE + 1)
    if len(content) > LARGEST_PRIVATE_FILE:
        raise UnsafePath(f"{path} is larger than {LARGEST_PRIVATE_FILE} bytes: it does not hold one secret")
    return content


def _open_file(path: Path, name: str | Path, flags: int, mode: int = 0o600, directory: int | None = None) -> int:
    """Open `name` in `directory` (or as it is) and examine what was opened; `path` is for messages."""
    try:
        # O_NONBLOCK: a named pipe must not make us wait; regular files do not mind.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, mode, dir_fd=directory)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        reason = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be opened: {error.strerror}"
        raise UnsafePath(f"{path} {reason}") from None
    complaint = _complaint_of_file(os.fstat(descriptor), os.geteuid())
    if complaint is not None:
        os.close(descriptor)
        raise UnsafePath(f"{path} {complaint[0]}", hint=complaint[1].format(path=path))
    return descriptor


Complaint = tuple[str, str]
"""What is wrong, and a hint in which `{path}` stands for the path."""


def _complaint_of_file(facts: os.stat_result, user: int) -> Complaint | None:
    if not stat.S_ISREG(facts.st_mode):
        return "is not a regular file", "name another file"
    if facts.st_uid != user:
        return f"belongs to user {facts.st_uid}, not to us ({user})", f"chown {user} {{path}}"
    if facts.st_mode & _OTHERS:
        return f"has mode {stat.S_IMODE(facts.st_mode):04o}: others could read it", "chmod 600 {path}"
    return None


def _complaint_of_parent(facts: os.stat_result, user: int) -> Complaint | None:
    if facts.st_uid not in {0, user}:
        return f"belongs to user {facts.st_uid}, who could replace what is in it", "choose a directory elsewhere"
    if facts.st_mode & _OTHERS_WRITE and not facts.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(facts.st_mode)
        return f"has mode {mode:04o}: others could replace what is in it", "chmod go-w {path}"
    return None


def _complaint_of_directory(facts: os.stat_result, user: int) -> Complaint | None:
    if facts.st_uid != user:
        return f"belongs to user {facts.st_uid}, not to us ({user})", "choose a directory elsewhere"
    if facts.st_mode & _OTHERS:
        return f"has mode {stat.S_IMODE(facts.st_mode):04o}: others could enter it", "chmod 700 {path}"
    return None


class _Walk:
    """One walk from the root to a directory; `descriptor` is where it stands, always open, closed by the caller."""

    def __init__(self, path: Path, *, create: bool) -> None:
        # Not os.path.abspath, which removes `..` by text, which is another directory if a link comes before it.
        self._path = path.absolute()
        self._create = create
        self._user = os.geteuid()
        self._ahead = [*reversed(self._path.parts[1:])]
        self._behind = "/"
        self._links = 0
        self.descriptor = os.open("/", _O_PATH | _DIRECTORY)

    def run(self) -> None:
        """Go all the way. Raises `UnsafePath` at the first component that is not right, FileNotFoundError."""
        while self._ahead:
            self._refuse(_complaint_of_parent(os.fstat(self.descriptor), self._user))
            self._step(self._ahead.pop())
        self._refuse(_complaint_of_directory(os.fstat(self.descriptor), self._user))

    def _refuse(self, complaint: Complaint | None) -> None:
        if complaint is not None:
            of = "" if self._behind == str(self._path) else f", on the way to {self._path},"
            raise UnsafePath(f"{self._behind}{of} {complaint[0]}", hint=complaint[1].format(path=self._behind))

    def _step(self, name: str) -> None:
        where = f"{self._behind.rstrip('/')}/{name}"
        try:
            try:
                self._enter(name, where)
            except FileNotFoundError:
                if not self._create:
                    raise FileNotFoundError(errno.ENOENT, "No such directory", where) from None
                with suppress(FileExistsError):  # somebody was faster; what they made is examined like all else
                    os.mkdir(name, 0o700, dir_fd=self.descriptor)
                self._enter(name, where)
        except OSError as error:
            if error.errno not in _REFUSALS:  # so an UnsafePath passes: it is an OSError too, without a number
                raise
            raise UnsafePath(f"{where} cannot be entered or made: {error.strerror}") from None

    def _enter(self, name: str, where: str) -> None:
        try:
            descriptor = os.open(name, _O_PATH | _DIRECTORY, dir_fd=self.descriptor)
        except OSError:
            target = self._target(name, where)  # a link answers ENOTDIR or ELOOP, depending on the system
            if target is None:
                raise
            self._follow(target)
            return
        os.close(self.descriptor)
        self.descriptor, self._behind = descriptor, where

    def _target(self, name: str, where: str) -> str | None:
        """Where a link points that we may follow; None if `name` is no link.

        Nobody but root and us can exchange such a link between the two questions: the directory that it is in has been
        examined, and where others may write, it is sticky. What the link leads to is examined in its turn.
        """
        try:
            facts = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
            target = os.readlink(name, dir_fd=self.descriptor)
        except OSError:
            return None
        self._links += 1
        if not self._ahead:
            raise UnsafePath(f"{where} is a symbolic link", hint="name the directory that it points to")
        if facts.st_uid not in {0, self._user}:
            raise UnsafePath(f"{where} is a symbolic link of user {facts.st_uid}", hint="choose a directory elsewhere")
        if self._links > _MOST_LINKS:
            raise UnsafePath(f"{where} is one of too many symbolic links")
        return target

    def _follow(self, target: str) -> None:
        if target.startswith("/"):
            root = os.open("/", _O_PATH | _DIRECTORY)
            os.close(self.descriptor)
            self.descriptor, self._behind = root, "/"
        self._ahead.extend(reversed([part for part in target.split("/") if part not in {"", "."}]))
