"""The session manager of an event loop: the same verbs, awaitable, and what cancelling a task does."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from callpool import (
    AsyncClient,
    AsyncSessionManager,
    CapacityExceeded,
    IllegalMove,
    MetadataTooLarge,
    SessionCreationFailed,
    SessionManager,
    ShuttingDown,
)
from tests.acceptance.running import HANG

COUNTS = ("completed", "error", "timeout", "cancelled", "interrupted")


def run(test: Callable[[AsyncSessionManager], Awaitable[None]], **limits: Any) -> None:
    """Run a test with a manager of its own."""

    async def whole() -> None:
        async with asyncio.timeout(HANG), AsyncSessionManager(**limits) as manager:
            await test(manager)

    uvloop.run(whole())


async def ended(manager: AsyncSessionManager) -> dict[str, int]:
    statistics = await manager.get_statistics()
    assert (statistics["active_sessions"], statistics["current_metadata_bytes"], statistics["metrics_drift"]) == (
        0,
        0,
        0,
    )
    return {name: statistics[f"total_sessions_{name}"] for name in COUNTS if statistics[f"total_sessions_{name}"]}


def test_every_verb_of_a_handle() -> None:
    async def test(manager: AsyncSessionManager) -> None:
        session = await manager.create_session("kimi", "k3", "r1", timeout_seconds=9, user="ann")
        assert (session.state, await session.is_active(), session.metadata) == ("idle", True, {"user": "ann"})
        with pytest.raises(IllegalMove):
            await session.complete()
        await session.start()
        assert (session.state, await session.is_timed_out(), await session.get_duration() >= 0) == (
            "processing",
            False,
            True,
        )
        other = await manager.get_session("r1")
        assert other is not None
        await other.complete({"a": 1})
        assert session.state == "processing", "what was last seen"
        await session.refresh()
        assert (session.state, session.result, session.error) == ("completed", {"a": 1}, None)
        await manager.release_session("r1")
        assert await manager.get_session("r1") is None
        failed = await manager.create_session("kimi", "k3")
        await failed.fail("no")
        late = await manager.create_session("kimi", "k3")
        await late.timeout()
        given_up = await manager.create_session("kimi", "k3")
        await given_up.release()
        assert (failed.error, late.state, given_up.state) == ("no", "timeout", "cancelled")
        async with await manager.create_session("kimi", "k3") as managed:
            assert managed.state == "processing"
        with pytest.raises(ValueError, match="no"):
            async with await manager.create_session("kimi", "k3"):
                raise ValueError("no")
        assert await manager.get_active_sessions() == await manager.get_timed_out_sessions() == []
        assert await manager.cleanup_timed_out_sessions() == 0
        assert await ended(manager) == {"completed": 2, "error": 2, "timeout": 1, "cancelled": 1}
        await manager.reset_metrics()
        assert (await manager.get_metrics())["total_sessions_created"] == 0

    run(test)


def test_refusals_are_those_of_the_sync_manager() -> None:
    async def test(manager: AsyncSessionManager) -> None:
        with pytest.raises(MetadataTooLarge, match=r"Metadata size \(30 bytes\) exceeds limit \(20 bytes\)"):
            await manager.create_session("kimi", "k3", x="y" * 21)
        with pytest.raises(SessionCreationFailed, match="Failed to create session: request_id"):
            await manager.create_session("kimi", "k3", "a b")
        await manager.create_session("kimi", "k3")
        with pytest.raises(CapacityExceeded, match=r"\(limit 1, active 1\)"):
            await manager.create_session("kimi", "k3")
        statistics = await manager.get_statistics()
        names = ("capacity", "metadata_size", "creation_error")
        assert [statistics[f"sessions_rejected_{name}"] for name in names] == [1, 1, 1]
        figures = await manager.shutdown(0.1)
        assert (figures["final_active_sessions"], figures["timeout_reached"]) == (1, True)
        with pytest.raises(ShuttingDown, match="Session manager is shutting down, cannot create new sessions"):
            await manager.create_session("kimi", "k3")
        assert await manager.shutdown() == figures
        assert (await manager.get_statistics())["shutdown_requested"]

    run(test, max_concurrent_sessions=1, max_metadata_size=20)


def test_work_in_a_session_ends_it_on_every_path() -> None:
    async def test(manager: AsyncSessionManager) -> None:
        seen: list[str] = []

        async def work(seconds: float, *, result: Any = None) -> Any:
            seen.append("begun")
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            return result

        answer = await manager.execute_with_session("kimi", "k3", work, 0, result={"content": 1}, request_id="r1")
        assert answer["metadata"]["session"]["request_id"] == "r1"
        many = await asyncio.gather(
            *(manager.execute_with_session("kimi", "k3", work, 0.001, result=number) for number in range(100))
        )
        assert many == list(range(100))
        with pytest.raises(TimeoutError):
            await manager.execute_with_session("kimi", "k3", work, HANG, timeout_seconds=0.05)
        assert seen[-1] == "cancelled"
        seen.clear()
        task = asyncio.ensure_future(manager.execute_with_session("kimi", "k3", work, HANG))
        while not seen:  # the session is active before the answer is here and the work begins
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["begun", "cancelled"]
        assert await manager.execute_with_session("kimi", "k3", threading.get_ident) != threading.get_ident()
        assert (
            await manager.execute_with_session("kimi", "k3", lambda: work(0, result="awaited here")) == "awaited here"
        )
        failed = await manager.execute_sync("kimi", "k3", int, "no number")
        assert (isinstance(failed.exception, ValueError), failed.completed) == (True, False)
        assert await ended(manager) == {"completed": 103, "timeout": 1, "cancelled": 1, "error": 1}
        assert (await manager.get_statistics())["peak_concurrent_sessions"] == 100

    run(test)


def test_a_plain_function_past_its_timeout_is_counted_until_it_ends() -> None:
    async def test(manager: AsyncSessionManager) -> None:
        release = threading.Event()
        with pytest.raises(TimeoutError):
            await manager.execute_with_session("kimi", "k3", release.wait, HANG, timeout_seconds=0.05)
        while (await manager.get_metrics())["abandoned_threads"] != 1:
            await asyncio.sleep(0)
        release.set()
        while (await manager.get_metrics())["abandoned_threads"] != 0:
            await asyncio.sleep(0)

    run(test)


def test_a_function_in_a_worker_process_is_killed_with_its_task() -> None:
    async def test(manager: AsyncSessionManager) -> None:
        assert await manager.execute_with_session("kimi", "k3", os.getpid, where="worker") != os.getpid()

        def spin() -> None:
            while True:
                pass

        task = asyncio.ensure_future(manager.execute_with_session("kimi", "k3", spin, where="worker"))
        while [each.state for each in await manager.get_active_sessions()] != ["processing"]:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while (await manager.get_statistics())["active_sessions"]:
            await asyncio.sleep(0)
        assert await ended(manager) == {"completed": 1, "cancelled": 1}

    run(test)


def test_it_is_the_same_bookkeeping_as_that_of_the_sync_manager() -> None:
    with SessionManager() as sync:

        async def test() -> None:
            async with await AsyncClient.connect(sync.address) as client:
                await client.sessions.create_session("kimi", "k3", "r1")
                ours = sync.get_session("r1")
                assert ours is not None
                ours.start()
                theirs = await client.sessions.get_session("r1")
                assert theirs is not None
                assert theirs.state == "processing"
                assert await client.sessions.get_statistics() == sync.get_statistics()

        asyncio.run(test())
        assert sync.get_active_sessions() == [], "closing the client let go of what it held"
