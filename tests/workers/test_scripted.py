"""The scripted provider: answers, chunks and faults from the configuration."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys

import pytest

from callpool.manager.errors import (
    BrokenAnswer,
    CallpoolError,
    ConfigError,
    ContentRefused,
    CredentialRefused,
    ModelGone,
    ProviderError,
    ProviderOverloaded,
    ProviderRejected,
    ProviderUnreachable,
    QuotaExhausted,
    RateLimited,
    RequestTimeout,
)
from callpool.manager.settings import ModelSettings
from callpool.workers.call import run_call
from callpool.workers.providers.base import Answer, Call
from callpool.workers.providers.completion import Joined, read_completion
from callpool.workers.providers.presets import find_usage
from callpool.workers.providers.scripted import FAULTS, Scripted, check_fault
from tests.workers.recorder import Recorder

HANG = 20.0


def make_call(content: str = "one two three", *, model: str = "m", stream: bool = False, timeout: float = HANG) -> Call:
    return Call(
        request_id="req_1",
        attempt=1,
        provider="fake",
        model=model,
        stream=stream,
        timeout=timeout,
        messages=[{"role": "user", "content": content}],
    )


def play(script: ModelSettings, call: Call | None = None, progress: Recorder | None = None) -> Answer:
    provider = Scripted({"m": script})
    return asyncio.run(run_call(provider, call or make_call(), progress or Recorder()))


def test_without_a_script_the_last_message_comes_back() -> None:
    progress = Recorder()
    answer = play(ModelSettings(), make_call("héllo wörld"), progress)
    assert (answer.content, answer.finish_reason, progress.starts) == ("héllo wörld", "stop", 0)
    assert answer.usage == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_raw_is_a_completion_that_reads_back_as_the_same_answer() -> None:
    answer = play(ModelSettings(reply="four words for you"))
    assert read_completion(answer.raw, find_usage) == answer


def test_replies_come_in_turn_and_the_last_one_stays() -> None:
    async def main() -> list[str]:
        provider = Scripted({"m": ModelSettings(replies=["a", "b"], reply="never")})
        return [(await provider.call(make_call(), Recorder())).content for _ in range(4)]

    assert asyncio.run(main()) == ["a", "b", "b", "b"]


@pytest.mark.parametrize(("chunks", "pieces"), [(0, ["one  ", "two\n", "three"]), (2, ["one  tw", "o\nthree"])])
def test_a_stream_is_cut_as_the_script_says(chunks: int, pieces: list[str]) -> None:
    progress = Recorder()
    answer = play(ModelSettings(reply="one  two\nthree", chunks=chunks), make_call(stream=True), progress)
    assert progress.texts == [*pieces, ""]  # the last chunk carries the finish reason
    assert answer.content == "one  two\nthree"


def test_chunks_join_to_the_answer() -> None:
    progress = Recorder()
    answer = play(ModelSettings(reply="a b c"), make_call(stream=True), progress)
    joined = Joined(find_usage)
    for chunk in progress.chunks:
        joined.add(chunk)
    assert joined.complete
    assert read_completion(joined.body(), find_usage).content == answer.content


def test_more_chunks_than_letters() -> None:
    progress = Recorder()
    play(ModelSettings(reply="ab", chunks=5), make_call(stream=True), progress)
    assert len(progress.texts) == 6
    assert "".join(progress.texts) == "ab"


@pytest.mark.parametrize(
    ("script", "stream"),
    [
        (ModelSettings(delay=HANG), False),
        (ModelSettings(reply="a b", chunk_delay=HANG), True),
        (ModelSettings(error="hang"), False),
    ],
)
def test_delays_end_with_the_deadline(script: ModelSettings, *, stream: bool) -> None:
    with pytest.raises(RequestTimeout):
        play(script, make_call(stream=stream, timeout=0.02))


CLASSES = [
    ("unreachable", ProviderUnreachable, True),
    ("rejected", ProviderRejected, False),
    ("credential", CredentialRefused, False),
    ("model_gone", ModelGone, False),
    ("content", ContentRefused, False),
    ("quota", QuotaExhausted, False),
    ("overloaded", ProviderOverloaded, True),
    ("rate_limited", RateLimited, True),
    ("server_error", ProviderError, True),
    ("broken_answer", BrokenAnswer, True),
    ("raise", ProviderError, False),
    ("system_exit", ProviderError, False),
    ("recursion", ProviderError, False),
    ("memory", ProviderError, False),
]


@pytest.mark.parametrize(("fault", "kind", "retryable"), CLASSES)
def test_faults_raise_their_class(fault: str, kind: type[CallpoolError], *, retryable: bool) -> None:
    with pytest.raises(CallpoolError) as caught:
        play(ModelSettings(error=fault))
    assert type(caught.value) is kind
    assert caught.value.retryable is retryable
    assert (caught.value.provider, caught.value.model) == ("fake", "m")
    assert pickle.loads(pickle.dumps(caught.value)).details == caught.value.details  # noqa: S301  our own bytes


def test_a_fault_may_come_after_chunks() -> None:
    progress = Recorder()
    with pytest.raises(ProviderUnreachable):
        play(ModelSettings(reply="ab", chunks=2, error="unreachable"), make_call(stream=True), progress)
    assert progress.texts == ["a", "b"]


def test_the_foreign_exception_really_cannot_be_unpickled() -> None:
    async def main() -> None:
        await FAULTS["raise"](make_call())

    with pytest.raises(Exception, match="scripted exception") as caught:
        asyncio.run(main())
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(caught.value))  # noqa: S301  our own bytes


PLAY_IN_A_PROCESS = """
import asyncio, sys
from callpool.manager.settings import ModelSettings
from callpool.workers.providers.base import Call
from callpool.workers.providers import script_faults, scripted
script_faults.BLOCK_SECONDS = 0.0
class Progress:
    async def started(self): print("started", flush=True)
call = Call(request_id="r", attempt=1, provider="p", model="m", stream=False, timeout=1.0, messages=[])
asyncio.run(scripted.Scripted({"m": ModelSettings(error=sys.argv[1])}).call(call, Progress()))
"""


STATUSES = [("crash", -signal.SIGKILL), ("exit", 3), ("block", 1)]


@pytest.mark.parametrize(("fault", "status"), STATUSES)
def test_faults_of_the_process(fault: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAY_IN_A_PROCESS, fault],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, "started\n")
    assert ("the loop was blocked" in done.stderr) == (fault == "block")


def test_every_fault_is_tested() -> None:
    tested = (
        {row[0] for row in CLASSES} | {row[0] for row in STATUSES} | {"hang"}
    )  # `hang` ends with the deadline, above
    assert tested == set(FAULTS)


def test_an_unknown_fault_is_refused_with_the_nearest_name() -> None:
    assert check_fault("rate_limited") is None
    assert check_fault("rate-limit") == "rate_limited"
    assert check_fault("") in FAULTS
    with pytest.raises(ConfigError, match="did you mean 'hang'") as caught:
        Scripted({"m": ModelSettings(error="hangs")})
    assert caught.value.param == "models.m.error"


def test_a_call_without_delay_takes_no_turn_of_the_loop() -> None:
    """Drive the coroutine by hand: if it waited for anything, it would yield to the loop."""
    coroutine = Scripted({}).call(make_call(stream=True), Recorder())
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert done.value.value.content == "one two three"


def test_light_to_import() -> None:
    script = "import sys; import callpool.workers.providers.scripted; print('aiohttp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=HANG, check=True, env=os.environ
    )
    assert done.stdout == "False\n"
