"""A job as doors tell it: the row of a list, the record of `show`, the line of an export. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from callpool.manager.core.requests import Kind, Phase, Record
from callpool.manager.core.states import ENDED, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from callpool.manager.core.messages import Submit
    from callpool.manager.core.records import Job
    from callpool.manager.store import Past

STATES = ("queued", "started", *sorted(state.value for state in ENDED - {State.REJECTED}))
"""A job's states in the journal."""


def summary(job: Job) -> dict[str, Any]:
    """A job as the dict that doors print, without prompt and result."""
    return {
        "number": job.number,
        "request_id": job.request_id,
        "client": job.name,
        "provider": job.provider,
        "model": job.model,
        "priority": job.priority,
        "state": job.state,
        "ended": job.ended_at is not None,
        "session_id": _session_of(job),
        "attempts": job.tries,
        "accepted_at": job.accepted_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "duration": job.duration,
        "fault": None if job.fault is None else msgspec.to_builtins(job.fault),
        "usage": None if job.usage is None else msgspec.to_builtins(job.usage),
    }


def exported(job: Job, *, payload: bool, results: bool) -> dict[str, Any]:
    """A job with its texts, as bytes of JSON: `request` is None where the prompt was dropped with the end, or none is wanted."""
    told = summary(job)
    if payload:
        told["request"] = None if job.submit is None else _request_of(job.submit)
    if results:
        told["result"] = job.body
    return told


_UNKNOWN: Final[dict[str, Any]] = dict.fromkeys(Record.__struct_fields__)
"""All that a record may tell, and nothing of it."""


def record_of(job: Job) -> dict[str, Any]:
    """A job of which only the journal knows, under the names of `Record`; what is not kept of it is None."""
    phases = [(Phase.RECEIVED, job.accepted_at)]
    if job.started_at is not None:
        phases.append((Phase.SESSION_ALLOCATED, job.started_at))
    if job.ended_at is not None:
        phases.append((Phase[job.state.upper()], job.ended_at))
    return {
        **_UNKNOWN,
        "request_id": job.request_id,
        "session_id": _session_of(job),
        "provider": job.provider,
        "model": job.model,
        "state": job.state,
        "kind": Kind.CALL.value,
        "attempt": job.tries,
        "phases": _phases(phases),
        "duration": job.duration,
        "fault": None if job.fault is None else msgspec.to_builtins(job.fault),
        "attempts": [] if job.kept is None else msgspec.to_builtins(job.kept.tried),
        "name": job.name,
        "priority": job.priority,
        "prompt_tokens": None if job.usage is None else job.usage.prompt,
        "answer_tokens": None if job.usage is None else job.usage.answer,
        "durable": True,
    }


def record_of_past(past: Past) -> dict[str, Any]:
    """A session of which only the history knows, under the same names."""
    phases = [(Phase.SESSION_ALLOCATED, past.created_at)]
    if past.started_at is not None:
        phases.append((Phase.PROVIDER_CALL_START, past.started_at))
    if past.ended_at is not None:
        phases.append((Phase[past.state.upper()], past.ended_at))
    began = past.created_at if past.started_at is None else past.started_at
    return {
        **_UNKNOWN,
        "request_id": past.request_id,
        "session_id": past.session_id,
        "provider": past.provider,
        "model": past.model,
        "state": past.state,
        "phases": _phases(phases),
        "duration": 0.0 if past.ended_at is None else max(0.0, past.ended_at - began),
        "attempts": [],
        "durable": False,
    }


def _phases(phases: Sequence[tuple[Phase, float]]) -> list[dict[str, Any]]:
    first = phases[0][1]
    return [{"phase": phase.value, "at": at, "after_seconds": max(0.0, at - first)} for phase, at in phases]


def _session_of(job: Job) -> str | None:
    return job.session_id if job.had_session or job.tries else None


def _request_of(submit: Submit) -> dict[str, Any]:
    return {"payload": submit.payload, "metadata": submit.metadata, "stream": submit.stream, "timeout": submit.timeout}
