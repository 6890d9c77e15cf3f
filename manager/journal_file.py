"""The journal while no supervisor runs: what `callpool journal` does with the file itself.

The lock on the state directory is the one that a supervisor holds for life, so that neither can come upon the other.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from callpool.manager.composition import JOURNAL_FILE
from callpool.manager.daemon import HOME_LOCK
from callpool.manager.errors import AlreadyRunning, JournalRefused, JournalUnavailable
from callpool.manager.job_verbs import MOST_ROWS, export_page
from callpool.manager.locks import InstanceLock
from callpool.manager.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def closed_journal(home: Path) -> Iterator[JournalFile]:
    """The journal of this state directory, for as long as no supervisor may start there.

    Raises JournalUnavailable where there is none, AlreadyRunning, UnsafePath. The file itself is opened by the first question.
    """
    path = home / JOURNAL_FILE
    if not path.exists() and not path.with_name(f"{JOURNAL_FILE}-wal").exists():  # nothing is made by looking
        raise JournalUnavailable(
            f"there is no journal at {path}", hint="a supervisor makes it; CALLPOOL_HOME names another directory"
        )
    lock = InstanceLock(home / HOME_LOCK, "")
    try:
        lock.acquire()
    except AlreadyRunning as error:
        raise _in_use(error) from None
    with contextlib.ExitStack() as held:
        held.callback(lock.release)
        yield held.enter_context(contextlib.closing(JournalFile(path)))


class JournalFile:
    """The file, under the names of the verbs and with their answers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: Store | None = None

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def check(self) -> dict[str, Any]:
        """Look through the whole file: `{problems, counts, sessions, journal}`. What keeps it from being opened is a problem, too."""
        try:
            store = self._store()
            problems, counts, sessions = store.integrity(), store.counts(), store.sessions()
        except JournalRefused as error:
            return {"problems": [error.message], "counts": None, "sessions": None, "journal": {"path": str(self._path)}}
        journal = {"path": str(self._path), "bytes": store.size()}
        return {"problems": problems, "counts": counts, "sessions": sessions, "journal": journal}

    def compact(self) -> dict[str, Any]:
        """Give unused space back: `{before, after}` in bytes."""
        store = self._store()
        before = store.size()
        store.compact()
        return {"before": before, "after": store.size()}

    def export(self, *, after: int, payload: bool, results: bool) -> dict[str, Any]:
        """A page of whole jobs, the first accepted first: `{jobs, next}`."""
        return export_page(self._store(), after=after, limit=MOST_ROWS, payload=payload, results=results)

    def _store(self) -> Store:
        if self._opened is None:
            self._opened = Store(self._path)
        return self._opened


def _in_use(error: AlreadyRunning) -> AlreadyRunning:
    """The error of a directory whose supervisor was not found where it was looked for."""
    if error.details["address"] is None:
        return error
    address = error.details["address"]
    return AlreadyRunning(
        f"the journal is that of a supervisor that runs elsewhere (pid {error.details['pid']})",
        hint=f"ask it: --address {address}",
        pid=error.details["pid"],
        address=address,
    )
