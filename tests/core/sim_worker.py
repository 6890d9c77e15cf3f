"""A worker without a process: two pipes, some calls, and a will of its own."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import CancelCall, Continues, Dispatch, Finished, Piece, Started

if TYPE_CHECKING:
    import random

    from callpool.manager.core.messages import WorkerOrder

Report: TypeAlias = Started | Piece | Finished | Continues

FAULTS = ("provider_error", "timeout", "cancelled", "interrupted")
ENDS_BEFORE_START = (None, "bad_input", "timeout", "interrupted")
"""Ends of a call that needs no provider: an answer, or one of these faults."""


class FakeCall:
    """One call inside a fake worker."""

    __slots__ = ("attempt", "deaf", "hangs", "payload", "pieces", "request_id", "started")

    def __init__(self, order: Dispatch, *, deaf: bool, hangs: bool) -> None:
        self.request_id = order.request_id
        self.attempt = order.attempt
        self.payload = order.payload
        self.deaf = deaf
        """Never acknowledges a cancel; may still end later, by itself."""
        self.hangs = hangs
        """Never ends by itself."""
        self.started = False
        self.pieces = 0


def _one_of(faults: tuple[str | None, ...], chance: random.Random) -> str | None:
    return faults[int(chance.random() * len(faults))]


def answer_to(payload: bytes) -> bytes:
    """The one right answer to a payload: whose answer a client got can be seen."""
    return b"answer to " + payload


def piece_of(payload: bytes, index: int) -> bytes:
    """The piece number `index` of a streamed answer."""
    return b"%d of " % index + payload


class FakeWorker:
    """Orders come in by `inbox`, reports go out by `outbox`, each in order; both survive as the kernel's buffers would.

    What a dead worker wrote before its death is still read; what it had not read is gone.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.inbox: deque[WorkerOrder] = deque()
        self.outbox: deque[tuple[Report, bytes]] = deque()
        """(report, payload of the call that it is about): the payload is for the witness, the core never sees it."""
        self.calls: list[FakeCall] = []

    def die(self) -> None:
        """End at once, in the middle of everything."""
        self.alive = False
        self.inbox.clear()
        self.calls.clear()

    def read_order(self, chance: random.Random, *, deafness: float, hanging: float) -> None:
        """Take one order from the pipe and obey it, or not."""
        order = self.inbox.popleft()
        if type(order) is Dispatch:
            deaf, hangs = chance.random() < deafness, chance.random() < hanging
            self.calls.append(FakeCall(order, deaf=deaf, hangs=hangs))
        elif type(order) is CancelCall:
            for call in self.calls:
                if (call.request_id, call.attempt) == (order.request_id, order.attempt) and not call.deaf:
                    self._finish(call, fault="cancelled")
                    return

    def work(self, chance: random.Random) -> bytes | None:
        """Let one call make a step. Returns its payload if the step was to contact the provider: money is spent."""
        able = [call for call in self.calls if not (call.hangs and call.started)]
        if not able:
            return None
        call = able[int(chance.random() * len(able))]
        draw = chance.random()
        if not call.started:
            if draw < 0.85:
                call.started = True
                self._report(call, Started(call.request_id, call.attempt))
                return call.payload
            self._finish(call, fault=_one_of(ENDS_BEFORE_START, chance))
        elif draw < 0.35 and call.pieces < 3:
            self._report(call, Piece(call.request_id, call.attempt, piece_of(call.payload, call.pieces)))
            call.pieces += 1
        elif draw < 0.75:
            self._finish(call, fault=None)
        else:
            self._finish(call, fault=_one_of(FAULTS, chance))
        return None

    def _finish(self, call: FakeCall, *, fault: str | None) -> None:
        self.calls.remove(call)
        body = answer_to(call.payload) if fault is None else None
        said = Fault(code=fault, message="says the worker") if fault else None
        self._report(call, Finished(call.request_id, call.attempt, body, said))

    def _report(self, call: FakeCall, report: Report) -> None:
        self.outbox.append((report, call.payload))
