"""The connections of one provider in one worker: reused, warmed, counted, and never dirty. The servers number what they accept."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import uvloop
from yarl import URL

from callpool.manager.core.pools import PoolCounts
from callpool.manager.errors import ProviderUnreachable, RequestTimeout
from callpool.workers.call import run_call
from callpool.workers.providers import connections, pool
from callpool.workers.providers.connections import Connections
from callpool.workers.providers.openai_compatible import OpenAICompatible
from callpool.workers.providers.presets import OPENAI
from callpool.workers.providers.secret import Secret
from tests.workers.recorder import Recorder
from tests.workers.test_names import Names, address
from tests.workers.test_providers_http import ANSWER, Exchange, answer, make_call, serving

HANG = 10.0
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
each_loop = pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])


def run(
    test: Callable[[], Awaitable[None]], loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(test(), HANG))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


@asynccontextmanager
async def provider_at(url: str, *, limit: int = 4, **options: Any) -> AsyncIterator[OpenAICompatible]:
    provider = OpenAICompatible(OPENAI, Secret("sk-0123456789abcdef"), base_url=url, limit=limit, **options)
    try:
        yield provider
    finally:
        await provider.close()


def counts_of(provider: OpenAICompatible) -> PoolCounts:
    counts = provider.counts()
    assert counts is not None
    return counts


def opened(provider: OpenAICompatible) -> list[Any]:
    """Aiohttp's protocols of the connections that are open."""
    inner = provider._connections._pool
    return [] if inner is None else [protocol for protocol in inner._last_used if protocol.is_connected()]


# Reuse, and what it is counted as.


@each_loop
def test_connections_are_used_again_and_counted(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test() -> None:
        async with serving(answer) as (server, url), provider_at(url) as provider:
            assert provider.counts() is None, "nothing was opened yet"
            await run_call(provider, make_call(), Recorder())
            first = counts_of(provider)
            assert (first.requests, first.opened, first.reused, first.open, first.idle) == (1, 1, 0, 1, 1)
            await asyncio.gather(*(run_call(provider, make_call(), Recorder()) for _ in range(40)))
            counts = counts_of(provider)
            assert (counts.requests, counts.failed, counts.waiting) == (41, 0, 0)
            assert counts.opened == server.connections == counts.open == counts.idle <= 4
            assert counts.reused == 41 - counts.opened
            assert 0.0 < counts.connect_seconds_max <= counts.connect_seconds
        assert counts_of(provider).open == 0, "closed with the provider"

    run(test, loop)


def test_an_unused_connection_lapses() -> None:
    async def test() -> None:
        async with serving(answer) as (server, url), provider_at(url, keep_alive=0.05) as provider:
            await run_call(provider, make_call(), Recorder())
            await until(lambda: counts_of(provider).open == 0)
            await run_call(provider, make_call(), Recorder())
            assert server.connections == 2

    run(test)


def test_connections_that_are_closed_are_forgotten() -> None:
    async def test() -> None:
        async def close(exchange: Exchange) -> None:
            await exchange.send(ANSWER, more="Connection: close\r\n")

        async with serving(close) as (server, url), provider_at(url, limit=2) as provider:
            for _ in range(20):
                await run_call(provider, make_call(), Recorder())
            inner = provider._connections._pool
            assert inner is not None
            assert server.connections == 20
            assert len(inner._last_used) <= 4
            assert (counts_of(provider).open, counts_of(provider).opened, len(inner._last_used)) == (0, 20, 0)

    run(test)


def test_bytes_that_come_unasked_are_no_answer_to_the_next_request() -> None:
    """A server's 408 to a connection that it finds idle, or the rest of an answer that was longer than it said."""

    async def test() -> None:
        async def respond(exchange: Exchange) -> None:
            await exchange.send(ANSWER)
            await until(lambda: counts_of(provider).idle == 1)
            await exchange.send(ANSWER.replace(b"hi", b"stray"))

        async with serving(respond) as (server, url), provider_at(url) as provider:
            for _ in range(3):
                assert (await run_call(provider, make_call(), Recorder())).content == "hi"
                await until(lambda: any(each.should_close for each in opened(provider)))
            assert server.connections == 3

    run(test)


@pytest.mark.parametrize("when", ["before the head", "in the stream"])
@each_loop
def test_a_cancelled_call_closes_its_own_connection_alone(
    loop: Callable[[], asyncio.AbstractEventLoop], when: str
) -> None:
    async def test() -> None:
        async def respond(exchange: Exchange) -> None:
            if b"hello" in exchange.body:
                await exchange.send(ANSWER)
            elif when == "in the stream":
                await exchange.begin_stream(b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n')

        async with serving(respond) as (server, url), provider_at(url) as provider:
            stream = make_call(content="slow", stream=True)
            progress = Recorder()
            slow = asyncio.ensure_future(run_call(provider, stream, progress))
            await until(lambda: progress.texts if when == "in the stream" else len(server.exchanges) == 1)
            await run_call(provider, make_call(), Recorder())
            assert (counts_of(provider).open, counts_of(provider).idle) == (2, 1)
            slow.cancel()
            await asyncio.wait([slow])
            assert (counts_of(provider).open, counts_of(provider).idle) == (1, 1)
            await until(lambda: len(server.open) == 1)  # the server has seen it go
            await run_call(provider, make_call(), Recorder())
            assert server.connections == 2, "the other one lives on"
            assert counts_of(provider).reused == 1

    run(test, loop)


# A pool that is full.


def test_a_call_waits_for_a_connection_and_its_timeout_says_so() -> None:
    async def test() -> None:
        may_answer = asyncio.Event()

        async def respond(exchange: Exchange) -> None:
            await may_answer.wait()
            await exchange.send(ANSWER)

        async with serving(respond) as (server, url), provider_at(url, limit=1) as provider:
            first = asyncio.ensure_future(run_call(provider, make_call(), Recorder()))
            await until(lambda: len(server.exchanges) == 1)
            hasty = Recorder()
            with pytest.raises(RequestTimeout) as caught:
                await run_call(provider, make_call(timeout=0.05), hasty)
            assert str(caught.value) == (
                "the call of 'm' at provider 'fake' was not sent within 0.05 s: it waited for a free connection all the time"
            )
            assert (caught.value.which, caught.value.sent, hasty.starts) == ("total", False, 0)
            patient = Recorder()
            second = asyncio.ensure_future(run_call(provider, make_call(), patient))
            await until(lambda: counts_of(provider).waiting == 1)
            assert patient.starts == 0, "nobody must think that it is at the provider"
            may_answer.set()
            assert [(await call).content for call in (first, second)] == ["hi", "hi"]
            assert (server.connections, len(server.exchanges), patient.starts) == (1, 2, 1)
            assert counts_of(provider).waiting == 0

    run(test)


def test_a_silence_is_not_measured_while_a_stream_waits_for_a_connection() -> None:
    async def test() -> None:
        may_answer = asyncio.Event()

        async def respond(exchange: Exchange) -> None:
            if b"first" in exchange.body:
                await may_answer.wait()
            await exchange.send(ANSWER)

        async with serving(respond) as (server, url), provider_at(url, limit=1) as provider:
            first = asyncio.ensure_future(run_call(provider, make_call(content="first"), Recorder()))
            await until(lambda: len(server.exchanges) == 1)
            call = msgspec.structs.replace(make_call(stream=True, timeout=0.2), first_token_timeout=0.01)
            with pytest.raises(RequestTimeout) as caught:
                await run_call(provider, call, Recorder())
            assert (caught.value.which, caught.value.sent) == ("total", False)
            may_answer.set()
            await first

    run(test)


def test_a_cancelled_wait_leaves_its_place_to_the_next() -> None:
    async def test() -> None:
        may_answer = asyncio.Event()

        async def respond(exchange: Exchange) -> None:
            await may_answer.wait()
            await exchange.send(ANSWER)

        async with serving(respond) as (server, url), provider_at(url, limit=1) as provider:
            calls = [asyncio.ensure_future(run_call(provider, make_call(), Recorder())) for _ in range(3)]
            await until(lambda: len(server.exchanges) == 1 and counts_of(provider).waiting == 2)
            calls[1].cancel()
            await asyncio.wait([calls[1]])
            may_answer.set()
            assert [(await calls[number]).content for number in (0, 2)] == ["hi", "hi"]
            assert len(server.exchanges) == 2

    run(test)


# Warm connections.


@each_loop
def test_warm_connections_are_there_before_the_first_call(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test() -> None:
        async with serving(answer) as (server, url), provider_at(url, warm=3) as provider:
            provider.warm()
            await until(lambda: provider.counts() is not None and counts_of(provider).idle == 3)
            await asyncio.gather(*(run_call(provider, make_call(), Recorder()) for _ in range(3)))
            counts = counts_of(provider)
            assert (counts.requests, counts.opened, counts.warmed, counts.reused) == (3, 3, 3, 3)
            assert (server.connections, len(server.exchanges)) == (3, 3)

    run(test, loop)


@each_loop
def test_warm_connections_are_replaced_before_they_lapse(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test() -> None:
        async with serving(answer) as (server, url), provider_at(url, warm=2, keep_alive=0.3) as provider:
            provider.warm()
            await until(lambda: server.connections >= 6)  # each of both was replaced twice
            await until(lambda: counts_of(provider).idle == 2)
            opened = counts_of(provider).opened
            await run_call(provider, make_call(), Recorder())
            assert counts_of(provider).reused == 1
            assert opened == counts_of(provider).warmed
            assert len(server.open) <= 4, "those that were replaced are closed"

    run(test, loop)


def test_a_look_at_an_idle_connection_is_no_use_of_it() -> None:
    """Else looking would keep it beyond the time after which balancers close theirs."""

    async def test() -> None:
        async with serving(answer) as (server, url):
            subject = Connections({}, 4, keep_alive=0.2)
            subject._open()
            inner = subject._pool
            assert inner is not None
            target = URL(url)
            assert await inner.keep_warm(target, 1, 0.0) is None
            assert await inner.keep_warm(target, 2, 0.0) is None
            assert server.connections == 2, "the first was kept, and not taken for both"
            while server.connections == 2:
                assert await inner.keep_warm(target, 2, 0.0) is None
                await asyncio.sleep(0.01)
            await subject.close()

    run(test)


def test_warm_connections_that_the_server_closes_are_opened_again() -> None:
    async def test() -> None:
        async with serving(answer) as (server, url), provider_at(url, warm=2, keep_alive=0.3) as provider:
            provider.warm()
            await until(lambda: server.connections == 2)
            for task in list(server.open):
                task.cancel()
            await until(lambda: server.connections >= 4 and counts_of(provider).idle == 2)

    run(test)


def test_those_in_use_are_warm_enough() -> None:
    async def test() -> None:
        may_answer = asyncio.Event()

        async def respond(exchange: Exchange) -> None:
            await may_answer.wait()
            await exchange.send(ANSWER)

        async with serving(respond) as (server, url), provider_at(url, limit=3) as provider:
            calls = [asyncio.ensure_future(run_call(provider, make_call(), Recorder())) for _ in range(2)]
            await until(lambda: len(server.exchanges) == 2)
            inner = provider._connections._pool
            assert inner is not None
            assert await inner.keep_warm(URL(url), 2, 0.0) is None
            assert (server.connections, counts_of(provider).warmed) == (2, 0)
            assert await inner.keep_warm(provider._urls["chat"], 3, 0.0) is None
            assert (server.connections, counts_of(provider).warmed, counts_of(provider).idle) == (3, 1, 1)
            may_answer.set()
            await asyncio.gather(*calls)

    run(test)


def test_warming_that_fails_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
            async with provider_at(url, warm=2, keep_alive=0.03) as provider:
                provider.warm()
                await until(lambda: provider.counts() is not None and counts_of(provider).failed >= 6)
                counts = counts_of(provider)
                assert (counts.warmed, counts.opened, counts.open, counts.requests) == (0, 0, 0, 0)
                with pytest.raises(ProviderUnreachable):  # a call finds out for itself
                    await run_call(provider, make_call(), Recorder())

    with caplog.at_level(logging.DEBUG, connections.log.name):
        run(test)
    said = [record for record in caplog.records if record.name == connections.log.name]
    assert [(record.levelname, "127.0.0.1" in record.message) for record in said] == [("INFO", True)]


def test_warming_that_fails_is_tried_less_often() -> None:
    pauses = [5.0]
    for _ in range(5):
        pauses.append(connections.next_pause(pauses[-1], 5.0, failed=True))
    assert pauses == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert connections.next_pause(60.0, 5.0, failed=False) == 5.0
    assert connections.next_pause(100.0, 100.0, failed=True) == 100.0, "never more often than without a failure"


def test_warming_stops_when_told_and_the_rest_goes_on() -> None:
    async def test() -> None:
        async with serving(answer) as (server, url), provider_at(url, warm=2, keep_alive=0.06) as provider:
            provider.warm()
            await until(lambda: server.connections == 2)
            provider.stop_warming()
            await until(lambda: counts_of(provider).open == 0 and not server.open)
            assert server.connections <= 4  # a look that was under way may have opened its own
            assert (await run_call(provider, make_call(), Recorder())).content == "hi"

    run(test)


# Names.


def test_an_address_that_failed_is_looked_up_again_by_the_same_call() -> None:
    async def test() -> None:
        async with serving(answer) as (server, url):
            here = URL(url)
            assert here.port is not None
            with socket.socket() as refusing:
                refusing.bind(("127.0.0.2", 0))
                gone = address("127.0.0.2", refusing.getsockname()[1])
                names = Names([address("127.0.0.1", here.port)], [gone], [gone], [address("127.0.0.1", here.port)])
                subject = Connections({"Content-Type": "application/json"}, 4, keep_alive=0.01, resolver=names)
                target = URL(f"http://p.test:{here.port}/v1")

                async def post() -> None:
                    async with await subject.send(target, b"{}") as reply:
                        await reply.read_all(1000)
                    await until(lambda: subject.counts().open == 0)  # type: ignore[union-attr]

                await post()
                await post()
                assert len(names.asked) == 1, "the second connection knew the address"
                known = subject._pool.names  # type: ignore[union-attr]
                first = known.known("p.test", here.port)
                assert first is not None
                known.forget("p.test", here.port, first)
                with pytest.raises(
                    connections.ConnectionFailed
                ) as caught:  # looked up for it, so no reason to look again
                    await post()
                assert (caught.value.phase, len(names.asked)) == ("connect", 2)
                with pytest.raises(connections.ConnectionFailed):  # known, fails, looked up again, fails
                    await post()
                assert len(names.asked) == 3
                await post()  # known, fails, looked up again, good
                assert (len(names.asked), server.connections) == (4, 3)
                counts = subject.counts()
                assert counts is not None
                assert (counts.requests, counts.opened, counts.failed) == (5, 3, 4)
                assert (counts.dns_lookups, counts.dns_cache_hits) == (4, 3)
                await subject.close()

    run(test)


# A provider that does not read.


@pytest.mark.parametrize(
    ("megabytes", "kernel_tells"),
    [(1, True), (16, True), (16, False)],
    ids=["1", "16", "16, a kernel that does not tell"],
)
@pytest.mark.parametrize("how", ["cancel", "deadline"])
@each_loop
def test_a_request_that_nobody_reads_lets_go_of_its_socket(
    loop: Callable[[], asyncio.AbstractEventLoop],
    how: str,
    megabytes: int,
    *,
    kernel_tells: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The listener's kernel accepts; nobody reads. One megabyte fits into our kernel's buffers, of sixteen most wait in this process."""
    if not kernel_tells:
        monkeypatch.setattr(pool, "UNSENT", None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        async def test() -> None:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            async with provider_at(url) as provider:
                progress = Recorder()
                timeout = 0.3 if how == "deadline" else HANG
                call = make_call(content="x" * (megabytes << 20), timeout=timeout)
                running = asyncio.ensure_future(run_call(provider, call, progress))
                await until(lambda: opened(provider))
                silent, _ = listener.accept()
                with silent:
                    [protocol] = opened(provider)
                    sock = protocol.transport
                    await until(lambda: pool.has_unsent(sock) if kernel_tells else sock.get_write_buffer_size())
                    if how == "cancel":
                        running.cancel()
                    [ended] = await asyncio.gather(running, return_exceptions=True)
                    assert isinstance(ended, asyncio.CancelledError if how == "cancel" else RequestTimeout)
                    assert sock.is_closing()
                    watch = select.poll()
                    watch.register(silent, select.POLLRDHUP)
                    await until(lambda: any(event & select.POLLERR for _, event in watch.poll(0)))

        run(test, loop)
