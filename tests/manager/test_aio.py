"""The asyncio client: against a service that answers as the test says, and against real supervisors, on both event loops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Any

import msgspec
import pytest
import uvloop

import callpool
from callpool.manager import aio_channel, peers, wire
from callpool.manager.aio import AsyncClient
from callpool.manager.aio_channel import AsyncChannel
from callpool.manager.aio_handle import AsyncHandle
from callpool.manager.core.catalogue import Catalogue, ProviderEntry, Timeouts
from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import Accepted, Cancel, Done, Note, Rejected, Reply, RunFunction, Submit
from callpool.manager.core.parameter_rules import Rules
from callpool.manager.errors import (
    BadInput,
    ConnectionLost,
    DuplicateRequest,
    HandshakeFailed,
    NotRunning,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
    ResultTimeout,
    UnknownModel,
    UnknownRequest,
    UnsafePath,
)
from callpool.manager.holders import Caller
from callpool.manager.peers import Credentials
from callpool.manager.server import ManagerServer
from callpool.workers.callables import decode_outcome, encode_call
from tests import ground
from tests.acceptance.running import HANG, HELLO, eventually, scripted

KEY = b"k" * wire.KEY_BYTES
CATALOGUE = Catalogue(
    providers={
        "fake": ProviderEntry(
            timeouts=Timeouts(5.0), limit=5, any_model=True, rules=Rules(operations=("chat", "embeddings"))
        )
    },
    max_metadata_size=1000,
)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

both_loops = pytest.mark.parametrize("loop", LOOPS)


def run(test: Callable[[], Awaitable[None]], loop: str = "asyncio") -> None:
    """Run it on a loop of this kind, under the hang limit; nothing may be said to the loop's exception handler."""
    said: list[dict[str, Any]] = []

    async def body() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: said.append(context))
        async with asyncio.timeout(HANG):
            await test()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(body())
    assert not said


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


class Service:
    """A service that writes down what it hears, and says what the test wants said."""

    exposed: tuple[str, ...] = ("open_channel",)

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.later: list[asyncio.Future[Any]] = []
        self.gone: list[str] = []
        self.catalogue: Any = msgspec.to_builtins(CATALOGUE)

    def handle_client(self, caller: Caller, messages: list[Any]) -> None:
        self.batches.append(messages)

    def client_joined(self, client: str) -> None:
        pass

    def client_gone(self, client: str) -> None:
        self.gone.append(client)

    def holds(self, holder: str) -> bool:
        return False

    def holder_gone(self, holder: str) -> None:
        pass

    def call_verb(self, caller: Caller, verb: str, arguments: dict[str, Any]) -> Any:
        if verb == "open_channel":
            if self.catalogue is None:
                raise BadInput("no channel for you")
            return {"client_id": caller.client, "pid": os.getpid(), "catalogue": self.catalogue}
        self.asked.append((verb, arguments))
        if verb == "later":
            self.later.append(asyncio.get_running_loop().create_future())
            return self.later[-1]
        if verb == "refuse":
            raise UnknownRequest("no such request", param="request_id")
        return [*caller, verb]

    def heard(self, kind: type) -> list[Any]:
        return [message for batch in self.batches for message in batch if type(message) is kind]


class Stage:
    """A server with that service, and a client of it, on one loop."""

    def __init__(self, base_folder: Path) -> None:
        self.service = Service()
        self.server = ManagerServer(self.service, key=KEY, max_connections=3)
        self.folder = base_folder / "run"
        self.folder.chmod(0o700)
        self.address = str(self.folder / "s")
        (self.folder / "key").touch(mode=0o600)
        (self.folder / "key").write_bytes(KEY)
        self.server.listen(Path(self.address))

    @property
    def connection(self) -> Any:
        (connection,) = self.server.clients.values()
        return connection

    def say(self, *events: Any) -> None:
        for event in events:
            self.connection.send(event)

    async def close(self) -> None:
        self.server.close()
        await until(lambda: not self.server.open_connections)


def with_client(
    base_folder: Path, loop: str, test: Callable[[Stage, AsyncClient], Awaitable[None]], **options: Any
) -> None:
    async def body() -> None:
        stage = Stage(base_folder)
        try:
            async with await AsyncClient.connect(stage.address, **options) as client:
                await test(stage, client)
                assert not client._asked
            await until(lambda: not stage.server.clients)
        finally:
            await stage.close()

    run(body, loop)


async def submit(client: AsyncClient, **options: Any) -> AsyncHandle:
    return await client.submit(provider="fake", model="m", messages=HELLO, **options)


def done(request_id: str, body: bytes | None = b'{"content": "hello"}', fault: Fault | None = None) -> Done:
    return Done(request_id, "completed" if fault is None else fault.code, "session_1", 0.5, body, fault)


async def taken(stage: Stage, client: AsyncClient, **options: Any) -> AsyncHandle:
    """A handle that the supervisor has taken."""
    before = len(stage.service.heard(Submit))
    submitting = asyncio.ensure_future(submit(client, **options))
    await until(lambda: len(stage.service.heard(Submit)) > before)
    stage.say(Accepted(stage.service.heard(Submit)[-1].request_id, 3))
    return await submitting


# Against a service that says what the test wants.


@both_loops
def test_a_client_under_a_name_of_its_own(base_folder: Path, loop: str) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        assert client.name == "nightly"
        holder = stage.connection._holder.holder_id
        assert await client.ask("echo") == [client.client_id, holder, "python", "nightly", "echo"]

    with_client(base_folder, loop, test, name="nightly")


def test_turn_patience_and_estimate_travel_and_the_wait_comes_back(base_folder: Path) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        asked = {"priority": "batch", "queue_timeout": 7.5, "affinity": "a"}
        submitting = asyncio.ensure_future(submit(client, request_id="chat", **asked))
        others = [
            asyncio.ensure_future(
                client.embed(provider="fake", model="m", input="x" * 400, request_id="embed", **asked)
            ),
            asyncio.ensure_future(
                client.chat(provider="fake", model="m", messages=HELLO, request_id="long", max_tokens=9, **asked)
            ),
        ]
        await until(lambda: len(stage.service.heard(Submit)) == 3)
        heard = {message.request_id: message for message in stage.service.heard(Submit)}
        for message in heard.values():
            assert (message.priority, message.queue_timeout, message.affinity) == ("batch", 7.5, "a")
        assert [heard[name].tokens for name in ("chat", "embed", "long")] == [Usage(9), Usage(100), Usage(9, 9)]
        stage.say(Accepted("chat", 3, 12.5), *(done(name) for name in ("embed", "long")))
        handle = await submitting
        assert (handle.position, handle.predicted_wait) == (3, 12.5)
        stage.say(done("chat"))
        await handle.result()
        assert (handle.position, handle.predicted_wait) == (3, 12.5), "what was said when it was taken"
        await asyncio.gather(*others, return_exceptions=True)
        assert (await taken(stage, client)).predicted_wait is None, "nothing was known"

    with_client(base_folder, "asyncio", test)


@pytest.mark.parametrize("bad", [{"priority": "x"}, {"queue_timeout": 0}, {"affinity": ""}], ids=str)
def test_a_wrong_turn_is_told_at_once_and_nothing_is_sent(base_folder: Path, bad: dict[str, Any]) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        asking = (
            submit(client, **bad),
            client.chat(provider="fake", model="m", messages=HELLO, **bad),
            client.embed(provider="fake", model="m", input="x", **bad),
        )
        for each in asking:
            with pytest.raises(BadInput) as caught:
                await each
            assert [caught.value.param] == list(bad)
        await client.ask("echo")
        assert not stage.service.batches

    with_client(base_folder, "asyncio", test)


@both_loops
def test_messages_of_one_turn_travel_together_and_each_gets_its_own_answer(base_folder: Path, loop: str) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        submitting = [asyncio.ensure_future(submit(client, request_id=f"r{number}")) for number in range(50)]
        client.note(Note("r1", "hello", 1.0))
        await until(lambda: stage.service.batches)
        (batch,) = stage.service.batches
        assert [message.request_id for message in batch if type(message) is Submit] == [f"r{n}" for n in range(50)]
        assert len(batch) == 51
        assert all(message.acknowledge for message in batch if type(message) is Submit)
        stage.say(*(Accepted(f"r{number}", number) for number in reversed(range(50))))
        handles = await asyncio.gather(*submitting)
        assert [handle.position for handle in handles] == list(range(50))
        fault = Fault(code="timeout", message="too slow")
        for number in reversed(range(50)):
            odd = number % 2 == 1
            stage.say(done(f"r{number}", None, fault) if odd else done(f"r{number}", b'{"content": "%d"}' % number))
        for number, handle in enumerate(handles):
            if number % 2 == 1:
                assert isinstance(await handle.exception(), RequestTimeout)
                with pytest.raises(RequestTimeout):
                    await handle.result()
                assert await handle.state() == "timeout"
            else:
                answer = await handle.result()
                assert answer["content"] == str(number)
                assert answer["metadata"]["session"]["request_id"] == f"r{number}"
                assert await handle.exception() is None
            assert handle.done()
            assert not handle.cancel()
        assert not client._handles
        holder = stage.connection._holder.holder_id
        assert await client.ask("echo") == [client.client_id, holder, "odd", holder, "echo"]
        assert isinstance(stage.service.asked[0][1]["sent"], float)
        with pytest.raises(UnknownRequest, match="no such request"):
            await client.ask("refuse")

    with_client(base_folder, loop, test, door="odd")


@both_loops
def test_a_question_without_an_answer_is_forgotten(base_folder: Path, loop: str) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        with pytest.raises(ConnectionLost, match=r"did not answer 'later' within 0\.01 s"):
            await client.ask("later", _wait=0.01)
        asking = asyncio.ensure_future(client.ask("later", x=1))
        await until(lambda: len(stage.service.later) == 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not client._asked
        for future in stage.service.later:
            future.set_result("too late")
        assert (await client.ask("echo"))[-1] == "echo"

    with_client(base_folder, loop, test)


def test_news_for_a_task_that_was_cancelled_in_the_same_turn(base_folder: Path) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        handle = await taken(stage, client)
        asking = [asyncio.ensure_future(client.ask("later")) for _ in range(2)]
        waiting = asyncio.ensure_future(handle.result())
        await until(lambda: len(stage.service.later) == 2)
        for each in (*asking, waiting):
            each.cancel()
        client._on_events([Reply(min(client._asked), "too late"), done(handle.request_id)])
        client._on_lost(ConnectionLost("too late as well"))
        for each in (*asking, waiting):
            with pytest.raises(asyncio.CancelledError):
                await each

    with_client(base_folder, "asyncio", test)


def test_a_submitter_that_is_cancelled_while_the_connection_ends(base_folder: Path) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        submitting = asyncio.ensure_future(submit(client))
        await until(lambda: stage.service.heard(Submit))
        assert client._channel is not None
        submitting.cancel()
        client._channel.abort(ConnectionLost("for this test"))
        with pytest.raises(asyncio.CancelledError):
            await submitting

    with_client(base_folder, "asyncio", test)


def test_a_description_that_comes_when_nobody_waits_for_it_any_more() -> None:
    async def test() -> None:
        handshake = wire.ClientHandshake(KEY, b"c" * wire.NONCE_BYTES, "test", holder="h", door="python")
        channel = AsyncChannel(handshake, on_events=lambda _events: None, on_lost=lambda _error: None)
        channel._opened.cancel()
        channel._on_description(wire.encoder.encode((wire.KIND_RETURN, {})))

    run(test)


@both_loops
def test_a_request_whose_submitter_is_cancelled_is_cancelled_and_its_id_stays_taken(
    base_folder: Path, loop: str
) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        submitting = asyncio.ensure_future(submit(client, request_id="r"))
        await until(lambda: stage.service.heard(Submit))
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        await until(lambda: stage.service.heard(Cancel))
        assert stage.service.heard(Cancel) == [Cancel("r")]
        with pytest.raises(DuplicateRequest):
            await submit(client, request_id="r")
        stage.say(done("r", None, Fault(code="cancelled", message="so be it")))
        await until(lambda: not client._handles)
        again = await taken(stage, client, request_id="r")
        waiting = asyncio.ensure_future(again.result())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(ResultTimeout):
            await again.result(timeout=0.01)
        assert not again._waiters
        assert len(stage.service.heard(Cancel)) == 1, "who stops waiting for a result cancels nothing"
        assert again.cancel()
        assert again.cancel()
        await until(lambda: len(stage.service.heard(Cancel)) == 3)
        stage.say(done("r"))
        assert (await again.result())["content"] == "hello"

    with_client(base_folder, loop, test)


def test_a_request_cancelled_within_its_turn_was_never_sent(base_folder: Path) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        submitting = asyncio.ensure_future(submit(client))
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        await client.ask("echo")
        assert not client._handles
        assert not stage.service.batches

    with_client(base_folder, "asyncio", test)


def test_a_function_is_awaited_refused_and_killed(base_folder: Path) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        def call(name: str) -> asyncio.Task[Done]:
            return asyncio.ensure_future(client.run_function(RunFunction(name, "", "", b"payload")))

        failed = Fault(code="function_failed", message="it raised")
        tasks = [call("a"), call("b"), call("c"), call("d")]
        await until(lambda: len(stage.service.heard(RunFunction)) == 4)
        stage.say(
            done("a"), done("b", b"its exception", failed), Rejected("c", Fault(code="queue_full", message="full"))
        )
        assert (await tasks[0]).body == b'{"content": "hello"}'
        told = msgspec.structs.replace(failed, details={"request_id": "b"})
        assert await tasks[1] == done("b", b"its exception", told), "how a function failed is for the caller to read"
        with pytest.raises(QueueFull):
            await tasks[2]
        tasks[3].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[3]
        await until(lambda: stage.service.heard(Cancel) == [Cancel("d")])
        with pytest.raises(DuplicateRequest):
            await call("d")
        stage.say(done("d", None, Fault(code="cancelled", message="killed")))
        await until(lambda: not client._handles)

    with_client(base_folder, "asyncio", test)


@both_loops
def test_the_end_of_the_connection_is_told_to_everybody(base_folder: Path, loop: str) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        handle = await taken(stage, client)
        waits = [
            asyncio.ensure_future(wait)
            for wait in (
                handle.result(),
                client.ask("later"),
                submit(client),
                client.run_function(RunFunction("f", "", "", b"")),
                anext(aiter(handle)),
            )
        ]
        await until(lambda: stage.service.later and len(stage.service.heard(Submit)) == 2)
        stage.connection.close()
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        ended = outcomes.pop(3)
        assert isinstance(ended, Done)
        assert ended.state == "interrupted"
        assert {type(each) for each in outcomes} == {ConnectionLost}, outcomes
        assert str(outcomes[0]) == "the supervisor closed the connection"
        assert await handle.state() == "interrupted"
        for late in (client.ask("echo"), submit(client), client.__aenter__()):
            with pytest.raises(ConnectionLost):
                await late
        with pytest.raises(ConnectionLost):
            client.note(Note("r1", "hello", 1.0))

    with_client(base_folder, loop, test)


@both_loops
def test_closing_ends_what_waits_sends_what_is_owed_and_can_be_repeated(base_folder: Path, loop: str) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        handle = await taken(stage, client)
        waiting = asyncio.ensure_future(handle.result())
        await asyncio.sleep(0)
        client.holds_sessions = True
        client.note(Note("r", "last words", 1.0))
        await asyncio.gather(client.close(), client.close())
        await client.close()
        assert isinstance(await handle.exception(), ConnectionLost)
        with pytest.raises(ConnectionLost, match="the client is closed"):
            await waiting
        with pytest.raises(ConnectionLost, match="the client is closed"):
            await submit(client)
        await until(lambda: stage.service.gone)
        assert [verb for verb, _ in stage.service.asked] == ["let_go"]
        assert stage.service.heard(Note)

    with_client(base_folder, loop, test)


@both_loops
def test_a_supervisor_that_does_not_read_holds_back_those_who_send(
    base_folder: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = [{"role": "user", "content": "x" * 100_000}]
    count = 100

    async def test(stage: Stage, client: AsyncClient) -> None:
        stage.connection._transport.pause_reading()
        submitting = [
            asyncio.ensure_future(client.submit(provider="fake", model="m", messages=big, request_id=f"r{number}"))
            for number in range(count)
        ]
        channel = client._channel
        assert channel is not None

        def waiting_bytes() -> int:
            return channel._transport.get_write_buffer_size() if channel._transport is not None else 0

        await until(lambda: not channel.has_room)
        with pytest.raises(ConnectionLost, match="did not answer"):
            await client.ask("echo", _wait=0.01)
        assert waiting_bytes() < 2 * wire.BATCH_BYTES, "most of them still wait"
        submitting[-1].cancel()
        stage.connection._transport.resume_reading()
        while len(stage.service.heard(Submit)) < count - 1:
            assert waiting_bytes() < 3 * wire.BATCH_BYTES, "all send at once when there is room again"
            await asyncio.sleep(0)
        assert stage.service.asked == []
        stage.say(*(Accepted(f"r{number}", 0) for number in range(count - 1)))
        outcomes = await asyncio.gather(*submitting, return_exceptions=True)
        assert isinstance(outcomes.pop(), asyncio.CancelledError)
        assert all(isinstance(each, AsyncHandle) for each in outcomes), outcomes
        assert "r99" not in client._handles

        monkeypatch.setattr(aio_channel, "ROOM_DEADLINE", 0.01)
        monkeypatch.setattr(aio_channel, "CLOSE_DEADLINE", 0.01)
        stage.connection._transport.pause_reading()
        hopeless = [submit(client, x=big) for _ in range(count)]
        refused = await asyncio.gather(*(asyncio.wait_for(each, 0.5) for each in hopeless), return_exceptions=True)
        assert any("read nothing" in str(each) for each in refused)
        await client.close()  # it does not wait for the supervisor either
        stage.connection._transport.resume_reading()

    with_client(base_folder, loop, test)


def test_who_waits_for_room_learns_of_the_end(base_folder: Path) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        stage.connection._transport.pause_reading()
        waiting = [asyncio.ensure_future(submit(client, x="x" * 100_000)) for _ in range(50)]
        assert client._channel is not None
        channel = client._channel
        await until(lambda: not channel.has_room)
        stage.connection.abort("for this test")
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(each) for each in outcomes} == {ConnectionLost}
        assert not client._handles

    with_client(base_folder, "asyncio", test)


@pytest.mark.parametrize(
    "said", [wire.frame(b"\xc1"), wire.encode_frame([1]), wire.HEADER.pack(wire.FRAME_LIMIT + 1), wire.HEADER.pack(-1)]
)
def test_a_malformed_frame_ends_the_connection_with_the_reason(base_folder: Path, said: bytes) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        asking = asyncio.ensure_future(client.ask("later"))
        await until(lambda: stage.service.later)
        stage.connection._transport.write(said)
        with pytest.raises(ConnectionLost, match="malformed|over the limit"):
            await asking

    with_client(base_folder, "asyncio", test)


def test_what_cannot_be_sent_costs_nobody_else_anything(base_folder: Path) -> None:
    async def test(stage: Stage, client: AsyncClient) -> None:
        with pytest.raises(BadInput):
            await client.ask("echo", what=object())
        with pytest.raises(BadInput):
            await client.run_function(RunFunction("r", "", "", b"x" * (wire.FRAME_LIMIT // 2)))
        right: dict[str, Any] = {"provider": "fake", "model": "m", "messages": HELLO}
        for name, value in (
            ("messages", []),
            ("stream", 1),
            ("timeout", -1),
            ("provider", "none"),
            ("model", "m" * 201),
        ):
            with pytest.raises(BadInput):
                await client.submit(**{**right, name: value})
        assert not client._handles
        handle = await taken(stage, client)
        for wait in ("1", -1, float("nan"), True):
            with pytest.raises(BadInput):
                await handle.result(wait)  # type: ignore[arg-type]
        assert (await client.ask("echo"))[-1] == "echo"

    with_client(base_folder, "asyncio", test)


# Where it may be used.


async def misuse(client: AsyncClient, handle: AsyncHandle, kind: type[Exception]) -> None:
    for wait in (client.ask("echo"), submit(client), handle.result(), handle.state(), client.__aenter__()):
        with pytest.raises(kind):
            await wait
    for now in (handle.cancel, lambda: client.note(Note("r", "p", 1.0))):
        with pytest.raises(kind):
            now()


def test_another_loop_another_process_and_no_connection_are_refused_at_once(base_folder: Path) -> None:
    def in_thread(client: AsyncClient, handle: AsyncHandle) -> None:
        asyncio.run(misuse(client, handle, BadInput))
        with pytest.raises(BadInput, match="belongs to the event loop"):
            handle.cancel()  # no loop at all
        with pytest.raises(BadInput, match="belongs to the event loop"):
            asyncio.run(client.close())

    def in_child(client: AsyncClient, handle: AsyncHandle) -> int:
        try:
            asyncio.run(misuse(client, handle, ConnectionLost))
            asyncio.run(client.close())
        except BaseException:  # noqa: BLE001 - this process must not go on with the test
            return 1
        return 0

    async def body() -> None:
        stage = Stage(base_folder)
        client = AsyncClient(Path(stage.address))
        with pytest.raises(ConnectionLost, match="not connected"):
            await client.ask("echo")
        with pytest.raises(ConnectionLost, match="not connected"):
            _ = client.catalogue
        await client.close()
        async with client, client:  # the second time it is connected already
            assert client.catalogue == CATALOGUE
            handle = await taken(stage, client)
            await asyncio.to_thread(in_thread, client, handle)
            child = os.fork()
            if child == 0:
                os._exit(in_child(client, handle))
            assert await asyncio.to_thread(os.waitpid, child, 0) == (child, 0)
            assert (await client.ask("echo"))[-1] == "echo", "the child's end took nothing away"
        await stage.close()

    run(body)


# Connecting.


def sockets() -> set[str]:
    """The sockets of this process: uvloop opens other things with its first connection, and the server watches processes."""
    return {name for name in ground.survey().descriptors if name.startswith("socket:")}


async def refused(address: str, kind: type[Exception], match: str) -> None:
    before = sockets()
    with pytest.raises(kind, match=match):
        await AsyncClient.connect(address)
    await until(lambda: sockets() == before)  # the server's ends are in this process too


@both_loops
def test_connecting_fails_with_the_reason_and_leaves_nothing(
    base_folder: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(stage: Stage, _client: AsyncClient) -> None:
        address, key = stage.address, Path(stage.address).with_name("key")
        await refused(str(base_folder / "none" / "s"), NotRunning, "no supervisor runs")
        await refused(str(stage.folder / "none"), NotRunning, "no supervisor runs")
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(stage.folder / "stale"))
        await refused(str(stage.folder / "stale"), NotRunning, "no supervisor runs")
        await refused("/" + "x" * 200, NotRunning, "no supervisor runs")
        stage.folder.chmod(0o755)
        await refused(address, UnsafePath, "0755")
        stage.folder.chmod(0o700)
        key.write_bytes(b"x" * wire.KEY_BYTES)
        await refused(address, HandshakeFailed, "the key is wrong")
        key.write_bytes(KEY)
        stage.service.catalogue = "nothing of the kind"
        await refused(address, msgspec.ValidationError, "object")
        stage.service.catalogue = None
        await refused(address, BadInput, "no channel for you")
        stage.service.catalogue = msgspec.to_builtins(CATALOGUE)
        with monkeypatch.context() as patch:
            uid = os.geteuid()
            patch.setattr(peers, "credentials", lambda _socket: Credentials(1, uid + 1))
            await refused(address, HandshakeFailed, "not by you")
        with monkeypatch.context() as patch:
            patch.setattr(wire, "HANDSHAKE_DEADLINE", 0.05)
            patch.setattr(stage.service, "call_verb", lambda *_: asyncio.get_running_loop().create_future())
            await refused(address, ConnectionLost, "opened no channel")
        others = [await AsyncClient.connect(address) for _ in range(2)]
        await refused(address, HandshakeFailed, "too many clients")
        for other in others:
            await other.close()

    with_client(base_folder, loop, test)


@both_loops
def test_a_silent_supervisor_and_a_full_backlog_end_the_connect_in_time(
    base_folder: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(base_folder / "run" / "s")

    async def body() -> None:
        before = sockets()
        # Cancelled at each of its steps, it leaves nothing.
        for turns in range(8):
            connecting = asyncio.ensure_future(AsyncClient.connect(address))
            for _ in range(turns):
                await asyncio.sleep(0)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert sockets() == before
            with suppress(BlockingIOError):
                listener.accept()[0].close()
        monkeypatch.setattr(wire, "HANDSHAKE_DEADLINE", 0.05)
        await refused(address, HandshakeFailed, "is it stopped")
        await refused(address, NotRunning, "no supervisor runs")
        listener.accept()[0].close()
        await refused(address, HandshakeFailed, "is it stopped")

    key = base_folder / "run" / "key"
    key.touch(mode=0o600)
    key.write_bytes(KEY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(0)
        listener.setblocking(False)
        run(body, loop)


# Against real supervisors.


@both_loops
def test_requests_of_a_real_supervisor(loop: str) -> None:
    models: dict[str, Any] = {
        "m": {"reply": "hello"},
        "words": {"reply": "one two three", "chunk_delay": 0.001},
        "slow": {"reply": "late", "delay": 60.0},
        "bad": {"error": "rate_limited"},
    }

    with callpool.start(scripted(**models)) as other:

        async def test() -> None:
            with pytest.raises(NotRunning):
                await AsyncClient.connect()  # this user's own
            async with AsyncClient(other.address) as client:
                assert set(client.catalogue.providers) == {"fake"}
                handles = await asyncio.gather(*(submit(client) for _ in range(300)))
                answers = await asyncio.gather(*(handle.result() for handle in handles))
                assert {answer["content"] for answer in answers} == {"hello"}
                assert len({answer["metadata"]["session"]["session_id"] for answer in answers}) == 300
                await stream(client)
                await cancelling(client)
                await functions(client)
                with pytest.raises(UnknownModel):
                    await client.submit(provider="fake", model="none", messages=HELLO)
                assert (await client.show(handles[0].request_id))["state"] == "completed"
                with pytest.raises(UnknownRequest):
                    await client.cancel("none")
                left = await client.submit(provider="fake", model="slow", messages=HELLO)
                assert await left.state() in {"queued", "allocated", "processing"}
            eventually(lambda: other.show(left.request_id)["state"] == "cancelled", why="it lives without its client")

        run(test, loop)


async def stream(client: AsyncClient) -> None:
    pieces = []
    handle = await client.submit(provider="fake", model="words", messages=HELLO, stream=True)
    async for chunk in handle:
        assert chunk.raw is not None
        pieces.append(chunk)
    assert "".join(pieces) == "one two three"
    assert len(pieces) > 1
    assert (await handle.result())["content"] == "one two three"
    plain = await client.submit(provider="fake", model="m", messages=HELLO)
    assert [chunk async for chunk in plain] == ["hello"]


async def cancelling(client: AsyncClient) -> None:
    handle = await client.submit(provider="fake", model="slow", messages=HELLO)
    with pytest.raises(ResultTimeout):
        await handle.result(timeout=0.01)
    assert handle.cancel()
    assert isinstance(await handle.exception(), RequestCancelled)
    with pytest.raises(RequestCancelled):
        _ = [chunk async for chunk in handle]
    by_operator = await client.submit(provider="fake", model="slow", messages=HELLO)
    assert (await client.cancel(by_operator.request_id))["cancelling"]
    with pytest.raises(RequestCancelled):
        await by_operator.result()


async def functions(client: AsyncClient) -> None:
    finished = await client.run_function(RunFunction("f1", "fake", "m", encode_call(divmod, (7, 2), {})))
    assert decode_outcome(finished.body or b"").value == (3, 1)
    running = asyncio.ensure_future(client.run_function(RunFunction("f2", "fake", "m", encode_call(sleep, (60,), {}))))
    await asyncio.sleep(0)  # sent before the question
    while (await client.show("f2"))["state"] != "processing":
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not client._handles)
    assert (await client.show("f2"))["state"] == "cancelled"


@both_loops
def test_a_killed_supervisor_and_a_drained_one(loop: str) -> None:
    config = scripted(m={"reply": "hello"}, slow={"delay": 60.0})
    with callpool.start(config) as other:
        pid = other.status()["pid"]

        async def test() -> None:
            async with await AsyncClient.connect(other.address) as client:
                handle = await client.submit(provider="fake", model="slow", messages=HELLO)
                assert client.client_id != other.client_id
                waiting = asyncio.ensure_future(handle.result())
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(ConnectionLost):
                    await waiting
                assert await handle.state() == "interrupted"
                with pytest.raises(ConnectionLost):
                    await client.status()

        run(test, loop)
    with callpool.start(config) as other:

        async def drained() -> None:
            async with await AsyncClient.connect(other.address) as client:
                assert (await client.status())["state"] == "running"
                report = await client.drain(timeout=1.0, wait=HANG)
                assert report["initial_active_sessions"] == 0

        run(drained, loop)
