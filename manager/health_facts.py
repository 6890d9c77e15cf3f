"""What health is judged by: the facts of the core, of its surroundings and of the process, and the looks that gather them."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from callpool.manager.core.restarts import Condition
from callpool.manager.core.states import ACTIVE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from callpool.manager.core.machine import Core
    from callpool.manager.core.requests import Now


class LoopFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How late the event loop wakes, in seconds, of so many looks."""

    p99: float
    last: float
    looks: int


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One worker slot. Times in seconds."""

    number: int
    state: str
    pid: int | None
    silent: float
    """Since it was last heard."""
    loop_delay: float
    restarts: int
    failures: int
    """Deaths in a row."""
    spawned_ago: float
    last_death: str | None
    """How, and whether it had been ready."""


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the operating system says of the supervisor's process; None where it does not tell."""

    descriptors: int
    descriptor_limit: int | None
    """None: unlimited."""
    memory: int | None
    memory_available: int | None
    disk_free: int | None


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What only the supervisor sees."""

    workers: list[WorkerFacts]
    heartbeat_interval: float
    restarts: Condition
    """How the pool of workers fares."""
    local_providers: dict[str, bool]
    """Each provider of kind `local`: whether its model server is up."""
    process: ProcessFacts


class PoolFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What only the core knows."""

    active: int
    """Leases by the table's counter."""
    max_active: int
    walked: int
    """Leases by a walk through the sessions."""
    requests_active: int
    """Requests in a state that holds a lease."""
    strays: list[str]
    """`account: request`, for each slot of an account without such a request, and each such request without its slot."""
    metrics_drift: int
    waiting: int
    """Requests in the queue."""
    promised: int
    """Places in it that clients may fill without asking."""
    max_waiting: int
    waiting_bytes: int
    promised_bytes: int
    max_waiting_bytes: int
    stopped: dict[str, str]
    """Account → what its provider said when it refused the whole account."""
    closed: dict[str, str]
    """Account → why nothing is dispatched to it, where that is so."""
    drain_seconds_left: float | None
    journaled: bool = False
    """Whether jobs are taken."""
    journal_down: str | None = None
    """Why nothing can be written into the journal now."""


def inconsistencies(pool: PoolFacts) -> list[str]:
    """Where counters and what they count disagree: slots = live leases, bytes = their charges. Always empty, or a defect."""
    found = []
    if not pool.active == pool.walked == pool.requests_active:
        found.append(
            f"{pool.active} leases counted, {pool.walked} sessions and {pool.requests_active} requests hold one"
        )
    if pool.metrics_drift:
        found.append(f"the sessions hold {pool.metrics_drift:+d} bytes beside those counted")
    return found + [f"slot and request disagree: {stray}" for stray in pool.strays]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the judgement is made of."""

    loop: LoopFacts
    pool: PoolFacts
    surroundings: Surroundings


def survey_pool(core: Core, now: Now) -> PoolFacts:
    """The core's facts. Call it under the lock. O(live requests): it walks them so that counters can be compared."""
    sessions, scheduler, places = core.sessions, core.scheduler, core.places
    active = [request for request in core.requests.values() if request.state in ACTIVE]
    owed: dict[str, set[str]] = {name: set() for name in core.ledger.accounts}
    for request in active:
        if request.provider in owed:
            owed[request.provider].add(request.request_id)
    held = [session for session in sessions.live.values() if session.held]
    return PoolFacts(
        active=sessions.active,
        max_active=sessions.max_concurrent,
        walked=len(held),
        requests_active=len(active),
        strays=[
            f"{name}: {request_id}"
            for name, account in core.ledger.accounts.items()
            for request_id in sorted(account.holders ^ owed[name])
        ]
        + core.ledger.strays(),
        metrics_drift=sum(session.metadata_bytes for session in held) - sessions.metadata_bytes,
        waiting=len(scheduler),
        promised=places.total,
        max_waiting=scheduler.max_requests,
        waiting_bytes=scheduler.queued_bytes,
        promised_bytes=places.total_bytes,
        max_waiting_bytes=scheduler.max_bytes,
        stopped={
            name: stop.fault.message
            for name in core.ledger.accounts
            if (stop := core.ledger.stopped(name, now.monotonic)) is not None
        },
        closed=dict(_closed(core)),
        drain_seconds_left=None if core.drain is None else core.drain.seconds_left(now.monotonic),
        journaled=core.jobs.journaled,
        journal_down=None if core.jobs.down is None else core.jobs.down.message,
    )


def _closed(core: Core) -> Iterable[tuple[str, str]]:
    """Accounts that serve nothing: for good by the configuration, else for now."""
    for name, account in core.ledger.accounts.items():
        entry = core.catalogue.providers.get(name)
        if entry is not None and entry.refusal is not None:
            yield name, entry.refusal.message
        elif account.closed is not None:
            yield name, account.closed


def observe_process(state_directory: str) -> ProcessFacts:
    """What the operating system says of this process, and of the disk where this directory is."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = None if soft == resource.RLIM_INFINITY else soft
    memory, available = _observe_memory()
    return ProcessFacts(
        descriptors=_count_descriptors(soft),
        descriptor_limit=limit,
        memory=memory,
        memory_available=available,
        disk_free=_free_bytes(state_directory),
    )


def _count_descriptors(limit: int) -> int:
    """Open descriptors; the one that lists them is not counted."""
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir()) - 1
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENFILE}:
            raise
        return limit  # none is left to look with


def _observe_memory() -> tuple[int | None, int | None]:
    """(resident bytes of this process, bytes that the machine can still give), None where the system does not tell."""
    import psutil  # noqa: PLC0415 - a supervisor that is never asked need not load it

    try:
        return int(psutil.Process().memory_info().rss), int(psutil.virtual_memory().available)
    except (psutil.Error, OSError):  # no descriptor left to look with; that check says so
        return None, None


def _free_bytes(directory: str) -> int | None:
    """Bytes that this user can still write there."""
    try:
        facts = os.statvfs(directory)
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize
