"""Short ways to tell stories of calls that fail, for tests: what is said of them, what goes out, what comes of it."""

from __future__ import annotations

from typing import Any

from callpool.manager.core.circuits import CircuitRules
from callpool.manager.core.events import Effect, Tick
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import Dispatch, Done
from callpool.manager.core.requests import Now, Record

from .build import Bench, make_core, to_clients, to_workers

NO_CIRCUITS = CircuitRules(failures=0)


def fault(code: str = "provider_error", **details: Any) -> Fault:
    usual = {"retryable": True, "retry_after": None, "scope": "provider", "in_doubt": False}
    return Fault(code=code, message=f"says the {code}", details=usual | details)


BUSY = fault()
BROKEN = fault("broken_answer", in_doubt=True)
GONE = fault("model_gone", retryable=False, scope="model")
BAD = fault("provider_rejected", retryable=False, scope="request")


def bench(*, workers: int = 1, **options: Any) -> Bench:
    return Bench(make_core(**{"circuit_rules": NO_CIRCUITS, **options}), workers=workers)


def orders(effects: list[Effect]) -> list[tuple[str, str, float]]:
    """(provider, model, seconds) of each call that goes out."""
    return [(each.provider, each.model, each.timeout) for each in to_workers(effects) if isinstance(each, Dispatch)]


def ends(effects: list[Effect]) -> list[Done]:
    return [message for message in to_clients(effects) if isinstance(message, Done)]


def record(b: Bench, request_id: str = "r") -> Record:
    found = b.core.show(request_id, Now(b.time, b.time))
    assert found is not None
    return found


def fail(b: Bench, why: Fault, request_id: str = "r") -> list[Effect]:
    """The call of the request starts and fails."""
    b.start(request_id)
    return b.finish(request_id, fault=why)


def wake(b: Bench) -> list[Effect]:
    """The next thing that time brings."""
    due = b.core.next_deadline()
    assert due is not None
    b.time = max(b.time, due)
    return b.do(Tick())


def called(b: Bench) -> list[tuple[str, str, float]]:
    """The calls that time brings next."""
    while not (out := orders(wake(b))):
        pass
    return out
