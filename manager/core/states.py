"""The life of a request as a table with one door.

Rules of this file:

- `MOVES` is the whole truth: a move that is not in it does not exist.
- `advance` is the only code in the project that changes a request's state.
- An illegal move raises `IllegalTransition` and changes nothing.

Theory of operation: a request is received, waits in the queue, is allocated a session and a worker, and is being
processed from the moment its worker is about to contact the provider. From `PROCESSING` on money may have been spent, so
leaving it without knowing the outcome leads to `INTERRUPTED`, which only a person or an explicit permission leaves.

A session that a client holds (`create_session`) takes the short way: it is idle until its holder starts it, and its holder's
word ends it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Word(StrEnum):
    """Members are their texts, also for hashing: an Enum's own hash is a Python call, and tables are asked many times a request."""

    __hash__ = str.__hash__


class State(Word):
    """Where a request is."""

    RECEIVED = "received"
    IDLE = "idle"
    QUEUED = "queued"
    ALLOCATED = "allocated"
    PROCESSING = "processing"
    COMPLETED = "completed"
    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    REJECTED = "rejected"


class Move(Word):
    """What can happen to a request."""

    REJECT = "reject"
    CREATE = "create"
    ENQUEUE = "enqueue"
    ALLOCATE = "allocate"
    START = "start"
    REQUEUE = "requeue"
    COMPLETE = "complete"
    FAIL = "fail"
    TIME_OUT = "time_out"
    CANCEL = "cancel"
    INTERRUPT = "interrupt"


MOVES: dict[State, dict[Move, State]] = {
    State.RECEIVED: {
        Move.REJECT: State.REJECTED,
        Move.CREATE: State.IDLE,  # a client holds the session and does the work itself
        Move.ENQUEUE: State.QUEUED,
        Move.ALLOCATE: State.ALLOCATED,  # a function, which has a lane of its own and never queues for an account
    },
    State.IDLE: {
        Move.START: State.PROCESSING,
        Move.FAIL: State.ERROR,
        Move.TIME_OUT: State.TIMEOUT,
        Move.CANCEL: State.CANCELLED,
    },
    State.QUEUED: {
        Move.ALLOCATE: State.ALLOCATED,
        Move.FAIL: State.ERROR,  # its account closed for good, or it was lost with its worker too often
        Move.TIME_OUT: State.TIMEOUT,
        Move.CANCEL: State.CANCELLED,
    },
    State.ALLOCATED: {
        Move.START: State.PROCESSING,
        Move.REQUEUE: State.QUEUED,  # its worker died before the call began
        Move.FAIL: State.ERROR,  # bad input that only a worker can see
        Move.TIME_OUT: State.TIMEOUT,
        Move.CANCEL: State.CANCELLED,
    },
    State.PROCESSING: {
        Move.COMPLETE: State.COMPLETED,
        Move.FAIL: State.ERROR,
        Move.TIME_OUT: State.TIMEOUT,
        Move.CANCEL: State.CANCELLED,
        Move.INTERRUPT: State.INTERRUPTED,
        Move.REQUEUE: State.QUEUED,  # the provider said wait, or a retry
    },
    State.INTERRUPTED: {  # a person, or the request's own permission, resolves the doubt
        Move.REQUEUE: State.QUEUED,
        Move.FAIL: State.ERROR,
    },
    State.COMPLETED: {},
    State.ERROR: {},
    State.TIMEOUT: {},
    State.CANCELLED: {},
    State.REJECTED: {},
}

ACTIVE = frozenset({State.IDLE, State.ALLOCATED, State.PROCESSING})
"""States in which a request holds a session: one slot and its metadata bytes."""

ENDED = frozenset(state for state, moves in MOVES.items() if not moves) | {State.INTERRUPTED}
"""States in which nothing more happens by itself."""


class IllegalTransition(Exception):
    """The table has no such move from this state; nothing was changed."""

    def __init__(self, request_id: str, state: State, move: Move) -> None:
        super().__init__(f"request {request_id}: no move {move.value!r} from state {state.value!r}")
        self.request_id = request_id
        self.state = state
        self.move = move


class Stateful(Protocol):
    """What `advance` needs of a request."""

    request_id: str
    state: State


def advance(request: Stateful, move: Move) -> State:
    """Make one move and return the new state. The only code that changes a state."""
    new = MOVES[request.state].get(move)
    if new is None:
        raise IllegalTransition(request.request_id, request.state, move)
    request.state = new
    return new
