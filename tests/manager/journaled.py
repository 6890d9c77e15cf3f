"""Records of jobs, and journals to put them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import Submit
from callpool.manager.core.records import (
    AttemptStarted,
    Job,
    JobAccepted,
    JobEnded,
    JobWaits,
    Kept,
    Record,
    Was,
    fingerprint,
)
from callpool.manager.core.retry import Attempt
from callpool.manager.store import Store

SUBMIT = Submit(
    request_id="a",
    provider="kimi",
    model="large",
    payload=b'{"messages":[]}',
    metadata=b'{"who":"\xc3\xa4"}',
    timeout=12.5,
    stream=True,
    acknowledge=False,
    first_token_timeout=1.5,
    idle_timeout=2.5,
    max_attempts=4,
    fallbacks=["glm/small", "kimi/small"],
    retry_in_doubt=True,
    operation="embeddings",
    tokens=Usage(prompt=11, answer=22, cached=5),
    priority="batch",
    queue_timeout=33.0,
    affinity="warm",
    durable=True,
)
"""With every option other than it is by itself."""
KEPT = Kept(
    provider="glm",
    model="small",
    fallbacks=[("kimi", "small"), ("kimi", "tiny")],
    remaining=7.25,
    tries_here=2,
    refusals=3,
    parts=4,
    partial="so fär",
    tried=[
        Attempt(1, "kimi", "large", 3, True, 0.5, "provider_error", "it failed", 1.25),
        Attempt(2, "glm", "small", None, False, 0.0, "not_started", "no worker", 0.0),
    ],
)
FAULT = Fault(
    code="provider_error",
    message="it said 503: „später“",
    param="model",
    hint="try again",
    details={"status": 503, "seconds": 1.5, "sent": True, "which": "first", "none": None},
)
USAGE = Usage(prompt=10, answer=20, cached=3)
ELSEWHERE = Kept(provider="glm", model="small")
"""Where a job waits again, and nothing else about it."""


def accepted(request_id: str = "a", *, at: float = 1000.25, **options: Any) -> JobAccepted:
    submit = Submit(request_id, "kimi", "large", b"{}", durable=True)
    submit = msgspec.structs.replace(submit, **options)
    return JobAccepted(request_id, "client", submit, fingerprint(submit), f"s-{request_id}", at)


def started(
    request_id: str = "a", *, was: int = 0, attempt: int = 1, tries: int = 1, at: float = 1001.5
) -> AttemptStarted:
    return AttemptStarted(request_id, was, attempt, tries, at)


def waits(
    request_id: str = "a",
    *,
    was: Was = "started",
    attempt: int = 1,
    kept: Kept = ELSEWHERE,
    payload: bytes | None = None,
) -> JobWaits:
    return JobWaits(request_id, was, attempt, kept, payload)


def ended(
    request_id: str = "a",
    *,
    was: Was = "started",
    attempt: int = 1,
    state: str = "completed",
    at: float = 1002.75,
    **more: Any,
) -> JobEnded:
    return JobEnded(request_id, was, attempt, state, at, **more)


def whole(request_id: str = "a", *, attempt: int = 1, at: float = 1002.75) -> list[Record]:
    """A job from its acceptance to its answer."""
    return [accepted(request_id), started(request_id, attempt=attempt), ended(request_id, attempt=attempt, at=at)]


def the(store: Store, request_id: str = "a") -> Job:
    """A job that is there, with all that is kept of it."""
    job = store.one(request_id)
    assert job is not None, f"{request_id} is gone"
    return job


def files(path: Path) -> dict[str, tuple[int, bytes]]:
    """What a directory holds: the content of each file, and when it was last written."""
    return {each.name: (each.stat().st_mtime_ns, each.read_bytes()) for each in path.iterdir() if each.is_file()}


def copied(path: Path, into: Path) -> Path:
    """A journal as a crash at this moment leaves it."""
    into.mkdir(mode=0o700)
    for each in (path, path.with_name(f"{path.name}-wal")):
        copy = into / each.name
        copy.write_bytes(each.read_bytes())
        copy.chmod(0o600)
    return into / path.name
