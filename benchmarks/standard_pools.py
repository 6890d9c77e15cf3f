"""The standard library's pools as contenders, two workers each.

Workers are spawned, so that none of them is a copy of this process and its threads; how a worker was started makes no
difference to what a task costs.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import Pool
from typing import Any

from pool import WORKERS
from work import PATIENCE, REPLY, noop, requests_for

CHUNK = 100
"""Tasks that `map` sends to a worker at once."""


def start_pool() -> Pool:
    """A `multiprocessing.Pool` that has worked."""
    pool = multiprocessing.get_context("spawn").Pool(WORKERS)
    pool_map(pool, 10 * WORKERS, chunk=1)
    return pool


def start_executor() -> ProcessPoolExecutor:
    """A `ProcessPoolExecutor` that has worked. It starts a worker when none is idle, so it gets more than one task."""
    executor = ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn"))
    executor_map(executor, 10 * WORKERS, chunk=1)
    return executor


def pool_apply_async(pool: Pool, count: int) -> None:
    """One call a task, then gather."""
    pending = [pool.apply_async(noop, (request,)) for request in requests_for("noop", count)]
    _check([each.get(PATIENCE) for each in pending], count)


def pool_map(pool: Pool, count: int, *, chunk: int = CHUNK) -> None:
    """All tasks in one call."""
    _check(pool.map(noop, requests_for("noop", count), chunksize=chunk), count)


def executor_submit(executor: ProcessPoolExecutor, count: int) -> None:
    """One call a task, then gather."""
    pending = [executor.submit(noop, request) for request in requests_for("noop", count)]
    _check([each.result(PATIENCE) for each in pending], count)


def executor_map(executor: ProcessPoolExecutor, count: int, *, chunk: int = CHUNK) -> None:
    """All tasks in one call."""
    _check(list(executor.map(noop, requests_for("noop", count), chunksize=chunk)), count)


def _check(answers: list[dict[str, Any]], count: int) -> None:
    assert answers == [{"content": REPLY}] * count
