"""The lifecycle log on disk: one JSON object a line, written by a thread of its own.

    event loop ── offer() ──► queue, bounded ──► thread: sanitize, logger "callpool.lifecycle" ──► file ──► file.1 …

Nothing here may slow or end the supervisor: what does not fit into the queue is dropped, what the disk does not take is
lost, and both are counted. The file holds whole lines only.
"""

from __future__ import annotations

import functools
import json
import logging
import logging.handlers
import os
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

from callpool.manager.core.sanitize import sanitize
from callpool.manager.private import ensure_private_dir, open_private_file

log = logging.getLogger(__name__)

LOGGER: Final = "callpool.lifecycle"
CLOSE_SECONDS: Final = 2.0
"""How long `close` waits for what is queued; the rest is lost."""
WARNING_SECONDS: Final = 60.0
"""At most one warning in so many: a disk that is full stays full for a while."""

_BATCH: Final = 256  # events for one write: few calls, and at most so many are lost by one that fails
_SLICE: Final = 16  # events that are made into lines before other threads may go on
_GIVE_UP_SECONDS: Final = 0.5  # for the batch under way, once the rest of the queue is given up
_CACHED: Final = 256  # requests whose metadata is remembered: each has about ten events, one after another
_CACHED_BYTES: Final = 16_384  # of one request's metadata: the default limit is 10 KiB


class LifecycleFile:
    """Takes lifecycle events and writes them; `close` it.

    An event is a dict with `wall` (seconds since the epoch) and `metadata` (the client's bytes, or None); `wall` becomes
    `at`, the metadata is sanitized, all other fields are written as they are.
    """

    def __init__(
        self, path: Path, *, max_bytes: int = 10 * 1024 * 1024, backups: int = 3, queue_limit: int = 20_000
    ) -> None:
        """Open the file, in a private directory that is made if need be. Raises `UnsafePath`, OSError."""
        if max_bytes < 1 or backups < 1 or queue_limit < 1:
            raise ValueError("max_bytes, backups and queue_limit are at least 1: without them the log has no bound")
        ensure_private_dir(path.parent)
        self._handler = _PrivateFile(path, max_bytes, backups)
        self._handler.addFilter(self._is_ours)
        self._handler.setFormatter(_JsonLine())
        self._logger = logging.getLogger(LOGGER)
        self._logger.propagate = False  # these lines are not for the supervisor's own log
        self._logger.addHandler(self._handler)
        self._sanitize = functools.lru_cache(_CACHED)(sanitize)
        self._queue_limit = queue_limit
        # Not logging's QueueHandler, which takes a lock and a record for each event in the thread that must not wait,
        # nor a deque, which cannot be waited for: a SimpleQueue's `put` never blocks, and one carries many events.
        self._queue: queue.SimpleQueue[Sequence[dict[str, Any]] | None] = queue.SimpleQueue()
        # owner: the thread that calls `offer` and `close`
        self.dropped = 0
        self._accepted = 0
        self._closed = False
        self._given_up = False  # set once, by `close`
        # owner: the writing thread. Accepted events that are neither are in the queue or in its hands.
        self.written = 0
        self.lost = 0
        self._warn_after = 0.0
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="callpool-lifecycle", daemon=True)
        self._thread.start()

    def offer(self, events: list[dict[str, Any]]) -> None:
        """Queue events to be written; those that find the queue full are dropped. Never blocks, never raises.

        For one thread: the event loop's. The dicts belong to the log from here on.
        """
        room = 0 if self._closed else self._queue_limit - (self._accepted - self.written - self.lost)
        taken = events[:room]  # there is never less than no room
        self.dropped += len(events) - len(taken)
        if taken:
            self._accepted += len(taken)
            self._queue.put(taken)

    def close(self) -> None:
        """Write what is queued, for at most CLOSE_SECONDS, and end the thread. What is offered later is dropped."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._given_up = True
            self._thread.join(_GIVE_UP_SECONDS)
        self._logger.removeHandler(self._handler)
        if self._thread.is_alive():  # the disk hangs, and the thread with it: the file is left to it
            log.warning("the lifecycle log could not be closed: a write has not come back")
            return
        self._handler.close()
        if self.dropped or self.lost:
            log.warning("lifecycle events: %d written, %d dropped, %d lost", self.written, self.dropped, self.lost)

    def _is_ours(self, record: logging.LogRecord) -> bool:
        """Not what others log under this name, nor another lifecycle file of the same process."""
        return record.__dict__.get("lifecycle_file") is self

    def _run(self) -> None:
        ended = False
        while not ended:
            events, ended = self._take()
            for start in range(0, len(events), _BATCH):
                self._write(events[start : start + _BATCH])

    def _take(self) -> tuple[list[dict[str, Any]], bool]:
        """What is queued, about a batch of it, once there is something; and whether it was the last."""
        events: list[dict[str, Any]] = []
        with suppress(queue.Empty):
            while len(events) < _BATCH:
                offered = self._queue.get(block=not events)
                if offered is None:
                    return events, True
                events.extend(offered)
        return events, False

    def _write(self, events: Sequence[dict[str, Any]]) -> None:
        """Write one batch. Every event of it is counted as written or as lost, and no error ends the thread."""
        before = self._handler.written
        failure: Exception | None = None
        if not self._given_up:
            for number, event in enumerate(events, 1):
                try:
                    self._logger.handle(self._record(event))
                except Exception as error:  # noqa: BLE001 - one event that cannot be written must not cost the others
                    failure = error
                if number % _SLICE == 0:
                    sleep(0)  # lets the event loop go on, which otherwise waits for the interpreter's next switch
            try:
                self._handler.write_out()
            except Exception as error:  # noqa: BLE001 - a full disk, a directory that is gone: reported below
                failure = error
        written = self._handler.written - before
        if failure is None and written < len(events) and not self._given_up:
            failure = RuntimeError(f"the logger {LOGGER} is switched off")
        self.written += written
        self.lost += len(events) - written
        self._report(failure, progress=written > 0)

    def _record(self, event: dict[str, Any]) -> logging.LogRecord:
        wall = event["wall"]
        fields = {key: value for key, value in event.items() if key != "wall"}
        metadata = event.get("metadata")
        if isinstance(metadata, bytes):
            clean = self._sanitize if len(metadata) <= _CACHED_BYTES else sanitize
            fields["metadata"] = clean(metadata)
        elif metadata is not None:
            raise TypeError(f"metadata is {type(metadata).__name__}, not bytes: it cannot be sanitized")
        return logging.makeLogRecord({
            "name": LOGGER, "levelno": logging.INFO, "levelname": "INFO", "msg": event.get("phase", ""),
            "created": wall, "msecs": wall % 1 * 1000, "lifecycle_fields": fields, "lifecycle_file": self,
        })  # fmt: skip

    def _report(self, failure: Exception | None, *, progress: bool) -> None:
        """Say in the supervisor's log that events are lost, not for every one, and that they are written again."""
        if failure is not None and monotonic() >= self._warn_after:
            self._warn_after = monotonic() + WARNING_SECONDS
            self._failing = True
            log.warning(
                "lifecycle events are not written (%d lost): %s: %s", self.lost, type(failure).__name__, failure
            )
        elif failure is None and progress and self._failing:
            self._failing = False
            log.info("lifecycle events are written again; %d were lost", self.lost)


class _JsonLine(logging.Formatter):
    """`{"at":"2026-11-21T10:00:00.123456Z","request_id":…}`; the line shows in a terminal and cannot command it."""

    def __init__(self) -> None:
        super().__init__()
        self._encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

    def format(self, record: logging.LogRecord) -> str:
        """The line. Raises TypeError or ValueError for what JSON has no form for."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = self._encode({"at": at, **record.__dict__["lifecycle_fields"]})
        if line.isprintable():
            return line
        # As JSON's own escapes, so that who parses the line finds the characters as they were given.
        return "".join(piece if piece.isprintable() else json.dumps(piece)[1:-1] for piece in line)


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """Rotates like its parent; the file is private, grows by whole lines and never over `max_bytes`.

    `emit` keeps the lines, `write_out` writes them at once: a system call for each line would hand the interpreter to and
    fro between this thread and the event loop. A line that is longer than `max_bytes` gets a file of its own.
    """

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        self._lines: list[bytes] = []
        self.written = 0  # lines
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's line for `write_out`. Raises what the formatter raises."""
        self._lines.append(f"{self.format(record)}\n".encode())

    def write_out(self) -> None:
        """Write the lines that were kept. Raises OSError; those that were not written then are forgotten."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        self.acquire()  # the interpreter's end closes all handlers, from another thread
        try:
            stream = self._current()
            size = os.fstat(stream.fileno()).st_size
            group: list[bytes] = []
            for line in lines:
                if size and size + len(line) > self.maxBytes:
                    self._append(stream, group)
                    self.doRollover()
                    stream, group, size = self._current(), [], 0
                group.append(line)
                size += len(line)
            self._append(stream, group)
        finally:
            self.release()

    def _open(self) -> TextIOWrapper:
        # The directory is not made again: somebody removed it, and a log is no reason to put it back.
        descriptor = open_private_file(Path(self.baseFilename), os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                os.write(descriptor, b"\n")  # the half line of a process that was killed stays alone
            return os.fdopen(descriptor, "a", encoding="utf-8")
        except BaseException:
            os.close(descriptor)
            raise

    def _current(self) -> TextIOWrapper:
        """The stream of the file that has the log's name, opened again if that is another one by now."""
        if self.stream is not None and not self._is_named(self.stream):
            self.stream.close()
            self.stream = None
        if self.stream is None:
            self.stream = self._open()
        return self.stream

    def _is_named(self, stream: TextIOWrapper) -> bool:
        try:
            return os.path.samestat(os.lstat(self.baseFilename), os.fstat(stream.fileno()))
        except FileNotFoundError:
            return False

    def _append(self, stream: TextIOWrapper, lines: list[bytes]) -> None:
        """Write lines whole or not at all."""
        # Not by the stream: it keeps what it could not write, and would write it after it was counted as lost.
        descriptor = stream.fileno()
        size = os.fstat(descriptor).st_size
        rest = memoryview(b"".join(lines))
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        self.written += len(lines)
