"""Sequential round trips: submit one no-op request, wait for its answer, submit the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import callpool

import standard_pools
from measuring import Result, Sizes, quantile, ratio_name, take_turns
from pool import NOOP, PATIENCE, REPLY, scripted, started
from standard_pools import ANSWER, noop

PEERS = ("Pool.apply", "ProcessPoolExecutor.submit")


def run(sizes: Sizes) -> list[Result]:
    """The median and the 99th percentile of each round."""
    with ExitStack() as stack:
        pool = stack.enter_context(standard_pools.start_pool())
        executor = stack.enter_context(standard_pools.start_executor())
        client = stack.enter_context(started(scripted()))
        before = client.status()["sessions"]["total_sessions_completed"]
        trips: dict[str, Callable[[], bool]] = {
            "callpool": partial(_ours, client),
            "Pool.apply": lambda: pool.apply(noop, (NOOP,)) == ANSWER,
            "ProcessPoolExecutor.submit": lambda: executor.submit(noop, NOOP).result(PATIENCE) == ANSWER,
        }
        contenders = {name: partial(_times, trip, sizes.round_trips) for name, trip in trips.items()}
        times = take_turns(contenders, sizes.rounds)
        completed = client.status()["sessions"]["total_sessions_completed"] - before
    assert completed == sizes.rounds * sizes.round_trips
    median = _result("median", 0.5, times, sizes)
    median.aim(ratio_name("callpool", "Pool.apply"), at_most=1.0)
    median.counts["requests of callpool"] = completed
    return [median, _result("99th percentile", 0.99, times, sizes)]


def _result(name: str, share: float, times: dict[str, list[list[float]]], sizes: Sizes) -> Result:
    return Result(
        name=f"round trip, {name}",
        what=f"of {sizes.round_trips:,} sequential no-op requests a round, from submit to answer; 2 workers",
        unit="µs",
        better="less",
        figures={name: [quantile(one, share) * 1e6 for one in rounds] for name, rounds in times.items()},
    ).compare("callpool", *PEERS)


def _ours(client: callpool.Client) -> bool:
    answer = client.submit(**NOOP).result(PATIENCE)
    return bool(answer["content"] == REPLY)


def _times(trip: Callable[[], bool], count: int) -> list[float]:
    """Seconds of each of `count` round trips."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        right = trip()
        times.append(time.perf_counter() - began)
        assert right
    return times
