"""A worker without a process: two pipes, some calls, and a will of its own."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import CancelCall, Continues, Dispatch, Finished, Piece, Retire, Started

if TYPE_CHECKING:
    import random

    from callpool.manager.core.messages import WorkerOrder

    from .sim_provider import Bill

Report: TypeAlias = Started | Piece | Finished | Continues

ENDS_BEFORE_START = (None, "bad_input", "timeout", "interrupted")
"""Ends of a call that needs no provider: an answer, or one of these faults."""
ENDS_ON_THE_WAY = ("provider_unreachable", "provider_unreachable", "timeout", "interrupted", "cancelled")
"""Ends of a call that began, and that the provider never saw."""
ENDS_AT_PROVIDER = ("provider_error", "provider_rejected", "broken_answer", "timeout", "cancelled", "interrupted")
DETAILS: dict[str, dict[str, Any]] = {
    "provider_unreachable": {"retryable": True, "scope": "provider", "in_doubt": False},
    "provider_error": {"retryable": True, "scope": "provider", "in_doubt": False},
    "provider_rejected": {"retryable": False, "scope": "request", "in_doubt": False},
    "broken_answer": {"retryable": True, "scope": "provider", "in_doubt": True},
    "timeout": {"which": "total", "seconds": 1.0},
}
TROUBLE: tuple[Fault, ...] = (
    Fault(code="quota_exhausted", message="no money", details={"retryable": False, "scope": "account"}),
    Fault(code="credential_refused", message="no such key", details={"status": 401, "scope": "account"}),
    Fault(code="credential_refused", message="not this model", details={"status": 403, "scope": "model"}),
    Fault(
        code="rate_limited", message="enough for today",
        details={"retryable": False, "limit": "tpd", "retry_after": 90.0, "scope": "account"},
    ),
    Fault(
        code="rate_limited", message="enough for now",
        details={"retryable": False, "limit": "window", "retry_after": None, "scope": "account"},
    ),
)  # fmt: skip
"""What no waiting in the queue mends, except that the fourth names 90 s."""
STOPS: dict[str, float] = {
    "no money": float("inf"), "no such key": float("inf"), "enough for today": 90.0, "enough for now": 600.0,
}  # fmt: skip
"""By the message of a fault: seconds for which its account serves nothing."""


class Net(Protocol):
    """What a worker meets outside: the shell plays it."""

    chance: random.Random

    def bill(self, payload: bytes) -> Bill:
        """What a call with this payload takes."""

    def reckoned(self, payload: bytes) -> Usage | None:
        """What the worker says that it will take; None says nothing."""

    def arrives(self, order: Dispatch) -> Fault | None:
        """It comes to its provider: served, or refused."""

    def arrives_late(self, order: Dispatch) -> None:
        """It was ended on its way, and comes all the same."""

    def ends(self, order: Dispatch, *, by_us: bool, forgiven: bool) -> None:
        """Its provider is done with it, or will be as soon as it notices."""


class FakeCall:
    """One call inside a fake worker."""

    __slots__ = ("arrived", "deaf", "hangs", "order", "pieces", "started")

    def __init__(self, order: Dispatch, *, deaf: bool, hangs: bool) -> None:
        self.order = order
        self.deaf = deaf
        """Never acknowledges a cancel; may still end later, by itself."""
        self.hangs = hangs
        """Never ends by itself."""
        self.started = False
        self.arrived = False
        self.pieces = 0


def _one_of(faults: tuple[str | None, ...], chance: random.Random) -> str | None:
    return faults[int(chance.random() * len(faults))]


def answer_to(payload: bytes) -> bytes:
    """The one right answer to a payload: whose answer a client got can be seen."""
    return b"answer to " + payload


def piece_of(payload: bytes, index: int) -> bytes:
    """The piece number `index` of a streamed answer."""
    return b"%d of " % index + payload


def says(code: str | None) -> Fault | None:
    """The fault of this code, as a worker reports it."""
    return None if code is None else Fault(code=code, message="says the worker", details=DETAILS.get(code, {}))


class FakeWorker:
    """Orders come in by `inbox`, reports go out by `outbox`, each in order; both survive as the kernel's buffers would.

    What a dead worker wrote before its death is still read; what it had not read is gone.
    """

    def __init__(self, number: int, net: Net) -> None:
        self.number = number
        self.alive = True
        self.retiring = False
        self.inbox: deque[WorkerOrder] = deque()
        self.outbox: deque[tuple[Report, bytes]] = deque()
        """(report, payload of the call that it is about): the payload is for the witness, the core never sees it."""
        self.calls: list[FakeCall] = []
        self._net = net
        self._chance = net.chance

    def die(self) -> None:
        """End at once, in the middle of everything: what was on its way may still arrive."""
        self.alive = False
        self.inbox.clear()
        for call in self.calls:
            if call.started and not call.arrived and self._chance.random() < 0.5:
                self._net.arrives_late(call.order)
            if call.arrived:
                self._net.ends(call.order, by_us=True, forgiven=False)
        self.calls.clear()

    def read_order(self, *, deafness: float, hanging: float) -> None:
        """Take one order from the pipe and obey it, or not."""
        order = self.inbox.popleft()
        chance = self._chance
        if type(order) is Dispatch:
            deaf, hangs = chance.random() < deafness, chance.random() < hanging
            self.calls.append(FakeCall(order, deaf=deaf, hangs=hangs))
        elif type(order) is CancelCall:
            for call in self.calls:
                if (call.order.request_id, call.order.attempt) == (order.request_id, order.attempt) and not call.deaf:
                    self._finish(call, says("cancelled"))
                    return
        elif type(order) is Retire:
            self.retiring = True
            self._leave_if_done()

    def _leave_if_done(self) -> None:
        """One that retires ends with its last call, in order: its reports are all in the pipe."""
        if self.retiring and not self.calls:
            self.alive = False
            self.inbox.clear()

    def work(self, *, trouble: float) -> bytes | None:
        """Let one call make a step. Returns its payload if the step was to contact the provider: money is spent."""
        able = [call for call in self.calls if not (call.hangs and call.started)]
        if not able:
            return None
        chance = self._chance
        call = able[int(chance.random() * len(able))]
        order, draw = call.order, chance.random()
        if not call.started:
            if draw < 0.85:
                call.started = True
                self._report(call, Started(order.request_id, order.attempt, self._net.reckoned(order.payload)))
                return order.payload
            self._finish(call, says(_one_of(ENDS_BEFORE_START, chance)))
        elif not call.arrived:
            if draw < 0.9:
                self._arrive(call, trouble)
            else:
                code = _one_of(ENDS_ON_THE_WAY, chance)
                if code != "provider_unreachable" and chance.random() < 0.5:
                    self._net.arrives_late(order)
                self._finish(call, says(code))
        elif draw < 0.35 and call.pieces < 3:
            self._report(call, Piece(order.request_id, order.attempt, piece_of(order.payload, call.pieces)))
            call.pieces += 1
        elif draw < 0.8:
            self._finish(call, None)
        else:
            self._finish(call, says(_one_of(ENDS_AT_PROVIDER, chance)))
        return None

    def _arrive(self, call: FakeCall, trouble: float) -> None:
        if self._chance.random() < trouble:
            self._finish(call, TROUBLE[int(self._chance.random() * len(TROUBLE))])
            return
        refusal = self._net.arrives(call.order)
        if refusal is not None:
            self._finish(call, refusal)
        else:
            call.arrived = True

    def _finish(self, call: FakeCall, fault: Fault | None) -> None:
        self.calls.remove(call)
        order = call.order
        body = answer_to(order.payload) if fault is None else None
        usage = None
        if call.arrived:
            code = None if fault is None else fault.code
            by_us = code in {"timeout", "cancelled", "interrupted"}
            told = code in {None, "broken_answer"} and self._chance.random() < 0.8
            usage = self._net.bill(order.payload).usage if told else None
            self._net.ends(order, by_us=by_us, forgiven=fault is not None and not by_us and code != "broken_answer")
        self._report(call, Finished(order.request_id, order.attempt, body, fault, usage))
        self._leave_if_done()

    def _report(self, call: FakeCall, report: Report) -> None:
        self.outbox.append((report, call.order.payload))
