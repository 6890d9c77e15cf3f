"""`callpool sessions`: rows in their order, totals, metadata without credentials, names that are hostile, many rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import pytest

import callpool as library
from callpool.tools.cli import session_tables
from tests import ground

Run = Callable[..., CompletedProcess[str]]
ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FIELDS = {
    "session_id", "request_id", "provider", "model", "state", "kind", "holder", "created_at", "started_at",
    "completed_at", "timeout_seconds", "duration", "timed_out", "released", "metadata_bytes", "fault", "metadata",
}  # fmt: skip
KEY = "sk-" + "a1" * 20
EVIL = "m\x1b[31m\x9b\u202e\n月"
STATISTICS: dict[str, Any] = {
    **{f"total_sessions_{outcome}": 11 for outcome in ("completed", "error", "timeout", "cancelled", "interrupted")},
    **{f"sessions_rejected_{reason}": 3 for reason in ("capacity", "metadata_size", "creation_error")},
    "active_sessions": 1000,
    "max_concurrent_sessions": 2000,
    "peak_concurrent_sessions": 1500,
    "total_sessions_created": 1055,
}


@pytest.fixture
def client(supervisor: dict[str, str]) -> Iterator[library.Client]:
    """A client of the shared supervisor; what it holds ends with it."""
    with library.connect(f"{supervisor['CALLPOOL_RUNTIME_DIR']}/callpool.sock") as connected:
        yield connected


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_json_has_every_field_by_name_and_no_credential(callpool: Run, client: library.Client) -> None:
    manager = client.sessions
    first = manager.create_session("fake", "echo", api_key=KEY, note=f"with {KEY} in it", job=7)
    first.start()
    second = manager.create_session("other", EVIL)
    done = callpool("sessions", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert KEY not in done.stdout
    assert ESCAPE.search(done.stdout.rstrip("\n")) is None
    answer = json.loads(done.stdout)
    assert answer.keys() == {"sessions", "statistics"}
    assert [row["request_id"] for row in answer["sessions"]] == [first.request_id, second.request_id]
    assert all(row.keys() == FIELDS for row in answer["sessions"])
    one, two = answer["sessions"]
    assert one["metadata"] == {"api_key": "[redacted]", "note": "with [redacted] in it", "job": 7}
    assert (one["state"], one["kind"], two["state"], two["model"]) == ("processing", "held", "idle", EVIL)
    assert one["metadata_bytes"] > len(KEY)
    assert one["holder"] == two["holder"]
    statistics = answer["statistics"]
    assert statistics["active_sessions"] == 2
    assert statistics["max_concurrent_sessions"] == 200
    assert manager.get_statistics().keys() | {"max_concurrent_sessions"} == statistics.keys()


def test_people_get_a_table_with_the_newest_last_and_the_totals(asking: Run, client: library.Client) -> None:
    assert asking("sessions").stdout.startswith("no active session\n")
    first = client.sessions.create_session("fake", "echo", request_id="the-first")
    second = client.sessions.create_session("fake", EVIL, request_id="the-second")
    handle = client.submit(provider="fake", model="slow", messages=[{"role": "user", "content": "x"}])
    done = asking("sessions")
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.index(first.request_id) < shown.index(second.request_id) < shown.index(handle.request_id[:12])
    assert "fake/m\\x1b[31m" in "".join(shown.split())
    assert "active    3 of 200," in shown
    assert "rejected 0 capacity" in " ".join(shown.split())
    handle.cancel()
    assert handle.exception(20.0) is not None


def test_only_those_past_their_timeout_are_listed(asking: Run, client: library.Client) -> None:
    late = client.sessions.create_session("fake", "echo", request_id="late-one", timeout_seconds=0.01)
    client.sessions.create_session("fake", "echo", request_id="in-time")
    ground.wait_for("the timeout", late.is_timed_out)
    rows = json.loads(asking("sessions", "--timed-out", "--json").stdout)["sessions"]
    assert [(row["request_id"], row["timed_out"]) for row in rows] == [("late-one", True)]
    shown = asking("sessions", "--timed-out").stdout
    assert "idle, late" in shown
    assert "in-time" not in shown
    assert "active    2 of 200," in shown


def test_metadata_that_is_no_json_is_told_and_not_decoded(asking: Run, client: library.Client) -> None:
    """Any client may send bytes of its own making."""
    client.ask("create_session", request_id="raw", provider="fake", model="echo", metadata=b'{"token": "abc')
    (row,) = json.loads(asking("sessions", "--json").stdout)["sessions"]
    assert row["metadata"] == {"unreadable": "14 bytes"}
    client.ask("move_session", request_id="raw", release=True)


def test_a_thousand_rows_of_any_names_keep_to_80_columns_and_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "request_id": f"req-{number:04}",
            "provider": "p" * (number % 70),
            "model": EVIL,
            "state": "processing",
            "created_at": 4e9,  # the clock was set back since
            "timeout_seconds": 86_400.0,
            "timed_out": number % 2 == 0,
            "holder": f"holder_{number}",
            "metadata_bytes": 10_240,
        }
        for number in range(1000)
    ]
    session_tables.show_sessions(rows, STATISTICS)
    shown = capsys.readouterr().out
    assert ESCAPE.search(shown) is None
    assert max(map(len, shown.splitlines())) <= 80
    assert re.findall(r"^req-(\d{4})", shown, re.MULTILINE) == [f"{number:04}" for number in range(1000)]
    assert shown.count("processing, late") == 500
    assert len(re.findall(r" 0 s +86400 s ", shown)) == 1000
    assert "1000 of 2000, 1500 at the peak, 1055 created" in shown
