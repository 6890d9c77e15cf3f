"""What the fake has to say to a request, before it is put into a dialect's form. Pure.

Thoughts come first, then text, then tool calls; a token limit cuts the whole wherever it falls.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from callpool.tools.testing import fake_answers
from callpool.tools.testing.fake_answers import ToolCall, head, message_text, text_tokens
from callpool.tools.testing.fake_dialects import Dialect
from callpool.tools.testing.fake_requests import ChatRequest, Options

SEARCH = "$web_search"
"""Name of Kimi's tool that the provider itself runs."""
FOUND = 2
"""Results of a web search where the request does not say how many."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is said, in its order."""

    reasoning: str | None
    content: str
    tool_calls: list[ToolCall] = []
    finish_reason: str = "stop"

    @property
    def tokens(self) -> int:
        """The fake's count of all of it."""
        spoken = text_tokens(self.reasoning or "") + text_tokens(self.content)
        return spoken + sum(text_tokens(call.name) + text_tokens(call.arguments) for call in self.tool_calls)


def reply(chat: ChatRequest, options: Options, dialect: Dialect) -> Reply:
    """The answer to a request that `fake_rules` has nothing against."""
    calls = tool_calls(chat, options, dialect)
    said = Reply(
        reasoning=options.reasoning,
        content=_content(chat, options, calls),
        tool_calls=calls,
        finish_reason="tool_calls" if calls else "stop",
    )
    begun = beginning(chat) if dialect.joins else None
    if begun is not None:
        said = _rest(said, begun)
    limits = [limit for limit in (chat.token_limit, options.piece_tokens) if limit is not None]
    return cut(said, min(limits)) if limits else said


def beginning(chat: ChatRequest) -> dict[str, Any] | None:
    """The message that begins the answer (partial mode); None where the answer is to be a fresh one."""
    last = chat.messages[-1]
    return last if last.get("role") == "assistant" and last.get("partial") is True else None


def whole_text(chat: ChatRequest, options: Options, dialect: Dialect) -> str:
    """The text of the answer with nothing begun and nothing cut."""
    return _content(chat, options, tool_calls(chat, options, dialect))


def _content(chat: ChatRequest, options: Options, calls: list[ToolCall]) -> str:
    if options.reply is not None:
        return options.reply
    return "" if calls else fake_answers.echo(chat.messages)


def _rest(said: Reply, begun: dict[str, Any]) -> Reply:
    """What follows what the client has. Thoughts come first, so there are none any more once there is text."""
    text = message_text(begun)
    thoughts = None if text or said.reasoning is None else said.reasoning.removeprefix(thoughts_of(begun))
    return msgspec.structs.replace(said, reasoning=thoughts or None, content=said.content.removeprefix(text))


def thoughts_of(message: dict[str, Any]) -> str:
    """The reasoning that a message carries."""
    thoughts = message.get("reasoning_content")
    return thoughts if isinstance(thoughts, str) else ""


def cut(said: Reply, limit: int) -> Reply:
    """At most `limit` tokens of it, thoughts first; what fits is returned as it is."""
    if said.tokens <= limit:
        return said
    reasoning, left = _take(said.reasoning, limit) if said.reasoning is not None else (None, limit)
    content, left = _take(said.content, left)
    calls: list[ToolCall] = []
    for call in said.tool_calls:
        left -= text_tokens(call.name)
        if left <= 0:
            break
        arguments, left = _take(call.arguments, left)
        calls.append(msgspec.structs.replace(call, arguments=arguments))
    return Reply(reasoning=reasoning, content=content, tool_calls=calls, finish_reason="length")


def _take(text: str, limit: int) -> tuple[str, int]:
    """The beginning of a text that fits, and how many tokens that leaves."""
    kept = head(text, limit)
    return kept, limit - text_tokens(kept)


# Tools.


def tool_calls(chat: ChatRequest, options: Options, dialect: Dialect) -> list[ToolCall]:
    """The calls that the answer asks for: none once the messages end with a tool's result."""
    if chat.messages[-1].get("role") == "tool" or chat.tool_choice == "none":
        return []
    if dialect.search == "tool_call" and any(_name_of(tool) == SEARCH for tool in chat.tools or []):
        return [search_call(chat)]
    return [
        ToolCall(
            name=ordered.name,
            arguments=ordered.arguments
            if isinstance(ordered.arguments, str)
            else msgspec.json.encode(ordered.arguments).decode(),
        )
        for ordered in options.tool_calls
    ]


def search_call(chat: ChatRequest) -> ToolCall:
    """Kimi's call of its own search. The client gives these arguments back, and only then the search is in the answer."""
    question = fake_answers.last_user_text(chat.messages)
    arguments = {
        "search_result": {"search_id": hashlib.sha256(question.encode()).hexdigest()[:16]},
        "usage": {"total_tokens": text_tokens(question)},
    }
    return ToolCall(kind="builtin_function", name=SEARCH, arguments=msgspec.json.encode(arguments).decode())


def _name_of(tool: dict[str, Any]) -> Any:
    function = tool.get("function")
    builtin = tool.get("type") == "builtin_function" and isinstance(function, dict)
    return function.get("name") if builtin and isinstance(function, dict) else None


def web_search(chat: ChatRequest, dialect: Dialect) -> list[dict[str, Any]] | None:
    """What GLM's web search found, where the request has that tool; None where it has not."""
    if dialect.search != "list":
        return None
    for tool in chat.tools or []:
        settings = tool.get("web_search")
        if tool.get("type") == "web_search" and isinstance(settings, dict) and settings.get("enable", True):
            query = settings.get("search_query") or fake_answers.last_user_text(chat.messages)
            return [_result(number, str(query)) for number in range(1, settings.get("count", FOUND) + 1)]
    return None


def _result(number: int, query: str) -> dict[str, Any]:
    return {
        "title": f"Result {number}",
        "link": f"https://example.org/{number}",
        "media": "example.org",
        "content": f"About: {query}",
        "icon": "",
        "refer": f"ref_{number}",
        "publish_date": "2026-01-01",
    }
