"""One client's connection, on the supervisor's side: handshake, lockstep calls, then batches of messages.

Owner of everything here: the event loop's thread. What is sent during one turn of the loop leaves in one frame.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, cast

import msgspec

from callpool.manager import wire
from callpool.manager.core.messages import Ask, ClientEvent, ClientMessage, Reply
from callpool.manager.errors import CallpoolError, ProtocolError, to_fault
from callpool.manager.holders import Caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.faults import Fault
    from callpool.manager.holders import Holder
    from callpool.manager.server import ManagerServer

log = logging.getLogger(__name__)

SERVICE_IDENT = "service"
"""The identity of the one object that this Manager serves."""
OPEN_CHANNEL = "open_channel"
"""The lockstep call after which a connection carries batches of messages."""
MAX_ANSWER = wire.FRAME_LIMIT - 1024
"""Bytes of one answer: with what is around it in a frame, it must fit."""
MAX_UNSENT = 128 * 1024 * 1024
"""Bytes that may wait for a client that does not read, before its connection is ended."""


def _encoded(answer: Any, refuse: Callable[[Fault], Any]) -> msgspec.Raw:
    """An answer's bytes; of one that cannot be sent (its value has no form, or is too long), those of a refusal.

    Each answer by itself: what travels in the same frame is somebody else's, and is not lost with it.
    """
    try:
        body = wire.encoder.encode(answer)
    except (TypeError, ValueError, OverflowError) as error:
        log.exception("an answer cannot be sent")
        return msgspec.Raw(wire.encoder.encode(refuse(to_fault(error))))
    if len(body) > MAX_ANSWER:
        message = f"the answer has {len(body)} bytes, the limit is {MAX_ANSWER}: ask for less at once"
        refused = ProtocolError(message, size=len(body), limit=MAX_ANSWER)
        return msgspec.Raw(wire.encoder.encode(refuse(refused.fault)))
    return msgspec.Raw(body)


class Connection(asyncio.Protocol):
    """A state machine over frames: `_on_frame` is the step that the next frame gets."""

    def __init__(self, server: ManagerServer, client_id: str, pid: int) -> None:
        self.client_id = client_id
        self.pid = pid
        self._server = server
        self._service = server.service
        self._loop = asyncio.get_running_loop()
        self._framer = wire.Framer(wire.HANDSHAKE_FRAME_LIMIT)
        self._handshake = wire.ServerHandshake(server.key, os.urandom(wire.NONCE_BYTES), client_id)
        self._on_frame: Callable[[bytes], None] = self._on_proof
        self._deadline: float | None = self._loop.time() + wire.HANDSHAKE_DEADLINE
        self._transport: asyncio.Transport | None = None
        self._holder: Holder | None = None
        self._caller = Caller(client_id, "", "")
        self._unsent: list[ClientEvent | msgspec.Raw] = []
        self._pending: set[asyncio.Future[Any]] = set()
        """Verbs that will answer later."""

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours: speak first."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclasses of it
        self._transport.write(wire.frame(self._handshake.hello()))

    def data_received(self, data: bytes) -> None:
        """Bytes came: take the frames that are complete."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        was_partial, completed = self._framer.partial, False
        try:
            for body in self._framer.feed(data):
                completed = True
                self._on_frame(body)
                if transport.is_closing():
                    return
        except ProtocolError as error:
            self.abort(error.message)
            return
        if self._on_frame == self._on_proof:
            return  # the handshake's deadline stands, however the bytes drip
        if not self._framer.partial:
            self._deadline = None
        elif completed or not was_partial:
            self._deadline = self._loop.time() + wire.FRAME_DEADLINE

    def connection_lost(self, _error: Exception | None) -> None:
        """The other end is gone, or we closed it."""
        self._transport = None
        if self._holder is not None:
            self._server.holders.leave(self._holder, self)
        for future in self._pending:
            future.cancel()
        self._server.closed(self)

    # For the server.

    def overdue(self, now: float) -> bool:
        """Whether the peer owes bytes and is past its deadline."""
        return self._deadline is not None and now > self._deadline

    def send(self, event: ClientEvent | msgspec.Raw) -> None:
        """Queue an event; everything queued in one turn of the loop leaves together."""
        if not self._unsent:
            self._loop.call_soon(self.flush)
        self._unsent.append(event)

    def close(self) -> None:
        """Send what is owed, then close."""
        if self._transport is not None:
            self.flush()
            self._transport.close()

    def abort(self, why: str) -> None:
        """End the connection at once."""
        if self._transport is not None:
            log.warning("ended the connection of %s (pid %s): %s", self.client_id, self.pid, why)
            self._transport.abort()

    def flush(self) -> None:
        """Send now what this turn has brought so far."""
        unsent, self._unsent = self._unsent, []
        if self._transport is None or not unsent:
            return
        for batch in wire.batches(unsent):
            self._transport.write(batch)
        self._check_unsent()

    def _check_unsent(self) -> None:
        if self._transport is not None and self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.abort("it does not read what is sent to it")

    # Steps.

    def _on_proof(self, body: bytes) -> None:
        good, answer = self._handshake.answer(body)
        if self._transport is None:
            return
        self._transport.write(wire.frame(answer))
        if not good:
            log.warning("refused the handshake of pid %s", self.pid)
            self._transport.close()
            return
        self._framer.limit = wire.FRAME_LIMIT
        self._deadline = None
        self._on_frame = self._on_lockstep
        self._holder = self._server.holders.join(self.pid, self._handshake.holder, self)
        holder_id = self._holder.holder_id
        self._caller = Caller(self.client_id, holder_id, self._handshake.door, self._handshake.name or holder_id)
        self._server.welcome(self)

    def _on_lockstep(self, body: bytes) -> None:
        """One call of a Manager proxy: (ident, method, args, kwds) → (kind, value)."""
        ident, method, arguments, keywords = wire.decode(wire.lockstep_calls, body, "call")
        try:
            value = (
                self._manager_call(method, arguments)
                if ident is None
                else self._service_call(ident, method, arguments, keywords)
            )
        except CallpoolError as error:
            self._answer_lockstep(None, error.fault)
        else:
            self._answer_with(value, self._answer_lockstep)
        if ident == SERVICE_IDENT and method == OPEN_CHANNEL:
            self._on_frame = self._on_batch
            self._service.client_joined(self.client_id)  # after the answer: from here on only batches are sent

    def _on_batch(self, body: bytes) -> None:
        """Messages of a channel, in order; runs of plain messages go to the service together."""
        messages: list[ClientMessage] = wire.decode(wire.client_messages, body, "message")
        plain: list[ClientMessage] = []
        for message in messages:
            if type(message) is Ask:
                self._hand_over(plain)
                plain = []
                self._on_ask(message)
            else:
                plain.append(message)
        self._hand_over(plain)

    def _hand_over(self, messages: list[ClientMessage]) -> None:
        if messages:
            self._service.handle_client(self._caller, messages)

    def _on_ask(self, ask: Ask) -> None:
        def answer(value: Any, fault: Fault | None) -> None:
            self.send(_encoded(Reply(ask.number, value, fault), lambda refused: Reply(ask.number, None, refused)))

        try:
            value = self._service.call_verb(self._caller, ask.verb, ask.arguments)
        except CallpoolError as error:
            answer(None, error.fault)
        else:
            self._answer_with(value, answer)

    # Calls.

    def _answer_with(self, value: Any, answer: Callable[[Any, Fault | None], None]) -> None:
        """Answer with a value: now, or when it is there, if it is a future."""
        if not isinstance(value, asyncio.Future):
            answer(value, None)
            return

        def done(future: asyncio.Future[Any]) -> None:
            self._pending.discard(future)
            if future.cancelled():
                return
            error = future.exception()
            answer(None, to_fault(error)) if error else answer(future.result(), None)

        self._pending.add(value)
        value.add_done_callback(done)

    def _answer_lockstep(self, value: Any, fault: Fault | None) -> None:
        if self._transport is not None:
            answer = (wire.KIND_RETURN, value) if fault is None else (wire.KIND_ERROR, fault)
            self._transport.write(wire.frame(_encoded(answer, lambda refused: (wire.KIND_ERROR, refused))))
            self._check_unsent()

    def _service_call(self, ident: str, method: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if ident != SERVICE_IDENT:
            raise ProtocolError(f"no object has the identity {ident!r}")
        if arguments:
            raise ProtocolError(f"{method} takes keyword arguments only")
        return self._service.call_verb(self._caller, method, keywords)

    def _manager_call(self, method: str, arguments: list[Any]) -> Any:
        """What a stock BaseManager and its proxies ask of the server itself. There is one object, and it stays."""
        match method, arguments:
            case (("dummy" | "accept_connection" | "incref" | "decref"), _):
                return None
            case "create", [str(typeid)] if typeid == SERVICE_IDENT:
                return SERVICE_IDENT, self._service.exposed
            case "get_methods", _:
                return self._service.exposed
            case "number_of_objects", _:
                return 1
            case _:
                raise ProtocolError(f"the Manager has no method {method!r} for callers")
