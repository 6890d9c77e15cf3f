"""The command line itself: wrong in every way, and its help. In this process, without a supervisor."""

from __future__ import annotations

import inspect
import json

import pytest

from callpool.manager.client import Client
from callpool.manager.exits import Exit
from callpool.tools.cli import options
from callpool.tools.cli.app import run


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CALLPOOL_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["statsu"], "Did you mean 'status'"),
        (["status", "--jsn"], "--json"),
        (["submit"], "PROMPT"),
        (["submit", "hi", "--provider", "p"], "--model"),
        (["submit", "", "--provider", "p", "--model", "m"], "empty"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--param", "a"], "NAME=JSON"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--param", "a=b"], "not JSON"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--param", "a=NaN"], "not JSON"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--param", "a=" + "[" * 100_000], "nested"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--param", "a=1", "--param", "a=2"], "twice"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--param", "timeout=1"], "--timeout"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--metadata", "[1]"], "object"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--metadata", "{"], "not JSON"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--timeout", "soon"], "--timeout"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--param", "affinity=1"], "--affinity"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--priority", "urgent"], "'batch'"),
        (["chat", "--provider", "p", "--model", "m", "--priority", "urgent"], "--priority"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--queue-timeout", "soon"], "--queue-timeout"),
        (["submit", "hi", "--api-key", "secret"], "--api-key"),
        (["stop", "--timeout", "nan"], "--timeout"),
        (["stop", "--timeout", "-1"], "--timeout"),
        (["start", "--json"], "--detach"),
        (["submit", "hi", "--provider", "p", "--model", "m", "--param", "durable=true"], "--durable"),
        (["show"], "ID"),
        (["cancel"], "ID"),
        (["result"], "ID"),
        (["result", "a", "--timeout", "1"], "--wait"),
        (["result", "a", "--wait", "--timeout", "-1"], "--timeout"),
        (["jobs", "lsit"], "Did you mean 'list'"),
        (["jobs", "--limit", "0"], "--limit"),
        (["jobs", "--limit", "3", "--all"], "--all"),
        (["jobs", "list", "more"], "more"),
        (["jobs", "resolve"], "ID"),
        (["jobs", "resolve", "a"], "exactly one"),
        (["jobs", "resolve", "a", "--retry", "--fail"], "exactly one"),
        (["jobs", "resolve", "a", "--retry", "--json"], "needs --yes"),
        (["journal", "chek"], "check"),
        (["journal", "export", "--output", "/dev/null"], "no regular file"),
        (["config", "chek"], "check"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_a_wrong_command_line_is_told_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == Exit.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    if "--json" in arguments:
        assert json.loads(err)["error"]["code"] == "usage"
    else:
        error, hint = err.splitlines()
        assert error.startswith("callpool: error: ")
        assert hint.startswith("hint: see `callpool")
    assert said in err
    assert "secret" not in err


def test_every_argument_of_submit_is_kept_from_parameters() -> None:
    own = set(inspect.signature(Client.submit).parameters) - {"parameters"}
    assert own == {"self", *options._OWN_OPTIONS}


@pytest.mark.parametrize(
    "command",
    [
        [], ["start"], ["submit"], ["chat"], ["show"], ["status"], ["sessions"], ["workers"], ["health"], ["stop"],
        ["config"], ["config", "check"], ["result"], ["cancel"], ["jobs"], ["jobs", "list"], ["jobs", "resolve"],
        ["journal"], ["journal", "check"], ["journal", "export"], ["journal", "compact"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_is_there_and_keeps_to_80_columns(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == Exit.OK
    shown = capsys.readouterr().out
    assert "Usage: " + " ".join(["callpool", *command]) in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_without_a_command_there_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == Exit.USAGE
    out, err = capsys.readouterr()
    assert "Usage: callpool" in out + err
    assert "error" not in err


def test_an_unforeseen_exception_does_not_get_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_address: str | None) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("callpool.tools.cli.status.connect", broken)
    assert run(["status"]) == Exit.INTERNAL
    assert "callpool: error: ZeroDivisionError: by zero" in capsys.readouterr().err
