"""The deadlines of a call: the whole, the first token, the silence between. Each ends the call at the provider and names itself."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from callpool.manager.errors import BrokenAnswer, CallpoolError, RateLimited, RequestTimeout
from callpool.tools.testing.fake_provider import FakeProvider
from callpool.workers.call import run_call
from callpool.workers.providers.base import Answer, Call, Progress
from callpool.workers.providers.completion import Joined, brings_on
from callpool.workers.providers.openai_compatible import LAST_MOMENT, TRAILER_WAIT, OpenAICompatible, _trailer_until
from callpool.workers.providers.presets import PRESETS, find_usage
from callpool.workers.providers.secret import Secret
from tests.workers.recorder import Recorder

HANG = 20.0
SOON = 0.05
"""Seconds of a deadline that is meant to be reached."""
DRIP = 0.004
"""Seconds between two drops, many times within SOON."""


def make_call(*, stream: bool = True, timeout: float = HANG, parameters: dict[str, Any], **timeouts: Any) -> Call:
    return Call(
        request_id="r",
        attempt=1,
        provider="fake",
        model="m",
        stream=stream,
        timeout=timeout,
        messages=[{"role": "user", "content": "one two three"}],
        parameters={"fake": parameters},
        **timeouts,
    )


async def make(call: Call, progress: Progress | None = None) -> tuple[Answer | CallpoolError, str]:
    """What the call came to, and what the provider saw of it."""
    async with FakeProvider() as fake:
        provider = OpenAICompatible(PRESETS["openai"], None, base_url=fake.base_url, limit=2)
        try:
            found: Answer | CallpoolError = await run_call(provider, call, progress or Recorder())
        except CallpoolError as error:
            found = error
        ended = await fake.wait_for(lambda calls: all(call.outcome != "open" for call in calls))
        await provider.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert len(ended) <= 1
    # On a busy machine a short deadline may be over before the request is there.
    return found, ended[0].outcome if ended else "client_gone"


SILENCES = [
    # fault, the deadline that ends it, text until then
    ("silence", "first_token", ""),
    ("silent_stream", "first_token", ""),
    ("header_drip", "first_token", ""),
    ("comment_drip", "first_token", ""),
    ("empty_drip", "first_token", ""),
    ("stall", "idle", "echo: one"),
]


@pytest.mark.parametrize(("fault", "which", "text"), SILENCES)
def test_each_silence_ends_at_its_deadline(fault: str, which: str, text: str) -> None:
    parameters = {"fault": fault, "chunk_delay": DRIP, "chunks": 2}
    call = (
        make_call(parameters=parameters, first_token_timeout=SOON, idle_timeout=HANG)
        if which == "first_token"
        else make_call(parameters=parameters, idle_timeout=SOON)
    )
    found, seen = asyncio.run(make(call))
    assert type(found) is RequestTimeout
    assert (found.which, found.seconds, found.provider, found.model) == (which, SOON, "fake", "m")
    assert found.partial.startswith(text[:4]) or not text
    assert bool(found.partial) == bool(text)
    assert seen == "client_gone"


@pytest.mark.parametrize("fault", ["stream_drip_forever", "sse_endless"])
def test_what_is_never_silent_ends_at_the_deadline_of_the_whole(fault: str) -> None:
    parameters = {"fault": fault, "chunk_delay": DRIP}
    found, seen = asyncio.run(
        make(make_call(timeout=0.3, parameters=parameters, first_token_timeout=HANG, idle_timeout=HANG))
    )
    assert type(found) is RequestTimeout
    assert (found.which, found.seconds, seen) == ("total", 0.3, "client_gone")
    assert found.partial


@pytest.mark.parametrize("stream", [False, True])
def test_no_silence_outlasts_the_whole(*, stream: bool) -> None:
    call = make_call(
        stream=stream, timeout=SOON, parameters={"fault": "silence"}, first_token_timeout=HANG, idle_timeout=HANG
    )
    found, seen = asyncio.run(make(call))
    assert type(found) is RequestTimeout
    assert (found.which, found.sent) == ("total", True)
    assert seen == "client_gone"


def test_a_plain_answer_has_only_the_whole() -> None:
    parameters = {"delay": 4 * SOON}
    call = make_call(stream=False, parameters=parameters, first_token_timeout=SOON / 2, idle_timeout=SOON / 2)
    found, seen = asyncio.run(make(call))
    assert isinstance(found, Answer)
    assert seen == "answered"


def test_a_slow_stream_that_keeps_on_is_let_go_on() -> None:
    parameters = {"chunks": 13, "chunk_delay": 0.05, "reply": "x" * 13}
    found, _ = asyncio.run(make(make_call(parameters=parameters, first_token_timeout=5.0, idle_timeout=0.5)))
    assert isinstance(found, Answer)
    assert found.content == "x" * 13  # 0.6 s in all, more than the longest silence that is allowed


def test_a_whole_answer_is_not_lost_while_its_counts_are_awaited() -> None:
    found, seen = asyncio.run(make(make_call(timeout=1.0, parameters={"fault": "no_end"}, idle_timeout=SOON)))
    assert isinstance(found, Answer)
    assert (found.content, found.finish_reason) == ("echo: one two three", "stop")
    assert seen == "client_gone"


def test_while_the_client_does_not_take_chunks_no_silence_is_measured() -> None:
    class Slow(Recorder):
        async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:
            await super().chunk(text, raw, useful=useful)
            if text and len(self.texts) < 4:
                await asyncio.sleep(0.7)

    progress = Slow()
    call = make_call(parameters={"chunks": 3, "chunk_delay": DRIP}, first_token_timeout=5.0, idle_timeout=0.5)
    found, _ = asyncio.run(make(call, progress))
    assert isinstance(found, Answer)
    assert "".join(progress.texts) == found.content
    assert progress.is_whole


def test_a_break_is_no_deadline() -> None:
    found, _ = asyncio.run(make(make_call(parameters={"fault": "no_done"}, first_token_timeout=5.0, idle_timeout=5.0)))
    assert type(found) is BrokenAnswer


class Stubborn:
    """A provider that makes of every cancellation what it likes."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    async def call(self, call: Call, progress: Progress) -> Answer:
        await progress.started()
        try:
            await asyncio.sleep(HANG)
        except asyncio.CancelledError:
            if self._error is not None:
                raise self._error from None
            await progress.chunk("late", None)
            raise
        raise AssertionError

    async def close(self) -> None: ...


@pytest.mark.parametrize("error", [None, ValueError("x"), BrokenAnswer("y"), TimeoutError(), SystemExit(1)])
def test_what_a_provider_makes_of_a_silence_does_not_hide_it(error: BaseException | None) -> None:
    async def main() -> None:
        call = make_call(parameters={}, first_token_timeout=SOON)
        with pytest.raises(RequestTimeout) as caught:
            await run_call(Stubborn(error), call, Recorder())
        assert caught.value.which == "first_token"
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)

    asyncio.run(main())


def test_a_cancel_from_outside_stays_one() -> None:
    async def main() -> None:
        call = make_call(parameters={}, first_token_timeout=HANG, idle_timeout=HANG)
        progress = Recorder()
        task = asyncio.ensure_future(run_call(Stubborn(None), call, progress))
        while not progress.starts:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_refusal_whose_words_do_not_come_is_a_refusal() -> None:
    call = make_call(timeout=1.0, parameters={"fault": "stalled_refusal"}, first_token_timeout=0.5)
    found, seen = asyncio.run(make(call))
    assert type(found) is RateLimited
    assert (found.retry_after, seen) == (7.0, "client_gone")


def test_a_loop_that_stood_still_reads_before_it_judges() -> None:
    async def main() -> tuple[Answer | CallpoolError, str]:
        asyncio.get_running_loop().call_later(0.15, time.sleep, 0.9)
        parameters = {"chunks": 10, "chunk_delay": 0.03, "reply": "x" * 10}
        return await make(make_call(parameters=parameters, first_token_timeout=5.0, idle_timeout=0.6))

    found, _ = asyncio.run(main())
    assert isinstance(found, Answer), found
    assert found.content == "x" * 10


@pytest.mark.parametrize(
    ("delta", "brings"),
    [
        ({"content": "a"}, True),
        ({"reasoning_content": "a"}, True),
        ({"reasoning_details": [{"type": "text", "text": "a"}]}, True),
        (
            {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            True,
        ),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, True),
        ({"refusal": "no"}, True),
        ({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"arguments": ""}}]}, False),
        ({"reasoning_details": [{"type": "text", "text": ""}]}, False),
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": None}, False),
        ({}, False),
        (None, False),
    ],
)
def test_what_brings_an_answer_on(delta: dict[str, Any] | None, *, brings: bool) -> None:
    assert brings_on({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) is brings
    assert brings_on({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]})
    assert not brings_on({"choices": []})
    assert not brings_on({"choices": None})


def test_the_next_choice_may_begin_when_the_one_before_has_ended() -> None:
    joined = Joined(find_usage)
    joined.add({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]})
    assert (joined.has_all(None), joined.has_all(1), joined.has_all(2)) == (True, True, False)
    joined.add({"choices": [{"index": 1, "delta": {"content": "b"}}]})
    assert (joined.complete, joined.has_all(2)) == (False, False)
    joined.add({"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]})
    assert joined.has_all(2)


def test_counts_are_awaited_until_shortly_before_the_deadline() -> None:
    async def main() -> None:
        whole = Joined(find_usage)
        whole.add({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]})
        call = make_call(timeout=60.0, parameters={})
        now = asyncio.get_running_loop().time()
        assert _trailer_until(call, whole, None, now + 30.0) == pytest.approx(now + TRAILER_WAIT, abs=1.0)
        assert _trailer_until(call, whole, None, now + 2.0) == now + 2.0
        assert _trailer_until(call, whole, now + 1.0, now + 2.0) == now + 1.0, "it is not put off by every chunk"
        assert _trailer_until(call, Joined(find_usage), now + 1.0, now + 2.0) is None

    asyncio.run(main())
    assert LAST_MOMENT <= 0.1


def test_the_key_does_not_show_in_the_partial_text() -> None:
    secret = Secret("sk-0123456789abcdef")
    parameters = {"fault": "stall", "chunks": 1, "reply": f"it is {secret.reveal()}!"}
    found, _ = asyncio.run(make(make_call(parameters=parameters, idle_timeout=SOON)))
    assert type(found) is RequestTimeout
    assert found.partial == "it is [key]!"


def test_the_wait_for_the_client_is_taken_off_a_silence_that_goes_on() -> None:
    class Empty(Stubborn):
        async def call(self, call: Call, progress: Progress) -> Answer:
            await progress.started()
            await progress.chunk("", None, useful=False)  # which our client takes 0.8 s for
            await asyncio.sleep(0.3)
            await progress.chunk("x", None)
            return Answer(content="x")

    class Slow(Recorder):
        async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:
            await super().chunk(text, raw, useful=useful)
            await asyncio.sleep(0.0 if useful else 0.8)

    call = make_call(parameters={}, first_token_timeout=0.7)
    assert asyncio.run(run_call(Empty(None), call, Slow())).content == "x"
