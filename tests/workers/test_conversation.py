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
from callpool.workers.providers.failures import MAX_PARTIAL

KIMI = rules_of(ProviderSettings(kind="kimi"))
GLM = rules_of(ProviderSettings(kind="glm"))
HELLO = [{"role": "user", "content": "Tell me"}]
ON = {"enable_continuation": True}


def order(payload: bytes | dict[str, Any], model: str = "kimi-k3") -> Dispatch:
    body = payload if isinstance(payload, bytes) else msgspec.json.encode({"messages": HELLO, **payload})
    return Dispatch("r", 1, "p", model, 10.0, stream=False, payload=body, part=int(isinstance(payload, bytes)))


def at(payload: bytes | dict[str, Any], rules: Rules = KIMI, model: str = "kimi-k3") -> Conversation:
    return Conversation(order(payload, model), rules)


def next_of(conversation: Conversation, answer: Answer) -> bytes | None:
    """The payload of the call that goes on."""
    following = conversation.following(answer)
    return None if following is None else following.payload


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
    payload = next_of(first, cut("One, ", reasoning_content="Let me "))
    assert payload is not None
    second = at(payload)
    assert second.call().messages == [
        *HELLO,
        {"role": "assistant", "content": "One, ", "partial": True, "reasoning_content": "Let me "},
    ]
    payload = next_of(second, cut("two, ", reasoning_content="see"))
    assert payload is not None
    third = at(payload)
    assert third.call().messages[-1] == {
        "role": "assistant", "content": "One, two, ", "partial": True, "reasoning_content": "Let me see",
    }  # fmt: skip
    last = answered("three.", tokens=8)
    assert next_of(third, last) is None
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
    assert next_of(conversation, answer) is None
    whole = conversation.whole(answer)
    assert whole.finish_reason == "length"
    assert whole.continuation is not None
    assert why in whole.continuation.pop("why")
    assert whole.continuation == {"answers": 1, "total_tokens": 64, "is_complete": False, "was_truncated": True}


def test_a_provider_without_partial_mode_marks_what_is_cut() -> None:
    conversation = at({"callpool": ON}, GLM, "glm-5")
    assert next_of(conversation, cut("a")) is None
    continuation = conversation.whole(cut("a")).continuation
    assert continuation is not None
    assert continuation["why"] == "the provider has no way to continue an answer"


def test_one_of_several_answers_is_not_continued() -> None:
    conversation = at({"callpool": ON, "n": 2}, model="moonshot-v1-8k")
    conversation.call()
    assert next_of(conversation, cut("a")) is None


def test_a_full_context_is_a_cut_that_nothing_helps() -> None:
    conversation = at({"callpool": ON})
    answer = answered("a", "model_context_window_exceeded")
    assert next_of(conversation, answer) is None
    continuation = conversation.whole(answer).continuation
    assert continuation is not None
    assert (continuation["was_truncated"], continuation["why"]) == (True, "the model's context is full")


def test_without_the_option_nothing_is_continued_and_nothing_said() -> None:
    conversation = at({})
    assert next_of(conversation, cut("a")) is None
    assert conversation.whole(cut("a")) == cut("a")


def test_an_answer_that_was_never_cut_says_nothing_of_it() -> None:
    conversation = at({"callpool": ON})
    assert conversation.whole(answered("a")) == answered("a")


def test_a_continuation_that_brings_nothing_ends() -> None:
    payload = next_of(at({"callpool": ON}), cut("a"))
    assert payload is not None
    conversation = at(payload)
    assert next_of(conversation, cut("")) is None
    continuation = conversation.whole(cut("")).continuation
    assert continuation is not None
    assert continuation["why"] == "the last call brought nothing more"
    assert conversation.whole(cut("")).content == "a"


def test_the_budget_of_tokens_bounds_each_call() -> None:
    conversation = at({"callpool": {**ON, "max_total_tokens": 100}, "max_tokens": 300})
    assert conversation.call().parameters["max_completion_tokens"] == 300, "the first is the caller's own"
    payload = next_of(conversation, cut("a", tokens=70))
    assert payload is not None
    assert at(payload).call().parameters["max_completion_tokens"] == 30


@pytest.mark.parametrize(("limit", "sent"), [({}, {}), ({"max_tokens": 20}, 20), ({"max_completion_tokens": 90}, 30)])
def test_a_later_call_has_the_first_ones_limit_or_what_is_left(limit: dict[str, int], sent: Any) -> None:
    asked = {"callpool": {**ON, "max_total_tokens": 100}, **limit}
    payload = next_of(at(asked, model="moonshot-v1-8k"), cut("a", tokens=70))
    assert payload is not None
    later = at(payload, model="moonshot-v1-8k")
    assert later.call().parameters == ({"max_completion_tokens": sent} if sent else {})


def test_a_beginning_of_the_callers_own_is_one_with_what_came() -> None:
    own = {"role": "assistant", "content": "Once", "partial": True, "reasoning_content": "hm ", "name": "poet"}
    payload = next_of(at({"callpool": ON, "messages": [*HELLO, own]}), cut(" upon", reasoning_content="ha"))
    assert payload is not None
    later = at(payload)
    assert later.call().messages == [*HELLO, own | {"content": "Once upon", "reasoning_content": "hm ha"}]
    assert later.whole(answered(" a time")).content == " upon a time", "the provider does not repeat the caller's own"


@pytest.mark.parametrize("stated", [{"n": None}, {"n": 1}, {"n": 2}])
def test_what_is_not_sent_hinders_nothing(stated: dict[str, Any]) -> None:
    rules = rules_of(ProviderSettings(kind="kimi", unsupported_parameters="drop"))
    conversation = at({"callpool": ON, **stated}, rules)
    conversation.call()
    assert next_of(conversation, cut("a")) is not None


def test_tokens_that_a_provider_does_not_count_are_estimated() -> None:
    answer = Answer(content="x" * 400, finish_reason="length")
    payload = next_of(at({"callpool": ON}), answer)
    assert payload is not None
    assert msgspec.json.decode(payload)[SO_FAR_KEY]["tokens"] == 100


def test_what_grows_beyond_what_may_be_sent_stays_cut() -> None:
    conversation = at({"callpool": {**ON, "max_total_tokens": 10_000_000}})
    answer = cut("x" * (8 << 20), tokens=1)
    assert next_of(conversation, answer) is None
    continuation = conversation.whole(answer).continuation
    assert continuation is not None
    assert "over 8388608 bytes" in continuation["why"]


def test_a_provider_that_cannot_go_on_is_not_asked_to() -> None:
    payload = next_of(at({"callpool": ON}), cut("a"))
    assert payload is not None
    with pytest.raises(BadInput):
        at(payload, GLM, "glm-5").call()


def test_an_error_within_has_all_the_text_that_was_paid_for() -> None:
    payload = next_of(at({"callpool": ON}), cut("One, "))
    assert payload is not None
    later = at(payload)
    busy = ProviderOverloaded("busy", provider="p", model="m", retryable=True, partial="two")
    assert later.with_text(busy).partial == "One, two"
    assert later.with_text(RequestTimeout("late", which="total", seconds=1.0)).partial == "One, "
    assert type(later.with_text(busy)) is ProviderOverloaded
    following = later.following(cut("x" * MAX_PARTIAL))
    assert following is not None
    assert len(following.partial) == MAX_PARTIAL
    assert len(at(following.payload).with_text(busy).partial) == MAX_PARTIAL
    assert at({"callpool": ON}).with_text(busy) is busy


CALL = {"id": "c1", "type": "builtin_function", "function": {"name": SEARCH_TOOL, "arguments": '{"q":"x"}'}}
ASKED = {"callpool": {"use_websearch": True}}


class TestSearch:
    def test_the_arguments_go_back_as_they_came(self) -> None:
        asks = answered("Let me see. ", "tool_calls", 5, tool_calls=[CALL], reasoning_content="hm")
        payload = next_of(at(ASKED), asks)
        assert payload is not None
        found = at(payload)
        assert found.call().messages == [
            *HELLO,
            {"role": "assistant", "content": "Let me see. ", "tool_calls": [CALL], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "c1", "name": SEARCH_TOOL, "content": '{"q":"x"}'},
        ]
        whole = found.whole(answered("found", tokens=7))
        assert (whole.content, whole.usage["completion_tokens"]) == ("Let me see. found", 12)
        assert whole.searches == {"rounds": 1}
        following = at(ASKED).following(asks)
        assert following is not None
        assert (following.why, following.partial) == ("search", "Let me see. ")

    def test_only_where_it_was_asked_for_and_nothing_else_is_called(self) -> None:
        other = {"id": "c2", "type": "function", "function": {"name": "mine", "arguments": "{}"}}
        asks = answered("", "tool_calls", tool_calls=[CALL])
        both = answered("", "tool_calls", tool_calls=[CALL, other])
        assert next_of(at({}), asks) is None
        assert next_of(at(ASKED), both) is None

    def test_it_ends(self) -> None:
        asks = answered("", "tool_calls", tool_calls=[CALL])
        payload: bytes | dict[str, Any] = ASKED
        for _ in range(MAX_SEARCHES):
            found = next_of(at(payload), asks)
            assert found is not None
            payload = found
        last = at(payload)
        assert next_of(last, asks) is None
        searches = last.whole(asks).searches
        assert searches is not None
        assert searches.pop("why").startswith("it asks for more than 8 searches")
        assert searches == {"rounds": MAX_SEARCHES}

    def test_what_is_said_before_each_search_is_kept(self) -> None:
        payload = next_of(at(ASKED), answered("First. ", "tool_calls", tool_calls=[CALL]))
        assert payload is not None
        payload = next_of(at(payload), answered("Second. ", "tool_calls", tool_calls=[CALL]))
        assert payload is not None
        assert at(payload).whole(answered("Found.")).content == "First. Second. Found."

    def test_a_beginning_of_the_callers_own_is_whole_with_what_is_said(self) -> None:
        own = {"role": "assistant", "content": "Well: ", "partial": True}
        payload = next_of(
            at({**ASKED, "messages": [*HELLO, own]}), answered("let me see", "tool_calls", tool_calls=[CALL])
        )
        assert payload is not None
        _, said, _ = at(payload).call().messages
        assert said == {"role": "assistant", "content": "Well: let me see", "tool_calls": [CALL]}

    def test_a_search_within_a_continued_answer_is_no_way_on(self) -> None:
        both = {"callpool": {"use_websearch": True, **ON}}
        payload = next_of(at(both), cut("One, "))
        assert payload is not None
        later = at(payload)
        asks = answered("two", "tool_calls", tool_calls=[CALL])
        assert next_of(later, asks) is None
        searches = later.whole(asks).searches
        assert searches is not None
        assert "continued answer" in searches["why"]

    def test_an_answer_after_a_search_may_be_cut_and_continued(self) -> None:
        both = {"callpool": {"use_websearch": True, **ON}}
        payload = next_of(at(both), answered("Let me see. ", "tool_calls", 5, tool_calls=[CALL]))
        assert payload is not None
        payload = next_of(at(payload), cut("One, "))
        assert payload is not None
        last = at(payload)
        assert last.call().messages[-1] == {"role": "assistant", "content": "One, ", "partial": True}
        assert last.whole(answered("two")).content == "Let me see. One, two"


@pytest.mark.parametrize(
    "wrong", [None, [], {"text": 1}, {"typo": 1}, {"tokens": -1}, {"answers": -1}, {"searches": -1}]
)
def test_what_has_come_so_far_has_bounds(wrong: Any) -> None:
    with pytest.raises(BadInput):
        at(msgspec.json.encode({"messages": HELLO, SO_FAR_KEY: wrong}))


@pytest.mark.parametrize("content", [5, {"a": 1}, True])
def test_a_last_message_that_could_not_be_gone_on_with(content: Any) -> None:
    """The Python client checks it, others may not; the first call would be paid for before it is seen."""
    with pytest.raises(BadInput) as caught:
        at({"messages": [*HELLO, {"role": "assistant", "content": content, "partial": True}]})
    assert caught.value.param == "messages"


def test_what_has_come_so_far_is_not_for_a_request_to_say() -> None:
    """A client that speaks the wire itself could lift every bound with it."""
    with pytest.raises(BadInput) as caught:
        at({SO_FAR_KEY: {}})
    assert caught.value.param == SO_FAR_KEY
