"""Processes that hold sessions and die: capacity is free again within a second, and nothing leaks."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import psutil
import pytest

import callpool
from callpool.manager import proxy
from callpool.manager.core.held import SessionView
from callpool.manager.holders import RESUME_GRACE
from callpool.manager.session_calls import read_view
from callpool.manager.sessions import SessionManager
from tests.acceptance.running import alive, eventually
from tests.load.crew import GONE, Crew, assert_conserved, ended, is_running, under_load

HOLDERS = 200
LIMIT = 3 * HOLDERS
FREE_WITHIN = 1.0
"""Seconds after a holder's death in which its capacity is free again. The specification's promise."""

GONE_HOLDER = "the process that held the session ended, or let go of its connection"


@pytest.fixture
def chance(seed: int) -> random.Random:
    return random.Random(seed)


def test_200_holders_are_killed_at_random_moments(chance: random.Random) -> None:
    """Some as they connect and create, some idle, some processing, some in a stream of creations and releases."""
    with under_load(limit=LIMIT, clients=HOLDERS, connect=False) as (witness, crew):
        witness.get_statistics()  # so that its own connection is counted before and after
        supervisor = psutil.Process(supervisor_pid(witness))
        descriptors = supervisor.num_fds()
        everybody = chance.sample(range(HOLDERS), HOLDERS)
        early, survivors, streams, quiet = everybody[:40], everybody[40:50], everybody[50:120], everybody[120:]

        # As they connect and create: what they hold by then, only the supervisor knows.
        crew.tell("connect", address=witness.address)
        kill(crew, early[:20], chance)
        crew.hear()
        numbers = {number: list(range(3 * number, 3 * number + chance.randint(1, 3))) for number in range(HOLDERS)}
        crew.tell(
            "hold",
            each={
                "numbers": [numbers[number] for number in range(HOLDERS)],
                "start": [chance.random() < 0.5 for _ in range(HOLDERS)],
            },
            metadata=True,
        )
        kill(crew, early[20:], chance)
        ids = dict(enumerate(crew.hear()))
        assert {number for number, held in ids.items() if held == GONE} <= set(early)
        left = await_holders(witness, numbers, [number for number in everybody if number not in early])
        assert left["total_sessions_created"] == left["total_sessions_error"] + left["active_sessions"]

        # In the middle of things. The quiet ones' sessions all end as errors, and of a stream's those that it held.
        crew.ask("stream", to=streams, each={"seed": [chance.randrange(1 << 32) for _ in streams]})
        kill(crew, chance.sample(streams + quiet, len(streams + quiet)), chance)
        after = await_holders(witness, numbers, survivors)
        errors = after["total_sessions_error"] - left["total_sessions_error"]
        determined = sum(len(numbers[number]) for number in streams + quiet)
        assert determined <= errors <= determined + 3 * len(streams)
        assert after["total_sessions_completed"] > 0, "no stream had begun"
        assert after["total_sessions_created"] == ended(after) + after["active_sessions"]
        assert after["total_sessions_timeout"] == after["total_sessions_interrupted"] == 0

        kept = {request_id for number in survivors for request_id in ids[number]}
        assert {session.request_id for session in witness.get_active_sessions()} == kept
        assert_room(witness, LIMIT - len(kept))
        crew.ask("release", to=survivors)
        crew.close()
        assert_conserved(witness.address)
        eventually(lambda: supervisor.num_fds() <= descriptors, why="descriptors of the dead are left")


def supervisor_pid(manager: SessionManager) -> int:
    return int(manager._client.status()["pid"])


def kill(crew: Crew, numbers: list[int], chance: random.Random) -> None:
    """SIGKILL to each, at moments that have nothing to do with what they are doing."""
    for number in numbers:
        time.sleep(chance.uniform(0.0, 0.003))
        os.kill(crew.pids[number], signal.SIGKILL)


def await_holders(witness: SessionManager, numbers: dict[int, list[int]], living: list[int]) -> dict[str, Any]:
    """Right after the last kill: the sessions of the living are all there is, within the promised second. The statistics."""
    active = sum(len(numbers[number]) for number in living)
    seen: dict[str, Any] = {}

    def is_free() -> bool:
        seen.update(witness.get_statistics())
        assert seen["metrics_drift"] == 0
        return bool(seen["active_sessions"] == active)

    began = time.monotonic()
    eventually(is_free, within=FREE_WITHIN, why=f"{active} sessions of the living are expected")
    print(f"free after {time.monotonic() - began:.3f} s")
    views = [session._view for session in witness.get_active_sessions()]
    assert seen["current_metadata_bytes"] == sum(view.metadata_bytes for view in views)
    return seen


def assert_room(manager: SessionManager, room: int) -> None:
    """So many sessions can be had, and no more: no slot leaked and none was given back twice."""
    sessions = [manager.create_session("load", "m") for _ in range(room)]
    with pytest.raises(callpool.CapacityExceeded, match=rf"limit {LIMIT}, active {LIMIT}\)"):
        manager.create_session("load", "m")
    for session in sessions:
        session.release()


class Raw:
    """A connection under a name of the test's choosing, as a client's threads have them."""

    def __init__(self, address: str, holder: str) -> None:
        self._wire = proxy.connect(address, holder=holder)

    def create(self, request_id: str) -> SessionView:
        call = {"request_id": request_id, "provider": "load", "model": "m", "metadata": b'{"a": 1}'}
        self._wire.send(("service", "create_session", (), call))
        kind, value = self._wire.recv()
        assert kind == "#RETURN", value
        return read_view(value)

    def close(self) -> None:
        self._wire.close()


@pytest.fixture
def witness() -> Iterator[SessionManager]:
    with SessionManager(max_concurrent_sessions=10) as manager:
        yield manager


def test_a_holder_that_closes_its_last_connection_keeps_its_sessions_for_the_grace_and_no_longer(
    witness: SessionManager,
) -> None:
    """The others' graces would have ended before the one that does: so they are seen to live on without any waiting."""
    address = witness.address
    with ExitStack() as stack, Crew(1) as stranger:

        def connect(holder: str) -> Raw:
            return stack.enter_context(closing(Raw(address, holder)))

        (resumed, two, one), spare = (connect(name) for name in ("resumed", "two", "lost")), connect("two")
        for raw, request_id in ((resumed, "req_resumed"), (two, "req_two"), (one, "req_lost")):
            assert raw.create(request_id).state == "idle"
        resumed.close()
        connect("resumed")  # from now on it is connected again: its timer is stopped
        two.close()  # one connection is left
        stranger.ask("join_holder", address=address, holder="lost")  # the name alone makes no other process a holder
        closed_at = time.monotonic()
        one.close()
        eventually(lambda: state(witness, "req_lost") == "error", why="sessions of a gone holder live on")
        kept_for = time.monotonic() - closed_at
        assert kept_for > RESUME_GRACE - 0.05, "ended before the grace was over"
        assert [state(witness, request_id) for request_id in ("req_resumed", "req_two")] == ["idle", "idle"]
        now = witness.get_statistics()
        assert (now["active_sessions"], now["current_metadata_bytes"]) == (2, 16)
        lost = witness.get_session("req_lost")
        assert lost is not None
        assert lost.error == GONE_HOLDER
        spare.close()
        stack.close()
        eventually(lambda: witness.get_statistics()["active_sessions"] == 0)
        assert_conserved(address, total_sessions_created=3, total_sessions_error=3)


def state(manager: SessionManager, request_id: str) -> str | None:
    session = manager.get_session(request_id)
    return None if session is None else session.state


def test_a_forked_child_that_keeps_the_sockets_does_not_keep_a_killed_holders_sessions() -> None:
    with under_load(limit=10, clients=2) as (witness, crew):
        (held, others) = crew.ask("hold", each={"numbers": [[0, 1], [2]]}, metadata=True, start=True)
        supervisor = psutil.Process(supervisor_pid(witness))
        (forked,) = crew.ask("fork", to=[0])
        witness.get_statistics()  # so that its own connection is counted before and after
        descriptors = supervisor.num_fds()
        child = psutil.Process(forked["pid"])
        os.kill(crew.pids[0], signal.SIGKILL)
        eventually(
            lambda: (
                {session.request_id for session in witness.get_active_sessions()} == {*others, forked["request_id"]}
            ),
            within=FREE_WITHIN,
            why="the dead holder's sessions live on, or others do not",
        )
        eventually(lambda: supervisor.num_fds() <= descriptors - 3, why="two connections and a pidfd are to be closed")
        assert alive([child]), "it ended, so nothing was tested"
        ends = [witness.get_session(request_id) for request_id in held]
        assert [session and (session.state, session.error) for session in ends] == [("error", GONE_HOLDER)] * 2
        assert witness.get_statistics()["current_metadata_bytes"] == sum(
            session._view.metadata_bytes for session in witness.get_active_sessions()
        )
        # What the child holds is its own, until it ends too.
        child.kill()
        eventually(lambda: witness.get_statistics()["active_sessions"] == 1, within=FREE_WITHIN)
        crew.ask("release", to=[1])
        eventually(lambda: not is_running(child.pid) or not alive([child]))
        assert_conserved(witness.address, total_sessions_created=4, total_sessions_error=3, total_sessions_cancelled=1)
