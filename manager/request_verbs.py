"""The verbs about requests and the supervisor itself: what `callpool status`, `show`, `cancel`, `health` and `stop` ask.

Shared state and its owner: `_waiters`, (client, request id) → future of a lockstep `call`; event loop's thread only.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from callpool.manager.core.catalogue import refuse_timeout
from callpool.manager.core.events import AccountResumed, CancelAsked, Event, Submitted
from callpool.manager.core.limits import Priority, Usage
from callpool.manager.core.messages import Done, Operation, Rejected, Submit
from callpool.manager.core.requests import as_plain
from callpool.manager.core.states import State
from callpool.manager.errors import BadInput, ShuttingDown, UnknownRequest, from_fault
from callpool.manager.health import judge
from callpool.manager.health_facts import Facts, LoopFacts, Surroundings, survey_pool
from callpool.manager.job_forms import record_of, record_of_past
from callpool.manager.session_verbs import NoArguments
from callpool.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.machine import Core
    from callpool.manager.core.messages import ClientEvent
    from callpool.manager.core.requests import Now
    from callpool.manager.holders import Caller
    from callpool.manager.journal import Journal
    from callpool.manager.service_metrics import ServiceMetrics


class Descriptions(Protocol):
    """What these verbs need of the supervisor around the service."""

    def describe_workers(self) -> list[dict[str, Any]]:
        """What `status` says of each worker, without its active calls."""

    def describe_supervision(self) -> dict[str, Any]:
        """What `status` and the metrics say of restarts and recyclings, over all workers."""

    def describe_pools(self) -> dict[str, dict[str, Any]]:
        """Provider → what `status` and the metrics say of the connections to it."""

    def describe_model_servers(self) -> list[dict[str, Any]]:
        """What `status` says of each local model server."""

    def describe_lane(self) -> list[dict[str, Any]]:
        """What `status` says of each process of the function lane."""

    def describe_health(self) -> Surroundings:
        """What `health` judges and the service cannot see: processes, descriptors, memory, disk."""

    def ask_drain(self, timeout: float | None) -> asyncio.Future[dict[str, Any]]:
        """Begin to drain; the future is the report."""


class Stage(Protocol):
    """What these verbs need of the service."""

    own_metrics: ServiceMetrics

    def apply(self, events: list[Event]) -> Any:
        """Apply events as one step."""

    def step(self, event: Event) -> Any:
        """Apply an event that is answered; returns its value, raises its fault."""

    def look(self, read: Callable[[Core, Now], Any]) -> Any:
        """Read the core under the lock."""

    def next_session_id(self) -> str:
        """An id that was never given."""


class _OneRequest(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str


class _OneAccount(msgspec.Struct, forbid_unknown_fields=True):
    account: str


class _CallArguments(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str
    provider: str
    model: str
    payload: bytes
    metadata: bytes = b"{}"
    timeout: float | None = None
    stream: bool = False
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    max_attempts: int | None = None
    fallbacks: list[str] | None = None
    retry_in_doubt: bool = False
    operation: Operation = "chat"
    tokens: Usage = Usage()
    """A plain proxy need not reckon: the worker does before the call."""
    priority: Priority = "normal"
    queue_timeout: float | None = None
    affinity: str | None = None


class _DrainArguments(msgspec.Struct, forbid_unknown_fields=True):
    timeout: float | None = None


class RequestVerbs:
    """The verbs by name, over the service's one step."""

    def __init__(self, stage: Stage, outlets: Descriptions, *, address: str, journal: Journal | None = None) -> None:
        self._stage = stage
        self._outlets = outlets
        self._address = address
        self._journal = journal
        self._started = time.monotonic()
        self._waiters: dict[tuple[str, str], asyncio.Future[dict[str, Any]]] = {}
        self.verbs: dict[str, tuple[type[msgspec.Struct], Callable[[Caller, Any], Any]]] = {
            "ping": (NoArguments, lambda _caller, _arguments: None),
            "call": (_CallArguments, self._call),
            "cancel": (_OneRequest, self._cancel),
            "show": (_OneRequest, self._show),
            "status": (NoArguments, self._status),
            "health": (NoArguments, self._health),
            "resume_account": (_OneAccount, self._resume_account),
            "drain": (_DrainArguments, self._drain),
        }

    @property
    def has_waiters(self) -> bool:
        """Whether any lockstep call waits for its request."""
        return bool(self._waiters)

    def _call(self, caller: Caller, arguments: _CallArguments) -> asyncio.Future[dict[str, Any]]:
        """Submit and wait for the end: for plain proxies, one request at a time."""
        client = caller.client
        submit = Submit(**msgspec.structs.asdict(arguments))
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if (client, submit.request_id) in self._waiters:
            raise BadInput(f"a call with the id {submit.request_id!r} is being waited for", param="request_id")
        self._waiters[client, submit.request_id] = future
        self._stage.apply([Submitted(client, submit, self._stage.next_session_id(), caller.name)])
        return future

    def answer_waiter(self, client: str, message: ClientEvent) -> bool:
        """Give a message to the lockstep call that waits for it; whether there was one."""
        request_id = getattr(message, "request_id", None)
        future = self._waiters.get((client, request_id)) if request_id is not None else None
        if future is None or request_id is None:
            return False
        if isinstance(message, (Done, Rejected)):
            del self._waiters[client, request_id]
            if future.cancelled():
                return True
            if message.fault is not None:
                future.set_exception(from_fault(message.fault))
            else:
                future.set_result(msgspec.structs.asdict(message))
        return True

    def _cancel(self, _caller: Caller, arguments: _OneRequest) -> Any:
        """End any request, as the operator. Says what state it was in when the order was given."""
        state, remembered = self._stage.look(
            lambda core, now: (_state_of(core, arguments.request_id), core.show(arguments.request_id, now))
        )
        if state is not None:
            self._stage.apply([CancelAsked(None, arguments.request_id)])
            return {"cancelling": True, "state": state}
        if remembered is not None:
            return {"cancelling": False, "state": remembered.state}
        return asyncio.ensure_future(self._not_cancelled(arguments.request_id))

    async def _not_cancelled(self, request_id: str) -> dict[str, Any]:
        """What cancelling comes to where only the journal may know the request: it has ended, or waits for the next start."""
        state = (await self._recorded(request_id))["state"]
        if state in {State.QUEUED.value, "started"}:
            raise ShuttingDown(
                f"job {request_id!r} waits for the next start", hint="cancel it when the supervisor is back"
            )
        return {"cancelling": False, "state": state}

    def _resume_account(self, _caller: Caller, arguments: _OneAccount) -> dict[str, Any]:
        """Let an account go on that its provider had refused, as the operator."""
        return {"account": arguments.account, "resumed": self._stage.step(AccountResumed(arguments.account))}

    def _show(self, _caller: Caller, arguments: _OneRequest) -> Any:
        """The record of a live or remembered request, else what the journal knows of a job or of a session of this id."""
        record = self._stage.look(lambda core, now: core.show(arguments.request_id, now))
        if record is not None:
            return as_plain(record)
        return asyncio.ensure_future(self._recorded(arguments.request_id))

    async def _recorded(self, request_id: str) -> dict[str, Any]:
        """The record of a job that the core does not know any more."""
        journal = self._journal
        if journal is not None:
            job, past = await journal.ask(lambda store: (store.one(request_id, texts=False), store.past(request_id)))
            if job is not None:
                return record_of(job)
            if past is not None:
                return record_of_past(past)
        raise UnknownRequest(f"no request {request_id[:80]!r}", param="request_id")

    def _drain(self, _caller: Caller, arguments: _DrainArguments) -> asyncio.Future[dict[str, Any]]:
        if arguments.timeout != 0 and (fault := refuse_timeout(arguments.timeout)) is not None:
            raise from_fault(fault)
        return self._outlets.ask_drain(arguments.timeout)

    def _health(self, _caller: Caller, _arguments: NoArguments) -> Any:
        loop = self._stage.own_metrics.loop_delay
        facts = Facts(
            loop=LoopFacts(p99=loop.quantile(0.99), last=self._stage.own_metrics.last_loop_delay, looks=loop.count),
            pool=self._stage.look(survey_pool),
            surroundings=self._outlets.describe_health(),
        )
        return msgspec.to_builtins(judge(facts))

    def _status(self, _caller: Caller, _arguments: NoArguments) -> dict[str, Any]:
        workers = self._outlets.describe_workers()
        model_servers = self._outlets.describe_model_servers()
        pools = self._outlets.describe_pools()
        facts: dict[str, Any] = self._stage.look(lambda core, now: _pool_status(core, now, workers, pools))
        return {
            **facts,
            "pid": os.getpid(),
            "version": __version__,
            "address": self._address,
            "uptime_seconds": time.monotonic() - self._started,
            "workers": workers,
            "supervision": self._outlets.describe_supervision(),
            "model_servers": model_servers,
            "function_lane": self._outlets.describe_lane(),
            "journal": None if self._journal is None else self._journal.describe(),
        }


def _state_of(core: Core, request_id: str) -> str | None:
    request = core.requests.get(request_id)
    return request.state.value if request else None


def _refusal(core: Core, account: str) -> str | None:
    """Why an account can serve nothing at all."""
    entry = core.catalogue.providers.get(account)
    return entry.refusal.message if entry is not None and entry.refusal is not None else None


def _pool_status(
    core: Core, now: Now, workers: list[dict[str, Any]], pools: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What `status` says of the core; each worker's row gets its active calls, each account's its connections."""
    for worker in workers:
        worker["active"] = len(core.by_worker.get(worker["id"], ()))
    accounts = [
        {
            **core.ledger.describe(account.name, now.monotonic),
            "queued": core.scheduler.count(account.name),
            "queued_by_priority": core.scheduler.counts(account.name),
            "predicted_wait": core.dispatching.wait_at(account.name, core.scheduler.count(account.name), now),
            "mean_call_seconds": core.dispatching.forecast.mean_seconds(account.name),
            "closed": account.closed or _refusal(core, account.name),
            **core.attempts.describe(account.name, now.monotonic),
            "connections": pools.get(account.name),
        }
        for account in core.ledger.accounts.values()
    ]
    return {
        "state": "draining" if core.drain is not None else "running",
        "drain": None if core.drain is None else {"seconds_left": core.drain.seconds_left(now.monotonic)},
        "max_concurrent_sessions": core.sessions.max_concurrent,
        "sessions": core.sessions.statistics(shutdown_requested=core.drain is not None),
        "queue": {"requests": len(core.scheduler), "bytes": core.scheduler.queued_bytes},
        "jobs": core.jobs.counts(),
        "clients_with_requests": len(core.by_client),
        "clients": core.ledger.describe_clients(now.monotonic),
        "accounts": accounts,
    }
