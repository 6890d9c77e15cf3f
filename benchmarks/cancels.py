"""How long after a cancel the provider sees the socket close: callpool beside one plain aiohttp program.

All calls hang at the fake provider, streamed, and are cancelled in one burst, in any order. Both ends of the measure are readings of
the machine's one monotonic clock: before the cancel by whoever cancels, and the provider's own log.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import aiohttp
import uvloop

import callpool
from callpool.tools.testing.fake_provider import CallRecord, FakeProviderProcess
from measuring import Result, Sizes, quantile, take_turns
from pool import WORKERS, started
from work import PATIENCE, request_for

MODEL = "fault-silent_stream"
TARGET = 100.0
"""Milliseconds, of the 99th percentile."""
SEED = 20_261_121


class Lags(NamedTuple):
    """One round: milliseconds from a cancel to the end of the call at the provider."""

    median: float
    p99: float
    calls: int


def run(sizes: Sizes) -> list[Result]:
    """Median and 99th percentile."""
    print(f"order of cancels from the seed {SEED}", flush=True)
    with ExitStack() as stack:
        fake = stack.enter_context(FakeProviderProcess())
        client = stack.enter_context(started(_config(fake, sizes)))
        witness = _Witness(fake, sizes.at_once)
        plain = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        contenders: dict[str, Callable[[], Lags]] = {
            "callpool": partial(_ours, client, witness),
            "plain aiohttp": partial(_theirs, plain, fake, witness),
        }
        rounds = take_turns(contenders, sizes.rounds)
    what = f"{sizes.at_once} streams in flight, cancelled in one burst; from the cancel to the provider's word"
    median = Result(
        name="cancel to socket close, median",
        what=what,
        unit="ms",
        better="less",
        figures={who: [lags.median for lags in seen] for who, seen in rounds.items()},
        counts={f"calls of {who}": sum(lags.calls for lags in seen) for who, seen in rounds.items()},
    ).compare("callpool", "plain aiohttp")
    p99 = Result(
        name="cancel to socket close, 99th percentile",
        what=what,
        unit="ms",
        better="less",
        figures={who: [lags.p99 for lags in seen] for who, seen in rounds.items()},
    ).compare("callpool", "plain aiohttp")
    return [median, p99.aim("callpool", at_most=TARGET)]


def _config(fake: FakeProviderProcess, sizes: Sizes) -> dict[str, Any]:
    return {
        "supervisor": {"workers": WORKERS, "max_concurrent_sessions": sizes.at_once},
        "providers": {
            "fake": {"kind": "openai", "base_url": fake.base_url, "concurrency": sizes.at_once, "timeout": PATIENCE}
        },
    }


class _Witness:
    """Reads in the fake's log when each call of a round ended, and that it ended by its client's leaving."""

    def __init__(self, fake: FakeProviderProcess, count: int) -> None:
        self._fake = fake
        self._seen = 0
        self._chance = random.Random(SEED)
        self.count = count

    def order(self) -> list[int]:
        """The calls of the next round, in any order."""
        numbers = list(range(self.count))
        self._chance.shuffle(numbers)
        return numbers

    def all_begun(self) -> bool:
        """Whether the head of every answer of the round is out."""
        return sum(call.first_byte is not None for call in self._fake.log()[self._seen :]) == self.count

    def all_ended(self) -> bool:
        """Whether the provider has seen every call of the round end."""
        return all(call.outcome != "open" for call in self._fake.log()[self._seen :])

    def lags(self, cancelled: dict[str, float]) -> Lags:
        """From the times of the cancels, by each call's last message."""
        calls: list[CallRecord] = self._fake.log()[self._seen :]
        self._seen += len(calls)
        assert len(calls) == self.count, f"the provider saw {len(calls)} calls, not {self.count}"
        assert all(call.outcome == "client_gone" for call in calls), "a call ended in another way"
        lags = [((call.ended or 0.0) - cancelled[call.last_message]) * 1000 for call in calls]
        assert min(lags) >= 0.0, "a call ended before it was cancelled"
        return Lags(quantile(lags, 0.5), quantile(lags, 0.99), len(lags))


def _ours(client: callpool.Client, witness: _Witness) -> Lags:
    handles = [client.submit(**request_for(MODEL, str(number)), stream=True) for number in range(witness.count)]
    _wait(witness.all_begun)
    cancelled: dict[str, float] = {}
    for number in witness.order():
        cancelled[str(number)] = time.monotonic()
        handles[number].cancel()
    for handle in handles:
        assert isinstance(handle.exception(PATIENCE), callpool.RequestCancelled)
    _wait(witness.all_ended)
    return witness.lags(cancelled)


def _theirs(runner: asyncio.Runner, fake: FakeProviderProcess, witness: _Witness) -> Lags:
    return runner.run(_plain(fake, witness))


async def _plain(fake: FakeProviderProcess, witness: _Witness) -> Lags:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        tasks = [asyncio.ensure_future(_hang(session, fake, str(number))) for number in range(witness.count)]
        await asyncio.to_thread(_wait, witness.all_begun)
        cancelled: dict[str, float] = {}
        for number in witness.order():
            cancelled[str(number)] = time.monotonic()
            tasks[number].cancel()
        await asyncio.wait(tasks)
        await asyncio.to_thread(_wait, witness.all_ended)
    return witness.lags(cancelled)


async def _hang(session: aiohttp.ClientSession, fake: FakeProviderProcess, text: str) -> None:
    body = {"model": MODEL, "messages": request_for(MODEL, text)["messages"], "stream": True}
    async with session.post(f"{fake.base_url}/chat/completions", json=body) as response:
        await response.read()


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE:g} s")
        time.sleep(0.005)
