"""The lifecycle log as a client uses it: notes go out and are never waited for, questions are answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from callpool.manager.core.catalogue import MAX_MODEL_NAME, REQUEST_ID, refuse_timeout
from callpool.manager.core.messages import Note
from callpool.manager.core.requests import Phase
from callpool.manager.errors import BadInput, from_fault
from callpool.manager.payload import encode_metadata

if TYPE_CHECKING:
    from callpool.manager.client import Client

PHASES = tuple(phase.value for phase in Phase)
"""Every phase that the supervisor records."""


class LifecycleLogger:
    """The log of one supervisor. It is bounded by count, age and bytes; secrets in metadata are not shown."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def log_event(
        self,
        phase: str,
        request_id: str,
        /,
        session_id: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        **metadata: Any,
    ) -> None:
        """Add a line of one's own: beside the supervisor's phases, never in place of them. Does not wait.

        Raises BadInput or NotSerializable, and ConnectionLost. Metadata over the supervisor's limit is dropped there, and counted.
        """
        if phase not in PHASES:
            raise BadInput(f"phase must be one of {', '.join(PHASES)}, got {phase!r:.80}", param="phase")
        texts = {"request_id": request_id, "session_id": session_id, "provider": provider, "model": model}
        for name, value in texts.items():
            if value is not None and not isinstance(value, str):
                raise BadInput(f"{name} must be a string, got {type(value).__name__}", param=name)
            if value is not None and len(value) > MAX_MODEL_NAME:
                raise BadInput(f"{name} has {len(value)} characters, the limit is {MAX_MODEL_NAME}", param=name)
        if not request_id or REQUEST_ID.fullmatch(request_id) is None:
            raise BadInput(f"request_id must match {REQUEST_ID.pattern}, got {request_id!r:.80}", param="request_id")
        self._client.note(Note(request_id, phase, time.time(), session_id, provider, model, encode_metadata(metadata)))

    def get_request_events(self, request_id: str) -> list[dict[str, Any]]:
        """Every event of a request in order: phase, timestamp, seconds since the first, provider, model, metadata."""
        events: list[dict[str, Any]] = self._ask("events", request_id=request_id)
        return events

    def get_active_requests(self) -> list[str]:
        """Ids of the requests that have not ended."""
        active: list[str] = self._ask("active")
        return active

    def get_request_duration(self, request_id: str) -> float | None:
        """Milliseconds from a request's first event to its end, or to now; None if it is unknown."""
        return self._milliseconds(self._ask("request_duration", request_id=request_id))

    def get_phase_duration(self, request_id: str, phase: str, until: str | None = None) -> float | None:
        """Milliseconds in a phase: to the next event, or to the first `until` after it. None if one of them is unknown."""
        return self._milliseconds(self._ask("phase_duration", request_id=request_id, phase=phase, until=until))

    def get_statistics(self) -> dict[str, Any]:
        """total_requests, active_requests, completed_requests, average/min/max_duration_ms, total_events, and the log's own size."""
        statistics: dict[str, Any] = self._ask("statistics")
        return statistics

    def cleanup_completed_requests(self, older_than_seconds: float = 3600.0) -> int:
        """Forget requests that ended longer ago; returns how many. The log's own bounds do the same by themselves."""
        if older_than_seconds != 0 and (fault := refuse_timeout(older_than_seconds, "older_than_seconds")) is not None:
            raise from_fault(fault)
        return int(self._ask("cleanup", older_than=float(older_than_seconds)))

    def _ask(self, query: str, **arguments: Any) -> Any:
        return self._client.ask("lifecycle", query=query, **arguments)

    @staticmethod
    def _milliseconds(value: Any) -> float | None:
        return None if value is None else float(value)
