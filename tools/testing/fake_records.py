"""What the fake provider saw: one record a call, and the log file that outlives it.

The log is the truth. Each event is one JSON line, handed to the kernel in one unbuffered `O_APPEND` write before the
bytes that cause the client's next step leave the fake, so it survives `kill -9` and never lags behind what a client
knows. The records in memory are the fold of the same events, made by the same code that `read_log` uses.

Times are `time.monotonic()` seconds: one clock for all processes of a machine (not comparable after a reboot).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

TEXT_KEPT = 200
"""Characters of the last message that a record keeps: enough to recognise a prompt, little enough for load tests."""

PARAMETER_KEPT = 4_096
"""Bytes of JSON of one parameter that a record keeps: some tools or a schema, and not a document."""
TOLD_ELSEWHERE = frozenset({"model", "messages", "input", "stream", "fake"})


class CallRecord(msgspec.Struct, kw_only=True):
    """One request for work, as the fake saw it: a chat, a task or a look at one, embeddings."""

    server: str
    """`pid:port` of the fake, since several may share a log."""
    number: int
    """Order of arrival at that fake, from 1."""
    connection: int
    """Number of the TCP connection, from 1: two records with the same number prove that it was reused."""
    model: str
    stream: bool
    digest: str
    """`messages_digest` of the messages; of embeddings, of the texts as messages of a user."""
    last_message: str
    """Text of the last message, cut after `TEXT_KEPT` characters."""
    key_tail: str
    """The last four characters of the bearer key; empty without a key, or where that would be all of it."""
    arrived: float
    """When the whole request was read (and, where requests are pipelined, its turn had come)."""
    active_at_arrival: int
    """Calls open at this fake at that moment, this one included, also if it is then refused."""
    path: str = ""
    """Path of the request, without its query."""
    size: int = 0
    """Bytes that were received of it: request line, headers and body."""
    parameters: dict[str, Any] = {}
    """`kept_parameters` of the body."""
    fault: str | None = None
    """Name of the fault that this call asked for, whatever became of it."""
    first_byte: float | None = None
    """When the first byte of the answer was handed to the socket."""
    ended: float | None = None
    """When the answer's last bytes were about to be handed over, or when the client was seen to leave."""
    status: int | None = None
    """HTTP status that was sent, if any was."""
    outcome: str = "open"
    """open, answered, rejected, client_gone, stopped (by `stop()`), or fault:NAME."""


class Started(msgspec.Struct, frozen=True, tag="start", tag_field="event"):
    """A fake began to listen; for people who read the log."""

    server: str
    at: float
    base_url: str
    dialect: str


class Connected(msgspec.Struct, frozen=True, tag="connect", tag_field="event"):
    """A TCP connection was accepted, whether or not anything is asked on it."""

    server: str
    number: int
    at: float


class Arrived(msgspec.Struct, frozen=True, kw_only=True, tag="arrive", tag_field="event"):
    """A whole request was read."""

    server: str
    number: int
    at: float
    connection: int
    active: int
    path: str
    size: int
    model: str
    stream: bool
    parameters: dict[str, Any]
    digest: str
    last_message: str
    key_tail: str
    fault: str | None


class FirstByte(msgspec.Struct, frozen=True, tag="first_byte", tag_field="event"):
    """The answer begins. `status` is None where what follows is not HTTP."""

    server: str
    number: int
    at: float
    status: int | None


class Ended(msgspec.Struct, frozen=True, tag="end", tag_field="event"):
    """The call ended by the fake's own doing."""

    server: str
    number: int
    at: float
    outcome: str


class ClientGone(msgspec.Struct, frozen=True, tag="client_gone", tag_field="event"):
    """The client closed or reset the connection while its call was open."""

    server: str
    number: int
    at: float


Event = Started | Connected | Arrived | FirstByte | Ended | ClientGone

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


class Totals(msgspec.Struct, frozen=True):
    """How much a fake has seen in its life; known also where records of ended calls are not kept."""

    connections: int
    calls: int


def messages_digest(messages: Any) -> str:
    """16 hexadecimal digits that name a list of messages, whatever the order of its keys on the wire."""
    return hashlib.sha256(msgspec.json.encode(messages, order="deterministic")).hexdigest()[:16]


def kept_parameters(body: dict[str, Any]) -> dict[str, Any]:
    """What a record keeps of a body: all but its texts and what the record has elsewhere.

    Of a value of more than `PARAMETER_KEPT` bytes of JSON, its size and digest.
    """
    return {name: _brief(value) for name, value in body.items() if name not in TOLD_ELSEWHERE}


def _brief(value: Any) -> Any:
    if not isinstance(value, (str, list, dict)):
        return value
    size = len(msgspec.json.encode(value))
    return value if size <= PARAMETER_KEPT else {"bytes": size, "digest": messages_digest(value)}


def peak_active(records: Iterable[CallRecord]) -> int:
    """The most calls of `records` that were open at the same moment; open ones count until the end of time.

    Refused calls count for the moment they were there: the question is what the client dared, not what it was granted.
    """
    edges: list[tuple[float, int]] = []
    for record in records:
        edges.append((record.arrived, 1))
        if record.ended is not None:
            edges.append((record.ended, -1))
    edges.sort()
    peak = active = 0
    for _, step in edges:
        active += step
        peak = max(peak, active)
    return peak


class Fold:
    """Events in, records out. With `keep=False` it forgets a call when it ends (a load test of millions of calls)."""

    def __init__(self, *, keep: bool = True) -> None:
        self.calls: list[CallRecord] = []
        self._connections = 0
        self._arrivals = 0
        self._keep = keep
        self._open: dict[tuple[str, int], CallRecord] = {}

    @property
    def totals(self) -> Totals:
        """The count of everything so far, forgotten calls included."""
        return Totals(self._connections, self._arrivals)

    def apply(self, event: Event) -> None:
        """Take one event in. An event of a call that is not open is a ValueError."""
        if isinstance(event, Started):
            return
        if isinstance(event, Connected):
            self._connections += 1
        elif isinstance(event, Arrived):
            self._arrive(event)
        elif isinstance(event, FirstByte):
            record = self.open_call(event.server, event.number)
            record.first_byte, record.status = event.at, event.status
        else:
            record = self.open_call(event.server, event.number)
            record.ended = event.at
            record.outcome = event.outcome if isinstance(event, Ended) else "client_gone"
            del self._open[event.server, event.number]

    def open_call(self, server: str, number: int) -> CallRecord:
        """The record of a call that has not ended; ValueError where there is none."""
        record = self._open.get((server, number))
        if record is None:
            raise ValueError(f"call {number} at {server} is not open")
        return record

    def _arrive(self, event: Arrived) -> None:
        self._arrivals += 1
        record = CallRecord(
            server=event.server,
            number=event.number,
            connection=event.connection,
            path=event.path,
            size=event.size,
            model=event.model,
            stream=event.stream,
            parameters=event.parameters,
            digest=event.digest,
            last_message=event.last_message,
            key_tail=event.key_tail,
            arrived=event.at,
            active_at_arrival=event.active,
            fault=event.fault,
        )
        self._open[event.server, event.number] = record
        if self._keep:
            self.calls.append(record)


class LogWriter:
    """The append-only file, made with mode 0600 if it is not there. Several fakes may append to one file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def append(self, event: Event) -> None:
        """One line, in one write. A full disk raises OSError: a witness that lost a line is no witness."""
        line = _encoder.encode(event) + b"\n"
        written = os.write(self._fd, line)
        if written != len(line):
            raise OSError(f"the log took {written} of {len(line)} bytes")

    def close(self) -> None:
        """Close the file; nothing is pending."""
        os.close(self._fd)


class LogReader:
    """Reads a growing log: each `read` takes in what was appended since the last one."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._offset = 0
        self._fold = Fold()

    @property
    def totals(self) -> Totals:
        """The counts, as of the last `read`."""
        return self._fold.totals

    def read(self) -> list[CallRecord]:
        """All calls so far, in order of arrival. A last line without its end is left for the next time."""
        with self._path.open("rb") as log:
            log.seek(self._offset)
            whole, end, _torn = log.read().rpartition(b"\n")
        if end:
            for line in whole.split(b"\n"):
                self._fold.apply(_decoder.decode(line))
            self._offset += len(whole) + 1
        return list(self._fold.calls)


def read_log(path: Path | str) -> list[CallRecord]:
    """All calls in a log file, in order of arrival. A missing file is FileNotFoundError, a damaged line ValueError."""
    return LogReader(path).read()
