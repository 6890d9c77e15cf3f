"""What the answers of providers teach the ledger, and who is told to wait.

    refused for calls at once ──► the limit is cut, the request waits again at its place
    refused for a minute      ──► one pause for all of the account, the request waits again at its place
    a day or a plan used up   ──► the account stops until the moment that was named
    no money, a dead key      ──► the account stops until an operator resumes it

Overload and failures are the provider's trouble, not this account's limit: `retry` and `circuits` are for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from callpool.manager.core import refusals
from callpool.manager.core.events import Answer
from callpool.manager.core.learning import LONGEST_PAUSE
from callpool.manager.core.windows import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.events import AccountResumed, Effect
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.ledger import Outcome
    from callpool.manager.core.machine import Core
    from callpool.manager.core.requests import Now, Request

LONG_LIMITS: Final = frozenset({"rpd", "tpd", "window"})
"""Limits of a day or of a plan's hours: nobody waits for them in the queue."""
UNKNOWN_WINDOW: Final = 600.0
"""Seconds after which an account is tried again whose refusal did not say when its allowance begins anew."""
UNKNOWN_PATIENCE: Final = 180.0
"""Seconds for which a request waits for a limit that is not named, from its first such refusal on. That is no limit of a minute then,
and waiting for ever would hide an account that is in arrears."""
STOPPING: Final = frozenset({"quota_exhausted", "credential_refused"})
NO_PERMISSION: Final = 403
"""May be about one model alone, so it never stops an account."""


def outcome_of(fault: Fault | None, *, began: bool) -> Outcome:
    """What came of a call that ended like this. `began`: whether its worker had said that the provider was next."""
    if fault is None:
        return "used"
    if not began or fault.code == "rate_limited" or fault.details.get("sent") is False:
        return "unused"
    if fault.code == "provider_unreachable" and fault.details.get("in_doubt") is False:
        return "unused"  # there was no connection
    if fault.code in ("timeout", "cancelled", "interrupted", "worker_lost") or fault.details.get("in_doubt") is True:
        return "doubt"
    return "failed"


class Teaching:
    """The handlers of what is learned, over the machine's tables."""

    def __init__(self, core: Core, draw: Callable[[], float]) -> None:
        self._core = core
        self._draw = draw

    def hears(self, request: Request, fault: Fault, now: Now, effects: list[Effect]) -> bool:
        """A call was answered with this, and still holds its slot; whether its request is to wait for another one."""
        if fault.code == "rate_limited":
            return self._hears_of_limit(request, fault, now, effects)
        if fault.code in STOPPING and not (
            fault.code == "credential_refused" and fault.details.get("status") == NO_PERMISSION
        ):
            self._stop(request, fault, None, now, effects)
        return False

    def worded(self, request: Request, fault: Fault, now: Now) -> Fault:
        """The fault of a request whose refusal stopped its account, with what to do about it."""
        stop = self._core.ledger.stopped(request.provider, now.monotonic)
        if stop is None or stop.until != NEVER or stop.fault.code != fault.code or fault.code not in STOPPING:
            return fault
        return refusals.stopped_with(request.provider, fault)

    def _hears_of_limit(self, request: Request, fault: Fault, now: Now, effects: list[Effect]) -> bool:
        ledger, details = self._core.ledger, fault.details
        limit, named = details.get("limit"), details.get("retry_after")
        seconds = float(named) if isinstance(named, (int, float)) else None
        if details.get("retryable") is True:
            teach = ledger.refuse_concurrency if limit == "concurrency" else ledger.refuse_rate
            teach(request.request_id, request.target, seconds, fault.message, now, self._draw)
            if limit in ("tpm", None) and ledger.had_it_alone(request.request_id):
                return False  # a pause would bring it no more than it had
            route = request.route
            if route is not None and route.refused_since is None:
                route.refused_since = now.monotonic
            since = now.monotonic if route is None or route.refused_since is None else route.refused_since
            return limit is not None or now.monotonic - since < UNKNOWN_PATIENCE
        if limit in LONG_LIMITS and seconds is not None and seconds <= LONGEST_PAUSE:
            ledger.refuse_rate(request.request_id, request.target, seconds, fault.message, now, self._draw)
            return True  # its day rolls: there will be room for one more at once
        if limit in LONG_LIMITS:
            self._stop(request, fault, UNKNOWN_WINDOW if seconds is None else seconds, now, effects)
        return False

    def _stop(self, request: Request, fault: Fault, seconds: float | None, now: Now, effects: list[Effect]) -> None:
        core, provider = self._core, request.provider
        if not core.ledger.stop(request.request_id, provider, refusals.without_text(fault), seconds, now):
            return
        stop = core.ledger.stopped(provider, now.monotonic)
        if stop is None:
            return
        for waiting in core.scheduler.waiting():
            if waiting.provider == provider and not core.attempts.goes_elsewhere(waiting, now):
                core.end(waiting, refusals.account_stopped(provider, stop, now.monotonic), now, effects)

    def resumed(self, event: AccountResumed, now: Now, effects: list[Effect]) -> None:
        """An operator says that an account serves again."""
        if event.account not in self._core.ledger.accounts:
            effects.append(Answer(fault=self._core.catalogue.unknown_provider(event.account)))
        else:
            effects.append(Answer(self._core.ledger.resume(event.account, now)))
