"""Memory of supervisor and workers: idle, and with a long queue behind two calls that never end.

Unique memory (USS) is what the machine gets back when the processes end; pages shared with other programs, such as
the interpreter's code, are not in it. A model server is not part of it. A megabyte is 1,000,000 bytes.
"""

from __future__ import annotations

import psutil

from measuring import Result, Sizes
from pool import WORKERS, processes, scripted, started, wait_until
from work import request_for

MB = 1e6
ALL = "supervisor and workers"
CONTENT = "x" * 1000
"""Text of a queued request: 1,000 bytes."""


def run(sizes: Sizes) -> list[Result]:
    """Unique memory, each round in a new supervisor."""
    rounds = [_one_round(sizes.queued) for _ in range(sizes.memory_rounds)]
    idle, full = ([pair[at] for pair in rounds] for at in (0, 1))
    queue = f"{sizes.queued:,} requests queued, each with {len(CONTENT):,} bytes of text"
    growth = [(_total(after) - _total(before)) * MB / sizes.queued for before, after in rounds]
    return [
        Result(
            name="memory, idle",
            what=f"unique memory of a supervisor with {WORKERS} workers up and no request yet",
            unit="MB",
            better="less",
            figures=_figures(idle),
        ).aim(ALL, at_most=100.0),
        Result(
            name="memory, queued",
            what=f"unique memory with {queue}",
            unit="MB",
            better="less",
            figures=_figures(full),
            counts={"requests queued": sizes.queued},
        ),
        Result(
            name="memory, growth",
            what=f"how much more than idle with {queue}",
            unit="bytes/request",
            better="less",
            figures={ALL: growth},
        ),
    ]


def _figures(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    return {ALL: [_total(parts) for parts in rounds]} | {part: [parts[part] for parts in rounds] for part in rounds[0]}


def _total(parts: dict[str, float]) -> float:
    return sum(parts.values())


def _one_round(queued: int) -> tuple[dict[str, float], dict[str, float]]:
    """Unique MB of each part: idle, and with `queued` requests waiting."""
    config = scripted(max_concurrent_sessions=WORKERS, max_queued_requests=queued, default_timeout=600.0)
    with started(config) as client:
        idle = _unique(processes(client))
        request = request_for("hang", CONTENT)
        handles = [client.submit(**request) for _ in range(WORKERS)]
        wait_until(client, lambda status: status["sessions"]["active_sessions"] == WORKERS)
        handles += [client.submit(**request) for _ in range(queued)]
        waiting = client.status()["queue"]["requests"]
        assert waiting == queued, f"{waiting} requests are queued, not {queued}"
        return idle, _unique(processes(client))


def _unique(family: list[psutil.Process]) -> dict[str, float]:
    """Unique MB of the supervisor, of the workers together, and of what helps them (the resource tracker)."""
    supervisor, *others = family
    parts = {"supervisor": supervisor.memory_full_info().uss / MB, "workers": 0.0, "helpers": 0.0}
    for process in others:
        helper = any("resource_tracker" in argument for argument in process.cmdline())
        parts["helpers" if helper else "workers"] += process.memory_full_info().uss / MB
    return parts
