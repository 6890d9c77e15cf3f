"""The words of the machine: every fault that it gives for a refusal or an end, in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from callpool.manager.core.faults import Detail, Fault
from callpool.manager.core.retry import MAX_PARTS
from callpool.manager.core.states import State

if TYPE_CHECKING:
    from callpool.manager.core.requests import Request
    from callpool.manager.core.retry import Target
    from callpool.manager.core.scheduler import Scheduler
    from callpool.manager.core.scopes import Overdraft, Scope, Stop

BY_DRAIN = "drain"
"""The `reason` of an end that a drain's deadline made."""


def draining() -> Fault:
    """No new request: the supervisor drains. The specification fixes the text."""
    return Fault(
        code="draining",
        message="Session manager is shutting down, cannot create new sessions",
        hint="submit again when the supervisor has restarted",
    )


def duplicate(request_id: str) -> Fault:
    """The id is in use."""
    return Fault(
        code="duplicate_request",
        message=f"a request with the id {request_id!r} is active",
        param="request_id",
        hint="use another id, or none",
    )


def capacity_full(
    limit: int, active: int, account: str | None = None, *, waiting: int = 0, wait: float | None = None
) -> Fault:
    """No session is free, in the pool or on the account. The specification fixes the text."""
    where = "" if account is None else f" on account {account!r}"
    raise_what = "max_concurrent_sessions" if account is None else f"concurrency of provider {account!r}"
    return Fault(
        code="capacity_full",
        message=f"Maximum concurrent sessions reached (limit {limit}, active {active}){where}",
        hint=f"wait, release a session, or raise {raise_what}; `submit` waits by itself",
        details={"limit": limit, "active": active, "waiting": waiting, "predicted_wait": wait}
        | ({} if account is None else {"account": account}),
    )


def scope_full(scope: Scope, account: str, *, waiting: int, wait: float | None) -> Fault:
    """All slots of an account, of a model of it or of its organisation are in use; slots that still lag count as active."""
    learned = scope.concurrency
    limit = 0 if learned is None else learned.limit
    fault = capacity_full(limit, scope.active + len(scope.lagging), account, waiting=waiting, wait=wait)
    if scope.kind == "account":
        return fault
    whose = "organisation" if scope.kind == "organization" else scope.kind
    return msgspec.structs.replace(
        fault,
        message=f"{fault.message}, {whose} {scope.name!r}",
        hint=f"wait, release a session, or raise concurrency of {_table_of(scope)}; `submit` waits by itself",
    )


def creation_failed(cause: Fault) -> Fault:
    """A session cannot be created as it was asked for. The specification fixes the beginning of the text."""
    return Fault(
        code="session_creation_failed",
        message=f"Failed to create session: {cause.message}",
        param=cause.param,
        hint=cause.hint,
        details=dict(cause.details),
    )


def no_session(request_id: str) -> Fault:
    """No session has this id."""
    return Fault(
        code="unknown_request", message=f"no session has the request id {request_id[:80]!r}", param="request_id"
    )


def not_held(request_id: str) -> Fault:
    """The session of a submitted request: its worker moves it."""
    return Fault(
        code="illegal_move",
        message=f"the session of {request_id!r} belongs to a submitted request: only its worker moves it",
        hint="cancel the request instead",
        details={"request_id": request_id},
    )


def illegal_move(request_id: str, state: State, move: str) -> Fault:
    """The table has no such move."""
    hint = "start it first" if state is State.IDLE else None
    return Fault(
        code="illegal_move",
        message=f"the session of {request_id!r} is {state.value}: it cannot {move.replace('_', ' ')}",
        hint=hint,
        details={"request_id": request_id, "state": state.value, "move": move},
    )


def session_timed_out(seconds: float) -> Fault:
    """A held session reached its timeout."""
    details: dict[str, Detail] = {"seconds": seconds, "which": "total"}
    return Fault(code="timeout", message=f"the session did not end within {seconds:g} s", details=details)


def released_active() -> Fault:
    """A session was released before it had an outcome."""
    return Fault(code="cancelled", message="released before it ended", details={"reason": "released"})


def holder_gone() -> Fault:
    """The process that held a session is gone."""
    return Fault(
        code="holder_gone",
        message="the process that held the session ended, or let go of its connection",
        details={"reason": "holder_gone"},
    )


def function_too_large(size: int, limit: int) -> Fault:
    """The client would have said so, had it been asked."""
    return Fault(
        code="bad_input",
        message=f"func with its arguments is {size} bytes, the limit is {limit}",
        param="func",
        details={"size": size, "limit": limit},
    )


def functions_full(waiting: int, size: int, limit: int) -> Fault:
    """Too many bytes of functions wait for a process."""
    return Fault(
        code="queue_full",
        message=f"functions of {waiting} bytes wait for a process, {size} more are over the limit of {limit} bytes",
        hint="run it later, or raise function_workers or max_queued_bytes",
        details={"waiting_bytes": waiting, "size": size, "limit": limit},
    )


def queue_full(scheduler: Scheduler, promised: int, wait: float | None) -> Fault:
    """No place in the queue. `wait`: seconds that who comes last now will probably wait."""
    waiting, limit = len(scheduler), scheduler.max_requests
    places = f", {promised} more places are promised to clients" if promised else ""
    soon = "" if wait is None else f"; who came last waits for about {wait:.0f} s"
    return Fault(
        code="queue_full",
        message=f"The queue is full: {waiting} of {limit} requests wait{places}, {scheduler.queued_bytes} of "
        f"{scheduler.max_bytes} bytes{soon}",
        hint="submit later, or raise max_queued_requests",
        details={
            "waiting": waiting,
            "promised": promised,
            "limit": limit,
            "queued_bytes": scheduler.queued_bytes,
            "predicted_wait": wait,
        },
    )


def how_to_resume(provider: str, cause: str) -> str:
    """What a person has to do about a stopped account. Keys are read where the supervisor is started, and only then."""
    resume = f"callpool account resume {provider}"
    if cause == "credential_refused":
        return f"with a new key: restart the supervisor; if the same key is good again: {resume}"
    return f"top up the account or check its plan, then: {resume}"


def stopped_with(provider: str, fault: Fault) -> Fault:
    """The fault of the call whose refusal stopped its account."""
    return msgspec.structs.replace(
        fault, message=f"{fault.message}; account {provider!r} is stopped now", hint=how_to_resume(provider, fault.code)
    )


def no_journal() -> Fault:
    """This supervisor keeps nothing."""
    return Fault(
        code="journal_unavailable",
        message="this supervisor keeps no journal, so it takes no jobs",
        param="durable",
        hint="submit without `durable`, or to a supervisor that was started on its own (`callpool start`) with durability in [journal]",
    )


def request_conflict(request_id: str) -> Fault:
    """The id stands for something else."""
    return Fault(
        code="request_conflict",
        message=f"the job {request_id!r} asks for something else: its provider, model or payload differ",
        param="request_id",
        hint="use a new id; or send what was sent first, and get the same job and result",
    )


def is_by_drain(fault: Fault) -> bool:
    """Whether a fault ends what a drain's deadline cuts."""
    return fault.details.get("reason") == BY_DRAIN


def lost_with_supervisor(tries: int) -> Fault:
    """The supervisor ended during its call."""
    return Fault(
        code="interrupted",
        message=f"the supervisor ended during call {tries}: it may have been answered, and billed",
        hint="`callpool jobs resolve ID --retry` calls it again, `--fail` gives it up",
        details={"reason": "supervisor_lost", "attempt": tries, "in_doubt": True},
    )


def not_in_doubt(request_id: str, state: str) -> Fault:
    """There is nothing to decide."""
    return Fault(
        code="illegal_move",
        message=f"job {request_id!r} is {state}: only one in doubt (interrupted) can be resolved",
        param="request_id",
        details={"state": state},
    )


def given_up(fault: Fault | None) -> Fault:
    """A person has decided that a job in doubt has failed."""
    why = "" if fault is None else f": {fault.message}"
    return Fault(code="interrupted", message=f"given up by the operator{why}", details={"reason": "resolved"})


def account_stopped(provider: str, stop: Stop, now: float) -> Fault:
    """The provider refuses the whole account."""
    seconds = stop.until - now
    known = seconds < math.inf
    when = f"it goes on in {seconds:.0f} s" if known else "nothing is sent to it until it is resumed"
    details: dict[str, Detail] = {
        "provider": provider, "cause": stop.fault.code, "retryable": known, "scope": "account", "in_doubt": False,
        "retry_after": seconds if known else None,
    }  # fmt: skip
    return Fault(
        code="account_stopped",
        message=f"account {provider!r} is stopped, {when}: {stop.fault.message}",
        hint=None if known else how_to_resume(provider, stop.fault.code),
        details=details,
    )


def _table_of(scope: Scope) -> str:
    """Where the configuration has a scope's limits."""
    tables = {"client": "clients", "organization": "organizations", "account": "providers", "model": "providers"}
    name, _, model = scope.name.partition("/")
    return f"[{tables.get(scope.kind, 'supervisor')}.{name}{f'.models.{model!r}' if model else ''}]"


def used_up(over: Overdraft, now: float) -> Fault:
    """A day's limit has no room for this request."""
    scope, limit = over.scope, over.limit
    facts = scope.as_plain(now)["windows"][limit]
    seconds = over.at - now
    whose = {"client": "client", "organization": "organisation"}.get(scope.kind, scope.kind)
    known = seconds < math.inf
    later = (
        f"; there will be room in {seconds:.0f} s"
        if known
        else ""
        if over.wanted <= facts["limit"]
        else "; it never has"
    )
    return Fault(
        code="budget_exhausted",
        message=f"{limit} of {whose} {scope.name!r} has no room for this request: {facts['used']:g} of {facts['limit']:g} are used, "
        f"it may need {over.wanted:g}{later}",
        hint=f"{'submit later, ' if over.wanted <= facts['limit'] else ''}ask for a shorter answer (max_tokens), or raise "
        f"{limit} of {_table_of(scope)}",
        details={
            "limit": facts["limit"],
            "used": facts["used"],
            "wanted": over.wanted,
            "which": limit,
            "of": scope.kind,
            "name": scope.name,
            "retry_after": seconds if known else None,
        },
    )


def too_large(scope: Scope, limit: int, tokens: int) -> Fault:
    """It states more than a whole minute has."""
    whose = "organisation" if scope.kind == "organization" else scope.kind
    return Fault(
        code="bad_input",
        message=f"this request may take {tokens:,} tokens, tokens_per_minute of {whose} {scope.name!r} is {limit:,}: it can never go",
        param="max_tokens",
        hint="state a smaller max_tokens, or send a shorter prompt",
        details={"limit": limit, "wanted": tokens},
    )


def rate_full(scope: Scope, at: float, now: float) -> Fault:
    """A minute's requests are used up, and the caller does not wait."""
    whose = "the supervisor" if scope.kind == "supervisor" else f"client {scope.name!r}"
    limit = next(measure.window.limit for measure in scope.minutes)
    return Fault(
        code="capacity_full",
        message=f"max_requests_per_minute of {whose} reached (limit {limit})",
        hint="wait; `submit` waits by itself",
        details={"limit": limit, "retry_after": max(0.0, at - now), "waiting": 0, "predicted_wait": max(0.0, at - now)},
    )


def waited_too_long(request: Request, position: int, wait: float | None, blocked: str | None) -> Fault:
    """Its time in the queue is over. `blocked`: what keeps everybody there from going, if anything does."""
    seconds = request.queue_timeout or 0.0
    tried = [] if request.route is None else [each for each in request.route.tried if each.called]
    more = "" if wait is None else f", and probably for {wait:.1f} s more"
    why = f"; {blocked}" if blocked else ""
    if tried:
        why += f"; its call was refused {len(tried)} times, at last: {tried[-1].message}"
    details: dict[str, Detail] = {
        "seconds": seconds,
        "which": "queue",
        "position": position,
        "predicted_wait": wait,
        "sent": bool(tried),
        "cause": tried[-1].code if tried else None,
    }
    return Fault(
        code="timeout",
        message=f"it waited in the queue of account {request.provider!r} for {seconds:g} s, with {position} requests before it{more}{why}",
        hint="wait longer (queue_timeout), use a higher priority, or look at `callpool account list`",
        details=details,
    )


def acknowledged(ending: Fault, seconds: float) -> Fault:
    """A call was ended for this reason, and its worker has said so."""
    return msgspec.structs.replace(ending, details={**ending.details, "cancel_seconds": seconds})


def cancelled(by: str) -> Fault:
    """Somebody asked for the end."""
    return Fault(code="cancelled", message=f"cancelled by {by}", details={"reason": "asked"})


def client_gone() -> Fault:
    """Nobody waits for it any more."""
    return Fault(code="cancelled", message="the client went away", details={"reason": "client_gone"})


def cut_by_drain() -> Fault:
    """The drain's deadline came first."""
    return Fault(code="cancelled", message="the supervisor shut down before this ended", details={"reason": BY_DRAIN})


def timed_out(request: Request) -> Fault:
    """The call is past its deadline, and past its worker's own; or no time is left for another one."""
    details: dict[str, Detail] = {"seconds": request.timeout, "which": "total"}
    message = f"the call did not end within {request.timeout:g} s"
    tried = request.route.tried if request.route else []
    if tried and request.state is State.QUEUED:
        message = f"the request did not end within {request.timeout:g} s; call {tried[-1].number} ended with: {tried[-1].message}"
    return Fault(code="timeout", message=message, details=details)


def over_all_calls(request: Request, fault: Fault) -> Fault:
    """The fault of a last call: a worker knows only the seconds that were left for it, the request had them all."""
    if request.route is not None and request.route.out_of_budget:
        message = f"{fault.message}; it was not called again: account {request.provider!r} has no retry left for now"
        return msgspec.structs.replace(fault, message=message)
    tried = request.route.tried if request.route else []
    if not tried or fault.code != "timeout" or fault.details.get("which") != "total":
        return fault
    whole = timed_out(request)
    message = f"{whole.message}, in {request.tries} calls"
    return msgspec.structs.replace(fault, message=message, details={**fault.details, **whole.details})


def endless(request: Request) -> Fault:
    """Part after part, and no end."""
    details: dict[str, Detail] = {
        "provider": request.provider, "model": request.model, "retryable": False, "scope": "request", "in_doubt": True,
    }  # fmt: skip
    return Fault(code="broken_answer", message=f"the answer has not ended after {MAX_PARTS} parts", details=details)


def with_parts(request: Request, fault: Fault) -> Fault:
    """A fault with the text of the parts that came before: they were paid for. A worker that was there has put it in."""
    partial = request.route.partial if request.route else ""
    if not partial or fault.details.get("partial"):
        return fault
    return msgspec.structs.replace(fault, details={**fault.details, "partial": partial})


def without_text(fault: Fault) -> Fault:
    """A fault as it is remembered: never with anything of an answer."""
    if "partial" not in fault.details:
        return fault
    return msgspec.structs.replace(
        fault, details={name: each for name, each in fault.details.items() if name != "partial"}
    )


def circuit_open(target: Target, last: Fault | None, seconds_left: float) -> Fault:
    """Its target has failed request after request, and again when it was asked whether it works."""
    why = f": {last.message}" if last else ""
    return Fault(
        code="circuit_open",
        message=f"provider {target.provider!r} fails for model {target.model!r}, and is left alone for now{why}",
        hint="look at the provider; add `fallbacks`; or submit again later",
        details={
            "provider": target.provider,
            "model": target.model,
            "retryable": True,
            "retry_after": seconds_left,
            "scope": "provider",
            "in_doubt": False,
        },
    )


def worker_lost(request: Request, worker: int, reason: str) -> Fault:
    """Its worker died during the call."""
    details: dict[str, Detail] = {"worker": worker, "attempt": request.tries}
    message = f"worker {worker} {reason} during the call: it may have been billed"
    return Fault(code="worker_lost", message=message, details=details)


def quarantined(request: Request, worker: int, reason: str, lost: int) -> Fault:
    """Worker after worker died with it."""
    details: dict[str, Detail] = {"worker": worker, "attempt": request.tries, "lost": lost, "in_doubt": True}
    message = f"worker {worker} {reason}; {lost} workers died with this request, so it is not called again: it may be what kills them"
    hint = "look at the workers' deaths in the supervisor's log, and at the request"
    return Fault(code="quarantined", message=message, hint=hint, details=details)


def never_started(request: Request, worker: int, reason: str, lost: int) -> Fault:
    """Worker after worker died before its call began."""
    details: dict[str, Detail] = {"worker": worker, "attempt": request.tries}
    message = f"worker {worker} {reason}; this request lost {lost} workers before its call began"
    return Fault(code="not_started", message=message, details=details)


def unacknowledged(request: Request) -> Fault:
    """It was ordered to end, and its worker never said that it did."""
    ending = request.ending or Fault(code="cancelled", message="ended")
    if request.state is not State.PROCESSING:
        return ending  # the worker never said that the call began: there is no outcome to doubt
    message = f"{ending.message}; the worker did not acknowledge the end of the call, its outcome is unknown"
    return Fault(code="interrupted", message=message, details=dict(ending.details))
