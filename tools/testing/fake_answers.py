"""What the fake answers: a completion as one JSON object, or as the events of a stream.

An `Answer` says what is to be told; the functions below put it into bytes. Faults of content are other answers
(`msgspec.structs.replace`) or the same events with one of them missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, Literal

import msgspec

from callpool.tools.testing.fake_dialects import UsagePlace

CREATED = 1_700_000_000
"""Creation time in every answer: constant, so that answers can be compared."""
DEFAULT_MAX_TOKENS = 1_024
"""Tokens charged in advance for the answer where the request states no limit."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call that the model asks for."""

    kind: Literal["function", "builtin_function"] = "function"
    name: str
    arguments: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One completion, in no dialect but for its usage."""

    id: str
    model: str
    content: str
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []
    fragments: bool = True
    """Whether a stream tells the arguments of a tool call in `chunks` pieces, or whole."""
    web_search: list[dict[str, Any]] | None = None
    """What a search of the provider's own found, beside the choices."""
    finish_reason: str | None = "stop"
    usage: dict[str, Any]
    usage_place: UsagePlace | None
    """None leaves usage out of a stream."""
    chunks: int
    """Pieces of a streamed content, and of reasoning."""


class Events(msgspec.Struct, frozen=True):
    """The events of a stream in their order, each as the bytes of one `data:` event."""

    role: bytes
    deltas: list[bytes]
    finish: list[bytes]
    """The chunk with `finish_reason`, and the one with usage where it stands alone."""
    done: bytes


def estimate_tokens(messages: list[dict[str, Any]]) -> int:
    """The fake's count of a prompt: 4 for each message, and one for every 4 bytes of UTF-8 text in it."""
    return sum(4 + text_tokens(message_text(message)) for message in messages)


def text_tokens(text: str) -> int:
    """The fake's count of a text: one token for every 4 bytes of UTF-8, begun ones included."""
    return ceil(len(text.encode()) / 4)


def head(text: str, tokens: int) -> str:
    """The beginning of a text that has at most `tokens` tokens; no character is cut."""
    return text.encode()[: 4 * tokens].decode(errors="ignore")


def message_text(message: dict[str, Any]) -> str:
    """The text of a message: its content, or the text parts of it joined."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def echo(messages: list[dict[str, Any]]) -> str:
    """The default answer: proves that the call's own prompt arrived."""
    return f"echo: {last_user_text(messages)}"


def last_user_text(messages: list[dict[str, Any]]) -> str:
    """What the user said last; empty where no user speaks."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return message_text(message)
    return ""


def completion(answer: Answer) -> bytes:
    """The whole answer as one `chat.completion` object."""
    return msgspec.json.encode({"id": answer.id, "object": "chat.completion", **outcome(answer)})


def outcome(answer: Answer) -> dict[str, Any]:
    """The fields that an answer has wherever it is told whole."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["content"] = answer.content or None
        message["tool_calls"] = [
            {**_opening(answer, index), "function": {"name": call.name, "arguments": call.arguments}}
            for index, call in enumerate(answer.tool_calls)
        ]
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    fields = {"created": CREATED, "model": answer.model, "choices": [choice], "usage": answer.usage}
    return fields if answer.web_search is None else {**fields, "web_search": answer.web_search}


def _opening(answer: Answer, index: int) -> dict[str, Any]:
    return {"id": f"{answer.id}-call-{index}", "type": answer.tool_calls[index].kind}


def event(payload: Any) -> bytes:
    """One server-sent event with a JSON payload."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def stream_chunk(answer: Answer, choices: list[dict[str, Any]], **fields: Any) -> bytes:
    """One `chat.completion.chunk` event."""
    return event(
        {
            "id": answer.id,
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": answer.model,
            "choices": choices,
            **fields,
        }
    )


def delta_event(answer: Answer, delta: dict[str, Any]) -> bytes:
    """A chunk that carries a delta and no end."""
    return stream_chunk(answer, [{"index": 0, "delta": delta, "finish_reason": None}])


def events(answer: Answer) -> Events:
    """The answer as a stream: role, reasoning and content in `chunks` pieces, tool calls, finish, `[DONE]`."""
    deltas = [
        delta_event(answer, {"reasoning_content": text}) for text in pieces(answer.reasoning or "", answer.chunks)
    ]
    deltas += [delta_event(answer, {"content": text}) for text in pieces(answer.content, answer.chunks)]
    deltas += [delta_event(answer, {"tool_calls": [told]}) for told in _call_deltas(answer)]
    choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": answer.finish_reason}
    if answer.usage_place == "choice":
        choice["usage"] = answer.usage
    in_finish: dict[str, Any] = {"usage": answer.usage} if answer.usage_place == "top" else {}
    if answer.web_search is not None:
        in_finish["web_search"] = answer.web_search
    finish = [stream_chunk(answer, [choice], **in_finish)]
    if answer.usage_place == "final":
        finish.append(stream_chunk(answer, [], usage=answer.usage))
    return Events(delta_event(answer, {"role": "assistant", "content": ""}), deltas, finish, DONE)


def _call_deltas(answer: Answer) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(answer.tool_calls):
        opening = {"index": index, **_opening(answer, index)}
        if not answer.fragments:
            yield {**opening, "function": {"name": call.name, "arguments": call.arguments}}
            continue
        yield {**opening, "function": {"name": call.name, "arguments": ""}}
        for fragment in pieces(call.arguments, answer.chunks):
            yield {"index": index, "function": {"arguments": fragment}}


def pieces(text: str, count: int) -> list[str]:
    """`text` in `count` parts of nearly equal length, fewer where it has fewer characters; they join to `text`."""
    count = min(count, len(text))
    return [text[len(text) * i // count : len(text) * (i + 1) // count] for i in range(count)]
