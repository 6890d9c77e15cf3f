"""A disk that takes no more: nothing is acknowledged, live calls go on, and it recovers by itself.

The supervisor's limit of file sizes is lowered while it runs: a write beyond it fails, as on a full disk.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.jobs.witness import all_ended, ask, config, judge
from tests.acceptance.running import HANG, HELLO, Running, detached, eventually


@contextlib.contextmanager
def full(supervisor: Running) -> Iterator[None]:
    """No file of it may grow."""
    before = resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE)
    home = Path(os.environ["CALLPOOL_HOME"])
    largest = min(each.stat().st_size for each in home.glob("journal.db-wal"))
    resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, (largest, before[1]))
    yield
    resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, before)


def journal_fault(client: callpool.Client) -> str | None:
    fault: str | None = client.ask("check_journal")["journal"]["fault"]
    return fault


def test_no_job_is_acknowledged_while_nothing_can_be_written_and_none_is_lost() -> None:
    with FakeProviderProcess() as fake, detached(config(fake)) as supervisor, supervisor.connect() as client:
        running = [ask(client, f"job-{number}", fake={"delay": 0.5}) for number in range(3)]
        waiting = [ask(client, f"job-{number}", fake={"delay": 0.5}) for number in range(3, 9)]
        with full(supervisor):
            number, refused = 10, 0
            while refused < 20:
                try:
                    running.append(ask(client, f"job-{number}"))
                except callpool.JournalUnavailable:
                    refused += 1
                number += 1
                assert number < 2_000, "the disk never fills"
            assert journal_fault(client)
            live = client.submit(provider="fake", model="m", messages=HELLO)
            assert live.result(HANG)["content"] == "echo: hello", "live calls go on"
            fake.wait_for(lambda calls: sum(call.last_message.startswith("job-") for call in calls) >= 3)
            assert client.status()["state"] == "running"
        eventually(lambda: journal_fault(client) is None, within=2.0, why="it does not recover by itself")
        running.append(ask(client, "job-5001"))
        assert [handle.exception(HANG) for handle in running + waiting] == [None] * len(running + waiting)
        states = all_ended(supervisor)
        assert states.keys() == {handle.request_id for handle in running + waiting}, "who was refused has left nothing"
        log = [call for call in fake.log() if call.last_message.startswith("job-")]
        judge(states, list(states), log)
        assert client.ask("check_journal")["problems"] == []


def test_a_start_whose_journal_cannot_be_written_says_so() -> None:
    with FakeProviderProcess() as fake:
        with detached(config(fake)) as supervisor, supervisor.connect() as client:
            ask(client, "job-1").result(HANG)
            client.drain(wait=HANG)
            supervisor.ended()
        journal = Path(os.environ["CALLPOOL_HOME"]) / "journal.db"
        whole = journal.read_bytes()
        journal.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(callpool.CallpoolError, match="damaged"):
            detached(config(fake))
        assert journal.read_bytes() == whole[: len(whole) // 2], "it is left as it is"
        journal.write_bytes(whole)
        with detached(config(fake)) as supervisor, supervisor.connect() as client:
            assert client.attach("job-1").result(HANG)["content"] == "echo: job-1"
