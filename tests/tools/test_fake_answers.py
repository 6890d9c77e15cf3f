"""What the fake provider says to a request: up to a token limit, after some thought, with tool calls; and on from where it stopped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from callpool.tools.testing.fake_answers import head, text_tokens
from callpool.tools.testing.fake_provider import FakeProvider
from tests.tools.raw_client import Told, ask, chat, run

ROOTS = {"openai": "/v1", "kimi": "/v1", "glm": "/api/paas/v4"}
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
TEXT = "Grüße, 你好! 🙂 and some more words to cut"
THOUGHTS = "hm, a greeting 你好"
CALLS = [{"name": "weather", "arguments": {"city": "Ulm"}}, {"name": "clock", "arguments": "not json"}]
COUNTED = {"include_usage": True}


async def told(fake: FakeProvider, /, *, dialect: str = "openai", stream: bool = False, **body: Any) -> Told:
    sent = chat(base=ROOTS[dialect], stream=stream, stream_options=COUNTED, **body)
    return (await ask(fake.base_url, sent)).told(stream=stream)


async def refused(fake: FakeProvider, /, *, dialect: str = "kimi", **body: Any) -> dict[str, Any]:
    seen = await ask(fake.base_url, chat(base=ROOTS[dialect], **body))
    assert seen.status == 400
    error: dict[str, Any] = seen.json()["error"]
    return error


def spent(found: Told) -> int:
    assert found.usage is not None
    tokens = found.usage["completion_tokens"]
    assert found.usage["total_tokens"] == found.usage["prompt_tokens"] + tokens
    assert isinstance(tokens, int)
    return tokens


# Token limits.


def test_a_text_is_cut_between_characters() -> None:
    for tokens in range(20):
        part = head(TEXT, tokens)
        assert TEXT.startswith(part)
        assert text_tokens(part) == min(tokens, text_tokens(TEXT))
        assert 4 * tokens - len(part.encode()) <= 3 or part == TEXT
    assert head(TEXT, 20) == TEXT
    assert head("🙂🙂", 1) == "🙂"


@FORMS
@pytest.mark.parametrize("dialect", ROOTS)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_requests_limit_cuts_the_answer(name: str, dialect: str, *, stream: bool) -> None:
    whole = text_tokens(TEXT)

    async def main(fake: FakeProvider) -> None:
        for limit in (1, 3, whole - 1, whole, whole + 1):
            limits: dict[str, Any] = {name: limit}
            found = await told(fake, dialect=dialect, stream=stream, **limits)
            assert found.content == head(TEXT, limit)
            assert found.finish_reason == ("length" if limit < whole else "stop")
            assert spent(found) == text_tokens(found.content)
        found = await told(fake, dialect=dialect, stream=stream, fake={"piece_tokens": 2}, **{name: 5})
        assert (found.content, found.finish_reason) == (head(TEXT, 2), "length"), "the smaller of both"
        found = await told(fake, dialect=dialect, stream=stream, fake={"piece_tokens": 5}, **{name: 2})
        assert (found.content, found.finish_reason) == (head(TEXT, 2), "length")

    run(main, dialect=dialect, reply=TEXT)


def test_the_newer_name_of_the_limit_wins_and_a_named_finish_reason_stays() -> None:
    async def main(fake: FakeProvider) -> None:
        assert (await told(fake, max_tokens=1, max_completion_tokens=2)).content == head(TEXT, 2)
        found = await told(fake, max_tokens=1, fake={"finish_reason": "sensitive"})
        assert (found.content, found.finish_reason) == (head(TEXT, 1), "sensitive")

    run(main, reply=TEXT)


@FORMS
def test_thoughts_count_first(*, stream: bool) -> None:
    thought = text_tokens(THOUGHTS)

    async def main(fake: FakeProvider) -> None:
        found = await told(fake, stream=stream)
        assert (found.reasoning, found.content, found.finish_reason) == (THOUGHTS, TEXT, "stop")
        assert spent(found) == thought + text_tokens(TEXT)
        for limit in (1, thought - 1, thought):
            found = await told(fake, stream=stream, max_completion_tokens=limit)
            assert (found.content, found.finish_reason) == ("", "length")
            assert found.reasoning == head(THOUGHTS, limit)
            assert spent(found) == limit
        found = await told(fake, stream=stream, max_completion_tokens=thought + 2)
        assert (found.reasoning, found.content, found.finish_reason) == (THOUGHTS, head(TEXT, 2), "length")
        found = await told(fake, stream=stream, max_completion_tokens=thought, fake={"reply": ""})
        assert (found.reasoning, found.content, found.finish_reason) == (THOUGHTS, "", "stop"), "nothing was cut off"

    run(main, reply=TEXT, reasoning=THOUGHTS)


# Tool calls.


@FORMS
@pytest.mark.parametrize("dialect", ROOTS)
def test_tool_calls(dialect: str, *, stream: bool) -> None:
    async def main(fake: FakeProvider) -> None:
        found = await told(fake, dialect=dialect, stream=stream)
        assert (found.content, found.finish_reason) == ("", "tool_calls")
        assert [call["type"] for call in found.tool_calls] == ["function", "function"]
        assert [call.get("index") for call in found.tool_calls] == ([0, 1] if stream else [None, None])
        assert len({call["id"] for call in found.tool_calls}) == 2
        said = [(call["function"]["name"], call["function"]["arguments"]) for call in found.tool_calls]
        assert said == [("weather", '{"city":"Ulm"}'), ("clock", "not json")]
        assert spent(found) == sum(text_tokens(name) + text_tokens(arguments) for name, arguments in said)
        assert found.fragments == (0 if not stream else 2 if dialect == "glm" else 6)
        found = await told(fake, dialect=dialect, stream=stream, tool_stream=True)
        assert found.fragments == (6 if stream else 0), "glm tells arguments in pieces when asked to"

        results = [{"role": "tool", "tool_call_id": call["id"], "content": "42"} for call in found.tool_calls]
        called = {"role": "assistant", "content": None, "tool_calls": found.tool_calls}
        messages = [{"role": "user", "content": "what?"}, called, *results]
        found = await told(fake, dialect=dialect, stream=stream, messages=messages)
        assert (found.content, found.finish_reason, found.tool_calls) == ("echo: what?", "stop", [])

    run(main, dialect=dialect, tool_calls=CALLS, chunks=3)


@FORMS
def test_text_beside_tool_calls_and_none_where_none_is_wanted(*, stream: bool) -> None:
    async def main(fake: FakeProvider) -> None:
        found = await told(fake, stream=stream, fake={"reply": "I look.", "reasoning": "hm"})
        assert (found.reasoning, found.content, found.finish_reason) == ("hm", "I look.", "tool_calls")
        assert len(found.tool_calls) == 2
        found = await told(fake, stream=stream, text="x", tool_choice="none")
        assert (found.content, found.finish_reason, found.tool_calls) == ("echo: x", "stop", [])

    run(main, tool_calls=CALLS)


@FORMS
def test_a_limit_cuts_tool_calls(*, stream: bool) -> None:
    async def main(fake: FakeProvider) -> None:
        said = {}
        for limit in range(1, 10):
            found = await told(fake, stream=stream, max_tokens=limit)
            assert spent(found) <= limit
            said[limit] = [call["function"]["arguments"] for call in found.tool_calls]
            assert found.finish_reason == "length"
        assert said[2] == []  # the name alone has two
        assert (said[3], said[6], said[8]) == (['{"ci'], ['{"city":"Ulm"}'], ['{"city":"Ulm"}'])
        assert said[9] == ['{"city":"Ulm"}', "not "]
        assert (await told(fake, stream=stream, max_tokens=10)).finish_reason == "tool_calls"

    run(main, tool_calls=CALLS)


# Partial mode.


def messages_with(begun: dict[str, Any] | None) -> list[dict[str, Any]]:
    asked = [{"role": "user", "content": "greet"}]
    return asked if begun is None else [*asked, {"role": "assistant", "partial": True, **begun}]


@FORMS
def test_an_answer_in_pieces_joins_to_the_whole(*, stream: bool) -> None:
    async def main(fake: FakeProvider) -> None:
        for thoughts in (None, THOUGHTS):
            options = {"reply": TEXT, "piece_tokens": 3} | ({"reasoning": thoughts} if thoughts else {})
            text = thought = ""
            pieces = 0
            while True:
                begun = {"content": text, "reasoning_content": thought} if pieces else None
                found = await told(fake, dialect="kimi", stream=stream, messages=messages_with(begun), fake=options)
                pieces += 1
                text, thought = text + found.content, thought + found.reasoning
                assert spent(found) <= 3
                if found.finish_reason == "stop":
                    break
                assert found.finish_reason == "length"
                assert pieces < 30
            assert (text, thought) == (TEXT, thoughts or "")
            assert pieces >= text_tokens(TEXT) / 3

    run(main, dialect="kimi")


def test_a_piece_without_a_limit_is_the_rest_of_the_echo() -> None:
    async def main(fake: FakeProvider) -> None:
        begun = {"content": "echo: gr", "name": "kimi"}
        assert (await told(fake, dialect="kimi", messages=messages_with(begun))).content == "eet"
        assert (await told(fake, dialect="kimi", messages=messages_with({"content": "echo: greet"}))).content == ""
        asked = [{"role": "user", "content": "x", "partial": True}]
        assert (await told(fake, dialect="kimi", messages=asked)).content == "echo: x", "a question begins no answer"
        not_begun = [*messages_with(None), {"role": "assistant", "content": "something else", "partial": False}]
        assert (await told(fake, dialect="kimi", messages=not_begun)).content == "echo: greet"

    run(main, dialect="kimi")


def test_a_wrong_join_is_refused() -> None:
    async def main(fake: FakeProvider) -> None:
        for begun in ("Grüße, 你好!x", TEXT[1:], TEXT + " "):
            error = await refused(fake, messages=messages_with({"content": begun}))
            assert error["type"] == "invalid_request_error"
            assert "not the beginning of the answer" in error["message"]
        for begun, thoughts in (("", THOUGHTS[1:]), ("Gr", THOUGHTS[:-1]), ("Gr", THOUGHTS + "x")):
            error = await refused(fake, messages=messages_with({"content": begun, "reasoning_content": thoughts}))
            assert "not the beginning of the reasoning" in error["message"]
        found = await told(fake, dialect="kimi", messages=messages_with({"content": "Gr"}))
        assert (found.reasoning, found.content) == ("", TEXT[2:]), "after the first text there is nothing left to think"
        error = await refused(fake, messages=messages_with({"content": "Gr"}), response_format={"type": "json_object"})
        assert "json_object" in error["message"]
        assert {call.outcome for call in fake.calls} == {"answered", "rejected"}

    run(main, dialect="kimi", reply=TEXT, reasoning=THOUGHTS)


@pytest.mark.parametrize("dialect", ["openai", "glm"])
def test_elsewhere_nobody_knows_partial(dialect: str) -> None:
    async def main(fake: FakeProvider) -> None:
        for begun in ("echo: gr", "no beginning"):
            found = await told(fake, dialect=dialect, messages=messages_with({"content": begun}))
            assert found.content == "echo: greet"

    run(main, dialect=dialect)


# Web search.

BUILTIN = [{"type": "builtin_function", "function": {"name": "$web_search"}}]


@FORMS
def test_kimis_search_is_a_call_that_comes_back(*, stream: bool) -> None:
    async def main(fake: FakeProvider) -> None:
        question = {"role": "user", "content": "news?"}
        found = await told(fake, dialect="kimi", stream=stream, messages=[question], tools=BUILTIN)
        assert (found.content, found.finish_reason) == ("", "tool_calls")
        [call] = found.tool_calls
        assert (call["type"], call["function"]["name"]) == ("builtin_function", "$web_search")
        arguments = json.loads(call["function"]["arguments"])
        assert set(arguments) == {"search_result", "usage"}

        called = {"role": "assistant", "content": "", "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": call["id"], "name": "$web_search", "content": json.dumps(arguments)}
        found = await told(fake, dialect="kimi", stream=stream, messages=[question, called, result], tools=BUILTIN)
        assert (found.content, found.finish_reason) == ("echo: news?", "stop")

        for content in ("{}", "the result", json.dumps(arguments | {"usage": {}})):
            messages = [question, called, result | {"content": content}]
            error = await refused(fake, messages=messages, tools=BUILTIN)
            assert "must be the arguments of its call" in error["message"]
        error = await refused(fake, messages=[question, called, result | {"tool_call_id": "x"}], tools=BUILTIN)
        assert "tool_call_id 'x' is not found" in error["message"]

    run(main, dialect="kimi")


@FORMS
def test_glms_search_stands_beside_the_answer(*, stream: bool) -> None:
    async def main(fake: FakeProvider) -> None:
        tool = {"type": "web_search", "web_search": {"enable": True, "search_query": "callpool", "count": 3}}
        found = await told(fake, dialect="glm", stream=stream, text="news?", tools=[tool])
        assert (found.content, found.finish_reason, found.tool_calls) == ("echo: news?", "stop", [])
        assert [entry["refer"] for entry in found.web_search] == ["ref_1", "ref_2", "ref_3"]
        assert {entry["content"] for entry in found.web_search} == {"About: callpool"}
        off = {"type": "web_search", "web_search": {"enable": False}}
        assert (await told(fake, dialect="glm", stream=stream, tools=[off])).web_search is None
        assert "count is 51" in (await refused(fake, dialect="glm", tools=[{"web_search": {"count": 51}}]))["message"]

    run(main, dialect="glm")


def test_a_search_of_another_provider_is_a_tool_like_any() -> None:
    async def main(fake: FakeProvider) -> None:
        tools = [*BUILTIN, {"type": "web_search", "web_search": {"enable": True}}]
        found = await told(fake, text="x", tools=tools)
        assert (found.content, found.tool_calls, found.web_search) == ("echo: x", [], None)

    run(main)
