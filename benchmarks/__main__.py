"""`make bench`, or `python -I benchmarks [--quick] [--json FILE] [NAME …]`. What the figures mean: docs/benchmarks.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import cancels
import decisions
import durable
import machine
import memory
import noop_rate
import printing
import provider_calls
import readiness
import round_trip
import sessions
from measuring import FULL, QUICK, TINY, NoiseMeter, Result, Sizes

BENCHMARKS: dict[str, Callable[[Sizes], list[Result]]] = {
    "noops": noop_rate.run,
    "roundtrip": round_trip.run,
    "calls": provider_calls.run,
    "cancels": cancels.run,
    "memory": memory.run,
    "ready": readiness.run,
    "sessions": sessions.run,
    "decisions": decisions.run,
    "durable": durable.run,
}


def main() -> None:
    """Run benchmarks, print their tables, write them as JSON."""
    options = _options()
    sizes = TINY if options.tiny else QUICK if options.quick else FULL
    facts = machine.facts()
    print("\n".join(printing.facts_lines(facts)), flush=True)
    measured = {name: _measure(name, sizes) for name in options.names or BENCHMARKS}
    if options.json is not None:
        document = {"facts": facts, "sizes": sizes._asdict(), "benchmarks": measured}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def _measure(name: str, sizes: Sizes) -> dict[str, Any]:
    with NoiseMeter() as meter:
        results = BENCHMARKS[name](sizes)
    for result in results:
        print("", *printing.table_lines(result), sep="\n", flush=True)
    print(printing.noise_line(meter.noise), flush=True)
    return {"results": results, "noise": meter.noise}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure callpool beside its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: half a minute")
    parser.add_argument(
        "--tiny", action="store_true", help="only to see that everything runs; the figures mean nothing"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    options = parser.parse_args()
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return options


if __name__ == "__main__":
    main()
