"""What goes over the wire to a provider, and what a connection does at its edges, against servers that a few lines make."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from callpool.manager.errors import (
    BrokenAnswer,
    ContentRefused,
    ProviderRejected,
    ProviderUnreachable,
    RequestTimeout,
)
from callpool.tools.testing.fake_provider import FakeProvider, messages_digest
from callpool.workers.call import run_call
from callpool.workers.providers import openai_compatible
from callpool.workers.providers.base import Call
from callpool.workers.providers.openai_compatible import OpenAICompatible
from callpool.workers.providers.pool import KEEP_ALIVE, make_socket
from callpool.workers.providers.presets import GLM, LOCAL, OPENAI, Preset
from callpool.workers.providers.secret import Secret
from tests.workers.recorder import Recorder

KEY = "sk-0123456789abcdef"
HANG = 10.0
ANSWER = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}'
EVENTS = (
    b'data: {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": null}]}\n\n'
    b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
)
DONE = b"data: [DONE]\n\n"

Respond = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request as a server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        self.reader = reader
        self.writer = writer
        self.line, *lines = head.split("\r\n")[:-2]
        self.headers = dict(line.lower().split(": ", 1) for line in lines)
        self.body = b""

    async def read_body(self) -> None:
        self.body = await self.reader.readexactly(int(self.headers.get("content-length", "0")))

    async def send(
        self, body: bytes, *, status: str = "200 OK", kind: str = "application/json", more: str = ""
    ) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()

    async def begin_stream(self, *pieces: bytes) -> None:
        self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            self.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await self.writer.drain()


class Server:
    """Answers each request by `respond` and keeps the connection until the client closes it."""

    def __init__(self, respond: Respond, *, reads_bodies: bool = True) -> None:
        self._respond = respond
        self._reads_bodies = reads_bodies
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.open: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        try:
            # Cancelled is how a server stops that is still waiting for its client.
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while True:
                    exchange = Exchange(reader, writer, (await reader.readuntil(b"\r\n\r\n")).decode())
                    if self._reads_bodies:
                        await exchange.read_body()
                    self.exchanges.append(exchange)
                    await self._respond(exchange)
                    if not self._reads_bodies:
                        await asyncio.get_running_loop().create_future()
        finally:
            writer.transport.abort()
            self.open.discard(task)


def url_of(sock: Any) -> str:
    return f"http://127.0.0.1:{sock.getsockname()[1]}/v1"


@asynccontextmanager
async def serving(respond: Respond, *, reads_bodies: bool = True) -> AsyncIterator[tuple[Server, str]]:
    handler = Server(respond, reads_bodies=reads_bodies)
    server = await asyncio.start_server(handler.serve, "127.0.0.1", 0)
    try:
        yield handler, url_of(server.sockets[0])
    finally:
        server.close()
        tasks = list(handler.open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def make_call(*, stream: bool = False, timeout: float = HANG, content: str = "hello", **parameters: Any) -> Call:
    return Call(
        request_id="req_1",
        attempt=1,
        provider="fake",
        model="m",
        stream=stream,
        timeout=timeout,
        messages=[{"role": "user", "content": content}],
        parameters=parameters,
    )


def make_provider(base_url: str, *, preset: Preset = OPENAI, key: str | None = KEY) -> OpenAICompatible:
    return OpenAICompatible(preset, Secret(key) if key else None, base_url=base_url, limit=4)


def run_against(respond: Respond, *calls: Call, **options: Any) -> tuple[Server, list[Any]]:
    """Make the calls one after another against a server; returns what it saw and what came of each."""

    async def main() -> tuple[Server, list[Any]]:
        async with serving(respond) as (server, url):
            provider = make_provider(url, **options)
            found = [
                (await asyncio.gather(run_call(provider, call, Recorder()), return_exceptions=True))[0]
                for call in calls
            ]
            await provider.close()
            return server, found

    return asyncio.run(main())


async def answer(exchange: Exchange) -> None:
    await exchange.send(ANSWER)


def test_the_request_on_the_wire() -> None:
    server, [found] = run_against(answer, make_call(temperature=0.5, model="not this one", stream_options={"x": 1}))
    assert found.content == "hi"
    [exchange] = server.exchanges
    assert exchange.line == "POST /v1/chat/completions HTTP/1.1"
    assert exchange.headers["authorization"] == f"bearer {KEY}"
    assert exchange.headers["content-type"] == exchange.headers["accept"] == "application/json"
    assert exchange.headers["accept-encoding"] == "identity"
    assert exchange.headers["user-agent"].startswith("callpool/")
    assert json.loads(exchange.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": False,
        "temperature": 0.5,
        "stream_options": {"x": 1},
    }


def test_without_a_key_no_authorization_is_sent() -> None:
    server, _ = run_against(answer, make_call(), preset=LOCAL, key=None)
    assert "authorization" not in server.exchanges[0].headers


@pytest.mark.parametrize(
    ("preset", "parameters", "asked"),
    [
        (OPENAI, {}, {"include_usage": True}),
        (OPENAI, {"stream_options": {"include_usage": False}}, {"include_usage": False}),
        (GLM, {}, None),
    ],
)
def test_streams_ask_for_their_usage_where_that_is_known(
    preset: Preset, parameters: dict[str, Any], asked: Any
) -> None:
    server, _ = run_against(answer, make_call(stream=True, **parameters), make_call(), preset=preset)
    streamed, plain = (json.loads(exchange.body) for exchange in server.exchanges)
    assert streamed.get("stream_options") == asked
    assert "stream_options" not in plain


def test_nothing_is_sent_before_started_returns() -> None:
    class Failing(Recorder):
        async def started(self) -> None:
            raise ProviderRejected("the supervisor's pipe is gone")

    async def main() -> None:
        async with serving(answer) as (server, url):
            provider = make_provider(url)
            with pytest.raises(ProviderRejected, match="pipe"):
                await run_call(provider, make_call(), Failing())
            await provider.close()
            assert server.connections == 0

    asyncio.run(main())


@pytest.mark.parametrize("value", [object(), "\ud800", float])
def test_what_is_no_json_is_refused_before_the_call_counts(value: object) -> None:
    async def main() -> None:
        progress = Recorder()
        provider = make_provider("http://127.0.0.1:1/v1")
        with pytest.raises(ProviderRejected, match="cannot be written as JSON"):
            await run_call(provider, make_call(stop=value), progress)
        assert progress.starts == 0
        await provider.close()

    asyncio.run(main())


def test_a_redirect_is_not_followed() -> None:
    async def redirect(exchange: Exchange) -> None:
        await exchange.send(b"", status="307 Temporary Redirect", more="Location: /v1/elsewhere\r\n")

    server, [found] = run_against(redirect, make_call())
    assert len(server.exchanges) == 1
    assert (found.code, found.status, found.retryable) == ("provider_error", 307, False)
    assert "base_url" in found.hint


def test_cookies_are_not_kept() -> None:
    async def with_cookie(exchange: Exchange) -> None:
        await exchange.send(ANSWER, more="Set-Cookie: session=1; Path=/\r\n")

    server, _ = run_against(with_cookie, make_call(), make_call())
    assert [("cookie" in exchange.headers) for exchange in server.exchanges] == [False, False]
    assert server.connections == 1


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    _, [found] = run_against(answer, make_call())
    assert found.content == "hi"


def test_compressed_answers_are_understood_all_the_same() -> None:
    async def compressed(exchange: Exchange) -> None:
        await exchange.send(gzip.compress(ANSWER), more="Content-Encoding: gzip\r\n")

    _, [found] = run_against(compressed, make_call())
    assert found.content == "hi"


@pytest.mark.parametrize(
    ("body", "more"),
    [
        pytest.param(b"\x1f\x8b broken", "Content-Encoding: gzip\r\n", id="no gzip"),
        pytest.param(gzip.compress(ANSWER)[:-12], "Content-Encoding: gzip\r\n", id="half of a gzip"),
        pytest.param(b"", "", id="nothing"),
        pytest.param(b"[1, 2]", "", id="a list"),
        pytest.param(b'"text"', "", id="a text"),
        pytest.param(b"null", "", id="null"),
        pytest.param(b'{"choices": [' + b"[" * 5000 + b"]" * 5000 + b"]}", "", id="too deep"),
        pytest.param(ANSWER.replace(b"hi", b"\xff"), "", id="no UTF-8"),
        pytest.param(ANSWER.replace(b"hi", b"\\ud800"), "", id="half a surrogate pair"),
        pytest.param(ANSWER.replace(b'"stop"', b"NaN"), "", id="NaN"),
        pytest.param(ANSWER + b" x", "", id="more after it"),
    ],
)
def test_bodies_that_are_no_answer(body: bytes, more: str) -> None:
    async def send(exchange: Exchange) -> None:
        await exchange.send(body, more=more)

    _, found = run_against(send, make_call(), make_call(stream=True))
    for failure in found:
        assert isinstance(failure, BrokenAnswer | ProviderUnreachable), failure
        assert failure.retryable


def test_a_service_that_ignores_stream_still_streams_to_the_client() -> None:
    async def main() -> None:
        async with serving(answer) as (_, url):
            provider, progress = make_provider(url), Recorder()
            found = await run_call(provider, make_call(stream=True), progress)
            assert (found.content, progress.texts) == ("hi", ["hi"])
            await provider.close()

    asyncio.run(main())


@pytest.mark.parametrize("end", ["silence", "reset", "close"])
def test_after_the_finish_reason_nothing_spoils_the_answer(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.begin_stream(EVENTS)
        await asyncio.sleep(0.01)  # so that the client has the events before the break
        if end == "reset":
            exchange.writer.transport.abort()
        elif end == "close":
            exchange.writer.close()

    monkeypatch.setattr(openai_compatible, "TRAILER_WAIT", 0.05 if end == "silence" else HANG)
    server, found = run_against(respond, make_call(stream=True), make_call(stream=True))
    assert [one.content for one in found] == ["hi", "hi"]
    assert server.connections == 2, "a connection whose answer did not end is not used again"


class Hears(Recorder):
    """Tells when the first piece has come: the next read waits for more."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()

    async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:
        await super().chunk(text, raw, useful=useful)
        self.heard.set()


def test_chunks_that_cannot_be_parsed_end_the_call_also_where_it_has_begun_to_read() -> None:
    async def main() -> None:
        progress = Hears()

        async def respond(exchange: Exchange) -> None:
            await exchange.begin_stream(EVENTS.partition(b"\n\n")[0] + b"\n\n")
            await progress.heard.wait()
            exchange.writer.write(b"zz\r\n")

        async with serving(respond) as (_, url):
            provider = make_provider(url)
            with pytest.raises(ProviderUnreachable, match="is not HTTP") as caught:
                await run_call(provider, make_call(stream=True), progress)
            assert (caught.value.phase, caught.value.in_doubt, caught.value.partial) == ("body", True, "hi")
            await provider.close()

    asyncio.run(main())


def test_a_connection_that_is_reset_later_is_no_error_of_anybody() -> None:
    complaints: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        progress = Hears()

        async def respond(exchange: Exchange) -> None:
            await exchange.begin_stream(EVENTS)
            await progress.heard.wait()
            exchange.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))

        async with serving(respond) as (server, url):
            provider = make_provider(url)
            await run_call(provider, make_call(stream=True), progress)
            counts = provider.counts()
            assert counts is not None
            assert (counts.open, counts.idle) == (1, 1)
            writer = server.exchanges[0].writer
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            async with asyncio.timeout(HANG):
                while (counts := provider.counts()) is None or counts.open:
                    await asyncio.sleep(0)
            await run_call(provider, make_call(stream=True), progress)  # the pool lets go of the one that is dead
            gc.collect()  # asyncio complains of an exception that nobody took when it throws it away
            assert complaints == []
            await provider.close()

    asyncio.run(main())


def test_a_stream_left_open_after_done_is_closed_and_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.begin_stream(EVENTS, DONE)

    monkeypatch.setattr(openai_compatible, "CLOSING_WAIT", 0.01)
    server, found = run_against(respond, make_call(stream=True), make_call(stream=True))
    assert [one.content for one in found] == ["hi", "hi"]
    assert server.connections == 2


def test_a_stream_that_ends_a_little_after_done_leaves_its_connection_usable() -> None:
    async def respond(exchange: Exchange) -> None:
        await exchange.begin_stream(EVENTS, DONE)
        await asyncio.sleep(0.01)
        exchange.writer.write(b"0\r\n\r\n")

    server, found = run_against(respond, make_call(stream=True), make_call(stream=True))
    assert [one.content for one in found] == ["hi", "hi"]
    assert server.connections == 1


def test_a_refusal_whose_body_never_ends_is_still_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 429 Too Many\r\nContent-Length: 1000\r\nRetry-After: 7\r\n\r\nslow d")
        await exchange.writer.drain()

    monkeypatch.setattr(openai_compatible, "REFUSAL_WAIT", 0.05)
    _, [found] = run_against(respond, make_call())
    assert (found.code, found.status, found.retry_after) == ("rate_limited", 429, 7.0)
    assert "slow d" in str(found)


def test_stray_bytes_after_an_answer_do_not_reach_the_next_call() -> None:
    """An answer that is longer than it said: the rest must not be read as the answer to another request."""
    stray = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    async def respond(exchange: Exchange) -> None:
        await exchange.send(ANSWER)
        exchange.writer.write(stray)

    async def main() -> None:
        async with serving(respond) as (server, url):
            provider = make_provider(url)
            for _ in range(3):
                assert (await run_call(provider, make_call(), Recorder())).content == "hi"
                await asyncio.sleep(0.01)  # the stray bytes arrive while nobody reads
            assert server.connections == 3
            await provider.close()

    asyncio.run(main())


def test_a_large_request_arrives_whole() -> None:
    async def main() -> None:
        async with FakeProvider(reply="got it") as fake:
            provider = make_provider(fake.base_url)
            call = make_call(content="x" * (3 << 20))
            assert (await run_call(provider, call, Recorder())).content == "got it"
            assert fake.calls[0].digest == messages_digest(call.messages)
            await provider.close()

    asyncio.run(main())


def test_a_refusal_before_the_request_was_read_does_not_wait_for_the_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider reads no more, says no, and does not even end what it says."""

    async def too_large(exchange: Exchange) -> None:
        exchange.writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 1000\r\n\r\ntoo large")
        await exchange.writer.drain()

    async def main() -> None:
        async with serving(too_large, reads_bodies=False) as (_, url):
            provider = make_provider(url)
            with pytest.raises(ProviderRejected, match="too large"):
                await run_call(provider, make_call(content="x" * (16 << 20)), Recorder())
            await provider.close()

    monkeypatch.setattr(openai_compatible, "REFUSAL_WAIT", 0.05)
    asyncio.run(main())


def test_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = url_of(sock)

        async def main() -> None:
            provider = make_provider(url)
            with pytest.raises(ProviderUnreachable, match="cannot be reached") as caught:
                await run_call(provider, make_call(), Recorder())
            assert (caught.value.phase, caught.value.retryable) == ("connect", True)
            await provider.close()

        asyncio.run(main())


def test_a_name_that_does_not_resolve() -> None:
    async def main() -> None:
        async def no_such_name(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        asyncio.get_running_loop().getaddrinfo = no_such_name  # type: ignore[method-assign,assignment]
        provider = make_provider("http://provider.invalid/v1")
        with pytest.raises(ProviderUnreachable) as caught:
            await run_call(provider, make_call(), Recorder())
        assert (caught.value.phase, caught.value.retryable) == ("connect", True)
        await provider.close()

    asyncio.run(main())


def test_a_server_without_tls_is_not_tried_again() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        provider = make_provider(url_of(server.sockets[0]).replace("http:", "https:"))
        with pytest.raises(ProviderUnreachable) as caught:
            await run_call(provider, make_call(), Recorder())
        assert (caught.value.phase, caught.value.retryable) == ("connect", False)
        await provider.close()
        server.close()

    asyncio.run(main())


def test_sockets_notice_a_dead_peer() -> None:
    sock = make_socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 1)))
    with sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):
                assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option)) == value


def test_connections_are_made_with_these_sockets() -> None:
    async def main() -> None:
        async with serving(answer) as (_, url):
            provider = make_provider(url)
            await run_call(provider, make_call(), Recorder())
            session = provider._connections._session
            assert session is not None
            [[(protocol, _)]] = session.connector._conns.values()  # type: ignore[union-attr]
            sock = protocol.transport.get_extra_info("socket")  # type: ignore[union-attr]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await provider.close()

    asyncio.run(main())


def test_closing_is_harmless_before_the_first_call_and_twice() -> None:
    async def main() -> None:
        provider = make_provider("http://127.0.0.1:1/v1")
        await provider.close()
        await provider.close()

    asyncio.run(main())


def test_an_answer_leaves_nothing_at_its_connection() -> None:
    """Each listens for the end of the connection, which may live as long as the worker."""
    begun = asyncio.Event()

    async def respond(exchange: Exchange) -> None:
        await exchange.begin_stream(EVENTS)
        await begun.wait()  # its head alone has come: the rest is still to be read
        begun.clear()
        exchange.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE))

    class Reader(Recorder):
        async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:
            begun.set()
            await super().chunk(text, raw, useful=useful)

    async def main() -> tuple[int, list[int]]:
        async with serving(respond) as (server, url):
            provider = make_provider(url)
            for _ in range(20):
                await run_call(provider, make_call(stream=True), Reader())
            pool = provider._connections._pool
            assert pool is not None
            ears = [
                len(protocol.closed._callbacks or ()) for protocol in pool._last_used if protocol.closed is not None
            ]
            await provider.close()
            return server.connections, ears

    connections, ears = asyncio.run(main())
    assert connections == 1
    assert ears[0] <= 2


# Counts.

COUNTS = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
COUNTED = b'data: {"choices": [], "usage": %b}\n\n' % json.dumps(COUNTS).encode()
OTHER = {**COUNTS, "completion_tokens": 9}


def counted(respond: Respond, call: Call, preset: Preset = OPENAI) -> tuple[list[dict[str, Any]], Any]:
    """What was told of its tokens while it ran, and what came of it."""

    async def main() -> tuple[list[dict[str, Any]], Any]:
        async with serving(respond) as (_, url):
            provider, progress = make_provider(url, preset=preset), Recorder()
            [found] = await asyncio.gather(run_call(provider, call, progress), return_exceptions=True)
            await provider.close()
            return progress.counts, found

    return asyncio.run(main())


@pytest.mark.parametrize("end", ["whole", "broken", "silent"])
def test_counts_of_a_stream_are_told_whatever_becomes_of_it(end: str) -> None:
    early = (
        b'data: {"choices": [{"index": 0, "delta": {"content": "hi"}}], "usage": %b}\n\n' % json.dumps(OTHER).encode()
    )

    async def respond(exchange: Exchange) -> None:
        await exchange.begin_stream(early, COUNTED, *([EVENTS, DONE] if end == "whole" else []))
        if end == "broken":
            exchange.writer.close()
        elif end == "whole":
            exchange.writer.write(b"0\r\n\r\n")

    told, found = counted(respond, make_call(stream=True, timeout=0.5 if end == "silent" else HANG))
    assert told == [OTHER, COUNTS], "each once, in order"
    if end == "whole":
        assert found.usage == COUNTS
    else:
        assert type(found) is (ProviderUnreachable if end == "broken" else RequestTimeout)


@pytest.mark.parametrize(
    ("finish", "error"), [("stop", None), ("content_filter", ContentRefused), (None, BrokenAnswer)], ids=str
)
def test_counts_of_a_plain_answer_are_told_also_where_it_is_none(finish: str | None, error: type | None) -> None:
    choices = [{"index": 0, "message": {"content": "hi"}, "finish_reason": finish}] if finish else []

    async def respond(exchange: Exchange) -> None:
        await exchange.send(json.dumps({"choices": choices, "usage": COUNTS}).encode())

    told, found = counted(respond, make_call())
    assert told == [COUNTS]
    assert error is None or type(found) is error


def test_where_nothing_is_counted_nothing_is_told() -> None:
    assert counted(answer, make_call())[0] == [{}]

    async def respond(exchange: Exchange) -> None:
        await exchange.begin_stream(EVENTS, DONE)
        exchange.writer.write(b"0\r\n\r\n")

    assert counted(respond, make_call(stream=True))[0] == []
