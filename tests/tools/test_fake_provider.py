"""The fake provider as a provider: its answers, its limits, and what it notices of its clients."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import callpool.tools.testing
from callpool.tools.testing import fake_faults
from callpool.tools.testing.fake_provider import FakeProvider, messages_digest, peak_active
from callpool.tools.testing.fake_requests import Options
from tests.house.imports import imports_of, parse
from tests.tools.raw_client import KEY, ask, chat, connect, leave, post, read_all, request, run

ROOTS = {"openai": "/v1", "kimi": "/v1", "glm": "/api/paas/v4"}


# Answers.


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("dialect", ROOTS)
def test_an_answer_in_each_dialect(dialect: str, *, stream: bool) -> None:
    async def main(fake: FakeProvider) -> None:
        base = ROOTS[dialect]
        assert fake.base_url.endswith(base)
        sent = chat(text="hé 你好", stream=stream, base=base, stream_options={"include_usage": True})
        told = (await ask(fake.base_url, sent)).told(stream=stream)
        assert (told.content, told.finish_reason, told.done) == ("echo: hé 你好", "stop", stream)
        assert told.pieces == (4 if stream else 0)
        assert told.usage_places == [{"openai": "final", "kimi": "choice", "glm": "top"}[dialect] if stream else "top"]
        assert told.usage is not None
        assert (told.usage["prompt_tokens"], told.usage["completion_tokens"], told.usage["total_tokens"]) == (7, 4, 11)

        told = (await ask(fake.base_url, chat(stream=stream, base=base))).told(stream=stream)
        assert (told.usage is None) == (dialect == "openai" and stream), "openai tells a stream's usage when asked to"

    run(main, dialect=dialect)


def test_the_fakes_options_and_what_a_request_overrides() -> None:
    async def main(fake: FakeProvider) -> None:
        told = (await ask(fake.base_url, chat(stream=True))).told(stream=True)
        assert (told.content, told.pieces) == ("fixed text", 2)
        override = {"reply": "abc", "chunks": 9, "finish_reason": "tool_calls", "chunk_delay": 0.001, "delay": 0.001}
        told = (await ask(fake.base_url, chat(stream=True, fake=override))).told(stream=True)
        assert (told.content, told.pieces, told.finish_reason) == ("abc", 3, "tool_calls")
        told = (await ask(fake.base_url, chat(fake={"reply": ""}, stream=True))).told(stream=True)
        assert (told.content, told.pieces, told.finish_reason) == ("", 0, "stop")

    run(main, reply="fixed text", chunks=2)


def test_a_delay_passes_before_the_first_byte_and_between_pieces() -> None:
    async def main(fake: FakeProvider) -> None:
        await ask(fake.base_url, chat(stream=True, fake={"delay": 0.03, "chunk_delay": 0.01, "chunks": 3}))
        [call] = fake.calls
        assert call.first_byte is not None
        assert call.ended is not None
        assert call.first_byte - call.arrived >= 0.03
        assert call.ended - call.first_byte >= 2 * 0.01

    run(main)


def test_parts_of_a_message_and_roles() -> None:
    async def main(fake: FakeProvider) -> None:
        parts = [{"type": "text", "text": "one "}, {"type": "image_url"}, {"type": "text", "text": "two"}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
        sent = chat(messages=messages)
        assert (await ask(fake.base_url, sent)).told(stream=False).content == "echo: one two"
        assert fake.calls[0].last_message == ""

    run(main)


def test_models_and_unknown_paths() -> None:
    async def main(fake: FakeProvider) -> None:
        listed = await ask(fake.base_url, request("GET", "/v1/models", key=KEY))
        assert [entry["id"] for entry in listed.json()["data"]] == ["fake-model"]
        assert (await ask(fake.base_url, request("GET", "/v1/models"))).status == 401
        for method, path in (("POST", "/v1/models"), ("GET", "/v1/chat/completions"), ("POST", "/chat/completions")):
            assert (await ask(fake.base_url, request(method, path, b"{}", key=KEY))).status == 404
        assert fake.calls == []

    run(main, api_key=KEY)

    async def glm(fake: FakeProvider) -> None:
        seen = await ask(fake.base_url, request("GET", "/api/paas/v4/models"))
        assert (seen.status, seen.json()["error"]["code"]) == (404, "1222")

    run(glm, dialect="glm")


def test_the_key_is_checked_and_kept_out_of_the_records() -> None:
    async def main(fake: FakeProvider) -> None:
        assert (await ask(fake.base_url, chat(key=KEY))).status == 200
        for key in (None, "", KEY + "x", "abcd"):
            assert (await ask(fake.base_url, chat(key=key))).status == 401
        assert [call.outcome for call in fake.calls] == ["answered"] + 4 * ["rejected"]
        assert [call.key_tail for call in fake.calls] == ["cdef", "", "", "defx", ""]
        assert KEY not in repr(fake.calls)

    run(main, api_key=KEY)


# Requests that are wrong.

BAD_BODIES = {
    "empty": b"",
    "no json": b"{",
    "not utf-8": b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
    "half a surrogate": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "not finite": b'{"model":"m","messages":[{"role":"user","content":"x","n":NaN}]}',
    "too deep": b'{"model":"m","messages":[{"role":"user","content":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    "no model": b'{"messages":[{"role":"user","content":"x"}]}',
    "no messages": b'{"model":"m","messages":[]}',
    "unknown option": b'{"model":"m","messages":[{}],"fake":{"dealy":1}}',
    "negative delay": b'{"model":"m","messages":[{}],"fake":{"delay":-1}}',
    "wrong type": b'{"model":"m","messages":[{}],"max_tokens":true}',
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_and_the_next_request_works(name: str) -> None:
    async def main(fake: FakeProvider) -> None:
        reader, writer = await connect(fake.base_url)
        writer.write(request("POST", "/v1/chat/completions", BAD_BODIES[name], close=False) + chat())
        seen = (await read_all(reader)).raw
        await leave(writer)
        assert seen.startswith(b"HTTP/1.1 400 ")
        assert seen.count(b"HTTP/1.1 200 ") == 1
        assert [call.outcome for call in fake.calls] == ["rejected", "answered"]

    run(main)


@pytest.mark.parametrize("model", ["fault-htp_500", "fault-http_500-x", "fault-http_500-1-2", "fault-"])
def test_an_unknown_fault_is_refused_with_the_nearest_name(model: str) -> None:
    async def main(fake: FakeProvider) -> None:
        seen = await ask(fake.base_url, chat(model=model))
        assert seen.status == 400
        if model != "fault-":
            assert "the nearest is 'http_500'" in seen.json()["error"]["message"]
        seen = await ask(fake.base_url, chat(fake={"fault": "silense"}))
        assert "the nearest is 'silence'" in seen.json()["error"]["message"]
        assert [call.outcome for call in fake.calls] == ["rejected", "rejected"]

    run(main)


@pytest.mark.parametrize(
    "option",
    [
        {"dialect": "klingon"},
        {"delay": float("nan")},
        {"chunks": 0},
        {"rpm": -1},
        {"tpd": -1},
        {"piece_tokens": 0},
        {"fault_times": 0},
        {"polls": -1},
        {"tool_calls": [{"name": ""}]},
        {"dealy": 1},
    ],
)
def test_bad_options_are_refused_at_once(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        FakeProvider(**option)


def test_a_storm_passes_after_the_calls_that_its_name_counts() -> None:
    async def main(fake: FakeProvider) -> None:
        async with aiohttp.ClientSession() as session:
            statuses = [(await post(session, fake, model="fault-http_500-2"))[0] for _ in range(4)]
            assert statuses == [500, 500, 200, 200]
            assert (await post(session, fake, model="fault-http_500-1"))[0] == 500, "each model name has its own count"
            assert (await post(session, fake, model="fault-http_500-1", fake={"fault": "overload"}))[0] == 200

    run(main)


def test_a_storm_of_its_own_for_each_text() -> None:
    async def main(fake: FakeProvider) -> None:
        async def statuses(text: str, **body: Any) -> list[int]:
            messages = [{"role": "user", "content": text}]
            return [(await post(session, fake, messages=messages, **body))[0] for _ in range(3)]

        async with aiohttp.ClientSession() as session:
            assert await statuses("one") == [500, 500, 200]
            assert await statuses("two") == [500, 500, 200]
            assert await statuses("two", model="m2") == [200, 200, 200], "whatever the model"
            assert await statuses("two", fake={"fault": "overload", "fault_times": 1}) == [503, 200, 200]
            assert await statuses("three", fake={"fault": None}) == [200, 200, 200]
            assert await statuses("three", model="fault-http_503") == [503, 503, 200]
            assert await statuses("three", model="fault-http_503-1") == [503, 200, 200], "the name's own count is first"
        assert [call.fault for call in fake.calls[:3]] == ["http_500", "http_500", None]

    run(main, fault="http_500", fault_times=2)


def test_a_fault_of_all_requests() -> None:
    async def main(fake: FakeProvider) -> None:
        async with aiohttp.ClientSession() as session:
            assert [(await post(session, fake))[0] for _ in range(3)] == [429] * 3

    run(main, fault="limit_rpm")
    with pytest.raises(ValueError, match="the nearest is 'limit_rpm'"):
        FakeProvider(fault="limit_rpn")


def test_counted_texts_are_forgotten_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_faults, "TEXTS_KEPT", 2)
    plan = fake_faults.FaultPlan()
    options = Options(fault="http_500", fault_times=1)
    found = [plan.next("m", options, text) is not None for text in "abbcba"]
    assert found == [True, True, False, True, False, True]


# Limits.


def test_concurrency_is_exact_under_load() -> None:
    async def main(fake: FakeProvider) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            answers = [asyncio.create_task(post(session, fake, fake={"fault": "silence"})) for _ in range(7)]
            await fake.wait_for(lambda calls: len(calls) == 7)
            statuses = [status for status, _ in await asyncio.gather(*(post(session, fake) for _ in range(40)))]
            assert statuses == [429] * 40
            assert (await post(session, fake, key="sk-another-key"))[0] == 200, "a limit of one key is none of another"
            for answer in answers:
                answer.cancel()
            await fake.wait_for(lambda calls: sum(call.outcome == "client_gone" for call in calls) == 7)
            assert (await post(session, fake))[0] == 200, "who left gave its place back"
        assert peak_active([call for call in fake.calls if call.outcome != "rejected"]) == 8
        assert fake.peak_active == max(call.active_at_arrival for call in fake.calls)

    run(main, concurrency=7)


@pytest.mark.parametrize("ending", ["reset", "close_before_headers", "http_500", "cut_stream", "length", "gzip_bomb"])
def test_a_fault_gives_its_place_back(ending: str) -> None:
    async def main(fake: FakeProvider) -> None:
        for _ in range(2):
            await ask(fake.base_url, chat(model=f"fault-{ending}", stream=True, fake={"size": 1}))
        assert [call.outcome for call in fake.calls] == [f"fault:{ending}"] * 2

    run(main, concurrency=1)


REFUSED = {
    ("openai", "tpd"): ("rate_limit_exceeded", "tokens per day (TPD): Limit 330, Used 318"),
    ("kimi", "tpd"): ("rate_limit_reached_error", "TPD rate limit, current: 318, limit: 330"),
    ("glm", "tpd"): ("1304", "daily"),
    ("openai", "rpm"): ("rate_limit_exceeded", "requests per min (RPM): Limit 3, Used 3"),
    ("kimi", "rpm"): ("rate_limit_reached_error", "organization max RPM: 3, please try again after "),
    ("glm", "rpm"): ("1303", "too frequent"),
    ("openai", "tpm"): ("rate_limit_exceeded", "tokens per min (TPM): Limit 330, Used 318"),
    ("kimi", "tpm"): ("rate_limit_reached_error", "TPM rate limit, current: 318, limit: 330"),
    ("glm", "tpm"): ("1302", "tokens"),
    ("openai", "concurrency"): ("rate_limit_exceeded", "concurrent requests: Limit 3"),
    ("kimi", "concurrency"): ("rate_limit_reached_error", "max organization concurrency: 3"),
    ("glm", "concurrency"): ("1302", "concurrent"),
}


@pytest.mark.parametrize(("dialect", "limit"), REFUSED)
def test_limits_refuse_in_the_dialect(dialect: str, limit: str) -> None:
    async def main(fake: FakeProvider) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            delay = 60 if limit == "concurrency" else 0
            calls = [asyncio.create_task(post(session, fake, max_tokens=100, fake={"delay": delay})) for _ in range(3)]
            await fake.wait_for(lambda calls: len(calls) == 3)
            answers = await asyncio.gather(*(post(session, fake, max_tokens=100) for _ in range(17)))
            for call in calls:
                call.cancel()
        word, text = REFUSED[dialect, limit]
        for status, body in answers:
            assert status == 429
            assert word in body["error"].values()
            assert text in body["error"]["message"]
        assert [call.outcome for call in fake.calls[3:]] == ["rejected"] * 17

    # Each call charges 4 for the message, 2 for its text, 100 in advance for the answer.
    run(main, dialect=dialect, **{limit: 330 if limit in ("tpm", "tpd") else 3})


# The witness.


def test_a_call_has_ended_before_its_last_bytes_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a client that goes on because of them could be counted twice."""

    async def main(fake: FakeProvider) -> None:
        open_at_write: list[int] = []
        write = asyncio.StreamWriter.write

        def watched(self: asyncio.StreamWriter, data: bytes) -> None:
            if data.startswith(b"HTTP/1.1 ") or b"[DONE]" in data:
                open_at_write.append(fake.active)
            write(self, data)

        monkeypatch.setattr(asyncio.StreamWriter, "write", watched)
        for body in ({}, {"fake": {"fault": "http_500"}}, {"model": ""}):
            await ask(fake.base_url, chat(**body))
        assert open_at_write == [0, 0, 0]
        await ask(fake.base_url, chat(stream=True))
        assert open_at_write[3:] == [1, 0], "a stream is open at its head and ended at its end"

    run(main)


def test_a_record_tells_what_was_asked() -> None:
    async def main(fake: FakeProvider) -> None:
        messages = [{"role": "system", "content": "s"}, {"content": "x" * 1000, "role": "user"}]
        await ask(fake.base_url, chat(model="kimi-k3", messages=messages, stream=True))
        [call] = fake.calls
        assert (call.number, call.model, call.stream, call.status) == (1, "kimi-k3", True, 200)
        assert call.last_message == "x" * 200
        assert call.path == "/v1/chat/completions"
        assert call.digest == messages_digest([messages[0], {"role": "user", "content": "x" * 1000}])
        assert call.digest != messages_digest(messages[1:])
        assert call.first_byte is not None
        assert call.ended is not None
        assert call.arrived <= call.first_byte <= call.ended

    run(main)


def test_a_record_tells_the_parameters_and_the_size_and_no_texts() -> None:
    async def main(fake: FakeProvider) -> None:
        tools = [{"type": "function", "function": {"name": "f"}}]
        schema = {"type": "json_schema", "json_schema": {"description": "x" * 5_000}}
        body: dict[str, Any] = {
            "temperature": 0.5,
            "tools": tools,
            "response_format": schema,
            "user": None,
            "fake": {"reply": "r"},
        }
        sent = chat(text="secret", stream=True, **body)
        wrong = chat(text="secret", n="many", max_tokens=7)
        await ask(fake.base_url, sent)
        await ask(fake.base_url, wrong)
        right, refused = fake.calls
        large = right.parameters.pop("response_format")
        assert right.parameters == {"temperature": 0.5, "tools": tools, "user": None}
        assert (large["bytes"], large["digest"]) == (
            len(json.dumps(schema, separators=(",", ":"))),
            messages_digest(schema),
        )
        assert refused.parameters == {"n": "many", "max_tokens": 7}, "what is wrong is what one wants to see"
        assert [call.size for call in fake.calls] == [len(sent), len(wrong)]

    run(main)


def test_a_wait_that_is_in_vain_ends_and_a_wrong_question_is_the_askers() -> None:
    async def main(fake: FakeProvider) -> None:
        with pytest.raises(TimeoutError, match="not seen"):
            await fake.wait_for(lambda calls: len(calls) == 1, timeout=0.01)
        wrong = asyncio.create_task(fake.wait_for(lambda calls: bool(calls) and calls[7].stream))
        await asyncio.sleep(0)
        assert (await ask(fake.base_url, chat())).status == 200
        with pytest.raises(IndexError):
            await wrong

    run(main)


def test_the_fake_knows_nothing_of_the_rest_of_callpool() -> None:
    folder = Path(next(iter(callpool.tools.testing.__path__)))
    files = sorted(folder.glob("fake_*.py"))
    assert len(files) > 10
    for path in files:
        for _, name in imports_of(parse(path), f"callpool.tools.testing.{path.stem}"):
            top = name.partition(".")[0]
            ours = name.startswith("callpool.tools.testing.fake_")
            assert ours or top in {"msgspec", "uvloop", *sys.stdlib_module_names}, f"{path.name} imports {name}"
