"""Random stories of failing calls, judged by a witness that sees only what goes out: who was called, when, and with what right."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from callpool.manager.core.circuits import CircuitRules
from callpool.manager.core.events import (
    AccountResumed,
    CancelAsked,
    CutAsked,
    Effect,
    Event,
    Reported,
    Tick,
    WorkerDown,
    WorkerUp,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.jobs import MAX_LOST_ATTEMPTS
from callpool.manager.core.messages import (
    CancelCall,
    Chunk,
    Continues,
    Dispatch,
    Done,
    Finished,
    Piece,
    Rejected,
    Started,
)
from callpool.manager.core.retry import RetryRules

from .build import Bench, make_core, to_clients

ACCOUNTS = {"a": 2, "b": 1, "d": 3}
WORKERS = (1, 2, 3)
POOL = 5
ATTEMPTS = 3
LATE = 0.25
"""Seconds by which the core may notice a deadline of a waiting request."""


def provider_fault(code: str, **details: Any) -> Fault:
    usual = {"retryable": True, "retry_after": None, "scope": "provider", "in_doubt": False}
    return Fault(code=code, message=code, details=usual | details)


SAFE = (
    provider_fault("provider_error"),
    provider_fault("provider_overloaded"),
)
WAITS = (
    provider_fault("rate_limited", scope="account", limit="rpm", retry_after=1.0),
    provider_fault("rate_limited", scope="account", limit="concurrency"),
)
"""A limit refuses the call: its request waits for another one, which is no further attempt, and whose time begins anew."""
ELSEWHERE = (
    provider_fault("model_gone", retryable=False, scope="model"),
    provider_fault("quota_exhausted", retryable=False, scope="account"),
)
DOUBTFUL = (
    provider_fault("broken_answer", in_doubt=True),
    Fault(code="timeout", message="m", details={"which": "idle", "seconds": 1.0}),
)
FINAL = (
    provider_fault("provider_rejected", retryable=False, scope="request"),
    Fault(code="timeout", message="m", details={"which": "total", "seconds": 1.0}),
    Fault(code="bad_input", message="m"),
)
RESTART_MARK = b"restart"


@dataclass
class Story:
    """One request, as the witness knows it."""

    deadline_after: float
    in_doubt: bool
    targets: list[str]
    call: Dispatch | None = None
    worker: int = 0
    started: bool = False
    delivered: bool = False
    first_call_at: float | None = None
    """When its time began: told to wait, it begins anew with what was left."""
    left: float = 0.0
    may_be_called: bool = True
    calls_here: int = 0
    lost: int = 0
    unbegun: int = 0
    """Of these, before the call began."""
    ended: str | None = None
    attempts: list[int] = field(default_factory=list)
    is_ordered_to_end: bool = False


class Witness:
    """Applies events, and judges every effect of them."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.bench = Bench(
            make_core(
                pool=POOL,
                accounts=ACCOUNTS,
                retry_rules=RetryRules(attempts=ATTEMPTS, first_wait=0.4),
                circuit_rules=CircuitRules(failures=2, first_pause=1.0, longest_pause=2.0, patience=0.5),
            ),
            workers=0,
        )
        self.up: set[int] = set()
        self.stopped: set[str] = set()
        """Accounts that have no quota left, as one of their calls was told."""
        self.stories: dict[str, Story] = {}
        self.seen: dict[str, int] = {}

    def do(self, event: Event) -> None:
        self.judge(self.bench.do(event))

    def judge(self, effects: list[Effect]) -> None:
        for effect in effects:
            order = getattr(effect, "order", None)
            if isinstance(order, Dispatch):
                self.called(order, effect.worker)  # type: ignore[union-attr]
            elif isinstance(order, CancelCall):
                story = self.stories[order.request_id]
                assert story.call is not None
                assert story.call.attempt == order.attempt
        for message in to_clients(effects):
            if isinstance(message, Done):
                self.has_ended(message)
            elif isinstance(message, Rejected):
                assert message.fault.code == "account_stopped"
                assert self.stopped.issuperset(self.stories[message.request_id].targets), "somebody could serve it"
                self.stories[message.request_id].ended = "rejected"
                self.note("rejected")
            elif isinstance(message, Chunk) and RESTART_MARK in message.body:
                story = self.stories[message.request_id]
                assert story.in_doubt, "only who allowed it is told to forget"
                self.note("restarts")
        self.audit()

    def note(self, what: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1

    def called(self, order: Dispatch, worker: int) -> None:
        story = self.stories[order.request_id]
        now = self.bench.time
        assert story.ended is None
        assert story.call is None, "one call at a time"
        assert story.may_be_called, "this end allowed no further call"
        assert worker in self.up
        assert order.attempt not in story.attempts
        while story.targets[0] != order.provider:
            story.targets.pop(0)  # IndexError: a target that was not named, or was left before
            story.calls_here = 0
        story.calls_here += 1
        assert story.calls_here <= ATTEMPTS
        assert order.provider not in self.stopped
        if story.first_call_at is None:
            story.first_call_at = now
        story.left = story.first_call_at + story.deadline_after - now
        assert order.timeout <= story.first_call_at + story.deadline_after - now + 1e-9, "one deadline over all calls"
        assert order.timeout > 0.0
        story.call, story.worker, story.started, story.delivered = order, worker, False, False
        story.attempts.append(order.attempt)
        self.note("calls")
        if len(story.attempts) > 1:
            self.note("further calls")

    def has_ended(self, done: Done) -> None:
        story = self.stories[done.request_id]
        assert story.ended is None, "once"
        story.ended = done.state
        story.call = None
        self.note(done.fault.code if done.fault else "completed")

    def audit(self) -> None:
        core = self.bench.core
        out = [story for story in self.stories.values() if story.call is not None]
        assert core.sessions.active == len(out) <= POOL
        for name, limit in ACCOUNTS.items():
            holders = {rid for rid, each in self.stories.items() if each.call and each.call.provider == name}
            assert core.ledger.accounts[name].holders == holders
            assert len(holders) <= limit
        waiting = {rid for rid, story in self.stories.items() if story.ended is None and story.call is None}
        assert {request.request_id for request in core.scheduler.waiting()} == waiting
        counts = {name: core.scheduler.count(name) for name in ACCOUNTS}
        assert sum(counts.values()) == len(waiting)
        assert core.sessions.metadata_bytes == 2 * len(out)

    # What can happen.

    def step(self) -> None:
        steps = (
            self.submit,
            self.work,
            self.work,
            self.work,
            self.work,
            self.pass_time,
            self.pass_time,
            self.cancel,
            self.workers,
            self.resume,
        )
        steps[int(self.chance.random() * len(steps))]()

    def submit(self) -> None:
        request_id = f"r{len(self.stories)}"
        first, *others = self.chance.sample(sorted(ACCOUNTS), k=int(self.chance.random() * 3) + 1)
        in_doubt = self.chance.random() < 0.3
        timeout = self.chance.choice((2.0, 10.0))
        self.stories[request_id] = Story(timeout, in_doubt, [first, *others])
        self.judge(
            self.bench.submit(
                request_id,
                account=first,
                timeout=timeout,
                fallbacks=[f"{name}/m" for name in others],
                retry_in_doubt=in_doubt,
                stream=True,
            )
        )

    def work(self) -> None:
        out = [(rid, story) for rid, story in self.stories.items() if story.call is not None]
        if not out:
            return
        request_id, story = self.chance.choice(out)
        call = story.call
        assert call is not None
        if not story.started:
            story.started = True
            self.do(Reported(story.worker, Started(request_id, call.attempt)))
        elif self.chance.random() < 0.2:
            story.delivered = True
            self.do(Reported(story.worker, Piece(request_id, call.attempt, b"{}")))
        elif self.chance.random() < 0.1 and not story.is_ordered_to_end:
            story.call, story.may_be_called, story.calls_here = None, True, 0
            self.note("parts")
            self.do(Reported(story.worker, Continues(request_id, call.attempt, b"{}")))
        else:
            fault = self.chance.choice((None, None, *SAFE, *SAFE, *WAITS, *ELSEWHERE, *DOUBTFUL, *FINAL))
            if fault in WAITS and not story.is_ordered_to_end and not story.delivered:
                self.note("told to wait")
                story.calls_here -= 1
                story.first_call_at, story.deadline_after = None, story.left
            if fault is not None and fault.code == "quota_exhausted":
                self.stopped.add(call.provider)
            doubtful = fault in DOUBTFUL or story.delivered
            story.may_be_called = fault not in FINAL and fault is not None and (story.in_doubt or not doubtful)
            if fault in ELSEWHERE:
                story.calls_here = ATTEMPTS  # not here again
            story.may_be_called &= not story.is_ordered_to_end
            story.call = None
            self.do(Reported(story.worker, Finished(request_id, call.attempt, None if fault else b"{}", fault)))

    def pass_time(self) -> None:
        self.bench.time += self.chance.choice((0.01, 0.1, 0.5, 1.0))
        self.do(Tick())
        now = self.bench.time
        for story in self.stories.values():
            if story.ended is None and story.call is None and story.first_call_at is not None:
                assert now <= story.first_call_at + story.deadline_after + LATE, "who waits past its deadline ends"

    def cancel(self) -> None:
        live = [rid for rid, story in self.stories.items() if story.ended is None]
        if live and self.chance.random() < 0.3:
            request_id = self.chance.choice(live)
            self.stories[request_id].is_ordered_to_end |= self.stories[request_id].call is not None
            self.do(CancelAsked("c", request_id))

    def resume(self) -> None:
        if self.stopped:
            account = self.chance.choice(sorted(self.stopped))
            self.stopped.discard(account)
            self.do(AccountResumed(account))

    def workers(self) -> None:
        number = self.chance.choice(WORKERS)
        if number not in self.up:
            self.up.add(number)
            self.do(WorkerUp(number))
        elif self.chance.random() < 0.3:
            self.up.discard(number)
            for story in self.stories.values():
                if story.call is not None and story.worker == number:
                    story.lost += 1
                    goes_on = (story.in_doubt or not story.started) and story.lost < MAX_LOST_ATTEMPTS
                    story.may_be_called = goes_on and not story.is_ordered_to_end
                    story.call = None
                    if not story.started:
                        story.calls_here -= 1
                        story.unbegun += 1
                        if len(story.attempts) == story.unbegun:
                            story.first_call_at = None  # nothing was called yet
            self.do(WorkerDown(number, "died"))

    def end(self) -> None:
        """The drain cuts; every call that still runs is acknowledged or given up."""
        self.do(CutAsked())
        for _ in range(200):
            if all(story.ended for story in self.stories.values()):
                break
            self.bench.time += 0.5
            for story in self.stories.values():
                story.may_be_called = False
            self.do(Tick())
        core = self.bench.core
        assert all(story.ended for story in self.stories.values())
        assert core.next_deadline() is None
        assert len(core.scheduler) == 0
        assert core.sessions.active == 0
        assert core.sessions.created == sum(core.sessions.ended.values())


def tell(seed: int) -> Witness:
    witness = Witness(seed)
    for _ in range(300):
        witness.step()
    witness.end()
    return witness


@pytest.mark.parametrize("seed", range(60))
def test_random_stories(seed: int) -> None:
    tell(seed)


def test_the_stories_meet_everything() -> None:
    """A model that never gets into trouble proves nothing."""
    met = {what for seed in range(60) for what, count in tell(seed).seen.items() if count}
    assert met >= {
        "completed", "further calls", "restarts", "parts", "circuit_open", "cancelled", "worker_lost", "timeout",
        "provider_error", "broken_answer", "model_gone", "rate_limited", "told to wait", "rejected", "account_stopped",
    }  # fmt: skip
