"""What breaks in from outside: Ctrl-C, cancelled tasks, forks, stopped supervisors, closed managers. No session is left over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import callpool
from callpool import (
    AsyncClient,
    AsyncSessionManager,
    CapacityExceeded,
    ConnectionLost,
    SessionManager,
    ShuttingDown,
    compat,
)
from callpool.manager import client as client_module
from callpool.manager import process_wide
from callpool.manager.embedded import shared_client
from tests.acceptance.running import HANG, eventually


@pytest.fixture
def manager() -> Iterator[SessionManager]:
    with SessionManager() as made:
        yield made


@pytest.fixture(autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    process_wide.close_process_wide()


def test_a_task_cancelled_at_any_turn_leaves_no_session(manager: SessionManager) -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    async def test() -> None:
        async with AsyncClient(manager.address) as client:
            for turns in range(40):
                tasks = [
                    asyncio.ensure_future(client.sessions.execute_with_session("kimi", "k3", work)),
                    asyncio.ensure_future(client.sessions.create_session("kimi", "k3")),
                ]
                for _ in range(turns // 4):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                if isinstance(done[1], callpool.AsyncSession):
                    await done[1].release()
            while (await client.sessions.get_statistics())["active_sessions"]:
                await asyncio.sleep(0.001)

    async def bounded() -> None:
        async with asyncio.timeout(HANG):
            await test()

    asyncio.run(bounded())


def test_ctrl_c_at_any_line_leaves_no_session(manager: SessionManager, seed: int) -> None:
    chance = random.Random(seed)
    manager.get_statistics()
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted = 0
    try:
        for round_ in range(40):
            timer = threading.Timer(chance.uniform(0.0, 0.004), os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                while True:
                    manager.execute_with_session("kimi", "k3", int, enforce_timeout=round_ % 2 == 0)
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
    finally:
        signal.signal(signal.SIGINT, old)
    assert interrupted == 40
    eventually(lambda: manager.get_statistics()["active_sessions"] == 0)
    eventually(lambda: manager.get_metrics()["abandoned_threads"] == 0)


async def _swallows() -> str:
    try:
        await asyncio.sleep(HANG)
    except asyncio.CancelledError:
        return "late"
    return "never"


async def _converts() -> None:
    try:
        await asyncio.sleep(HANG)
    except asyncio.CancelledError:
        raise ValueError("another") from None


async def _is_stubborn() -> None:
    for _ in range(8):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.25)


def _begins_late() -> Any:
    time.sleep(0.2)
    return _swallows()


def test_a_coroutine_past_its_timeout_is_a_timeout_whatever_it_makes_of_its_cancel(manager: SessionManager) -> None:
    works = (_swallows, _converts, _is_stubborn, _begins_late)
    for work in works:
        with pytest.raises(TimeoutError, match=r"did not end within 0\.1 s"):
            manager.execute_with_session("kimi", "k3", work, timeout_seconds=0.1)

    async def test() -> None:
        async with AsyncClient(manager.address) as client:
            for work in works:
                with pytest.raises(TimeoutError, match=r"did not end within 0\.1 s"):
                    await client.sessions.execute_with_session("kimi", "k3", work, timeout_seconds=0.1)

    asyncio.run(test())
    statistics = manager.get_statistics()
    assert (statistics["total_sessions_timeout"], statistics["total_sessions_created"]) == (8, 8)
    eventually(lambda: manager.get_metrics()["abandoned_threads"] == 0)


def test_without_enforcement_the_books_do_not_enforce_either() -> None:
    with callpool.start({"supervisor": {"cleanup_interval": 0.05}}) as client:
        sessions = client.sessions
        slow = sessions.execute_sync("kimi", "k3", time.sleep, 0.4, timeout_seconds=0.05, enforce_timeout=False)
        assert slow.completed
        assert sessions.get_statistics()["total_sessions_completed"] == 1
        late = sessions.create_session("kimi", "k3", timeout_seconds=0.05)
        eventually(lambda: late.state == "timeout", why="the clean-up works by itself")


def test_a_failed_call_lets_go_of_its_arguments(manager: SessionManager) -> None:
    class Large:
        pass

    def fails(_argument: Large) -> None:
        raise ValueError("no")

    gc.collect()
    gc.disable()
    try:
        argument = Large()
        seen = weakref.ref(argument)
        with contextlib.suppress(ValueError):
            manager.execute_with_session("kimi", "k3", fails, argument)
        del argument
        eventually(lambda: seen() is None, within=2.0, why="only the collector would find it")
    finally:
        gc.enable()


def test_a_forked_child_works_over_its_parents_supervisor_and_does_not_end_it() -> None:
    manager = compat.get_session_manager(max_concurrent_sessions=2)
    held = [manager.create_session("kimi", "k3") for _ in range(2)]

    def child() -> str:
        try:
            compat.get_session_manager().create_session("kimi", "k3")
        except CapacityExceeded as error:
            told = f"limit {error.limit}"
        else:
            told = "a limit of its own"
        worked = manager.execute_sync("kimi", "k3", os.getpid, where="worker")
        told += f", {type(worked.exception).__name__}"
        process_wide.close_process_wide()
        manager.close()
        return told

    assert _in_child(child) == "limit 2, CapacityExceeded"
    assert [session.state for session in held] == ["idle", "idle"]


def test_a_forked_child_that_leaves_the_block_of_its_parents_manager_does_not_end_its_supervisor(
    manager: SessionManager,
) -> None:
    session = manager.create_session("kimi", "k3")

    def child() -> str:
        manager.close()
        return "closed"

    assert _in_child(child) == "closed"
    statistics = manager.get_statistics()
    assert (session.state, statistics["active_sessions"], statistics["shutdown_requested"]) == ("idle", 1, False)


def test_a_fork_while_another_thread_connects_does_not_hang() -> None:
    with process_wide._lock:
        told = _in_child(lambda: str(compat.get_session_manager().get_statistics()["active_sessions"]))
    assert told == "0"


def _in_child(work: Any) -> str:
    """What `work` returns in a forked child, which has to end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, work().encode())
        except BaseException as error:  # noqa: BLE001 - the parent shows it
            os.write(write, repr(error).encode())
        finally:
            process_wide.close_process_wide()
            os._exit(0)
    os.close(write)
    try:
        eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, why="the child hangs")
        return os.read(read, 1_000).decode()
    finally:
        os.close(read)
        if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_each_run_of_a_loop_closes_its_own_connection() -> None:
    address = compat.get_session_manager().address

    async def use() -> None:
        await compat.get_async_session_manager().create_session("kimi", "k3")

    asyncio.run(use())
    before = psutil.Process().num_fds()
    for _ in range(10):
        asyncio.run(use())
    assert psutil.Process().num_fds() == before
    with callpool.connect(address) as client:
        eventually(lambda: client.sessions.get_statistics()["active_sessions"] == 0)


def test_a_closed_manager_says_so_and_starts_nothing() -> None:
    async def test() -> None:
        async with AsyncSessionManager() as own:
            await own.get_statistics()
        with pytest.raises(ConnectionLost, match="the session manager is closed"):
            await own.get_statistics()
        with SessionManager() as sync:
            async with AsyncClient(sync.address) as client:
                await client.sessions.create_session("kimi", "k3")
                await client.sessions.close()
                assert sync.get_statistics()["active_sessions"] == 0
                with pytest.raises(ConnectionLost, match="the session manager is closed"):
                    await client.sessions.create_session("kimi", "k3")
                assert (await client.status())["state"] == "running"

    asyncio.run(test())
    with SessionManager() as closed:
        closed.get_statistics()
    with pytest.raises(ConnectionLost, match="the client is closed"):
        closed.get_statistics()


def test_a_function_is_not_waited_for_longer_than_a_supervisor_can_need(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ANSWER_DEADLINE", 0.2)
    supervisor = psutil.Process(manager._client.supervisor_pid)
    supervisor.suspend()
    try:
        with pytest.raises(ConnectionLost, match=r"did not end req_\w+ within 0\.4 s: is it stopped"):
            manager.execute_with_session("kimi", "k3", os.getpid, where="worker", timeout_seconds=0.1)
    finally:
        supervisor.resume()
    eventually(lambda: manager.get_statistics()["active_sessions"] == 0)


def test_a_session_whose_creation_was_never_answered_is_ended_later(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.get_statistics()
    monkeypatch.setattr(callpool.manager.lockstep, "ANSWER_DEADLINE", 0.2)
    manager._lockstep._drop_idle()
    manager.get_statistics()
    supervisor = psutil.Process(manager._client.supervisor_pid)
    supervisor.suspend()
    try:
        with pytest.raises(ConnectionLost, match="did not answer 'create_session'"):
            manager.create_session("kimi", "k3")
    finally:
        supervisor.resume()
    eventually(lambda: manager.get_statistics()["total_sessions_cancelled"] == 1)
    assert manager.get_statistics()["active_sessions"] == 0


def test_whoever_shut_it_down_every_manager_of_the_process_says_so() -> None:
    first = compat.get_session_manager()
    session = first.create_session("kimi", "k3")
    session.start()
    other = shared_client(first.address).sessions
    assert first.shutdown(0.0)["final_active_sessions"] == 1
    assert other.shutdown() == first.shutdown()
    assert (session.state, other.get_statistics()["shutdown_requested"]) == ("processing", True)
    with pytest.raises(ShuttingDown, match="has been shut down: there is nobody left to ask"):
        session.complete()

    async def test() -> None:
        with pytest.raises(ShuttingDown, match="Session manager is shutting down, cannot create new sessions"):
            await compat.get_async_session_manager().create_session("kimi", "k3")

    asyncio.run(test())
    assert compat.get_session_manager() is first
    shared_client_of_the_dead = other._client
    shared_client_of_the_dead.close()
