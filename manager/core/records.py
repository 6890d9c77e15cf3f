"""What the journal is told of a job: one record a transition, each a compare-and-set on (state, attempt).

    JobAccepted ─► queued ──AttemptStarted──► started ──JobEnded──► completed, error, timeout, cancelled, interrupted
                      ▲                          │                                                         │
                      └────────JobWaits──────────┴───────────────────◄── with leave to call again ─────────┘

A record is durable before anybody acts on it: an acceptance before its submitter hears of it, a start before its worker may contact
the provider, an end before its result is delivered. `was` and `attempt` are what the journal must hold before; else the record is
of a past that is over, and is refused.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import Submit
from callpool.manager.core.retry import Attempt

Was = Literal["queued", "started", "interrupted"]
"""States of a job in the journal from which it can go on."""
FINGERPRINT_BYTES = 16


class _Record(msgspec.Struct, frozen=True, gc=False):
    """Common options."""

    request_id: str


class JobAccepted(_Record, frozen=True):
    """It is in the queue. `at` is wall-clock seconds, as in all records."""

    name: str
    """Of its client: whose share, rates and budgets it counts against."""
    submit: Submit
    fingerprint: bytes
    session_id: str
    at: float


class AttemptStarted(_Record, frozen=True):
    """A worker may make a call: from here on a crash leaves the job in doubt."""

    was: int
    """Number of the attempt before, 0 for the first."""
    attempt: int
    tries: int
    """How often it has been dispatched, this time included."""
    at: float


class Kept(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a job that waits again may still try."""

    provider: str
    model: str
    """Where it waits; a fallback, perhaps."""
    fallbacks: list[tuple[str, str]] | None = None
    """None: those of the submit, or of the configuration."""
    remaining: float | None = None
    """Seconds of its timeout that are left; None: all of it."""
    tries_here: int = 0
    refusals: int = 0
    parts: int = 0
    partial: str = ""
    tried: list[Attempt] = []


class JobWaits(_Record, frozen=True):
    """It waits for another call."""

    was: Was
    attempt: int
    kept: Kept
    payload: bytes | None = None
    """Of its next call, where that is not the first one's: parts of the answer are in it."""


class JobEnded(_Record, frozen=True):
    """It is over."""

    was: Was
    attempt: int
    state: str
    at: float
    tries: int = 0
    duration: float = 0.0
    """Seconds of its session."""
    started: bool = False
    """Whether it ever had a session."""
    body: bytes | None = None
    fault: Fault | None = None
    usage: Usage | None = None


Record = JobAccepted | AttemptStarted | JobWaits | JobEnded


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the journal holds it."""

    number: int
    """Order of acceptance."""
    request_id: str
    name: str
    fingerprint: bytes
    session_id: str
    state: str
    attempt: int
    tries: int
    accepted_at: float
    provider: str
    model: str
    priority: str = "normal"
    started_at: float | None = None
    """Of its last attempt."""
    ended_at: float | None = None
    duration: float = 0.0
    had_session: bool = False
    usage: Usage | None = None
    fault: Fault | None = None
    kept: Kept | None = None
    submit: Submit | None = None
    """Of one that can go on."""
    payload: bytes | None = None
    """Of its next call, where that is not the submit's."""
    body: bytes | None = None


def outcome(record: Record) -> tuple[str, int]:
    """(state, attempt) of a job after this record."""
    if isinstance(record, JobAccepted):
        return "queued", 0
    if isinstance(record, JobEnded):
        return record.state, record.attempt
    return "started" if isinstance(record, AttemptStarted) else "queued", record.attempt


def fingerprint(submit: Submit) -> bytes:
    """What makes two submits of one id the same: what is asked, of whom. Not how long one waits, nor the metadata beside it."""
    digest = hashlib.blake2b(digest_size=FINGERPRINT_BYTES)
    for text in (submit.provider, submit.model, submit.operation, "stream" if submit.stream else ""):
        digest.update(text.encode())
        digest.update(b"\0")
    digest.update(submit.payload)
    return digest.digest()
