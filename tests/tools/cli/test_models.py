"""`callpool models`, and the options of a chat on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from callpool.manager.exits import Exit

Run = Callable[..., CompletedProcess[str]]
ECHO = ("--provider", "fake", "--model", "echo")


def test_the_models_of_the_configuration(asking: Run) -> None:
    done = asking("models", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    [echo] = [row for row in json.loads(done.stdout)["models"] if row["model"] == "echo"]
    assert echo == {
        "provider": "fake", "model": "echo", "context": None, "max_output": None, "timeout": 30.0,
        "operations": ["chat", "embeddings", "models"],
    }  # fmt: skip
    lines = asking("models", "--provider", "fake").stdout.splitlines()
    assert lines[0].split() == ["model", "context", "max", "output", "timeout"]
    assert ["fake/echo", "-", "-", "30", "s"] in [line.split() for line in lines]
    assert max(map(len, lines)) <= 80


def test_the_providers_own_list(asking: Run) -> None:
    done = asking("models", "--provider", "fake", "--ask", "--json")
    assert {
        "provider": "fake",
        "model": "echo",
        "context": None,
        "raw": {"id": "echo", "object": "model"},
    } in json.loads(done.stdout)["models"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("models", "--ask"), "needs --provider"),
        (("models", "--provider", "fak"), "did you mean 'fake'?"),
        (("models", "--provider", "fak", "--ask"), "did you mean 'fake'?"),
        (("submit", *ECHO, "--thinking", "hard", "x"), "thinking_mode must be one of off, minimal"),
        (("submit", *ECHO, "--thinking", "low", "x"), "thinking_mode 'low' is not possible"),
        (("submit", *ECHO, "--websearch", "x"), "use_websearch is not possible"),
        (("submit", *ECHO, "--task", "x"), "async_task is not possible"),
        (("submit", *ECHO, "--cache-id", "x", "x"), "cache_id is not supported"),
        (("submit", *ECHO, "--fallback", "nobody/m", "x"), "unknown provider 'nobody'"),
        (("submit", *ECHO, "--max-attempts", "0", "x"), "max_attempts must be from 1 to 10"),
    ],
)
def test_what_is_wrong_is_said(asking: Run, arguments: tuple[str, ...], words: str) -> None:
    done = asking(*arguments)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert words in done.stderr


def test_an_answer_that_could_be_continued(asking: Run) -> None:
    assert asking("submit", *ECHO, "--continue", "whole").stdout == "whole\n"


def test_a_fallback_is_taken_and_shown(asking: Run) -> None:
    done = asking(
        "submit",
        "--provider",
        "fake",
        "--model",
        "limited",
        "--fallback",
        "fake/echo",
        "--max-attempts",
        "1",
        "--json",
        "hi",
    )
    answer = json.loads(done.stdout)
    assert (answer["content"], answer["model"]) == ("hi", "echo")
    shown = asking("show", answer["request_id"]).stdout
    assert "Earlier calls" in shown
    assert "fake/limited" in shown
    assert "rate_limited" in shown
