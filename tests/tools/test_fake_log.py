"""The fake provider's log as a witness, its process, and its command line."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest

from callpool.tools.testing.fake_provider import (
    FAULTS,
    CallRecord,
    FakeProvider,
    FakeProviderProcess,
    Totals,
    peak_active,
    read_log,
)
from callpool.tools.testing.fake_records import LogReader
from tests.tools.raw_client import HANG, KEY, ask, chat, connect, leave, with_limit

COMMAND = [sys.executable, "-Im", "callpool.tools.testing.fake_provider"]


def post(base_url: str, key: str = KEY, **body: Any) -> tuple[int, Any]:
    """One plain call, blocking: the status and the decoded body."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]} | body
    headers = {"Authorization": f"Bearer {key}"}
    address = urlsplit(base_url)
    with closing(http.client.HTTPConnection(address.netloc, timeout=HANG)) as connection:
        connection.request("POST", f"{address.path}/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.load(answer)


def get(url: str) -> Any:
    """The decoded body at an address, with `KEY`."""
    address = urlsplit(url)
    with closing(http.client.HTTPConnection(address.netloc, timeout=HANG)) as connection:
        connection.request("GET", address.path, headers={"Authorization": f"Bearer {KEY}"})
        return json.load(connection.getresponse())


@contextmanager
def left_open(base_url: str, count: int) -> Iterator[None]:
    """This many calls in threads, whose connections break when the fake ends; waits for the threads at the end."""

    def broken() -> None:
        with pytest.raises(OSError):  # which one depends on the moment
            post(base_url, fake={"fault": "silence"})

    with ThreadPoolExecutor(count) as threads:
        calls = [threads.submit(broken) for _ in range(count)]
        yield
        for call in calls:
            call.result(HANG)


def record(number: int, arrived: float, ended: float | None) -> CallRecord:
    return CallRecord(
        server="s",
        number=number,
        connection=1,
        model="m",
        stream=False,
        digest="",
        last_message="",
        key_tail="",
        arrived=arrived,
        active_at_arrival=1,
        ended=ended,
    )


# The log.


def test_peak_active() -> None:
    assert peak_active([]) == 0
    assert peak_active([record(1, 0.0, 1.0), record(2, 1.0, 2.0)]) == 1, "one that ends makes room for one that begins"
    assert peak_active([record(1, 0.0, 3.0), record(2, 1.0, 2.0), record(3, 1.5, 4.0), record(4, 3.5, 5.0)]) == 3
    assert peak_active([record(1, 0.0, None), record(2, 9.0, None)]) == 2, "an open call has no end"


def test_the_log_and_the_memory_tell_the_same(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"

    async def main() -> None:
        async with FakeProvider(log_path=log, api_key=KEY, concurrency=2) as fake:
            _, gone = await connect(fake.base_url)
            gone.write(chat(key=KEY, fake={"delay": 60}))
            await fake.wait_for(lambda calls: len(calls) == 1)
            await ask(fake.base_url, chat(key="sk-wrong-key-0"))
            await asyncio.gather(*(ask(fake.base_url, chat(key=KEY, stream=True)) for _ in range(10)))
            await ask(fake.base_url, chat(key=KEY, model="fault-garbage"))
            assert read_log(log) == fake.calls
            await leave(gone)
            await fake.wait_for(lambda calls: calls[0].outcome == "client_gone")
            _, stuck = await connect(fake.base_url)
            stuck.write(chat(key=KEY, fake={"delay": 60}))
            await fake.wait_for(lambda calls: len(calls) == 14)
        await leave(stuck)
        assert read_log(log) == fake.calls
        assert [call.outcome for call in fake.calls[-2:]] == ["fault:garbage", "stopped"]
        reader = LogReader(log)
        assert len(reader.read()) == 14
        assert fake.totals == reader.totals == Totals(connections=14, calls=14)

    asyncio.run(with_limit(main()))
    assert log.stat().st_mode & 0o777 == 0o600
    assert KEY not in log.read_text()
    assert KEY[:-4] not in log.read_text()


def test_several_fakes_may_share_a_log_one_after_another_and_at_once(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"

    async def main() -> None:
        async with FakeProvider(log_path=log) as first, FakeProvider(log_path=log) as second:
            for fake in (first, second, first):
                await ask(fake.base_url, chat())
            port = int(first.base_url.rpartition(":")[2].partition("/")[0])
        async with FakeProvider(log_path=log, port=port) as again:
            await ask(again.base_url, chat())
        assert [call.number for call in read_log(log)] == [1, 1, 2, 1]
        assert [call.outcome for call in read_log(log)] == ["answered"] * 4

    asyncio.run(with_limit(main()))


def test_a_torn_last_line_waits_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    with FakeProviderProcess(log_path=log) as fake:
        post(fake.base_url)
    whole = log.read_bytes()
    log.write_bytes(whole[:-5])
    [call] = read_log(log)
    assert call.outcome == "open", "the line of its end is not whole"
    log.write_bytes(whole[:-5] + b"\n")
    with pytest.raises(ValueError, match="truncated"):
        read_log(log)
    log.write_bytes(whole + whole[whole.rindex(b'{"event":"end"') :])
    with pytest.raises(ValueError, match="call 1 at .* is not open"):
        read_log(log)
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "none")


def test_no_address_before_the_start_and_no_log_no_start(tmp_path: Path) -> None:
    async def main() -> None:
        fake = FakeProvider(log_path=tmp_path / "no folder" / "calls.jsonl")
        with pytest.raises(RuntimeError, match="before start"):
            _ = fake.base_url
        with pytest.raises(FileNotFoundError):
            await fake.start()
        async with FakeProvider() as other:
            port = int(other.base_url.rpartition(":")[2].partition("/")[0])
            with pytest.raises(OSError, match="in use"):
                await FakeProvider(port=port, log_path=tmp_path / "log").start()

    asyncio.run(with_limit(main()))


# The process.


def test_the_log_is_the_truth_after_kill_9() -> None:
    fake = FakeProviderProcess()
    with fake, left_open(fake.base_url, 3):
        assert [post(fake.base_url, fake={"reply": str(number)})[0] for number in range(5)] == [200] * 5
        before = fake.wait_for(lambda calls: len(calls) == 8)
        os.kill(fake.pid, signal.SIGKILL)
        with pytest.raises(TimeoutError, match=r"ended \(-9\)"):
            fake.wait_for(lambda calls: len(calls) == 9, timeout=HANG)
    assert fake.log() == before
    assert sorted(call.outcome for call in before) == ["answered"] * 5 + ["open"] * 3
    assert peak_active(before) == max(call.active_at_arrival for call in before)
    fake.stop()


def test_stop_ends_open_calls_and_what_the_log_says_stays() -> None:
    with FakeProviderProcess(dialect="kimi", api_key=KEY, reply="fixed") as fake, left_open(fake.base_url, 2):
        assert post(fake.base_url, key="sk-wrong-key")[0] == 401
        status, body = post(fake.base_url)
        assert (status, body["choices"][0]["message"]["content"], body["usage"]["cached_tokens"]) == (200, "fixed", 0)
        fake.wait_for(lambda calls: sum(call.fault == "silence" for call in calls) == 2)
        fake.stop()
    assert sorted(call.outcome for call in fake.log()) == ["answered", "rejected", "stopped", "stopped"]
    assert fake.wait_for(lambda calls: len(calls) == 4, timeout=0.0)


def test_options_reach_the_process() -> None:
    with FakeProviderProcess(rpm=1, tpm=10_000, concurrency=5, delay=0.05, chunks=2, chunk_delay=0.01) as fake:
        assert [post(fake.base_url)[0] for _ in range(2)] == [200, 429]
        [answered, _] = fake.log()
        assert answered.first_byte is not None
        assert answered.first_byte - answered.arrived >= 0.02  # uvloop rounds
        with pytest.raises(TimeoutError, match="not seen within"):
            fake.wait_for(lambda calls: len(calls) == 3, timeout=0.01)


def test_every_option_of_an_answer_reaches_the_process() -> None:
    calls = [{"name": "f", "arguments": {"a": "ü"}}]
    options: dict[str, Any] = {
        "delay": 0,
        "polls": 0,
        "task_fails": True,
        "reasoning": "hm",
        "tool_calls": calls,
        "reply": "--text",
    }
    with FakeProviderProcess(dialect="glm", tpd=10_000, finish_reason="odd", **options) as fake:
        message = post(fake.base_url)[1]["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("--text", "hm")
        assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":"ü"}'}
        assert post(fake.base_url, max_tokens=10_000)[1]["error"]["code"] == "1304"
        made = post(f"{fake.base_url}/async", key=KEY)[1]
        assert get(f"{fake.base_url}/async-result/{made['id']}")["task_status"] == "FAIL"
        assert fake.totals == Totals(connections=4, calls=4)
    assert fake.totals == Totals(connections=4, calls=4), "the log is gone, its figures are not"
    with FakeProviderProcess(piece_tokens=1, fault="huge_header", fault_times=1, size=9, task_fails=False) as fake:
        assert post(fake.base_url)[1]["choices"][0]["message"]["content"] == "echo"
        assert [post(fake.base_url)[0], [call.fault for call in fake.log()]] == [200, ["huge_header", None]]


def test_a_process_that_cannot_start_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with FakeProviderProcess() as fake:
        port = int(fake.base_url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(RuntimeError, match="ended with 2 before it was ready"):
            FakeProviderProcess(port=port)
    assert "in use" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="ended with 2"):
        FakeProviderProcess(dialect="klingon")
    assert "invalid choice: 'klingon'" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="ended with 2"):
        FakeProviderProcess(fault_time=1)
    assert "unrecognized arguments: --fault-time=1" in capfd.readouterr().err


# The command line.


def first_line(stdout: IO[bytes] | None) -> Any:
    assert stdout is not None
    return json.loads(stdout.readline())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        ready = first_line(process.stdout)
        assert ready["pid"] == process.pid
        assert post(ready["base_url"])[0] == 200
        process.send_signal(number)
        assert process.wait(HANG) == 0


def test_it_ends_with_the_process_that_holds_its_lifeline(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from callpool.tools.testing.fake_provider import FakeProviderProcess
        fake = FakeProviderProcess(log_path=sys.argv[1])
        print(fake.base_url, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    parent = subprocess.run(  # the fake has no other copy of this pipe, so its end tells nothing of the fake's
        [sys.executable, "-Ic", code, str(tmp_path / "log")], stdout=subprocess.PIPE, timeout=HANG, check=False
    )
    assert parent.returncode == -signal.SIGKILL
    # `clean_ground` cannot see a grandchild that was orphaned; its port can.
    base_url = parent.stdout.decode().strip()

    async def until_closed() -> None:
        while True:
            try:
                _, writer = await connect(base_url)
            except ConnectionError:
                return
            await leave(writer)

    asyncio.run(with_limit(until_closed()))


def test_help_and_lists() -> None:
    listed = subprocess.run([*COMMAND, "--list-faults"], capture_output=True, text=True, timeout=HANG, check=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(FAULTS)
    helped = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=HANG, check=True)
    for option in ("--port", "--dialect", "--delay", "--chunks", "--chunk-delay", "--concurrency", "--rpm", "--tpm"):
        assert option in helped.stdout
    for wrong, text in (
        (["--delay=-1"], "delay"),
        (["--rpm=-1"], "rpm"),
        (["--api-key-env=NONE_SUCH"], "NONE_SUCH"),
        (["--tool-calls={"], "--tool-calls: Input data was truncated"),
        (["--tool-calls={}"], "tool_calls"),
        (["--fault=silense"], "the nearest is 'silence'"),
    ):
        refused = subprocess.run([*COMMAND, *wrong], capture_output=True, text=True, timeout=HANG, check=False)
        assert refused.returncode == 2
        assert text in refused.stderr
        assert "Traceback" not in refused.stderr
