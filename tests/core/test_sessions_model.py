"""The session bookkeeping against a model of thirty lines: any verbs in any order, four invariants after each."""

from __future__ import annotations

import json
from collections import Counter
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

from callpool.manager.core.events import ClientGone, DrainAsked, SessionMoved, SessionsCleaned, Tick
from callpool.manager.core.states import Move

from .test_held import Held

LIMIT = 4
MAX_BYTES = 60
HOLDERS = ("ann", "bob", "cyd")
IDS = tuple(f"r{number}" for number in range(8))
GRACE = 5.0
METADATA = st.dictionaries(st.sampled_from(["k", "é", "😀"]), st.text(max_size=12) | st.integers(), max_size=3)


class Model:
    """What the bookkeeping is, without a thought for speed."""

    def __init__(self) -> None:
        self.live: dict[str, list[Any]] = {}  # id → [holder, bytes, state, begin, timeout]
        self.ended: Counter[str] = Counter()
        self.created = 0
        self.draining = False

    def create(self, key: str, holder: str, size: int, now: float, timeout: float) -> str:
        if self.draining:
            return "draining"
        if len(self.live) >= LIMIT:
            return "capacity_full"
        if size > MAX_BYTES:
            return "metadata_too_large"
        if key in self.live:
            return "duplicate_request"
        self.created += 1
        self.live[key] = [holder, size, "idle", now, timeout]
        return "idle"

    def move(self, key: str, move: str, now: float) -> str | None:
        if key not in self.live:
            return None
        state = self.live[key][2]
        if (move, state) in {("start", "processing"), ("complete", "idle")}:
            return "illegal_move"
        if move == "start":
            self.live[key][2:4] = ["processing", now]
            return "processing"
        return self.end(key, {"complete": "completed", "fail": "error", "time_out": "timeout"}.get(move, "cancelled"))

    def end(self, key: str, outcome: str) -> str:
        del self.live[key]
        self.ended[outcome] += 1
        return outcome

    def late(self, now: float, grace: float) -> list[str]:
        return [key for key, (_, _, _, begin, timeout) in self.live.items() if now - begin - timeout > grace]


class Bookkeeping(RuleBasedStateMachine):
    """The core and the model, side by side."""

    @initialize()
    def begin(self) -> None:
        self.bench = Held(pool=LIMIT, max_metadata=MAX_BYTES)
        self.model = Model()

    @rule(
        key=st.sampled_from(IDS),
        holder=st.sampled_from(HOLDERS),
        metadata=METADATA,
        timeout=st.sampled_from([2.0, 50.0]),
    )
    def create(self, key: str, holder: str, metadata: dict[str, Any], timeout: float) -> None:
        encoded = json.dumps(metadata, default=str).encode("utf-8")
        answer = self.bench.create(key, holder=holder, metadata=encoded, timeout=timeout)
        expected = self.model.create(key, holder, len(encoded), self.bench.time, timeout)
        assert (getattr(answer, "state", None) or answer.code) == expected

    @rule(key=st.sampled_from(IDS), move=st.sampled_from([Move.START, Move.COMPLETE, Move.FAIL, Move.TIME_OUT]))
    def move(self, key: str, move: Move) -> None:
        answer = self.bench.move(key, move)
        expected = self.model.move(key, move.value, self.bench.time)
        if expected is None:
            assert answer.code in {"illegal_move", "unknown_request"}
        else:
            assert expected in {getattr(answer, "state", None), getattr(answer, "code", None)}

    @rule(key=st.sampled_from(IDS))
    def release(self, key: str) -> None:
        """Of a live session, of an ended one, of nobody's: never an error."""
        self.bench.move(key, release=True)
        self.model.move(key, "release", self.bench.time)
        again = self.bench.figures()
        self.bench.move(key, release=True)
        assert self.bench.figures() == again

    @rule(seconds=st.floats(0.01, 9.0))
    def time_passes(self, seconds: float) -> None:
        self.bench.do(Tick(), after=seconds)
        certain = self.model.late(self.bench.time, GRACE + 0.02)
        possible = self.model.late(self.bench.time, GRACE)
        live = self.bench.core.requests
        assert not set(certain) & set(live)
        for key in possible:
            if key not in live:
                self.model.end(key, "timeout")

    @rule()
    def clean_up(self) -> None:
        late = self.model.late(self.bench.time, 0.0)
        assert self.bench.answer(SessionsCleaned()) == len(late)
        for key in late:
            self.model.end(key, "timeout")

    @rule(holder=st.sampled_from(HOLDERS))
    def holder_dies(self, holder: str) -> None:
        self.bench.do(ClientGone(holder))
        for key in [key for key, entry in self.model.live.items() if entry[0] == holder]:
            self.model.end(key, "error")

    @rule(key=st.sampled_from(IDS))
    def settle(self, key: str) -> None:
        """The second verb of `execute_with_session`: whatever was first stands, and nothing is counted twice."""
        known = self.bench.view(key)
        if known is None:
            return
        self.bench.answer(SessionMoved(key, session_id=known.session_id, move=Move.FAIL, release=True, settle=True))
        self.model.move(key, "fail", self.bench.time)

    @precondition(lambda self: not self.model.draining and self.model.created > 3)
    @rule()
    def shut_down(self) -> None:
        self.bench.do(DrainAsked(1_000.0))
        self.model.draining = True

    @invariant()
    def never_more_than_the_limit(self) -> None:
        assert self.bench.figures()["active_sessions"] == len(self.model.live) <= LIMIT

    @invariant()
    def bytes_are_those_of_the_live(self) -> None:
        figures = self.bench.figures()
        assert figures["current_metadata_bytes"] == sum(entry[1] for entry in self.model.live.values())
        assert figures["metrics_drift"] == 0

    @invariant()
    def counters_conserve(self) -> None:
        figures = self.bench.figures()
        ended = {name: figures[f"total_sessions_{name}"] for name in ("completed", "error", "timeout", "cancelled")}
        assert ended == {name: self.model.ended[name] for name in ended}
        assert figures["total_sessions_created"] == self.model.created == len(self.model.live) + sum(ended.values())

    @invariant()
    def states_are_the_models(self) -> None:
        assert {key: request.state.value for key, request in self.bench.core.requests.items()} == {
            key: entry[2] for key, entry in self.model.live.items()
        }

    def teardown(self) -> None:
        """When every holder is dead nothing is active."""
        if not hasattr(self, "bench"):
            return
        for holder in HOLDERS:
            self.bench.do(ClientGone(holder))
        self.bench.nothing_is_held()


def test_the_bookkeeping_against_the_model() -> None:
    run_state_machine_as_test(
        Bookkeeping, settings=settings(max_examples=300, stateful_step_count=40, deadline=None, database=None)
    )
