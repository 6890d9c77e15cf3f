"""A job as doors tell it: the row of a list, the record of `show`, the line of an export. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager.core.requests import Kind, Phase
from callpool.manager.core.states import ENDED, State

if TYPE_CHECKING:
    from callpool.manager.core.messages import Submit
    from callpool.manager.core.records import Job

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


def record_of(job: Job) -> dict[str, Any]:
    """A job of which only the journal knows, under the names of `Record`; what is not kept of it is None."""
    phases = [(Phase.RECEIVED, job.accepted_at)]
    if job.started_at is not None:
        phases.append((Phase.SESSION_ALLOCATED, job.started_at))
    if job.ended_at is not None:
        phases.append((Phase[job.state.upper()], job.ended_at))
    return {
        "request_id": job.request_id,
        "session_id": _session_of(job),
        "client": None,
        "provider": job.provider,
        "model": job.model,
        "state": job.state,
        "kind": Kind.CALL.value,
        "attempt": job.tries,
        "worker": None,
        "timeout": None,
        "metadata_bytes": None,
        "payload_bytes": None,
        "phases": [
            {"phase": phase.value, "at": at, "after_seconds": max(0.0, at - job.accepted_at)} for phase, at in phases
        ],
        "duration": job.duration,
        "fault": None if job.fault is None else msgspec.to_builtins(job.fault),
        "first_token_timeout": None,
        "idle_timeout": None,
        "attempts": [] if job.kept is None else msgspec.to_builtins(job.kept.tried),
        "name": job.name,
        "priority": job.priority,
        "prompt_tokens": None if job.usage is None else job.usage.prompt,
        "answer_tokens": None if job.usage is None else job.usage.answer,
        "position": None,
        "durable": True,
        "blocked": None,
        "predicted_wait": None,
    }


def _session_of(job: Job) -> str | None:
    return job.session_id if job.had_session or job.tries else None


def _request_of(submit: Submit) -> dict[str, Any]:
    return {"payload": submit.payload, "metadata": submit.metadata, "stream": submit.stream, "timeout": submit.timeout}
