"""Sessions of earlier runs: those that had ended, and how; those that lived at a crash, as interrupted; and the totals of all runs."""

from __future__ import annotations

import os
import signal

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.jobs.witness import config
from tests.acceptance.running import HANG, HELLO, detached, eventually


def test_what_lived_at_a_crash_reads_as_interrupted_and_totals_go_on() -> None:
    with FakeProviderProcess() as fake:
        with detached(config(fake)) as supervisor, supervisor.connect() as client:
            done = client.submit(provider="fake", model="m", messages=HELLO)
            done.result(HANG)
            held = client.sessions.create_session("fake", "m")
            hanging = client.submit(provider="fake", model="m", messages=HELLO, fake={"delay": HANG})
            fake.wait_for(lambda calls: len(calls) == 2)
            totals = client.status()["sessions"]
            assert (totals["lifetime_total_created"], totals["lifetime_total_completed"]) == (3, 1)
            before = client.show(done.request_id)
            eventually(lambda: client.ask("check_journal")["sessions"] == 3, why="the news are not written")
            os.kill(supervisor.pid, signal.SIGKILL)
            supervisor.ended()
        with detached(config(fake)) as supervisor, supervisor.connect() as client:
            after = client.show(done.request_id)
            assert (after["state"], after["session_id"]) == ("completed", before["session_id"])
            assert after["duration"] == pytest.approx(before["duration"], abs=0.05)
            for request_id in (hanging.request_id, held.request_id):
                assert client.show(request_id)["state"] == "interrupted"
            totals = client.status()["sessions"]
            assert (totals["lifetime_total_created"], totals["lifetime_total_completed"]) == (3, 1)
            assert totals["total_sessions_created"] == 0, "of this run"
            client.submit(provider="fake", model="m", messages=HELLO).result(HANG)
            assert client.status()["sessions"]["lifetime_total_created"] == 4
            with pytest.raises(callpool.UnknownRequest):
                client.show("nobody")
