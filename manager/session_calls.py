"""What the sync and the async session manager share: arguments on their way, answers on their way back. No I/O."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from callpool.manager.core.catalogue import MAX_TIMEOUT, refuse_timeout
from callpool.manager.core.held import MAX_ERROR, SessionView
from callpool.manager.errors import (
    BadInput,
    CallpoolError,
    ProtocolError,
    RequestTimeout,
    SessionCreationFailed,
    ShuttingDown,
    from_fault,
)
from callpool.manager.payload import encode_metadata, encode_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from callpool.manager.core.messages import Done

Where = Literal["caller", "worker"]
"""Which process runs a function: the caller's own, or one that can be killed."""


class Asked(NamedTuple):
    """What `execute_with_session` was asked for, besides the function."""

    provider: str
    model: str
    request_id: str | None
    timeout_seconds: float | None
    enforce: bool


class SessionIds(NamedTuple):
    """What a session is told by. Both are made up by the client, so that it can end what it was not told of."""

    request_id: str
    session_id: str


FIGURES = (
    "shutdown_duration",
    "initial_active_sessions",
    "final_active_sessions",
    "sessions_completed_during_shutdown",
    "timeout_reached",
    "total_sessions_at_shutdown",
)
"""What `shutdown` returns of the drain report."""
SHUTDOWN_MARGIN = 30.0
"""Seconds beyond a drain's own timeout for its report to come."""


def create_arguments(
    *,
    provider: str,
    model: str,
    request_id: str,
    timeout_seconds: float | None,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of `create_session`. Raises SessionCreationFailed, naming the field."""
    try:
        for name, value in (("provider", provider), ("model", model), ("request_id", request_id)):
            if not isinstance(value, str):
                raise BadInput(f"{name} must be a string, got {type(value).__name__}", param=name)
            if not value.isascii():
                _check_text(name, value)
        if (fault := refuse_timeout(timeout_seconds, "timeout_seconds")) is not None:
            raise from_fault(fault)
        encoded = encode_metadata(metadata)
    except CallpoolError as error:
        raise SessionCreationFailed(
            f"Failed to create session: {error.message}", param=error.param, **error.details
        ) from error
    return {
        "request_id": request_id,
        "provider": provider,
        "model": model,
        "metadata": encoded,
        "timeout_seconds": None if timeout_seconds is None else float(timeout_seconds),
    }


def _check_text(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{name} holds half of a surrogate pair, which is no text", param=name) from None


def complete_arguments(result: Any) -> dict[str, Any]:
    """The arguments of the move `complete`. Raises NotSerializable or BadInput."""
    return {"move": "complete"} if result is None else {"move": "complete", "result": encode_result(result)}


def fail_arguments(error: object) -> dict[str, Any]:
    """The arguments of the move `fail`: any exception, or a text."""
    if isinstance(error, CallpoolError):
        return {"move": "fail", "error": error.message[:MAX_ERROR], "code": error.fault.code}
    text = f"{type(error).__name__}: {_text_of(error)}" if isinstance(error, BaseException) else _text_of(error)
    return {"move": "fail", "error": text[:MAX_ERROR].encode("utf-8", "backslashreplace").decode()}


def end_arguments(error: BaseException | None) -> dict[str, Any]:
    """The arguments of the move that ends a session whose work came to this: done, failed, or broken off (Ctrl-C, a cancel)."""
    if error is None:
        return {"move": "complete"}
    return fail_arguments(error) if isinstance(error, Exception) else {"move": "cancel"}


def check_execution(func: object, where: object) -> None:
    """Raises BadInput for what cannot be run, or not there."""
    if where not in ("caller", "worker"):
        raise BadInput(f"where must be 'caller' or 'worker', got {where!r:.80}", param="where")
    if not callable(func):
        raise BadInput(f"func must be callable, got {type(func).__name__}", param="func")


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - `str` runs code of the caller's, and the session has to end all the same
        return f"<{type(value).__name__} whose text cannot be had: {type(error).__name__}>"


def read_view(value: Any) -> SessionView:
    """A view from its plain form."""
    try:
        return msgspec.convert(value, SessionView)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the supervisor's answer is no session ({error}): both must be of one version") from None


def with_session(result: Any, *, session_id: str, request_id: str, duration: float) -> Any:
    """The result with `metadata.session`, if it is a dict: a copy, so that a dict which the function shares stays its own."""
    if not isinstance(result, dict):
        return result
    metadata = result.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        return result  # something of the function's own; it is not ours to replace
    named = copy.copy(result)
    named["metadata"] = {
        **(metadata or {}),
        "session": {"session_id": session_id, "request_id": request_id, "duration_seconds": duration},
    }
    return named


def timed_out(seconds: float) -> RequestTimeout:
    """The TimeoutError of work that was not done in time."""
    return RequestTimeout(f"the session did not end within {seconds:g} s", seconds=seconds, which="total")


def body_of(done: Done) -> bytes:
    """The outcome of a function in a worker process, encoded. Raises how its session ended where there is none."""
    if done.body is None:
        raise from_fault(done.fault) if done.fault is not None else ProtocolError("the function's outcome is missing")
    return done.body


def outcome_of(body: bytes) -> Any:
    """What a function in a worker process came to. Raises its own exception."""
    from callpool.workers.callables import decode_outcome  # noqa: PLC0415 - most clients run no functions

    outcome = decode_outcome(body)
    if outcome.exception is not None:
        raise outcome.exception
    return outcome.value


def function_timeout(timeout_seconds: float | None, *, enforce: bool) -> float | None:
    """Seconds for a function in a worker process; without enforcement as long as anything may take."""
    return timeout_seconds if enforce else MAX_TIMEOUT


def check_shutdown_timeout(timeout_seconds: float) -> float:
    """A drain may take no time at all, and must end. Raises BadInput."""
    if timeout_seconds != 0 and (fault := refuse_timeout(timeout_seconds, "timeout_seconds")) is not None:
        raise from_fault(fault)
    return float(timeout_seconds)


def shut_down(*, creating: bool = True) -> ShuttingDown:
    """What a manager says whose supervisor this process has shut down; of a creation, the specification's text."""
    if creating:
        return ShuttingDown("Session manager is shutting down, cannot create new sessions")
    return ShuttingDown("the session manager has been shut down: there is nobody left to ask")


def nothing(_last: Mapping[str, Any]) -> None:
    """What is left of a session when its supervisor has been shut down."""


def empty_page(_last: Mapping[str, Any]) -> tuple[list[Any], None]:
    """The list of active sessions when the supervisor has been shut down."""
    return [], None


def warn_of_remaining(log: logging.Logger, last: Mapping[str, Any], seconds: float) -> None:
    """The warning of the contract, where sessions were still active at the deadline."""
    left = last["report"]["final_active_sessions"]
    if left:
        log.warning("shut down after %g s with %s sessions still active", seconds, left)
