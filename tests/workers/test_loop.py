"""When a worker warms its providers' connections, when it stops, and what it tells of them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from callpool.manager import wire
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import (
    CancelCall,
    Continues,
    Dispatch,
    Endpoint,
    Finished,
    Heartbeat,
    Retire,
    Started,
    WorkerOrder,
)
from callpool.manager.core.parameter_rules import Rules
from callpool.manager.core.pools import PoolCounts
from callpool.manager.errors import BrokenAnswer, CallpoolError
from callpool.manager.kinds import rules_of
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
        self.usage: list[dict[str, Any]] = []
        """Told before the answer, one after the other."""
        self.answer: Answer | CallpoolError | None = None

    async def call(self, call: Call, progress: Progress) -> Answer:
        await progress.started()
        for each in self.usage:
            progress.counted(each)
        await self.may_answer.wait()
        if isinstance(self.answer, CallpoolError):
            raise self.answer
        return self.answer or Answer(content=call.model)

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

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rules: Rules | None = None, **kinds: str) -> None:
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
            rules=dict.fromkeys(kinds, rules or Rules()),
            limits=dict.fromkeys(kinds, 4),
            heartbeat_interval=0.01,
        )
        self.running = asyncio.ensure_future(WorkerLoop(theirs, boot, {}).run())

    def send(self, *orders: WorkerOrder) -> None:
        for order in orders:
            self.link.send(order)

    def last(self, kind: type) -> Any:
        """The last report of this kind, or None."""
        return next((report for report in reversed(self.reports) if type(report) is kind), None)

    def pools(self) -> dict[str, PoolCounts]:
        """What the last heartbeat told."""
        beats = [report for report in self.reports if type(report) is Heartbeat]
        return beats[-1].pools if beats else {}

    async def end(self) -> None:
        self.send(Retire())
        await self.running
        self.link.close()


def run(
    test: Callable[[Bench], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    rules: Rules | None = None,
    **kinds: str,
) -> None:
    async def main() -> None:
        async with asyncio.timeout(HANG):
            bench = Bench(monkeypatch, rules, **kinds)
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


# What calls use.

KIMI = rules_of(ProviderSettings(kind="kimi"))
SENT = {"messages": [{"role": "user", "content": "abcd"}]}
AROUND = 4 + 3
COUNTS = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cached_tokens": 4}


def dispatch(payload: dict[str, Any], operation: Any = "chat", part: int = 0) -> Dispatch:
    body = msgspec.json.encode(payload)
    return Dispatch("r", 1, "a", "kimi-k3", HANG, stream=False, payload=body, operation=operation, part=part)


def test_a_call_is_reckoned_as_it_is_sent_and_counted_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        [provider] = bench.made
        provider.answer = Answer(content="hi", finish_reason="stop", usage=COUNTS)
        provider.may_answer.set()
        bench.send(dispatch({**SENT, "callpool": {"system_prompt": "abcdefgh"}}))
        await until(lambda: bench.last(Finished))
        sent = AROUND + 1 + 4 + 2
        assert bench.last(Started).tokens == Usage(sent, 32_768), "with the system prompt and the limit that are sent"
        assert bench.last(Finished).usage == Usage(10, 5, 4)
        assert msgspec.json.decode(bench.last(Finished).body)["usage"] == COUNTS, "the caller gets it as it came"

    run(test, monkeypatch, KIMI, a="kimi")


@pytest.mark.parametrize("part", [1, 2])
def test_each_part_of_an_answer_is_reckoned_and_counted_alone(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    async def test(bench: Bench) -> None:
        [provider] = bench.made
        provider.answer = Answer(content="One, ", finish_reason="length", usage=COUNTS)
        provider.may_answer.set()
        payload = {**SENT, "max_tokens": 100, "callpool": {"enable_continuation": True, "max_total_tokens": 103}}
        bench.send(dispatch(payload))
        await until(lambda: bench.last(Continues))
        assert bench.last(Started).tokens == Usage(AROUND + 1, 100)
        for _ in range(part):
            going_on = bench.last(Continues)
            assert going_on.usage == Usage(10, 5, 4), "of this call alone, however many there were"
            bench.reports.clear()
            provider.answer = Answer(content="two, ", finish_reason="length" if part == 2 else "stop", usage=COUNTS)
            bench.send(msgspec.structs.replace(dispatch({}, part=1), payload=going_on.payload))
            await until(lambda: bench.last(Continues) or bench.last(Finished))
        second = bench.last(Started).tokens
        beginning = "One, " if part == 1 else "One, two, "
        assert second.prompt == AROUND + 1 + 4 + -(-len(beginning) // 4), "the beginning goes with it"
        assert second.answer == 103 - 5 * part, "what is left of all its tokens"
        finished = bench.last(Finished)
        assert finished.usage == Usage(10, 5, 4)
        assert msgspec.json.decode(finished.body)["usage"]["completion_tokens"] == 5 * (part + 1)

    run(test, monkeypatch, KIMI, a="kimi")


def test_vectors_are_reckoned_by_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(bench: Bench) -> None:
        [provider] = bench.made
        provider.answer = Answer(content="", usage={"prompt_tokens": 7, "total_tokens": 7})
        provider.may_answer.set()
        bench.send(dispatch({"input": ["abcd", "efgh"]}, "embeddings"))
        await until(lambda: bench.last(Finished))
        assert bench.last(Started).tokens == Usage(2)
        assert bench.last(Finished).usage == Usage(7)

    run(test, monkeypatch, a="openai")


@pytest.mark.parametrize("nonsense", [{}, {"prompt_tokens": -5, "completion_tokens": 5}, {"usage": "much"}], ids=str)
def test_what_the_provider_does_not_tell_is_not_made_up(monkeypatch: pytest.MonkeyPatch, nonsense: Any) -> None:
    async def test(bench: Bench) -> None:
        [provider] = bench.made
        provider.answer = Answer(content="hi", usage=nonsense)
        provider.may_answer.set()
        bench.send(dispatch(SENT))
        await until(lambda: bench.last(Finished))
        assert (bench.last(Finished).fault, bench.last(Finished).usage) == (None, None)

    run(test, monkeypatch, a="openai")


@pytest.mark.parametrize("way", ["fault", "cancel", "too long", "defect"])
def test_a_call_that_came_to_nothing_has_used_what_it_told_before(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "too long":
        monkeypatch.setattr(loop, "MAX_ANSWER", 10)
    if way == "defect":
        monkeypatch.setattr(loop, "_encode_answer", lambda *_: 1 / 0)

    async def test(bench: Bench) -> None:
        [provider] = bench.made
        provider.usage = [{"prompt_tokens": 10, "completion_tokens": 1}, COUNTS, {"prompt_tokens": None}]
        if way == "fault":
            provider.answer = BrokenAnswer("it broke off", provider="a", model="m", retryable=True, retry_after=None)
        bench.send(dispatch(SENT))
        await until(lambda: bench.last(Started))
        if way == "cancel":
            bench.send(CancelCall("r", 1))
        else:
            provider.may_answer.set()
        await until(lambda: bench.last(Finished))
        finished = bench.last(Finished)
        assert finished.fault is not None
        assert finished.usage == Usage(10, 5, 4)
        bench.reports.clear()
        provider.usage = []
        bench.send(dispatch(SENT))
        await until(lambda: bench.last(Started))
        provider.may_answer.set()
        await until(lambda: bench.last(Finished))
        assert bench.last(Finished).usage is None, "another call's"

    run(test, monkeypatch, a="openai")
