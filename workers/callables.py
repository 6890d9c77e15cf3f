"""A function call as bytes, on its way to another process, and its outcome on the way back.

    caller                                          process of the function lane
    encode_call ──► [ python · path · cwd · dill ] ──► decode_call ─► run
    decode_outcome ◄── [ raised · dill · text ] ◄───── encode_outcome

The dill part is opened last: what it refers to by name is found only when the caller's `sys.path` is in place. Functions and
classes of `__main__`, or made inside a function, have no name that another process could import: they travel by value, each
function with the globals that it names. A class that went by value comes back as itself, so that `except MyError` works.
"""

from __future__ import annotations

import asyncio
import enum
import importlib
import inspect
import io
import os
import sys
import threading
import traceback
import uuid
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from callpool.manager import wire
from callpool.manager.core.faults import Fault
from callpool.manager.errors import BadInput, FunctionFailed, NotSerializable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_CALL = 8 * 1024 * 1024
"""Bytes of one call with its arguments; the same as the catalogue's limit of a payload."""
MAX_OUTCOME = 16 * 1024 * 1024
"""Bytes of one outcome; the same as of a provider's answer."""
MAX_MESSAGE = 500
"""Characters of an exception's own message inside ours."""
MAX_TRACEBACK = 32 * 1024
"""Characters of a remote traceback; of a longer one the end is kept, where the cause is."""
FUNCTION_FAILED = FunctionFailed.code


class RemoteTraceback(Exception):
    """The traceback of the other process, as text: the `__cause__` of an exception that came from there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass(slots=True)
class Outcome:
    """How a call ended: `exception` is what the function raised, else `value` is what it returned."""

    value: Any = None
    exception: BaseException | None = None


@dataclass(slots=True)
class Call:
    """One call, ready to run."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    classes: dict[str, type] = field(default_factory=dict)
    """The caller's classes that came by value, by the token under which the caller knows them."""

    def run(self) -> Any:
        """Call the function; a coroutine is run to its end."""
        result = self.func(*self.args, **self.kwargs)
        return asyncio.run(result) if inspect.iscoroutine(result) else result


class _CallEnvelope(msgspec.Struct, frozen=True, array_like=True):
    python: str
    path: list[bytes]
    cwd: bytes
    body: bytes


class _OutcomeEnvelope(msgspec.Struct, frozen=True, array_like=True):
    raised: bool
    body: bytes
    """Empty where the exception cannot travel: then the texts are all there is."""
    kind: str = ""
    message: str = ""
    traceback: str = ""


_call_decoder = msgspec.msgpack.Decoder(_CallEnvelope)
_outcome_decoder = msgspec.msgpack.Decoder(_OutcomeEnvelope)


# The way there.


def encode_call(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, limit: int = MAX_CALL
) -> bytes:
    """The call and what it needs to find the caller's modules. Raises NotSerializable, or BadInput beyond `limit` bytes."""
    cwd, path = _context()
    classes: dict[str, type] = {}
    arguments, options = tuple(args), dict(kwargs)

    def remember(found: object) -> None:
        if not issubclass(type(found), type):  # not isinstance: that asks the object, and a proxy may refuse
            return
        kind = cast("type", found)
        if _goes_by_value(kind):
            if issubclass(type(kind), enum.EnumMeta):
                raise TypeError(f"dill cannot take along {kind!r}: define it in a module that can be imported")
            token = _travelled.token_of(kind)
            if token is not None:
                classes[token] = kind

    try:
        # `classes` is filled while what stands before it is pickled, and is pickled itself as references to that.
        body = _dump((func, arguments, options, classes), limit, remember)
    except _TooLarge as error:
        raise _too_large("the function with its arguments", error.size, limit, "func") from None
    except Exception as error:
        what = _culprit(func, arguments, options, lambda part: _dump(part, limit, remember))
        raise NotSerializable(f"{what} cannot travel to another process: {describe(error)}", param="func") from error
    payload = wire.encoder.encode(_CallEnvelope(_python(), path, cwd, body))
    if len(payload) > limit:
        raise _too_large("the function with its arguments", len(payload), limit, "func")
    return payload


def decode_call(payload: bytes, *, own_path: Sequence[str] | None = None) -> Call:
    """Prepare this process as the caller's is, then open the call. `own_path` is what `sys.path` keeps after the caller's entries.

    Changes `sys.path` and the working directory of the process. Raises CallpoolError where the call cannot be opened.
    """
    envelope: _CallEnvelope = wire.decode(_call_decoder, payload, "call")
    if envelope.python != _python():  # code of another version crashes the interpreter
        raise BadInput(
            f"func comes from {envelope.python} and the pool runs {_python()}: code does not travel between versions",
            param="func",
            hint="run the supervisor with the caller's version of Python",
        )
    cwd = os.fsdecode(envelope.cwd)
    try:
        os.chdir(cwd)
    except OSError as error:
        raise BadInput(f"the caller's working directory {cwd!r} cannot be entered: {error.strerror}") from error
    theirs = [os.fsdecode(entry) for entry in envelope.path]
    ours = sys.path if own_path is None else own_path
    sys.path[:] = [*theirs, *(entry for entry in ours if entry not in theirs)]
    importlib.invalidate_caches()  # the caller may have written a module a moment ago
    try:
        func, args, kwargs, classes = _load(envelope.body)
    except Exception as error:
        raise NotSerializable(
            f"the function cannot be opened in its own process: {describe(error)}",
            param="func",
            hint="what it needs must be importable there: from the caller's sys.path, by the same Python",
        ) from error
    return Call(func, args, kwargs, classes)


# The way back.


def encode_outcome(outcome: Outcome, classes: Mapping[str, type] | None = None) -> tuple[bytes, Fault | None]:
    """The outcome as bytes, and the fault that it means to the supervisor. Never fails: what cannot travel is told instead.

    `classes` are those of the `Call`.
    """
    tokens = {id(kind): token for token, kind in (classes or {}).items()}
    if outcome.exception is not None:
        return _encode_exception(outcome.exception, tokens)
    try:
        # In a tuple: of a bare instance of a class named like one in `__main__`, dill would change the class.
        body = _dump((outcome.value,), MAX_OUTCOME, lambda found: tokens.get(id(found)))
    except _TooLarge as error:
        return _encode_exception(_too_large("the function's result", error.size, MAX_OUTCOME, "result"), {})
    except BaseException as error:  # noqa: BLE001 - the result's own code raises what it likes
        message = f"the function's result ({type(outcome.value).__name__}) cannot travel back: {describe(error)}"
        return _encode_exception(NotSerializable(message, param="result"), {})
    return wire.encoder.encode(_OutcomeEnvelope(raised=False, body=body)), None


def decode_outcome(body: bytes) -> Outcome:
    """The outcome, in the caller. What cannot be opened here is a CallpoolError in `exception`. Raises ProtocolError."""
    envelope: _OutcomeEnvelope = wire.decode(_outcome_decoder, body, "outcome")
    if envelope.raised:
        exception = _decode_exception(envelope)
        # By `object`: a frozen dataclass refuses assignments, also those that `raise … from` makes.
        object.__setattr__(exception, "__cause__", RemoteTraceback(envelope.traceback))
        return Outcome(exception=exception)
    try:
        (value,) = _load(envelope.body)
    except Exception as error:  # noqa: BLE001 - as above, and its classes may be unknown here
        message = f"the function's result has come and cannot be opened in this process: {describe(error)}"
        failure = NotSerializable(message, param="result")
        failure.__cause__ = error
        return Outcome(exception=failure)
    return Outcome(value=value)


def describe(error: BaseException) -> str:
    """`ValueError: text`, bounded, also of an exception whose own text cannot be had."""
    return f"{_printable(type(error).__name__[:MAX_MESSAGE])}: {_message_of(error)}"


def _encode_exception(error: BaseException, tokens: Mapping[int, str]) -> tuple[bytes, Fault]:
    try:
        body = _dump(error, MAX_OUTCOME, lambda found: tokens.get(id(found)))
    except BaseException:  # noqa: BLE001 - it is told by its texts, which say all that we know
        body = b""
    envelope = _OutcomeEnvelope(True, body, _kind_of(error), _message_of(error), _traceback_of(error))
    fault = Fault(code=FUNCTION_FAILED, message=describe(error), details={"exception": _kind_of(error)})
    return wire.encoder.encode(envelope), fault


def _decode_exception(envelope: _OutcomeEnvelope) -> BaseException:
    why = "it could not be serialized"
    if envelope.body:
        try:
            loaded = _load(envelope.body)
        except Exception as error:  # noqa: BLE001 - its own `__init__` may want other arguments, its class may be unknown here
            why = f"it cannot be opened in this process ({describe(error)})"
        else:
            if isinstance(loaded, BaseException):
                return loaded
            why = f"opened, it is no exception ({type(loaded).__name__})"
    return FunctionFailed(
        f"the function raised {envelope.kind}: {envelope.message}; the exception itself did not travel: {why}",
        exception=envelope.kind,
        traceback=envelope.traceback,
    )


def _kind_of(error: BaseException) -> str:
    return _printable(type(error).__qualname__[:MAX_MESSAGE])


def _message_of(error: BaseException) -> str:
    try:
        return _printable(str(error)[:MAX_MESSAGE])
    except Exception as second:  # noqa: BLE001 - the code of a foreign exception
        return f"(its text cannot be had: {type(second).__name__})"


def _traceback_of(error: BaseException) -> str:
    try:
        return _printable("".join(traceback.format_exception(error))[-MAX_TRACEBACK:])
    except Exception as second:  # noqa: BLE001 - as in `_message_of`
        return f"(its traceback cannot be had: {type(second).__name__})\n"


def _printable(text: str) -> str:
    """Without lone surrogates, which names of files may have and UTF-8 has not."""
    return text.encode(errors="backslashreplace").decode()


def _too_large(what: str, size: int, limit: int, param: str) -> BadInput:
    message = f"{what}: at least {size} bytes when serialized, the limit is {limit}"
    return BadInput(message, param=param, size=size, limit=limit)


# What the other process needs to know of this one.


def _python() -> str:
    return sys.implementation.cache_tag or sys.version


def _context() -> tuple[bytes, list[bytes]]:
    """The working directory, and `sys.path` seen from it."""
    try:
        cwd = str(Path.cwd())
    except FileNotFoundError:
        raise BadInput("the working directory of this process no longer exists: change to another one") from None
    entries: list[Any] = sys.path  # of any type: Python passes over what is no text
    # Joined and not resolved: `link/..` must stay what it is. An absolute entry stays as it stands.
    found = [os.path.join(cwd, entry) if entry else cwd for entry in entries if isinstance(entry, str)]  # noqa: PTH118
    return os.fsencode(cwd), [os.fsencode(entry) for entry in found]


# dill. Imported late: only callers of functions and the processes that run them need it.


class _TooLarge(Exception):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _Bounded(io.BytesIO):
    """Refuses what goes beyond a limit while it is written, before memory is full."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def write(self, data: Any, /) -> int:
        size = len(data)
        if size > self._left:
            raise _TooLarge(self.tell() + size)
        self._left -= size
        return super().write(data)


def _dump(value: object, limit: int, name: Callable[[object], str | None]) -> bytes:
    """Pickle a value; `name` is asked for each object in it, and what it names goes by that name alone."""
    import dill  # noqa: PLC0415

    buffer = _Bounded(limit)
    # recurse: a function goes with the globals that it names, not with a reference to a `__main__` that is another one there.
    pickler = dill.Pickler(buffer, dill.settings["protocol"], byref=False, recurse=True)
    pickler.persistent_id = name
    pickler.dump(value)
    return buffer.getvalue()


def _load(body: bytes) -> Any:
    import dill  # noqa: PLC0415

    unpickler = dill.Unpickler(io.BytesIO(body))  # noqa: S301 - running the caller's code is what the lane is for
    unpickler.persistent_load = _travelled.find
    return unpickler.load()


def _culprit(func: object, args: tuple[Any, ...], kwargs: dict[str, Any], dump: Callable[[object], bytes]) -> str:
    """Which part of a call cannot be pickled: each is tried by itself."""
    parts = [("func", func), *((f"argument {index}", value) for index, value in enumerate(args))]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for name, value in parts:
        try:
            dump(value)
        except Exception:  # noqa: BLE001 - the same failure again: here only its place is asked for
            return f"{name} ({type(value).__name__})"
    return "the call as a whole"


# Classes that went by value.


class _Travelled:
    """Tokens of this process's classes. Holds no class: one that is gone is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
        self._classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()

    def token_of(self, kind: type) -> str | None:
        """The token of a class, made at its first journey; None where the class cannot be looked up."""
        with self._lock:
            try:
                token = self._tokens.setdefault(kind, uuid.uuid4().hex)
            except TypeError:  # its metaclass has equality and no hash
                return None
            self._classes[token] = kind
            return token

    def find(self, token: str) -> type:
        """The class of a token. Raises LookupError."""
        found = self._classes.get(token)
        if found is None:
            raise LookupError("a class that went along with the call no longer exists here")
        return found


_travelled = _Travelled()


def _goes_by_value(kind: type) -> bool:
    """Whether another process could not import this class by its name."""
    if kind.__module__ == "builtins":
        return False
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not kind or kind.__module__ == "__main__"
