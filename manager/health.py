"""Whether a supervisor is well: a pure judgement over the facts of `health_facts`.

    core ──survey_pool──► PoolFacts ─────────┐
    event loop ─────────► LoopFacts ─────────┼──judge──► Health: state, reasons, checks
    arbiter, hosts, OS ─► Surroundings ──────┘

A pool whose sessions are all in use is busy, which is no fault. Each check that is not fine says why in one sentence, and
whether requests are still served (`degraded`) or cannot be, or not with right figures (`unhealthy`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from callpool.manager.core.restarts import INTENSITY, PROBE_EVERY, PROVEN_AFTER, WINDOW
from callpool.manager.slots import WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from callpool.manager.health_facts import Facts, LoopFacts, PoolFacts, ProcessFacts, Surroundings, WorkerFacts

LOOP_DELAY_P99 = 0.25
"""Seconds. When one look in a hundred is later than this, callers feel it in every burst."""
LOOP_DELAY_LAST = 1.0
"""Seconds. A loop that is this late now answers nobody in time, whatever it did before."""
ENOUGH_LOOKS = 100
"""Looks at the loop before its 99th percentile counts: among fewer it is the single worst one."""
LATE_HEARTBEATS = 2
"""Intervals without a word. One heartbeat may be on its way; at three the arbiter ends the worker."""
WORKER_LOOP_DELAY = 1.0
"""Seconds. A worker's calls share its loop: all their answers are this late."""
CRASH_LOOP = 3
"""Deaths in a row. The first two may be one bad request and its repetition."""
DESCRIPTOR_SHARE = 0.8
"""Of the soft limit. The rest is what a burst of clients and a restart of all workers take."""
DISK_LOW = 256 * 1024 * 1024
"""Bytes: about what a busy day writes into logs."""
DISK_FULL = 16 * 1024 * 1024
"""Bytes: below this the file system's own reserve and other writers decide whether a write succeeds."""
MOST_STRAYS = 3
"""Ids that a reason names; the others are counted."""

State = Literal["healthy", "degraded", "unhealthy", "draining"]
Severity = Literal["degraded", "unhealthy"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    name: str
    ok: bool
    value: float | None
    limit: float | None
    unit: str
    message: str
    """A sentence, also where all is well."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement. `healthy` is true in the state `healthy` alone."""

    healthy: bool
    state: State
    reasons: list[str]
    """The messages of the checks that are not fine, what is worst first."""
    checks: list[Check]


def judge(facts: Facts) -> Health:
    """Judge. A drain is the state whatever else there is: the supervisor is ending."""
    found = [
        _loop_p99(facts.loop),
        _loop_last(facts.loop),
        *_workers(facts.surroundings),
        _restarts(facts.surroundings),
        *_local_providers(facts),
        _descriptors(facts.surroundings.process),
        _memory(facts.surroundings.process),
        _disk(facts.surroundings.process),
        _sessions(facts.pool),
        _queue(facts.pool),
        _queue_bytes(facts.pool),
        _metrics_drift(facts.pool),
        _leases(facts.pool),
        _account_slots(facts.pool),
        _stopped_accounts(facts.pool),
        _journal(facts.pool),
        _draining(facts.pool),
    ]
    bad = {severity: [check.message for check, kind in found if kind == severity] for severity in _SEVERITIES}
    state: State = "healthy"
    if facts.pool.drain_seconds_left is not None:
        state = "draining"
    elif bad["unhealthy"]:
        state = "unhealthy"
    elif bad["degraded"]:
        state = "degraded"
    return Health(
        healthy=state == "healthy",
        state=state,
        reasons=[*bad["unhealthy"], *bad["degraded"]],
        checks=[check for check, _ in found],
    )


# The checks: each with how bad it is, None where it is fine.

_SEVERITIES: tuple[Severity, ...] = ("unhealthy", "degraded")
_Found = tuple[Check, Severity | None]


def _found(
    name: str, value: float | None, limit: float | None, unit: str, message: str, severity: Severity | None
) -> _Found:
    return Check(name=name, ok=severity is None, value=value, limit=limit, unit=unit, message=message), severity


def _loop_p99(loop: LoopFacts) -> _Found:
    late = loop.looks >= ENOUGH_LOOKS and loop.p99 > LOOP_DELAY_P99
    message = f"one in a hundred turns of the supervisor's event loop is {loop.p99:.3f} s late or more"
    return _found("loop_delay_p99", loop.p99, LOOP_DELAY_P99, "s", message, "degraded" if late else None)


def _loop_last(loop: LoopFacts) -> _Found:
    message = f"the supervisor's event loop was {loop.last:.3f} s late at the last look"
    late = loop.last > LOOP_DELAY_LAST
    return _found("loop_delay_last", loop.last, LOOP_DELAY_LAST, "s", message, "degraded" if late else None)


def _workers(around: Surroundings) -> Iterator[_Found]:
    """The pool of workers as one, then each of them."""
    up = sum(worker.state == WorkerState.UP for worker in around.workers)
    message = f"{up} of {len(around.workers)} workers up"
    yield _found("workers", up, len(around.workers), "workers", message, None if up else "unhealthy")
    limit = LATE_HEARTBEATS * around.heartbeat_interval
    for worker in around.workers:
        problems = list(_worker_problems(worker, limit))
        said = "; ".join(problems) or f"{worker.state}, heard {worker.silent:.1f} s ago"
        message = f"worker {worker.number} ({'no process' if worker.pid is None else f'pid {worker.pid}'}): {said}"
        severity: Severity | None = "degraded" if problems else None
        yield _found(f"worker_{worker.number}", worker.silent, limit, "s", message, severity)


def _worker_problems(worker: WorkerFacts, silence_limit: float) -> Iterator[str]:
    up = worker.state == WorkerState.UP
    first_start = worker.state == WorkerState.STARTING and worker.restarts == 0
    if not up and not first_start:
        yield f"{worker.state}, the last one {worker.last_death}" if worker.last_death else worker.state
    if up and worker.silent > silence_limit:
        yield f"gave no heartbeat for {worker.silent:.1f} s"
    if up and worker.loop_delay > WORKER_LOOP_DELAY:
        yield f"its event loop was {worker.loop_delay:.1f} s late"
    if worker.failures >= CRASH_LOOP and worker.spawned_ago < PROVEN_AFTER:
        yield f"it died {worker.failures} times in a row"


def _restarts(around: Surroundings) -> _Found:
    """The pool as one: whether its workers die faster than they may be replaced."""
    pool = around.restarts
    died = f"{pool.deaths} workers died in the last {WINDOW:.0f} s, {pool.boot_failures} of them before they were ready"
    message = f"{died}; the last one: {pool.cause}" if pool.deaths else "no worker died in the last minute"
    if pool.is_in_trouble:
        message = f"workers die too fast, one is tried every {PROBE_EVERY:.0f} s: {died}; the last one: {pool.cause}"
    return _found("restarts", pool.deaths, INTENSITY, "deaths", message, "degraded" if pool.is_in_trouble else None)


def _local_providers(facts: Facts) -> Iterator[_Found]:
    for name, up in facts.surroundings.local_providers.items():
        why = facts.pool.closed.get(name, "its model server is not up")
        message = f"provider {name}: {'its model server is up' if up else why}"
        yield _found(f"model_server_{name}", int(up), 1, "servers", message, None if up else "degraded")


def _descriptors(process: ProcessFacts) -> _Found:
    limit = process.descriptor_limit
    many = limit is not None and process.descriptors > DESCRIPTOR_SHARE * limit
    message = f"{process.descriptors} file descriptors open of {'any number' if limit is None else limit}"
    return _found("descriptors", process.descriptors, limit, "descriptors", message, "degraded" if many else None)


def _memory(process: ProcessFacts) -> _Found:
    """It must be able to double before the machine has none left: queue and history grow with traffic."""
    memory, available = process.memory, process.memory_available
    if memory is None or available is None:
        return _found("memory", memory, available, "bytes", "the system does not tell the memory in use", None)
    message = f"the supervisor uses {_mebibytes(memory)} of memory, the machine has {_mebibytes(available)} left"
    return _found("memory", memory, available, "bytes", message, "degraded" if memory > available else None)


def _disk(process: ProcessFacts) -> _Found:
    free = process.disk_free
    if free is None:
        return _found("disk_free", None, DISK_LOW, "bytes", "the state directory cannot be looked at", "unhealthy")
    severity: Severity | None = "unhealthy" if free < DISK_FULL else "degraded" if free < DISK_LOW else None
    message = f"{_mebibytes(free)} free on the disk of the state directory"
    return _found("disk_free", free, DISK_LOW, "bytes", message, severity)


def _sessions(pool: PoolFacts) -> _Found:
    busy = "busy: " if pool.active >= pool.max_active else ""
    message = f"{busy}{pool.active} of {pool.max_active} sessions active"
    return _found("sessions", pool.active, pool.max_active, "sessions", message, None)


def _queue(pool: PoolFacts) -> _Found:
    full = pool.waiting + pool.promised >= pool.max_waiting
    message = f"{_full(full)}{pool.waiting} of {pool.max_waiting} requests wait, {pool.promised} more are promised"
    return _found("queue", pool.waiting, pool.max_waiting, "requests", message, "degraded" if full else None)


def _queue_bytes(pool: PoolFacts) -> _Found:
    full = pool.waiting_bytes + pool.promised_bytes >= pool.max_waiting_bytes
    message = f"{_full(full)}{_mebibytes(pool.waiting_bytes)} of {_mebibytes(pool.max_waiting_bytes)} wait"
    limit = pool.max_waiting_bytes
    return _found("queue_bytes", pool.waiting_bytes, limit, "bytes", message, "degraded" if full else None)


def _full(full: bool) -> str:  # noqa: FBT001 - one word, or none
    return "the queue is full: " if full else ""


def _stopped_accounts(pool: PoolFacts) -> _Found:
    named = "; ".join(f"{name}: {why}" for name, why in sorted(pool.stopped.items())[:MOST_STRAYS])
    message = (
        f"accounts that serve nothing until they are resumed: {named}" if pool.stopped else "no account is stopped"
    )
    severity: Severity | None = "degraded" if pool.stopped else None
    return _found("stopped_accounts", len(pool.stopped), 0, "accounts", message, severity)


def _journal(pool: PoolFacts) -> _Found:
    """While it cannot be written no job is taken; live calls go on."""
    down = pool.journal_down
    message = "jobs are written down" if pool.journaled else "no journal is kept: no jobs are taken"
    if down is not None:
        message = f"no jobs are taken, for they cannot be written down: {down}"
    return _found("journal", int(down is None), 1, "journals", message, None if down is None else "degraded")


def _metrics_drift(pool: PoolFacts) -> _Found:
    drift = pool.metrics_drift
    message = f"the sessions hold {drift:+d} bytes beside those counted" if drift else "all metadata is counted"
    return _found("metrics_drift", drift, 0, "bytes", message, "unhealthy" if drift else None)


def _leases(pool: PoolFacts) -> _Found:
    wrong = not pool.active == pool.walked == pool.requests_active
    message = f"{pool.active} leases counted, {pool.walked} sessions and {pool.requests_active} requests hold one"
    return _found("leases", pool.active, pool.walked, "leases", message, "unhealthy" if wrong else None)


def _account_slots(pool: PoolFacts) -> _Found:
    named = ", ".join(pool.strays[:MOST_STRAYS])
    more = f" and {len(pool.strays) - MOST_STRAYS} more" if len(pool.strays) > MOST_STRAYS else ""
    message = f"slots and requests disagree: {named}{more}" if pool.strays else "every slot has its request"
    severity: Severity | None = "unhealthy" if pool.strays else None
    return _found("account_slots", len(pool.strays), 0, "slots", message, severity)


def _draining(pool: PoolFacts) -> _Found:
    left = pool.drain_seconds_left
    message = "accepts requests" if left is None else f"draining: no new requests, at most {left:.0f} s left"
    return _found("draining", left, None, "s", message, None if left is None else "degraded")


def _mebibytes(count: int) -> str:
    return f"{count / 1024**2:,.0f} MiB"
