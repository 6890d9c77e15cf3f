"""Everything that the fake provider can do wrong, plain and streamed, on both event loops.

Each case ends in its class within its deadline, leaves no connection or task behind (nor descriptors: `tests/conftest.py` looks
after every test), and the next call on the same provider object works.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import pytest
import uvloop

from callpool.manager.errors import BrokenAnswer, CallpoolError, ProviderError, RateLimited, RequestTimeout
from callpool.tools.testing.fake_provider import FAULTS, CallRecord, FakeProvider
from callpool.workers.call import run_call
from callpool.workers.providers.base import Answer, Call
from callpool.workers.providers.openai_compatible import Bounds, OpenAICompatible
from callpool.workers.providers.presets import PRESETS
from callpool.workers.providers.secret import Secret
from callpool.workers.providers.verdicts import Scope
from tests.outcomes import HANGING, OTHER_DIALECTS, OUTCOMES, WIRE, Outcome
from tests.workers.recorder import Recorder

KEY = "sk-0123456789abcdef"
HANG = 10.0
SOON = 0.05
"""Seconds of a deadline that is meant to be reached."""
BOUNDS = Bounds(answer=1 << 20, stream=2 << 20, event=1 << 18)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def make_call(*, stream: bool = False, timeout: float = HANG, **fake: Any) -> Call:
    return Call(
        request_id="req_1",
        attempt=1,
        provider="fake",
        model="m",
        stream=stream,
        timeout=timeout,
        messages=[{"role": "user", "content": "the quick brown fox"}],
        parameters={"fake": fake},
    )


@asynccontextmanager
async def fake_and_provider(dialect: str = "openai") -> AsyncIterator[tuple[FakeProvider, OpenAICompatible]]:
    async with FakeProvider(dialect=dialect, api_key=KEY) as fake:
        provider = OpenAICompatible(PRESETS[dialect], Secret(KEY), base_url=fake.base_url, limit=8, bounds=BOUNDS)
        yield fake, provider
        await provider.close()


async def outcome_of(provider: OpenAICompatible, call: Call, progress: Recorder) -> Answer | CallpoolError:
    try:
        return await run_call(provider, call, progress)
    except CallpoolError as error:
        return error


def all_ended(calls: list[CallRecord]) -> bool:
    return all(call.outcome != "open" for call in calls)


def test_every_fault_has_an_outcome() -> None:
    assert set(OUTCOMES) == set(FAULTS)


# Workers run uvloop; what depends on the loop is how connections break.
CASES = [("uvloop", fault) for fault in OUTCOMES] + [("asyncio", fault) for fault in WIRE]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("loop", "fault"), CASES)
def test_fault(loop: str, fault: str, *, stream: bool) -> None:
    async def main() -> None:
        progress = Recorder()
        options: dict[str, Any] = {"fault": fault}
        if fault in HANGING:
            options["chunk_delay"] = 0.005
        if fault in ("sse_huge_line", "gzip_bomb"):
            options["size"] = 1 << 23
        async with fake_and_provider() as (fake, provider):
            limits = {**dict.fromkeys(HANGING, SOON), "no_end": 1.0, "stalled_refusal": 1.0}
            call = make_call(stream=stream, timeout=limits.get(fault, HANG), **options)
            found = await outcome_of(provider, call, progress)
            check(found, OUTCOMES[fault][stream], progress)
            assert progress.starts == 1
            ended = await fake.wait_for(all_ended)
            if fault in HANGING:  # on a busy machine the deadline may be over before the request is there
                assert [seen.outcome for seen in ended] in ([], ["client_gone"])
            else:
                assert len(ended) == 1, "one call is one request"
            assert (
                await run_call(provider, make_call(stream=stream), Recorder())
            ).content == "echo: the quick brown fox"
            assert fake.active == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


def check(found: Answer | CallpoolError, expected: Outcome, progress: Recorder) -> None:
    if isinstance(expected, str):
        assert isinstance(found, Answer), found
        assert (found.finish_reason or "") == expected
        assert found.usage.get("total_tokens", 1) > 0
        assert not progress.texts or "".join(progress.texts) == found.content
        return
    assert type(found) is expected, found
    assert isinstance(found, CallpoolError)
    assert (found.provider, found.model) == ("fake", "m")
    assert (found.__cause__, found.__context__) == (None, None)
    assert KEY not in f"{found} {found.details}"
    assert found.message.isprintable()
    assert "the quick" not in found.message, "an answer's text has no place in a message"
    if expected is not RequestTimeout:
        assert isinstance(found.retryable, bool)
        assert found.scope in get_args(Scope)
        assert found.retry_after is None or found.retry_after >= 0
    if progress.texts and expected is not RequestTimeout:
        assert found.partial == "".join(progress.texts)


@pytest.mark.parametrize("fault", OTHER_DIALECTS)
def test_fault_in_other_dialects(fault: str) -> None:
    async def main() -> None:
        for dialect, expected in zip(("kimi", "glm"), OTHER_DIALECTS[fault], strict=True):
            async with fake_and_provider(dialect) as (_, provider):
                for stream in (False, True):
                    progress = Recorder()
                    found = await outcome_of(provider, make_call(stream=stream, fault=fault), progress)
                    check(found, expected, progress)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "openai", "kimi", "glm"),
    [
        ("limit_concurrency", "concurrency", "concurrency", "concurrency"),
        ("limit_rpm", "rpm", "rpm", "rpm"),
        ("limit_tpm", "tpm", "tpm", "concurrency"),  # GLM has one code for both, and says no more
        ("limit_tpd", "tpd", "tpd", "rpd"),
    ],
)
def test_limits_are_told_apart(fault: str, openai: str, kimi: str, glm: str) -> None:
    async def main() -> None:
        for dialect, limit in (("openai", openai), ("kimi", kimi), ("glm", glm)):
            async with fake_and_provider(dialect) as (_, provider):
                for stream in (False, True):
                    found = await outcome_of(provider, make_call(stream=stream, fault=fault), Recorder())
                    assert isinstance(found, RateLimited)
                    assert (found.limit, found.retryable) == (limit, fault != "limit_tpd")

    asyncio.run(main())


def test_a_service_that_forbids_another_try_is_believed() -> None:
    async def main() -> None:
        async with fake_and_provider() as (_, provider):
            for fault, retryable in (
                ("http_500", True),
                ("x_should_retry_false", False),
                ("x_should_retry_true", False),
            ):
                found = await outcome_of(provider, make_call(fault=fault), Recorder())
                assert isinstance(found, ProviderError)
                assert found.retryable is retryable

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_what_is_too_long_would_be_too_long_again(*, stream: bool) -> None:
    async def main() -> None:
        async with fake_and_provider() as (_, provider):
            for fault, retryable in (
                ("sse_huge_line", False),
                ("sse_endless", False),
                ("gzip_bomb", False),
                ("empty_choices", True),
            ):
                found = await outcome_of(provider, make_call(stream=stream, fault=fault, size=1 << 23), Recorder())
                assert isinstance(found, BrokenAnswer)
                assert (found.retryable, found.in_doubt) == (retryable, True), fault
                assert found.scope == ("provider" if retryable else "request"), "it is no trouble of the provider's"

    asyncio.run(main())


def test_text_until_the_break_is_kept() -> None:
    async def main() -> None:
        async with fake_and_provider() as (_, provider):
            for fault in ("cut_stream", "bad_json_event", "error_event", "no_finish", "short_body"):
                progress = Recorder()
                found = await outcome_of(provider, make_call(stream=True, fault=fault), progress)
                assert isinstance(found, ProviderError)
                assert found.partial == "".join(progress.texts) != ""

    asyncio.run(main())


def test_reasoning_that_reached_the_limit_is_an_answer() -> None:
    async def main() -> None:
        async with fake_and_provider() as (_, provider):
            for stream in (False, True):
                answer = await run_call(provider, make_call(stream=stream, fault="reasoning_only_length"), Recorder())
                assert (answer.content, answer.finish_reason) == ("", "length")
                assert answer.reasoning_content == "first, let us consider"

    asyncio.run(main())


@pytest.mark.parametrize("dialect", ["openai", "kimi", "glm"])
def test_thoughts_and_tool_calls_arrive_whole(dialect: str) -> None:
    asked = [{"name": "weather", "arguments": {"city": "Ulm", "days": 3}}, {"name": "clock", "arguments": "{}"}]

    async def main() -> None:
        async with fake_and_provider(dialect) as (_, provider):
            for stream in (False, True):
                call = make_call(stream=stream, tool_calls=asked, reasoning="first, let us consider", chunks=3)
                answer = await run_call(provider, call, Recorder())
                assert (answer.content, answer.finish_reason) == ("", "tool_calls")
                assert answer.reasoning_content == "first, let us consider"
                assert answer.tool_calls is not None
                said = [
                    (one["type"], one["function"]["name"], one["function"]["arguments"]) for one in answer.tool_calls
                ]
                assert said == [("function", "weather", '{"city":"Ulm","days":3}'), ("function", "clock", "{}")]
                assert answer.usage["completion_tokens"] == 6 + 2 + 6 + 2 + 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        ("retry_after_seconds", 1.0),
        ("retry_after_zero", 0.0),
        ("retry_after_huge", 3600.0),
        ("retry_after_exponent", 3600.0),
        ("retry_after_past_date", 0.0),
        ("retry_after_minutes", 300.0),
        ("retry_after_twice", 2.0),
        ("retry_after_ms", 1.5),
        # A header that says nothing leaves the word to the message: "please try again in 1s".
        ("retry_after_nonsense", 1.0),
        ("retry_after_negative", 1.0),
        ("retry_after_inf", 1.0),
        ("retry_after_nan", 1.0),
    ],
)
def test_retry_after_reaches_the_error(fault: str, seconds: float) -> None:
    async def main() -> None:
        async with fake_and_provider() as (_, provider):
            with pytest.raises(RateLimited) as caught:
                await run_call(provider, make_call(fault=fault), Recorder())
            assert caught.value.retry_after == seconds

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["silence", "silent_stream", "stream_drip_forever", "sse_endless", None])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancelled_call_is_gone_at_the_provider(loop: str, fault: str | None) -> None:
    async def main() -> None:
        async with fake_and_provider() as (fake, provider):
            options: dict[str, Any] = {"fault": fault} if fault else {"delay": HANG}
            task = asyncio.ensure_future(run_call(provider, make_call(stream=True, **options), Recorder()))
            await fake.wait_for(
                lambda calls: bool(calls) and (calls[0].first_byte is not None or fault != "sse_endless")
            )
            task.cancel()
            await asyncio.wait([task], timeout=HANG)
            assert task.cancelled()
            [call] = await fake.wait_for(all_ended)
            assert call.outcome == "client_gone"
            assert (await run_call(provider, make_call(), Recorder())).finish_reason == "stop"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


def test_a_cancel_while_the_client_does_not_take_chunks_closes_too() -> None:
    class Stuck(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.stuck = asyncio.Event()

        async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:
            self.stuck.set()
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with fake_and_provider() as (fake, provider):
            progress = Stuck()
            task = asyncio.ensure_future(run_call(provider, make_call(stream=True, fault="sse_endless"), progress))
            await progress.stuck.wait()
            task.cancel()
            await asyncio.wait([task], timeout=HANG)
            assert task.cancelled()
            [call] = await fake.wait_for(all_ended)
            assert call.outcome == "client_gone"

    asyncio.run(main())


def test_the_next_calls_use_the_same_connection() -> None:
    async def main() -> None:
        async with fake_and_provider() as (fake, provider):
            for stream in (False, True, False):
                await run_call(provider, make_call(stream=stream), Recorder())
            await outcome_of(provider, make_call(fault="limit_rpm"), Recorder())
            await run_call(provider, make_call(), Recorder())
            assert {call.connection for call in fake.calls} == {1}

    asyncio.run(main())


def test_no_more_connections_than_the_limit() -> None:
    async def main() -> None:
        async with FakeProvider(delay=0.01) as fake:
            provider = OpenAICompatible(PRESETS["openai"], None, base_url=fake.base_url, limit=3)
            await asyncio.gather(*(run_call(provider, make_call(), Recorder()) for _ in range(12)))
            assert fake.peak_active == 3
            await provider.close()

    asyncio.run(main())
