"""How everything here is measured: interleaved rounds, compared round by round.

A figure by itself says as much about the machine's other work as about the code. So contenders take turns within each
round (A B C, A B C, …) and are compared with their neighbour of the same round: what slows one down mostly slows the other.
Median, least and greatest of the rounds are shown together, so that noise can be seen.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeVar

import msgspec
import psutil

T = TypeVar("T")


class Sizes(NamedTuple):
    """How much of everything one run does."""

    rounds: int
    noops: int
    """No-op requests of one contender in one round."""
    round_trips: int
    """Sequential round trips of one contender in one round."""
    calls: int
    """Calls to the fake provider of one contender in one round."""
    at_once: int
    """Calls to the fake provider at once, at most."""
    queued: int
    """Requests that wait in the queue when its memory is measured."""
    memory_rounds: int


FULL = Sizes(rounds=7, noops=5_000, round_trips=1_000, calls=2_000, at_once=200, queued=10_000, memory_rounds=3)
QUICK = Sizes(rounds=3, noops=1_000, round_trips=300, calls=2_000, at_once=200, queued=10_000, memory_rounds=1)
TINY = Sizes(rounds=1, noops=40, round_trips=10, calls=30, at_once=5, queued=50, memory_rounds=1)
"""For the test that every benchmark runs; its figures mean nothing."""


class Target(msgspec.Struct, frozen=True):
    """What a median is meant to reach. Told, never asserted."""

    text: str
    seen: float
    reached: bool


class Result(msgspec.Struct, kw_only=True):
    """One table: a figure of each contender, and how they compare."""

    name: str
    what: str
    unit: str
    better: Literal["more", "less"]
    figures: dict[str, list[float]]
    """Contender → its figures, one a round."""
    ratios: dict[str, list[float]] = {}
    """`a ÷ b` → a's figure divided by b's, one a round."""
    targets: list[Target] = []
    counts: dict[str, int] = {}
    """What was counted and found right, in all rounds together."""

    def compare(self, ours: str, *others: str) -> Result:
        """Add the ratios of one contender to each of the others; returns itself."""
        for other in others:
            pairs = zip(self.figures[ours], self.figures[other], strict=True)
            self.ratios[ratio_name(ours, other)] = [a / b for a, b in pairs]
        return self

    def aim(self, of: str, *, at_least: float | None = None, at_most: float | None = None) -> Result:
        """Add a target for the median of a ratio or of a contender's figures; returns itself."""
        ratio = of in self.ratios
        seen = statistics.median(self.ratios[of] if ratio else self.figures[of])
        unit = "" if ratio else f" {self.unit}"
        if at_least is not None:
            self.targets.append(Target(f"{of} ≥ {at_least:g}{unit}", seen, seen >= at_least))
        if at_most is not None:
            self.targets.append(Target(f"{of} ≤ {at_most:g}{unit}", seen, seen <= at_most))
        return self


def ratio_name(ours: str, other: str) -> str:
    """What the ratio of two contenders is called."""
    return f"{ours} ÷ {other}"


def take_turns(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run each contender once a round, in order; contender → what it returned, one a round."""
    seen: dict[str, list[T]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            gc.collect()  # nobody pays for another's garbage
            seen[name].append(run())
    return seen


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one run, in seconds."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = -(-share * len(ordered) // 1)  # rounded up
    return ordered[max(0, min(len(ordered), int(rank)) - 1)]


class Noise(msgspec.Struct):
    """What else the machine did meanwhile, in CPU seconds, with the wall time to compare it with."""

    wall: float = 0.0
    own_cpu: float = 0.0
    """This process and every process that it started and has waited for."""
    other_cpu: float = 0.0
    """Everybody else on the machine."""
    stolen: float = 0.0
    """Taken by the hypervisor; 0 where the system does not tell."""


class NoiseMeter:
    """Measures the noise of a `with` block. Processes that the block starts must have ended with it."""

    def __init__(self) -> None:
        self.noise = Noise()
        self._began = (0.0, 0.0, 0.0, 0.0)

    def __enter__(self) -> Self:
        self._began = _clocks()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall, own, busy, stolen = (now - then for now, then in zip(_clocks(), self._began, strict=True))
        self.noise = Noise(wall, own, max(0.0, busy - own), stolen)


def _clocks() -> tuple[float, float, float, float]:
    """Wall, own CPU with that of ended children, the machine's busy CPU, and stolen CPU; seconds."""
    own = os.times()
    machine = psutil.cpu_times()
    busy = sum(getattr(machine, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    mine = own.user + own.system + own.children_user + own.children_system
    return time.perf_counter(), mine, busy, getattr(machine, "steal", 0.0)
