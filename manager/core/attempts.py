"""The calls of a request, one after another: what follows when one of them has ended.

    dispatched ─► started ─► ended ─┬─ an answer ───────────────────────────────► completed
        ▲                           ├─ a part of an answer ─► the next part ──┐
        │                           ├─ a fault, and a plan (`retry`) ─────────┤
        │                           └─ a fault ─────────────────────────────► its end
        └── QUEUED, at its old place, after a rest or at once ◄───────────────┘

Between two calls a request holds nothing: slot, worker and lease go back. One deadline is over all of its calls and rests; only what
the queue makes it wait before its first call is not counted. The handlers are the machine's; they live here because they are one idea.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager.core import refusals
from callpool.manager.core.catalogue import NOT_GIVEN, given_timeouts
from callpool.manager.core.circuits import Circuits
from callpool.manager.core.deadlines import Deadlines
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import RESTART, Chunk
from callpool.manager.core.requests import Phase
from callpool.manager.core.retry import MAX_PARTS, Attempt, Retries, RetryCounts, RetryRules, Route, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from callpool.manager.core.circuits import CircuitRules
    from callpool.manager.core.events import Effect
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.machine import Core
    from callpool.manager.core.messages import Continues, Submit
    from callpool.manager.core.requests import Now, Request
    from callpool.manager.core.retry import Plan

REST_TICK = 0.02
"""Seconds by which a rest may last longer than planned."""
MAX_SAID = 500
"""Characters of a fault's message that the record of a call keeps."""
MAX_TRIED = 40
"""Calls that a record tells of: the first, and the last ones. A request may be told to wait for hours."""
MAX_PHASES = 400


class Attempts:
    """What goes from call to call, over the machine's tables."""

    def __init__(
        self,
        core: Core,
        *,
        rules: RetryRules,
        own_rules: Mapping[str, RetryRules],
        circuit_rules: CircuitRules,
        draw: Callable[[], float],
    ) -> None:
        self._core = core
        self.retries = Retries(rules, own_rules, draw)
        self.circuits = Circuits(circuit_rules)
        self.rests = Deadlines(REST_TICK)
        """When resting requests take part again."""

    def route_for(self, submit: Submit) -> Route:
        """What this request may try."""
        return Route(
            attempts=submit.max_attempts,
            fallbacks=self._core.catalogue.fallbacks_for(submit),
            in_doubt=submit.retry_in_doubt,
            given=given_timeouts(submit),
        )

    def is_overdue(self, request: Request, now: Now) -> bool:
        """Whether no time is left for another call: the deadline of who waits is kept by a coarse tick."""
        route = request.route
        return route is not None and route.deadline is not None and now.monotonic >= route.deadline

    def dispatched(self, request: Request, now: Now) -> float:
        """A call goes out; the seconds that are left for it."""
        if self.circuits.any_open:
            self.circuits.begin(request.target, request.request_id)
        route = request.route
        if route is None:
            return request.timeout
        route.tries_here += 1
        route.dispatched_at = now.monotonic
        if route.deadline is None:
            route.left = request.timeout if route.remaining is None else route.remaining
            route.deadline = now.monotonic + route.left
        else:
            route.left = max(0.0, route.deadline - now.monotonic)
        return route.left

    def brings(self, request: Request, now: Now) -> None:
        """Something of its answer has come: a circuit that it probes has nothing to wait for."""
        if self.circuits.any_open:
            self._works(request.target, now)

    def goes_on(self, request: Request, fault: Fault | None, now: Now, effects: list[Effect]) -> bool:
        """The call of a request has ended; whether another one follows."""
        self._learn(request, fault, now)
        route = request.route
        if fault is None:
            if route is not None:
                self._core.dispatching.forecast.add(
                    request.provider, now.monotonic - route.dispatched_at, request.usage
                )
            return False
        waits = self._core.teaching.hears(request, fault, now, effects)
        if route is None or route.deadline is None or request.ending is not None:
            return False
        delivered = any(phase is Phase.FIRST_TOKEN for phase, _ in _since_dispatch(request))
        if waits and not delivered and (route.attempts is None or route.tries_here < route.attempts):
            self._told_to_wait(request, fault, now, effects)
            return True
        if delivered and route.parts:
            return False  # a stream that begins again would have to begin with parts that no call brings any more
        if (
            fault.code == "rate_limited" and not waits
        ):  # the same call would be refused again, whatever its provider says
            fault = msgspec.structs.replace(fault, details={**fault.details, "retryable": False})
        if route.fallbacks and self._core.ledger.may_bar:  # one that can take nothing must not hide this fault
            usual = (request.tokens, request.operation, request.name, now)
            route.fallbacks[:] = [target for target in route.fallbacks if self._bar(target, *usual) is None]
        return self._another_call(request, route, fault, now, effects, delivered=delivered)

    def goes_on_after_death(self, request: Request, fault: Fault, now: Now, effects: list[Effect]) -> bool:
        """Its worker died during its call; whether another one follows. That may pay twice: only with the request's leave."""
        self._learn(request, fault, now)
        route = request.route
        if route is None or not route.in_doubt or route.deadline is None:
            return False
        delivered = any(phase is Phase.FIRST_TOKEN for phase, _ in _since_dispatch(request))
        if delivered and route.parts:
            return False
        retryable = msgspec.structs.replace(fault, details={**fault.details, "retryable": True, "in_doubt": True})
        return self._another_call(request, route, retryable, now, effects, delivered=delivered)

    def _another_call(
        self, request: Request, route: Route, fault: Fault, now: Now, effects: list[Effect], *, delivered: bool
    ) -> bool:
        """Plan another call after this fault, and let the request wait for it; whether there is one."""
        left = math.inf if route.deadline is None else route.deadline - now.monotonic
        plan = self.retries.plan(
            request.provider,
            route,
            fault,
            delivered=delivered,
            left=left,
            shut=self._is_barred(request.target, request, now),
            now=now.monotonic,
        )
        if plan is None:
            return False
        self._record(request, now, fault.code, fault.message, plan.wait)
        if delivered:
            self._core.tell(request, Chunk(request.request_id, RESTART), effects)
        self._wait_again(request, plan, now, effects)
        self._core.jobs.waits(request, now, effects)
        return True

    def take_part(self, request: Request, report: Continues, now: Now, effects: list[Effect]) -> None:
        """A part of the answer has come: the next call goes on with it, under the same id and the same deadline."""
        self._learn(request, None, now)
        route = request.route
        if route is None or route.parts >= MAX_PARTS:
            self._core.end(request, refusals.endless(request), now, effects)
            return
        self._record(request, now, report.why, "a part of the answer", 0.0)
        request.payload = report.payload
        request.payload_bytes = len(report.payload)
        if report.usage is not None:  # what has come is part of what is sent
            request.tokens = Usage(report.usage.prompt + report.usage.answer, request.tokens.answer)
        route.parts += 1
        route.partial = report.partial
        route.tries_here = 0
        route.fallbacks.clear()  # nobody else can go on with what this one has begun
        self._requeue(request, Phase.CONTINUED, now)
        self._wait_or_end(request, now, effects)
        self._core.jobs.waits(request, now, effects, payload=report.payload)

    def _told_to_wait(self, request: Request, fault: Fault, now: Now, effects: list[Effect]) -> None:
        """A limit refused its call: it waits again at its place, and what waiting takes is not of its timeout."""
        route = request.route
        if route is None:
            return
        self._record(request, now, fault.code, fault.message, 0.0)
        request.since += now.monotonic - route.dispatched_at  # what the call took was no waiting
        route.refusals += 1
        self.retries.count(request.provider).told_to_wait += 1
        if route.attempts is None:
            route.tries_here -= 1
        route.remaining, route.deadline = route.left, None
        self._requeue(request, Phase.RETRY, now)
        if len(request.phases) > MAX_PHASES:
            del request.phases[MAX_PHASES // 4 : MAX_PHASES // 2]
        self.redirect(request, now)
        self._wait_or_end(request, now, effects)
        self._core.jobs.waits(request, now, effects)

    def end_wait(self, request: Request, now: Now, effects: list[Effect]) -> None:
        """It has waited in the queue for as long as it may."""
        core = self._core
        position = core.dispatching.position(request)
        wait = core.dispatching.predicted_wait(request, position, now)
        blocked = core.dispatching.blocked_by(request, now)
        core.end(request, refusals.waited_too_long(request, position, wait, blocked), now, effects)

    def refuse(self, submit: Submit, name: str, now: Now) -> Fault | None:
        """Why this account, and every fallback, cannot take this request for longer than anybody waits in the queue; else None."""
        if not self._core.ledger.may_bar:
            return None
        self._core.ledger.forget_idle(now)
        target = Target(submit.provider, submit.model)
        if (fault := self._bar(target, submit.tokens, submit.operation, name, now)) is None:
            return None
        fallbacks = self._core.catalogue.fallbacks_for(submit)
        barred = all(self._bar(each, submit.tokens, submit.operation, name, now) for each in fallbacks)
        return fault if barred else None

    def _bar(self, target: Target, tokens: Usage, operation: str, name: str, now: Now) -> Fault | None:
        """Why nothing of this size can go there before a day's allowance begins anew, or an operator has done something."""
        ledger, time = self._core.ledger, now.monotonic
        if (large := ledger.too_large(target, tokens, answers=operation == "chat")) is not None:
            return refusals.too_large(*large)
        if (stop := ledger.stopped(target.provider, time)) is not None:
            return refusals.account_stopped(target.provider, stop, time)
        if (found := ledger.overdrawn(target, tokens, name, time, answers=operation == "chat")) is not None:
            return refusals.used_up(found, time)
        return None

    def _is_barred(self, target: Target, request: Request, now: Now) -> bool:
        """Whether a request had better go elsewhere: there is trouble at its target, or nothing of its size fits for hours."""
        if self.circuits.any_open and self.circuits.is_shut(target, now.monotonic):
            return True
        return self._bar(target, request.tokens, request.operation, request.name, now) is not None

    def goes_elsewhere(self, request: Request, now: Now) -> bool:
        """Let a waiting request wait for a fallback of its own, if it has one that can take it; whether it had."""
        target = self._other_target(request, now)
        if target is not None:
            self._move(request, target, now)
        return target is not None

    def lost(self, request: Request) -> int:
        """How many of its calls were lost with their workers."""
        tried = request.route.tried if request.route else ()
        return sum(each.code == "worker_lost" for each in tried)

    def was_called(self, request: Request) -> bool:
        """Whether any call before this one had begun: then it may have been billed."""
        return any(each.called for each in request.route.tried) if request.route else False

    def never_began(self, request: Request, now: Now, reason: str | None, effects: list[Effect]) -> None:
        """Its worker died before the call: another one makes it, and the clock starts again with that.

        `reason`: of the death, where the worker had been told of it; it may have died of that.
        """
        if reason is not None:
            self._record(request, now, "worker_lost", reason, 0.0)
        if request.route is not None:
            request.route.tries_here -= 1
            if request.route.tries_here == 0 and not any(each.called for each in request.route.tried):
                request.route.deadline = None
        self._requeue(request, Phase.RETRY, now)
        self.redirect(request, now)
        self._wait_or_end(request, now, effects)
        self._core.jobs.waits(request, now, effects)

    def never_sent(self, request: Request, now: Now) -> None:
        """It was never handed to its worker, which knows nothing of it: the caller decides where it waits."""
        request.tries -= 1
        if request.route is not None:
            request.route.tries_here -= 1
            if request.route.tries_here == 0 and not any(each.called for each in request.route.tried):
                request.route.deadline = None
        self._requeue(request, Phase.RETRY, now)

    def most_calls(self, submit: Submit) -> int:
        """Calls on one target that this request may have."""
        return self.retries.rules_of(submit.provider).attempts if submit.max_attempts is None else submit.max_attempts

    def leave(self, request: Request) -> None:
        """Its call is over, whatever it came to: a circuit that it probed may be probed again."""
        if self.circuits.any_open:
            self.circuits.leave(request.target, request.request_id)

    def tick(self, now: Now, effects: list[Effect]) -> None:
        """Time passed: rests are over, and so are pauses of circuits."""
        scheduler = self._core.scheduler
        for request_id in self.rests.pop_due(now.monotonic):
            request = self._core.requests[request_id]
            other = self._other_target(request, now) if self.circuits.any_open else None
            if other is not None:
                self._move(request, other, now)
                continue
            if self._ends_with_account(request, now, effects):
                continue
            scheduler.wake(request_id)
            if request.route is not None:
                request.route.since = now.monotonic
        for target in self.circuits.wake(now.monotonic):
            self._end_patience(target, now, effects)

    def next_due(self) -> float | None:
        """Monotonic seconds at which a `Tick` is due, or None."""
        rest = self.rests.next()
        pause = self.circuits.next_wake() if self.circuits.any_open and len(self._core.scheduler) else None
        return rest if pause is None or (rest is not None and rest < pause) else pause

    def wait(self, request: Request, now: Now) -> None:
        """Let a request wait for its target."""
        route = request.route
        if route is not None:
            route.since = now.monotonic
            if request.queue_timeout is not None and route.deadline is None and not route.parts:
                self._core.waits.set(request.request_id, request.since + request.queue_timeout)
        self._core.scheduler.push(request)

    def _wait_or_end(self, request: Request, now: Now, effects: list[Effect]) -> None:
        """Let a request wait for its next call, unless its account was stopped while it was out."""
        if not self._ends_with_account(request, now, effects):
            self.wait(request, now)

    def _ends_with_account(self, request: Request, now: Now, effects: list[Effect]) -> bool:
        """End a request whose account is stopped: what waited there has ended already; whether it is so."""
        stop = self._core.ledger.stopped(request.provider, now.monotonic)
        if stop is None:
            return False
        self._core.end(request, refusals.account_stopped(request.provider, stop, now.monotonic), now, effects)
        return True

    def redirect(self, request: Request, now: Now) -> None:
        """Aim a request that is not in the queue yet, and whose target is shut, at the next one that is not, if there is one."""
        target = self._other_target(request, now) if request.route is not None and request.route.fallbacks else None
        if target is not None:
            self.aim(request, target)

    def _other_target(self, request: Request, now: Now) -> Target | None:
        """The first fallback that is not barred, where the target is; those before it are forgotten."""
        route = request.route
        if route is None or not route.fallbacks or not self._is_barred(request.target, request, now):
            return None
        for index, target in enumerate(route.fallbacks):
            if not self._is_barred(target, request, now):
                del route.fallbacks[: index + 1]
                return target
        return None

    def describe(self, account: str, now: float) -> dict[str, Any]:
        """What `status` says of an account's further calls, and of its circuits that are not closed."""
        counts = self.retries.counts.get(account, RetryCounts())
        return {
            **msgspec.structs.asdict(counts),
            "retries_left": int(self.retries.saved(account, now)),
            "circuits": self.circuits.as_plain(account, now),
        }

    # Within.

    def _learn(self, request: Request, fault: Fault | None, now: Now) -> None:
        """What the end of a call says of its target."""
        target, said = request.target, None if fault is None else refusals.without_text(fault)
        if said is None:
            self.retries.completed(request.provider, now.monotonic)
            self._works(target, now)
        elif self._is_trouble(request, said):
            weak = said.code == "timeout" and not self._had_its_time(request)
            if self.circuits.fails(target, request.request_id, said, now.monotonic, weak=weak):
                self._move_from(target, now)
        elif "scope" in said.details and "exception" not in said.details:
            self._works(target, now)  # anything else tells nothing: it was cancelled, or the fault is ours

    def _works(self, target: Target, now: Now) -> None:
        """The service there has answered: who waits at one that is shut, and may go there, goes."""
        if self.circuits.works(target):
            for other in self.circuits.open_targets():
                self._move_from(other, now)

    def _is_trouble(self, request: Request, fault: Fault) -> bool:
        """Whether a fault is the provider's trouble, and not this request's or this account's."""
        if fault.code != "timeout":
            return fault.details.get("scope") == "provider"
        route = request.route
        if route is None or fault.details.get("sent") is False:
            return False  # it waited for a connection, in its worker
        if self.circuits.probes(request.target, request.request_id):
            return True  # nothing came of what was asked whether anything comes
        total, first_token, idle = route.given
        which = fault.details.get("which")
        if which != "total":
            return (first_token if which == "first_token" else idle) is None
        return total is None and self._had_its_time(request)

    def _had_its_time(self, request: Request) -> bool:
        """Whether its call had all the seconds that calls there have."""
        whole = self._core.catalogue.timeouts_at(request.target, NOT_GIVEN).total
        return request.route is not None and request.route.left >= whole

    def _move_from(self, target: Target, now: Now) -> None:
        """Who waits for a target that is shut, and has another one that is not, goes there."""
        for request in self._core.scheduler.waiting_for(target):
            other = self._other_target(request, now)
            if other is not None:
                self._move(request, other, now)

    def _end_patience(self, target: Target, now: Now, effects: list[Effect]) -> None:
        """End who has waited long enough for an open circuit, and look again when the next one will have.

        Nobody's patience ends while a probe is out: an answer may take minutes, and show nothing before.
        """
        core, circuits, patience = self._core, self.circuits, self.circuits.rules.patience
        self._move_from(target, now)
        if circuits.is_probed(target):
            return
        look_at = now.monotonic + patience
        for request in core.scheduler.waiting_for(target):
            since = now.monotonic if request.route is None else request.route.since
            due = since + patience  # who was there before it opened is first looked at so long after that
            if due > now.monotonic:
                look_at = min(look_at, due)
                continue
            left = circuits.seconds_left(target, now.monotonic)
            core.end(request, refusals.circuit_open(target, circuits.last_fault(target), left), now, effects)
        circuits.look_again(target, look_at)

    def _move(self, request: Request, target: Target, now: Now) -> None:
        """Let a waiting request wait for another target, at once."""
        self._core.scheduler.remove(request.request_id)
        self.rests.clear(request.request_id)
        self.aim(request, target)
        self.wait(request, now)

    def _record(self, request: Request, now: Now, code: str, message: str, wait: float) -> None:
        route = request.route
        if route is not None:
            called = any(phase is Phase.PROVIDER_CALL_START for phase, _ in _since_dispatch(request))
            seconds = now.monotonic - route.dispatched_at
            if len(route.tried) >= MAX_TRIED:
                del route.tried[1]
            route.tried.append(
                Attempt(
                    request.tries,
                    request.provider,
                    request.model,
                    request.worker,
                    called,
                    seconds,
                    code,
                    message[:MAX_SAID],
                    wait,
                )
            )

    def _wait_again(self, request: Request, plan: Plan, now: Now, effects: list[Effect]) -> None:
        self._requeue(request, Phase.RETRY, now)
        if plan.target is not None:
            self.aim(request, plan.target)
            self.redirect(request, now)
        if plan.wait > 0.0:
            self._core.scheduler.rest(request)
            self.rests.set(request.request_id, now.monotonic + plan.wait)
        else:
            self._wait_or_end(request, now, effects)

    def _requeue(self, request: Request, phase: Phase, now: Now) -> None:
        """It holds nothing any more, and waits; the caller puts it into the queue."""
        core = self._core
        core.give_back(request, now)
        if request.session is not None:
            core.sessions.suspend(request.session)
        core.requeue(request, phase, now)
        request.worker = None
        if request.route is not None and request.route.deadline is not None:
            core.deadlines.set(request.request_id, request.route.deadline)

    def aim(self, request: Request, target: Target) -> None:
        """From now on its calls go there."""
        self.retries.count(request.provider).fallbacks += 1
        request.target = target
        request.provider, request.model = target
        route = request.route
        if route is not None:
            route.tries_here = 0
            timeouts = self._core.catalogue.timeouts_at(target, route.given)
            request.timeouts = msgspec.structs.replace(timeouts, total=request.timeout)
        if request.session is not None:
            request.session.provider, request.session.model = target


def _since_dispatch(request: Request) -> list[tuple[Phase, Now]]:
    """The phases of the present call."""
    for index in range(len(request.phases) - 1, -1, -1):
        if request.phases[index][0] is Phase.DEQUEUED:
            return request.phases[index:]
    return []
