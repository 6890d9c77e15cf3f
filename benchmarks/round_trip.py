"""Sequential round trips: submit one no-op request, wait for its answer, submit the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import standard_pools
from measuring import Result, Sizes, quantile, ratio_name, take_turns
from pool import scripted, started
from work import PATIENCE, REPLY, noop, requests_for

Trip = Callable[[dict[str, Any]], dict[str, Any]]
"""A request in, its answer out."""
PEERS = ("Pool.apply", "ProcessPoolExecutor.submit")


def run(sizes: Sizes) -> list[Result]:
    """The median and the 99th percentile of each round."""
    with ExitStack() as stack:
        pool = stack.enter_context(standard_pools.start_pool())
        executor = stack.enter_context(standard_pools.start_executor())
        client = stack.enter_context(started(scripted()))
        before = client.status()["sessions"]["total_sessions_completed"]
        trips: dict[str, Trip] = {
            "callpool": lambda request: client.submit(**request).result(PATIENCE),
            "Pool.apply": lambda request: pool.apply(noop, (request,)),
            "ProcessPoolExecutor.submit": lambda request: executor.submit(noop, request).result(PATIENCE),
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


def _times(trip: Trip, count: int) -> list[float]:
    """Seconds of each of `count` round trips."""
    times = []
    for request in requests_for("noop", count):
        began = time.perf_counter()
        answer = trip(request)
        times.append(time.perf_counter() - began)
        assert answer["content"] == REPLY
    return times
