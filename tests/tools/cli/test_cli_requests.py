"""`submit`, `show` and `chat` against a running supervisor, as a user, a script and a pipe use them."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any, cast

import pytest

import callpool as library
from callpool.manager import client, payload, proxy
from callpool.tools.cli.chat import Conversation
from tests import ground

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., Popen[str]]
SLOW = ("--provider", "fake", "--model", "slow")
ECHO = ("--provider", "fake", "--model", "echo")


def connect(environment: dict[str, str]) -> library.Client:
    return library.connect(Path(environment["CALLPOOL_RUNTIME_DIR"]) / "callpool.sock")


def state_of(environment: dict[str, str], request_id: str) -> str:
    with connect(environment) as client:
        state: str = client.show(request_id)["state"]
        return state


def read_id(process: Popen[str]) -> str:
    """The id that a begun `submit` prints as soon as its request is taken."""
    assert process.stderr is not None
    word, _, request_id = process.stderr.readline().strip().partition(" ")
    assert word == "request", word
    return request_id


# Submit.


def test_the_answer_alone_is_on_standard_output_and_the_id_comes_first_on_standard_error(
    callpool: Run, asking: Run
) -> None:
    done = callpool("submit", *ECHO, "two words")
    assert (done.returncode, done.stdout) == (0, "two words\n")
    assert done.stderr.startswith("request req_")
    assert len(done.stderr.splitlines()) == 1
    shown = asking("show", done.stderr.split()[1], "--json")
    record = json.loads(shown.stdout)
    assert record["state"] == "completed"
    assert record["phases"][0]["phase"] == "RECEIVED"


def test_json_is_one_object(callpool: Run) -> None:
    done = callpool(
        "submit", *ECHO, "hi", "--json", "--request-id", "mine-1", "--metadata", '{"job": 7}', "--timeout", "5",
        "--param", "temperature=0.2", "--param", 'stop=["a"]', "--system", "be kind",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer.keys() >= {"request_id", "provider", "model", "content", "usage", "metadata", "finish_reason", "raw"}
    assert (answer["request_id"], answer["content"]) == ("mine-1", "hi")
    assert answer["metadata"]["session"]["request_id"] == "mine-1"


def test_a_stream_in_json_is_lines_the_id_first_and_the_result_last(asking: Run) -> None:
    done = asking("submit", *ECHO, "one two three", "--json", "--stream")
    first, *middle, last = map(json.loads, done.stdout.splitlines())
    assert first.keys() == {"request_id"}
    assert "".join(line["chunk"] for line in middle) == "one two three"
    assert len(middle) >= 3
    assert last["result"]["content"] == "one two three"
    assert last["result"]["request_id"] == first["request_id"]


def test_the_prompt_comes_from_standard_input(callpool: Run) -> None:
    done = callpool("submit", *ECHO, "--stream", "-", input="from a pipe\nof 2 lines\n")
    assert (done.returncode, done.stdout) == (0, "from a pipe\nof 2 lines\n")


def test_bytes_that_are_no_text_are_refused(callpool: Run) -> None:
    done = callpool("submit", *ECHO, "-", input=b"a\xff", text=False)
    assert done.returncode == 2
    assert b"UTF-8" in done.stderr  # type: ignore[operator]  # this one run is in bytes


def test_a_models_text_cannot_command_the_terminal(asking: Run) -> None:
    done = asking("submit", "--provider", "fake", "--model", "evil", "--stream", "x")
    assert done.stdout == "a\\x1b[31mb\\x9bc\\u202ed\\r\ne\tf\n"


@pytest.mark.parametrize(
    ("arguments", "status", "code", "param"),
    [
        (("--provider", "fak", "--model", "echo", "x"), 2, "unknown_provider", "provider"),
        (("--provider", "fake", "--model", "ecko", "x"), 2, "unknown_model", "model"),
        ((*ECHO, "--metadata", json.dumps({"a": "b" * 11_000}), "x"), 1, "metadata_too_large", "metadata"),
        (("--provider", "fake", "--model", "limited", "--max-attempts", "1", "x"), 1, "rate_limited", None),
        ((*SLOW, "--timeout", "0.05", "x"), 3, "timeout", None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_failure_has_its_status_and_is_json_on_standard_error(
    asking: Run, arguments: tuple[str, ...], status: int, code: str, param: str | None
) -> None:
    done = asking("submit", "--json", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    error = json.loads(done.stderr)["error"]
    assert error.keys() == {"code", "message", "param", "hint", "details"}
    assert (error["code"], error["param"]) == (code, param)


def test_ctrl_c_cancels_the_request_and_waits_for_the_word(supervisor: dict[str, str], begin: Begin) -> None:
    process = begin(supervisor, "submit", *SLOW, "x")
    request_id = read_id(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert request_id in err
    assert "cancel" in err
    assert "Traceback" not in err
    assert state_of(supervisor, request_id) == "cancelled"


def test_an_answer_without_text_is_said(asking: Run) -> None:
    done = asking("submit", "--provider", "fake", "--model", "silent", "x")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no text" in done.stderr


def test_a_reader_that_goes_away_ends_the_command_by_sigpipe_and_the_request(
    supervisor: dict[str, str], begin: Begin
) -> None:
    process = begin(supervisor, "submit", "--provider", "fake", "--model", "drip", "--stream", "word " * 100)
    request_id = read_id(process)
    assert process.stdout is not None
    assert process.stdout.read(1) == "w"
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (-signal.SIGPIPE, "")
    ground.wait_for("the request's end", lambda: state_of(supervisor, request_id) == "cancelled")


def test_a_full_disk_is_told_in_one_line(callpool: Run) -> None:
    with Path("/dev/full").open("w") as full:
        done = callpool("submit", *ECHO, "x", stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["callpool: error: No space left on device"]


# Show.


def test_show_is_a_table_of_phases(asking: Run) -> None:
    asking("submit", *ECHO, "x", "--request-id", "shown")
    shown = asking("show", "shown")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["request", "shown"]
    assert {"RECEIVED", "PROVIDER_CALL_START", "COMPLETED"} <= {word for line in lines for word in line.split()[:1]}
    assert max(map(len, lines)) <= 80


def test_an_unknown_id_is_a_clear_error(asking: Run) -> None:
    done = asking("show", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == "callpool: error: no request 'nobody'"


# Chat.


def test_piped_questions_give_answers_alone(callpool: Run) -> None:
    done = callpool("chat", *ECHO, input="first\n\nsecond one\n/reset\nthird\n/quit\nfourth\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "first\nsecond one\nthird\n", "")


def test_the_first_error_ends_a_piped_chat(callpool: Run) -> None:
    done = callpool("chat", "--provider", "fake", "--model", "rejected", input="first\nsecond\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_dialogue_on_a_terminal(supervisor: dict[str, str], on_terminal: Callable[..., Any]) -> None:
    screen = on_terminal(supervisor, "chat", "--provider", "fake", "--model", "drip")
    screen.until("> ")
    screen.press("a b c d e f g h\n")
    screen.until("\na")  # the echo of the keys is on the prompt's line
    screen.interrupt()
    screen.until("(stopped)")
    with connect(supervisor) as client:
        ground.wait_for("the call's end", lambda: client.status()["sessions"]["active_sessions"] == 0)
    screen.until("> ")
    screen.interrupt()
    screen.until("Ctrl-D ends")
    screen.press("/nothing\n")
    screen.until("there is no /nothing")
    screen.press("/reset\n")
    screen.until("(forgotten)")
    screen.until("> ")
    screen.press("\x04")
    status, _ = screen.rest()
    assert status == 0


class Listener:
    """A client in place of the real one: keeps what it was sent, and answers or fails in turn."""

    def __init__(self, *answers: str | Exception) -> None:
        self._answers = list(answers)
        self.heard: list[list[str]] = []
        self.messages: list[dict[str, str]] = []

    def submit(self, *, messages: list[dict[str, str]], stream: bool) -> Listener:
        assert stream
        self.messages = messages
        self.heard.append([message["content"] for message in messages])
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def result(self) -> dict[str, str]:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"content": answer, "reasoning_content": f"why {answer}", "finish_reason": "stop"}

    def is_from(self, _answer: dict[str, str]) -> bool:
        return True


def test_a_conversation_keeps_whole_exchanges_until_it_is_reset() -> None:
    listener = Listener("1", library.RateLimited("no"), "3", "4")
    conversation = Conversation(cast("library.Client", listener), "be kind")
    assert conversation.ask("one")
    with pytest.raises(library.RateLimited):
        conversation.ask("two")
    assert conversation.ask("three")
    conversation.reset()
    assert conversation.ask("four")
    assert listener.heard == [
        ["be kind", "one"],
        ["be kind", "one", "1", "two"],
        ["be kind", "one", "1", "three"],
        ["be kind", "four"],
    ]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_model_that_wants_its_reasoning_back_gets_it(*, keeps: bool) -> None:
    listener = Listener("1", "2")
    conversation = Conversation(cast("library.Client", listener), None, keeps_reasoning=keeps)
    conversation.ask("one")
    conversation.ask("two")
    said = {"role": "assistant", "content": "1"} | ({"reasoning_content": "why 1"} if keeps else {})
    assert listener.messages[1] == said


# Turn, and whose it is.

TURN = ("--priority", "batch", "--queue-timeout", "90", "--affinity", "a 7")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the program's own client submits, and the names of its handshakes."""
    seen: dict[str, list[Any]] = {"submits": [], "names": []}
    build, shake = payload.build_submit, proxy.new_handshake

    def building(*arguments: Any, **asked: Any) -> Any:
        seen["submits"].append(build(*arguments, **asked))
        return seen["submits"][-1]

    def shaking(key: bytes, **words: str) -> Any:
        seen["names"].append(words["name"])
        return shake(key, **words)

    monkeypatch.setattr(client, "build_submit", building)
    monkeypatch.setattr(proxy, "new_handshake", shaking)
    return seen


@pytest.mark.parametrize("command", ["submit", "chat"])
def test_priority_patience_affinity_and_name(
    command: str, asking: Run, told: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
    prompt = ["hi"] if command == "submit" else []
    done = asking(command, *ECHO, *TURN, "--client", "nightly", *prompt)
    assert (done.returncode, done.stdout) == (0, "hi\n")
    [sent] = told["submits"]
    assert (sent.priority, sent.queue_timeout, sent.affinity) == ("batch", 90.0, "a 7")
    assert told["names"] == ["nightly"]


def test_the_name_of_the_environment_and_none(
    asking: Run, told: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asking("submit", *ECHO, "hi").returncode == 0
    monkeypatch.setenv("CALLPOOL_CLIENT", "of-the-environment")
    assert asking("submit", *ECHO, "hi").returncode == 0
    assert asking("models", "--provider", "fake", "--ask", "--client", "own").returncode == 0
    assert told["names"] == ["", "of-the-environment", "own"]
    assert [(sent.priority, sent.queue_timeout, sent.affinity) for sent in told["submits"]] == [
        ("normal", None, None)
    ] * 2
    monkeypatch.setenv("CALLPOOL_CLIENT", "a b")
    done = asking("submit", *ECHO, "hi")
    assert (done.returncode, done.stdout) == (2, "")
    assert "CALLPOOL_CLIENT must be 1 to 64" in done.stderr
