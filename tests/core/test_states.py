from __future__ import annotations

import ast
import inspect
from itertools import product

import pytest

from callpool.manager.core import (
    catalogue,
    deadlines,
    drain,
    held,
    ledger,
    lifecycle,
    machine,
    requests,
    scheduler,
    sessions,
    states,
)
from callpool.manager.core.states import ACTIVE, ENDED, MOVES, IllegalTransition, Move, State, advance

PICTURE = {
    "received": "idle queued allocated rejected",
    "idle": "processing error timeout cancelled",
    "queued": "allocated error timeout cancelled",
    "allocated": "processing queued error timeout cancelled",
    "processing": "completed error timeout cancelled interrupted queued",
    "interrupted": "queued error",
    "completed": "",
    "error": "",
    "timeout": "",
    "cancelled": "",
    "rejected": "",
}
"""The life of a request as the design draws it, written down a second time."""


class Thing:
    def __init__(self, state: State) -> None:
        self.request_id = "r1"
        self.state = state


@pytest.mark.parametrize(("state", "move"), list(product(State, Move)))
def test_every_state_and_move(state: State, move: Move) -> None:
    thing = Thing(state)
    if move in MOVES[state]:
        assert advance(thing, move) is MOVES[state][move] is thing.state
        return
    before = dict(vars(thing))
    with pytest.raises(IllegalTransition, match=f"request r1: no move '{move}' from state '{state}'") as error:
        advance(thing, move)
    assert vars(thing) == before
    assert (error.value.request_id, error.value.state, error.value.move) == ("r1", state, move)


def test_the_table_is_the_picture() -> None:
    assert {state.value: set(moves.values()) for state, moves in MOVES.items()} == {
        state: set(after.split()) for state, after in PICTURE.items()
    }


def test_every_state_is_reached_and_every_one_reaches_an_end() -> None:
    assert _reachable(State.RECEIVED) == set(State)
    for state in State:
        assert _reachable(state) & ENDED, f"{state} never ends"


def test_a_move_means_one_thing() -> None:
    meanings: dict[Move, set[State]] = {}
    for moves in MOVES.values():
        for move, after in moves.items():
            meanings.setdefault(move, set()).add(after)
    assert all(len(after) == 1 for after in meanings.values()), meanings
    assert meanings.keys() == set(Move)


def test_active_and_ended_are_apart() -> None:
    assert not ACTIVE & ENDED
    assert set(State) - ACTIVE - ENDED == {State.RECEIVED, State.QUEUED}


def test_only_advance_changes_a_state() -> None:
    doors = []
    for module in (
        catalogue,
        deadlines,
        drain,
        held,
        ledger,
        lifecycle,
        machine,
        requests,
        scheduler,
        sessions,
        states,
    ):
        for function in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(function, ast.FunctionDef):
                doors += [f"{module.__name__}.{function.name}" for node in ast.walk(function) if _sets_state(node)]
    expected = {"requests.__init__", "states.advance", "states.__init__"}  # the last is what an IllegalTransition tells
    assert set(doors) == {f"callpool.manager.core.{name}" for name in expected}


def _sets_state(node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Attribute) and target.attr == "state" for target in targets)


def _reachable(first: State) -> set[State]:
    found: set[State] = set()
    todo = {first}
    while todo:
        state = todo.pop()
        found.add(state)
        todo |= set(MOVES[state].values()) - found
    return found
