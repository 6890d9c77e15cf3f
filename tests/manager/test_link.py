"""A worker's pipe: batches, promises about what is in the kernel, and ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from callpool.manager import wire
from callpool.manager.core.messages import CancelCall, Dispatch, Finished, Heartbeat
from callpool.manager.link import Link

HANG = 10.0


class Ends:
    """Both ends of a pair, with what they heard."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.orders: list[Any] = []
        self.frames = 0
        self.reports: list[Any] = []
        self.ended: list[str] = []
        self.raw = ours
        self.supervisor = Link(ours, wire.worker_reports, on_messages=self.reports.extend, on_end=self.ended.append)
        self.worker = Link(theirs, wire.worker_orders, on_messages=self._heard, on_end=self.ended.append)

    def _heard(self, orders: list[Any]) -> None:
        self.frames += 1
        self.orders += orders

    def close(self) -> None:
        self.supervisor.close()
        self.worker.close()


def _run(test: Callable[[Ends], Awaitable[None]]) -> None:
    async def body() -> None:
        ends = Ends()
        try:
            async with asyncio.timeout(HANG):
                await test(ends)
        finally:
            ends.close()

    asyncio.run(body())


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_what_is_sent_in_one_turn_travels_together() -> None:
    async def test(ends: Ends) -> None:
        for number in range(100):
            ends.supervisor.send(CancelCall(f"r{number}", 1))
        await _until(lambda: len(ends.orders) == 100)
        assert ends.frames == 1
        assert [order.request_id for order in ends.orders] == [f"r{number}" for number in range(100)]

    _run(test)


def test_flushed_means_that_the_kernel_has_it() -> None:
    """After `flushed`, the message can be read although its sender does nothing any more."""

    async def test(ends: Ends) -> None:
        ends.worker.send(Finished("r1", 1))
        await ends.worker.flushed()
        assert ends.raw.recv(65536, socket.MSG_PEEK)

    _run(test)


def test_flushed_waits_while_the_other_side_does_not_read() -> None:
    async def test(ends: Ends) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(ends.raw.fileno())  # the supervisor does not read
        ends.worker.send(Finished("r1", 1, b"x" * 4_000_000))
        flushed = ends.worker.flushed()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not flushed.done()
        assert ends.worker.unsent_bytes > 0
        loop.add_reader(ends.raw.fileno(), ends.supervisor._readable)
        await flushed
        assert ends.worker.unsent_bytes == 0
        await _until(lambda: ends.reports)
        assert len(ends.reports[0].body) == 4_000_000

    _run(test)


def test_what_a_dead_peer_had_sent_is_read_to_the_end() -> None:
    async def test(ends: Ends) -> None:
        for number in range(1000):
            ends.worker.send(Heartbeat(number, 0.0))
        ends.worker.close()
        ends.supervisor.read_rest()
        assert [report.active for report in ends.reports] == list(range(1000))
        assert ends.ended == ["it closed its pipe"]

    _run(test)


def test_a_torn_frame_is_the_end_of_this_pipe_alone() -> None:
    async def test(ends: Ends) -> None:
        whole = wire.encode_frame([Heartbeat(1, 0.0)])
        ends.worker.close()
        first, second = socket.socketpair()
        heard: list[Any] = []
        why: list[str] = []
        link = Link(first, wire.worker_reports, on_messages=heard.extend, on_end=why.append)
        second.sendall(whole + whole[:-1])
        second.close()
        await _until(lambda: why)
        assert [report.active for report in heard] == [1]
        link.close()

    _run(test)


@pytest.mark.parametrize("garbage", [b"\xff" * 100, wire.HEADER.pack(wire.FRAME_LIMIT + 1), wire.frame(b"\xc1")])
def test_garbage_ends_the_pipe(garbage: bytes) -> None:
    async def test(ends: Ends) -> None:
        first, second = socket.socketpair()
        why: list[str] = []
        link = Link(first, wire.worker_reports, on_messages=lambda _: None, on_end=why.append)
        second.sendall(garbage)
        await _until(lambda: why)
        link.close()
        second.close()

    _run(test)


@pytest.mark.parametrize("backlog", [0, 4_000_000])
def test_sending_to_a_dead_peer_loses_nothing_that_it_had_sent(backlog: int) -> None:
    """A worker reports and dies; before the report is read, the supervisor sends it another order and fails."""

    async def test(ends: Ends) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(ends.raw.fileno())  # the supervisor has not come to read yet
        ends.worker.send(Finished("r1", 1, b"last words"))
        ends.worker.flush()
        if backlog:
            ends.supervisor.send(Dispatch("r0", 1, "p", "m", 1.0, False, b"x" * backlog))
            ends.supervisor.flush()
        ends.worker.close()
        ends.supervisor.send(CancelCall("r2", 1))
        ends.supervisor.flush()
        flushed = ends.supervisor.flushed()
        await asyncio.sleep(0)
        assert not flushed.done(), "nothing of it is in the kernel"
        ends.supervisor.read_rest()
        assert [report.request_id for report in ends.reports] == ["r1"]
        assert len(ends.ended) == 1

    _run(test)


def test_close_is_idempotent_and_sends_what_is_owed() -> None:
    async def test(ends: Ends) -> None:
        ends.supervisor.send(Dispatch("r1", 1, "p", "m", 1.0, False, b"{}"))
        ends.supervisor.close()
        ends.supervisor.close()
        await _until(lambda: ends.ended)
        assert [order.request_id for order in ends.orders] == ["r1"]
        ends.supervisor.send(CancelCall("r1", 1))  # after the end: dropped, no error
        await asyncio.sleep(0)

    _run(test)
