"""A supervisor that has drained ends at once: threads and tasks that still speak to it hear of the end, and no broken pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from callpool import (
    AsyncSessionManager,
    ConnectionLost,
    HandshakeFailed,
    NotRunning,
    Session,
    SessionManager,
    ShuttingDown,
    compat,
)
from callpool.manager import endings, process_wide
from callpool.manager.embedded import shared_client
from callpool.manager.session_calls import SessionIds

LATE = 30.0


@pytest.fixture
def last_words(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The thread that shuts down reads the supervisor's last words only when somebody else has found it gone."""
    missed = threading.Event()
    remember, under_way = endings.remember, endings.under_way

    def read_late(*said: Any) -> None:
        assert missed.wait(LATE)
        remember(*said)

    def find_gone(*supervisor: Any) -> list[Future[None]]:
        found = under_way(*supervisor)
        missed.set()
        return found

    monkeypatch.setattr(endings, "remember", read_late)
    monkeypatch.setattr(endings, "under_way", find_gone)
    yield missed
    assert not endings._under_way
    missed.set()


AFTERWARDS: dict[str, tuple[Callable[[SessionManager, Session], Any], Any]] = {
    "release_session": (lambda manager, session: manager.release_session(session.request_id), None),
    "release": (lambda _manager, session: session.release(), None),
    "get_session": (lambda manager, session: manager.get_session(session.request_id), None),
    "get_active_sessions": (lambda manager, _session: manager.get_active_sessions(), []),
    "cleanup": (lambda manager, _session: manager.cleanup_timed_out_sessions(), 0),
    "statistics": (lambda manager, _session: manager.get_statistics()["shutdown_requested"], True),
    "metrics": (lambda manager, _session: manager.get_metrics()["total_sessions_completed"], 1),
    "state": (lambda _manager, session: session.state, "processing"),
}


@pytest.mark.parametrize("verb", AFTERWARDS)
def test_a_thread_that_finds_the_supervisor_gone_hears_its_last_words(verb: str, last_words: threading.Event) -> None:
    ask, expected = AFTERWARDS[verb]
    with SessionManager() as manager, ThreadPoolExecutor(1) as pool:
        session = manager.create_session("kimi", "k3")
        session.start()
        other = manager.get_session(session.request_id)
        assert other is not None
        shutdown = pool.submit(manager.shutdown)
        while not manager.get_statistics()["shutdown_requested"]:
            pass
        other.complete()
        until_gone(manager)
        assert not last_words.is_set()
        assert ask(manager, session) == expected
        assert shutdown.result()["sessions_completed_during_shutdown"] == 1


def test_what_needs_a_supervisor_is_refused_as_after_the_shutdown(last_words: threading.Event) -> None:
    with SessionManager() as manager, ThreadPoolExecutor(1) as pool:
        shutdown = pool.submit(manager.shutdown)
        until_gone(manager)
        with pytest.raises(ShuttingDown, match="^Session manager is shutting down, cannot create new sessions$"):
            manager.create_session("kimi", "k3")
        assert last_words.is_set()
        assert shutdown.result()["total_sessions_at_shutdown"] == 0


def until_gone(manager: SessionManager) -> None:
    """Its process has let go of its socket. Not by `ask`, which waits for the last words."""
    with contextlib.suppress(ConnectionLost, NotRunning, HandshakeFailed):
        while True:
            manager._lockstep.call("ping")


def test_a_task_that_finds_the_supervisor_gone_hears_its_last_words(last_words: threading.Event) -> None:
    async def test() -> None:
        async with AsyncSessionManager() as manager:
            session = await manager.create_session("kimi", "k3")
            await session.start()
            seen = await manager.get_session(session.request_id)
            assert seen is not None
            client = await manager.client()
            # From a thread: on this loop nobody could wait for whoever is to find it gone.
            shutdown = asyncio.ensure_future(asyncio.to_thread(shared_client(client.address).sessions.shutdown))
            while not (await manager.get_statistics())["shutdown_requested"]:
                pass
            await seen.complete()
            while client.is_open:
                await asyncio.sleep(0.001)
            assert not last_words.is_set()
            await session.release()
            assert last_words.is_set()
            assert await manager.get_session(session.request_id) is None
            assert await manager.get_active_sessions() == []
            assert (await manager.get_statistics())["total_sessions_completed"] == 1
            assert await session.is_active()  # as it was last seen
            with pytest.raises(ShuttingDown, match="there is nobody left to ask"):
                await session.complete()
            assert (await shutdown)["sessions_completed_during_shutdown"] == 1

    asyncio.run(asyncio.wait_for(test(), LATE))


def test_a_second_shutdown_that_comes_too_late_to_ask_returns_the_same(last_words: threading.Event) -> None:
    with SessionManager() as manager, ThreadPoolExecutor(1) as pool:
        other = shared_client(manager.address).sessions
        shutdown = pool.submit(manager.shutdown)
        until_gone(manager)
        assert not last_words.is_set()
        assert other.shutdown() == shutdown.result()


def test_two_tasks_may_shut_down_at_once() -> None:
    async def test() -> None:
        for _ in range(5):
            async with AsyncSessionManager() as manager:
                await manager.create_session("kimi", "k3")
                figures = await asyncio.gather(*(manager.shutdown(0.01) for _ in range(3)))
                assert figures[0] == figures[1] == figures[2]

    asyncio.run(asyncio.wait_for(test(), LATE))


def test_a_function_for_a_worker_process_is_refused_as_any_other(last_words: threading.Event) -> None:
    with SessionManager() as manager, ThreadPoolExecutor(1) as pool:
        shutdown = pool.submit(manager.shutdown)
        until_gone(manager)
        while manager._client.is_open:
            pass  # its channel is the last that a supervisor lets go of: until then it refuses by itself
        with pytest.raises(ShuttingDown):
            manager.execute_with_session("kimi", "k3", int, where="worker")
        assert last_words.is_set()
        shutdown.result()


def test_a_session_in_doubt_does_not_hide_the_last_words(last_words: threading.Event) -> None:
    with SessionManager() as manager, ThreadPoolExecutor(1) as pool:
        manager._doubtful.append(SessionIds("r1", "session_000000000001"))
        shutdown = pool.submit(manager._client.sessions.shutdown)
        until_gone(manager)
        assert manager.get_active_sessions() == []
        assert last_words.is_set()
        shutdown.result()


def test_during_a_shutdown_there_is_no_second_process_wide_manager(last_words: threading.Event) -> None:
    try:
        manager = compat.get_session_manager()
        with ThreadPoolExecutor(1) as pool:
            shutdown = pool.submit(manager.shutdown)
            until_gone(manager)
            while manager._client.is_open:
                pass
            assert compat.get_session_manager() is manager
            with pytest.raises(ShuttingDown):
                manager.create_session("kimi", "k3")
            assert last_words.is_set()
            shutdown.result()
    finally:
        process_wide.close_process_wide()


def test_shutdowns_under_way_are_those_of_this_supervisor_and_this_process() -> None:
    with endings.expected("a", 1):
        [over] = endings.under_way("a", 1)
        assert endings.under_way("a", 2) == endings.under_way("b", 1) == []
        assert not over.done()
        child = os.fork()
        if child == 0:
            os._exit(len(endings.under_way("a", 1)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert over.done()
    assert endings.under_way("a", 1) == []


def test_a_forked_child_does_not_wait_for_its_parents_shutdown() -> None:
    with SessionManager() as manager:
        with manager._shutting_down:
            child = os.fork()
            if child == 0:
                signal.alarm(int(LATE))
                try:
                    manager.shutdown(0.0)
                    os._exit(0)
                except BaseException:  # noqa: BLE001 - a child of a test must not go on as one
                    os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
