"""The audit: the core's own books against the witness's, after every event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core.states import State

from .sim_model import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from callpool.manager.core.machine import Core
    from callpool.manager.core.scheduler import Scheduler
    from callpool.manager.core.scopes import Scope

    from .sim_witness import Witness


def audit(core: Core, witness: Witness, now: float) -> None:
    """Compare every book of the core with what the witness saw; raises `Violation`. O(live requests, and calls of a minute)."""
    _requests(core, witness)
    _holdings(core, witness)
    _queue(core, witness)
    _sessions(core, witness)
    _limits(core, witness, now)


def _agree(rule: str, what: str, core_says: object, witness_says: object) -> None:
    if core_says != witness_says:
        raise Violation(rule, f"{what}: the core says {core_says}, the witness {witness_says}")


def _requests(core: Core, witness: Witness) -> None:
    _agree("requests", "live requests", core.requests.keys(), witness.live.keys())
    owned: dict[str, set[str]] = {}
    for request_id, found in witness.live.items():
        request = core.requests[request_id]
        waits = found.worker is None
        right = State.QUEUED if waits else State.PROCESSING if found.started else State.ALLOCATED
        if request.state is not right:
            raise Violation("state", f"{found} is {request.state}, must be {right}")
        if request.session is not None and request.session.held is waits:
            raise Violation("session_lease", f"{found} waits: {waits}, holds its lease: {request.session.held}")
        if (request.session is None) is not (found.tries == 0):
            raise Violation("session_lease", f"{found} has the session {request.session}")
        owned.setdefault(found.client, set()).add(request_id)
    _agree("clients", "requests by client", core.by_client, owned)


def _holdings(core: Core, witness: Witness) -> None:
    _agree("workers", "requests by worker", core.by_worker, witness.up)
    _agree("workers", "those that retire", core.retiring, witness.retiring)
    for name, account in core.ledger.accounts.items():
        if account.holders != witness.held.get(name, set()):
            raise Violation("slots", f"account {name} is held by {account.holders}, must be {witness.held.get(name)}")


def _limits(core: Core, witness: Witness, now: float) -> None:
    ledger, books = core.ledger, witness.limits
    _agree("reservations", "calls", ledger.holds.keys(), books.holdings.keys())
    for name in ledger.accounts:
        stop = ledger.stopped(name, now)
        until = books.stopped[name] if books.is_stopped(name, now) else None
        _agree("stopped", f"account {name} until", None if stop is None else stop.until, until)
    scopes = {(str(scope.kind), scope.name): scope for scope in _scopes(core)}
    for bound in books.all():
        scope = scopes.get((bound.kind, bound.name))
        what = f"{bound.kind} {bound.name}"
        if scope is None:
            _agree("reservations", what, set(), bound.out)
            for tally in bound.tallies:
                _agree("reservations", f"{tally.name} of {what}", 0, tally.used(now))
            continue
        _agree("reservations", what, scope.holders.keys(), bound.out)
        scope.is_full(now)
        _agree(
            "reservations",
            f"lagging of {what}",
            len(scope.lagging),
            bound.busy(now) - len(bound.out) if scope.concurrency else 0,
        )
        for measure, tally in zip(scope.measures(), bound.tallies, strict=True):
            measure.window.forget(now)
            used = measure.window.used, measure.window.under_way
            _agree("reservations", f"{tally.name} of {what}", used, (tally.used(now), tally.under_way()))


def _scopes(core: Core) -> Iterator[Scope]:
    ledger = core.ledger
    for account in ledger.accounts.values():
        yield account.scope
        yield from account.models.values()
    yield from ledger.organizations.values()
    yield from ledger.clients.values()
    if ledger.supervisor is not None:
        yield ledger.supervisor


def _queue(core: Core, witness: Witness) -> None:
    waiting = {request.request_id for request in core.scheduler.waiting()}
    _agree(
        "queue",
        "waiting requests",
        waiting,
        {each.submit.request_id for ids in witness.waiting.values() for each in ids},
    )
    _agree("queue", "length", len(core.scheduler), len(waiting))
    _agree("queue", "bytes", core.scheduler.queued_bytes, witness.waiting_bytes)
    for name, ids in witness.waiting.items():
        _agree("queue", f"count of {name}", core.scheduler.count(name), len(ids))


def _sessions(core: Core, witness: Witness) -> None:
    table = core.sessions
    _agree("sessions", "active", table.active, witness.active)
    _agree("sessions", "created", table.created, witness.created)
    ended = {str(outcome): count for outcome, count in table.ended.items() if count}
    _agree("counters", "ended", ended, dict(witness.ended))
    _agree("conservation", "created", table.created, len(table.live) + sum(table.ended.values()))
    held = [found for found in witness.live.values() if found.worker is not None]
    _agree("metadata", "bytes", table.metadata_bytes, sum(len(found.submit.metadata) for found in held))
    drift = sum(session.metadata_bytes for session in table.live.values() if session.held) - table.metadata_bytes
    _agree("metadata", "drift", drift, 0)


def audit_rest(core: Core, witness: Witness, now: float) -> None:
    """After everything has ended: nothing may be left, and the records must be right."""
    audit(core, witness, now)
    _agree("leak", "next deadline", core.next_deadline(), None)
    for name in ("deadlines", "leases", "waits"):
        _agree("leak", name, len(getattr(core, name)), 0)
    _agree("leak", "rests", len(core.attempts.rests), 0)
    _agree("leak", "live sessions", core.sessions.live, {})
    figures = core.sessions.statistics(shutdown_requested=True)
    names = ("active_sessions", "current_metadata_bytes", "metrics_drift")
    _agree("leak", str(names), [figures[name] for name in names], [0, 0, 0])
    _agree("counters", "total", figures["total_sessions_created"], sum(witness.ended.values()))
    _agree("drain_report", "drained", witness.drained, True)
    _agree("leak", "reservations", core.ledger.holds, {})
    _scheduler_is_empty(core.scheduler)
    for later in (61.0, 86_400.0 + 300.0 + 5.0):  # the longest lag of a call in doubt is less than 5 s
        _limits(core, witness, now + later)
    for scope in _scopes(core):
        _agree("leak", f"{scope.kind} {scope.name}", (len(scope.holders), len(scope.lagging)), (0, 0))
        for measure in scope.measures():
            left = measure.window.used, measure.window.under_way
            _agree("leak", f"{measure.name} of {scope.kind} {scope.name}", left, (0, 0))


def _scheduler_is_empty(scheduler: Scheduler) -> None:
    """Nobody waits, and nothing is left of those who did but what the next ones need: tags, which are bounded in number."""
    _agree("leak", "queue", (len(scheduler), scheduler.queued_bytes, len(scheduler._taking_part)), (0, 0, 0))
    _agree("leak", "busy accounts", scheduler._busy, {})
    _agree("leak", "counts", sum(scheduler._counts.values()), 0)
    for name, account in scheduler._accounts.items():
        _agree("leak", f"targets of {name}", (account.count, account.targets, account.ages), (0, {}, {}))
        for queue in account.classes:
            _agree("leak", f"flows of {name}", (queue.count, queue.busy, [*queue.flows()]), (0, 0, []))
