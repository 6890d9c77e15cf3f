"""From the queue to the workers: who goes, when, and to which worker.

A request goes when the pool has a session, its account and everything else that limits it have room, and some worker is up that does
not retire. It takes all of that in one step, or nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from callpool.manager.core import refusals
from callpool.manager.core.admission import Admission
from callpool.manager.core.events import ToWorker
from callpool.manager.core.forecast import Forecast
from callpool.manager.core.messages import Accepted, Dispatch
from callpool.manager.core.requests import Phase
from callpool.manager.core.scopes import NO_COST
from callpool.manager.core.states import Move, advance
from callpool.manager.core.windows import NEVER

if TYPE_CHECKING:
    from callpool.manager.core.events import Effect
    from callpool.manager.core.machine import Core
    from callpool.manager.core.requests import Now, Request

TIMEOUT_GRACE: Final = 1.0
"""Seconds that the core's own deadline lies behind the worker's, so that the worker's exact one normally wins."""
MAX_AFFINITIES: Final = 10_000
"""Conversations whose worker is remembered; the one that was served longest ago is forgotten first."""
MAX_LEAN: Final = 4
"""Calls that the worker of a conversation may have beyond twice those of the least loaded one: else it has no room."""


class Dispatching:
    """The queue's way out, over the machine's tables."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.admission = Admission(core.ledger, core.attempts.circuits, core.scheduler)
        self.forecast = Forecast()
        self._workers: dict[tuple[str, str], int] = {}
        """(account, affinity) → the worker that served it last."""

    def pump(self, now: Now, effects: list[Effect]) -> None:
        """Move requests from the queue to workers while everything has room."""
        core, scheduler, admission = self._core, self._core.scheduler, self.admission
        if not len(scheduler):
            return
        admission.begin(now)
        scheduler.release(now.monotonic)  # also where nothing can go: what is due must not stay due
        while core.has_worker and core.sessions.has_room and len(scheduler) and admission.any_open():
            request = scheduler.next(admission, now.monotonic)
            if request is None:
                return
            if request.job is not None and core.jobs.down is not None:
                core.jobs.rest(request)
            elif core.attempts.is_overdue(request, now):
                core.end(request, refusals.timed_out(request), now, effects)
            elif (over := admission.overdrawn(request)) is not None:
                if core.attempts.goes_elsewhere(request, now):
                    continue
                core.end(request, refusals.used_up(over, now.monotonic), now, effects)
            else:
                self._dispatch(request, now, effects)

    def next_due(self) -> float | None:
        """Monotonic seconds at which a look may find room where there was none; None where only an event can make it."""
        if not len(self._core.scheduler):
            return None
        at, release = self.admission.look_at, self._core.scheduler.next_release()
        if release is not None:
            at = min(at, release)
        return None if at == NEVER else at

    def _dispatch(self, request: Request, now: Now, effects: list[Effect]) -> None:
        core = self._core
        advance(request, Move.ALLOCATE)
        core.number_attempt(request)
        worker = request.worker = self._worker_for(request)
        core.by_worker[worker].add(request.request_id)
        core.mark(request, Phase.DEQUEUED, now)
        core.ledger.reserve(
            request.request_id,
            request.attempt,
            request.target,
            request.name,
            request.cost,
            now.monotonic,
            request.scopes,
        )
        waits = core.ledger.cover(core.ledger.holds[request.request_id].entries, now)
        if request.session is None:
            core.sessions.queue_waits.add(now.monotonic - request.since)
            core.open_session(request, now)
        else:
            core.sessions.resume(request.session)
            core.mark(request, Phase.SESSION_ALLOCATED, now)
        left = core.attempts.dispatched(request, now)
        core.deadlines.set(request.request_id, now.monotonic + left + TIMEOUT_GRACE)
        core.waits.clear(request.request_id)
        timeouts = request.timeouts
        if request.job is not None:
            core.jobs.started(request, now, effects)
        order = Dispatch(
            request.request_id,
            request.attempt,
            request.provider,
            request.model,
            left,
            request.stream,
            request.payload,
            timeouts.first_token if timeouts else None,
            timeouts.idle if timeouts else None,
            request.operation,
            request.route.parts if request.route else 0,
        )
        after = core.ledger.carryover.newest if waits and core.ledger.carryover is not None else 0
        effects.append(ToWorker(worker, order, after))

    def _worker_for(self, request: Request) -> int:
        """The worker of its conversation, as long as that has room; else the least loaded one.

        A request that has lost a worker may be what killed it: its next worker gets nobody else as long as there is another one.
        """
        core = self._core
        by_worker, retiring, suspects = core.by_worker, core.retiring, core.suspects
        avoided = retiring | suspects.keys() if suspects else retiring
        if len(avoided) == len(by_worker):
            avoided = retiring
        worker, load = -1, -1
        for number, held in by_worker.items():
            if (load < 0 or len(held) < load) and number not in avoided:
                worker, load = number, len(held)
        if request.route is not None and request.route.tried and core.attempts.lost(request):
            suspects.setdefault(worker, request.request_id)
            return worker
        if request.affinity is None:
            return worker
        key = (request.provider, request.affinity)
        last = self._workers.pop(key, None)
        stays = last is not None and last in by_worker and last not in avoided
        if last is not None and stays and len(by_worker[last]) <= 2 * load + MAX_LEAN:
            worker = last
        self._workers[key] = worker
        if len(self._workers) > MAX_AFFINITIES:
            del self._workers[next(iter(self._workers))]
        return worker

    # What a request may be told.

    def position(self, request: Request) -> int:
        """How many go before it."""
        return self._core.scheduler.position(request)

    def accepted(self, request: Request, now: Now) -> Accepted:
        """The answer to a submit: its place, and how long it will probably wait."""
        position = self.position(request)
        return Accepted(request.request_id, position, self.predicted_wait(request, position, now))

    def predicted_wait(self, request: Request, position: int, now: Now) -> float | None:
        """Seconds that it will probably wait, from now on; None while nothing is known."""
        ledger = self._core.ledger
        wait = self.wait_at(request.provider, position, now)
        cost = ledger.cost(request.target, request.tokens, answers=request.operation == "chat")
        for scope in ledger.scopes(request.target, request.name):
            more = self.forecast.wait_in(scope, request.provider, position, cost, now)
            wait = None if wait is None or more is None else max(wait, more)
        return wait

    def blocked_by(self, request: Request, now: Now) -> str | None:
        """What keeps a request from going besides those before it: the limit of its client, a pause; else None."""
        for scope in self._core.ledger.scopes(request.target, request.name):
            name = f"{scope.kind} {scope.name!r}" if scope.name else f"the {scope.kind}"
            if scope.closed is not None:
                return f"{name} is closed: {scope.closed}"
            if scope.pause.lasts(now.monotonic):
                return f"{name} pauses for {scope.pause.until - now.monotonic:.0f} s"
            for measure in scope.minutes:
                if measure.what == "requests" and not measure.window.has_room(1, now.monotonic):
                    return f"{name} has reached {scope.shown(measure)} ({measure.window.limit})"
        return None

    def wait_at(self, provider: str, position: int, now: Now) -> float | None:
        """The same for whoever comes to this account at this position."""
        core = self._core
        account = core.ledger.accounts.get(provider)
        if account is None:
            return None
        most = core.sessions.max_concurrent
        room = most - core.sessions.active if core.has_worker else 0
        wait = self.forecast.wait(account, position, most, room, now.monotonic)
        for scope in filter(None, (account.scope, account.organization)):
            more = self.forecast.wait_in(scope, provider, position, NO_COST, now)
            wait = None if wait is None or more is None else max(wait, more)
        return wait
