"""The deadlines of a call: the whole, the first token, the silence between. Each ends the call at the provider and names itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callpool.manager.errors import BrokenAnswer, CallpoolError, RequestTimeout
from callpool.tools.testing.fake_provider import FakeProvider
from callpool.workers.call import run_call
from callpool.workers.providers.base import Answer, Call, Progress
from callpool.workers.providers.openai_compatible import OpenAICompatible
from callpool.workers.providers.presets import PRESETS
from tests.workers.recorder import Recorder

HANG = 20.0
SOON = 0.05
"""Seconds of a deadline that is meant to be reached."""
DRIP = 0.004
"""Seconds between two drops, many times within SOON."""


def make_call(*, stream: bool = True, timeout: float = HANG, parameters: dict[str, Any], **timeouts: float) -> Call:
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
    assert found.which == "total"
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
