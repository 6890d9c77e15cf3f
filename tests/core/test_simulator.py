"""Lives of the core under every fault, and proof that the simulator would see a fault if there were one.

`CALLPOOL_TEST_SEED=n` makes `test_seeds` replay that one seed and print its trace (add `-s`).
"""

from __future__ import annotations

import os

import pytest

from .planted import PLANTED
from .simulator import SimulationFailed, run

SEEDS = 2_000
STORM_SEEDS = 50_000
STORM_BLOCK = 2_500
"""Seeds of one test: some 15 s, far from the hang limit of a test."""
SEEDS_TO_FIND = 600
"""Within so many seeds every planted fault must be found; measured: within 240."""

HAPPENS = (
    "active cancelled",
    "active completed",
    "active error",
    "active interrupted",
    "active timeout",
    "aged turn",
    "cut",
    "late report",
    "made again",
    "not acknowledged",
    "piece",
    "refused account_stopped",
    "refused bad_input",
    "refused budget_exhausted",
    "refused by concurrency",
    "refused by rpm",
    "refused by tpm",
    "refused credential_missing",
    "refused draining",
    "refused duplicate_request",
    "refused metadata_too_large",
    "refused queue_full",
    "refused unknown_model",
    "refused unknown_provider",
    "requeued",
    "resumed",
    "share",
    "stopped",
    "told to wait",
    "lost too often",
    "waited too long",
    "waiting cancelled",
    "waiting ended by account_stopped",
    "waiting ended by budget_exhausted",
    "went elsewhere",
)


def test_seeds() -> None:
    chosen = os.environ.get("CALLPOOL_TEST_SEED")
    if chosen is not None:
        run(int(chosen), trace=True)
        return
    seen = run(0, SEEDS)
    missing = [what for what in HAPPENS if not seen[what]]
    assert not missing, f"the simulator never got to {missing}: it proves nothing about them"


@pytest.mark.storm
@pytest.mark.parametrize("first", range(SEEDS, SEEDS + STORM_SEEDS, STORM_BLOCK))
def test_storm(first: int) -> None:
    run(first, STORM_BLOCK)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name: str) -> None:
    parts, rules = PLANTED[name]
    with pytest.raises(SimulationFailed) as failure:
        run(0, SEEDS_TO_FIND, parts)
    assert failure.value.rule in rules, str(failure.value)
    assert f"python -m tests.core.simulator {failure.value.seed} --trace" in str(failure.value)


def test_replay_is_exact() -> None:
    parts, _ = PLANTED["LosesItsPlace"]
    with pytest.raises(SimulationFailed) as first:
        run(0, SEEDS_TO_FIND, parts)
    with pytest.raises(SimulationFailed) as second:
        run(first.value.seed, 1, parts)
    assert str(second.value) == str(first.value)
