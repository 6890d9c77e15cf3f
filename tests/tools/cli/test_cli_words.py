"""What the command line prints, without a supervisor: escapes, figures, tables, errors and their exit statuses."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from typing import Any

import psutil
import pytest

from callpool import errors
from callpool.manager.exits import Exit
from callpool.tools.cli import failures, processes, tables, terminal
from callpool.tools.cli.figures import bar, byte_size, counted, span

ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CALLPOOL_ADDRESS", raising=False)
    monkeypatch.delenv("CALLPOOL_DEBUG", raising=False)


# What came from outside is shown, never obeyed.


def test_control_characters_are_shown_as_escapes() -> None:
    outside = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2028, 0xD800, 0xE0041]))
    shown = terminal.safe(outside)
    assert ESCAPE.search(shown) is None
    assert shown.encode()
    assert "\t\n" in shown
    assert "\\x1b" in shown
    assert "\\u202e" in shown
    assert terminal.safe("月 é 👍🏽 x") == "月 é 👍🏽 x"


def test_json_has_the_same_characters_as_its_own_escapes() -> None:
    value = {"text": "a\x1b[31m\x9b\u202e\ud800\U000e0041月"}
    line = terminal.as_json(value)
    assert json.loads(line) == value
    assert ESCAPE.search(line) is None
    assert "月" in line


def test_a_line_stays_a_line() -> None:
    assert terminal.one_line("a\nb\r") == "a\\nb\\r"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3_725, "1 h 2 min"), (90_000, "1 d 1 h"), (864_000, "10 d 0 h")],
)
def test_a_span_has_its_two_largest_units(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (30_408_704, "29 MiB"),
        (2**30, "1.0 GiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_a_byte_size_has_a_unit(count: int, shown: str) -> None:
    assert byte_size(count) == shown


def test_a_bar_is_empty_only_for_nothing_and_full_only_for_all() -> None:
    assert [bar(part, 50, unicode=False) for part in (0, 1, 49, 50, 60)] == [
        "..........", "#.........", "#########.", "##########", "##########",
    ]  # fmt: skip
    assert bar(1, 2, unicode=True) == "█████░░░░░"


def test_one_is_no_plural() -> None:
    assert [counted(number, "request") for number in (0, 1, 2)] == ["0 requests", "1 request", "2 requests"]


# Tables.

FACTS: dict[str, Any] = {
    "state": "running",
    "pid": 1234,
    "version": "0.1.0",
    "address": "/run/user/1000/callpool/callpool.sock",
    "uptime_seconds": 3_725.0,
    "max_concurrent_sessions": 200,
    "sessions": {
        **{
            f"total_sessions_{outcome}": 1_000_000
            for outcome in ("completed", "error", "timeout", "cancelled", "interrupted")
        },
        "active_sessions": 200,
        "peak_concurrent_sessions": 200,
    },
    "queue": {"requests": 10_000, "bytes": 268_435_456},
    "jobs": {"queued": 123_456, "started": 200, "blocked": 1_234},
    "journal": {"in_doubt": 12, "bytes": 4_294_967_296, "fault": "there is no room for the journal " * 5},
    "clients_with_requests": 1,
    "workers": [
        {"id": 0, "pid": None, "state": "down", "active": 0, "restarts": 3, "last_death": "was killed by SIGKILL " * 9},
    ],
    "accounts": [
        {
            "name": "kimi",
            "active": 50,
            "limit": 50,
            "effective_limit": 50,
            "queued": 7,
            "closed": None,
            "connections": {"open": 53},
            "circuits": [
                {"model": "k3\x1b", "state": "open", "seconds_left": 4.2, "why": "it failed (HTTP 500)"},
                {"model": "k2", "state": "half_open", "seconds_left": 0.0, "why": "so did this"},
            ],
        },
        {
            "name": "n" * 64,
            "active": 1,
            "limit": 200,
            "effective_limit": 200,
            "queued": 0,
            "closed": "its \x1b[31mserver " * 9,
            "connections": None,
        },
    ],
    "model_servers": [{"provider": "local", "pid": 1, "state": "starting", "restarts": 0}],
    "function_lane": [{"id": 3, "pid": None, "state": "busy", "calls": 7, "request_id": "req_\x1b" + "0" * 60}],
}


def test_status_keeps_to_80_columns_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_status(FACTS)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert ESCAPE.search(shown) is None
    for text in (
        "1234",
        "1 h 2 min",
        "200 active",
        "10000 requests",
        "256 MiB",
        "1 client",
        "50/50",
        " 53",
        "closed",
        "\\x1b",
    ):
        assert text in shown
    notes = "".join(shown.split())
    assert "kimi/k3\\x1bfor4sitfailed(HTTP500)" in notes
    assert "kimi/k2istriedsodidthis" in notes
    assert "".join(shown.split()).count("n") >= 64


def test_status_says_that_workers_die_too_fast_and_the_rows_how(capsys: pytest.CaptureFixture[str]) -> None:
    supervision = {"state": "degraded", "deaths_last_minute": 7, "cause": "worker 0 exited with code 1 (boot failure)"}
    row = FACTS["workers"][0] | {
        "last_death": "exited with code 1",
        "last_failure": "boot",
        "recycled": 2,
        "last_recycled": "memory",
    }
    tables.show_status(FACTS | {"supervision": supervision, "workers": [row]})
    shown = " ".join(capsys.readouterr().out.split())
    assert "die too fast, 7 in the last minute: worker 0 exited with code 1 (boot" in shown
    tables.show_workers([row])
    shown = "".join(capsys.readouterr().out.split())
    assert "lastoneexitedwithcode1(bootfailure);recycled2times,lastformemory" in shown
    tables.show_status(FACTS | {"supervision": supervision | {"state": "steady"}})
    assert "die too fast" not in capsys.readouterr().out


def test_an_output_without_unicode_gets_another_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    terminal.prepare()
    tables.show_status(FACTS | {"address": "/月.sock"})
    assert b"50/50   ##########" in written.getvalue()
    assert b"/\\u6708.sock" in written.getvalue()


def test_a_record_that_has_not_ended_has_no_last_duration(capsys: pytest.CaptureFixture[str]) -> None:
    record = {
        "request_id": "r1", "session_id": "s1", "client": "c1", "provider": "fake", "model": "m", "state": "processing",
        "priority": "batch", "name": "nightly",
        "kind": "call", "attempt": 1, "worker": None, "timeout": 30.0, "metadata_bytes": 2, "payload_bytes": 9, "duration": 1.5,
        "fault": {"code": "timeout", "message": "too\x1b long" + "x" * 200},
        "phases": [
            {"phase": "RECEIVED", "at": 1_700_000_000.0, "after_seconds": 0.0},
            {"phase": "QUEUED", "at": 1_700_000_000.5, "after_seconds": 0.5},
        ],
    }  # fmt: skip
    tables.show_record(record)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["RECEIVED", "0.000", "s", "0.500", "s"]
    assert lines[-1].split() == ["QUEUED", "0.500", "s"]
    assert "too\\x1blong" + "x" * 200 in "".join("".join(lines).split())
    assert max(map(len, lines)) <= 80


# Processes.


def test_a_zombie_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-Ic", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process = psutil.Process(child.pid)
    assert not processes.wait_ended(process, 0.0)
    assert (processes.memory_of(child.pid) or 0) > 0
    child.kill()
    assert processes.wait_ended(process, 20.0), "nobody has collected it yet"
    child.communicate()
    assert processes.wait_ended(process, 0.0)
    assert processes.find(child.pid) is None
    assert processes.memory_of(child.pid) is None
    assert processes.memory_of(None) is None


# Errors.


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError("x"), 78),
        (errors.AlreadyRunning("x"), 75),
        (errors.KeyInUse("x"), 75),
        (errors.UnsafePath("x"), 77),
        (errors.NotRunning("x"), 69),
        (errors.ConnectionLost("x"), 69),
        (errors.HandshakeFailed("x"), 69),
        (errors.RequestTimeout("x"), 3),
        (errors.RequestCancelled("x"), 3),
        (errors.WorkerLost("x"), 3),
        (errors.UnknownModel("x"), 2),
        (errors.RateLimited("x"), 1),
        (errors.UnknownRequest("x"), 1),
        (errors.StartFailed("x"), 1),
        (errors.CallpoolError("x"), 70),
        (errors.CallpoolError("x", code="of_a_newer_peer"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_exit_status(error: errors.CallpoolError, status: int) -> None:
    assert failures.status_of(error) == status


def test_an_error_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    failures.tell(errors.BadInput("no \x1b[31mgood", hint="try\nit"), as_json=False)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "callpool: error: no \\x1b[31mgood\nhint: try\\nit\n")


def test_an_error_in_json_has_the_four_fields(capsys: pytest.CaptureFixture[str]) -> None:
    failures.tell(errors.BadInput("no", param="model"), as_json=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "error": {"code": "bad_input", "message": "no", "param": "model", "hint": None, "details": {}}
    }


def test_a_defect_is_one_line_and_a_traceback_only_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    defect = KeyError("x")
    assert failures.tell_defect(defect, as_json=False) == Exit.INTERNAL
    first, hint, *more = capsys.readouterr().err.splitlines()
    assert first == "callpool: error: KeyError: 'x'"
    assert "CALLPOOL_DEBUG=1" in hint
    assert not more
    monkeypatch.setenv("CALLPOOL_DEBUG", "1")
    try:
        raise defect
    except KeyError as raised:
        failures.tell_defect(raised, as_json=False)
    assert "Traceback" in capsys.readouterr().err
