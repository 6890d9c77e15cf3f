"""Starting: daemon, foreground, embedded; once per directory and once per key; after any kind of death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

import callpool
from callpool.manager import launch
from callpool.manager.boot import Began
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import HANG, HELLO, alive, detached, eventually, openai_at, scripted

UNGUARDED = """
import callpool
config = {"providers": {"fake": {"kind": "scripted", "models": {"m": {"reply": "hello"}}}}}
with callpool.start(config) as client:
    handle = client.submit(provider="fake", model="m", messages=[{"role": "user", "content": "hi"}])
    print(handle.result(20)["content"], client.status()["pid"])
"""
NEVER_CLOSED = """
import sys, callpool
config = {"providers": {"fake": {"kind": "scripted", "models": {"hang": {"error": "hang"}}}}}
context = callpool.start(config)
client = context.__enter__()
client.submit(provider="fake", model="hang", messages=[{"role": "user", "content": "hi"}])
print(client.status()["pid"], flush=True)
sys.stdin.read()
"""


def _submit(client: callpool.Client) -> str:
    content: str = client.submit(provider="fake", model="m", messages=HELLO).result(HANG)["content"]
    return content


def test_an_embedded_supervisor_serves_and_leaves_nothing(base_folder: Path) -> None:
    with callpool.start(scripted()) as client:
        assert _submit(client) == "hello"
        supervisor = psutil.Process(client.status()["pid"])
        family = [supervisor, *supervisor.children(recursive=True)]
        with callpool.connect(client.address) as other:
            assert _submit(other) == "hello"
    eventually(lambda: not alive(family), within=2.0)
    assert list((base_folder / "run" / "embedded").iterdir()) == []


def test_a_supervisor_that_is_told_to_stop_while_it_starts_is_not_called_ready() -> None:
    """The order comes before its first worker is up."""
    failures: list[BaseException] = []

    def starting() -> None:
        try:
            launch.start_detached(launch.plan(scripted(), os.environ))
        except callpool.CallpoolError as error:
            failures.append(error)

    thread = threading.Thread(target=starting)
    thread.start()
    lock = Path(os.environ["CALLPOOL_RUNTIME_DIR"]) / "callpool.sock"
    eventually(lock.exists)  # it listens before its workers are up
    supervisor = psutil.Process(json.loads(lock.with_name("supervisor.lock").read_text())["pid"])
    supervisor.terminate()
    thread.join(HANG)
    if not failures:  # the first worker was faster than this test: then it was ready, and drains
        eventually(lambda: not alive([supervisor]))
        return
    assert isinstance(failures[0], callpool.StartFailed)
    assert "told to stop" in failures[0].message


def test_it_starts_from_a_thread_that_ends_before_it(base_folder: Path) -> None:
    """The kernel's parent-death signal follows the starting thread: an embedded supervisor must not rest on it."""
    entered = []
    context = callpool.start(scripted())
    thread = threading.Thread(target=lambda: entered.append(context.__enter__()))
    thread.start()
    thread.join(HANG)
    try:
        assert _submit(entered[0]) == "hello"
    finally:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("way", ["script", "stdin", "command"])
def test_it_starts_from_an_unguarded_program(base_folder: Path, way: str) -> None:
    script = base_folder / "unguarded.py"
    script.write_text(UNGUARDED)
    command = {"script": [str(script)], "stdin": ["-"], "command": ["-c", UNGUARDED]}[way]
    ended = subprocess.run(
        [sys.executable, *command],
        input=UNGUARDED if way == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    content, pid = ended.stdout.split()
    assert content == "hello"
    assert not psutil.pid_exists(int(pid)) or not alive([psutil.Process(int(pid))])


def test_names_in_the_working_directory_shadow_nothing(base_folder: Path) -> None:
    """A user's own tools/, workers/ and json.py lie beside the script that embeds a supervisor."""
    for name in ("tools", "workers", "manager", "json", "queue"):
        (base_folder / f"{name}.py").write_text("raise RuntimeError('imported from the working directory')\n")
    ended = subprocess.run(
        [sys.executable, "-P", "-c", UNGUARDED],
        cwd=base_folder,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_an_embedded_supervisor_ends_with_its_process_however_that_ends() -> None:
    with subprocess.Popen(
        [sys.executable, "-Ic", NEVER_CLOSED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        supervisor = psutil.Process(int(owner.stdout.readline()))
        family = [supervisor, *supervisor.children(recursive=True)]
        owner.kill()
        eventually(lambda: not alive(family), within=5.0, why="the embedded supervisor outlives its process")


@pytest.mark.parametrize("way", ["leaves the block", "is killed"])
def test_a_forked_child_does_not_keep_an_embedded_supervisor_alive(way: str) -> None:
    """A child that its process forks holds a copy of every descriptor, the lifeline too."""
    forking = """
import os, sys, callpool
config = {"providers": {"fake": {"kind": "scripted", "models": {"m": {}}}}}
with callpool.start(config) as client:
    print(client.status()["pid"], flush=True)
    if os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    if sys.argv[1] == "is killed":
        os.kill(os.getpid(), 9)
print("left", flush=True)
os._exit(0)
"""
    command = [sys.executable, "-Ic", forking, way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        supervisor = psutil.Process(int(owner.stdout.readline()))
        family = [supervisor, *supervisor.children(recursive=True)]
        eventually(
            lambda: not alive(family), within=5.0, why="the embedded supervisor lives as long as the forked child"
        )


def test_two_embedded_supervisors_live_side_by_side() -> None:
    with callpool.start(scripted()) as one, callpool.start(scripted()) as two:
        assert one.address != two.address
        assert _submit(one) == _submit(two) == "hello"


def test_the_second_supervisor_of_a_directory_is_refused_and_told_where_the_first_is() -> None:
    with detached(scripted()) as first:
        with pytest.raises(callpool.AlreadyRunning) as refusal:
            detached(scripted())
        assert refusal.value.pid == first.pid
        with first.connect() as client:
            assert refusal.value.address == client.address
            assert _submit(client) == "hello"


def test_of_two_starts_at_once_exactly_one_wins() -> None:
    for _ in range(5):
        outcomes: list[Began | callpool.CallpoolError] = []

        def start(outcomes: list[Began | callpool.CallpoolError] = outcomes) -> None:
            try:
                outcomes.append(launch.start_detached(launch.plan(scripted(), os.environ)))
            except callpool.AlreadyRunning as error:
                outcomes.append(error)

        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG)
        won = [outcome for outcome in outcomes if not isinstance(outcome, callpool.CallpoolError)]
        assert len(outcomes) == 2
        assert len(won) == 1
        with callpool.connect() as client:
            client.drain(wait=HANG)
        winner = [process for process in psutil.process_iter() if process.pid == won[0].pid]
        eventually(lambda gone=winner: not alive(gone))  # type: ignore[misc]  # mypy infers no lambda with a default


def test_one_ledger_per_key_and_the_key_stays_in_the_workers(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second supervisor with the same key is refused, whatever its directories; the key is in no environment, argument or log."""
    key = "sk-CANARY-5f0c9a"
    monkeypatch.setenv("FAKE_API_KEY", key)
    with FakeProviderProcess(api_key=key) as fake:
        config = openai_at(fake.base_url, api_key_env="FAKE_API_KEY")
        with detached(config) as first:
            with first.connect() as client:
                assert _submit(client) == "echo: hello"
                bad = client.submit(provider="fake", model="fault-unauthorized", messages=HELLO).exception(HANG)
                assert isinstance(bad, callpool.CredentialRefused)
                assert key not in str(bad.fault)
            for process in first.family():
                assert key not in str(process.environ()), process.name()
                assert key not in str(process.cmdline())
            monkeypatch.setenv("CALLPOOL_HOME", str(base_folder / "home2"))
            monkeypatch.setenv("CALLPOOL_RUNTIME_DIR", str(base_folder / "run2"))
            with pytest.raises(callpool.KeyInUse) as refusal, callpool.start(config):
                pass
            assert refusal.value.pid == first.pid
            assert refusal.value.address == str(base_folder / "run" / "callpool.sock")
    for path in base_folder.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("leftover", ["socket", "directory entry", "pid of a stranger"])
def test_what_a_dead_supervisor_left_blocks_nobody_and_harms_no_stranger(base_folder: Path, leftover: str) -> None:
    with subprocess.Popen([sys.executable, "-Ic", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as stranger:
        run = base_folder / "run"
        with detached(scripted()) as first:
            os.kill(first.pid, signal.SIGKILL)
            first.ended()
        if leftover == "directory entry":
            (run / "callpool.sock").unlink()
            (run / "callpool.sock").write_text("no socket")
        if leftover == "pid of a stranger":
            (run / "supervisor.lock").write_text(f'{{"pid":{stranger.pid},"address":"x","started":0}}')
        with detached(scripted()) as second, second.connect() as client:
            assert _submit(client) == "hello"
        assert stranger.poll() is None


def test_a_failed_start_tells_why_and_leaves_nothing(base_folder: Path) -> None:
    (base_folder / "run").chmod(0o777)
    with pytest.raises(callpool.UnsafePath, match="mode 0777") as unsafe:
        detached(scripted())
    assert "chmod 700" in str(unsafe.value.hint)
    (base_folder / "run").chmod(0o700)
    with pytest.raises(callpool.ConfigError):
        detached({"providers": {"x": {"kind": "nothing"}}})
    with pytest.raises(callpool.NotRunning) as refusal:
        callpool.connect()
    assert refusal.value.hint == "run `callpool start`"
