"""`start`, `stop` and `config check`: each test has directories of its own, and a supervisor only if it starts one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import psutil
import pytest

import callpool as library
from callpool.manager.exits import Exit
from callpool.tools.cli import processes
from tests import ground

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., Popen[str]]
CONFIG = """
[supervisor]
workers = 1
[providers.fake]
kind = "scripted"
[providers.fake.models.slow]
delay = 60.0
"""
FIGURES = {
    "shutdown_duration",
    "initial_active_sessions",
    "final_active_sessions",
    "sessions_completed_during_shutdown",
    "timeout_reached",
    "total_sessions_at_shutdown",
}
OUTCOMES = {"finished", "parked", "cancelled", "interrupted"}


@pytest.fixture
def config(base_folder: Path) -> str:
    path = base_folder / "callpool.toml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def environment() -> dict[str, str]:
    """The test's own, for programs that it starts and goes on."""
    dropped = {"NO_COLOR", "FORCE_COLOR", "CALLPOOL_ADDRESS", "CALLPOOL_CLIENT", "CALLPOOL_DEBUG", "PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"COLUMNS": "80", "TERM": "xterm-256color"}


def read_until(process: Popen[str], text: str) -> str:
    """Read a process's standard error up to the line with this text."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}")


def test_a_daemon_starts_once_and_stop_returns_after_its_last_breath(alone: Run, inside: Run, config: str) -> None:
    started = alone("start", "--detach", "--config", config)
    assert (started.returncode, started.stderr) == (0, "")
    with library.connect() as client:
        status = client.status()
        pid = status["pid"]
        process = psutil.Process(pid)
        assert f"pid {pid}" in started.stdout
        assert client.address in started.stdout

        again = inside("start", "--detach", "--config", config)
        assert (again.returncode, again.stdout) == (Exit.ALREADY_RUNNING, "")
        assert f"already running (pid {pid})" in again.stderr
        assert client.address in again.stderr
        here = alone("start", "--config", config)
        assert here.returncode == Exit.ALREADY_RUNNING
        assert f"already running (pid {pid})" in here.stderr

    # A stopped worker does not go by itself, so the supervisor lives on for some time after its drain report.
    os.kill(status["workers"][0]["pid"], signal.SIGSTOP)
    stopped = alone("stop")
    assert processes.has_ended(process)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert "drained in" in stopped.stdout
    assert all(name in stopped.stdout for name in OUTCOMES | FIGURES)
    assert max(map(len, stopped.stdout.splitlines())) <= 80
    with pytest.raises(library.NotRunning):
        library.connect()

    nobody = inside("stop", "--json")
    assert (nobody.returncode, nobody.stdout) == (Exit.NOT_RUNNING, "")
    assert json.loads(nobody.stderr)["error"]["code"] == "not_running"


def test_ctrl_c_leaves_a_drain_going_on_and_a_second_stop_may_shorten_it(
    alone: Run, inside: Run, begin: Begin, config: str, environment: dict[str, str]
) -> None:
    alone("start", "--detach", "--config", config)
    request = begin(environment, "submit", "--provider", "fake", "--model", "slow", "x")
    read_until(request, "request req_")
    with library.connect() as client:
        first = begin(environment, "stop", "--timeout", "50")
        ground.wait_for("the drain", lambda: client.status()["state"] == "draining")
        first.send_signal(signal.SIGINT)
        out, err = first.communicate(timeout=20)
        assert (first.returncode, out) == (Exit.INTERRUPTED, "")
        assert "the drain goes on" in err
        assert "Traceback" not in err
        assert client.status()["state"] == "draining"
        refused = inside("submit", "--provider", "fake", "--model", "slow", "x")
        assert refused.returncode == Exit.FAILED
        assert "shutting down" in refused.stderr

    stopped = alone("stop", "--timeout", "0", "--json")
    assert stopped.returncode == 0, stopped.stderr
    report = json.loads(stopped.stdout)
    assert report.keys() == OUTCOMES | FIGURES
    assert (report["cancelled"], report["timeout_reached"]) == (1, True)
    request.communicate(timeout=20)
    assert request.returncode == Exit.REQUEST_ENDED


def test_stop_shows_on_a_terminal_how_far_it_is(
    alone: Run, begin: Begin, on_terminal: Callable[..., Any], config: str, environment: dict[str, str]
) -> None:
    alone("start", "--detach", "--config", config)
    request = begin(environment, "submit", "--provider", "fake", "--model", "slow", "x")
    read_until(request, "request req_")
    screen = on_terminal(environment, "stop", "--timeout", "1")
    screen.until("draining: 1 active, 0 queued, ")
    status, shown = screen.rest()
    assert status == 0
    assert "drained in" in shown
    assert "cancelled" in shown


def test_a_request_whose_supervisor_is_killed_ends_in_doubt(
    alone: Run, begin: Begin, config: str, environment: dict[str, str]
) -> None:
    started = json.loads(alone("start", "--detach", "--json", "--config", config).stdout)
    assert started.keys() == {"pid", "address", "log"}
    request = begin(environment, "submit", "--provider", "fake", "--model", "slow", "x")
    read_until(request, "request req_")
    os.kill(started["pid"], signal.SIGKILL)
    _, err = request.communicate(timeout=20)
    assert request.returncode == Exit.REQUEST_ENDED
    assert "may have been billed" in err


def test_the_foreground_is_the_same_process_and_ctrl_c_drains_it(
    begin: Begin, config: str, environment: dict[str, str]
) -> None:
    process = begin(environment, "start", "--config", config)
    read_until(process, " ready: ")
    with library.connect() as client:
        assert client.status()["pid"] == process.pid
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "drained: " in err


def test_an_unsafe_directory_is_refused(inside: Run, config: str) -> None:
    Path(os.environ["CALLPOOL_HOME"]).chmod(0o755)
    done = inside("start", "--detach", "--config", config)
    assert (done.returncode, done.stdout) == (Exit.NOT_ALLOWED, "")
    assert os.environ["CALLPOOL_HOME"] in done.stderr


# The configuration.


def test_a_good_configuration_is_shown_without_the_value_of_a_key(
    inside: Run, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = base_folder / "callpool.toml"
    path.write_text('[providers.kimi]\nkind = "kimi"\n[providers.glm]\nkind = "glm"\napi_key_env = "GLM_KEY"\n')
    monkeypatch.setenv("KIMI_API_KEY", "sk-secret-value")
    done = inside("config", "check", "--config", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "set (env:KIMI_API_KEY)" in done.stdout
    assert "missing (env:GLM_KEY)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    monkeypatch.setenv("CALLPOOL_CONFIG", str(path))
    data = inside("config", "check", "--json")
    facts = json.loads(data.stdout)
    assert facts["file"] == str(path)
    assert facts["supervisor"]["max_concurrent_sessions"] == 200
    assert facts["providers"]["kimi"]["key"]["state"] == "set"
    assert facts["providers"]["glm"]["key"]["state"] == "missing"
    assert "secret" not in done.stdout + data.stdout
    assert not list(Path(os.environ["CALLPOOL_HOME"]).iterdir()), "a check makes nothing"


def test_limits_and_budgets_are_shown_to_the_last_digit(inside: Run, base_folder: Path) -> None:
    path = base_folder / "callpool.toml"
    path.write_text(
        "[supervisor]\nmax_requests_per_minute = 77\n"
        '[providers.p]\nkind = "scripted"\norganization = "acme"\nmoney_per_day = 1234567.25\n'
        "models.m = {input_price = 0.5, output_price = 2}\n"
        "[organizations.acme]\ntokens_per_day = 5000000\nmoney_per_day = 7654321.5\n"
        "[clients.default]\n[clients.nightly]\nweight = 0.5\nmoney_per_day = 3\n"
    )
    done = inside("config", "check", "--config", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in (
        "max_requests_per_minute 77", "queue_timeout none", "money_per_day 1234567.25", "[organizations.acme]",
        "tokens_per_day 5000000", "money_per_day 7654321.5", "[clients.default]", "[clients.nightly]", "weight 0.5", "money_per_day 3",
    ):  # fmt: skip
        assert line in shown
    facts = json.loads(inside("config", "check", "--json", "--config", str(path)).stdout)
    assert facts["organizations"] == {"acme": {"tokens_per_day": 5_000_000, "money_per_day": 7_654_321.5}}
    assert facts["clients"] == {"default": {"weight": 1.0}, "nightly": {"weight": 0.5, "money_per_day": 3.0}}


@pytest.mark.parametrize("command", [("config", "check"), ("start", "--detach")], ids=" ".join)
def test_a_bad_configuration_is_refused_with_every_problem(
    inside: Run, base_folder: Path, command: tuple[str, ...]
) -> None:
    path = base_folder / "callpool.toml"
    path.write_text('[supervisor]\nworkerz = 2\nmax_metadata_size = -1\n[providers.p]\nkind = "kimmi"\n')
    done = inside(*command, "--config", str(path))
    assert (done.returncode, done.stdout) == (Exit.CONFIG, "")
    first, *lines = done.stderr.splitlines()
    assert first == "callpool: error: the configuration is refused, 3 problems:"
    assert [line.partition(": ")[0] for line in lines] == [f"{path}:{number}" for number in (2, 3, 5)]
    data = inside(*command, "--config", str(path), "--json")
    assert data.returncode == Exit.CONFIG
    assert json.loads(data.stderr)["error"]["code"] == "config_invalid"


def test_a_configuration_that_is_not_there_is_one_line(inside: Run) -> None:
    done = inside("config", "check", "--config", "/nowhere/callpool.toml")
    assert (done.returncode, done.stderr) == (Exit.CONFIG, "callpool: error: /nowhere/callpool.toml: no such file\n")


def test_without_a_configuration_the_defaults_are_shown(
    inside: Run, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(base_folder))
    done = inside("config", "check")
    assert done.returncode == 0
    assert "no configuration file" in done.stdout
    assert "no provider" in done.stdout
