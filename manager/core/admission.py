"""Whether a call may go now, and when to look again where it may not: ledger and circuits as the scheduler asks them.

The answer `NEVER` means that some call must end first: its end is an event, and every event is followed by a look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core.windows import NEVER

if TYPE_CHECKING:
    from callpool.manager.core.circuits import Circuits
    from callpool.manager.core.ledger import Ledger
    from callpool.manager.core.requests import Now, Request
    from callpool.manager.core.retry import Target
    from callpool.manager.core.scheduler import Held, Scheduler
    from callpool.manager.core.scopes import Overdraft, Scope


class Admission:
    """The scheduler's gate. `begin` starts a round of looks."""

    def __init__(self, ledger: Ledger, circuits: Circuits, scheduler: Scheduler) -> None:
        self._ledger = ledger
        self._circuits = circuits
        self._scheduler = scheduler
        self._now: Now | None = None
        self._until = NEVER
        self.look_at = NEVER
        """Monotonic seconds at which something may be possible that is not now."""

    def begin(self, now: Now) -> None:
        """A new round, at this time."""
        self._now = now
        self.look_at = NEVER
        self._ledger.forget_idle(now)

    @property
    def _at(self) -> Now:
        if self._now is None:
            raise RuntimeError("begin first")
        return self._now

    def any_open(self) -> bool:
        """Whether the supervisor's own rate allows a call."""
        return self._ledger.supervisor is None or self._opens(self._ledger.supervisor)

    def is_open(self, account: str) -> bool:
        """Whether any call may go to this account."""
        found = self._ledger.accounts[account]
        return self._opens(found.scope) and (found.organization is None or self._opens(found.organization))

    def is_shut(self, target: Target) -> bool:
        """Whether none may go to this model of it."""
        if self._circuits.any_open and self._circuits.is_shut(target, self._at.monotonic):
            return True
        scope = self._ledger.scope_of_model(target)
        return scope is not None and not self._opens(scope)

    def admits(self, request: Request) -> Held:
        """Whether this request may go, or what is held back with it."""
        ledger, now = self._ledger, self._at
        client = ledger.scope_of_client(request.name)
        if client is not None and not self._opens(client):
            return "client"
        cost = request.cost = ledger.cost(request.target, request.tokens, answers=request.operation == "chat")
        request.scopes = ledger.scopes(request.target, request.name)
        for scope in request.scopes:
            if scope.waits_for is not None and not self._may_pass(scope, request):
                return "account"
            if not scope.measured:
                continue
            if scope.overdrawn(cost, now.monotonic) is not None:
                return "go"  # to its end: nothing that it could wait for will make room
            at = scope.fits_at(cost, now.monotonic)
            if at > now.monotonic:
                self.look_at = min(self.look_at, at)
                self._until = at
                if scope.kind == "organization" and now.monotonic - request.since >= self._scheduler.ageing:
                    scope.waits_for = request
                return "client" if scope.kind == "client" else "target" if scope.kind == "model" else "account"
        return "go"

    def held_until(self) -> float:
        """Monotonic seconds at which a client that was just held back may go on."""
        return self._until

    def overdrawn(self, request: Request) -> Overdraft | None:
        """The first day's limit that this request cannot keep, or None."""
        answers = request.operation == "chat"
        return self._ledger.overdrawn(request.target, request.tokens, request.name, self._at.monotonic, answers=answers)

    def _may_pass(self, scope: Scope, request: Request) -> bool:
        """Whether nobody waits here for tokens that this request would take."""
        other = scope.waits_for
        if other is None or other is request:
            return True
        waits = other.request_id in self._scheduler and not self._scheduler.is_held(other.name)
        if (
            not waits
            or scope not in self._ledger.scopes(other.target, other.name)
            or self.is_shut(other.target)
            or not self.is_open(other.provider)
            or not self._fits_elsewhere(other, scope)
        ):
            scope.waits_for = None  # it was cancelled, went elsewhere, or could not go all the same
            return True
        # On its own account it is not overtaken for ever: whoever is due before it there must go, or both would wait.
        return request.rank < other.rank or request.provider == other.provider

    def _fits_elsewhere(self, other: Request, scope: Scope) -> bool:
        """Whether tokens of this scope are all that it waits for."""
        now = self._at.monotonic
        return all(each is scope or each.fits_at(other.cost, now) <= now for each in other.scopes)

    def _opens(self, scope: Scope) -> bool:
        at = scope.opens_at(self._at)
        if at <= self._at.monotonic:
            return True
        self.look_at = min(self.look_at, at)
        self._until = at
        return False
