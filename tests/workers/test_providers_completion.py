"""Answers: from one object, and from the chunks of a stream."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.workers.providers.base import Answer
from callpool.workers.providers.completion import MAX_CHOICES, MAX_TOOL_CALLS, Joined, Malformed, read_completion
from callpool.workers.providers.presets import find_usage

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def completion(message: object = None, **choice: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "message": message or {"content": "hi"}, **choice}]}


def chunk(delta: object = None, **choice: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta or {}, **choice}]}


def join(*chunks: dict[str, Any]) -> tuple[Answer, list[str], Joined]:
    joined = Joined(find_usage)
    texts = [joined.add(one) for one in chunks]
    return read_completion(joined.body(), find_usage), texts, joined


def test_a_plain_answer() -> None:
    body = completion(
        {"content": "hi", "reasoning_content": "hm", "tool_calls": [{"id": "t"}], "new": 1}, finish_reason="stop"
    )
    body |= {"usage": USAGE, "web_search": [{"link": "x"}]}
    answer = read_completion(body, find_usage)
    assert answer == Answer(
        content="hi", finish_reason="stop", usage=USAGE, reasoning_content="hm", tool_calls=[{"id": "t"}], raw=body
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        ([{"type": "text", "text": "a"}, {"type": "image"}, "odd", {"text": 1}, {"text": "b"}], "ab"),
    ],
)
def test_kinds_of_content(content: object, text: str) -> None:
    assert read_completion(completion({"role": "assistant", "content": content}), find_usage).content == text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": {}},
        {"choices": "text"},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": "text"}]},
        completion({"content": 7}),
        completion({"content": {"text": "x"}}),
        completion({"content": "", "tool_calls": "x"}),
        completion({"content": "", "tool_calls": [1]}),
    ],
)
def test_what_is_no_completion_is_malformed(body: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        read_completion(body, find_usage)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ({"usage": USAGE}, USAGE),
        ({"usage": None, "choices": [{"usage": USAGE}]}, USAGE),
        ({"usage": {}, "choices": [{"usage": USAGE}]}, USAGE),
        ({"usage": USAGE, "choices": []}, USAGE),
        ({"choices": []}, None),
        ({"choices": None}, None),
        ({"choices": ["x"]}, None),
        ({"choices": [{"usage": 3}]}, None),
        ({"usage": "x"}, None),
    ],
)
def test_where_usage_is_found(body: dict[str, Any], usage: object) -> None:
    assert find_usage(body) == usage


def test_a_stream_joins_to_the_object_that_a_plain_call_would_have_given() -> None:
    answer, texts, joined = join(
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "reasoning_content": "let "}),
        chunk({"reasoning_content": "me see"}),
        chunk({"content": "Hel"}),
        chunk({"content": "lo", "refusal": None}),
        chunk({}, finish_reason="stop") | {"system_fingerprint": "f"},
    )
    assert texts == ["", "", "", "Hel", "lo", ""]
    assert joined.complete
    assert (answer.content, answer.reasoning_content, answer.finish_reason) == ("Hello", "let me see", "stop")
    assert answer.raw == {
        "id": "c",
        "object": "chat.completion",
        "system_fingerprint": "f",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "reasoning_content": "let me see"},
                "finish_reason": "stop",
            }
        ],
    }


@pytest.mark.parametrize(
    "last",
    [
        [chunk(finish_reason="stop") | {"usage": USAGE}],
        [chunk(finish_reason="stop", usage=USAGE)],
        [chunk(finish_reason="stop"), {"choices": [], "usage": USAGE}],
        [chunk(finish_reason="stop") | {"usage": {"total_tokens": 1}}, {"choices": [], "usage": USAGE}],
        [chunk(finish_reason="stop") | {"usage": USAGE}, {"choices": [], "usage": None}],
    ],
)
def test_the_last_usage_seen_wins(last: list[dict[str, Any]]) -> None:
    answer, _, _ = join(chunk({"content": "x"}) | {"usage": None}, *last)
    assert answer.usage == answer.raw["usage"] == USAGE
    assert "usage" not in answer.raw["choices"][0]


def tool(**fields: Any) -> dict[str, Any]:
    return chunk({"tool_calls": [fields]})


def test_tool_calls_are_joined_by_index() -> None:
    answer, _, _ = join(
        tool(index=1, id="b", type="function", function={"name": "two", "arguments": ""}),
        tool(index=0, id="a", type="function", function={"name": "get_", "arguments": '{"x"'}),
        tool(index=1, id="", function={"name": "two", "arguments": "{}"}),  # repeats its name, blanks its id
        tool(index=0, id=None, function={"name": "weather", "arguments": ": 1}"}),  # a name in two pieces
        chunk(finish_reason="tool_calls"),
    )
    assert answer.tool_calls == [
        {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "two", "arguments": "{}"}},
    ]
    assert answer.content == ""


def test_tool_calls_without_indexes_begin_with_their_id() -> None:
    answer, _, _ = join(
        tool(id="a", function={"name": "one", "arguments": "{"}),
        tool(function={"arguments": "}"}),
        tool(id="b", function={"name": "two", "arguments": "{}"}),
    )
    assert answer.tool_calls == [
        {"id": "a", "function": {"name": "one", "arguments": "{}"}},
        {"id": "b", "function": {"name": "two", "arguments": "{}"}},
    ]


def test_fields_unknown_to_us_survive() -> None:
    first = chunk({"content": "a", "annotations": [1]}, logprobs={"content": [{"token": "a"}]}) | {"new": 1}
    second = chunk({"content": "b", "annotations": [2], "score": 7}, logprobs={"content": [{"token": "b"}]})
    before = copy.deepcopy((first, second))
    answer, _, _ = join(first, second, chunk(logprobs=None, finish_reason="stop") | {"web_search": [{"link": "x"}]})
    choice = answer.raw["choices"][0]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}
    assert choice["message"]["annotations"] == [1, 2]
    assert choice["message"]["score"] == 7
    assert (answer.raw["new"], answer.raw["web_search"]) == (1, [{"link": "x"}])
    assert (first, second) == before, "the chunks themselves are on their way to the client"


def test_several_choices_stay_apart_and_all_must_finish() -> None:
    chunks = [
        chunk({"content": "a"}),
        {"choices": [{"index": 1, "delta": {"content": "b"}}]},
        chunk(finish_reason="stop"),
    ]
    answer, texts, joined = join(*chunks)
    assert (answer.content, texts) == ("a", ["a", "", ""])
    before = joined.complete
    joined.add({"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]})
    assert (before, joined.complete) == (False, True)
    assert [choice["message"]["content"] for choice in joined.body()["choices"]] == ["a", "b"]


@pytest.mark.parametrize(
    "bad",
    [
        {"choices": {}},
        {"choices": "x"},
        {"choices": [1]},
        {"choices": [{"index": "0"}]},
        {"choices": [{"index": 1.5}]},
        chunk("text"),
        chunk([1]),
        chunk({"content": 7}),
        chunk({"tool_calls": {}}),
        chunk({"tool_calls": ["x"]}),
        chunk({"tool_calls": [{"index": "0"}]}),
    ],
)
def test_chunks_of_another_shape_are_malformed(bad: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        Joined(find_usage).add(bad)


@pytest.mark.parametrize(
    "harmless", [{}, {"choices": None}, {"choices": []}, {"type": "ping"}, chunk(None, index=None)]
)
def test_chunks_that_say_nothing_are_no_fault(harmless: dict[str, Any]) -> None:
    joined = Joined(find_usage)
    assert joined.add(harmless) == ""
    assert not joined.complete


@pytest.mark.parametrize(
    ("count", "make"),
    [
        (MAX_CHOICES, lambda index: {"choices": [{"index": index, "delta": {}}]}),
        (MAX_TOOL_CALLS, lambda index: tool(index=index)),
    ],
)
def test_indexes_are_bounded(count: int, make: Any) -> None:
    joined = Joined(find_usage)
    for index in range(count):
        joined.add(make(index * 1000))
    with pytest.raises(Malformed, match=f"more than {count}"):
        joined.add(make(7))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", "x", "stop"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "index",
                    "delta",
                    "content",
                    "role",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "usage",
                    "id",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from(["choices", "usage", "object"]), JSON, max_size=3), max_size=4))
def test_no_shape_raises_anything_but_malformed(chunks: list[dict[str, Any]]) -> None:
    joined = Joined(find_usage)
    try:
        for one in chunks:
            joined.add(one)
        read_completion(joined.body(), find_usage)
    except Malformed:
        return
    assert msgspec.json.encode(joined.body())


@given(st.lists(st.text(max_size=5), max_size=10))
def test_the_text_is_the_sum_of_what_was_handed_on(pieces: list[str]) -> None:
    answer, texts, joined = join(chunk({"role": "assistant"}), *(chunk({"content": piece}) for piece in pieces))
    assert answer.content == joined.text == "".join(pieces) == "".join(texts)
