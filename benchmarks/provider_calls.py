"""Calls of 50 ms to a provider, at most 200 at once: callpool beside one plain aiohttp program.

The fake provider is a process of its own, and its log is the witness: every call arrived once, and no more were open at
once than allowed.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import psutil

import callpool
from callpool.tools.testing.fake_provider import CallRecord, FakeProviderProcess, peak_active
from measuring import Result, Sizes, ratio_name, take_turns
from plain_aiohttp import PlainProcess
from pool import WORKERS, cpu_seconds, make_calls, processes, started
from work import REPLY, requests_for

DELAY = 0.05
"""Seconds that the provider takes for a call."""


class Cost(NamedTuple):
    """What one round of a contender cost."""

    wall: float
    cpu: float
    """Seconds, of all its processes together, the fake's not included."""
    calls: int
    peak: int
    """Most calls that the provider had open at once."""


def run(sizes: Sizes) -> list[Result]:
    """Wall time and CPU time."""
    with ExitStack() as stack:
        fake = stack.enter_context(FakeProviderProcess(delay=DELAY, reply=REPLY))
        client = stack.enter_context(started(_config(fake, sizes)))
        plain = stack.enter_context(PlainProcess(f"{fake.base_url}/chat/completions", sizes.at_once))
        family = [psutil.Process(), *processes(client)]
        witness = _Witness(fake, sizes)
        contenders = {
            "callpool": partial(witness.watch, partial(_ours, client, family, sizes.calls)),
            "plain aiohttp": partial(witness.watch, partial(plain.make, sizes.calls)),
        }
        take_turns(contenders, 1)  # connections are made, code is warm
        costs = take_turns(contenders, sizes.rounds)
    what = f"{sizes.calls:,} calls of {DELAY * 1000:g} ms, at most {sizes.at_once} at once"
    ideal = sizes.calls / sizes.at_once * DELAY
    wall = Result(
        name="provider calls, wall time",
        what=f"{what} (no less than {ideal:g} s)",
        unit="s",
        better="less",
        figures={name: [cost.wall for cost in rounds] for name, rounds in costs.items()},
        counts=_counts(costs),
    ).compare("callpool", "plain aiohttp")
    wall.aim(ratio_name("callpool", "plain aiohttp"), at_most=1.15)
    cpu = Result(
        name="provider calls, CPU time",
        what=f"{what}; all processes but the provider's",
        unit="s",
        better="less",
        figures={name: [cost.cpu for cost in rounds] for name, rounds in costs.items()},
    ).compare("callpool", "plain aiohttp")
    return [wall, cpu]


def _config(fake: FakeProviderProcess, sizes: Sizes) -> dict[str, Any]:
    return {
        "supervisor": {"workers": WORKERS, "max_concurrent_sessions": sizes.at_once},
        "providers": {"fake": {"kind": "openai", "base_url": fake.base_url, "concurrency": sizes.at_once}},
    }


def _ours(client: callpool.Client, family: list[psutil.Process], count: int) -> tuple[float, float]:
    """Wall and CPU seconds of one round."""
    requests = requests_for("m", count)
    cpu, began = cpu_seconds(family), time.perf_counter()
    make_calls(client, requests)
    return time.perf_counter() - began, cpu_seconds(family) - cpu


class _Witness:
    """Reads in the fake's log what each round really did."""

    def __init__(self, fake: FakeProviderProcess, sizes: Sizes) -> None:
        self._fake = fake
        self._sizes = sizes
        self._seen = 0

    def watch(self, make: Any) -> Cost:
        wall, cpu = make()
        calls = self._fake.log()[self._seen :]
        self._seen += len(calls)
        assert_exact(calls, self._sizes)
        return Cost(wall, cpu, len(calls), peak_active(calls))


def assert_exact(calls: list[CallRecord], sizes: Sizes) -> None:
    """Each call was made once and answered, and the limit held."""
    assert len(calls) == sizes.calls, f"the provider saw {len(calls)} calls, not {sizes.calls}"
    assert all(call.outcome == "answered" for call in calls), "a call was not answered"
    assert peak_active(calls) <= sizes.at_once, f"{peak_active(calls)} calls at once, over {sizes.at_once}"


def _counts(costs: dict[str, list[Cost]]) -> dict[str, int]:
    counts = {f"calls of {name}": sum(cost.calls for cost in rounds) for name, rounds in costs.items()}
    return counts | {f"peak of {name}": max(cost.peak for cost in rounds) for name, rounds in costs.items()}
