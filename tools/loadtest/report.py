"""A comparison as a program reads it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import msgspec

from callpool.tools.loadtest.judge import Verdict
from callpool.tools.loadtest.runs import OURS
from callpool.tools.loadtest.scenario import Scenario
from callpool.version import __version__

TOP = ("utilisation", "rejections", "failed", "waits")
"""What of the run with callpool stands also at the top."""


def as_json(scenario: Scenario, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """The `--json` document: `{scenario, versions, runs: {name: figures}, utilisation, rejections, failed, waits}`."""
    runs = {name: verdict.figures.as_json() for name, verdict in verdicts.items()}
    return {
        "scenario": msgspec.to_builtins(scenario),
        "versions": versions(),
        "runs": runs,
        **{name: runs[OURS][name] for name in TOP},
    }


def versions() -> dict[str, str]:
    """What was measured: callpool, and what it and the direct clients stand on."""
    libraries = {name: importlib.metadata.version(name) for name in ("aiohttp", "uvloop")}
    return {"callpool": __version__, "python": platform.python_version(), **libraries}
