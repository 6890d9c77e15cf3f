"""Many processes use one account's whole quota and are never rejected: `callpool loadtest quota`, judged by the fake's own log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIMIT = 150.0
"""Seconds after which a run hangs."""


def quota(*arguments: str) -> dict[str, Any]:
    """Run the load test; its JSON."""
    command = [
        str(Path(sys.executable).with_name("callpool")),
        "loadtest",
        "quota",
        "--no-direct",
        "--json",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(LIMIT)
def test_the_whole_limit_is_used_and_nobody_is_rejected() -> None:
    told = quota("--clients", "10", "--requests", "2000", "--concurrency", "50", "--rpm", "3000", "--seconds", "0.4")
    run = told["runs"]["callpool"]
    assert (told["rejections"], told["failed"], run["done"], run["calls"]) == (0, 0, 2000, 2000)
    assert told["utilisation"] >= 0.95
    assert run["peak_concurrency"] == 50


@pytest.mark.timeout(LIMIT)
def test_a_limit_that_is_lower_than_was_told_is_found() -> None:
    """After 20 s less than 2 % of the calls are refused, and what is used is within 10 % of what there is. No request fails."""
    told = quota("--requests", "2100", "--concurrency", "50", "--true-concurrency", "30", "--seconds", "0.4")
    run = told["runs"]["callpool"]
    assert (told["failed"], run["done"]) == (0, 2100)
    assert run["seconds"] > 25.0, "a shorter run shows nothing of what comes after 20 s"
    assert run["rejections_after_20s"] < 0.02
    assert 0.90 <= told["utilisation"] <= 1.0
    assert run["rejections"] < 0.05 * run["calls"], "the cut is to what was served, at once"
