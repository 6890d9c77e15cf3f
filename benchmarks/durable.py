"""Jobs: what it costs that a request is on the disk before anybody is told of it. All at durability `full`.

A supervisor of its own, with a journal in a directory of its own on this machine's disk: the figures are as much the disk's as ours,
so each stands beside a bare commit of SQLite, or live requests, of the same round.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import callpool
from callpool.manager import launch
from callpool.manager.core.messages import Submit
from callpool.manager.core.records import JobAccepted, Record, fingerprint
from callpool.manager.store import Store
from client_process import AsyncClientProcess
from commit_places import PLACES, jobs_per_second
from measuring import Result, Sizes, seconds, take_turns
from pool import WORKERS, scripted, wait_until
from work import PATIENCE, request_for

CLIENTS = 50
AT_ONCE = 8
"""Requests of one client under way."""
JOBS_LEFT = 10_000
"""Jobs in the journal that a start finds."""


def run(sizes: Sizes) -> list[Result]:
    """Acknowledgement, throughput, where to commit, and a start with jobs in the journal."""
    with tempfile.TemporaryDirectory(prefix="callpool-bench-") as folder:
        root = Path(folder)
        return [
            _acknowledgement(root / "acknowledgement", sizes),
            _throughput(root / "throughput", sizes),
            _places(root, sizes),
            _recovery(root, sizes),
        ]


@contextlib.contextmanager
def daemon(root: Path, **supervisor: Any) -> Iterator[callpool.Client]:
    """A supervisor with a journal in `root`, killed at the end."""
    for directory in (root, *(root / name for name in ("home", "run", "keys"))):
        directory.mkdir(mode=0o700, exist_ok=True)
    environ = {
        **os.environ,
        "CALLPOOL_HOME": str(root / "home"),
        "CALLPOOL_RUNTIME_DIR": str(root / "run"),
        "CALLPOOL_KEY_LOCK_DIR": str(root / "keys"),
    }
    began = launch.start_detached(launch.plan(scripted(max_queued_requests=100_000, **supervisor), environ))
    process = psutil.Process(began.pid)
    try:
        with callpool.connect(began.address) as client:
            wait_until(client, lambda status: [each["state"] for each in status["workers"]] == ["up"] * WORKERS)
            yield client
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs([process], timeout=PATIENCE)


def _acknowledgement(root: Path, sizes: Sizes) -> Result:
    """From the call of `submit` to its return, one after another."""
    root.mkdir(mode=0o700)
    bare = sqlite3.connect(root / "bare.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode=WAL")
    bare.execute("PRAGMA synchronous=FULL")
    bare.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, body BLOB)")
    with daemon(root) as client:

        def commit() -> float:
            return _median(lambda: bare.execute("INSERT INTO rows (body) VALUES (?)", (b"r" * 500,)), sizes)

        def submit(*, durable: bool) -> float:
            def one() -> callpool.Handle:
                own = None if durable else client.generate_request_id()  # an id of one's own waits for its answer, too
                return client.submit(**request_for("noop", "hello"), durable=durable, request_id=own)

            return _median(one, sizes, after=lambda handle: handle.result(PATIENCE))

        contenders = {
            "bare SQLite commit": commit,
            "callpool, durable": lambda: submit(durable=True),
            "callpool, live": lambda: submit(durable=False),
        }
        figures = take_turns(contenders, sizes.rounds)
    bare.close()
    result = Result(
        name="acknowledgement, median",
        what=f"{sizes.round_trips:,} submits one after another, each until it is acknowledged; a bare commit has one row of 500 bytes",
        unit="µs",
        better="less",
        figures={name: [value * 1e6 for value in values] for name, values in figures.items()},
    )
    result.compare("callpool, durable", "bare SQLite commit", "callpool, live")
    return result.aim("callpool, durable ÷ bare SQLite commit", at_most=3.0)


def _median(work: Any, sizes: Sizes, after: Any = lambda _: None) -> float:
    taken = []
    for _ in range(sizes.round_trips):
        began = time.perf_counter()
        done = work()
        taken.append(time.perf_counter() - began)
        after(done)
    return statistics.median(taken)


def _throughput(root: Path, sizes: Sizes) -> Result:
    """Requests completed, by many client processes."""
    clients = min(sizes.at_once, CLIENTS)
    share = max(1, 4 * sizes.noops // clients)
    with daemon(root) as client, contextlib.ExitStack() as stack:
        crew = [stack.enter_context(AsyncClientProcess(client.address, AT_ONCE)) for _ in range(clients)]

        def work(*, durable: bool) -> float:
            def everybody() -> None:
                for each in crew:
                    each.begin(share, durable=durable)
                for each in crew:
                    each.finish()

            return clients * share / seconds(everybody)

        contenders = {"durable": lambda: work(durable=True), "live": lambda: work(durable=False)}
        figures = take_turns(contenders, sizes.rounds)
        kept = client.jobs(limit=1)["counts"]
        checked: dict[str, Any] = client.ask("check_journal", _wait=PATIENCE)
    assert kept == {"completed": sizes.rounds * clients * share}, kept
    assert checked["problems"] == []
    result = Result(
        name=f"requests completed, {clients} client processes",
        what=f"no-ops, {AT_ONCE} under way in each client; durable: on the disk before it is acknowledged, called, and answered",
        unit="requests/s",
        better="more",
        figures=figures,
        counts={"jobs": sum(kept.values())},
    ).compare("durable", "live")
    return result.aim("durable", at_least=5_000)


def _places(root: Path, sizes: Sizes) -> Result:
    """Where to commit."""
    jobs, at_once = 2 * sizes.noops, min(CLIENTS, sizes.at_once)
    numbers = iter(range(1_000))

    def work(name: str) -> float:
        folder = root / f"place{next(numbers)}"
        folder.mkdir(mode=0o700)
        try:
            return jobs_per_second(name, folder / "journal.db", jobs=jobs, at_once=at_once)
        finally:
            shutil.rmtree(folder)

    figures = take_turns({name: partial(work, name) for name in PLACES}, sizes.rounds)
    return Result(
        name="where to commit",
        what=f"a sketch: {at_once} jobs at once, each with two commits and 120 µs of work on the loop, without processes around it",
        unit="jobs/s",
        better="more",
        figures=figures,
    ).compare("in a thread", "on the loop", "in a process")


def _recovery(root: Path, sizes: Sizes) -> Result:
    """From the start of a supervisor that finds jobs to its first acknowledgement, and to the first answer of one of them."""
    left = min(JOBS_LEFT, 10 * sizes.queued)
    prepared = root / "prepared"
    prepared.mkdir(mode=0o700)
    _leave_behind(prepared / "journal.db", left)
    figures: dict[str, list[float]] = {"accepts again": [], "first resumed call": []}
    for number in range(sizes.rounds):
        folder = root / f"recovery{number}"
        folder.mkdir(mode=0o700)
        (folder / "home").mkdir(mode=0o700)
        shutil.copy2(prepared / "journal.db", folder / "home" / "journal.db")
        began = time.perf_counter()
        with daemon(folder) as client:
            client.submit(**request_for("noop", "hello"), durable=True)
            figures["accepts again"].append(time.perf_counter() - began)
            while not client.jobs(states=["completed"], limit=1)["jobs"]:
                pass  # each look is a question to the supervisor, and waits for its answer
            figures["first resumed call"].append(time.perf_counter() - began)
    result = Result(
        name=f"a start that finds {left:,} jobs",
        what="from the start of the supervisor's process to its first acknowledgement, and until the first job has its answer",
        unit="s",
        better="less",
        figures=figures,
        counts={"jobs left behind": left},
    )
    return result.aim("accepts again", at_most=2.0).aim("first resumed call", at_most=3.0)


def _leave_behind(path: Path, jobs: int) -> None:
    """A journal with so many jobs that have not begun."""
    store = Store(path)
    payload = json.dumps({"messages": request_for("noop", "hello")["messages"]}).encode()
    for start in range(0, jobs, 1_000):
        records: list[Record] = []
        for number in range(start, min(jobs, start + 1_000)):
            submit = Submit(f"left_{number}", "fake", "noop", payload, durable=True)
            accepted = JobAccepted(
                submit.request_id, "client", submit, fingerprint(submit), f"session_{number}", time.time()
            )
            records.append(accepted)
        store.write(records)
    store.close()
