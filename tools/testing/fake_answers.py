"""What the fake answers: a completion as one JSON object, or as the events of a stream.

An `Answer` says what is to be told; the functions below put it into bytes. Faults of content are other answers
(`msgspec.structs.replace`) or the same events with one of them missing.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import msgspec

from callpool.tools.testing.fake_dialects import UsagePlace

CREATED = 1_700_000_000
"""Creation time in every answer: constant, so that answers can be compared."""
DEFAULT_MAX_TOKENS = 1_024
"""Tokens charged in advance for the answer where the request states no limit."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One completion, in no dialect but for its usage."""

    id: str
    model: str
    content: str
    reasoning: str | None = None
    finish_reason: str | None = "stop"
    usage: dict[str, Any]
    usage_place: UsagePlace | None
    """None leaves usage out of a stream."""
    chunks: int
    """Pieces of a streamed content."""


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


def message_text(message: dict[str, Any]) -> str:
    """The text of a message: its content, or the text parts of it joined."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def echo(messages: list[dict[str, Any]]) -> str:
    """The default answer: proves that the call's own prompt arrived."""
    spoken = [message_text(message) for message in messages if message.get("role") == "user"]
    return f"echo: {spoken[-1] if spoken else ''}"


def completion(answer: Answer) -> bytes:
    """The whole answer as one `chat.completion` object."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    return msgspec.json.encode(
        {
            "id": answer.id,
            "object": "chat.completion",
            "created": CREATED,
            "model": answer.model,
            "choices": [choice],
            "usage": answer.usage,
        }
    )


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
    """The answer as a stream: role, reasoning, content in `chunks` pieces, finish, `[DONE]`."""
    deltas = [
        delta_event(answer, {"reasoning_content": text}) for text in pieces(answer.reasoning or "", answer.chunks)
    ]
    deltas += [delta_event(answer, {"content": text}) for text in pieces(answer.content, answer.chunks)]
    choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": answer.finish_reason}
    if answer.usage_place == "choice":
        choice["usage"] = answer.usage
    in_finish = {"usage": answer.usage} if answer.usage_place == "top" else {}
    finish = [stream_chunk(answer, [choice], **in_finish)]
    if answer.usage_place == "final":
        finish.append(stream_chunk(answer, [], usage=answer.usage))
    return Events(delta_event(answer, {"role": "assistant", "content": ""}), deltas, finish, DONE)


def pieces(text: str, count: int) -> list[str]:
    """`text` in `count` parts of nearly equal length, fewer where it has fewer characters; they join to `text`."""
    count = min(count, len(text))
    return [text[len(text) * i // count : len(text) * (i + 1) // count] for i in range(count)]
