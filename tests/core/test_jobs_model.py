"""Jobs in a world where everything fails, by seeds: nothing acknowledged is lost, nothing in doubt is called again without leave.

And the world is tested, too: faults planted in the core, each of which it must find.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from callpool.manager.core.events import ToClient, ToWorker
from callpool.manager.core.jobs import Jobs
from callpool.manager.core.machine import Core
from callpool.manager.core.pending import Pending

from .jobs_world import JobsWorld

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.events import Effect, JobsRecovered
    from callpool.manager.core.records import Record
    from callpool.manager.core.requests import Now

SEEDS = 300
STEPS = 250


def lives(seed: int, count: int, **parts: Any) -> tuple[Counter[str], Counter[str]]:
    """(what happened, how jobs ended) in so many worlds."""
    seen: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for number in range(count):
        world = JobsWorld(seed + number, **parts)
        for _ in range(STEPS):
            world.step()
        world.settle()
        seen += world.seen
        ended += Counter(job.state for job in world.disk.rows.values())
    return seen, ended


def test_nothing_is_lost_and_nothing_is_paid_twice(seed: int) -> None:
    seen, ended = lives(seed, SEEDS)
    assert {"completed", "error", "cancelled", "timeout", "interrupted"} <= ended.keys(), ended
    assert {"crash", "known", "disk failed", "disk lied", "refused", "unstarted", "resolved", "slow"} <= seen.keys(), (
        seen
    )


class SentBeforeItIsRecorded(Pending):
    """A worker hears of a call whose start is not on the disk."""

    def defer(self, effect: Effect) -> bool:
        return type(effect) is not ToWorker and super().defer(effect)


class ToldBeforeItIsRecorded(Pending):
    """A client hears of an acceptance, or an end, that is not on the disk."""

    def defer(self, effect: Effect) -> bool:
        return type(effect) is not ToClient and super().defer(effect)


class SentToTheNextWorker(Pending):
    """What a dead worker was to be sent goes to the process in its place."""

    def _never_send(self, request_id: str) -> None:
        pass


class TrustsTheDisk(Pending):
    """A disk that failed is believed."""

    def settle(self, *, written: bool) -> list[Record]:
        return super().settle(written=False)


class ForgetsTheEnd(Pending):
    """What ended while the disk was full is not kept."""

    def failed(self, batch: Any) -> Any:
        undone = super().failed(batch)
        self.open.records.clear()
        return undone


class _CallsAgain(Jobs):
    def recover(self, event: JobsRecovered, now: Now, effects: list[Effect]) -> None:
        def allowed(submit: msgspec.Struct | None) -> Any:
            return None if submit is None else msgspec.structs.replace(submit, retry_in_doubt=True)

        jobs = [msgspec.structs.replace(job, submit=allowed(job.submit)) for job in event.jobs]
        super().recover(msgspec.structs.replace(event, jobs=jobs), now, effects)


class _LosesTheQueue(Jobs):
    def recover(self, event: JobsRecovered, now: Now, effects: list[Effect]) -> None:
        jobs = [job for job in event.jobs if job.state != "queued"]
        super().recover(msgspec.structs.replace(event, jobs=jobs), now, effects)


class _CountsAgain(Jobs):
    def recover(self, event: JobsRecovered, now: Now, effects: list[Effect]) -> None:
        super().recover(msgspec.structs.replace(event, last_attempt=0), now, effects)


class _ParksWhatRan(Jobs):
    def is_parked(self, request: Any, fault: Any, now: Now, effects: list[Effect]) -> bool:
        if request.route is not None:
            request.route.in_doubt = True
        return super().is_parked(request, fault, now, effects)


class _EndsUnrecorded(Jobs):
    def ended(self, *_about: Any) -> None:
        pass


def core_with(kind: type[Jobs]) -> type[Core]:
    """A core whose jobs are these."""

    class Planted(Core):
        jobs_class = kind

    return Planted


@pytest.mark.parametrize(
    "parts",
    [
        {"pending": SentBeforeItIsRecorded},
        {"pending": ToldBeforeItIsRecorded},
        {"pending": SentToTheNextWorker},
        {"pending": TrustsTheDisk},
        {"pending": ForgetsTheEnd},
        {"core": core_with(_CallsAgain)},
        {"core": core_with(_LosesTheQueue)},
        {"core": core_with(_CountsAgain)},
        {"core": core_with(_ParksWhatRan)},
        {"core": core_with(_EndsUnrecorded)},
    ],
    ids=[
        "SentBeforeItIsRecorded", "ToldBeforeItIsRecorded", "SentToTheNextWorker", "TrustsTheDisk", "ForgetsTheEnd",
        "CallsAgain", "LosesTheQueue", "CountsAgain", "ParksWhatRan", "EndsUnrecorded",
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(parts: dict[str, Callable[..., Any]], seed: int) -> None:
    with pytest.raises((AssertionError, KeyError)):
        lives(seed, 3_000, **parts)
