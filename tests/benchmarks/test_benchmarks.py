"""Every benchmark runs, counts what it claims to count, and writes what it measured. Figures are not judged here."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from callpool.tools.testing.fake_provider import CallRecord

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
CORE_LIMITS = ("slots alone", "limits of every kind")
CONTENDERS = {
    "noops": {
        "no-ops one by one": {"callpool", "Pool.apply_async", "ProcessPoolExecutor.submit"},
        "no-ops in bulk": {
            "callpool, 8 threads",
            "callpool, 4 client processes",
            "Pool.map",
            "ProcessPoolExecutor.map",
        },
    },
    "roundtrip": {
        "round trip, median": {"callpool", "Pool.apply", "ProcessPoolExecutor.submit"},
        "round trip, 99th percentile": {"callpool", "Pool.apply", "ProcessPoolExecutor.submit"},
    },
    "calls": {
        "provider calls, wall time": {"callpool", "plain aiohttp"},
        "provider calls, CPU time": {"callpool", "plain aiohttp"},
    },
    "cancels": {
        "cancel to socket close, median": {"callpool", "plain aiohttp"},
        "cancel to socket close, 99th percentile": {"callpool", "plain aiohttp"},
    },
    "memory": {
        "memory, idle": {"supervisor and workers", "supervisor", "workers", "helpers"},
        "memory, queued": {"supervisor and workers", "supervisor", "workers", "helpers"},
        "memory, growth": {"supervisor and workers"},
    },
    "ready": {
        "time to ready": {"callpool"},
        "time to the first answer": {
            "callpool",
            "Pool (fork)",
            "Pool (spawn)",
            "ProcessPoolExecutor (fork)",
            "ProcessPoolExecutor (spawn)",
        },
    },
    "sessions": {
        "session creation, median": {
            "bare Manager call",
            *(f"callpool, {active} active" for active in (0, 1, 50)),
            *(f"table, {active} active" for active in (1, 50, 199)),
        },
        "session lifecycle": {
            "bare Manager call",
            "callpool, two verbs",
            "callpool, four verbs",
            "callpool, two verbs, 4 busy processes",
            *(f"table, {active} active" for active in (1, 50, 199)),
        },
        "memory of a session": {"resident", "by its own count"},
    },
    "decisions": {
        **{f"scheduling decision, {clients} clients": {"100 queued"} for clients in ("1", "10", "1,000")},
        **{f"a request through the core, {limits}": {"100 queued"} for limits in CORE_LIMITS},
    },
    "durable": {
        "acknowledgement, median": {"bare SQLite commit", "callpool, durable", "callpool, live"},
        "requests completed, 5 client processes": {"durable", "live"},
        "where to commit": {"on the loop", "in a thread", "in a process"},
        "a start that finds 500 jobs": {"accepts again", "first resumed call"},
    },
}
COUNTS = {
    "no-ops one by one": {"requests of callpool": 3 * 40},  # by one thread, by 8 threads, by 4 processes
    "round trip, median": {"requests of callpool": 10},
    "provider calls, wall time": {
        "calls of callpool": 30,
        "calls of plain aiohttp": 30,
        "peak of callpool": 5,
        "peak of plain aiohttp": 5,
    },
    "cancel to socket close, median": {"calls of callpool": 5, "calls of plain aiohttp": 5},
    "memory, queued": {"requests queued": 50},
    "session lifecycle": {"lifecycles of callpool": 10 + 10 + 40},  # two verbs, four verbs, 4 processes
    "memory of a session": {"sessions held": 50},
    "requests completed, 5 client processes": {"jobs": 160},
    "a start that finds 500 jobs": {"jobs left behind": 500},
    **{f"scheduling decision, {clients} clients": {"decisions": 80} for clients in ("1", "10", "1,000")},
    **{f"a request through the core, {limits}": {"requests": 40} for limits in CORE_LIMITS},
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(BENCHMARKS), *arguments], capture_output=True, text=True, check=False, timeout=55
    )


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("measuring", monkeypatch)


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the benchmarks, which are scripts that find each other in their own folder."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module(name)
    for each in set(sys.modules) - before:
        if Path(getattr(sys.modules[each], "__file__", None) or "/").parent == BENCHMARKS:
            monkeypatch.delitem(sys.modules, each)
    return module


@pytest.mark.slow
def test_all_benchmarks_run_and_count_right(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    ended = run("--tiny", "--json", str(file))
    assert ended.returncode == 0, ended.stderr
    document = msgspec.json.decode(file.read_bytes())
    assert document["facts"]["durability"].startswith("live, not durable")
    assert document["sizes"]["rounds"] == 1
    seen: dict[str, dict[str, Any]] = {
        name: {result["name"]: result for result in measured["results"]}
        for name, measured in document["benchmarks"].items()
    }
    assert {
        name: {table: set(result["figures"]) for table, result in tables.items()} for name, tables in seen.items()
    } == (CONTENDERS)
    results = [result for tables in seen.values() for result in tables.values()]
    for result in results:
        assert all(len(figures) == 1 for figures in result["figures"].values()), result["name"]
        assert result["name"] in ended.stdout
    assert {result["name"]: result["counts"] for result in results if result["counts"]} == COUNTS
    assert sum(len(result["targets"]) for result in results) == 16


def test_an_unknown_benchmark_is_refused_by_name() -> None:
    ended = run("--tiny", "nops")
    assert ended.returncode == 2
    assert "no benchmark 'nops'" in ended.stderr


def test_contenders_take_turns(measuring: ModuleType) -> None:
    order: list[str] = []
    measuring.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b"] * 3


def test_ratios_are_taken_round_by_round(measuring: ModuleType) -> None:
    result = measuring.Result(
        name="n", what="w", unit="s", better="less", figures={"a": [1.0, 8.0, 3.0], "b": [2.0, 4.0, 3.0]}
    )
    result.compare("a", "b").aim("a ÷ b", at_most=1.0).aim("a ÷ b", at_least=1.5)
    assert result.ratios == {"a ÷ b": [0.5, 2.0, 1.0]}
    assert [(target.seen, target.reached) for target in result.targets] == [(1.0, True), (1.0, False)]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)])
def test_quantile(measuring: ModuleType, share: float, expected: float) -> None:
    assert measuring.quantile([float(value) for value in range(100, 0, -1)], share) == expected


def call(number: int, arrived: float, ended: float, outcome: str = "answered") -> CallRecord:
    return CallRecord(
        server="1:1",
        number=number,
        connection=number,
        model="m",
        stream=False,
        digest="",
        last_message="",
        key_tail="",
        arrived=arrived,
        active_at_arrival=1,
        ended=ended,
        outcome=outcome,
    )


@pytest.mark.parametrize(
    ("calls", "complaint"),
    [
        ([call(1, 0, 1), call(2, 0, 1)], None),
        ([call(1, 0, 1)], "saw 1 calls"),
        ([call(1, 0, 1), call(2, 0, 1, "rejected")], "not answered"),
        ([call(1, 0, 3), call(2, 1, 3), call(3, 2, 3)], "3 calls at once"),
    ],
)
def test_the_provider_s_log_is_checked(
    calls: list[CallRecord], complaint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = load("provider_calls", monkeypatch)
    sizes = checker.Sizes(
        1, 1, 1, calls=3 if complaint and "at once" in complaint else 2, at_once=2, queued=1, memory_rounds=1
    )
    if complaint is None:
        checker.assert_exact(calls, sizes)
        return
    with pytest.raises(AssertionError, match=complaint):
        checker.assert_exact(calls, sizes)
