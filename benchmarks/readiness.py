"""Time to ready: from `callpool.start()` to the first status and to the first answer, beside pools of the same size.

Nothing is warm but the imports of this process. A pool that forks is a copy of this process and needs no start of an
interpreter; callpool starts three.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import callpool
from measuring import Result, Sizes, take_turns
from pool import WORKERS, scripted
from work import PATIENCE, REPLY, noop, request_for

REQUEST = request_for("noop", "hello")


class Start(NamedTuple):
    """Seconds from the beginning of a start."""

    ready: float
    first_answer: float


def run(sizes: Sizes) -> list[Result]:
    """To the first status, and to the first answer."""
    contenders = {"callpool": _ours}
    for method in ("fork", "spawn"):
        contenders[f"Pool ({method})"] = partial(_pool, method)
        contenders[f"ProcessPoolExecutor ({method})"] = partial(_executor, method)
    starts = take_turns(contenders, sizes.rounds)
    ready = Result(
        name="time to ready",
        what=f"from callpool.start() to the first status; {WORKERS} workers",
        unit="s",
        better="less",
        figures={"callpool": [start.ready for start in starts["callpool"]]},
    ).aim("callpool", at_most=1.0)
    first = Result(
        name="time to the first answer",
        what=f"from the start of a pool of {WORKERS} workers to the answer of a no-op",
        unit="s",
        better="less",
        figures={name: [start.first_answer for start in rounds] for name, rounds in starts.items()},
    ).compare("callpool", *(name for name in contenders if name != "callpool"))
    return [ready, first]


def _ours() -> Start:
    began = time.perf_counter()
    with callpool.start(scripted()) as client:
        assert client.status()["state"] == "running"
        ready = time.perf_counter() - began
        assert client.submit(**REQUEST).result(PATIENCE)["content"] == REPLY
        return Start(ready, time.perf_counter() - began)


def _pool(method: str) -> Start:
    began = time.perf_counter()
    with multiprocessing.get_context(method).Pool(WORKERS) as pool:
        ready = time.perf_counter() - began
        assert pool.apply(noop, (REQUEST,))["content"] == REPLY
        return Start(ready, time.perf_counter() - began)


def _executor(method: str) -> Start:
    began = time.perf_counter()
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context(method)) as executor:
        ready = time.perf_counter() - began
        assert executor.submit(noop, REQUEST).result(PATIENCE)["content"] == REPLY
        return Start(ready, time.perf_counter() - began)
