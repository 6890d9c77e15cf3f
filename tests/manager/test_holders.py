"""Holders: one for a process and a name, gone with the process at once, and a moment after the last connection."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable

from callpool.manager.holders import Holder, Holders
from tests.acceptance.running import HANG


class Wire:
    """A connection, reduced to its end."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def abort(self, why: str) -> None:
        self.ended.append(why)


class Watched:
    """Holders, and what is heard of them."""

    def __init__(self, grace: float, *, holding: bool = True) -> None:
        self.gone: list[str] = []
        self.holders = Holders(self.gone.append, holds=lambda _holder: holding, grace=grace)

    async def until_gone(self) -> None:
        while not self.gone:
            await asyncio.sleep(0.001)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(HANG):
            await test()

    asyncio.run(bounded())


def test_connections_of_one_process_and_name_are_one_holder_and_others_are_not() -> None:
    async def test() -> None:
        watched = Watched(HANG)
        me, wires = os.getpid(), [Wire() for _ in range(4)]
        first = watched.holders.join(me, "a", wires[0])
        assert watched.holders.join(me, "a", wires[1]) is first
        second, third = watched.holders.join(me, "b", wires[2]), watched.holders.join(os.getppid(), "a", wires[3])
        assert len({first.holder_id, second.holder_id, third.holder_id}) == len(watched.holders) == 3
        assert first.holder_id == f"pid_{me}_1"
        watched.holders.close()

    run(test)


def test_who_comes_back_within_the_grace_is_the_same_and_who_does_not_is_gone_once() -> None:
    async def test() -> None:
        watched = Watched(0.05)
        wire, again = Wire(), Wire()
        holder = watched.holders.join(os.getpid(), "a", wire)
        watched.holders.leave(holder, wire)
        assert watched.holders.join(os.getpid(), "a", again) is holder
        await asyncio.sleep(0.1)  # the grace that was broken off has passed
        assert watched.gone == []
        watched.holders.leave(holder, again)
        await watched.until_gone()
        assert (watched.gone, len(watched.holders)) == ([holder.holder_id], 0)
        later = watched.holders.join(os.getpid(), "a", wire)
        assert later.holder_id != holder.holder_id
        watched.holders.leave(holder, again)  # a late word of the old one
        assert len(watched.holders) == 1
        watched.holders.close()

    run(test)


def test_who_holds_nothing_is_not_waited_for() -> None:
    async def test() -> None:
        watched, wire = Watched(HANG, holding=False), Wire()
        holder = watched.holders.join(os.getpid(), "a", wire)
        watched.holders.leave(holder, wire)
        assert (watched.gone, len(watched.holders)) == ([holder.holder_id], 0)

    run(test)


def test_a_process_that_ends_is_gone_at_once_and_its_connections_with_it() -> None:
    async def test() -> None:
        for connected in (True, False):
            process = subprocess.Popen([sys.executable, "-Ic", "input()"], stdin=subprocess.PIPE)  # noqa: ASYNC220 - a moment
            try:
                watched, wire = Watched(HANG), Wire()
                holder: Holder = watched.holders.join(process.pid, "a", wire)
                if not connected:
                    watched.holders.leave(holder, wire)
            finally:
                process.kill()
            await watched.until_gone()
            assert watched.gone == [holder.holder_id]
            assert wire.ended == (["its process has ended"] if connected else [])
            process.communicate()

    run(test)


def test_without_a_process_id_the_name_alone_tells_holders_apart() -> None:
    async def test() -> None:
        watched = Watched(0.0)
        one, two = watched.holders.join(0, "a", Wire()), watched.holders.join(0, "b", Wire())
        assert (one.pidfd, two.pidfd, one is two) == (None, None, False)
        assert one.holder_id.startswith("pid_unknown_")
        watched.holders.close()

    run(test)
