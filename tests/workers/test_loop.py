"""When a worker warms its providers' connections, when it stops, and what it tells of them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from callpool.manager import wire
from callpool.manager.core.messages import Dispatch, Endpoint, Finished, Heartbeat, Retire, WorkerOrder
from callpool.manager.core.parameter_rules import Rules
from callpool.manager.core.pools import PoolCounts
from callpool.manager.link import Link
from callpool.manager.settings import ProviderSettings
from callpool.workers import loop
from callpool.workers.boot import WorkerBoot
from callpool.workers.loop import WorkerLoop
from callpool.workers.providers.base import Answer, Call, Progress

HANG = 10.0


class Stub:
    """A provider that answers when it may, and notes what it was told."""

    def __init__(self, base_url: str | None) -> None:
        self.base_url = base_url
        self.told: list[str] = []
        self.figures: PoolCounts | None = None
        self.may_answer = asyncio.Event()

    async def call(self, call: Call, progress: Progress) -> Answer:
        await progress.started()
        await self.may_answer.wait()
        return Answer(content=call.model)

    def warm(self) -> None:
        self.told.append("warm")

    def stop_warming(self) -> None:
        self.told.append("stop")

    def counts(self) -> PoolCounts | None:
        return self.figures

    async def close(self) -> None:
        self.told.append("close")


class Bench:
    """A worker's loop, its providers, and the supervisor's end of its pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **kinds: str) -> None:
        self.made: list[Stub] = []

        def make(_name: str, *_: Any, base_url: str | None = None, **__: Any) -> Stub:
            self.made.append(Stub(base_url))
            return self.made[-1]

        monkeypatch.setattr(loop, "make_provider", make)
        ours, theirs = socket.socketpair()
        self.reports: list[Any] = []
        self.link = Link(ours, wire.worker_reports, on_messages=self.reports.extend, on_end=lambda _why: None)
        boot = WorkerBoot(
            number=0,
            supervisor_pid=os.getpid(),
            providers={name: ProviderSettings(kind=kind) for name, kind in kinds.items()},  # type: ignore[arg-type]
            rules={name: Rules() for name in kinds},
            limits=dict.fromkeys(kinds, 4),
            heartbeat_interval=0.01,
        )
        self.running = asyncio.ensure_future(WorkerLoop(theirs, boot, {}).run())

    def send(self, *orders: WorkerOrder) -> None:
        for order in orders:
            self.link.send(order)

    def pools(self) -> dict[str, PoolCounts]:
        """What the last heartbeat told."""
        beats = [report for report in self.reports if type(report) is Heartbeat]
        return beats[-1].pools if beats else {}

    async def end(self) -> None:
        self.send(Retire())
        await self.running
        self.link.close()


def run(test: Callable[[Bench], Awaitable[None]], monkeypatch: pytest.MonkeyPatch, **kinds: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(HANG):
            bench = Bench(monkeypatch, **kinds)
            await test(bench)
            await bench.end()

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_warming_begins_with_the_worker_and_stops_when_it_is_to_retire(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        [provider] = bench.made
        await until(lambda: provider.told == ["warm"])
        bench.send(Dispatch("r1", 1, "a", "m", HANG, stream=False, payload=b'{"messages": []}'), Retire())
        await until(lambda: provider.told == ["warm", "stop"])  # and the call goes on
        assert not bench.running.done()
        provider.may_answer.set()
        await until(lambda: any(type(report) is Finished for report in bench.reports))
        await bench.running
        assert provider.told == ["warm", "stop", "close"]

    run(test, monkeypatch, a="openai")


def test_a_worker_that_is_to_retire_at_once_warms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        bench.send(Retire(), Endpoint("home", "http://127.0.0.1:1/v1", None))
        await bench.running
        assert all("warm" not in provider.told or provider.base_url is None for provider in bench.made)
        assert [provider.told for provider in bench.made if provider.base_url] == [["close"]]

    run(test, monkeypatch, home="local", a="openai")


def test_what_connections_to_an_old_address_had_come_to_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        await until(lambda: bench.reports)
        assert bench.pools() == {}
        bench.send(Endpoint("home", "http://127.0.0.1:1/v1", None))
        await until(lambda: bench.made)
        first = bench.made[0]
        assert first.told == ["warm"]
        first.figures = PoolCounts(requests=3, opened=2, open=2, idle=1)
        await until(lambda: bench.pools() == {"home": first.figures})
        for number in (2, 3):
            bench.send(Endpoint("home", f"http://127.0.0.1:{number}/v1", None))
            await until(lambda: len(bench.made) == number)  # noqa: B023 - looked at here
            bench.made[-1].figures = PoolCounts(requests=1, opened=1, open=1)
        await until(lambda: bench.pools() == {"home": PoolCounts(requests=5, opened=4, open=1)})
        assert [each.told for each in bench.made] == [["warm", "close"], ["warm", "close"], ["warm"]]

    run(test, monkeypatch, home="local")
