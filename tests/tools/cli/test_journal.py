"""The journal on the command line: jobs of earlier runs, those in doubt, those that are blocked, and the file itself."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest

import callpool as library
from callpool.manager import job_verbs
from callpool.manager.exits import Exit
from callpool.manager.journal_file import closed_journal
from callpool.tools.cli import job_export, processes, tables
from tests import ground

Run = Callable[..., CompletedProcess[str]]
ECHO = ("--provider", "fake", "--model", "echo")
SLOW = ("--provider", "fake", "--model", "slow")
CONFIG = """
[supervisor]
workers = 1
[providers.fake]
kind = "scripted"
concurrency = 2
models.echo = {}
models.slow = {delay = 60.0}
"""


@pytest.fixture
def config(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = base_folder / "callpool.toml"
    path.write_text(CONFIG)
    monkeypatch.setenv("CALLPOOL_CONFIG", str(path))
    return path


@pytest.fixture
def start(alone: Run, inside: Run, config: Path) -> Iterator[Callable[[], int]]:
    """Start a supervisor in the test's own directories; returns its pid. What runs at the end is drained at once."""

    def begin() -> int:
        started = alone("start", "--detach", "--json")
        assert started.returncode == 0, started.stderr
        pid: int = json.loads(started.stdout)["pid"]
        return pid

    yield begin
    inside("stop", "--timeout", "0")


def home() -> Path:
    return Path(os.environ["CALLPOOL_HOME"])


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    os.kill(pid, signal.SIGKILL)
    assert all(processes.wait_ended(each, 10.0) for each in family)


def test_jobs_outlive_a_supervisor_and_doubt_is_a_persons_to_resolve(
    start: Callable[[], int],
    inside: Run,
    on_terminal: Callable[..., Any],
    base_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pid = start()
    assert inside("submit", "--durable", *ECHO, "kept", "--request-id", "done-1").stdout == "kept\n"
    for name in ("doubt-1", "doubt-2", "wait-1"):
        assert inside("submit", "--detach", *SLOW, "a secret", "--request-id", name).returncode == 0
    with library.connect() as client:
        ground.wait_for("two calls", lambda: client.status()["jobs"]["started"] == 2)
    kill(pid)

    # Nobody runs: the file is asked.
    checked = inside("journal", "check", "--json")
    assert checked.returncode == Exit.OK
    facts = json.loads(checked.stdout)
    assert (facts["ok"], facts["problems"]) == (True, [])
    assert facts["counts"] == {"completed": 1, "queued": 1, "started": 2}
    lines = [json.loads(line) for line in inside("journal", "export", "--with-payload").stdout.splitlines()]
    assert [line["request_id"] for line in lines] == ["done-1", "doubt-1", "doubt-2", "wait-1"]
    assert lines[0]["result"]["content"] == "kept"
    assert lines[0]["request"] is None, "a prompt is dropped with the end"
    assert lines[3]["request"]["payload"]["messages"][0]["content"] == "a secret"
    monkeypatch.setattr(job_verbs, "PAGE_BYTES", 1)
    assert len(inside("journal", "export").stdout.splitlines()) == 4, "a page a job"
    target = base_folder / "jobs.jsonl"
    written = inside("journal", "export", "--output", str(target), "--without-results", "--json")
    assert json.loads(written.stdout) == {"path": str(target), "jobs": 4, "bytes": target.stat().st_size}
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert "secret" not in target.read_text()
    assert "result" not in json.loads(target.read_text().splitlines()[0])
    compacted = inside("journal", "compact", "--json")
    assert json.loads(compacted.stdout).keys() == {"before", "after"}
    assert inside("jobs").returncode == Exit.NOT_RUNNING

    # The next run: what was in doubt waits for a word, the rest goes on; the core knows nothing of what had ended.
    start()
    shown = inside("show", "done-1")
    assert shown.returncode == 0
    assert "completed" in shown.stdout
    assert "callpool result done-1" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    record = json.loads(inside("show", "done-1", "--json").stdout)
    assert (record["state"], record["durable"], record["timeout"]) == ("completed", True, None)
    assert [phase["phase"] for phase in record["phases"]] == ["RECEIVED", "SESSION_ALLOCATED", "COMPLETED"]
    with library.connect() as client:
        client.submit(provider="fake", model="echo", messages=[{"role": "user", "content": "x"}], request_id="live")
        ground.wait_for("its end", lambda: client.show("live")["state"] == "completed")
        assert record.keys() == client.show("live").keys(), "one shape, whoever tells"
    assert inside("result", "done-1").stdout == "kept\n"
    assert inside("cancel", "done-1").stdout == "done-1 had ended before: completed\n"
    assert "2 interrupted; journal" in inside("status").stdout
    in_doubt = inside("result", "doubt-1")
    assert (in_doubt.returncode, in_doubt.stdout) == (Exit.REQUEST_ENDED, "")
    assert "callpool jobs resolve ID --retry" in in_doubt.stderr

    refused = inside("jobs", "resolve", "doubt-1", "--retry")
    assert refused.returncode == Exit.USAGE
    assert "--yes" in refused.stderr
    screen = on_terminal(dict(os.environ), "jobs", "resolve", "doubt-1", "--retry")
    screen.until("may be paid twice. [y/N] ")
    screen.press("n\n")
    status, text = screen.rest()
    assert (status, "nothing was changed" in text) == (Exit.FAILED, True)
    assert json.loads(inside("jobs", "--state", "interrupted", "--json").stdout)["counts"]["interrupted"] == 2
    screen = on_terminal(dict(os.environ), "jobs", "resolve", "doubt-1", "--retry")
    screen.until("[y/N] ")
    screen.press("y\n")
    status, text = screen.rest()
    assert status == 0
    assert "job doubt-1 is called again" in text
    failed = inside("jobs", "resolve", "doubt-2", "--fail", "--json")
    assert json.loads(failed.stdout) == {"request_id": "doubt-2", "state": "error"}
    screen = on_terminal(dict(os.environ), "jobs", "resolve", "doubt-2", "--retry")
    status, text = screen.rest()
    assert (status, "[y/N]" in text) == (Exit.FAILED, False), "nobody is asked about what is not in doubt"
    again = inside("jobs", "resolve", "doubt-2", "--fail")
    assert again.returncode == Exit.FAILED
    assert "only one in doubt" in again.stderr
    assert inside("jobs", "resolve", "nobody", "--fail").returncode == Exit.FAILED
    assert "0 interrupted; journal" in inside("status").stdout

    # The same words while it runs.
    assert inside("journal", "check").stdout.startswith(f"the journal is well: {home()}/journal.db, ")
    assert len(inside("journal", "export").stdout.splitlines()) == 4
    assert inside("journal", "compact").stdout.startswith("the journal had ")
    for name in ("doubt-1", "wait-1"):
        assert inside("cancel", name).returncode == 0


def test_a_job_whose_provider_is_gone_says_that_it_is_blocked(
    start: Callable[[], int], inside: Run, config: Path
) -> None:
    start()
    for number in range(3):
        inside("submit", "--detach", *SLOW, "x", "--request-id", f"job-{number}")
    stopped = inside("stop", "--timeout", "0", "--json")
    assert json.loads(stopped.stdout)["parked"] == 1
    config.write_text(CONFIG.replace("providers.fake", "providers.other"))
    start()
    [row] = json.loads(inside("jobs", "--state", "queued", "--json").stdout)["jobs"]
    assert (row["request_id"], row["blocked"]) == ("job-2", "unknown provider 'fake'")
    assert inside("jobs").stdout.splitlines()[1].split()[:2] == ["job-2", "blocked"]
    shown = " ".join(inside("show", "job-2").stdout.split())
    assert "blocked until that is mended and the supervisor started again: unknown provider 'fake'" in shown
    result = inside("result", "job-2")
    assert result.returncode == Exit.NOT_YET
    assert "blocked" in result.stderr
    assert "1 queued (1 blocked)" in inside("status").stdout
    assert json.loads(inside("cancel", "job-2", "--json").stdout)["cancelled"]


# The file itself.


def test_without_a_journal_nothing_is_made(inside: Run) -> None:
    for command in ("check", "compact", "export"):
        done = inside("journal", command)
        assert (done.returncode, done.stdout) == (Exit.FAILED, "")
        assert done.stderr.startswith(f"callpool: error: there is no journal at {home()}/journal.db\n")
    assert not list(home().iterdir())


def test_a_damaged_journal_is_told_with_a_status_of_its_own(start: Callable[[], int], inside: Run) -> None:
    start()
    inside("submit", "--durable", *ECHO, "x" * 50_000)
    inside("stop", "--timeout", "0")
    path = home() / "journal.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * 8192 + whole[12_288:])
    done = inside("journal", "check")
    assert (done.returncode, done.stderr) == (Exit.DAMAGED, "")
    assert done.stdout.startswith(f"the journal is not well: {path}\n- ")
    facts = json.loads(inside("journal", "check", "--json").stdout)
    assert (facts["ok"], facts["counts"]) == (False, None)
    assert "damaged" in facts["problems"][0]
    assert inside("journal", "export").returncode == Exit.FAILED


def test_a_journal_that_somebody_works_on_is_left_alone(start: Callable[[], int], alone: Run, inside: Run) -> None:
    start()
    elsewhere = inside("status", "--json")
    address = json.loads(elsewhere.stdout)["address"]
    other = {"CALLPOOL_RUNTIME_DIR": str(home() / "nowhere")}
    done = alone("journal", "check", env=other)
    assert (done.returncode, done.stdout) == (Exit.ALREADY_RUNNING, "")
    assert f"--address {address}" in done.stderr
    inside("stop", "--timeout", "0")
    with closed_journal(home()) as journal:
        assert journal.check()["problems"] == []
        refused = inside("journal", "check")
        assert refused.returncode == Exit.ALREADY_RUNNING
        assert f"process {os.getpid()} works on the journal" in refused.stderr
        started = alone("start", "--detach")
        assert started.returncode == Exit.ALREADY_RUNNING
        assert f"process {os.getpid()} works on the journal" in started.stderr
    assert inside("journal", "check").returncode == 0
    with sqlite3.connect(home() / "journal.db") as database:
        database.execute("PRAGMA user_version=99")
    database.close()
    newer = inside("journal", "check")
    assert newer.returncode == Exit.DAMAGED
    assert "newer callpool" in newer.stdout


def test_a_supervisor_without_a_journal_says_so(start: Callable[[], int], inside: Run, config: Path) -> None:
    config.write_text(f'{CONFIG}[journal]\ndurability = "none"\n')
    start()
    done = inside("submit", "--detach", *ECHO, "x")
    assert (done.returncode, done.stdout) == (Exit.FAILED, "")
    assert "keeps no journal" in done.stderr
    for arguments in (("jobs",), ("result", "x"), ("journal", "check")):
        assert "keeps no journal" in inside(*arguments).stderr
    assert inside("show", "nobody").stderr.startswith("callpool: error: no request 'nobody'\n")
    assert "none are taken: no journal is kept" in inside("status").stdout
    assert json.loads(inside("status", "--json").stdout)["journal"] is None
    assert inside("health").returncode == Exit.OK


def test_a_job_without_room_is_refused_and_live_calls_go_on(
    start: Callable[[], int], inside: Run, config: Path
) -> None:
    config.write_text(f"{CONFIG}[journal]\nmax_bytes = 1048576\n")
    start()
    with library.connect() as client, pytest.raises(library.JournalUnavailable):
        client.submit(
            provider="fake", model="echo", messages=[{"role": "user", "content": "x" * 2_000_000}], durable=True
        )
    assert inside("submit", *ECHO, "live calls go on").returncode == 0


def test_a_file_is_written_whole_or_not_at_all(base_folder: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield {"request_id": "a"}
        raise KeyboardInterrupt

    target = base_folder / "out.jsonl"
    target.write_text("before\n")
    with pytest.raises(KeyboardInterrupt):
        job_export.write_file(target, broken())
    assert target.read_text() == "before\n"
    assert [path.name for path in base_folder.iterdir() if "out" in path.name] == ["out.jsonl"]
    target.chmod(0o644)
    assert job_export.write_file(target, [{"a": "\x1b"}, {"b": 1}]) == 2
    assert (target.read_text(), stat.S_IMODE(target.stat().st_mode)) == ('{"a": "\\u001b"}\n{"b": 1}\n', 0o600)


def test_texts_that_are_no_json_are_told() -> None:
    told = job_export.plain({"request": {"payload": b"{", "metadata": b"{}"}, "result": b'{"content": "x"}'})
    assert told == {"request": {"payload": {"unreadable": "1 bytes"}, "metadata": {}}, "result": {"content": "x"}}


def test_a_fault_is_in_the_line_of_the_status() -> None:
    journal = {"in_doubt": 2, "bytes": 2048, "fault": "no room"}
    line = tables._jobs({"queued": 3, "started": 1, "blocked": 1}, journal).plain
    assert line == "3 queued (1 blocked), 1 started, 2 interrupted; journal 2.0 KiB; none are taken: no room"
