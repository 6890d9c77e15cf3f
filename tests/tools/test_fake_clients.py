"""The fake provider and its connections: what is kept, who leaves, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from callpool.tools.testing.fake_provider import FakeProvider, Totals, peak_active
from callpool.tools.testing.fake_records import LogWriter
from tests.tools.raw_client import HANG, LOOPS, ask, chat, connect, leave, post, read_all, run, with_limit


def test_connections_are_kept_and_the_reuse_is_visible() -> None:
    async def main(fake: FakeProvider) -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                await post(session, fake)
            async with session.post(f"{fake.base_url}/nowhere") as response:
                assert response.status == 404
            await post(session, fake)
        await ask(fake.base_url, chat())
        assert [call.connection for call in fake.calls] == [1, 1, 1, 1, 2]
        assert fake.totals == Totals(connections=2, calls=5), "what is not there is no call"
        _, idle = await connect(fake.base_url)
        await leave(idle)
        while fake.totals.connections < 3:
            await asyncio.sleep(0)

    run(main)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def main(fake: FakeProvider) -> None:
        reader, writer = await connect(fake.base_url)
        slow = chat(text="first", close=False, fake={"delay": 0.02})
        writer.write(slow + chat(text="second", close=False) + chat(text="third"))
        raw = (await read_all(reader)).raw
        await leave(writer)
        places = [raw.index(b"echo: " + text) for text in (b"first", b"second", b"third")]
        assert places == sorted(places)
        assert peak_active(fake.calls) == 1

    run(main)


@pytest.mark.parametrize(
    "phase", [{"delay": 60}, {"chunk_delay": 60}, {"fault": "silence"}, {"fault": "sse_endless"}], ids=str
)
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_is_noticed_at_once(phase: dict[str, Any], how: str) -> None:
    async def main(fake: FakeProvider) -> None:
        _, writer = await connect(fake.base_url)
        writer.write(chat(stream=True, fake=phase))
        waits_for_first_byte = "chunk_delay" in phase or phase.get("fault") == "sse_endless"
        await fake.wait_for(lambda calls: bool(calls) and bool(calls[0].first_byte) == waits_for_first_byte)
        assert fake.active == 1
        writer.close() if how == "close" else writer.transport.abort()
        [call] = await fake.wait_for(lambda calls: calls[0].outcome == "client_gone")
        assert call.ended is not None
        assert fake.active == 0
        await leave(writer)

    run(main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_that_comes_together_with_the_clients_leaving_was_made(loop: str) -> None:
    async def main() -> None:
        async with FakeProvider() as fake:
            address = urlsplit(fake.base_url)
            for _ in range(5):
                # Blocking, so that all of it lies in the kernel when the fake looks for the first time.
                with socket.create_connection((str(address.hostname), address.port), timeout=HANG) as client:
                    client.sendall(chat(fake={"delay": 60}))
            await fake.wait_for(lambda calls: [call.outcome for call in calls] == ["client_gone"] * 5)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(with_limit(main()))


def test_a_client_that_has_closed_its_side_and_does_not_read_costs_nothing() -> None:
    async def main(fake: FakeProvider) -> None:
        writer = await unread(fake, chat(model="fault-sse_huge_line", stream=True))
        writer.write_eof()
        await fake.wait_for(lambda calls: calls[0].outcome == "client_gone")
        while fake._connections:
            await asyncio.sleep(0)
        await leave(writer)

    run(main)


def test_a_client_that_leaves_after_the_end_of_its_call_does_not_change_the_record() -> None:
    async def main(fake: FakeProvider) -> None:
        writer = await unread(fake, chat(model="fault-huge_header", fake={"size": 1 << 26}))
        assert [call.outcome for call in fake.calls] == ["fault:huge_header"]
        writer.transport.abort()
        await leave(writer)
        while fake._connections:
            await asyncio.sleep(0)
        assert [call.outcome for call in fake.calls] == ["fault:huge_header"]

    run(main)


async def unread(fake: FakeProvider, sent: bytes) -> asyncio.StreamWriter:
    """Send a request and read none of its answer, until the answer piles up in the fake."""
    _, writer = await connect(fake.base_url)
    writer.write(sent)
    while not any(kept.writer.transport.get_write_buffer_size() for kept in fake._connections.values()):
        await asyncio.sleep(0)
    return writer


def test_much_data_for_one_client_does_not_keep_the_others_waiting() -> None:
    async def main(fake: FakeProvider) -> None:
        reader, writer = await connect(fake.base_url)
        writer.write(chat(model="fault-gzip_bomb"))
        await reader.read(1)
        assert (await ask(fake.base_url, chat())).status == 200
        assert [call.outcome for call in fake.calls] == ["open", "answered"]
        await leave(writer)
        await fake.wait_for(lambda calls: calls[0].outcome == "client_gone")

    run(main)


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_are_refused_for_a_while(loop: str) -> None:
    async def main() -> None:
        async with FakeProvider() as fake:
            url = fake.base_url
            kept = await connect(url)
            for _ in range(2):
                for _ in range(2):
                    await fake.refuse()
                    with pytest.raises(ConnectionRefusedError):
                        await connect(url)
                for _ in range(2):
                    await fake.accept()
                    assert (await ask(url, chat())).status == 200
            await fake.refuse()
            kept[1].write(chat())
            assert (await read_all(kept[0])).status == 200, "an open connection goes on"
            await leave(kept[1])
            assert [call.connection for call in fake.calls] == [2, 3, 4, 5, 1]
        with pytest.raises(RuntimeError, match="not running"):
            await fake.accept()
        other = FakeProvider()
        for verb in (other.refuse, other.accept):
            with pytest.raises(RuntimeError, match="not"):
                await verb()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(with_limit(main()))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("turns", range(-5, 8))
def test_stop_while_a_client_is_being_accepted(turns: int, loop: str) -> None:
    """`turns` of the loop lie between the client's connecting and `stop`, or between `stop` and its connecting."""

    async def main() -> None:
        fake = FakeProvider()
        await fake.start()
        address = urlsplit(fake.base_url)
        stopping = asyncio.create_task(wait_turns(turns, then=fake.stop))
        await wait_turns(-turns)
        try:
            client = socket.create_connection((str(address.hostname), address.port), timeout=HANG)
        except ConnectionRefusedError:
            client = None
        await stopping
        assert fake._connections == {}
        if client is not None:
            with client, contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(with_limit(main()))


async def wait_turns(count: int, then: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
    """Let the loop turn `count` times, then go on."""
    for _ in range(count):
        await asyncio.sleep(0)
    if then is not None:
        await then()


def test_stop_ends_what_is_open() -> None:
    async def main() -> None:
        async with FakeProvider() as fake:
            connections = [await connect(fake.base_url) for _ in range(6)]
            for _, writer in connections[:4]:
                writer.write(chat(stream=True, fake={"chunk_delay": 60}))
            # This one does not read, so that the fake's bytes pile up.
            connections[4][1].write(chat(model="fault-sse_huge_line", stream=True))
            await fake.wait_for(lambda calls: sum(call.first_byte is not None for call in calls) == 5)
        assert [call.outcome for call in fake.calls] == ["stopped"] * 5
        assert fake.active == 0
        for reader, writer in connections:
            await read_all(reader)
            await leave(writer)
        with pytest.raises(ConnectionRefusedError):
            await connect(fake.base_url)
        await fake.stop()
        with pytest.raises(RuntimeError, match="before"):
            await fake.start()

    asyncio.run(with_limit(main()))


def test_a_connection_that_cannot_be_written_down_is_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def main() -> None:
        fake = FakeProvider(log_path=tmp_path / "log")
        await fake.start()

        def full(*_: Any) -> None:
            raise OSError("the disk is full")

        monkeypatch.setattr(LogWriter, "append", full)
        reader, writer = await connect(fake.base_url)
        assert (await read_all(reader)).raw == b""
        await leave(writer)
        with pytest.raises(OSError, match="full"):
            await fake.stop()

    asyncio.run(with_limit(main()))


def test_a_defect_of_the_fake_is_raised_by_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        def defect(_: Any) -> str:
            raise ZeroDivisionError

        monkeypatch.setattr("callpool.tools.testing.fake_answers.echo", defect)
        fake = FakeProvider()
        await fake.start()
        assert (await ask(fake.base_url, chat(close=False))).raw == b""
        with pytest.raises(ZeroDivisionError):
            await fake.stop()

    asyncio.run(with_limit(main()))


@pytest.mark.parametrize("loop", LOOPS)
def test_clients_that_leave_at_any_moment_are_no_defect(loop: str) -> None:
    """Between two drops a connection may end before its reader has heard of it: a defect would end the fake at its stop."""

    async def main() -> None:
        async with FakeProvider() as fake:
            await crowd(fake)

    async def crowd(fake: FakeProvider) -> None:
        for _ in range(40):
            writers = [(await connect(fake.base_url))[1] for _ in range(5)]
            for number, writer in enumerate(writers):
                fault = ("header_drip", "body_drip", "comment_drip", "stream_drip_forever", "empty_drip")[number]
                writer.write(chat(stream=True, fake={"fault": fault, "chunk_delay": 0.0001}))
            await asyncio.sleep(0.002)
            for writer in writers:
                writer.transport.abort()
        await fake.wait_for(lambda calls: len(calls) <= 200 and all(call.outcome != "open" for call in calls))

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(with_limit(main()))
