"""`callpool models`, and the options of a chat on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any, cast

import pytest

import callpool as library
from callpool.manager.exits import Exit
from callpool.tools.cli.submit import print_text

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
        (("submit", *ECHO, "--queue-timeout", "0", "x"), "queue_timeout must be above 0 and at most 86400 seconds"),
        (("submit", *ECHO, "--queue-timeout", "nan", "x"), "queue_timeout must be above 0"),
        (("submit", *ECHO, "--affinity", "", "x"), "affinity must be 1 to 256 printable characters"),
        (("submit", *ECHO, "--client", "a b", "x"), "name must be 1 to 64 of A-Z a-z 0-9"),
        (("chat", *ECHO, "--client", "", "--priority", "batch"), "name must be 1 to 64 of A-Z a-z 0-9"),
        (("models", "--client", "x" * 65), "name must be 1 to 64 of A-Z a-z 0-9"),
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


def test_what_an_answers_text_does_not_show_is_said_beside_it(asking: Run) -> None:
    limited = ("--provider", "fake", "--model", "limited", "--max-attempts", "1")
    done = asking("submit", *limited, "--fallback", "fake/echo", "hi")
    assert done.stdout == "hi\n"
    assert "callpool: answered by fake/echo" in done.stderr


def test_a_cut_answer_is_not_passed_off_as_whole(capsys: pytest.CaptureFixture[str]) -> None:
    class Cut:
        def __iter__(self) -> Iterator[str]:
            return iter(())

        def result(self) -> dict[str, Any]:
            told = {"why": "max_total_tokens is 9"}
            return {"content": "to", "finish_reason": "length", "metadata": {"continuation": told}}

        def is_from(self, _answer: dict[str, Any]) -> bool:
            return True

    print_text(cast("library.Handle", Cut()))
    assert capsys.readouterr().err == "callpool: the answer was cut at its limit: max_total_tokens is 9\n"


def test_an_error_in_json_has_what_a_program_needs(asking: Run) -> None:
    done = asking("submit", "--provider", "fake", "--model", "limited", "--max-attempts", "1", "--json", "hi")
    error = json.loads(done.stderr)["error"]
    assert error["details"].items() >= {"retryable": True, "retry_after": 1.0, "scope": "account"}.items()
    assert json.loads(asking("show", error["details"]["request_id"], "--json").stdout)["state"] == "error"
