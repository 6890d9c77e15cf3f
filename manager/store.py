"""The journal's file: SQLite in WAL mode, opened once, by the supervisor alone.

A batch of records is ONE statement: an INSERT into a view whose triggers do the compare-and-set. So it is one transaction, one wait for
the disk, and the interpreter's lock is let go once: a thread that steps through a dozen statements beside a busy event loop waits for
the lock a dozen times.

Rules: nobody else opens the file, nothing copies it while it is open (locks would be lost), and a file that is not ours, is newer than
we are, or is damaged is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from callpool.manager.core.carried import Carried
from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import Submit
from callpool.manager.core.records import AttemptStarted, Job, JobAccepted, JobEnded, JobWaits, Kept, outcome
from callpool.manager.errors import UNWRITABLE
from callpool.manager.private import open_private_file
from callpool.manager.store_refusals import (
    HEADER_BYTES,
    beside,
    damaged,
    explained,
    is_there,
    refuse_header,
    refuse_place,
    refuse_version,
    sync_directory,
)
from callpool.manager.store_schema import MIGRATIONS, MOVE_COLUMNS, SCHEMA, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from callpool.manager.core.records import Record

Durability = Literal["full", "process"]
"""What an acknowledged job survives: a loss of power as well, or the end of any process."""

STATEMENT_ROWS: Final = 64
"""Records of one statement; each number up to it has a prepared one."""
CHECKED_BYTES: Final = 256 * 1024 * 1024
"""Up to this size the whole file is checked when it is opened: a tenth of a second for each 100 MB, about."""
CHECKPOINT_PAGES: Final = 4_000
"""Pages of the write-ahead log at which a commit copies them into the file: 16 MB. Idle moments do it earlier."""
PAGE_BYTES: Final = 4_096
BUSY_SECONDS: Final = 2.0
"""For whoever else looks at the file when it is opened, a copying tool perhaps, to let go of it."""
SWEEP_ROWS: Final = 500
"""Jobs that one sweep forgets at most: whoever commits waits behind it."""

_LIVE: Final = ("queued", "started")
_encode = msgspec.msgpack.Encoder().encode
_carried = msgspec.msgpack.Decoder(Carried)
_submit = msgspec.msgpack.Decoder(Submit)
_kept = msgspec.msgpack.Decoder(Kept)
_usage = msgspec.msgpack.Decoder(Usage)
_fault = msgspec.json.Decoder(Fault)
_PLACES: Final = f"({','.join('?' * len(MOVE_COLUMNS))})"
_INSERTS: Final = {
    rows: f"INSERT INTO moves VALUES {','.join([_PLACES] * rows)}"  # noqa: S608 - no text of anybody's
    for rows in range(1, STATEMENT_ROWS + 1)
}


class Past(NamedTuple):
    """What became of a session. Times are seconds since the epoch."""

    session_id: str
    request_id: str
    provider: str
    model: str
    state: str
    created_at: float
    started_at: float | None
    ended_at: float | None


class Store:
    """One open journal. Not for two threads at once; `write` and the questions belong to whoever commits."""

    def __init__(self, path: Path, *, durability: Durability = "full", max_bytes: int | None = None) -> None:
        """Open it, or make it where there is none. Raises JournalRefused, UnsafePath, OSError."""
        self.path = path
        self._durability = durability
        self._max_bytes = max_bytes
        refuse_place(path)
        if not is_there(path):
            self._create()
        self._database = self._open(path)
        try:
            self._check()
            self._migrate()
        except BaseException:
            self._database.close()
            raise

    # Opening.

    def _create(self) -> None:
        """Make an empty journal beside, and move it into place when it is whole: an empty file is never ours."""
        temporary = self.path.with_name(f"{self.path.name}.new")
        for leftover in (temporary, *beside(temporary)):
            leftover.unlink(missing_ok=True)
        os.close(open_private_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        with explained(self.path), contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as database:
            database.execute(f"PRAGMA page_size={PAGE_BYTES}")
            database.execute("PRAGMA auto_vacuum=INCREMENTAL")
            database.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            database.execute("PRAGMA journal_mode=WAL")  # here, where nobody misses what a crash leaves of it
        with temporary.open("rb") as made:
            os.fsync(made.fileno())
        temporary.rename(self.path)
        sync_directory(self.path)

    def _open(self, path: Path) -> sqlite3.Connection:
        descriptor = open_private_file(path, os.O_RDWR)  # a regular file of ours, and no link: before SQLite touches it
        try:
            header = os.pread(descriptor, HEADER_BYTES, 0)
        finally:
            os.close(descriptor)
        refuse_header(path, header)
        with explained(path):
            self._look(path)
            database = sqlite3.connect(
                path,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=2 * STATEMENT_ROWS,
                timeout=BUSY_SECONDS,
            )
            try:
                database.execute(
                    "PRAGMA locking_mode=EXCLUSIVE"
                )  # before the first look: then no memory is shared with anybody
                database.execute("PRAGMA journal_mode=WAL")
                database.execute(f"PRAGMA synchronous={'FULL' if self._durability == 'full' else 'NORMAL'}")
                database.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
                database.execute("PRAGMA mmap_size=0")
                database.execute("PRAGMA temp_store=MEMORY")
                if self._max_bytes is not None:
                    database.execute(f"PRAGMA max_page_count={max(1, self._max_bytes // PAGE_BYTES)}")
            except BaseException:
                database.close()
                raise
        return database

    def _look(self, path: Path) -> None:
        """Prove that the file is whole and no newer than we are, by a connection that cannot write.

        For whoever may write and closes copies the write-ahead log into the file and deletes it: into a damaged one, too.
        """
        there = {each for each in beside(path) if each.exists()}
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_SECONDS
        )
        try:
            [version] = database.execute(
                "PRAGMA user_version"
            ).fetchone()  # the log may have a newer one than the header
            refuse_version(path, version)
            if path.stat().st_size % PAGE_BYTES and not any(each.stat().st_size for each in there):
                raise damaged(
                    path, "it ends in the middle of a page, and no log has the rest"
                )  # SQLite reads zeros there
            if path.stat().st_size <= CHECKED_BYTES:
                found = [row[0] for row in database.execute("PRAGMA quick_check(3)")]
                if found != ["ok"]:
                    raise damaged(path, "; ".join(found))
        finally:
            database.close()
            for each in beside(path):
                if each not in there:  # the look's own: an index of the log, or an empty log
                    each.unlink(missing_ok=True)

    def _check(self) -> None:
        """Prove that it can be written."""
        with explained(self.path):
            self._database.execute("UPDATE facts SET value = value + 1 WHERE name = 'opened'")

    def _migrate(self) -> None:
        """Bring an older schema up to ours, a version at a time, each in one transaction."""
        [version] = self._database.execute("PRAGMA user_version").fetchone()
        with explained(self.path):
            for step in range(version, VERSION):
                self._database.executescript(f"BEGIN; {MIGRATIONS[step]} PRAGMA user_version={step + 1}; COMMIT;")

    def close(self) -> None:
        """Copy what is in the write-ahead log into the file, and close. Idempotent."""
        with contextlib.suppress(
            sqlite3.Error
        ):  # a full disk must not keep us from ending; the log is read at the next start
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._database.close()

    def reopen(self) -> None:
        """After an error of the disk: what SQLite has in its hands may be wrong, what is in the file is checked again."""
        with contextlib.suppress(sqlite3.Error):
            self._database.close()
        self._database = self._open(self.path)
        self._check()

    # Writing.

    def write(self, records: Sequence[Record | Carried]) -> None:
        """Commit records, all or none. Raises JournalUnavailable, and JournalConflict where one is of a past that is over."""
        if not records:
            return
        database = self._database
        with explained(self.path):
            if len(records) <= STATEMENT_ROWS:
                self._insert(records)
                return
            database.execute("BEGIN IMMEDIATE")
            try:
                for start in range(0, len(records), STATEMENT_ROWS):
                    self._insert(records[start : start + STATEMENT_ROWS])
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:  # SQLite has given up some by itself
                    database.execute("ROLLBACK")
                raise

    def _insert(self, records: Sequence[Record | Carried]) -> None:
        values: list[Any] = []
        for record in records:
            values += _row(record)
        self._database.execute(_INSERTS[len(records)], values)

    def write_each(self, records: Sequence[Record]) -> list[Record]:
        """Commit all but those that never can be, in one transaction as well, and return these.

        Raises JournalUnavailable, and what keeps an acceptance from being written: nobody may hear that it was.
        """
        database, refused = self._database, []
        with explained(self.path):
            database.execute("BEGIN IMMEDIATE")
            try:
                for record in records:
                    try:
                        with explained(self.path):
                            self._insert([record])
                    except UNWRITABLE:  # it has undone itself, and nothing else
                        if type(record) is JobAccepted:
                            raise
                        refused.append(record)
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
        return refused

    def holds(self, records: Sequence[Record]) -> bool:
        """Whether a batch is in the file, of which a write had failed: then a disk has said so and did it all the same.

        One record tells it, for a batch is there whole or not at all, and no transition leaves a job as it was; those of ids that the
        journal knew before were left out.
        """
        last = {record.request_id: record for record in records}
        with explained(self.path):
            for request_id, record in last.items():
                row = self._database.execute(
                    "SELECT state, attempt FROM jobs WHERE request_id = ?", (request_id,)
                ).fetchone()
                if row == outcome(record):
                    return True
        return False

    def undo(self, records: Sequence[Record]) -> None:
        """Take back acceptances and starts that were given up, as far as a disk that failed has them. Raises JournalUnavailable."""
        database = self._database
        with explained(self.path):
            database.execute("BEGIN IMMEDIATE")
            try:
                for record in records:
                    if type(record) is JobAccepted:
                        database.execute(
                            "DELETE FROM jobs WHERE request_id = ? AND ended_at IS NULL", (record.request_id,)
                        )
                    elif type(record) is AttemptStarted:
                        database.execute(
                            "UPDATE jobs SET state = 'queued', attempt = ? WHERE request_id = ? AND attempt = ? AND state = 'started'",
                            (record.was, record.request_id, record.attempt),
                        )
                database.execute("UPDATE facts SET value = value + 1 WHERE name = 'probed'")
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    # Questions.

    def find(self, request_ids: Iterable[str]) -> dict[str, Job]:
        """The jobs of these ids that the journal knows, results included."""
        found = {}
        for request_id in request_ids:
            for job in self._jobs("WHERE request_id = ?", (request_id,), results=True):
                found[request_id] = job
        return found

    def known(self, request_ids: Sequence[str]) -> set[str]:
        """Which of these ids the journal knows."""
        found: set[str] = set()
        with explained(self.path):
            for start in range(0, len(request_ids), STATEMENT_ROWS):
                part = request_ids[start : start + STATEMENT_ROWS]
                rows = self._database.execute(
                    f"SELECT request_id FROM jobs WHERE request_id IN ({','.join('?' * len(part))})",  # noqa: S608
                    part,
                )
                found.update(row[0] for row in rows)
        return found

    def unfinished(self) -> list[Job]:
        """Every job that has not ended, in the order of acceptance, with what it takes to go on."""
        return list(self._jobs("WHERE ended_at IS NULL", (), submits=True))

    def one(self, request_id: str, *, texts: bool = True) -> Job | None:
        """One job with all that is kept of it, or all but its texts."""
        return next(iter(self._jobs("WHERE request_id = ?", (request_id,), submits=texts, results=texts)), None)

    def export(self, *, after: int, limit: int, submits: bool, results: bool) -> Iterator[Job]:
        """Jobs with numbers above `after`, the first accepted first, with those texts that are asked for."""
        return self._jobs(
            "WHERE number > ? ORDER BY number LIMIT ?", (after, limit), submits=submits, results=results, order=False
        )

    def page(
        self,
        *,
        states: Sequence[str] = (),
        client: str | None = None,
        provider: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Jobs without their texts, the last accepted first; `before` is the number of the last one of the page before."""
        conditions, values = [], list[Any]()
        if states:
            conditions.append(f"state IN ({','.join('?' * len(states))})")
            values += states
            if set(states) <= set(_LIVE):
                conditions.append("ended_at IS NULL")  # there is an index of those
        for column, wanted in (("name = ?", client), ("provider = ?", provider), ("number < ?", before)):
            if wanted is not None:
                conditions.append(column)
                values.append(wanted)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        return list(self._jobs(f"{where} ORDER BY number DESC LIMIT ?", (*values, limit), order=False))

    def counts(self) -> dict[str, int]:
        """State → how many jobs are in it."""
        with explained(self.path):
            return dict(self._database.execute("SELECT state, count(*) FROM jobs GROUP BY state"))

    def windows(self) -> list[Carried]:
        """What earlier runs have written of windows, in the order in which they did."""
        with explained(self.path):
            found = [_carried.decode(row[0]) for row in self._database.execute("SELECT record FROM windows")]
        return sorted(found, key=lambda record: record.number)

    def last_attempt(self) -> int:
        """The highest number that an attempt ever had: those of later runs must be above it."""
        with explained(self.path):
            [number] = self._database.execute("SELECT value FROM facts WHERE name = 'attempt'").fetchone()
        return int(number)

    def _jobs(
        self, where: str, values: Sequence[Any], *, submits: bool = False, results: bool = False, order: bool = True
    ) -> Iterator[Job]:
        more = (
            f"{'payloads.submit, payloads.next' if submits else 'NULL, NULL'}, {'results.body' if results else 'NULL'}"
        )
        joins = " LEFT JOIN payloads USING (number)" if submits else ""
        joins += " LEFT JOIN results USING (number)" if results else ""
        sql = f"SELECT {_COLUMNS}, {more} FROM jobs{joins} {where}{' ORDER BY number' if order else ''}"  # noqa: S608 - our own words
        with explained(self.path):
            for row in self._database.execute(sql, values):
                yield _job(row)

    # History.

    def write_history(self, rows: Sequence[Past], totals: Mapping[str, int]) -> None:
        """Note what became of sessions, and the totals over all runs. All or nothing."""
        database = self._database
        with explained(self.path):
            database.execute("BEGIN IMMEDIATE")
            try:
                for start in range(0, len(rows), STATEMENT_ROWS):
                    part = rows[start : start + STATEMENT_ROWS]
                    database.execute(
                        f"INSERT OR REPLACE INTO history VALUES {','.join(['(?,?,?,?,?,?,?,?)'] * len(part))}",  # noqa: S608
                        [value for row in part for value in row],
                    )
                for name, count in totals.items():
                    database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (f"lifetime_{name}", count))
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def begin_history(self, now: float) -> dict[str, int]:
        """A new run begins, at this wall-clock second: what lived in the last one was interrupted. Returns the totals until now."""
        with explained(self.path):
            self._database.execute(
                "UPDATE history SET state = 'interrupted', ended_at = ? WHERE ended_at IS NULL", (now,)
            )
            rows = self._database.execute("SELECT name, value FROM facts WHERE name LIKE 'lifetime_%'").fetchall()
        return {name.removeprefix("lifetime_"): value for name, value in rows}

    def sessions(self) -> int:
        """How many sessions the history has."""
        with explained(self.path):
            [number] = self._database.execute("SELECT count(*) FROM history").fetchone()
        return int(number)

    def past(self, request_id: str) -> Past | None:
        """The last session of a request of any run, or None."""
        with explained(self.path):
            row = self._database.execute(
                "SELECT session_id, request_id, provider, model, state, created_at, started_at, ended_at FROM history "
                "WHERE request_id = ? ORDER BY created_at DESC LIMIT 1",
                (request_id,),
            ).fetchone()
        return None if row is None else Past(*row)

    def sweep_history(self, ended_before: float | None, most: int) -> int:
        """Forget some sessions that ended before this wall-clock second, and the oldest beyond so many; returns how many.

        None forgets none for its age.
        """
        with explained(self.path):
            [beyond] = self._database.execute("SELECT max(0, count(*) - ?) FROM history", (most,)).fetchone()
            oldest = (
                "DELETE FROM history WHERE session_id IN (SELECT session_id FROM history {} ORDER BY ended_at LIMIT ?)"
            )
            swept = 0
            if ended_before is not None:
                where = "WHERE ended_at < ?"
                swept = self._database.execute(oldest.format(where), (ended_before, SWEEP_ROWS)).rowcount
            if swept < min(beyond, SWEEP_ROWS):
                where = "WHERE ended_at IS NOT NULL"
                swept += self._database.execute(oldest.format(where), (min(beyond, SWEEP_ROWS) - swept,)).rowcount
        return swept

    # Housekeeping.

    def sweep(self, ended_before: float) -> int:
        """Forget some jobs that ended before this wall-clock second; returns how many."""
        with explained(self.path):
            done = self._database.execute(
                "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs WHERE ended_at < ? ORDER BY ended_at LIMIT ?)",
                (ended_before, SWEEP_ROWS),
            )
            self._database.executescript("PRAGMA incremental_vacuum(1000)")  # `execute` would free one page of them
        return done.rowcount

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the file, for an idle moment.

        The first commit of a log waits for the disk twice, once for the head of the log. So it is made here, where nobody waits.
        """
        with explained(self.path):
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._database.execute("UPDATE facts SET value = value + 1 WHERE name = 'probed'")

    def compact(self) -> None:
        """Give unused space back to the file system. Takes as much again while it works."""
        with explained(self.path):
            self._database.execute("VACUUM")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def integrity(self) -> list[str]:
        """What is wrong with the file; empty where all is well."""
        with explained(self.path):
            found = [row[0] for row in self._database.execute("PRAGMA integrity_check(100)")]
        return [] if found == ["ok"] else found

    def size(self) -> int:
        """Bytes of the file and of what is beside it."""
        total = 0
        for path in (self.path, *beside(self.path)):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total


def _row(record: Record | Carried) -> tuple[Any, ...]:
    """A record as a row of `moves`."""
    if type(record) is Carried:
        content = None if record.is_empty else _encode(record)
        return (
            "window", None, None, None, None, None, None, None, record.name, record.kind, record.measure, None, None, None,
            None, None, content, None, None, None,
        )  # fmt: skip
    if type(record) is AttemptStarted:
        return (
            "start", record.request_id, "queued", record.was, "started", record.attempt, record.tries, record.at,
            None, None, None, None, None, None, None, None, None, None, None, None,
        )  # fmt: skip
    if type(record) is JobEnded:
        return (
            "end", record.request_id, record.was, record.attempt, record.state, record.attempt, record.tries, record.at,
            None, None, None, None, None, None, record.duration, record.started, record.body,
            None if record.fault is None else msgspec.json.encode(record.fault),
            None if record.usage is None else _encode(record.usage), None,
        )  # fmt: skip
    if type(record) is JobAccepted:
        submit = record.submit
        return (
            "accept", record.request_id, None, None, "queued", 0, 0, record.at,
            record.name, submit.provider, submit.model, submit.priority, record.session_id, record.fingerprint,
            None, None, _encode(submit), None, None, None,
        )  # fmt: skip
    if type(record) is JobWaits:
        return (
            "wait", record.request_id, record.was, record.attempt, "queued", record.attempt, 0, None,
            None, record.kept.provider, record.kept.model, None, None, None, None, None, record.payload, None, None, _encode(record.kept),
        )  # fmt: skip
    raise TypeError(f"no record: {type(record).__name__}")


_COLUMNS: Final = (
    "number, request_id, name, fingerprint, session_id, state, attempt, tries, accepted_at, provider, model, priority, started_at, "
    "ended_at, duration, had_session, usage, fault, kept"
)


def _job(row: Sequence[Any]) -> Job:
    usage, fault, kept, submit, payload, body = row[16:]
    return Job(
        number=row[0],
        request_id=row[1],
        name=row[2],
        fingerprint=row[3],
        session_id=row[4],
        state=row[5],
        attempt=row[6],
        tries=row[7],
        accepted_at=row[8],
        provider=row[9],
        model=row[10],
        priority=row[11],
        started_at=row[12],
        ended_at=row[13],
        duration=row[14],
        had_session=bool(row[15]),
        usage=None if usage is None else _usage.decode(usage),
        fault=None if fault is None else _fault.decode(fault),
        kept=None if kept is None else _kept.decode(kept),
        submit=None if submit is None else _submit.decode(submit),
        payload=payload,
        body=body,
    )
