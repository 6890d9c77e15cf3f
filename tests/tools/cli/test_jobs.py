"""Jobs on the command line, beside a supervisor that runs: submit, result, list, show, cancel, status."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest

import callpool as library
from callpool.manager.exits import Exit
from callpool.tools.cli import job_tables
from tests import ground

Run = Callable[..., CompletedProcess[str]]
Begin = Callable[..., Popen[str]]
ECHO = ("--provider", "fake", "--model", "echo")
SLOW = ("--provider", "fake", "--model", "slow")
FIELDS = {
    "number", "request_id", "client", "provider", "model", "priority", "state", "ended", "session_id", "attempts",
    "accepted_at", "started_at", "ended_at", "duration", "fault", "usage", "blocked",
}  # fmt: skip


@pytest.fixture
def client(supervisor: dict[str, str]) -> Iterator[library.Client]:
    """A client of the shared supervisor."""
    with library.connect(Path(supervisor["CALLPOOL_RUNTIME_DIR"]) / "callpool.sock") as connected:
        yield connected


def detached(run: Run, *arguments: str) -> str:
    """Submit a job that nobody waits for; returns its id."""
    done = run("submit", "--detach", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    [request_id] = done.stdout.splitlines()
    return str(request_id)


def width(text: str) -> int:
    return max(map(len, text.splitlines()))


# Submit and result.


def test_the_id_alone_goes_to_the_next_program(supervisor: dict[str, str]) -> None:
    program = f"{sys.executable} -Im callpool"
    line = f"{program} submit --detach {' '.join(ECHO)} 'two words' | xargs {program} result --wait"
    done = subprocess.run(["bash", "-c", line], env=supervisor, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "two words\n", "")


def test_a_durable_submit_waits_for_its_answer_which_is_kept(asking: Run) -> None:
    done = asking("submit", "--durable", *ECHO, "kept", "--request-id", "kept-1", "--stream")
    assert (done.returncode, done.stdout, done.stderr) == (0, "kept\n", "request kept-1\n")
    assert asking("result", "kept-1").stdout == "kept\n"
    again = asking("submit", "--durable", *ECHO, "kept", "--request-id", "kept-1", "--stream")
    assert (again.returncode, again.stdout) == (0, "kept\n"), "the same id is the same job"
    other = asking("submit", "--durable", *ECHO, "something else", "--request-id", "kept-1", "--json")
    assert (other.returncode, other.stdout) == (Exit.FAILED, "")
    assert json.loads(other.stderr)["error"]["code"] == "request_conflict"


def test_json_of_submit_and_result(asking: Run) -> None:
    taken = asking("submit", "--detach", *ECHO, "hi", "--request-id", "json-1", "--json")
    assert (taken.returncode, json.loads(taken.stdout)) == (0, {"request_id": "json-1"})
    done = asking("result", "json-1", "--wait", "--json")
    answer = json.loads(done.stdout)
    assert answer.keys() >= {"request_id", "provider", "model", "content", "usage", "metadata", "finish_reason", "raw"}
    assert (answer["request_id"], answer["content"], answer["model"]) == ("json-1", "hi", "echo")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_job_that_has_not_ended_has_no_result_yet(asking: Run, client: library.Client) -> None:
    request_id = detached(asking, *SLOW, "x")
    ground.wait_for("its call", lambda: client.job(request_id)["state"] == "started")
    done = asking("result", request_id)
    assert (done.returncode, done.stdout) == (Exit.NOT_YET, "")
    assert done.stderr.splitlines()[0] == f"callpool: error: job {request_id} has not ended: it is started"
    timed = asking("result", request_id, "--wait", "--timeout", "0.01", "--json")
    assert (timed.returncode, timed.stdout) == (Exit.NOT_YET, "")
    error = json.loads(timed.stderr)["error"]
    assert (error["code"], error["details"]["state"]) == ("not_yet", "started")

    cancelled = asking("cancel", request_id)
    assert (cancelled.returncode, cancelled.stdout) == (0, f"{request_id} is cancelled\n")
    again = json.loads(asking("cancel", request_id, "--json").stdout)
    assert again == {"request_id": request_id, "cancelled": True, "cancelling": False, "state": "cancelled"}
    assert asking("result", request_id).returncode == Exit.REQUEST_ENDED
    assert f"{request_id} had ended before: cancelled\n" == asking("cancel", request_id).stdout


def test_an_error_is_kept_with_its_status(asking: Run) -> None:
    request_id = detached(asking, "--provider", "fake", "--model", "rejected", "x")
    done = asking("result", request_id, "--wait", "--json")
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["details"]["request_id"]) == ("provider_rejected", request_id)
    shown = asking("result", request_id)
    assert (shown.returncode, shown.stdout) == (Exit.FAILED, "")
    assert shown.stderr.startswith("callpool: error: ")


@pytest.mark.parametrize("command", [("result",), ("result", "--wait"), ("show",), ("cancel",)], ids=" ".join)
def test_an_unknown_id_is_a_clear_error(asking: Run, command: tuple[str, ...]) -> None:
    done = asking(*command, "nobody")
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert done.stderr.splitlines()[0] in {"callpool: error: no request 'nobody'", "callpool: error: no job 'nobody'"}


def test_an_answer_that_is_hostile_or_empty(asking: Run) -> None:
    evil = detached(asking, "--provider", "fake", "--model", "evil", "x")
    assert asking("result", evil, "--wait").stdout == "a\\x1b[31mb\\x9bc\\u202ed\\r\ne\tf\n"
    silent = detached(asking, "--provider", "fake", "--model", "silent", "x")
    done = asking("result", silent, "--wait")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no text" in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_lets_go_of_a_job_and_says_how_to_get_it_back(
    supervisor: dict[str, str], begin: Begin, client: library.Client, *, as_json: bool
) -> None:
    request_id = f"let-go-{as_json}"
    more = ("--json", "--stream") if as_json else ()
    process = begin(supervisor, "submit", "--durable", *SLOW, "x", "--request-id", request_id, *more)
    said = process.stdout if as_json else process.stderr
    assert said is not None
    assert request_id in said.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (Exit.INTERRUPTED, "")
    assert "goes on without this command" in err
    assert f"callpool result {request_id} --wait" in err
    if as_json:
        assert json.loads(err)["error"]["code"] == "let_go"
    assert not client.job(request_id)["ended"]
    assert client.cancel(request_id)["cancelling"]


def test_ctrl_c_before_the_word_that_it_is_taken(asking: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.Client, "submit", pressed)
    done = asking("submit", "--durable", *ECHO, "x", "--request-id", "perhaps")
    assert (done.returncode, done.stdout) == (Exit.INTERRUPTED, "")
    assert done.stderr.startswith("callpool: job perhaps may have been taken\n")


def test_ctrl_c_lets_go_of_a_result(asking: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = detached(asking, *SLOW, "x")
    with monkeypatch.context() as patch:
        patch.setattr(library.Handle, "result", pressed)
        done = asking("result", request_id, "--wait")
    assert (done.returncode, done.stdout) == (Exit.INTERRUPTED, "")
    assert f"job {request_id} goes on without this command" in done.stderr
    assert json.loads(asking("cancel", request_id, "--json").stdout)["cancelling"]


def pressed(*_arguments: Any, **_named: Any) -> Any:
    raise KeyboardInterrupt


# Lists.


def test_the_list_its_filters_and_its_json(asking: Run, client: library.Client) -> None:
    for number in range(5):
        detached(asking, *ECHO, f"{number}", "--request-id", f"list-{number}", "--client", "lister")
    ground.wait_for("their ends", lambda: all(client.job(f"list-{number}")["ended"] for number in range(5)))
    waiting = detached(asking, *SLOW, "x", "--request-id", "list-slow", "--client", "lister")
    ground.wait_for("its call", lambda: client.job(waiting)["state"] == "started")
    document = json.loads(asking("jobs", "--client", "lister", "--json").stdout)
    assert document.keys() == {"jobs", "counts", "more"}
    assert [row["request_id"] for row in document["jobs"]] == [waiting, *(f"list-{n}" for n in (4, 3, 2, 1, 0))]
    assert all(row.keys() == FIELDS for row in document["jobs"])
    assert document["counts"]["started"] == 1
    assert not document["more"]
    some = json.loads(asking("jobs", "list", "--client", "lister", "--limit", "2", "--json").stdout)
    assert ([row["request_id"] for row in some["jobs"]], some["more"]) == ([waiting, "list-4"], True)
    states = ("--state", "queued", "--state", "started")
    [live] = json.loads(asking("jobs", *states, "--provider", "fake", "--all", "--json").stdout)["jobs"]
    assert live["request_id"] == waiting

    shown = asking("jobs", "--client", "lister", "--limit", "4")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0].split() == [*job_tables.COLUMNS]
    assert lines[1].split()[:4] == ["list-slow", "started", "fake/slow", "lister"]
    assert lines[4].startswith("list-2 ")
    assert "in the journal: 1 started, " in shown.stdout
    assert "there are more" in shown.stdout
    assert width(shown.stdout) <= 80
    assert asking("jobs", "--provider", "nobody").stdout.startswith("no such job\n")
    wrong = asking("jobs", "--state", "done", "--json")
    assert (wrong.returncode, wrong.stdout) == (Exit.USAGE, "")
    assert json.loads(wrong.stderr)["error"]["param"] == "states"
    asking("cancel", waiting)


def test_everything_is_listed_page_by_page(asking: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        detached(asking, *ECHO, "x", "--request-id", f"page-{number}", "--client", "pager")
    monkeypatch.setattr("callpool.tools.cli.jobs.PAGE_ROWS", 2)
    for arguments, count, more in (("--all",), 5, False), (("--limit", "5"), 5, False), (("--limit", "4"), 4, True):
        document = json.loads(asking("jobs", "--client", "pager", *arguments, "--json").stdout)
        assert [row["request_id"] for row in document["jobs"]] == [f"page-{n}" for n in (4, 3, 2, 1, 0)][:count]
        assert document["more"] == more


def row(**changes: Any) -> dict[str, Any]:
    usual = {
        "request_id": "req_c05696065fed622500000001", "client": "pid_16515_3", "provider": "kimi", "model": "kimi-k3",
        "state": "completed", "ended": True, "attempts": 1, "accepted_at": time.time() - 7_300, "started_at": None,
        "duration": 12.34, "blocked": None,
    }  # fmt: skip
    return usual | changes


def test_ids_stay_whole_and_all_keeps_to_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [
        row(), row(state="interrupted", duration=0.0), row(request_id="i" * 64, client="c" * 64, model="m\x1b[31m\n月"),
        row(state="queued", blocked="unknown provider 'kimi'", ended=False, attempts=0),
    ]  # fmt: skip
    counts = {"completed": 1, "interrupted": 1, "queued": 2, "new": 3}
    job_tables.show_jobs({"jobs": rows, "counts": counts, "more": True}, filtered=False)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert width(shown) <= 80
    lines = shown.splitlines()
    assert lines[1].split()[0] == rows[0]["request_id"]
    assert lines[1].split()[-3:] == ["1", "12.3", "s"]
    assert "2 h" in lines[1]
    assert "blocked: unknown provider 'kimi'" in shown
    assert "in the journal: 2 queued, 1 completed, 1 interrupted, 3 new" in shown
    assert "callpool jobs resolve" in shown


def test_an_empty_journal_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    job_tables.show_jobs({"jobs": [], "counts": {}, "more": False}, filtered=False)
    assert capsys.readouterr().out == "no job\n\nthe journal is empty\n"


# What tells of jobs.


def test_status_and_show_tell_of_jobs(asking: Run, client: library.Client) -> None:
    request_id = detached(asking, *SLOW, "x", "--request-id", "told")
    ground.wait_for("its call", lambda: client.job(request_id)["state"] == "started")
    facts = json.loads(asking("status", "--json").stdout)
    assert facts["jobs"]["started"] >= 1
    assert facts["jobs"].keys() == {"queued", "started", "blocked"}
    assert facts["journal"]["fault"] is None
    assert facts["journal"]["in_doubt"] == 0
    assert "0 queued, 1 started, 0 interrupted; journal" in asking("status").stdout
    record = json.loads(asking("show", request_id, "--json").stdout)
    assert (record["state"], record["durable"], record["blocked"]) == ("processing", True, None)
    assert "callpool result told" in asking("show", request_id).stdout
    assert asking("cancel", request_id).returncode == 0


def test_a_live_request_is_cancelled_too(supervisor: dict[str, str], asking: Run, begin: Begin) -> None:
    process = begin(supervisor, "submit", *SLOW, "x", "--request-id", "live-one")
    assert process.stderr is not None
    assert process.stderr.readline() == "request live-one\n"
    assert json.loads(asking("cancel", "live-one", "--json").stdout)["cancelled"]
    assert process.wait(timeout=20) == Exit.REQUEST_ENDED


def test_a_prompt_from_a_pipe_for_a_job(asking: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"of a pipe\n")))
    assert asking("result", detached(asking, *ECHO, "-"), "--wait").stdout == "of a pipe\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs",), ("jobs", "resolve", "a", "--fail"), ("result", "a"), ("cancel", "a"), ("show", "a"),
        ("submit", "--detach", *ECHO, "x"), ("journal", "check", "--address", "/nowhere/callpool.sock"),
    ],
    ids=lambda value: " ".join(value[:2]),
)  # fmt: skip
def test_without_a_supervisor_it_is_said(inside: Run, arguments: tuple[str, ...]) -> None:
    done = inside(*arguments)
    assert (done.returncode, done.stdout) == (Exit.NOT_RUNNING, "")
    assert "no supervisor runs at" in done.stderr
    assert "callpool start" in done.stderr
    assert json.loads(inside(*arguments, "--json").stderr)["error"]["code"] == "not_running"
