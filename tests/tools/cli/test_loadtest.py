"""`callpool loadtest quota` as users run it: small tests, wrong options, and what is left when it is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.tools.cli.conftest import HANG, plain_environment

Run = Callable[..., CompletedProcess[str]]
QUOTA = ("loadtest", "quota")
SMALL = ("--clients", "2", "--requests", "12", "--concurrency", "3", "--seconds", "0.1", "--workers", "1")


def test_callpool_alone_uses_the_account_and_is_never_refused(inside: Run, tmp_path: Path, base_folder: Path) -> None:
    page = tmp_path / "page.html"
    done = inside(*QUOTA, *SMALL, "--no-direct", "--json", "--html", str(page))
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["runs"].keys() == {"callpool"}
    ours = told["runs"]["callpool"]
    assert (ours["requests"], ours["done"], ours["calls"], told["failed"], told["rejections"]) == (12, 12, 12, 0, 0)
    assert ours["peak_concurrency"] == 3
    assert 0 < told["utilisation"] <= 1
    assert told["waits"] == ours["waits"]
    assert 0 <= told["waits"]["p50"] <= told["waits"]["max"]
    assert [client["requests"] for client in ours["clients"]] == [6, 6]
    assert told["scenario"]["true_concurrency"] == 3
    assert told["versions"].keys() >= {"callpool", "python", "aiohttp"}
    assert "<svg" in page.read_text()
    assert not list(base_folder.glob("keys/*")), "the lock of a made-up key stays among the user's"
    assert not list(base_folder.glob("home/*"))
    assert not list(base_folder.glob("run/embedded/*"))


def test_people_get_tables_of_callpool_beside_the_same_clients_without_it(alone: Run) -> None:
    done = alone(*QUOTA, *SMALL, "--dialect", "openai")
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("callpool", "direct, split", "calls refused with 429", "Clients of callpool", "while all wait"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    refused = next(line for line in done.stdout.splitlines() if line.startswith("calls refused"))
    ours, _direct, split = (int(count) for count in refused.split()[-3:])
    assert ours == split == 0, "together they made no more calls than allowed"


def test_a_limit_lower_than_told_is_met_by_all(inside: Run) -> None:
    done = inside(*QUOTA, *SMALL, "--json", "--true-concurrency", "1", "--dialect", "glm", "--skew")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["scenario"]["concurrency"], told["scenario"]["true_concurrency"]) == (3, 1)
    for figures in told["runs"].values():
        assert figures["peak_concurrency"] == 1
        assert figures["rejections"] == figures["rejections_by_limit"]["concurrency"]
        assert figures["done"] + figures["failed"] == figures["requests"] == 12
        assert figures["failed"] == sum(figures["errors"].values())
        assert [client["requests"] for client in figures["clients"]] == [10, 2]
    assert told["runs"]["direct"]["rejections"] > 0, "each client made three calls at once where one is allowed"
    assert told["rejections"] == told["runs"]["callpool"]["rejections"]


def test_a_terminal_is_told_how_far_it_is(on_terminal: Callable[..., Any]) -> None:
    shown = on_terminal(plain_environment(), *QUOTA, *SMALL, "--no-direct")
    shown.until("of 12 requests over")
    status, rest = shown.rest()
    assert status == 0
    assert "\x1b[1mClients of callpool" in rest


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--clients", "0"), "--clients"),
        (("--clients", "3", "--requests", "2"), "--clients"),
        (("--requests", "x"), "--requests"),
        (("--concurrency", "0"), "--concurrency"),
        (("--true-concurrency", "0"), "--true-concurrency"),
        (("--rpm", "0"), "--rpm"),
        (("--tpm", "500"), "--tpm"),
        (("--max-tokens", "0"), "--max-tokens"),
        (("--seconds", "0"), "--seconds"),
        (("--seconds", "nan"), "--seconds"),
        (("--seconds", "601"), "--seconds"),
        (("--dialect", "claude"), "--dialect"),
        (("--workers", "65"), "--workers"),
        (("--html", "/"), "--html"),
        (("--html", "/no/such/folder/page.html"), "--html"),
        (("--seed", "1.5"), "--seed"),
    ],
    ids=" ".join,
)
def test_a_wrong_value_is_told_at_once(inside: Run, options: tuple[str, ...], named: str) -> None:
    done = inside(*QUOTA, *options)
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("callpool: error: ")
    assert f"'{named}'" in error
    assert hint == "hint: see `callpool loadtest quota --help`"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_interrupted_test_leaves_nothing(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path, base_folder: Path, number: signal.Signals
) -> None:
    options = ("--clients", "2", "--requests", "100", "--concurrency", "4", "--seconds", "60", "--workers", "1")
    program = begin(plain_environment(TMPDIR=str(tmp_path)), *QUOTA, *options)
    _wait_for_calls(tmp_path, 4)
    program.send_signal(number)
    _, said = program.communicate(timeout=HANG)
    if number is signal.SIGKILL:
        return  # its processes end with it, which is for the test's ground to see; files remain
    assert (program.returncode, said) == (130, "")
    assert list(tmp_path.iterdir()) == []
    assert list((base_folder / "run" / "embedded").iterdir()) == []


def _wait_for_calls(folder: Path, count: int) -> None:
    """Wait until the fake whose log is below this folder has so many calls."""
    deadline = time.monotonic() + HANG
    while sum(log.read_text().count('"arrive"') for log in folder.glob("callpool-fake-*/calls.jsonl")) < count:
        assert time.monotonic() < deadline, "no calls came"
        time.sleep(0.02)
