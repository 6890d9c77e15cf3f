"""Small cores for tests: a few accounts, small limits, and short ways to say what happens to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import settings

from callpool.manager.core.carryover import Carryover
from callpool.manager.core.catalogue import Catalogue, ProviderEntry, Timeouts
from callpool.manager.core.circuits import CircuitRules
from callpool.manager.core.events import Effect, Event, Reported, Submitted, ToClient, ToWorker, WorkerUp
from callpool.manager.core.faults import Fault
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.lifecycle import Lifecycle
from callpool.manager.core.limits import AccountRules, LedgerRules, Limits
from callpool.manager.core.machine import Core
from callpool.manager.core.messages import ClientEvent, Finished, Started, Submit, WorkerOrder
from callpool.manager.core.requests import Now
from callpool.manager.core.retry import RetryRules
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.sessions import SessionTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MISSING_KEY = Fault(code="credential_missing", message="no key for 'keyless'", param="provider")
STEADY = settings(derandomize=True, deadline=None, max_examples=150, database=None)
"""For properties: the same examples in every run, so that a failure is everybody's."""
TIMEOUT = 10.0
"""Seconds for a call, where a test does not say otherwise."""


def make_core(
    *,
    pool: int = 2,
    accounts: Mapping[str, int] | None = None,
    max_requests: int = 100,
    max_bytes: int = 1_000_000,
    max_metadata: int = 100,
    max_payload: int = 1_000,
    history: int = 100,
    core: type[Core] = Core,
    sessions: type[SessionTable] = SessionTable,
    scheduler: type[Scheduler] = Scheduler,
    ledger: type[Ledger] = Ledger,
    models: Sequence[str] = ("m",),
    retry_rules: RetryRules | None = None,
    own_retry_rules: Mapping[str, RetryRules] | None = None,
    circuit_rules: CircuitRules | None = None,
    timeouts: Mapping[str, Timeouts] | None = None,
    rules: LedgerRules | None = None,
    journaled: bool = False,
    carryover: Carryover | None = None,
) -> Core:
    """A core with one model `m` on every account, and an account `keyless` that cannot serve. Chance is always a half.

    Circuits stay closed where a test does not say otherwise.
    """
    limits = dict(accounts or {"a": 2})
    entries = {
        name: ProviderEntry(
            timeouts=Timeouts(TIMEOUT),
            limit=limit,
            models={model: (timeouts or {}).get(name, Timeouts(TIMEOUT)) for model in models},
        )
        for name, limit in limits.items()
    }
    entries["keyless"] = ProviderEntry(
        timeouts=Timeouts(TIMEOUT), limit=1, models={"m": Timeouts(TIMEOUT)}, refusal=MISSING_KEY
    )
    given = rules or LedgerRules()
    bare = {name: AccountRules(limits=Limits(concurrency=limit)) for name, limit in {**limits, "keyless": 1}.items()}
    allowed = msgspec.structs.replace(given, accounts={**bare, **given.accounts})
    books = ledger(allowed) if carryover is None else ledger(allowed, carryover)
    return core(
        catalogue=Catalogue(providers=entries, max_metadata_size=max_metadata, max_payload_size=max_payload),
        sessions=sessions(max_concurrent=pool, max_metadata_bytes=max_metadata),
        ledger=books,
        scheduler=scheduler(max_requests=max_requests, max_bytes=max_bytes, weight_of=books.weight_of),
        lifecycle=Lifecycle(max_requests=history),
        retry_rules=retry_rules or RetryRules(),
        own_retry_rules=own_retry_rules,
        circuit_rules=circuit_rules or CircuitRules(failures=0),
        journaled=journaled,
    )


class Bench:
    """A core on the bench: events go in by short verbs, the clock moves when told, effects are remembered."""

    def __init__(self, core: Core, *, workers: int = 1) -> None:
        self.core = core
        self.time = 1000.0
        self.effects: list[Effect] = []
        """All effects so far, in order."""
        for number in range(1, workers + 1):
            self.do(WorkerUp(number))

    def do(self, event: Event, *, after: float = 0.0) -> list[Effect]:
        """Apply one event, `after` seconds later; returns its effects."""
        self.time += after
        effects = self.core.apply(event, Now(self.time, self.time))
        self.effects += effects
        return effects

    def submit(
        self,
        request_id: str,
        *,
        account: str = "a",
        client: str = "c",
        payload: bytes = b"{}",
        metadata: bytes = b"{}",
        timeout: float | None = None,
        acknowledge: bool = True,
        **more: Any,
    ) -> list[Effect]:
        """Submit a request to model `m` of an account; `more` are further fields of the `Submit`."""
        submit = Submit(request_id, account, "m", payload, metadata, timeout, acknowledge=acknowledge, **more)
        return self.do(Submitted(client, submit, f"session_{request_id}"))

    def start(self, request_id: str) -> list[Effect]:
        """The worker that has the request reports that its call begins."""
        worker, attempt = self.holder(request_id)
        return self.do(Reported(worker, Started(request_id, attempt)))

    def finish(self, request_id: str, *, fault: Fault | None = None, body: bytes | None = b"ok") -> list[Effect]:
        """The worker that has the request reports the end of its call."""
        worker, attempt = self.holder(request_id)
        return self.do(Reported(worker, Finished(request_id, attempt, None if fault else body, fault)))

    def holder(self, request_id: str) -> tuple[int, int]:
        """(worker, attempt) of an active request."""
        request = self.core.requests[request_id]
        assert request.worker is not None
        return request.worker, request.attempt

    def state(self, request_id: str) -> str:
        """State of a live or remembered request; "unknown" without one."""
        record = self.core.show(request_id, Now(self.time, self.time))
        return record.state if record else "unknown"


def to_clients(effects: list[Effect]) -> list[ClientEvent]:
    """What the clients are sent."""
    return [effect.message for effect in effects if isinstance(effect, ToClient)]


def to_workers(effects: list[Effect]) -> list[WorkerOrder]:
    """What the workers are sent."""
    return [effect.order for effect in effects if isinstance(effect, ToWorker)]
