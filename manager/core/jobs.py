"""Jobs: requests that the journal keeps, so that they outlive their client, a crash and a restart.

    Submitted ─► ToJournal(JobAccepted) ─► the queue ─► ToJournal(AttemptStarted) ─► its worker ─► ToJournal(JobEnded)
                     ▲                                                                                   │
    JobsRecovered ───┘ (what the journal held at the start)                              Done, to whoever watches

The core goes on at once; the shell holds back every effect of a job until what was recorded before it is durable. What could not be
recorded comes back as `JournalDown`, and is undone here as if it had never been. The handlers are the machine's; they live here
because they are one idea.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from callpool.manager.core import refusals
from callpool.manager.core.events import Answer, FromJournal, ToClient, ToJournal
from callpool.manager.core.messages import Accepted, Done, Rejected
from callpool.manager.core.records import AttemptStarted, JobAccepted, JobEnded, JobWaits, Kept, fingerprint
from callpool.manager.core.requests import Kind, Phase
from callpool.manager.core.retry import Attempt, Route, Target
from callpool.manager.core.states import Move, State, advance

if TYPE_CHECKING:
    from callpool.manager.core.events import (
        Effect,
        JobKnown,
        JobResolved,
        JobsRecovered,
        JobWatched,
        JournalDown,
        JournalUp,
        Submitted,
    )
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.machine import Core
    from callpool.manager.core.messages import ClientEvent, Submit
    from callpool.manager.core.records import Job, Was
    from callpool.manager.core.requests import Now, Request


MAX_LOST_ATTEMPTS = 3
"""Calls of one request that may be lost with their workers, or with a supervisor: with the last it is quarantined, for it may be what
kills them."""


class Ticket:
    """What is known of a live job besides its request."""

    __slots__ = ("attempt", "before", "blocked", "fingerprint", "was", "watchers")

    def __init__(self, print_of_it: bytes, watcher: str = "") -> None:
        self.fingerprint = print_of_it
        self.was: Was = "queued"
        """Its state by the last record, and the number of its attempt."""
        self.attempt = self.before = 0
        self.watchers: dict[str, None] = {watcher: None} if watcher else {}
        """Clients that wait for its end, in the order in which they came."""
        self.blocked: str | None = None
        """Why it cannot go before the next start: its provider is not configured any more."""


class Jobs:
    """The handlers of jobs, over the machine's tables."""

    def __init__(self, core: Core, *, journaled: bool) -> None:
        self._core = core
        self.journaled = journaled
        """Whether jobs are taken."""
        self.down: Fault | None = None
        """Why nothing can be recorded now."""
        self._resting: set[str] = set()
        """Jobs that wait for the journal."""
        self.recovered = 0
        self.interrupted = 0
        """Of the jobs of earlier runs: how many went on, and how many were in doubt."""

    # Coming.

    def refuse(self) -> Fault | None:
        """Why no job can be taken, or None."""
        if not self.journaled:
            return refusals.no_journal()
        return self.down

    def counts(self) -> dict[str, int]:
        """The jobs that live: `{queued, started, blocked}`, those that are blocked among the queued ones."""
        live = [request for request in self._core.requests.values() if request.job is not None]
        queued = [request for request in live if request.state is State.QUEUED]
        blocked = sum(request.job is not None and request.job.blocked is not None for request in queued)
        return {"queued": len(queued), "started": len(live) - len(queued), "blocked": blocked}

    def meets_another(self, event: Submitted, now: Now, effects: list[Effect]) -> bool:
        """Let a submit join the live job of the same id; whether there is one. Another one's end is for its client alone."""
        submit = event.submit
        request = self._core.requests.get(submit.request_id)
        if request is None or request.job is None:
            return False
        if fingerprint(submit) != request.job.fingerprint:
            fault = refusals.request_conflict(submit.request_id)
            effects.append(ToClient(event.client, Rejected(submit.request_id, fault)))
            return True
        self._watch(request, event.client, now, effects)
        return True

    def watched(self, event: JobWatched, now: Now, effects: list[Effect]) -> None:
        """A client waits for the end of a job, too."""
        request = self._core.requests.get(event.request_id)
        if request is None or request.job is None:
            effects.append(Answer(False))
            return
        self._watch(request, event.client, now, effects)
        effects.append(Answer(True))

    def accept(self, request: Request, event: Submitted, now: Now, effects: list[Effect]) -> None:
        """A request is a job: it has just been received, and waits for nobody yet."""
        ticket = request.job = Ticket(fingerprint(event.submit), event.client)
        request.queue_timeout = event.submit.queue_timeout  # the settings' own is for those who wait on the line
        effects.append(
            ToJournal(
                JobAccepted(
                    request.request_id, request.name, event.submit, ticket.fingerprint, request.session_id, now.wall
                )
            )
        )

    def _watch(self, request: Request, client: str, now: Now, effects: list[Effect]) -> None:
        if request.job is not None:
            request.job.watchers[client] = None
            self._core.by_client.setdefault(client, set()).add(request.request_id)
        waits = request.state is State.QUEUED
        accepted = self._core.dispatching.accepted(request, now) if waits else Accepted(request.request_id, 0, 0.0)
        effects.append(ToClient(client, accepted))

    def forsake(self, request: Request, client: str) -> None:
        """A client does not wait for it any more; it goes on."""
        if request.job is not None:
            request.job.watchers.pop(client, None)
            self._core.disown(client, request.request_id)

    # Its transitions.

    def started(self, request: Request, now: Now, effects: list[Effect]) -> None:
        """A worker is about to get it."""
        ticket = request.job
        if ticket is None:
            return
        effects.append(
            ToJournal(AttemptStarted(request.request_id, ticket.attempt, request.attempt, request.tries, now.wall))
        )
        ticket.was, ticket.before, ticket.attempt = "started", ticket.attempt, request.attempt

    def waits(self, request: Request, now: Now, effects: list[Effect], *, payload: bytes | None = None) -> None:
        """It waits for another call. While the supervisor drains it waits for the next start."""
        ticket = request.job
        if ticket is None or request.request_id not in self._core.requests:
            return
        self._record_wait(request, now, effects, payload)
        if self._core.drain is not None:
            self._park(request)

    def _record_wait(self, request: Request, now: Now, effects: list[Effect], payload: bytes | None = None) -> None:
        ticket = request.job
        if ticket is not None:
            effects.append(
                ToJournal(JobWaits(request.request_id, ticket.was, ticket.attempt, _kept(request, now), payload))
            )
            ticket.was = "queued"

    def ended(
        self, request: Request, state: State, fault: Fault | None, body: bytes | None, now: Now, effects: list[Effect]
    ) -> None:
        """It is over: nobody hears of it before that is recorded."""
        ticket = request.job
        if ticket is None:
            return
        self._resting.discard(request.request_id)
        session = request.session
        effects.append(
            ToJournal(
                JobEnded(
                    request.request_id,
                    ticket.was,
                    ticket.attempt,
                    state.value,
                    now.wall,
                    request.tries,
                    session.duration(now.monotonic) if session else 0.0,
                    session is not None,
                    body,
                    fault,
                    request.usage,
                )
            )
        )

    def tell(self, request: Request, message: ClientEvent, effects: list[Effect]) -> None:
        """Tell everybody who waits for it."""
        if request.job is not None:
            effects += [ToClient(client, message) for client in request.job.watchers]

    # A drain.

    def park_waiting(self) -> None:
        """The supervisor drains: what has not begun waits in the journal for the next start."""
        for request in sorted(self._core.requests.values(), key=lambda each: each.sequence):
            if request.job is not None and request.state is State.QUEUED:
                self._park(request)

    def is_parked(self, request: Request, now: Now, effects: list[Effect]) -> bool:
        """Park a job that the drain's deadline cuts, where no call of it is in doubt or it may be made again; whether it was."""
        in_doubt = request.state is State.PROCESSING
        if in_doubt and not (request.route is not None and request.route.in_doubt):
            return False
        if request.state is not State.QUEUED:
            self._core.give_back(request, now)
            if request.session is not None:
                self._core.sessions.suspend(request.session)
            self._core.requeue(request, Phase.RETRY, now)
            self._record_wait(request, now, effects)
        self._park(request)
        return True

    def _park(self, request: Request) -> None:
        """Forget a waiting job here: the journal has it."""
        core = self._core
        core.scheduler.remove(request.request_id)
        for timers in (core.deadlines, core.waits, core.attempts.rests):
            timers.clear(request.request_id)
        self._resting.discard(request.request_id)
        if request.session is not None:
            core.sessions.set_aside(request.session)
        core.forget(request)
        if core.drain is not None:
            core.drain.parked += 1

    # After a restart.

    def recover(self, event: JobsRecovered, now: Now, effects: list[Effect]) -> None:
        """What earlier runs have left: what had not begun goes on; what was in doubt does where its submitter allowed it."""
        self._core.continue_attempts(event.last_attempt)
        for job in event.jobs:
            if job.submit is None:
                continue
            tries_here = 1 + (job.kept.tries_here if job.kept else 0)
            if job.state == "queued":
                self.recovered += 1
                self._go_on(job, now, effects)
            elif self._may_be_called_again(job, tries_here):
                self.recovered += 1
                self._go_on(_lost_once_more(job, tries_here), now, effects, was="started")
            else:
                self.interrupted += 1
                fault = refusals.lost_with_supervisor(job.tries)
                ended = JobEnded(
                    job.request_id, "started", job.attempt, State.INTERRUPTED.value, now.wall, job.tries, 0.0, True, None, fault
                )  # fmt: skip
                effects.append(ToJournal(ended))

    def _may_be_called_again(self, job: Job, tries_here: int) -> bool:
        """Whether a job whose call the last run did not end may have another one: each may be paid for."""
        if job.submit is None or not job.submit.retry_in_doubt:
            return False
        lost = 1 + sum(each.code == "worker_lost" for each in (job.kept.tried if job.kept else ()))
        return tries_here < self._core.attempts.most_calls(job.submit) and lost < MAX_LOST_ATTEMPTS

    def resolve(self, event: JobResolved, now: Now, effects: list[Effect]) -> None:
        """A person decides about a job in doubt: it is called again, or has failed."""
        core, job = self._core, event.job
        fault = refusals.draining() if core.drain is not None else self.refuse()
        if fault is None and (job.state != State.INTERRUPTED.value or job.request_id in core.requests):
            fault = refusals.not_in_doubt(job.request_id, job.state)
        if fault is not None or job.submit is None:
            effects.append(Answer(fault=fault or refusals.not_in_doubt(job.request_id, job.state)))
            return
        if event.retry:  # a person's word: all of its time, and all of its calls, begin anew
            kept = (
                None
                if job.kept is None
                else Kept(job.kept.provider, job.kept.model, parts=job.kept.parts, partial=job.kept.partial)
            )
            self._go_on(msgspec.structs.replace(job, kept=kept), now, effects, was="interrupted")
        else:
            failed = refusals.given_up(job.fault)
            ended = JobEnded(
                job.request_id, "interrupted", job.attempt, State.ERROR.value, now.wall, job.tries, job.duration, job.had_session,
                None, failed, job.usage,
            )  # fmt: skip
            effects.append(ToJournal(ended))
        effects.append(Answer({"request_id": job.request_id, "state": "queued" if event.retry else "error"}))

    def _go_on(self, job: Job, now: Now, effects: list[Effect], *, was: Was = "queued") -> Request:
        """Let a job of the journal wait for its next call. Bounds of the queue are for who comes: this one has been accepted."""
        core, submit = self._core, job.submit
        if submit is None:
            raise RuntimeError("a job that goes on has its submit")
        if job.payload is not None:
            submit = msgspec.structs.replace(submit, payload=job.payload)
        request = core.receive("", submit, job.session_id, Kind.CALL, now, job.name)
        waited = min(max(0.0, now.wall - job.accepted_at), LONGEST_WAIT)  # the wall clock may have jumped
        request.since = now.monotonic - waited
        request.tries, request.attempt = job.tries, job.attempt
        if not request.tokens.prompt:
            request.tokens = core.reckon(submit)
        request.queue_timeout = submit.queue_timeout if job.tries == 0 else None  # it is for the first call alone
        refused = core.catalogue.refuse(submit)
        if refused is None:
            request.timeouts = core.catalogue.timeouts_for(submit)
            request.route = core.attempts.route_for(submit)
        else:  # its provider, or its model, is not configured any more
            request.route = Route(attempts=submit.max_attempts, fallbacks=[], in_doubt=submit.retry_in_doubt)
        ticket = request.job = Ticket(job.fingerprint)
        ticket.was, ticket.attempt = was, job.attempt
        advance(request, Move.ENQUEUE)
        core.mark(request, Phase.QUEUED, now)
        if job.kept is not None:
            _restore(request, job.kept, submit, core)
        if was != "queued":
            self._record_wait(request, now, effects)
        if refused is not None:
            ticket.blocked = refused.message
            core.scheduler.rest(request)
            if request.queue_timeout is not None:
                core.waits.set(request.request_id, request.since + request.queue_timeout)
        elif self.down is not None:
            self.rest(request)
        else:
            core.attempts.redirect(request, now)
            core.attempts.wait(request, now)
        return request

    # What the journal says.

    def known(self, event: JobKnown, now: Now, effects: list[Effect]) -> None:
        """A submit was taken in, and the journal has a job of that id already: the submitter gets what came of that one."""
        request, job = self._core.requests.get(event.request_id), event.job
        clients = dict.fromkeys(event.clients)
        if request is not None and request.job is not None:
            clients |= dict.fromkeys(self._undo(request, refusals.request_conflict(job.request_id), now))
        for client in clients:
            if event.fingerprint != job.fingerprint:
                effects.append(ToClient(client, Rejected(job.request_id, refusals.request_conflict(job.request_id))))
            elif job.ended_at is None:  # it is being parked, or taken up
                effects.append(ToClient(client, Rejected(job.request_id, refusals.duplicate(job.request_id))))
            else:
                effects.append(FromJournal(client, job.request_id))

    def journal_down(self, event: JournalDown, now: Now, effects: list[Effect]) -> None:
        """Nothing can be recorded: who was not acknowledged is refused, whose start was not recorded waits."""
        self.down = event.fault
        if self._core.ledger.carryover is not None:
            self._core.ledger.carryover.down()  # live calls go on
        for request_id in event.refused:
            request = self._core.requests.get(request_id)
            clients = dict.fromkeys(event.bereft.get(request_id, ()))
            if request is not None and request.job is not None:
                clients |= dict.fromkeys(self._undo(request, event.fault, now))
            effects += [ToClient(client, Rejected(request_id, event.fault)) for client in clients]
        for request_id in event.unstarted:
            request = self._core.requests.get(request_id)
            if request is not None and request.job is not None and request.state is State.ALLOCATED:
                self._take_back(request, now, effects)

    def journal_up(self, _event: JournalUp, now: Now, _effects: list[Effect]) -> None:
        """It can be recorded again: who waited for that goes on."""
        self.down = None
        if self._core.ledger.carryover is not None:
            self._core.ledger.records += self._core.ledger.carryover.up(now)
        resting, self._resting = self._resting, set()
        for request_id in sorted(resting, key=lambda each: self._core.requests[each].sequence):
            request = self._core.requests[request_id]
            self._core.scheduler.remove(request_id)
            self._core.attempts.redirect(request, now)
            self._core.attempts.wait(request, now)

    def rest(self, request: Request) -> None:
        """Let a job that is in no queue wait for the journal."""
        self._core.scheduler.rest(request)
        self._resting.add(request.request_id)

    def _undo(self, request: Request, fault: Fault, now: Now) -> list[str]:
        """As if it had never been taken: its worker never heard of it. Returns who waits for it."""
        ticket = request.job
        watchers = [] if ticket is None else list(ticket.watchers)
        for client in watchers:
            self._core.disown(client, request.request_id)
        self._resting.discard(request.request_id)
        request.job, request.outcome = None, "unused"
        self._core.end(request, fault, now, [], state=State.ERROR)
        return watchers

    def _take_back(self, request: Request, now: Now, effects: list[Effect]) -> None:
        """Its start was not recorded, so its worker never heard of it: it waits, as before."""
        ticket = request.job
        request.outcome = "unused"
        if ticket is not None:
            ticket.was, ticket.attempt = "queued", ticket.before
        self._core.attempts.never_sent(request, now)
        if request.ending is not None:
            self._core.end(request, request.ending, now, effects)
        elif self._core.drain is not None:
            self._park(request)
        else:
            self.rest(request)


LONGEST_WAIT = 30 * 86_400.0
"""Seconds that a job of an earlier run is held to have waited at most."""


def done_of(job: Job) -> Done:
    """The end of a job as its client is told."""
    session_id = job.session_id if job.had_session else None
    return Done(job.request_id, job.state, session_id, job.duration, job.body, job.fault)


def _kept(request: Request, now: Now) -> Kept:
    """What it may still try."""
    route = request.route
    if route is None:
        return Kept(*request.target)
    remaining = route.remaining
    if route.deadline is not None:
        remaining = max(0.0, route.deadline - now.monotonic)
    fallbacks = [(target.provider, target.model) for target in route.fallbacks]
    return Kept(
        request.provider,
        request.model,
        fallbacks,
        remaining,
        route.tries_here,
        route.refusals,
        route.parts,
        route.partial,
        list(route.tried),
    )


def _lost_once_more(job: Job, tries_here: int) -> Job:
    """A job whose supervisor ended during its call: that call counts, and so does what it lost."""
    kept = job.kept or Kept(job.provider, job.model, None)
    attempt = Attempt(job.tries, kept.provider, kept.model, None, True, 0.0, "worker_lost", "the supervisor ended", 0.0)
    return msgspec.structs.replace(
        job, kept=msgspec.structs.replace(kept, tries_here=tries_here, tried=[*kept.tried, attempt])
    )


def _restore(request: Request, kept: Kept, submit: Submit, core: Core) -> None:
    """The same again, in a later run."""
    route = request.route
    if route is None:
        return
    elsewhere = Target(kept.provider, kept.model)
    if elsewhere != request.target and request.timeouts is not None and core.catalogue.can_serve(elsewhere, submit):
        core.attempts.aim(request, elsewhere)
    if kept.fallbacks is not None:  # those of then that there still are
        targets = [Target(*each) for each in kept.fallbacks]
        route.fallbacks[:] = [each for each in targets if core.catalogue.can_serve(each, submit)]
    route.remaining, route.tries_here, route.refusals = kept.remaining, kept.tries_here, kept.refusals
    route.parts, route.partial, route.tried = kept.parts, kept.partial, list(kept.tried)
