"""Handles: the supervisor's truth from any process, illegal moves, and what ends when a process or a connection does."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

import callpool
from callpool import DuplicateRequest, IllegalMove, SessionCreationFailed, SessionManager, UnknownRequest
from callpool.manager.embedded import shared_client
from tests.acceptance.running import HANG, eventually
from tests.sessions import programs


@pytest.fixture
def manager() -> Iterator[SessionManager]:
    with SessionManager() as made:
        yield made


class Program:
    """A program of `programs` that runs beside the test."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-Ic", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(HANG)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def test_a_handle_of_another_process_sees_and_moves_the_same_session(manager: SessionManager) -> None:
    with Program(programs.HOLDER, manager.address) as holder:
        assert holder.hear() == "held"
        ours = manager.get_session("held")
        assert ours is not None
        assert (ours.state, ours.metadata, ours.provider, ours.is_active()) == (
            "processing",
            {"where": "another process"},
            "kimi",
            True,
        )
        assert [each.request_id for each in manager.get_active_sessions()] == ["held"]
        ours.complete({"by": "us"})
        holder.tell()
        assert holder.hear() == "completed {'by': 'us'} None"
        with pytest.raises(IllegalMove, match="is completed: it cannot fail"):
            ours.fail("late")


def test_a_handle_travels_by_pickle(manager: SessionManager) -> None:
    session = manager.create_session("kimi", "k3", job=7)
    session.start()
    with Program(programs.UNPICKLES) as program:
        program.tell(pickle.dumps(session).hex())
        assert program.hear() == "processing {'job': 7}"
        assert program.hear() == "completed"
    assert (session.state, session.result) == ("completed", {"by": "another process"})
    again = pickle.loads(pickle.dumps(session))  # noqa: S301 - our own
    assert (again.state, again.result, again.session_id) == ("completed", {"by": "another process"}, session.session_id)
    shared_client(manager.address).close()


def test_what_a_process_held_ends_with_it(manager: SessionManager) -> None:
    with Program(programs.HOLDER, manager.address) as holder:
        assert holder.hear() == "held"
        session = manager.get_session("held")
        assert session is not None
        holder.process.kill()
        eventually(lambda: not session.is_active(), within=1.0, why="the specification gives it a second")
        assert (session.state, "process that held" in (session.error or "")) == ("error", True)
        assert manager.get_statistics()["current_metadata_bytes"] == 0


def test_what_a_client_held_ends_when_it_is_closed(manager: SessionManager) -> None:
    with callpool.connect(manager.address) as client:
        client.sessions.create_session("kimi", "k3", "theirs")
        manager.create_session("kimi", "k3", "ours")
        assert manager.get_statistics()["active_sessions"] == 2
    assert [each.request_id for each in manager.get_active_sessions()] == ["ours"]


def test_a_forked_child_holds_sessions_of_its_own(manager: SessionManager) -> None:
    manager.create_session("kimi", "k3", "parents")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            made = manager.create_session("kimi", "k3", "childs")
            os.write(write, made.state.encode())
        finally:
            os._exit(0)
    try:
        assert os.read(read, 100) == b"idle"
        os.waitpid(child, 0)
        eventually(lambda: [each.request_id for each in manager.get_active_sessions()] == ["parents"], within=1.0)
    finally:
        os.close(read)
        os.close(write)


def test_a_handle_tells_what_there_is_to_know(manager: SessionManager) -> None:
    session = manager.create_session("kimi", "k3", timeout_seconds=9, nested={"a": [1, None]})
    assert (session.state, session.timeout_seconds, session.metadata) == ("idle", 9.0, {"nested": {"a": [1, None]}})
    assert (session.started_at, session.completed_at, session.result, session.error) == (None, None, None, None)
    assert session.request_id.startswith("req_")
    assert len(session.session_id) >= len("session_") + 12
    with pytest.raises(IllegalMove, match="is idle: it cannot complete") as error:
        session.complete()
    assert (error.value.state, error.value.move, error.value.hint) == ("idle", "complete", "start it first")
    session.start()
    started, completed = session.started_at, session.completed_at
    assert started is not None
    assert (started >= session.created_at, completed, session.is_timed_out()) == (True, None, False)
    session.fail(ValueError("no"))
    assert (session.state, session.error, session.is_active()) == ("error", "ValueError: no", False)
    assert session.completed_at is not None
    duration = session.get_duration()
    manager.release_session(session.request_id)
    assert (session.state, session.get_duration()) == ("error", duration), "a final state never changes"
    assert manager.get_session(session.request_id) is None
    manager.release_session(session.request_id)
    manager.release_session("nobody")


def test_a_with_block_starts_ends_and_releases(manager: SessionManager) -> None:
    with manager.create_session("kimi", "k3", "good") as good:
        assert good.state == "processing"
    with pytest.raises(ValueError, match="no"), manager.create_session("kimi", "k3", "bad") as bad:
        raise ValueError("no")
    assert (good.state, bad.state, bad.error) == ("completed", "error", "ValueError: no")
    assert [manager.get_session(name) for name in ("good", "bad")] == [None, None]


def test_what_is_late_is_listed_cleaned_up_and_forgotten(manager: SessionManager) -> None:
    late = manager.create_session("kimi", "k3", timeout_seconds=0.01)
    manager.create_session("kimi", "k3", "young")
    eventually(late.is_timed_out)
    assert [each.request_id for each in manager.get_timed_out_sessions()] == [late.request_id]
    assert manager.cleanup_timed_out_sessions() == 1
    assert (late.state, manager.get_session(late.request_id), manager.cleanup_timed_out_sessions()) == (
        "timeout",
        None,
        0,
    )
    assert manager.get_statistics()["total_sessions_timeout"] == 1


@pytest.mark.parametrize(
    ("arguments", "metadata", "param", "message"),
    [
        ((1, "k3"), {}, "provider", "provider must be a string, got int"),
        (("kimi", None), {}, "model", "model must be a string, got NoneType"),
        (("kimi", "k3", "a b"), {}, "request_id", "request_id must match"),
        (("kimi", "k3", None, -1), {}, "timeout_seconds", "timeout_seconds must be above 0"),
        (("kimi", "k3", None, "5"), {}, "timeout_seconds", "timeout_seconds must be a number"),
        (("kimi", "k3"), {"x": {(1, 2): 3}}, "metadata", "metadata cannot be written as JSON: keys must be"),
        (("ki\ud800mi", "k3"), {}, "provider", "half of a surrogate pair"),
    ],
)
def test_bad_input_is_told_counted_and_not_kept(
    base_folder: Path, arguments: tuple[object, ...], metadata: dict[str, object], param: str, message: str
) -> None:
    with SessionManager() as manager:
        with pytest.raises(SessionCreationFailed, match=f"^Failed to create session: .*{message}") as error:
            manager.create_session(*arguments, **metadata)  # type: ignore[arg-type]
        assert (error.value.param, isinstance(error.value, RuntimeError)) == (param, True)
        statistics = manager.get_statistics()
        assert (statistics["sessions_rejected_creation_error"], statistics["total_sessions"]) == (1, 0)


def test_a_cycle_is_refused_and_an_active_id_too(manager: SessionManager) -> None:
    cycle: dict[str, object] = {}
    cycle["self"] = cycle
    with pytest.raises(SessionCreationFailed, match="Circular reference"):
        manager.create_session("kimi", "k3", cycle=cycle)
    manager.create_session("kimi", "k3", "r1")
    with pytest.raises(DuplicateRequest):
        manager.create_session("kimi", "k3", "r1")
    assert manager.get_statistics()["sessions_rejected_creation_error"] == 2


def test_results_are_kept_as_json_within_bounds(manager: SessionManager) -> None:
    session = manager.create_session("kimi", "k3")
    session.start()
    with pytest.raises(callpool.BadInput, match=r"result is \d+ bytes as JSON, the limit is 65536") as error:
        session.complete("x" * 70_000)
    assert error.value.limit == 65_536
    with pytest.raises(callpool.NotSerializable, match="result cannot be written as JSON"):
        session.complete({(1, 2): 3})
    assert session.state == "processing", "a refused move changes nothing"
    session.complete({"é": "😀", "odd": {1}})
    assert session.result == {"é": "😀", "odd": "{1}"}


def test_a_session_that_nobody_knows_is_named(manager: SessionManager) -> None:
    with callpool.connect(manager.address) as client:
        session = client.sessions.create_session("kimi", "k3")
        stranger = pickle.dumps(session).replace(session.request_id.encode(), b"x" * len(session.request_id))
        with pytest.raises(UnknownRequest, match="no session has the request id"):
            pickle.loads(stranger)  # noqa: S301 - our own
    shared_client(manager.address).close()


def test_an_answer_that_cannot_be_sent_costs_nobody_elses(manager: SessionManager) -> None:
    manager.create_session("kimi", "k3", "large", number=2**64, negative=-(2**63) - 1, most=2**63 - 1)
    with callpool.connect(manager.address) as client:
        events = client.lifecycle.get_request_events("large")
        assert events[0]["metadata"] == {"number": str(2**64), "negative": str(-(2**63) - 1), "most": 2**63 - 1}
    assert manager.get_active_sessions()[0].describe()["metadata"]["number"] == str(2**64)


def test_a_list_of_any_size_comes_whole() -> None:
    with SessionManager(max_concurrent_sessions=1_200, max_metadata_size=60_000) as manager:
        for number in range(1_100):
            manager.create_session("kimi", "k3", f"r{number}", text="x" * (50_000 if number < 100 else 10))
        listed = manager.get_active_sessions()
        assert [session.request_id for session in listed] == [f"r{number}" for number in range(1_100)]
        assert len(listed[50].metadata["text"]) == 50_000
