"""Functions of clients: like a held session each takes a session now or is rejected; like a call it is worked on elsewhere.

The handlers are the machine's; they live here because they are one idea.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core import refusals
from callpool.manager.core.events import ToClient, ToLane
from callpool.manager.core.messages import Dispatch, Rejected
from callpool.manager.core.requests import Kind
from callpool.manager.core.states import Move, advance

if TYPE_CHECKING:
    from callpool.manager.core.events import Effect, FunctionAsked
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.machine import Core
    from callpool.manager.core.messages import Submit
    from callpool.manager.core.requests import Now, Request


class Functions:
    """The handlers of functions, over the machine's tables."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.waiting_bytes = 0
        """Bytes of the payloads of functions that wait for a process; as many may as of requests in the queue."""

    def asked(self, event: FunctionAsked, now: Now, effects: list[Effect]) -> None:
        """A client wants a function run."""
        core, submit, name = self._core, event.submit, event.name or event.holder
        fault = self._refuse_payload(submit) or core.held.refuse(submit, name, now)
        if fault is not None:
            effects.append(ToClient(event.client, Rejected(submit.request_id, fault)))
            return
        request = core.receive(event.client, submit, event.session_id, Kind.FUNCTION, now, name)
        self.waiting_bytes += request.payload_bytes
        request.holder = event.holder
        advance(request, Move.ALLOCATE)
        core.number_attempt(request)
        core.take_session(request, now)
        core.leases.set(request.request_id, now.monotonic + request.timeout)
        order = Dispatch(
            request.request_id,
            request.attempt,
            request.provider,
            request.model,
            request.timeout,
            stream=False,
            payload=request.payload,
        )
        request.payload = b""
        effects.append(ToLane(request.holder, order))

    def started(self, request: Request, now: Now) -> None:
        """A process has it, and begins."""
        self.waiting_bytes -= request.payload_bytes
        if request.ending is None:
            self._core.leases.set(request.request_id, now.monotonic + request.timeout)

    def left_before_start(self, request: Request) -> None:
        """It ends, and no process ever had it."""
        self.waiting_bytes -= request.payload_bytes

    def _refuse_payload(self, submit: Submit) -> Fault | None:
        """Why this function is too large, or too many wait for a process; else None."""
        size, limit = len(submit.payload), self._core.catalogue.max_payload_size
        if size > limit:
            return refusals.function_too_large(size, limit)
        most = self._core.scheduler.max_bytes
        if self.waiting_bytes + size > most:
            return refusals.functions_full(self.waiting_bytes, size, most)
        return None
