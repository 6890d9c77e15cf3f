"""The error vocabulary: one class for each fault code, the same for the Python API, the command line and every later door.

Every class says in its docstring what to do. Attributes carry the numbers that the message mentions. Every error survives
pickling and a trip across processes: `to_fault` and `from_fault` are the only border between exceptions and data.
"""

from __future__ import annotations

from typing import Any, ClassVar

from callpool.manager.core.faults import Fault
from callpool.manager.core.strict import INPUT_CODES

__all__ = [
    "AccountStopped",
    "AlreadyRunning",
    "BadInput",
    "BrokenAnswer",
    "BudgetExhausted",
    "CallpoolError",
    "CapacityExceeded",
    "CircuitOpen",
    "ConfigError",
    "ConfigMismatch",
    "ConnectionLost",
    "ContentRefused",
    "CredentialMissing",
    "CredentialRefused",
    "DuplicateRequest",
    "FunctionFailed",
    "FunctionsRefused",
    "HandshakeFailed",
    "HolderGone",
    "IllegalMove",
    "JournalConflict",
    "JournalRefused",
    "JournalUnavailable",
    "KeyInUse",
    "MetadataTooLarge",
    "ModelGone",
    "NotRunning",
    "NotSerializable",
    "NotStarted",
    "PlatformUnsupported",
    "ProtocolError",
    "ProviderError",
    "ProviderOverloaded",
    "ProviderRejected",
    "ProviderUnreachable",
    "Quarantined",
    "QueueFull",
    "QuotaExhausted",
    "RateLimited",
    "RequestCancelled",
    "RequestConflict",
    "RequestInterrupted",
    "RequestTimeout",
    "ResultTimeout",
    "SessionCreationFailed",
    "SessionError",
    "SessionFailed",
    "ShuttingDown",
    "StartFailed",
    "UnknownModel",
    "UnknownProvider",
    "UnknownRequest",
    "UnsafePath",
    "WorkerLost",
    "from_fault",
    "to_fault",
]

_by_code: dict[str, type[CallpoolError]] = {}


class CallpoolError(Exception):
    """Base of every callpool error: read `code`, `message`, `param` and `hint`; figures are attributes and in `details`."""

    code: ClassVar[str] = "internal_error"
    default_hint: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        hint: str | None = None,
        code: str | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.fault = Fault(
            code=code or type(self).code,
            message=message,
            param=param,
            hint=hint if hint is not None else type(self).default_hint,
            details=details,
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            if cls.code in _by_code:
                raise TypeError(f"{cls.__name__} reuses the code {cls.code!r} of {_by_code[cls.code].__name__}")
            _by_code[cls.code] = cls

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return self.fault.message

    @property
    def param(self) -> str | None:
        """Dotted path of the field at fault, or None."""
        return self.fault.param

    @property
    def hint(self) -> str | None:
        """What to do about it, or None."""
        return self.fault.hint

    @property
    def details(self) -> dict[str, Any]:
        """The figures behind the message, by name; each is an attribute of the error too."""
        return dict(self.fault.details)

    def __getattr__(self, name: str) -> Any:
        fault = self.__dict__.get("fault")
        if fault is not None and name in fault.details:
            return fault.details[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __str__(self) -> str:
        return self.fault.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_fault, (self.fault,))


# Whose fault: the caller's input.


class BadInput(CallpoolError, ValueError):
    """A field of the request is wrong: `param` names it and the message names the limit. Correct it and submit again."""

    code = "bad_input"


class UnknownProvider(BadInput):
    """The configuration has no such provider: `callpool config check` lists those it has."""

    code = "unknown_provider"


class UnknownModel(BadInput):
    """The provider's configuration lists models and this is none of them: use a listed one, or add it."""

    code = "unknown_model"


class NotSerializable(BadInput, TypeError):
    """A value cannot travel as JSON (a function, a lock, bytes): send plain data."""

    code = "not_serializable"


class ConfigError(BadInput):
    """The configuration is refused whole: the message names file, line, key and the nearest valid name."""

    code = "config_invalid"


class UnknownRequest(CallpoolError, LookupError):
    """No request has this id, or it has been forgotten: the history keeps a bounded number of finished requests."""

    code = "unknown_request"


# Whose fault: the state of the pool.


class SessionError(CallpoolError, RuntimeError):
    """Base of what the session bookkeeping refuses: read the subclass."""

    code = "session_error"


class CapacityExceeded(SessionError):
    """All slots are taken: wait, release a session, or raise `max_concurrent_sessions`. `submit` waits by itself."""

    code = "capacity_full"


class MetadataTooLarge(SessionError):
    """The metadata is over the limit, measured as UTF-8 bytes of its JSON: send less, or raise `max_metadata_size`."""

    code = "metadata_too_large"


class ShuttingDown(SessionError):
    """The supervisor drains: submit to the next one, or start it again."""

    code = "draining"


class SessionCreationFailed(SessionError):
    """A session could not be created for a reason of its own: the message has the cause; nothing was kept."""

    code = "session_creation_failed"


class DuplicateRequest(SessionError):
    """A request with this id is active: use a new id, or none and let callpool make one."""

    code = "duplicate_request"


class RequestConflict(SessionError):
    """A job with this id asks for something else: nothing was changed. Use a new id, or send what was sent first."""

    code = "request_conflict"


class IllegalMove(SessionError):
    """The state table has no such move from this state: look at `state` first. Nothing was changed."""

    code = "illegal_move"


class SessionFailed(SessionError):
    """The holder of the session said that its work failed: the message is the holder's."""

    code = "session_failed"


class HolderGone(SessionError):
    """The process that held the session ended, or let go of its connection: create a new session."""

    code = "holder_gone"


class FunctionsRefused(SessionError):
    """This program may not have functions run: use `where="caller"`, or a Python client and `function_workers` above 0."""

    code = "functions_refused"


class FunctionFailed(SessionError):
    """The function raised, and its exception could not travel: the message has its type and text."""

    code = "function_failed"


class QueueFull(CallpoolError, RuntimeError):
    """As many requests wait as the configuration allows: submit later, or raise `max_queued_requests`."""

    code = "queue_full"


class BudgetExhausted(CallpoolError, RuntimeError):
    """A day's tokens or money of the account, organisation or client are used up: submit later, or raise the limit."""

    code = "budget_exhausted"


class JournalUnavailable(CallpoolError, RuntimeError):
    """No job can be taken now, because none could be written down: see the reason; submit later, or without `durable`."""

    code = "journal_unavailable"


class CredentialMissing(CallpoolError, RuntimeError):
    """The provider needs a key and none was found when the supervisor started: set it and restart."""

    code = "credential_missing"


# How a request ended.


class RequestTimeout(CallpoolError, TimeoutError):
    """The call reached a deadline, `which` tells the one, and was ended (at the provider, where `sent`): raise it, or ask for less."""

    code = "timeout"


class ResultTimeout(CallpoolError, TimeoutError):
    """Only this wait ended; the request goes on: call `result()` again, or `cancel()`."""

    code = "result_wait_timeout"


class RequestCancelled(CallpoolError):
    """Cancelled, or its client went away, or a drain cut it: see the message; `cancel_seconds` until a call was ended, if one was."""

    code = "cancelled"


class RequestInterrupted(CallpoolError, RuntimeError):
    """In doubt: the call had started and its outcome is unknown; it may have been billed. Submit again if that is all right."""

    code = "interrupted"


class NotStarted(CallpoolError, RuntimeError):
    """The request lost its workers before its call began: nothing was billed. Submit again; look at the workers' deaths."""

    code = "not_started"


class Quarantined(RequestInterrupted):
    """Three workers died with this request: it may be what kills them. In doubt, as its base says; look at the request."""

    code = "quarantined"


class WorkerLost(RequestInterrupted):
    """The worker died during the call: in doubt, as its base says. Other calls were not touched."""

    code = "worker_lost"


# Whose fault: the provider, or the way to it.


class ProviderError(CallpoolError, RuntimeError):
    """The provider failed (an answer of 5xx, or an error in the body): try again later."""

    code = "provider_error"


class ProviderUnreachable(ProviderError):
    """No connection to the provider, or it broke: check the network and `base_url`, then try again."""

    code = "provider_unreachable"


class ProviderRejected(ProviderError):
    """The provider refused the request's content or parameters: change the request."""

    code = "provider_rejected"


class ContentRefused(ProviderRejected):
    """The provider's filter refused the prompt or the answer: change the prompt; the text until then is in `partial`."""

    code = "content_refused"


class CredentialRefused(ProviderError):
    """The provider refused the key: check the key and the platform it belongs to."""

    code = "credential_refused"


class QuotaExhausted(ProviderError):
    """The account has no money left, or its plan has ended: top it up or check the plan; the provider refuses it until then."""

    code = "quota_exhausted"


class ModelGone(ProviderError):
    """The provider does not know the model (any more): choose another one."""

    code = "model_gone"


class RateLimited(ProviderError):
    """The provider refused by a limit of the account, `limit` tells which: lower `concurrency`, or wait `retry_after` seconds."""

    code = "rate_limited"


class ProviderOverloaded(ProviderError):
    """The provider has no capacity at the moment, whoever asks: try again later, or another model."""

    code = "provider_overloaded"


class CircuitOpen(ProviderError):
    """The provider failed for request after request, so callpool left it alone for a while: see the cause in the message."""

    code = "circuit_open"


class AccountStopped(ProviderError):
    """The provider refuses the whole account: mend its key or its balance, then `callpool account resume NAME`."""

    code = "account_stopped"


class BrokenAnswer(ProviderError):
    """The provider's answer cannot be understood or stops in the middle: try again; partial text is in `partial`."""

    code = "broken_answer"


class ConfigMismatch(CallpoolError, RuntimeError):
    """A supervisor runs with other settings than were asked for: take its settings, or stop it first. `wanted`, `running`."""

    code = "config_mismatch"


# The way to the supervisor.


class NotRunning(CallpoolError, ConnectionError):
    """No supervisor answers at this address: run `callpool start`, or use `callpool.start()`."""

    code = "not_running"


class ConnectionLost(CallpoolError, ConnectionError):
    """The connection to the supervisor broke: live calls end with it; connect again."""

    code = "connection_lost"


class HandshakeFailed(CallpoolError, ConnectionError):
    """The supervisor and this client do not trust each other or speak other versions: see the message."""

    code = "handshake_failed"


class ProtocolError(CallpoolError, RuntimeError):
    """A frame is too large, malformed, or names an unknown verb: both sides must run the same version."""

    code = "bad_frame"


# Starting and stopping.


class AlreadyRunning(CallpoolError, RuntimeError):
    """Another supervisor holds this directory: connect to it, stop it, or use another directory."""

    code = "already_running"


class KeyInUse(AlreadyRunning):
    """Another supervisor holds this provider key's ledger: connect to that one; two ledgers on one key reject each other."""

    code = "key_in_use"


class StartFailed(CallpoolError, RuntimeError):
    """The supervisor did not get ready: the message has its last words, the log has the rest."""

    code = "start_failed"


class JournalRefused(CallpoolError, RuntimeError):
    """The journal's file is not ours, newer than we are, damaged, or where it cannot be trusted: nothing was changed in it."""

    code = "journal_refused"


class JournalConflict(CallpoolError, RuntimeError):
    """The journal holds another state of a job than the supervisor: a defect, please report it with the log."""

    code = "journal_conflict"


UNWRITABLE = (JournalConflict, TypeError, ValueError, OverflowError)
"""What a record is at fault for, and no disk: it is so with every try."""


class UnsafePath(CallpoolError, PermissionError):
    """A directory or file could be read or replaced by another user: correct its owner or mode as the message says."""

    code = "unsafe_path"


class PlatformUnsupported(CallpoolError, RuntimeError):
    """callpool runs on Linux, and on macOS with fewer guards: use one of these."""

    code = "platform_unsupported"


def to_fault(error: BaseException) -> Fault:
    """The fault of any exception; a foreign one becomes `internal_error` with its type's name and no traceback."""
    if isinstance(error, CallpoolError):
        return error.fault
    return Fault(code=CallpoolError.code, message=f"{type(error).__name__}: {error}"[:500])


def from_fault(fault: Fault) -> CallpoolError:
    """The exception of a fault; an unknown code (a newer peer) becomes the base class and keeps its code."""
    kind = _by_code.get(fault.code) or (BadInput if fault.code in INPUT_CODES else CallpoolError)
    error = kind.__new__(kind)
    Exception.__init__(error, fault.message)
    error.fault = fault
    return error
