"""Sessions that a program holds: what a creation and a whole life cost, in the supervisor and beside it.

Beside it: a call that does nothing through the standard library's Manager, which is what any bookkeeping in another process costs
at least; and a table in the program's own process, which no other program can see.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from typing import Any

import psutil

import callpool
from callpool.manager.sessions import SessionManager
from client_process import ClientProcess
from measuring import Result, Sizes, quantile, ratio_name, seconds, take_turns
from session_table import SessionTable

CLIENTS = 4
DEFAULT_LIMIT = 200
LONG = 3_600.0
"""Seconds for sessions that are held while others are measured."""
BARE = "bare Manager call"
TWO, FOUR, BUSY = "callpool, two verbs", "callpool, four verbs", f"callpool, two verbs, {CLIENTS} busy processes"


class _Nothing:
    def nothing(self) -> None:
        """What the bare Manager's server does for a call."""


class _BareManager(BaseManager):
    """The standard library's Manager."""


_BareManager.register("thing", _Nothing)


class SessionProcess(ClientProcess):
    """A client process that makes lifecycles of two verbs when it is told to."""

    def __init__(self, address: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(address, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.finish()  # connected


def _serve(address: str, pipe: Connection) -> None:
    with callpool.connect(address) as client:
        _two_verbs(client.sessions, 1)
        pipe.send(None)
        while True:
            try:
                count: int = pipe.recv()
            except EOFError:
                return
            _two_verbs(client.sessions, count)
            pipe.send(None)


def run(sizes: Sizes) -> list[Result]:
    """Creations with few and many active, lifecycles, memory."""
    with ExitStack() as stack:
        bare: Any = stack.enter_context(_BareManager(ctx=multiprocessing.get_context("spawn")))
        nothing = bare.thing().nothing
        levels = (0, max(1, sizes.queued // 100), sizes.queued)
        managers = {active: stack.enter_context(_holding(active)) for active in levels}
        tables = {active: _table(active) for active in (levels[1], DEFAULT_LIMIT - 1, levels[2])}
        creations = _creations(nothing, managers, tables, sizes)
        clients = [stack.enter_context(SessionProcess(managers[0].address)) for _ in range(CLIENTS)]
        lives = _lives(nothing, managers[0], clients, tables, sizes)
        for active, manager in managers.items():
            _check_supervisor(manager, active)
        for active, table in tables.items():
            assert (len(table), table.current_metadata_bytes) == (active, 2 * active)
            assert table.created == active + sum(table.ended.values())
    return [creations, lives, _memory(sizes)]


def _holding(active: int) -> SessionManager:
    manager = SessionManager(max_concurrent_sessions=active + DEFAULT_LIMIT)
    for _ in range(active):
        manager.create_session("p", "m", timeout_seconds=LONG)
    return manager


def _table(active: int) -> SessionTable:
    table = SessionTable(max_sessions=active + DEFAULT_LIMIT)
    for _ in range(active):
        table.create("p", "m")
    return table


def _check_supervisor(manager: SessionManager, active: int) -> None:
    """What was counted is what was done, and nothing is left of it."""
    figures = manager.get_statistics()
    ended = figures["total_sessions_completed"] + figures["total_sessions_cancelled"]
    assert figures["total_sessions_created"] == active + ended, figures
    assert (figures["active_sessions"], figures["metrics_drift"]) == (active, 0), figures


# Creations.


def _creations(
    nothing: Callable[[], object],
    managers: dict[int, SessionManager],
    tables: dict[int, SessionTable],
    sizes: Sizes,
) -> Result:
    """The median of each round; what was created is released before the next."""
    count = sizes.round_trips
    contenders: dict[str, Callable[[], float]] = {BARE: partial(_median, nothing, lambda _nothing: None, count)}
    for active, manager in managers.items():
        create = partial(manager.create_session, "p", "m")
        contenders[_name("callpool", active)] = partial(_median, create, _release, count)
    for active, table in tables.items():
        contenders[_name("table", active)] = partial(_median, partial(table.create, "p", "m"), table.release, count)
    few, many = list(managers)[1:]
    least, _, most = tables
    result = Result(
        name="session creation, median",
        what=f"of {count:,} creations a round, each released before the next; the specification names 0.020 ms in one process",
        unit="µs",
        better="less",
        figures=take_turns(contenders, sizes.rounds),
    )
    result.compare(_name("callpool", few), BARE)
    result.compare(_name("callpool", many), _name("callpool", few), _name("table", most))
    result.compare(_name("table", most), _name("table", least))
    return result.aim(ratio_name(_name("callpool", many), _name("callpool", few)), at_most=1.3)


def _name(who: str, active: int) -> str:
    return f"{who}, {active:,} active"


def _release(session: Any) -> None:
    session.release()


def _median(create: Callable[[], Any], undo: Callable[[Any], object], count: int) -> float:
    """Microseconds of `create` alone, each undone before the next."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        created = create()
        times.append(time.perf_counter() - began)
        undo(created)
    return quantile(times, 0.5) * 1e6


# Lifecycles.


def _lives(
    nothing: Callable[[], object],
    manager: SessionManager,
    clients: list[SessionProcess],
    tables: dict[int, SessionTable],
    sizes: Sizes,
) -> Result:
    before = manager.get_statistics()["total_sessions_completed"]
    share = sizes.noops // CLIENTS
    contenders: dict[str, Callable[[], float]] = {
        BARE: partial(_mean, lambda count: [nothing() for _ in range(count)], sizes.round_trips),
        TWO: partial(_mean, partial(_two_verbs, manager), sizes.round_trips),
        FOUR: partial(_mean, partial(_four_verbs, manager), sizes.round_trips),
        BUSY: partial(_mean, lambda _count: _by_processes(clients, share), share * CLIENTS),
    }
    for active, table in tables.items():
        contenders[_name("table", active)] = partial(_mean, partial(_table_lives, table), sizes.round_trips)
    figures = take_turns(contenders, sizes.rounds)
    lived = manager.get_statistics()["total_sessions_completed"] - before
    expected = sizes.rounds * (2 * sizes.round_trips + share * CLIENTS)
    assert lived == expected, f"{lived} sessions completed, {expected} were lived"
    result = Result(
        name="session lifecycle",
        what="create, start, complete, release: of a function that does nothing (two verbs), or of a handle (four verbs)",
        unit="µs/lifecycle",
        better="less",
        figures=figures,
        counts={"lifecycles of callpool": lived},
    )
    result.compare(TWO, BARE).compare(FOUR, TWO).compare(BUSY, TWO, *(_name("table", active) for active in tables))
    return result


def _mean(make: Callable[[int], object], count: int) -> float:
    """Microseconds of each of so many."""
    return seconds(partial(make, count)) / count * 1e6


def _two_verbs(manager: SessionManager, count: int) -> None:
    for _ in range(count):
        manager.execute_with_session("p", "m", int, enforce_timeout=False)


def _four_verbs(manager: SessionManager, count: int) -> None:
    for _ in range(count):
        session = manager.create_session("p", "m")
        session.start()
        session.complete()
        session.release()


def _by_processes(clients: list[SessionProcess], share: int) -> None:
    for each in clients:
        each.begin(share)
    for each in clients:
        each.finish()


def _table_lives(table: SessionTable, count: int) -> None:
    for _ in range(count):
        session = table.create("p", "m")
        table.start(session)
        table.complete(session)
        table.release(session)


# Memory.


def _memory(sizes: Sizes) -> Result:
    rounds = [_bytes_of_each(sizes.queued) for _ in range(sizes.memory_rounds)]
    return Result(
        name="memory of a session",
        what=f"resident memory that the supervisor gained with {sizes.queued:,} held sessions without metadata; "
        "the specification names 200 to 300 bytes",
        unit="bytes/session",
        better="less",
        figures={"resident": [pair[0] for pair in rounds], "by its own count": [pair[1] for pair in rounds]},
        counts={"sessions held": sizes.queued},
    )


def _bytes_of_each(held: int) -> tuple[float, float]:
    """In a new supervisor: bytes of resident memory a session, and what its metrics say."""
    with SessionManager(max_concurrent_sessions=held) as manager, callpool.connect(manager.address) as client:
        supervisor = psutil.Process(client.status()["pid"])
        manager.create_session("p", "m").release()
        before = supervisor.memory_info().rss
        for _ in range(held):
            manager.create_session("p", "m", timeout_seconds=LONG)
        grown = supervisor.memory_info().rss - before
        figures = manager.get_metrics()
        assert figures["active_sessions"] == held, f"{figures['active_sessions']} sessions are held, not {held}"
        return grown / held, figures["memory"]["bytes_per_session"]
