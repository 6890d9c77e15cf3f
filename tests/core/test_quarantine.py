"""A request that workers die with: it gets a worker to itself, and after the third it is not called again."""

from __future__ import annotations

from typing import Any

import pytest

from callpool.manager.core.events import Effect, WorkerDown, WorkerUp
from callpool.manager.core.messages import Dispatch

from .attempts import bench, ends, record, wake
from .build import Bench, to_workers


def pool(workers: int = 3, **more: Any) -> Bench:
    return bench(workers=workers, pool=20, accounts={"a": 20}, **more)


def kill(b: Bench, number: int) -> list[Effect]:
    effects = b.do(WorkerDown(number, "was killed"))
    return effects + b.do(WorkerUp(number))


def called(b: Bench, request_id: str = "r") -> int:
    """Wait for its next call to go out; its worker."""
    while b.core.requests[request_id].state != "allocated":
        wake(b)
    return b.holder(request_id)[0]


def test_with_leave_it_is_called_again_and_the_third_death_is_the_last() -> None:
    b = pool()
    b.submit("r", retry_in_doubt=True, max_attempts=10)
    effects: list[Effect] = []
    for _ in range(3):
        number = called(b)
        b.start("r")
        effects = kill(b, number)
    [done] = ends(effects)
    assert (done.state, done.fault.code if done.fault else None) == ("interrupted", "quarantined")
    assert "3 workers died with this request" in (done.fault.message if done.fault else "")
    assert [each.code for each in record(b).attempts] == ["worker_lost", "worker_lost"]
    assert b.core.suspects == {}


def test_deaths_before_a_call_count_as_well_and_what_was_called_once_is_not_said_to_be_untouched() -> None:
    b = pool()
    b.submit("r", retry_in_doubt=True, max_attempts=10)
    called(b)
    b.start("r")
    kill(b, b.holder("r")[0])
    called(b)
    kill(b, b.holder("r")[0])
    called(b)
    [done] = ends(kill(b, b.holder("r")[0]))
    assert (done.state, done.fault.code if done.fault else None) == ("error", "quarantined")


def test_without_leave_the_first_death_is_its_end() -> None:
    b = pool()
    b.submit("r")
    b.start("r")
    [done] = ends(kill(b, b.holder("r")[0]))
    assert done.fault is not None
    assert done.fault.code == "worker_lost"


def test_a_suspect_has_its_worker_to_itself_and_gives_it_back() -> None:
    b = pool()
    b.submit("r", retry_in_doubt=True)
    b.start("r")
    kill(b, b.holder("r")[0])
    alone = called(b)
    for number in range(8):
        b.submit(f"o{number}")
    assert alone not in {b.holder(f"o{number}")[0] for number in range(8)}
    b.start("r")
    b.finish("r")
    b.submit("next")
    assert b.holder("next")[0] == alone, "it is the least loaded one, and free for all again"
    assert b.core.suspects == {}


def test_a_conversation_does_not_follow_its_worker_to_a_suspect() -> None:
    b = pool(workers=2)
    b.submit("r", retry_in_doubt=True, affinity="x")
    b.start("r")
    kill(b, b.holder("r")[0])
    alone = called(b)
    b.submit("o", affinity="x")
    assert b.holder("o")[0] != alone


@pytest.mark.parametrize("workers", [1, 2])
def test_where_every_worker_has_a_suspect_others_go_all_the_same(workers: int) -> None:
    b = pool(workers=workers)
    for number in range(workers):
        b.submit(f"r{number}", retry_in_doubt=True)
        b.start(f"r{number}")
    for number in range(1, workers + 1):
        kill(b, number)
    for number in range(workers):
        called(b, f"r{number}")
    assert len(b.core.suspects) == workers
    [order] = [each for each in to_workers(b.submit("o")) if isinstance(each, Dispatch)]
    assert order.request_id == "o"


def test_others_of_the_dead_worker_go_on_where_their_call_had_not_begun() -> None:
    b = pool(workers=1)
    b.submit("r", retry_in_doubt=True)
    b.submit("o")
    b.start("r")
    kill(b, 1)
    assert b.state("o") == "allocated"
    called(b)
    b.start("o")
    assert [done.state for done in ends(b.finish("o"))] == ["completed"]
