"""`status`, `workers` and the program as such: JSON for programs, tables and colours for people."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from callpool.version import __version__

Run = Callable[..., CompletedProcess[str]]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
HEAVY = {"rich", "psutil", "aiohttp", "uvloop", "callpool.manager.launch", "callpool.manager.config", "readline"}
"""What a status in JSON has no use for."""


def test_status_in_json_has_what_programs_rely_on(callpool: Run, asking: Run) -> None:
    done = callpool("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts.keys() >= {"state", "pid", "sessions", "workers", "accounts", "queue", "address", "version"}
    assert facts["state"] == "running"
    assert {"total_sessions", "active_sessions", "peak_concurrent_sessions"} <= facts["sessions"].keys()
    assert all({"pid", "state", "active", "restarts"} <= worker.keys() for worker in facts["workers"])
    assert all({"name", "active", "limit", "queued"} <= account.keys() for account in facts["accounts"])
    assert json.loads(asking("workers", "--json").stdout)[0]["pid"] == facts["workers"][0]["pid"]


def test_status_for_people_is_plain_in_a_pipe(asking: Run) -> None:
    done = asking("status")
    assert done.returncode == 0
    for text in (f"callpool {__version__}", "running", "sessions", "Workers", "MiB", "Accounts", "fake", "0/4"):
        assert text in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "restarts" in asking("workers").stdout


@pytest.mark.parametrize(
    ("changes", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_colours_are_for_terminals_that_take_them(
    supervisor: dict[str, str], on_terminal: Callable[..., Any], changes: dict[str, str], *, coloured: bool
) -> None:
    status, shown = on_terminal(supervisor | changes, "status").rest()
    assert status == 0
    assert bool(COLOUR.search(shown)) == coloured
    assert ("\x1b" in shown) == coloured
    assert max(len(COLOUR.sub("", line)) for line in shown.split("\r\n")) <= 80


def test_another_supervisor_is_found_by_its_address(
    inside: Run, supervisor: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{supervisor['CALLPOOL_RUNTIME_DIR']}/callpool.sock"
    assert inside("status").returncode == 69
    assert json.loads(inside("status", "--json", "--address", address).stdout)["address"] == address
    monkeypatch.setenv("CALLPOOL_ADDRESS", address)
    assert json.loads(inside("status", "--json").stdout)["address"] == address


def test_no_supervisor_is_one_line_and_what_to_do(inside: Run) -> None:
    done = inside("status")
    assert (done.returncode, done.stdout) == (69, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("callpool: error: no supervisor runs at /")
    assert "callpool start" in hint


def test_a_reader_that_is_gone_is_no_traceback(callpool: Run, supervisor: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" status | true; exit ${PIPESTATUS[0]}', "bash", sys.executable, "-Im", "callpool"],
        env=supervisor,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode in {0, 141}  # 0: it had written everything before `true` was gone
    assert done.stderr == ""


def test_json_status_imports_nothing_that_it_has_no_use_for(supervisor: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-Im", "callpool", "status", "--json"],
        env=supervisor,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "callpool.manager.client" in imported
    assert not imported & HEAVY


def test_the_version(inside: Run) -> None:
    assert inside("--version").stdout == f"callpool {__version__}\n"


def test_a_shell_completes_commands(alone: Run) -> None:
    asked = {"_CALLPOOL_COMPLETE": "complete_bash", "COMP_WORDS": "callpool st", "COMP_CWORD": "1"}
    assert alone(env=asked).stdout.split() == ["start", "status", "stop"]
    asked |= {"COMP_WORDS": "callpool jobs ", "COMP_CWORD": "2"}
    assert alone(env=asked).stdout.split() == ["list", "resolve"]
