"""The server's side of connections that misbehave, with small limits and a service that only listens."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from callpool.manager import connection, server, wire
from callpool.manager.core.messages import Ask, Cancel, Chunk, Reply
from callpool.manager.errors import HandshakeFailed
from callpool.manager.holders import Caller
from callpool.manager.server import ManagerServer

HANG = 10.0
KEY = b"k" * wire.KEY_BYTES


class Listening:
    """A service that writes down what it hears."""

    exposed: tuple[str, ...] = ("ping", "later")

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.joined: list[str] = []
        self.gone: list[str] = []
        self.holders_gone: list[str] = []
        self.later: list[asyncio.Future[Any]] = []

    def handle_client(self, caller: Caller, messages: list[Any]) -> None:
        self.heard.append((caller, messages))

    def client_joined(self, client: str) -> None:
        self.joined.append(client)

    def client_gone(self, client: str) -> None:
        self.gone.append(client)

    def holds(self, holder: str) -> bool:
        return False

    def holder_gone(self, holder: str) -> None:
        self.holders_gone.append(holder)

    def call_verb(self, caller: Caller, verb: str, arguments: dict[str, Any]) -> Any:
        if verb == "later":
            self.later.append(asyncio.get_running_loop().create_future())
            return self.later[-1]
        return [*caller, verb, arguments]


class Peer:
    """A client made of a bare socket."""

    def __init__(self, path: Path, holder: str = "h", name: str = "") -> None:
        self.holder = holder
        self.name = name
        self.loop = asyncio.get_running_loop()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        self.socket.connect(str(path))
        self._framer = wire.Framer()
        self._frames: list[bytes] = []

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.socket, data)

    async def frame(self) -> bytes:
        while not self._frames:
            data = await self.loop.sock_recv(self.socket, 65536)
            if not data:
                raise EOFError
            self._frames += self._framer.feed(data)
        return self._frames.pop(0)

    async def is_closed(self) -> bool:
        try:
            while await self.loop.sock_recv(self.socket, 65536):
                pass
        except ConnectionResetError:
            return True
        return True

    async def shake(self) -> None:
        handshake = wire.ClientHandshake(
            KEY, b"c" * wire.NONCE_BYTES, "test", holder=self.holder, door="python", name=self.name
        )
        await self.send(wire.frame(handshake.prove(await self.frame())))
        handshake.finish(await self.frame())

    async def open_channel(self) -> None:
        await self.shake()
        await self.send(wire.encode_frame(("service", "open_channel", (), {})))
        await self.frame()


def _run(base_folder: Path, test: Callable[[ManagerServer, Listening, Path], Awaitable[None]]) -> None:
    async def body() -> None:
        service = Listening()
        manager = ManagerServer(service, key=KEY, max_connections=3)
        path = base_folder / "s"
        manager.listen(path)
        try:
            async with asyncio.timeout(HANG):
                await test(manager, service, path)
        finally:
            manager.close()
            while manager.open_connections:
                await asyncio.sleep(0)

    asyncio.run(body())


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of a tenth of a second."""
    monkeypatch.setattr(wire, "HANDSHAKE_DEADLINE", 0.1)
    monkeypatch.setattr(wire, "FRAME_DEADLINE", 0.1)
    monkeypatch.setattr(server, "SWEEP_INTERVAL", 0.02)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("said", [b"", b"\0", wire.HEADER.pack(40) + b"x" * 39])
def test_a_handshake_that_does_not_come_ends_the_connection(base_folder: Path, said: bytes) -> None:
    async def test(_manager: ManagerServer, service: Listening, path: Path) -> None:
        peer = Peer(path)
        await peer.send(said)
        assert await peer.is_closed()
        assert service.gone == [], "it never was a client"
        peer.socket.close()

    _run(base_folder, test)


@pytest.mark.usefixtures("impatient")
def test_dripping_does_not_extend_the_handshake(base_folder: Path) -> None:
    async def test(_manager: ManagerServer, _service: Listening, path: Path) -> None:
        peer = Peer(path)
        closed = asyncio.ensure_future(peer.is_closed())
        await peer.send(wire.HEADER.pack(4000))
        while not closed.done():
            try:
                await peer.send(b"x")
            except OSError:
                break
            await asyncio.sleep(0.01)
        assert await closed
        peer.socket.close()

    _run(base_folder, test)


@pytest.mark.usefixtures("impatient")
def test_a_frame_that_drips_ends_the_connection_and_an_idle_client_stays(base_folder: Path) -> None:
    async def test(_manager: ManagerServer, service: Listening, path: Path) -> None:
        idle, dripping = Peer(path), Peer(path)
        await idle.open_channel()
        await dripping.open_channel()
        closed = asyncio.ensure_future(dripping.is_closed())
        await dripping.send(wire.HEADER.pack(4000))
        while not closed.done():
            try:
                await dripping.send(b"x")
            except OSError:
                break
            await asyncio.sleep(0.01)
        assert await closed
        await _until(lambda: service.gone)
        assert len(service.gone) == 1
        await idle.send(wire.encode_frame([Cancel("r1")]))
        await _until(lambda: service.heard)
        for peer in (idle, dripping):
            peer.socket.close()

    _run(base_folder, test)


def test_a_client_that_does_not_read_is_ended_at_the_bound(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_UNSENT", 1_000_000)

    async def test(manager: ManagerServer, service: Listening, path: Path) -> None:
        peer = Peer(path)
        await peer.open_channel()
        (client,) = manager.clients
        sent = 0
        while not service.gone:
            manager.send(client, Chunk("r1", b"x" * 50_000))
            sent += 50_000
            assert sent < 10_000_000, "the bound does not hold"
            await asyncio.sleep(0)
        peer.socket.close()

    _run(base_folder, test)


def test_events_of_one_turn_leave_in_one_frame(base_folder: Path) -> None:
    async def test(manager: ManagerServer, _service: Listening, path: Path) -> None:
        peer = Peer(path)
        await peer.open_channel()
        (client,) = manager.clients
        for number in range(50):
            manager.send(client, Reply(number))
        events = wire.client_events.decode(await peer.frame())
        assert events == [Reply(number) for number in range(50)]
        peer.socket.close()

    _run(base_folder, test)


def test_a_verb_that_answers_later_is_forgotten_with_its_client(base_folder: Path) -> None:
    async def test(_manager: ManagerServer, service: Listening, path: Path) -> None:
        peer = Peer(path)
        await peer.shake()
        await peer.send(wire.encode_frame(("service", "later", (), {})))
        await _until(lambda: service.later)
        peer.socket.close()
        await _until(lambda: service.gone)
        assert service.later[0].cancelled()

    _run(base_folder, test)


def test_connections_that_still_shake_hands_count_against_the_limit(base_folder: Path) -> None:
    async def test(manager: ManagerServer, _service: Listening, path: Path) -> None:
        peers = [Peer(path) for _ in range(3)]
        await _until(lambda: len(manager.open_connections) == 3)
        late = Peer(path)
        assert await late.is_closed()
        assert manager.refused_connections == 1
        for peer in [*peers, late]:
            peer.socket.close()

    _run(base_folder, test)


def test_an_answer_that_cannot_be_encoded_or_is_too_long_is_refused_alone(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_ANSWER", 10_000)

    async def test(_manager: ManagerServer, service: Listening, path: Path) -> None:
        values = {"good": 1, "without form": 2**70, "long": "x" * 20_000}
        monkeypatch.setattr(service, "call_verb", lambda _caller, verb, _arguments: values.get(verb))
        peer = Peer(path)
        await peer.shake()
        for verb, code in (("without form", "internal_error"), ("long", "bad_frame")):
            await peer.send(wire.encode_frame(("service", verb, (), {})))
            kind, fault = wire.lockstep_answers.decode(await peer.frame())
            assert (kind, fault["code"]) == (wire.KIND_ERROR, code)
        await peer.send(wire.encode_frame(("service", "open_channel", (), {})))
        await peer.frame()
        await peer.send(wire.encode_frame([Ask(number, verb) for number, verb in enumerate(values)]))
        replies: list[Any] = wire.client_events.decode(await peer.frame())
        assert [(reply.number, reply.value, reply.fault and reply.fault.code) for reply in replies] == [
            (0, 1, None),
            (1, None, "internal_error"),
            (2, None, "bad_frame"),
        ]
        assert replies[2].fault.details["limit"] == 10_000
        peer.socket.close()

    _run(base_folder, test)


def test_who_asks_and_does_not_read_is_ended_at_the_bound(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_UNSENT", 1_000_000)

    async def test(_manager: ManagerServer, service: Listening, path: Path) -> None:
        monkeypatch.setattr(service, "call_verb", lambda _caller, _verb, _arguments: "x" * 100_000)
        peer = Peer(path)
        await peer.shake()
        asked = 0
        while not service.gone:
            with contextlib.suppress(OSError):
                await peer.send(wire.encode_frame(("service", "ping", (), {})))
            asked += 1
            assert asked < 1_000, "the bound does not hold"
            await asyncio.sleep(0)
        peer.socket.close()

    _run(base_folder, test)


def test_a_caller_goes_by_the_name_it_gave_else_by_its_holders(base_folder: Path) -> None:
    async def test(_manager: ManagerServer, service: Listening, path: Path) -> None:
        peers = [Peer(path, "h1"), Peer(path, "h1", "nightly"), Peer(path, "h2", "nightly")]
        for peer in peers:
            await peer.open_channel()
            await peer.send(wire.encode_frame([Cancel("r")]))
        await _until(lambda: len(service.heard) == 3)
        callers = [caller for caller, _ in service.heard]
        assert [caller.name for caller in callers] == [callers[0].holder, "nightly", "nightly"]
        assert callers[0].holder == callers[1].holder != callers[2].holder, (
            "sessions are held by processes all the same"
        )
        assert len({caller.client for caller in callers}) == 3
        for peer in peers:
            peer.socket.close()

    _run(base_folder, test)


def test_a_peer_with_a_wrong_name_becomes_no_client(base_folder: Path) -> None:
    async def test(manager: ManagerServer, service: Listening, path: Path) -> None:
        peer = Peer(path, name="no name")
        with pytest.raises(HandshakeFailed, match="name must be 1 to 64"):
            await peer.shake()
        assert await peer.is_closed()
        assert (manager.clients, service.gone, len(manager.holders)) == ({}, [], 0)
        peer.socket.close()

    _run(base_folder, test)
