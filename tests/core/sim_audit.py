"""The audit: the core's own books against the witness's, after every event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core.states import State

from .sim_model import Violation

if TYPE_CHECKING:
    from callpool.manager.core.machine import Core

    from .sim_witness import Witness


def audit(core: Core, witness: Witness) -> None:
    """Compare every book of the core with what the witness saw; raises `Violation`. O(live requests)."""
    _requests(core, witness)
    _holdings(core, witness)
    _queue(core, witness)
    _sessions(core, witness)


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
    for name, account in core.ledger.accounts.items():
        if account.holders != witness.held.get(name, set()):
            raise Violation("slots", f"account {name} is held by {account.holders}, must be {witness.held.get(name)}")


def _queue(core: Core, witness: Witness) -> None:
    waiting = {request.request_id for request in core.scheduler.waiting()}
    _agree("queue", "waiting requests", waiting, set().union(*witness.waiting.values()))
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


def audit_rest(core: Core, witness: Witness) -> None:
    """After everything has ended: nothing may be left, and the records must be right."""
    audit(core, witness)
    _agree("leak", "next deadline", core.next_deadline(), None)
    _agree("leak", "live sessions", core.sessions.live, {})
    figures = core.sessions.statistics(shutdown_requested=True)
    names = ("active_sessions", "current_metadata_bytes", "metrics_drift")
    _agree("leak", str(names), [figures[name] for name in names], [0, 0, 0])
    _agree("counters", "total", figures["total_sessions_created"], sum(witness.ended.values()))
    _agree("drain_report", "drained", witness.drained, True)
