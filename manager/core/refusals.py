"""The words of the machine: every fault that it gives for a refusal or an end, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core.faults import Detail, Fault
from callpool.manager.core.states import State

if TYPE_CHECKING:
    from callpool.manager.core.requests import Request
    from callpool.manager.core.scheduler import Scheduler

BY_DRAIN = "drain"
"""The `reason` of an end that a drain's deadline made."""


def draining() -> Fault:
    """No new request: the supervisor drains. The specification fixes the text."""
    return Fault(
        code="draining",
        message="Session manager is shutting down, cannot create new sessions",
        hint="submit again when the supervisor has restarted",
    )


def duplicate(request_id: str) -> Fault:
    """The id is in use."""
    return Fault(
        code="duplicate_request",
        message=f"a request with the id {request_id!r} is active",
        param="request_id",
        hint="use another id, or none",
    )


def queue_full(scheduler: Scheduler, promised: int) -> Fault:
    """No place in the queue."""
    waiting, limit = len(scheduler), scheduler.max_requests
    return Fault(
        code="queue_full",
        message=f"The queue is full: {waiting} requests wait and {promised} places are promised to clients "
        f"(limit {limit} requests; {scheduler.queued_bytes} of {scheduler.max_bytes} bytes)",
        hint="submit later, or raise max_queued_requests",
        details={"waiting": waiting, "promised": promised, "limit": limit, "queued_bytes": scheduler.queued_bytes},
    )


def cancelled(by: str) -> Fault:
    """Somebody asked for the end."""
    return Fault(code="cancelled", message=f"cancelled by {by}", details={"reason": "asked"})


def client_gone() -> Fault:
    """Nobody waits for it any more."""
    return Fault(code="cancelled", message="the client went away", details={"reason": "client_gone"})


def cut_by_drain() -> Fault:
    """The drain's deadline came first."""
    return Fault(code="cancelled", message="the supervisor shut down before this ended", details={"reason": BY_DRAIN})


def timed_out(request: Request) -> Fault:
    """The call is past its deadline, and past its worker's own."""
    details: dict[str, Detail] = {"seconds": request.timeout, "which": "total"}
    return Fault(code="timeout", message=f"the call did not end within {request.timeout:g} s", details=details)


def worker_lost(request: Request, worker: int, reason: str) -> Fault:
    """Its worker died during the call."""
    details: dict[str, Detail] = {"worker": worker, "attempt": request.tries}
    message = f"worker {worker} {reason} during the call: it may have been billed"
    return Fault(code="worker_lost", message=message, details=details)


def never_started(request: Request, worker: int, reason: str) -> Fault:
    """Worker after worker died before its call began."""
    details: dict[str, Detail] = {"worker": worker, "attempt": request.tries}
    message = f"worker {worker} {reason}; this request lost {request.tries} workers before its call began"
    return Fault(code="not_started", message=message, details=details)


def unacknowledged(request: Request) -> Fault:
    """It was ordered to end, and its worker never said that it did."""
    ending = request.ending or Fault(code="cancelled", message="ended")
    if request.state is not State.PROCESSING:
        return ending  # the worker never said that the call began: there is no outcome to doubt
    message = f"{ending.message}; the worker did not acknowledge the end of the call, its outcome is unknown"
    return Fault(code="interrupted", message=message, details=dict(ending.details))
