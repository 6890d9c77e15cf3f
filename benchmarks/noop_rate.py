"""No-op requests per second: what callpool costs around a provider's call, beside the standard library's pools.

The comparison is unequal by nature: a pool hands a pickled function over a pipe between two processes; callpool checks,
admits, queues, records and dispatches a request in a third one. It shows what that costs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import callpool
import standard_pools
from client_process import ClientProcess
from measuring import Result, Sizes, ratio_name, seconds, take_turns
from pool import noops, scripted, started

THREADS = 8
CLIENTS = 4


def run(sizes: Sizes) -> list[Result]:
    """One by one, and in bulk."""
    with ExitStack() as stack:
        pool = stack.enter_context(standard_pools.start_pool())
        executor = stack.enter_context(standard_pools.start_executor())
        client = stack.enter_context(started(scripted(max_queued_requests=max(10_000, sizes.noops))))
        threads = stack.enter_context(ThreadPoolExecutor(THREADS))
        clients = [stack.enter_context(ClientProcess(client.address)) for _ in range(CLIENTS)]
        before = client.status()["sessions"]["total_sessions_completed"]
        one_by_one: dict[str, Callable[[int], None]] = {
            "callpool": partial(noops, client),
            "Pool.apply_async": partial(standard_pools.pool_apply_async, pool),
            "ProcessPoolExecutor.submit": partial(standard_pools.executor_submit, executor),
        }
        bulk: dict[str, Callable[[int], None]] = {
            f"callpool, {THREADS} threads": partial(_by_threads, client, threads),
            f"callpool, {CLIENTS} client processes": partial(_by_processes, clients),
            "Pool.map": partial(standard_pools.pool_map, pool),
            "ProcessPoolExecutor.map": partial(standard_pools.executor_map, executor),
        }
        rates = _rates(one_by_one | bulk, sizes)
        completed = client.status()["sessions"]["total_sessions_completed"] - before
    expected = sizes.rounds * sum(_share(sizes.noops, parts) * parts for parts in (1, THREADS, CLIENTS))
    assert completed == expected, f"{completed} requests completed, {expected} were made"
    peers = ("Pool.apply_async", "ProcessPoolExecutor.submit")
    single = Result(
        name="no-ops one by one",
        what=f"{sizes.noops:,} requests, one submit call each from one thread, then gather; 2 workers",
        unit="requests/s",
        better="more",
        figures={name: rates[name] for name in one_by_one},
        counts={"requests of callpool": completed},
    ).compare("callpool", *peers)
    single.aim(ratio_name("callpool", "Pool.apply_async"), at_least=1.5)
    many = Result(
        name="no-ops in bulk",
        what=f"{sizes.noops:,} requests; map in chunks of {standard_pools.CHUNK}; callpool has no bulk call yet",
        unit="requests/s",
        better="more",
        figures={name: rates[name] for name in bulk},
    )
    for name in (f"callpool, {THREADS} threads", f"callpool, {CLIENTS} client processes"):
        many.compare(name, "Pool.map", "ProcessPoolExecutor.map")
    return [single, many]


def _rates(contenders: dict[str, Callable[[int], None]], sizes: Sizes) -> dict[str, list[float]]:
    runs = {name: partial(seconds, partial(make, sizes.noops)) for name, make in contenders.items()}
    return {name: [sizes.noops / wall for wall in walls] for name, walls in take_turns(runs, sizes.rounds).items()}


def _share(count: int, parts: int) -> int:
    assert count % parts == 0, f"{count} requests cannot be shared by {parts}"
    return count // parts


def _by_threads(client: callpool.Client, threads: ThreadPoolExecutor, count: int) -> None:
    """Threads of one process share one client, each submits its part and gathers it."""
    pending = [threads.submit(noops, client, _share(count, THREADS)) for _ in range(THREADS)]
    for each in pending:
        each.result()


def _by_processes(clients: list[ClientProcess], count: int) -> None:
    """Processes with a client each."""
    for each in clients:
        each.begin(_share(count, CLIENTS))
    for each in clients:
        each.finish()
