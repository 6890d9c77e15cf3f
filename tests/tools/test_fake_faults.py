"""Every fault of the fake provider puts on the wire what it says: plain and streamed, and on both event loops where it matters."""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from callpool.tools.testing.fake_provider import FAULTS, FakeProvider
from tests.house.checkout import ROOT
from tests.tools.raw_client import LOOPS, Seen, Told, ask, chat, connect, dechunk, leave, with_limit

TEXT = "the quick brown fox"
REPLY = f"echo: {TEXT}"
HOUR = 3600.0
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])

REFUSALS: dict[str, tuple[Any, Any, Any]] = {
    # status and what tells it, as openai, kimi, glm
    "bad_request": ((400, "invalid_value"), (400, "invalid_request_error"), (400, "1210")),
    "content_filter": ((400, "content_filter"), (400, "content_filter"), (400, "1301")),
    "unauthorized": ((401, "invalid_api_key"), (401, "invalid_authentication_error"), (401, "1000")),
    "model_gone": ((404, "model_not_found"), (404, "resource_not_found_error"), (404, "1211")),
    "overload": ((503, "server_error"), (429, "engine_overloaded_error"), (429, "1305")),
    "quota": ((429, "insufficient_quota"), (429, "exceeded_current_quota_error"), (429, "1113")),
    "arrears": ((429, "1113"), (429, "1113"), (429, "1113")),
    "http_500": ((500, "server_error"), (500, "server_error"), (500, "1230")),
    "http_503": ((503, "server_error"), (503, "server_unavailable"), (503, "1234")),
    "x_should_retry_false": ((500, "server_error"), (500, "server_error"), (500, "1230")),
    "x_should_retry_true": ((400, "invalid_value"), (400, "invalid_request_error"), (400, "1210")),
    "limit_concurrency": ((429, "concurrent"), (429, "concurrency"), (429, "1302")),
    "limit_rpm": ((429, "RPM"), (429, "RPM"), (429, "1303")),
    "limit_tpm": ((429, "TPM"), (429, "TPM"), (429, "1302")),
    "limit_tpd": ((429, "TPD"), (429, "TPD"), (429, "1304")),
}

RETRY_AFTER: dict[str, str | None] = {
    "retry_after_seconds": "1",
    "retry_after_zero": "0",
    "retry_after_huge": "1000000000",
    "retry_after_exponent": "1e9",
    "retry_after_nonsense": "soon",
    "retry_after_negative": "-1",
    "retry_after_inf": "inf",
    "retry_after_nan": "nan",
    "retry_after_minutes": "300",
    "retry_after_date": None,
    "retry_after_past_date": None,
}

FINISHES = {
    "length": "length",
    "reasoning_only_length": "length",
    "finish_sensitive": "sensitive",
    "finish_content_filter": "content_filter",
    "finish_network_error": "network_error",
    "finish_context_exceeded": "model_context_window_exceeded",
}

USAGE = {"usage_top": "top", "usage_choice": "choice", "usage_final": "final"}

ENDLESS = {
    # what has come before the client leaves; None where nothing may come
    "silence": None,
    "silent_stream": b"\r\n\r\n",
    "header_drip": b"X-Drip: aaaaa",
    "stream_drip_forever": b"1\r\n \r\n" * 5,
    "comment_drip": b"1\r\n \r\n" * 5,
    "empty_drip": b"1\r\n \r\n" * 5,
    "stall": b'"object"',
    "stalled_refusal": b"Retry-After: 7\r\n\r\n" + b'{"error":{',
    "sse_endless": b"a" * 60_000,
}
ENDLESS_STREAM = {
    "stream_drip_forever": b'{"content":"."}',
    "comment_drip": b": keep-alive\n\n",
    "empty_drip": b'"role":"assistant"',
    "sse_endless": b'{"content":"aaaa',
}


def run(main: Callable[[FakeProvider], Any], *, loop: str = "asyncio", dialect: str = "openai") -> None:
    async def served() -> None:
        async with FakeProvider(dialect=dialect) as fake:
            await main(fake)
            assert fake.active == 0

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(with_limit(served()))


def see(fault: str, *, stream: bool, loop: str = "asyncio", dialect: str = "openai", **options: Any) -> Seen:
    """Make one call that has the fault and must end by itself; its record must say so."""
    found: list[Seen] = []

    async def main(fake: FakeProvider) -> None:
        base = "/api/paas/v4" if dialect == "glm" else "/v1"
        sent = chat(model=f"fault-{fault}", text=TEXT, stream=stream, base=base, fake=options)
        found.append(await ask(fake.base_url, sent))
        [record] = await fake.wait_for(lambda calls: calls[0].outcome != "open")
        assert (record.outcome, record.fault, record.stream) == (f"fault:{fault}", fault, stream)
        if found[0].raw.startswith(b"HTTP/1.1"):
            assert record.status == found[0].status

    run(main, loop=loop, dialect=dialect)
    return found[0]


# Refusals.


@FORMS
@pytest.mark.parametrize("dialect", ["openai", "kimi", "glm"])
@pytest.mark.parametrize("fault", REFUSALS)
def test_a_refusal_is_worded_in_the_dialect(fault: str, dialect: str, *, stream: bool) -> None:
    status, word = REFUSALS[fault][["openai", "kimi", "glm"].index(dialect)]
    seen = see(fault, stream=stream, dialect=dialect)
    error = seen.json()["error"]
    assert seen.status == status
    assert word in {error.get("type"), error.get("code"), *re.findall(r"\w+", error["message"])}
    said = {"x_should_retry_false": ["false"], "x_should_retry_true": ["true"]}
    assert seen.headers("x-should-retry") == said.get(fault, [])


@FORMS
@pytest.mark.parametrize("fault", RETRY_AFTER)
def test_retry_after(fault: str, *, stream: bool) -> None:
    seen = see(fault, stream=stream)
    assert seen.status == 429
    assert "RPM" in seen.json()["error"]["message"]
    [value] = seen.headers("retry-after")
    if RETRY_AFTER[fault] is not None:
        assert value == RETRY_AFTER[fault]
    else:
        ahead = parsedate_to_datetime(value).timestamp() - time.time()
        assert ahead < -80_000 if fault == "retry_after_past_date" else -HOUR < ahead < HOUR


@FORMS
def test_other_forms_of_retry_after(*, stream: bool) -> None:
    twice = see("retry_after_twice", stream=stream)
    assert (twice.status, twice.headers("retry-after")) == (429, ["2", "60"])
    fine = see("retry_after_ms", stream=stream)
    assert (fine.status, fine.headers("retry-after"), fine.headers("retry-after-ms")) == (429, [], ["1500"])


@FORMS
def test_headers_that_come_twice(*, stream: bool) -> None:
    seen = see("duplicate_headers", stream=stream)
    assert seen.status == 200
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"
    assert seen.headers("content-type") == [kind, "text/html; charset=utf-8"]
    assert [len(seen.headers(name)) for name in ("x-request-id", "retry-after", "content-length")] == [2, 2, 1]
    if stream:
        assert seen.text().endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(seen.text())["choices"][0]["message"]["content"] == REPLY


@FORMS
def test_pages_and_other_objects(*, stream: bool) -> None:
    for fault, status in (("html_200", 200), ("html_504", 504)):
        page = see(fault, stream=stream)
        assert page.status == status
        assert page.headers("content-type") == ["text/html; charset=utf-8"]
        assert page.text().startswith(b"<!DOCTYPE html>")
    for dialect, word in (("openai", "server_error"), ("kimi", "server_error"), ("glm", "1230")):
        wrong = see("error_object_200", stream=stream, dialect=dialect)
        assert wrong.status == 200
        assert word in wrong.json()["error"].values()
    half = see("bad_json", stream=stream)
    assert half.status == 200
    assert half.text().startswith(b'{"id":')
    with pytest.raises(json.JSONDecodeError):
        half.json()
    redirect = see("redirect_loop", stream=stream, dialect="glm")
    assert redirect.status == 307
    assert redirect.headers("location") == ["/api/paas/v4/chat/completions"]


def test_a_client_that_follows_the_redirect_loop_is_in_the_log_each_time() -> None:
    async def main(fake: FakeProvider) -> None:
        async with aiohttp.ClientSession() as session:
            body = {"model": "fault-redirect_loop", "messages": [{"role": "user", "content": "x"}]}
            with pytest.raises(aiohttp.TooManyRedirects):
                await session.post(f"{fake.base_url}/chat/completions", json=body, max_redirects=4)
        assert len(fake.calls) == 4

    run(main)


# Answers.


@FORMS
@pytest.mark.parametrize("fault", FINISHES)
def test_finish_reasons(fault: str, *, stream: bool) -> None:
    told = see(fault, stream=stream).told(stream=stream)
    assert told.finish_reason == FINISHES[fault]
    assert told.done == stream
    if fault == "reasoning_only_length":
        assert (told.content, bool(told.reasoning)) == ("", True)
    elif fault == "length":
        assert told.content == REPLY[: len(REPLY) // 2]
        assert told.usage is None or told.usage["completion_tokens"] == 3, "what was told, not what there was to tell"
    else:
        assert told.content == REPLY


@FORMS
@pytest.mark.parametrize("dialect", ["openai", "kimi", "glm"])
@pytest.mark.parametrize("fault", USAGE)
def test_usage_is_in_the_place_of_the_faults_name(fault: str, dialect: str, *, stream: bool) -> None:
    told = see(fault, stream=stream, dialect=dialect).told(stream=stream)
    assert told.usage_places == ([USAGE[fault]] if stream else ["top"])
    assert (told.content, told.finish_reason, told.done) == (REPLY, "stop", stream)


@FORMS
def test_empty_choices(*, stream: bool) -> None:
    seen = see("empty_choices", stream=stream)
    if stream:
        assert seen.told(stream=True) == Told(usage=seen.told(stream=True).usage, usage_places=["final"], done=True)
    else:
        assert seen.json()["choices"] == []


def test_faults_of_streams() -> None:
    broken = see("bad_json_event", stream=True).told(stream=True)
    assert len(broken.broken) == 1
    assert (broken.content, broken.finish_reason, broken.done) == (REPLY, "stop", True)

    failed = see("error_event", stream=True, dialect="kimi").told(stream=True)
    assert [error["type"] for error in failed.errors] == ["engine_overloaded_error"]
    assert REPLY.startswith(failed.content)
    assert failed.content
    assert not failed.done

    open_end = see("no_done", stream=True).told(stream=True)
    assert (open_end.content, open_end.finish_reason, open_end.done) == (REPLY, None, False)

    complete = see("finish_no_done", stream=True).told(stream=True)
    assert (complete.content, complete.finish_reason, complete.done) == (REPLY, "stop", False)

    unfinished = see("no_finish", stream=True).told(stream=True)
    assert (unfinished.content, unfinished.finish_reason, unfinished.done) == (REPLY, None, True)


def test_faults_of_streams_for_a_plain_call() -> None:
    with pytest.raises(json.JSONDecodeError):
        see("bad_json_event", stream=False).json()
    assert see("error_event", stream=False, dialect="glm").json()["error"]["code"] == "1305"
    for fault, finish_reason in (("no_done", None), ("no_finish", None), ("finish_no_done", "stop")):
        told = see(fault, stream=False).told(stream=False)
        assert (told.content, told.finish_reason) == (REPLY, finish_reason)


# The wire.


def breaks_before_headers(seen: Seen, *, stream: bool) -> None:
    assert (seen.raw, seen.ending) == (b"", "eof")


def resets_before_headers(seen: Seen, *, stream: bool) -> None:
    assert (seen.raw, seen.ending) == (b"", "reset")


def resets_in_the_body(seen: Seen, *, stream: bool) -> None:
    assert seen.ending == "reset"
    assert 0 < len(seen.body) < int(seen.headers("content-length")[0])


def stops_short(seen: Seen, *, stream: bool) -> None:
    assert seen.ending == "eof"
    assert 0 < len(seen.body) < int(seen.headers("content-length")[0])


def is_no_http(seen: Seen, *, stream: bool) -> None:
    assert seen.ending == "eof"
    assert seen.raw
    assert not seen.raw.startswith(b"HTTP")


def stops_inside_a_chunk(seen: Seen, *, stream: bool) -> None:
    text, rest = dechunk(seen.body)
    size, _, torn = rest.partition(b"\r\n")
    assert seen.ending == "eof"
    assert 0 < len(torn) < int(size, 16)
    assert (b'"delta":{"content":"echo' in text) == stream


def has_a_chunk_without_size(seen: Seen, *, stream: bool) -> None:
    text, rest = dechunk(seen.body)
    assert text
    assert rest.startswith(b"zz\r\n")


def says_half_its_length(seen: Seen, *, stream: bool) -> None:
    assert seen.headers("content-length") == [str(len(seen.body) // 2)]


def says_two_lengths(seen: Seen, *, stream: bool) -> None:
    assert seen.headers("content-length") == [str(len(seen.body)), str(len(seen.body) // 2)]


def has_a_huge_header(seen: Seen, *, stream: bool) -> None:
    assert [len(value) for value in seen.headers("x-huge")] == [1 << 20]
    assert seen.told(stream=stream).content == REPLY


def is_right(seen: Seen, *, stream: bool) -> None:
    told = seen.told(stream=stream)
    assert (told.content, told.finish_reason, told.done) == (REPLY, "stop", stream)


def has_a_huge_line(seen: Seen, *, stream: bool) -> None:
    told = seen.told(stream=stream)
    assert told.content == "a" * (3 << 20)
    assert told.finish_reason == "stop"
    assert told.pieces == int(stream)


def is_a_bomb(seen: Seen, *, stream: bool) -> None:
    assert seen.headers("content-encoding") == ["gzip"]
    packed, rest = dechunk(seen.body)
    assert rest == b"0\r\n\r\n"
    text = zlib.decompress(packed, 31)  # checks the check sum and the length too
    assert len(text) > 3 << 20
    assert len(packed) < len(text) / 300
    assert REPLY[:4].encode() in text[3 << 20 :]


WIRE: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "close_before_headers": (breaks_before_headers, {}),
    "reset": (resets_before_headers, {}),
    "reset_mid_body": (resets_in_the_body, {}),
    "short_body": (stops_short, {}),
    "garbage": (is_no_http, {}),
    "cut_stream": (stops_inside_a_chunk, {}),
    "invalid_chunk": (has_a_chunk_without_size, {}),
    "wrong_length": (says_half_its_length, {}),
    "duplicate_length": (says_two_lengths, {}),
    "huge_header": (has_a_huge_header, {}),
    "body_drip": (is_right, {"chunk_delay": 1e-6}),
    "sse_huge_line": (has_a_huge_line, {"size": 3 << 20}),
    "gzip_bomb": (is_a_bomb, {"size": 3 << 20}),
}


@FORMS
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fault", WIRE)
def test_on_the_wire(fault: str, loop: str, *, stream: bool) -> None:
    check, options = WIRE[fault]
    check(see(fault, stream=stream, loop=loop, **options), stream=stream)


def test_the_rest_of_a_wrong_length_lies_in_the_connection() -> None:
    async def main(fake: FakeProvider) -> None:
        reader, writer = await connect(fake.base_url)
        writer.write(chat(model="fault-wrong_length", close=False))
        head = await reader.readuntil(b"\r\n\r\n")
        length = Seen(head, "").headers("content-length")[0]
        await reader.readexactly(int(length))
        writer.write(chat())
        assert not (await reader.read(100)).startswith(b"HTTP")
        await leave(writer)

    run(main)


@FORMS
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fault", ENDLESS)
def test_what_never_ends_goes_on_until_the_client_leaves(fault: str, loop: str, *, stream: bool) -> None:
    wanted = ENDLESS_STREAM.get(fault, ENDLESS[fault]) if stream else ENDLESS[fault]

    async def main(fake: FakeProvider) -> None:
        reader, writer = await connect(fake.base_url)
        writer.write(chat(model=f"fault-{fault}", stream=stream, fake={"chunk_delay": 0.001}))
        raw = b""
        while wanted is not None and wanted not in raw:
            data = await reader.read(1 << 16)
            assert data, "it ended"
            raw += data
        if fault in ("silence", "silent_stream"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.02)
        assert fake.calls[0].outcome == "open"
        await leave(writer)
        [record] = await fake.wait_for(lambda calls: calls[0].outcome != "open")
        assert (record.outcome, record.fault) == ("client_gone", fault)
        assert (record.first_byte is None) == (wanted is None)

    run(main, loop=loop)


def test_every_fault_is_looked_at() -> None:
    elsewhere = {"html_200", "html_504", "error_object_200", "bad_json", "redirect_loop", "empty_choices"}
    elsewhere |= {"retry_after_twice", "retry_after_ms", "duplicate_headers"}
    of_streams = {"bad_json_event", "error_event", "no_done", "finish_no_done", "no_finish", "no_end"}
    looked_at = [*REFUSALS, *RETRY_AFTER, *FINISHES, *USAGE, *ENDLESS, *WIRE, *elsewhere, *of_streams]
    assert sorted(looked_at) == sorted(FAULTS)
    assert all(fault.doc and "\n" not in fault.doc for fault in FAULTS.values())


def test_the_docs_name_every_fault() -> None:
    words = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "fake-provider.md").read_text()))
    assert {name for name in FAULTS if not {name, name.removeprefix("retry_after_")} & words} == set()


def test_a_whole_answer_may_not_be_told_to_be_over() -> None:
    async def main(fake: FakeProvider) -> None:
        reader, writer = await connect(fake.base_url)
        writer.write(chat(model="fault-no_end", stream=True))
        raw = b""
        while b'"finish_reason":"stop"' not in raw:
            raw += await reader.read(1 << 16)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.02)
        assert b"[DONE]" not in raw
        await leave(writer)
        [record] = await fake.wait_for(lambda calls: calls[0].outcome != "open")
        assert record.outcome == "client_gone"

    run(main)


# What a real client makes of it.


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("reset", aiohttp.ClientOSError),
        ("close_before_headers", aiohttp.ServerDisconnectedError),
        ("garbage", aiohttp.ClientResponseError),
        ("huge_header", aiohttp.ClientResponseError),
        ("duplicate_length", aiohttp.ClientResponseError),
        ("short_body", aiohttp.ClientPayloadError),
        ("cut_stream", aiohttp.ClientPayloadError),
        ("invalid_chunk", aiohttp.ClientError),
        ("reset_mid_body", aiohttp.ClientError),
    ],
)
def test_aiohttp_fails_as_it_should(fault: str, error: type[Exception]) -> None:
    async def main(fake: FakeProvider) -> None:
        async with aiohttp.ClientSession() as session:
            body = {"model": f"fault-{fault}", "messages": [{"role": "user", "content": "x"}], "stream": True}
            with pytest.raises(error):
                async with session.post(f"{fake.base_url}/chat/completions", json=body) as response:
                    await response.read()

    run(main)


def test_aiohttp_unpacks_the_bomb() -> None:
    async def main(fake: FakeProvider) -> None:
        async with aiohttp.ClientSession() as session:
            body = {
                "model": "fault-gzip_bomb",
                "messages": [{"role": "user", "content": "x"}],
                "fake": {"size": 1 << 22},
            }
            async with session.post(f"{fake.base_url}/chat/completions", json=body) as response:
                text = await response.read()
        assert len(text) > 1 << 22
        assert json.loads(text)["choices"][0]["message"]["content"] == "echo: x"

    run(main)
