"""The judgement: each check at its threshold, what counts as which state, and the facts as they are gathered."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest

from callpool.manager import health
from callpool.manager.core.events import AccountClosed, DrainAsked, WorkerDown
from callpool.manager.core.machine import Core
from callpool.manager.core.requests import Now
from callpool.manager.core.restarts import INTENSITY, PROVEN_AFTER, Condition
from callpool.manager.health import judge
from callpool.manager.health_facts import (
    Facts,
    LoopFacts,
    PoolFacts,
    ProcessFacts,
    Surroundings,
    WorkerFacts,
    observe_process,
    survey_pool,
)
from tests.core.build import Bench, make_core

GIB = 1024**3
UP = WorkerFacts(
    number=0,
    state="up",
    pid=7,
    silent=0.4,
    loop_delay=0.0,
    restarts=0,
    failures=0,
    spawned_ago=9.0,
    last_death=None,
)
FACTS = Facts(
    loop=LoopFacts(p99=0.001, last=0.001, looks=1_000),
    pool=PoolFacts(
        active=2,
        max_active=200,
        walked=2,
        requests_active=2,
        strays=[],
        metrics_drift=0,
        waiting=0,
        promised=128,
        max_waiting=10_000,
        waiting_bytes=0,
        promised_bytes=1024,
        max_waiting_bytes=GIB,
        stopped={},
        closed={},
        drain_seconds_left=None,
    ),
    surroundings=Surroundings(
        workers=[UP, msgspec.structs.replace(UP, number=1)],
        heartbeat_interval=1.0,
        restarts=Condition(),
        local_providers={"here": True},
        process=ProcessFacts(
            descriptors=30, descriptor_limit=1000, memory=40_000_000, memory_available=GIB, disk_free=GIB
        ),
    ),
)


def loop(**changes: Any) -> Facts:
    return msgspec.structs.replace(FACTS, loop=msgspec.structs.replace(FACTS.loop, **changes))


def pool(**changes: Any) -> Facts:
    return msgspec.structs.replace(FACTS, pool=msgspec.structs.replace(FACTS.pool, **changes))


def around(**changes: Any) -> Facts:
    return msgspec.structs.replace(FACTS, surroundings=msgspec.structs.replace(FACTS.surroundings, **changes))


def process(**changes: Any) -> Facts:
    return around(process=msgspec.structs.replace(FACTS.surroundings.process, **changes))


def worker(**changes: Any) -> Facts:
    """The first of the two workers changed."""
    first, second = FACTS.surroundings.workers
    return around(workers=[msgspec.structs.replace(first, **changes), second])


def failing(facts: Facts) -> list[str]:
    return [check.name for check in judge(facts).checks if not check.ok]


@pytest.mark.parametrize(
    "facts",
    [
        FACTS,
        loop(p99=health.LOOP_DELAY_P99),
        loop(p99=9.0, looks=health.ENOUGH_LOOKS - 1),
        loop(last=health.LOOP_DELAY_LAST),
        worker(silent=2.0),
        worker(loop_delay=health.WORKER_LOOP_DELAY),
        worker(state="starting", silent=9.0),
        worker(restarts=9, failures=health.CRASH_LOOP - 1),
        around(restarts=Condition(deaths=INTENSITY, boot_failures=3, cause="worker 0 exited")),
        worker(restarts=9, failures=9, spawned_ago=PROVEN_AFTER),
        around(local_providers={}),
        process(descriptors=800),
        process(descriptors=100_000, descriptor_limit=None),
        process(memory=GIB),
        process(memory=None, memory_available=None),
        process(disk_free=health.DISK_LOW),
        pool(active=200, walked=200, requests_active=200),
        pool(waiting=9_000, promised=999),
        pool(waiting_bytes=GIB - 1025),
    ],
)
def test_up_to_its_threshold_each_check_is_fine(facts: Facts) -> None:
    judged = judge(facts)
    assert (judged.healthy, judged.state, judged.reasons) == (True, "healthy", [])
    assert all(check.ok for check in judged.checks)


@pytest.mark.parametrize(
    ("facts", "check", "state", "said"),
    [
        (loop(p99=0.26, looks=health.ENOUGH_LOOKS), "loop_delay_p99", "degraded", "0.260 s late"),
        (loop(last=1.01), "loop_delay_last", "degraded", "1.010 s late"),
        (worker(silent=2.1), "worker_0", "degraded", "worker 0 (pid 7): gave no heartbeat for 2.1 s"),
        (worker(loop_delay=1.1), "worker_0", "degraded", "1.1 s late"),
        (worker(state="stuck"), "worker_0", "degraded", "stuck"),
        (worker(state="down", pid=None, last_death="exited"), "worker_0", "degraded", "(no process): down, the last one"),
        (worker(state="starting", restarts=1), "worker_0", "degraded", "starting"),
        (worker(failures=3, spawned_ago=4.9), "worker_0", "degraded", "died 3 times in a row"),
        (
            around(restarts=Condition(deaths=11, boot_failures=5, is_in_trouble=True, cause="worker 1 exited with code 3")),
            "restarts",
            "degraded",
            "11 workers died in the last 60 s, 5 of them before they were ready; the last one: worker 1 exited with code 3",
        ),
        (around(local_providers={"here": False}), "model_server_here", "degraded", "provider here: its model server is"),
        (process(descriptors=801), "descriptors", "degraded", "801 file descriptors open of 1000"),
        (process(memory=GIB + 1), "memory", "degraded", "1,024 MiB of memory"),
        (process(disk_free=health.DISK_LOW - 1), "disk_free", "degraded", "256 MiB free"),
        (process(disk_free=health.DISK_FULL - 1), "disk_free", "unhealthy", "16 MiB free"),
        (process(disk_free=None), "disk_free", "unhealthy", "cannot be looked at"),
        (pool(waiting=9_000, promised=1_000), "queue", "degraded", "the queue is full: 9000 of 10000"),
        (pool(waiting_bytes=GIB - 1024), "queue_bytes", "degraded", "the queue is full: 1,024 MiB of 1,024 MiB"),
        (pool(metrics_drift=-7), "metrics_drift", "unhealthy", "-7 bytes"),
        (pool(active=3), "leases", "unhealthy", "3 leases counted, 2 sessions and 2 requests"),
        (pool(walked=3), "leases", "unhealthy", "3 sessions"),
        (pool(requests_active=1), "leases", "unhealthy", "1 requests"),
        (
            pool(stopped={"b": "no money", "a": "a dead key"}),
            "stopped_accounts",
            "degraded",
            "accounts that serve nothing until they are resumed: a: a dead key; b: no money",
        ),
        (pool(journal_down="no room"), "journal", "degraded", "no jobs are taken, for they cannot be written down: no room"),
        (pool(strays=["a: r1"]), "account_slots", "unhealthy", "slots and requests disagree: a: r1"),
        (pool(drain_seconds_left=4.2), "draining", "draining", "at most 4 s left"),
    ],
)  # fmt: skip
def test_beyond_it_one_check_fails_and_says_why(facts: Facts, check: str, state: str, said: str) -> None:
    judged = judge(facts)
    assert failing(facts) == [check]
    assert (judged.healthy, judged.state) == (False, state)
    assert len(judged.reasons) == 1
    assert said in judged.reasons[0]


def test_without_any_worker_up_nothing_is_served() -> None:
    down = [msgspec.structs.replace(each, state="starting") for each in FACTS.surroundings.workers]
    assert judge(around(workers=down)).state == "unhealthy"
    assert failing(around(workers=down)) == ["workers"]


def test_a_pool_that_is_full_is_busy_and_healthy() -> None:
    judged = judge(pool(active=200, walked=200, requests_active=200))
    said = next(check.message for check in judged.checks if check.name == "sessions")
    assert said == "busy: 200 of 200 sessions active"
    assert judged.healthy


def test_what_is_worst_is_told_first_and_a_drain_is_the_state_whatever_there_is() -> None:
    facts = msgspec.structs.replace(loop(last=5.0), pool=pool(metrics_drift=1).pool)
    judged = judge(facts)
    assert judged.state == "unhealthy"
    assert [reason.split()[1] for reason in judged.reasons] == ["sessions", "supervisor's"]
    drains = msgspec.structs.replace(facts, pool=pool(metrics_drift=1, drain_seconds_left=0.0).pool)
    assert judge(drains).state == "draining"
    assert len(judge(drains).reasons) == 3


def test_a_reason_names_a_few_strays_and_counts_the_rest() -> None:
    (reason,) = judge(pool(strays=[f"a: r{number}" for number in range(100)])).reasons
    assert reason.endswith("a: r0, a: r1, a: r2 and 97 more")


def test_why_an_account_is_closed_is_the_model_server_s_reason() -> None:
    facts = msgspec.structs.replace(
        around(local_providers={"here": False}), pool=pool(closed={"here": "its model server is starting"}).pool
    )
    assert judge(facts).reasons == ["provider here: its model server is starting"]


# Facts of the core.


def survey(bench: Bench) -> PoolFacts:
    return survey_pool(bench.core, Now(bench.time, bench.time))


def agrees(facts: PoolFacts) -> bool:
    return facts.active == facts.walked == facts.requests_active and not facts.strays and facts.metrics_drift == 0


def test_through_a_request_s_life_the_books_agree() -> None:
    bench = Bench(make_core(pool=2, accounts={"a": 1, "b": 2}))
    seen = [survey(bench)]
    for request_id, account in (("r1", "a"), ("r2", "a"), ("r3", "b"), ("r4", "b")):
        bench.submit(request_id, account=account, metadata=b'{"x": 1}')
        seen.append(survey(bench))
    bench.start("r1")
    bench.do(WorkerDown(1, "exited"))  # r1 is in doubt, r3 waits again with its session
    seen.append(survey(bench))
    assert [(facts.active, facts.waiting) for facts in seen] == [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (0, 3)]
    assert all(agrees(facts) for facts in seen)
    assert seen[-1].waiting_bytes == 3 * len(b'{}{"x": 1}')


@pytest.mark.parametrize("fault", ["counter", "session", "bytes", "slot", "owner"])
def test_each_wrong_book_is_found(fault: str) -> None:
    bench = Bench(make_core())
    bench.submit("r1")
    core: Core = bench.core
    if fault == "counter":
        core.sessions.active += 1
    elif fault == "session":
        core.sessions.live["r1"].held = False
    elif fault == "bytes":
        core.sessions.metadata_bytes += 1
    elif fault == "slot":
        core.ledger.accounts["a"].scope.holders.clear()
    else:
        core.ledger.accounts["a"].scope.holders["gone"] = 0
    facts = survey(bench)
    assert not agrees(facts)
    assert judge(msgspec.structs.replace(FACTS, pool=facts)).state == "unhealthy"
    assert facts.strays == {"slot": ["a: r1"], "owner": ["a: gone"]}.get(fault, [])


def test_closed_accounts_and_a_drain_are_facts() -> None:
    bench = Bench(make_core())
    bench.submit("r1")
    bench.do(AccountClosed("a", "its server starts"))
    bench.do(DrainAsked(5.0))
    facts = survey(bench)
    assert facts.closed == {"a": "its server starts", "keyless": "no key for 'keyless'"}
    assert facts.drain_seconds_left == 5.0


# Facts of the operating system.


def test_the_system_tells_of_this_process(base_folder: Path) -> None:
    before = observe_process(str(base_folder))
    with (base_folder / "open").open("wb"):
        during = observe_process(str(base_folder))
    assert during.descriptors == before.descriptors + 1
    assert (during.memory or 0) > 1_000_000
    assert (during.memory_available or 0) > 0
    assert (during.disk_free or 0) > 0


def test_a_state_directory_that_is_gone_is_no_error_but_a_fact(base_folder: Path) -> None:
    assert observe_process(str(base_folder / "gone")).disk_free is None


def test_without_a_descriptor_to_look_with_all_count_as_open(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_path: object) -> None:
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr(Path, "iterdir", none_left)
    facts = observe_process(str(base_folder))
    monkeypatch.undo()
    assert facts.descriptors == facts.descriptor_limit
