"""Answers in several calls: what goes on, what is joined, what is counted, and what is said where an answer stays cut."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from callpool.manager.core.messages import Dispatch
from callpool.manager.core.options import SO_FAR_KEY
from callpool.manager.core.parameter_rules import Rules
from callpool.manager.errors import BadInput, ProviderOverloaded, RequestTimeout
from callpool.manager.kinds import rules_of
from callpool.manager.settings import ProviderSettings
from callpool.workers.conversation import MAX_SEARCHES, SEARCH_TOOL, Conversation
from callpool.workers.providers.base import Answer

KIMI = rules_of(ProviderSettings(kind="kimi"))
GLM = rules_of(ProviderSettings(kind="glm"))
HELLO = [{"role": "user", "content": "Tell me"}]
ON = {"enable_continuation": True}


def order(payload: bytes | dict[str, Any], model: str = "kimi-k3") -> Dispatch:
    body = payload if isinstance(payload, bytes) else msgspec.json.encode({"messages": HELLO, **payload})
    return Dispatch("r", 1, "p", model, 10.0, stream=False, payload=body)


def at(payload: bytes | dict[str, Any], rules: Rules = KIMI, model: str = "kimi-k3") -> Conversation:
    return Conversation(order(payload, model), rules)


def cut(text: str, tokens: int = 64, **more: Any) -> Answer:
    return answered(text, "length", tokens, **more)


def answered(text: str, finish: str = "stop", tokens: int = 64, **more: Any) -> Answer:
    usage = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens, "details": {"cached": 1}}
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    raw = {"id": text, "choices": [choice], "usage": usage}
    return Answer(content=text, finish_reason=finish, usage=usage, raw=raw, **more)


def test_an_answer_in_three_parts() -> None:
    first = at({"callpool": ON, "temperature": 1.0})
    assert [message["role"] for message in first.call().messages] == ["user"]
    payload = first.next_payload(cut("One, ", reasoning_content="Let me "))
    assert payload is not None
    second = at(payload)
    assert second.call().messages == [
        *HELLO,
        {"role": "assistant", "content": "One, ", "partial": True, "reasoning_content": "Let me "},
    ]
    payload = second.next_payload(cut("two, ", reasoning_content="see"))
    assert payload is not None
    third = at(payload)
    assert third.call().messages[-1] == {
        "role": "assistant", "content": "One, two, ", "partial": True, "reasoning_content": "Let me see",
    }  # fmt: skip
    last = answered("three.", tokens=8)
    assert third.next_payload(last) is None
    whole = third.whole(last)
    assert (whole.content, whole.finish_reason, whole.reasoning_content) == ("One, two, three.", "stop", "Let me see")
    assert whole.usage == {
        "prompt_tokens": 30, "completion_tokens": 136, "total_tokens": 166, "details": {"cached": 3},
    }  # fmt: skip
    assert whole.continuation == {"answers": 3, "total_tokens": 136, "is_complete": True, "was_truncated": False}
    assert whole.raw["choices"][0]["message"] == {
        "role": "assistant", "content": "One, two, three.", "reasoning_content": "Let me see",
    }  # fmt: skip
    assert whole.raw["usage"] == whole.usage
    assert last.raw["choices"][0]["message"]["content"] == "three.", "what came stays as it came"


@pytest.mark.parametrize(
    ("payload", "answer", "why"),
    [
        ({"callpool": {**ON, "max_continuation_attempts": 1}}, cut("a"), "max_continuation_attempts is 1"),
        ({"callpool": {**ON, "max_total_tokens": 64}}, cut("a"), "max_total_tokens is 64"),
        ({"callpool": ON}, cut("", reasoning_content="hm"), "the limit came while the model still reasoned"),
        ({"callpool": ON}, cut("a", tool_calls=[{"id": "c"}]), "only one answer of plain text"),
        ({"callpool": ON, "response_format": {"type": "json_object"}}, cut("{"), "json_object"),
    ],
)
def test_what_stays_cut_says_why(payload: dict[str, Any], answer: Answer, why: str) -> None:
    conversation = at(payload)
    conversation.call()
    assert conversation.next_payload(answer) is None
    whole = conversation.whole(answer)
    assert whole.finish_reason == "length"
    assert whole.continuation is not None
    assert why in whole.continuation.pop("why")
    assert whole.continuation == {"answers": 1, "total_tokens": 64, "is_complete": False, "was_truncated": True}


def test_a_provider_without_partial_mode_marks_what_is_cut() -> None:
    conversation = at({"callpool": ON}, GLM, "glm-5")
    assert conversation.next_payload(cut("a")) is None
    continuation = conversation.whole(cut("a")).continuation
    assert continuation is not None
    assert continuation["why"] == "the provider has no way to continue an answer"


def test_a_full_context_is_a_cut_that_nothing_helps() -> None:
    conversation = at({"callpool": ON})
    answer = answered("a", "model_context_window_exceeded")
    assert conversation.next_payload(answer) is None
    continuation = conversation.whole(answer).continuation
    assert continuation is not None
    assert (continuation["was_truncated"], continuation["why"]) == (True, "the model's context is full")


def test_without_the_option_nothing_is_continued_and_nothing_said() -> None:
    conversation = at({})
    assert conversation.next_payload(cut("a")) is None
    assert conversation.whole(cut("a")) == cut("a")


def test_an_answer_that_was_never_cut_says_nothing_of_it() -> None:
    conversation = at({"callpool": ON})
    assert conversation.whole(answered("a")) == answered("a")


def test_a_continuation_that_brings_nothing_ends() -> None:
    payload = at({"callpool": ON}).next_payload(cut("a"))
    assert payload is not None
    conversation = at(payload)
    assert conversation.next_payload(cut("")) is None
    continuation = conversation.whole(cut("")).continuation
    assert continuation is not None
    assert continuation["why"] == "the last call brought nothing more"
    assert conversation.whole(cut("")).content == "a"


def test_the_budget_of_tokens_bounds_each_call() -> None:
    conversation = at({"callpool": {**ON, "max_total_tokens": 100}, "max_tokens": 70})
    assert conversation.call().parameters["max_completion_tokens"] == 70
    payload = conversation.next_payload(cut("a", tokens=70))
    assert payload is not None
    assert at(payload).call().parameters["max_completion_tokens"] == 30


def test_tokens_that_a_provider_does_not_count_are_estimated() -> None:
    answer = Answer(content="x" * 400, finish_reason="length")
    payload = at({"callpool": ON}).next_payload(answer)
    assert payload is not None
    assert msgspec.json.decode(payload)[SO_FAR_KEY]["tokens"] == 100


def test_what_grows_beyond_what_may_be_sent_stays_cut() -> None:
    conversation = at({"callpool": {**ON, "max_total_tokens": 10_000_000}})
    answer = cut("x" * (8 << 20), tokens=1)
    assert conversation.next_payload(answer) is None
    continuation = conversation.whole(answer).continuation
    assert continuation is not None
    assert "over 8388608 bytes" in continuation["why"]


def test_a_provider_that_cannot_go_on_is_not_asked_to() -> None:
    payload = at({"callpool": ON}).next_payload(cut("a"))
    assert payload is not None
    with pytest.raises(BadInput):
        at(payload, GLM, "glm-5").call()


def test_an_error_within_has_all_the_text_that_was_paid_for() -> None:
    payload = at({"callpool": ON}).next_payload(cut("One, "))
    assert payload is not None
    later = at(payload)
    busy = ProviderOverloaded("busy", provider="p", model="m", retryable=True, partial="two")
    assert later.with_text(busy).partial == "One, two"
    assert later.with_text(RequestTimeout("late", which="total", seconds=1.0)).partial == "One, "
    assert type(later.with_text(busy)) is ProviderOverloaded
    assert at({"callpool": ON}).with_text(busy) is busy


CALL = {"id": "c1", "type": "builtin_function", "function": {"name": SEARCH_TOOL, "arguments": '{"q":"x"}'}}
ASKED = {"callpool": {"use_websearch": True}}


class TestSearch:
    def test_the_arguments_go_back_as_they_came(self) -> None:
        asks = answered("", "tool_calls", 5, tool_calls=[CALL], reasoning_content="hm")
        payload = at(ASKED).next_payload(asks)
        assert payload is not None
        found = at(payload)
        assert found.call().messages == [
            *HELLO,
            {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "c1", "name": SEARCH_TOOL, "content": '{"q":"x"}'},
        ]
        whole = found.whole(answered("found", tokens=7))
        assert (whole.content, whole.usage["completion_tokens"]) == ("found", 12)

    def test_only_where_it_was_asked_for_and_nothing_else_is_called(self) -> None:
        other = {"id": "c2", "type": "function", "function": {"name": "mine", "arguments": "{}"}}
        asks = answered("", "tool_calls", tool_calls=[CALL])
        both = answered("", "tool_calls", tool_calls=[CALL, other])
        assert at({}).next_payload(asks) is None
        assert at(ASKED).next_payload(both) is None

    def test_it_ends(self) -> None:
        asks = answered("", "tool_calls", tool_calls=[CALL])
        payload: bytes | dict[str, Any] = ASKED
        for _ in range(MAX_SEARCHES):
            found = at(payload).next_payload(asks)
            assert found is not None
            payload = found
        assert at(payload).next_payload(asks) is None


@pytest.mark.parametrize("wrong", [None, [], {"text": 1}, {"typo": 1}])
def test_what_has_come_so_far_is_ours_to_say(wrong: Any) -> None:
    with pytest.raises(BadInput):
        at({SO_FAR_KEY: wrong})
