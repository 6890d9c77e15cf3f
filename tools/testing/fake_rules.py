"""What the providers refuse of a readable request, each by its own rules. Pure.

A rule returns the words of its refusal, which name the field and what is allowed, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from callpool.tools.testing.fake_answers import message_text
from callpool.tools.testing.fake_dialects import Dialect
from callpool.tools.testing.fake_replies import SEARCH, beginning, search_call, thoughts_of, whole_text
from callpool.tools.testing.fake_requests import ChatRequest, Options

MAX_TOOLS = 128
KIMI_STOPS = 5
KIMI_STOP_BYTES = 32
GLM_STOPS = 4
GLM_MAX_TOKENS = 131_072
GLM_COUNT = 50
"""Results of one web search."""

Rule = Callable[[ChatRequest], str | None]


def complaint(chat: ChatRequest, options: Options, dialect: Dialect) -> str | None:
    """What the provider of this dialect has against the request."""
    found = next((words for rule in RULES[dialect.name] if (words := rule(chat)) is not None), None)
    if found is None and dialect.joins:
        found = _wrong_beginning(chat, options, dialect)
    return found


def tools(chat: ChatRequest) -> str | None:
    """The number of tools."""
    count = len(chat.tools or [])
    return f"tools has {count} entries: at most {MAX_TOOLS} are allowed" if count > MAX_TOOLS else None


# Kimi.


def kimi_sampling(chat: ChatRequest) -> str | None:
    """The models of today have one value for each; those of before were free."""
    if not chat.model.startswith("kimi-"):
        return None
    fixed = {
        "temperature": 1.0 if _reasons(chat) else 0.6,
        "top_p": 0.95,
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
    }
    for name, value in fixed.items():
        if getattr(chat, name) not in (None, value):
            return f"invalid {name}: only {value:g} is allowed for this model"
    return None


def kimi_stop(chat: ChatRequest) -> str | None:
    """Number and length of the stop words."""
    if len(chat.stops) > KIMI_STOPS:
        return f"invalid stop: {len(chat.stops)} strings, at most {KIMI_STOPS} are allowed"
    if any(len(word.encode()) > KIMI_STOP_BYTES for word in chat.stops):
        return f"invalid stop: a string of more than {KIMI_STOP_BYTES} bytes"
    return None


def kimi_tool_choice(chat: ChatRequest) -> str | None:
    """What may be demanded of a model that reasons."""
    if chat.tool_choice in (None, "auto", "none"):
        return None
    if chat.tool_choice == "required":
        return None if chat.model.startswith("kimi-k3") else "invalid tool_choice: this model does not know 'required'"
    if isinstance(chat.tool_choice, str):
        return "invalid tool_choice: auto, none, required or a function is allowed"
    return "invalid tool_choice: a function cannot be demanded while the model reasons" if _reasons(chat) else None


def _reasons(chat: ChatRequest) -> bool:
    """Whether the model thinks first: only one can be told not to."""
    off = chat.model.startswith("kimi-k2.6") and (chat.thinking or {}).get("type") == "disabled"
    return chat.model.startswith("kimi-") and not off


def kimi_tool_results(chat: ChatRequest) -> str | None:
    """Each result at the end of the messages answers a call; that of the provider's own search is the call's arguments."""
    called = {call.get("id"): call.get("function") or {} for call in _calls_before(chat.messages)}
    for message in reversed(chat.messages):
        if message.get("role") != "tool":
            return None
        call = called.get(message.get("tool_call_id"))
        if call is None:
            return f"tool_call_id {message.get('tool_call_id')!r} is not found"
        if call.get("name") == SEARCH and not _same_json(message_text(message), search_call(chat).arguments):
            return f"the result of {SEARCH} must be the arguments of its call"
    return None


def _calls_before(messages: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for message in messages:
        calls = message.get("tool_calls")
        if message.get("role") == "assistant" and isinstance(calls, list):
            yield from (call for call in calls if isinstance(call, dict))


def _same_json(text: str, wanted: str) -> bool:
    try:
        return bool(msgspec.json.decode(text) == msgspec.json.decode(wanted))
    except msgspec.DecodeError:
        return False


def _wrong_beginning(chat: ChatRequest, options: Options, dialect: Dialect) -> str | None:
    """No provider checks this; the fake does, so that a wrong join is seen."""
    begun = beginning(chat)
    if begun is None:
        return None
    if (chat.response_format or {}).get("type") == "json_object":
        return "partial cannot be combined with response_format json_object"
    text, thoughts = message_text(begun), thoughts_of(begun)
    if not whole_text(chat, options, dialect).startswith(text):
        return "partial: content is not the beginning of the answer"
    if options.reasoning is None or not thoughts:
        return None
    right = thoughts == options.reasoning if text else options.reasoning.startswith(thoughts)
    return None if right else "partial: reasoning_content is not the beginning of the reasoning"


# GLM.


def glm_ranges(chat: ChatRequest) -> str | None:
    """The parameters that are numbers."""
    ranges = {"temperature": (0.0, 1.0), "top_p": (0.01, 1.0), "max_tokens": (1, GLM_MAX_TOKENS)}
    for name, (least, most) in ranges.items():
        value = getattr(chat, name)
        if value is not None and not least <= value <= most:
            return f"{name} is {value:g}: it must be from {least:g} to {most}"
    return None


def glm_stop(chat: ChatRequest) -> str | None:
    """Number of the stop words."""
    if chat.stop is not None and not 1 <= len(chat.stops) <= GLM_STOPS:
        return f"stop has {len(chat.stops)} strings: it must have from 1 to {GLM_STOPS}"
    return None


def glm_tool_choice(chat: ChatRequest) -> str | None:
    """Nothing can be demanded."""
    return None if chat.tool_choice in (None, "auto") else "tool_choice: only auto is allowed"


def glm_messages(chat: ChatRequest) -> str | None:
    """Somebody must have asked something."""
    if all(message.get("role") in ("system", "assistant") for message in chat.messages):
        return "messages must not be of system and assistant only"
    return None


def glm_web_search(chat: ChatRequest) -> str | None:
    """How many results a search may bring."""
    for tool in chat.tools or []:
        settings = tool.get("web_search")
        count = settings.get("count", 1) if isinstance(settings, dict) else 1
        if type(count) is not int or not 1 <= count <= GLM_COUNT:
            return f"web_search.count is {count!r}: it must be from 1 to {GLM_COUNT}"
    return None


RULES: dict[str, list[Rule]] = {
    "openai": [],
    "kimi": [kimi_sampling, kimi_stop, tools, kimi_tool_choice, kimi_tool_results],
    "glm": [glm_ranges, glm_stop, tools, glm_tool_choice, glm_messages, glm_web_search],
}
