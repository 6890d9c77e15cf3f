"""Calls, held sessions and functions on the same slots: the books agree, nothing idles that could work, a drain ends."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from callpool.manager.core.events import (
    CancelAsked,
    ClientGone,
    CutAsked,
    DrainAsked,
    Drained,
    Effect,
    FunctionAsked,
    MetricsReset,
    Reported,
    SessionMoved,
    Tick,
    ToClient,
    ToLane,
    WorkerDown,
    WorkerUp,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import AccountRules, LedgerRules, Limits
from callpool.manager.core.messages import CancelCall, Dispatch, Done, Finished, Rejected, Started, Submit
from callpool.manager.core.requests import Kind, Now, Request
from callpool.manager.core.states import Move, State
from callpool.manager.health_facts import inconsistencies, survey_pool

from .test_held import LANE, Held

IDS = tuple(f"r{number}" for number in range(7))
PEOPLE = ("ann", "bob")
ACCOUNTS = ("a", "b", "elsewhere")
LIMITS = {"a": 1, "b": 2}
SHARED = 2
"""Calls at once on both accounts together: whose key they are is one organisation."""
RULES = LedgerRules(
    accounts={name: AccountRules(limits=Limits(concurrency=limit), organization="o") for name, limit in LIMITS.items()},
    organizations={"o": Limits(concurrency=SHARED)},
)


class Together(RuleBasedStateMachine):
    """The shell is played here: a lane that obeys, or does not yet; workers that report, or die."""

    @initialize()
    def begin(self) -> None:
        self.bench = Held(pool=3, accounts=LIMITS, max_requests=6, rules=RULES)
        self.lane: dict[tuple[str, int], bool] = {}
        """Calls that the lane has → whether it was told to kill them."""
        self.open: dict[str, str] = {}
        """request id → client, of submits and functions that were taken and not answered."""
        self.reports = 0
        self.draining = False

    def did(self, effects: list[Effect]) -> None:
        """What the shell would do with the effects."""
        for effect in effects:
            if isinstance(effect, ToLane):
                key = (effect.order.request_id, effect.order.attempt)  # type: ignore[union-attr]
                assert isinstance(effect.order, (Dispatch, CancelCall))
                assert isinstance(effect.order, Dispatch) is (key not in self.lane), (
                    "killed what is not there, or ran twice"
                )
                self.lane[key] = isinstance(effect.order, CancelCall)
            elif isinstance(effect, ToClient) and isinstance(effect.message, (Done, Rejected)):
                assert self.open.pop(effect.message.request_id) == effect.client, "answered twice, or somebody else"
            elif isinstance(effect, Drained):
                self.reports += 1

    def live(self, kind: Kind, *states: State) -> list[Request]:
        return [each for each in self.bench.core.requests.values() if each.kind is kind and each.state in states]

    @rule(key=st.sampled_from(IDS), client=st.sampled_from(PEOPLE), account=st.sampled_from(ACCOUNTS[:2]))
    def submit(self, key: str, client: str, account: str) -> None:
        if key not in self.open:
            self.open[key] = client
            self.did(self.bench.submit(key, client=client, account=account))

    @rule(
        key=st.sampled_from(IDS), holder=st.sampled_from(PEOPLE), account=st.sampled_from(ACCOUNTS), start=st.booleans()
    )
    def create(self, key: str, holder: str, account: str, *, start: bool) -> None:
        self.bench.create(key, holder=f"holder {holder}", provider=account, timeout=3.0, start=start)

    @rule(key=st.sampled_from(IDS), client=st.sampled_from(PEOPLE), account=st.sampled_from(ACCOUNTS))
    def run_function(self, key: str, client: str, account: str) -> None:
        if key not in self.open:
            self.open[key] = client
            submit = Submit(key, account, "m", b"f", b"{}", 2.0)
            self.did(self.bench.do(FunctionAsked(client, f"holder {client}", submit, f"session_{key}")))

    @rule(data=st.data(), good=st.booleans())
    def a_worker_reports(self, data: st.DataObject, *, good: bool) -> None:
        calls = self.live(Kind.CALL, State.ALLOCATED, State.PROCESSING)
        if calls:
            call = data.draw(st.sampled_from(calls))
            worker = call.worker
            assert worker is not None
            if data.draw(st.booleans()):
                self.did(self.bench.do(Reported(worker, Started(call.request_id, call.attempt))))
            else:
                fault = call.ending or (None if good else Fault(code="provider_error", message="no"))
                self.did(self.bench.do(Reported(worker, Finished(call.request_id, call.attempt, b"x", fault))))

    @rule(data=st.data(), good=st.booleans())
    def the_lane_reports(self, data: st.DataObject, *, good: bool) -> None:
        if self.lane:
            key = data.draw(st.sampled_from(sorted(self.lane)))
            if data.draw(st.booleans()):
                self.did(self.bench.do(Reported(LANE, Started(*key))))
                return
            killed = self.lane.pop(key)
            fault = Fault(code="cancelled", message="killed") if killed else None
            fault = fault if good or killed else Fault(code="function_failed", message="ValueError: no")
            self.did(self.bench.do(Reported(LANE, Finished(*key, b"x", fault))))

    @rule(data=st.data(), move=st.sampled_from([None, Move.START, Move.COMPLETE, Move.FAIL]), release=st.booleans())
    def move(self, data: st.DataObject, move: Move | None, *, release: bool) -> None:
        held = self.live(Kind.HELD, State.IDLE, State.PROCESSING)
        if held:
            key = data.draw(st.sampled_from(held)).request_id
            self.did(self.bench.do(SessionMoved(key, move=move, release=release)))

    @rule(key=st.sampled_from(IDS))
    def cancel(self, key: str) -> None:
        self.did(self.bench.do(CancelAsked(None, key)))

    @rule(person=st.sampled_from(PEOPLE), holder=st.booleans())
    def somebody_goes(self, person: str, *, holder: bool) -> None:
        self.did(self.bench.do(ClientGone(f"holder {person}" if holder else person)))

    @rule(worker=st.sampled_from([1, 2]), up=st.booleans())
    def a_worker_comes_or_goes(self, worker: int, *, up: bool) -> None:
        self.did(self.bench.do(WorkerUp(worker) if up else WorkerDown(worker, "was killed")))

    @rule(seconds=st.floats(0.01, 2.5))
    def time_passes(self, seconds: float) -> None:
        self.did(self.bench.do(Tick(), after=seconds))

    @rule()
    def reset(self) -> None:
        self.bench.do(MetricsReset())

    @precondition(lambda self: len(self.bench.core.requests) > 2)
    @rule(how=st.sampled_from(["drain", "drain", "cut", None, None, None]))
    def drain(self, how: str | None) -> None:
        if how:
            self.draining = True
            self.did(self.bench.do(CutAsked() if how == "cut" else DrainAsked(50.0)))

    @invariant()
    def the_books_agree(self) -> None:
        core = self.bench.core
        assert inconsistencies(survey_pool(core, Now(self.bench.time, self.bench.time))) == []
        sessions = core.sessions
        assert sessions.active <= 3
        assert all(account.active <= account.limit for account in core.ledger.accounts.values())
        together = core.ledger.organizations["o"].holders
        assert len(together) <= SHARED
        assert together.keys() == {key for name in LIMITS for key in core.ledger.accounts[name].holders}
        assert sessions.created + sessions.live_at_reset == len(sessions.live) + sum(sessions.ended.values())

    @invariant()
    def nothing_idles_that_could_work(self) -> None:
        core = self.bench.core
        for request in self.live(Kind.CALL, State.QUEUED):
            full = core.ledger.full_account(request.provider, self.bench.time)
            room = core.by_worker and core.sessions.has_room and full is None
            assert not room, request.request_id

    @invariant()
    def what_has_to_end_was_told_so(self) -> None:
        for request in self.bench.core.requests.values():
            if request.ending is not None:
                assert request.kind is not Kind.HELD, "nobody has to acknowledge the end of a held session"
                told = self.lane.get((request.request_id, request.attempt), False)
                assert request.kind is Kind.CALL or told, "a function that has to end runs on"

    @invariant()
    def who_waits_is_waited_for(self) -> None:
        requests = self.bench.core.requests
        assert {key for key, each in requests.items() if each.kind is not Kind.HELD} == set(self.open)
        assert all(request_id in requests for each in self.bench.core.by_client.values() for request_id in each)

    @invariant()
    def a_drain_ends_once_and_only_when_nothing_lives(self) -> None:
        assert self.reports <= 1
        assert (self.reports == 1) is (self.draining and not self.bench.core.requests)

    def teardown(self) -> None:
        """Whatever happened, a cut and a little time end everything, and everything is given back."""
        if not hasattr(self, "bench"):
            return
        self.draining = True
        self.did(self.bench.do(CutAsked()))
        for _ in range(4):
            self.did(self.bench.do(Tick(), after=1.5))
        self.bench.nothing_is_held()
        assert (self.reports, self.open) == (1, {})


def test_calls_sessions_and_functions_together() -> None:
    run: Any = settings(max_examples=250, stateful_step_count=60, deadline=None, database=None)
    run_state_machine_as_test(Together, settings=run)
