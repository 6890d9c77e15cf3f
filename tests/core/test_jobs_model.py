"""Jobs in a world where everything fails, by seeds: nothing acknowledged is lost, nothing in doubt is called again without leave."""

from __future__ import annotations

from collections import Counter

from .jobs_world import JobsWorld

SEEDS = 300
STEPS = 250


def test_nothing_is_lost_and_nothing_is_paid_twice(seed: int) -> None:
    seen: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for number in range(SEEDS):
        world = JobsWorld(seed + number)
        for _ in range(STEPS):
            world.step()
        world.settle()
        seen += world.seen
        ended += Counter(job.state for job in world.disk.rows.values())
    assert {"completed", "error", "cancelled", "timeout", "interrupted"} <= ended.keys(), ended
    assert {"crash", "known", "disk failed", "disk lied", "refused", "unstarted", "resolved"} <= seen.keys(), seen
