"""The specification's eight load tests, across client processes: at its size, and at ten times that size and more."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import callpool
from tests.acceptance.running import eventually
from tests.load.crew import CLIENTS, Program, assert_conserved, check_conserved, ended, shares, under_load
from tests.load.programs import HANG, metadata_of

NO_HANG = 10.0
"""Seconds. The specification's hang limit, no measure of speed."""
FIGURES = """\
the specification's own figures, in one process: creation 0.020 ms mean, 0.015 min, 0.098 max; 50 concurrent 10.39 ms mean
with 10 ms of work; 75 lifecycles in 0.02 s; memory 200 to 300 bytes a session before metadata"""


def sized(given: object, tenfold: object, *marks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Two sizes; `marks` are the larger one's."""
    return pytest.mark.parametrize(
        "size", [pytest.param(given, id="given"), pytest.param(tenfold, id="tenfold", marks=marks)]
    )


@sized(50, 500)
def test_load_1_concurrent_sessions(size: int) -> None:
    counts = [len(share) for share in shares(size)]
    with under_load(limit=size) as (manager, crew):
        crew.ask("begin_work", each={"count": counts})
        working = manager.get_statistics()
        assert (working["active_sessions"], working["peak_concurrent_sessions"]) == (size, size)
        together = [each for found in crew.ask("end_work") for each in found]
        alone = [each for found in crew.ask("work", each={"count": counts}, seconds=0.01) for each in found]
        for found in (together, alone):
            assert sorted(each["number"] for each in found) == sorted(at for count in counts for at in range(count))
        named = [each["metadata"]["session"] for each in together + alone]
        assert len({session["request_id"] for session in named}) == 2 * size
        assert len({session["session_id"] for session in named}) == 2 * size
        mean = statistics.fmean(each["seconds"] for each in alone) * 1e3
        print(f"{size} concurrent: {mean:.2f} ms mean with 10 ms of work, in {CLIENTS} processes\n{FIGURES}")
        assert_conserved(
            manager.address,
            total_sessions_created=2 * size,
            total_sessions_completed=2 * size,
            peak_concurrent_sessions=size,
            sessions_rejected_capacity=0,
        )


@sized((100, 200), (1_000, 2_000))
def test_load_2_sessions_held_at_once(size: tuple[int, int]) -> None:
    created = 0
    with under_load(limit=max(size)) as (manager, crew):
        for count in size:
            ids = crew.ask("hold", each={"numbers": shares(count)}, threads=8)
            created += count
            assert len({request_id for some in ids for request_id in some}) == count
            held = manager.get_statistics()
            assert held["active_sessions"] == held["peak_concurrent_sessions"] == count
            assert held["total_sessions_created"] == created
            assert held["sessions_rejected_capacity"] == held["metrics_drift"] == 0
            crew.ask("release")
        assert_conserved(
            manager.address,
            total_sessions_created=created,
            peak_concurrent_sessions=max(size),
            sessions_rejected_capacity=0,
        )


@sized(10, 500)
def test_load_3_overflow(size: int) -> None:
    limit = size * 2
    with under_load(limit=limit) as (manager, crew):
        held = {each for ids in crew.ask("hold", each={"numbers": shares(limit)}) for each in ids}
        refusals = crew.ask("overflow", each={"count": [len(share) for share in shares(size)]})
        assert [text for some in refusals for text in some] == [
            f"Maximum concurrent sessions reached (limit {limit}, active {limit})"
        ] * size
        assert {session.request_id for session in manager.get_active_sessions()} == held
        full = manager.get_statistics()
        assert full["sessions_rejected_capacity"] == size
        assert full["active_sessions"] == full["peak_concurrent_sessions"] == full["total_sessions_created"] == limit
        crew.ask("release", to=[0], numbers=[0])
        assert len(crew.ask("hold", to=[1], numbers=[limit])[0]) == 1, "the place that came free can be had"
        crew.ask("release")
        assert_conserved(
            manager.address,
            total_sessions_created=limit + 1,
            peak_concurrent_sessions=limit,
            sessions_rejected_capacity=size,
        )


@sized(75, 5_000)
def test_load_4_full_lifecycles(size: int) -> None:
    with under_load(limit=size) as (manager, crew):
        crew.ask("live", each={"numbers": shares(size)}, threads=18, within=NO_HANG)
        seen = assert_conserved(manager.address, total_sessions_created=size, total_sessions_completed=size)
        assert size // CLIENTS <= seen["peak_concurrent_sessions"] <= size, "the lives of a process overlap"


@sized(20, 200)
def test_load_5_shutdown_while_sessions_finish(size: int) -> None:
    with under_load(limit=size + 1) as (manager, crew), ThreadPoolExecutor(1) as thread:
        crew.ask("hold", each={"numbers": shares(size)}, metadata=True, start=True)
        shutdown = thread.submit(manager.shutdown, 5.0)
        eventually(lambda: manager.get_statistics()["shutdown_requested"])
        with pytest.raises(callpool.ShuttingDown, match="shutting down, cannot create new sessions"):
            manager.create_session("load", "m")
        assert not shutdown.done()
        crew.ask("complete")
        report = shutdown.result(HANG)
        assert 0.0 < report.pop("shutdown_duration") < 5.0, "it waited until the deadline"
        assert report == {
            "initial_active_sessions": size,
            "final_active_sessions": 0,
            "sessions_completed_during_shutdown": size,
            "timeout_reached": False,
            "total_sessions_at_shutdown": size,
        }
        check_conserved(manager.get_statistics(), total_sessions_created=size, total_sessions_completed=size)


@sized(20, 200)
def test_load_5_shutdown_when_sessions_never_finish(size: int) -> None:
    with under_load(limit=size) as (manager, crew):
        crew.ask("hold", each={"numbers": shares(size)}, metadata=True, start=True)
        report = manager.shutdown(0.5)
        assert report.pop("shutdown_duration") >= 0.5, "before the deadline"
        assert report == {
            "initial_active_sessions": size,
            "final_active_sessions": size,
            "sessions_completed_during_shutdown": 0,
            "timeout_reached": True,
            "total_sessions_at_shutdown": size,
        }
        check_conserved(manager.get_statistics(), total_sessions_created=size, total_sessions_cancelled=size)


@sized(60, 6_000)
def test_load_6_mixed_outcomes(size: int) -> None:
    expected = {"completed": size * 7 // 10, "error": size * 2 // 10, "timeout": size // 10}
    with under_load(limit=size) as (manager, crew):
        seen = crew.ask("mixed", each={"numbers": shares(size)}, threads=8)
        assert {name: sum(each[name] for each in seen) for name in expected} == expected
        metrics = manager.get_metrics()
        for name, count in expected.items():
            for counter in (f"total_sessions_{name}", f"lifetime_total_{name}", f"{name}_sessions"):
                assert metrics[counter] == count, counter
        for rate, name in (("success_rate", "completed"), ("error_rate", "error"), ("timeout_rate", "timeout")):
            assert metrics[rate] == expected[name] / size, rate
        assert metrics["providers"] == {
            "load": {"ended": size, "error_rate": expected["error"] / size, "timeout_rate": expected["timeout"] / size}
        }
        assert metrics["duration_seconds"]["count"] == size
        assert_conserved(
            manager.address,
            total_sessions_created=size,
            lifetime_total_created=size,
            total_sessions=size,
            total_sessions_cancelled=0,
            total_sessions_interrupted=0,
        )


@sized(30, 3_000)
def test_load_7_metadata_bytes(size: int) -> None:
    sizes = [len(json.dumps(metadata_of(number), default=str).encode()) for number in range(size)]
    assert len(set(sizes)) > size // 3
    with under_load(limit=size) as (manager, crew):

        def follow(verb: str, numbers: list[list[int]], **arguments: Any) -> list[int]:
            """Do it in all clients, and look at the bytes meanwhile and then."""
            seen = []
            crew.tell(verb, each={"numbers": numbers}, **arguments)
            while True:
                done = crew.has_line()
                now = manager.get_statistics()
                assert now["metrics_drift"] == 0
                seen.append(now["current_metadata_bytes"])
                if done:
                    crew.hear()
                    return seen
                crew.has_line(0.001)

        rising = follow("hold", shares(size), metadata=True)
        assert rising == sorted(rising)
        assert rising[-1] == sum(sizes)
        first, second = ([share[at::2] for share in shares(size)] for at in (0, 1))
        falling = follow("release", first)
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] == sum(sizes[number] for share in second for number in share)
        assert follow("release", second)[-1] == 0
        assert_conserved(manager.address, total_sessions_created=size, total_sessions_cancelled=size)


@sized(100, 10_000, pytest.mark.slow)
def test_load_8_creation_cost(size: int, base_folder: Path, record_property: Callable[[str, object], None]) -> None:
    lines = [f"seconds of {size} creations, one after another, in a process of its own:"]
    address = str(base_folder / "bare")
    with Program(address) as bare, under_load(limit=10_001) as (manager, crew):
        assert bare.read() == "ready"

        def measure(name: str, verb: str, **arguments: Any) -> None:
            (times,) = crew.ask(verb, to=[0], count=size, **arguments)
            assert len(times) == size
            cuts = statistics.quantiles(times, n=100, method="inclusive")
            line = (
                f"{name:<26} mean {statistics.fmean(times) * 1e3:.3f} ms, min {min(times) * 1e3:.3f}, "
                f"p50 {cuts[49] * 1e3:.3f}, p99 {cuts[98] * 1e3:.3f}, max {max(times) * 1e3:.3f}"
            )
            lines.append(line)
            record_property(name, line)

        held = 0
        for active in (0, 100, 10_000):
            crew.ask("hold", each={"numbers": [[at for at in share if at >= held] for share in shares(active)]})
            held = active
            measure(f"{active:,} active", "creation_times")
            measure("bare BaseManager call", "bare_times", address=address)
            now = manager.get_statistics()
            assert (now["active_sessions"], now["metrics_drift"]) == (active, 0)
            assert now["peak_concurrent_sessions"] == active + 1
            assert now["total_sessions_created"] == ended(now) + active
        weight = manager.get_metrics()["memory"]["bytes_per_session"]
        lines += [f"{weight:.0f} bytes a session before metadata", FIGURES]
        print("\n".join(lines))
        crew.ask("release")
        assert_conserved(manager.address, total_sessions_created=3 * size + held, sessions_rejected_capacity=0)
