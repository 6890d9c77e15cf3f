"""An AsyncClient's channel: the handshake, the one lockstep call, then batches of messages, all on one event loop.

    tasks ──send──► [unsent] ──once a turn──► transport          what one turn of the loop brings leaves together
    tasks ◄─wake── on_events ◄── a frame ◄── data_received       … and on_lost, once, at the end

`_on_frame` is the step that the next frame gets: hello, welcome, description, then batch for ever.
Owner of everything here: the event loop's thread.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, cast

import msgspec

from callpool.manager import proxy, wire
from callpool.manager.channel import SERVICE_IDENT, encode_message
from callpool.manager.core.catalogue import Catalogue
from callpool.manager.core.faults import Fault
from callpool.manager.errors import CallpoolError, ConnectionLost, from_fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.messages import ClientEvent, ClientMessage

OPEN_CHANNEL = "open_channel"
"""The lockstep call after which the connection carries batches of messages."""
ROOM_DEADLINE = 30.0
"""Seconds for the supervisor to read what was sent before somebody may send more."""
CLOSE_DEADLINE = 5.0
"""Seconds for the supervisor to read what it is still owed, once the client is closed."""


class AsyncChannel(asyncio.Protocol):
    """One connection to a supervisor."""

    def __init__(
        self,
        handshake: wire.ClientHandshake,
        *,
        on_events: Callable[[list[ClientEvent]], None],
        on_lost: Callable[[ConnectionLost], None],
    ) -> None:
        self.client_id = ""
        self.supervisor_pid = 0
        self._handshake = handshake
        self._on_events = on_events
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._framer = wire.Framer()
        self._on_frame: Callable[[bytes], None] = self._on_hello
        self._opened: asyncio.Future[dict[str, Any] | CallpoolError] = self._loop.create_future()
        """What the supervisor tells about itself, or why there is no channel."""
        self._transport: asyncio.Transport | None = None
        self._unsent: list[msgspec.Raw] = []
        self._unsent_bytes = 0
        self._room = asyncio.Event()
        """Cleared while more waits to be read by the supervisor than one batch."""
        self._room.set()
        self._why: CallpoolError | None = None
        """What ended the connection, where we know better than the transport."""
        self._ended = asyncio.Event()

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is the loop's; the supervisor speaks first."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are no subclasses of it
        self._transport.set_write_buffer_limits(high=wire.BATCH_BYTES)

    def data_received(self, data: bytes) -> None:
        """Bytes came: take the frames that are complete."""
        try:
            for body in self._framer.feed(data):
                self._on_frame(body)
        except CallpoolError as error:
            self.abort(error)

    def pause_writing(self) -> None:
        """The supervisor does not keep up."""
        self._room.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        """The other end is gone, or we closed it."""
        self._transport = None
        self._unsent.clear()
        self._room.set()  # whoever waits for room learns of the end when it sends
        self._ended.set()
        why = self._why
        if why is None:
            broke = f"the connection to the supervisor broke: {error}"
            why = ConnectionLost(broke if error is not None else "the supervisor closed the connection")
        if self._on_frame == self._on_batch:
            self._on_lost(ConnectionLost(why.message))
        elif not self._opened.done():
            is_early = type(why) is ConnectionLost and self._on_frame != self._on_description
            self._opened.set_result(proxy.handshake_broken(why) if is_early else why)

    # Steps.

    def _on_hello(self, body: bytes) -> None:
        self._write(wire.frame(self._handshake.prove(body)))
        self._on_frame = self._on_welcome

    def _on_welcome(self, body: bytes) -> None:
        self.client_id = self._handshake.finish(body)
        self._write(wire.encode_frame((SERVICE_IDENT, OPEN_CHANNEL, (), {})))
        self._on_frame = self._on_description

    def _on_description(self, body: bytes) -> None:
        kind, value = wire.decode(wire.lockstep_answers, body, "answer")
        if kind != wire.KIND_RETURN:
            raise from_fault(msgspec.convert(value, Fault))
        self._on_frame = self._on_batch
        if not self._opened.done():
            self._opened.set_result(value)

    def _on_batch(self, body: bytes) -> None:
        self._on_events(wire.decode(wire.client_events, body, "event"))

    # For the client.

    @property
    def is_open(self) -> bool:
        """Whether something can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def opened(self) -> Catalogue:
        """What can be submitted, once the channel is open. Raises why there is none."""
        described = await self._opened
        if isinstance(described, CallpoolError):
            raise described
        self.supervisor_pid = described["pid"]
        return msgspec.convert(described["catalogue"], Catalogue)

    def overdue(self) -> CallpoolError:
        """The error of a channel that is not open at the deadline."""
        if self._on_frame == self._on_description:
            return ConnectionLost(f"the supervisor opened no channel within {wire.HANDSHAKE_DEADLINE:g} s")
        return proxy.handshake_overdue()

    @property
    def has_room(self) -> bool:
        """Whether the supervisor keeps up with what is sent."""
        return self._room.is_set()

    async def room(self) -> None:
        """Wait until the supervisor has read most of what was sent, or the connection has ended. Raises ConnectionLost."""
        try:
            async with asyncio.timeout(ROOM_DEADLINE):
                while not self._room.is_set():  # somebody who woke first may have filled it again
                    await self._room.wait()
        except TimeoutError:
            raise ConnectionLost(f"the supervisor read nothing for {ROOM_DEADLINE:g} s: is it stopped?") from None

    def send(self, message: ClientMessage) -> None:
        """Send with everything else of this turn of the loop. Raises for what cannot be sent, and after the end."""
        encoded = encode_message(message)
        if not self.is_open:
            raise ConnectionLost(self._why.message if self._why else "the connection to the supervisor has ended")
        if not self._unsent:
            self._loop.call_soon(self.flush)
        self._unsent.append(encoded)
        self._unsent_bytes += len(encoded)
        if self._unsent_bytes >= wire.BATCH_BYTES:
            self.flush()  # so that `has_room` knows of it within this turn

    def flush(self) -> None:
        """Send now what this turn has brought so far."""
        unsent, self._unsent, self._unsent_bytes = self._unsent, [], 0
        for data in wire.batches(unsent) if unsent else ():
            self._write(data)

    async def close(self) -> None:
        """Send what is owed and end the connection; returns when it has ended. Idempotent."""
        if self._transport is None:
            return
        self.flush()
        self._why = self._why or ConnectionLost("the client is closed")
        self._transport.close()
        try:
            async with asyncio.timeout(CLOSE_DEADLINE):
                await self._ended.wait()
        except BaseException as error:
            await self.discard(self._why)
            if not isinstance(error, TimeoutError):
                raise

    async def discard(self, why: CallpoolError) -> None:
        """End the connection without waiting for the supervisor; returns when it has ended."""
        self.abort(why)
        if self._transport is not None:
            await self._ended.wait()  # it comes with the next turn of the loop

    def abort(self, why: CallpoolError) -> None:
        """End the connection at once."""
        self._why = self._why or why
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def open_channel(
    address: str,
    *,
    holder: str,
    door: str,
    name: str,
    on_events: Callable[[list[ClientEvent]], None],
    on_lost: Callable[[ConnectionLost], None],
) -> tuple[AsyncChannel, Catalogue]:
    """Connect, check who serves, shake hands, open the channel, all within `wire.HANDSHAKE_DEADLINE`.

    Returns the channel and what can be submitted on it. Raises NotRunning, HandshakeFailed, UnsafePath, or
    ConnectionLost where it ends after the handshake. Nothing is left behind by a failure.
    """
    channel: AsyncChannel | None = None
    try:
        async with asyncio.timeout(wire.HANDSHAKE_DEADLINE):
            key = proxy.check_address(address)  # looks at a few directories and reads 32 bytes: no work for a thread
            handshake = proxy.new_handshake(key, holder=holder, door=door, name=name)
            connected = await _connect(address)
            channel = AsyncChannel(handshake, on_events=on_events, on_lost=on_lost)
            await _hand_over(connected, channel)
            return channel, await channel.opened()
    except BaseException as error:
        if channel is not None:
            await channel.discard(ConnectionLost("the connection was given up"))
        if not isinstance(error, TimeoutError):
            raise
        raise (channel.overdue() if channel is not None else proxy.not_running(address)) from None


async def _connect(address: str) -> socket.socket:
    """A connected socket, of our own supervisor. The loops' own ways take a full backlog for a connection."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.setblocking(False)
        while not proxy.try_connect(connected, address):  # noqa: ASYNC110 - a full backlog tells nobody when it has room
            await asyncio.sleep(proxy.burst_pause())
        proxy.check_server(connected, address)
    except BaseException:
        connected.close()
        raise
    return connected


async def _hand_over(connected: socket.socket, channel: AsyncChannel) -> None:
    """Give the socket to the loop, whole or not at all: it takes two turns of the loop and no I/O.

    uvloop closes the descriptor of a transport whose making is cancelled, and the socket would close its number again.
    """
    making = asyncio.get_running_loop().create_task(_make_transport(connected, channel))
    try:
        await asyncio.shield(making)
    except asyncio.CancelledError:
        await making
        raise


async def _make_transport(connected: socket.socket, channel: AsyncChannel) -> None:
    await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=connected)
