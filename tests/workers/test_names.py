"""The memory of a provider's addresses: one lookup for many, kept for a while, forgotten when it led nowhere."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from callpool.workers.providers import names
from callpool.workers.providers.names import NameCache


def address(host: str, port: int = 80) -> ResolveResult:
    return ResolveResult(hostname="p.test", host=host, port=port, family=socket.AF_INET, proto=0, flags=0)


class Names(AbstractResolver):
    """Answers in turn, the last answer repeated; None fails."""

    def __init__(self, *answers: list[ResolveResult] | None) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.closed = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        await self.may_answer.wait()
        found = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found

    async def close(self) -> None:
        self.closed = True


A, B = address("127.0.0.1"), address("127.0.0.2")


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10.0))


def test_a_name_is_looked_up_once_and_its_addresses_take_turns() -> None:
    async def test() -> None:
        inner = Names([A, B])
        cache = NameCache(inner)
        assert cache.known("p.test", 80) is None
        assert [(await cache.resolve("p.test", 80))[0] for _ in range(3)] == [A, B, A]
        assert await cache.resolve("p.test", 80) == [B, A], "all of them come, in turned order"
        assert (cache.lookups, cache.hits, inner.asked) == (1, 3, ["p.test"])
        await cache.close()
        assert inner.closed

    run(test)


def test_what_is_old_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        cache = NameCache(Names([A], [B]))
        monkeypatch.setattr(names, "KEEP_ADDRESSES", -1.0)
        assert await cache.resolve("p.test", 80) == [A]
        assert cache.known("p.test", 80) is None
        monkeypatch.setattr(names, "KEEP_ADDRESSES", 60.0)
        assert [await cache.resolve("p.test", 80) for _ in range(2)] == [[B], [B]]
        assert (cache.lookups, cache.hits) == (2, 1)
        await cache.close()

    run(test)


def test_many_share_one_lookup_and_a_cancelled_one_does_not_end_it() -> None:
    async def test() -> None:
        inner = Names([A])
        inner.may_answer.clear()
        cache = NameCache(inner)
        asking = [asyncio.ensure_future(cache.resolve("p.test", 80)) for _ in range(5)]
        while not inner.asked:
            await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.wait([asking[0]])
        inner.may_answer.set()
        assert await asyncio.gather(*asking[1:]) == [[A]] * 4
        assert (cache.lookups, cache.hits) == (1, 4)
        await cache.close()

    run(test)


def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    async def test() -> None:
        cache = NameCache(Names(None, [A]))
        found = await asyncio.gather(*(cache.resolve("p.test", 80) for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in found] == [socket.gaierror] * 3
        assert await cache.resolve("p.test", 80) == [A]
        assert cache.lookups == 2
        await cache.close()

    run(test)


def test_only_what_failed_is_forgotten_and_not_what_came_after_it() -> None:
    async def test() -> None:
        cache = NameCache(Names([A], [B]))
        await cache.resolve("p.test", 80)
        old = cache.known("p.test", 80)
        assert old is not None
        cache.forget("p.test", 80, old)
        assert await cache.resolve("p.test", 80) == [B]
        cache.forget("p.test", 80, old)
        assert await cache.resolve("p.test", 80) == [B]
        assert cache.lookups == 2
        await cache.close()

    run(test)


def test_a_lookup_under_way_ends_with_the_cache() -> None:
    async def test() -> None:
        inner = Names([A])
        inner.may_answer.clear()
        cache = NameCache(inner)
        asking = asyncio.ensure_future(cache.resolve("p.test", 80))
        while not inner.asked:
            await asyncio.sleep(0)
        await cache.close()
        await asyncio.wait([asking])
        assert asking.cancelled()

    run(test)
