from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import msgspec
import pytest

from callpool.manager import errors
from callpool.manager.core.faults import Fault
from callpool.manager.errors import CallpoolError, from_fault, to_fault

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CallpoolError)]
each_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)

FAMILY = {
    "CapacityExceeded": (errors.SessionError, RuntimeError),
    "MetadataTooLarge": (errors.SessionError, RuntimeError),
    "ShuttingDown": (errors.SessionError, RuntimeError),
    "SessionCreationFailed": (errors.SessionError, RuntimeError),
    "DuplicateRequest": (errors.SessionError, RuntimeError),
    "IllegalMove": (errors.SessionError, RuntimeError),
    "QueueFull": (RuntimeError,),
    "BadInput": (ValueError,),
    "UnknownProvider": (errors.BadInput,),
    "UnknownModel": (errors.BadInput,),
    "NotSerializable": (errors.BadInput, TypeError),
    "ConfigError": (errors.BadInput,),
    "UnknownRequest": (LookupError,),
    "RequestTimeout": (TimeoutError,),
    "ResultTimeout": (TimeoutError,),
    "RequestInterrupted": (RuntimeError,),
    "WorkerLost": (errors.RequestInterrupted,),
    "RateLimited": (errors.ProviderError,),
    "ContentRefused": (errors.ProviderRejected,),
    "QuotaExhausted": (errors.ProviderError,),
    "ProviderOverloaded": (errors.ProviderError,),
    "NotRunning": (ConnectionError,),
    "ConnectionLost": (ConnectionError,),
    "HandshakeFailed": (ConnectionError,),
    "KeyInUse": (errors.AlreadyRunning,),
    "UnsafePath": (PermissionError,),
}

TRIPS: dict[str, Callable[[CallpoolError], CallpoolError]] = {
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),  # noqa: S301 — our own
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "fault": lambda error: from_fault(to_fault(error)),
    "wire": lambda error: from_fault(msgspec.msgpack.decode(msgspec.msgpack.encode(to_fault(error)), type=Fault)),
}


def made(kind: type[CallpoolError]) -> CallpoolError:
    return kind("Maximum reached (limit 3)", param="a.b", hint="wait", limit=3, who="é")


@each_class
def test_the_docstring_is_one_line_that_says_what_to_do(kind: type[CallpoolError]) -> None:
    assert kind.__doc__
    assert "\n" not in kind.__doc__
    assert kind.__doc__.endswith(".")


def test_codes_are_unique_and_snake_case() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(code == code.lower() and code.replace("_", "").isalpha() for code in codes)


def test_a_code_cannot_be_used_twice() -> None:
    with pytest.raises(TypeError, match="Twice reuses the code 'bad_input' of BadInput"):
        type("Twice", (CallpoolError,), {"code": "bad_input"})


def test_everything_public_is_exported() -> None:
    assert {kind.__name__ for kind in CLASSES} | {"from_fault", "to_fault"} == set(errors.__all__)
    assert errors.__all__ == sorted(errors.__all__)


@pytest.mark.parametrize("name", FAMILY)
def test_families(name: str) -> None:
    for parent in FAMILY[name]:
        assert issubclass(getattr(errors, name), parent)


@each_class
def test_attributes(kind: type[CallpoolError]) -> None:
    error = made(kind)
    assert str(error) == error.message == "Maximum reached (limit 3)"
    assert (error.param, error.hint, error.fault.code) == ("a.b", "wait", kind.code)
    assert (error.limit, error.who, error.details) == (3, "é", {"limit": 3, "who": "é"})
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = error.missing


@each_class
@pytest.mark.parametrize("trip", TRIPS)
def test_every_error_survives_every_trip(kind: type[CallpoolError], trip: str) -> None:
    error = made(kind)
    back = TRIPS[trip](error)
    assert type(back) is kind
    assert (str(back), back.fault, back.limit) == (str(error), error.fault, 3)


def test_a_code_of_a_newer_peer_becomes_the_base_class_and_is_kept() -> None:
    error = from_fault(Fault(code="from_the_future", message="m", details={"n": 1}))
    assert type(error) is CallpoolError
    assert error.fault.code == to_fault(error).code == "from_the_future"


def test_a_foreign_exception_becomes_a_bounded_internal_error() -> None:
    fault = to_fault(KeyError("x" * 10_000))
    assert fault.code == "internal_error"
    assert fault.message.startswith("KeyError: ")
    assert len(fault.message) == 500


def test_an_error_can_be_raised_and_caught_as_its_parents() -> None:
    with pytest.raises(TimeoutError, match="the call did not end") as caught:
        raise from_fault(Fault(code="timeout", message="the call did not end within 3 s", details={"seconds": 3}))
    assert isinstance(caught.value, errors.RequestTimeout)
    assert caught.value.seconds == 3
