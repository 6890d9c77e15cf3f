"""What a request is reckoned to use: the rule by figures, its properties, and what must never count as text."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.limits import Usage
from callpool.manager.core.tokens import (
    ANSWER_TOKENS,
    FILE_TOKENS,
    FILES,
    MESSAGE_TOKENS,
    MOST,
    answer_limit,
    chat_usage,
    prompt_tokens,
    text_tokens,
    texts_usage,
)

AROUND = MESSAGE_TOKENS + ANSWER_TOKENS
BASE64 = "iVBORw0KGgoAAAANSUhEUgAA/9k+" * 150_000
"""Four megabytes of an image."""
TOOL = {
    "type": "function",
    "function": {"name": "find", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}},
}

texts = st.text(st.characters(exclude_categories=()), max_size=200)
"""Every character there is, halves of surrogate pairs among them."""
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def told(*contents: Any, **parameters: Any) -> int:
    """Tokens of messages with these contents, without what is around each."""
    messages = [{"role": "user", "content": content} for content in contents]
    return prompt_tokens(messages, parameters) - ANSWER_TOKENS - len(messages) * MESSAGE_TOKENS


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("a", 1),
        ("abcd", 1),
        ("abcde", 2),
        ("12", 1),
        ("2026", 2),
        ("a1b2c3d", 3),
        ("敏捷的狐狸", 5),
        ("٣", 1),
        ("é", 1),
        ("naïve", 2),
        ("😀", 1),
        ("\ud800", 1),
        ("x" * 4_000_001, 1_000_001),
        ("狐" * 1_000_000, 1_000_000),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_text(text: str, tokens: int) -> None:
    assert text_tokens(text) == tokens
    assert told(text) == tokens
    assert texts_usage(text) == Usage(tokens)


def test_a_conversation() -> None:
    assert prompt_tokens([], {}) == ANSWER_TOKENS
    assert prompt_tokens([{"role": "user", "content": "abcd"}] * 3, {}) == 3 * (MESSAGE_TOKENS + 1) + ANSWER_TOKENS
    assert told(None) == 0
    reasoned = {"role": "assistant", "content": "abcd", "reasoning_content": "x" * 40, "partial": True}
    assert prompt_tokens([reasoned], {}) == AROUND + 1 + 10
    called = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{" + "x" * 398 + "}"}}
    assert prompt_tokens([{"role": "assistant", "tool_calls": [called]}], {}) == AROUND + written([called])


def written(value: Any) -> int:
    """Tokens of the JSON of a value without spaces."""
    return text_tokens(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def test_what_a_model_is_told_besides_messages() -> None:
    schema = {"type": "json_schema", "json_schema": {"schema": {"title": "狐狸", "type": "object"}}}
    assert told("", tools=[TOOL] * 20) == written([TOOL] * 20)
    assert told("", response_format=schema) == written(schema)
    assert told("", tools=None, temperature=0.5, user="x" * 10_000, callpool={"cache_id": "c" * 200}) == 0
    deep: Any = "end"
    for _ in range(5_000):
        deep = [deep]
    assert told("", tools=deep) >= 1, "deeper than any encoder goes"
    assert told("", tools="\ud800") >= 1, "what UTF-8 has no form for"
    assert told("", tools=object()) >= 1, "and JSON neither"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + BASE64}},
        {"type": "image_url", "image_url": "data:image/png;base64," + BASE64},
        {"type": "image_url", "image_url": {"url": "ms://file-1"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + BASE64}},
        {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64," + BASE64}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"image_url": {"url": BASE64}},
        {"type": ["image_url"], "image_url": BASE64},
    ],
    ids=lambda part: str(part)[:60],
)
def test_a_file_costs_the_same_whatever_its_size(part: Any) -> None:
    assert told([part]) == told((part,)) == FILE_TOKENS
    assert told([{"type": "text", "text": "abcd"}, part, part]) == 1 + 2 * FILE_TOKENS


@pytest.mark.parametrize(
    "unknown",
    [
        {"type": "hologram", "data": BASE64},
        {"type": "hologram", "inside": {"bytes": ["data:model/x;base64," + BASE64]}},
        [BASE64],
    ],
    ids=["raw", "marked", "bare"],
)
def test_base64_in_what_nobody_knows_is_no_text_either(unknown: Any) -> None:
    assert FILE_TOKENS <= told([unknown]) < FILE_TOKENS + 50


def test_base64_outside_of_parts() -> None:
    """Some services take images beside the content."""
    for images in ([{"data": BASE64}], [BASE64], {"one": BASE64}, BASE64, "data:image/png;base64,AAAA"):
        message = {"role": "user", "content": "abcd", "images": images}
        assert AROUND + 1 + FILE_TOKENS <= prompt_tokens([message], {}) < AROUND + 1 + FILE_TOKENS + 50


def test_what_only_looks_like_a_file_is_text() -> None:
    long_text = "data: " + "the words of a report, one after another. " * 100
    assert told([{"type": "text", "text": long_text}]) == text_tokens(long_text)
    assert told([{"type": "thought", "thought": long_text}]) >= text_tokens(long_text)
    assert told([{"type": "text", "text": BASE64}]) == text_tokens(BASE64), (
        "the provider, too, reads it letter by letter"
    )


@pytest.mark.parametrize(
    ("parameters", "limit"),
    [
        ({}, 0),
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 100}, 100),
        ({"max_tokens": 100, "max_completion_tokens": 300}, 300),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"n": 3}, 0),
        ({"max_tokens": 100, "n": None}, 100),
        ({"max_tokens": None}, 0),
        ({"max_tokens": True}, 0),
        ({"max_tokens": "100"}, 0),
        ({"max_tokens": -5}, 0),
        ({"max_tokens": float("nan")}, 0),
        ({"max_tokens": float("inf")}, 0),
        ({"max_tokens": 100, "n": -3}, 100),
        ({"max_tokens": 10**30, "n": 10**30}, MOST),
        ({"max_tokens": 100.0}, 100),
    ],
)
def test_the_most_that_answers_may_have(parameters: dict[str, Any], limit: int) -> None:
    assert answer_limit(parameters) == limit
    assert chat_usage([], parameters) == Usage(ANSWER_TOKENS, limit)


def test_texts_for_vectors() -> None:
    assert texts_usage(["abcd", "狐狸", ""]) == Usage(3)
    assert texts_usage([]) == Usage(0)
    assert texts_usage([[101, 102, 103]]).prompt >= 3, "a client of another kind may send token numbers"


@given(texts, texts)
def test_more_text_is_never_fewer_tokens(first: str, second: str) -> None:
    both = text_tokens(first + second)
    assert max(text_tokens(first), text_tokens(second)) <= both <= text_tokens(first) + text_tokens(second)


@given(st.lists(texts, max_size=5))
def test_never_more_tokens_than_bytes_and_what_is_around(contents: list[str]) -> None:
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in contents)
    assert told(*contents) <= size
    assert texts_usage(contents).prompt <= size


@given(
    st.lists(st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "x"]), any_json, max_size=4)), any_json
)
def test_whatever_comes_it_is_a_count_that_travels(messages: list[dict[str, Any]], value: Any) -> None:
    parameters = {"tools": value, "response_format": value, "max_tokens": value, "n": value}
    usage = chat_usage(messages, parameters)
    assert all(type(count) is int and 0 <= count <= MOST for count in (usage.prompt, usage.answer, usage.cached))
    assert usage.prompt >= prompt_tokens(messages[:-1], parameters), "a message more is never less"
    assert texts_usage(value).prompt >= 0
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(usage), type=Usage) == usage


def test_sums_end_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callpool.manager.core.tokens.FILE_TOKENS", MOST)
    assert told([dict.fromkeys(FILES, "x")] * 2) <= MOST
    assert prompt_tokens([{"role": "user", "content": [{"image_url": "x"}] * 2}], {}) == MOST
