"""A chat completion: read from one object, or joined from the chunks of a stream.

Both ways end in `read_completion`, so that an answer means the same streamed or not. Nothing here trusts the shape of
what came: a provider's answer is input like any other. What we do not know survives in `Answer.raw`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from callpool.workers.providers.base import Answer

FindUsage = Callable[[dict[str, Any]], dict[str, Any] | None]

MAX_CHOICES = 128
MAX_TOOL_CALLS = 1024
"""Bounds on what a stream's indexes can make us keep; 128 tools and a handful of choices is what services allow."""


class Malformed(ValueError):
    """The provider's answer has not the shape of a chat completion: the text says where."""


def read_completion(body: dict[str, Any], find_usage: FindUsage) -> Answer:
    """The answer in a `chat.completion` object. Raises `Malformed`."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Malformed("it has no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Malformed("its first choice has no message")
    finish_reason = choice.get("finish_reason")
    reasoning = message.get("reasoning_content")
    tool_calls = message.get("tool_calls")
    return Answer(
        content=text_of(message.get("content")),
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        usage=find_usage(body) or {},
        reasoning_content=reasoning if isinstance(reasoning, str) and reasoning else None,
        tool_calls=_tool_calls(tool_calls) if tool_calls else None,
        raw=body,
    )


def text_of(content: object) -> str:
    """The text of a `content` field: a string, null, or a list of parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    raise Malformed("its content is neither text nor a list of parts")


class Joined:
    """A `chat.completion` object that grows from chunks.

    Text is kept as a list of pieces: adding each to a string would copy all that came before.
    """

    def __init__(self, find_usage: FindUsage) -> None:
        self._find_usage = find_usage
        self._top: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._choices: dict[int, _Choice] = {}

    def add(self, chunk: dict[str, Any]) -> str:
        """Take in one chunk and return the text that it adds to the first choice. Raises `Malformed`."""
        choices = chunk.get("choices")
        if choices is not None and not isinstance(choices, list):
            raise Malformed("a chunk's choices are no list")
        self._top.update(chunk)
        usage = self._find_usage(chunk)
        if usage is not None:
            self._usage = usage
        text = ""
        for choice in choices or ():
            if not isinstance(choice, dict):
                raise Malformed("a chunk has a choice that is no object")
            joined = self._choice(_index(choice))
            piece = joined.add(choice)
            if joined is self._first:
                text += piece
        return text

    @property
    def complete(self) -> bool:
        """Whether every choice has its finish reason: without one a stream was cut, however cleanly it ended."""
        return bool(self._choices) and all(choice.finish_reason is not None for choice in self._choices.values())

    def has_all(self, wanted: object) -> bool:
        """Whether nothing of the answer is awaited: as many choices as were asked for (`n`) have their finish reasons."""
        return self.complete and len(self._choices) >= (wanted if isinstance(wanted, int) else 1)

    @property
    def usage(self) -> dict[str, Any] | None:
        """The last counts that came, or None."""
        return self._usage

    @property
    def text(self) -> str:
        """The text of the first choice until now."""
        return self._first.text("content") if self._choices else ""

    def body(self) -> dict[str, Any]:
        """The equivalent `chat.completion` object."""
        body = {**self._top, "object": "chat.completion"}
        body["choices"] = [choice.body(index) for index, choice in self._choices.items()]
        if self._usage is not None:
            body["usage"] = self._usage  # over that of the last chunk, which may be null where an earlier one counted
        return body

    @property
    def _first(self) -> _Choice:
        return next(iter(self._choices.values()))

    def _choice(self, index: int) -> _Choice:
        if index not in self._choices:
            if len(self._choices) >= MAX_CHOICES:
                raise Malformed(f"it has more than {MAX_CHOICES} choices")
            self._choices[index] = _Choice()
        return self._choices[index]


_ENVELOPE = frozenset({"role", "index", "type", "id"})
"""Fields of a delta that services repeat in each, also where it brings nothing."""


def brings_on(chunk: dict[str, Any]) -> bool:
    """Whether a chunk that was taken in has anything of an answer: text, reasoning, a piece of a tool call, an end."""
    return any(choice.get("finish_reason") or _has_text(choice.get("delta")) for choice in chunk.get("choices") or ())


def _has_text(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_text(each) for key, each in value.items() if key not in _ENVELOPE)
    if isinstance(value, list):
        return any(map(_has_text, value))
    return isinstance(value, str) and value != ""


class _Choice:
    """One choice of a stream."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._fields: dict[str, Any] = {}
        self._message: dict[str, Any] = {"role": "assistant"}
        self._texts: dict[str, list[str]] = {"content": []}
        self._tools = _ToolCalls()

    def add(self, choice: dict[str, Any]) -> str:
        for key, value in choice.items():
            if key == "finish_reason":
                self.finish_reason = value if isinstance(value, str) and value else self.finish_reason
            elif key not in ("index", "delta", "usage") and value is not None:
                self._fields[key] = _merged(self._fields.get(key), value)
        delta = choice.get("delta")
        if delta is None:
            return ""
        if not isinstance(delta, dict):
            raise Malformed("a chunk's delta is no object")
        for key, value in delta.items():
            self._add_field(key, value)
        return text_of(delta.get("content"))

    def text(self, key: str) -> str:
        return "".join(self._texts.get(key, ()))

    def body(self, index: int) -> dict[str, Any]:
        message = {**self._message, **{key: "".join(pieces) for key, pieces in self._texts.items()}}
        tool_calls = self._tools.body()
        if tool_calls:
            message["tool_calls"] = tool_calls
        return {**self._fields, "index": index, "message": message, "finish_reason": self.finish_reason}

    def _add_field(self, key: str, value: object) -> None:
        if value is None:
            return
        if key == "role":  # some services repeat it in each chunk
            self._message[key] = value
        elif key == "tool_calls":
            self._tools.add(value)
        elif key == "content":
            self._texts[key].append(text_of(value))
        elif isinstance(value, str):
            self._texts.setdefault(key, []).append(value)
        else:
            self._message[key] = _merged(self._message.get(key), value)


class _ToolCalls:
    """The tool calls of one choice: fragments of one call share its `index`, `arguments` are pieces of JSON text."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}
        self._functions: dict[int, dict[str, Any]] = {}
        self._arguments: dict[int, list[str]] = {}
        self._last = -1

    def add(self, fragments: object) -> None:
        if not isinstance(fragments, list):
            raise Malformed("a chunk's tool_calls are no list")
        for fragment in fragments:
            if not isinstance(fragment, dict):
                raise Malformed("a chunk has a tool call that is no object")
            index = self._place(fragment)
            for key, value in fragment.items():
                if key == "function" and isinstance(value, dict):
                    self._add_function(index, value)
                elif key != "index" and value not in (None, ""):  # later fragments repeat `id` and `type`, some as ""
                    self._calls[index][key] = value

    def body(self) -> list[dict[str, Any]]:
        return [
            {
                **self._calls[index],
                "function": {**self._functions[index], "arguments": "".join(self._arguments[index])},
            }
            for index in sorted(self._calls)
        ]

    def _place(self, fragment: dict[str, Any]) -> int:
        """The index of the call that a fragment belongs to; services without indexes start each call with its `id`."""
        index = fragment.get("index")
        if index is None:
            known = self._calls.get(self._last)
            new = known is None or fragment.get("id") not in (None, "", known.get("id"))
            index = self._last + 1 if new else self._last
        if not isinstance(index, int):
            raise Malformed("a tool call's index is no integer")
        if index not in self._calls:
            if len(self._calls) >= MAX_TOOL_CALLS:
                raise Malformed(f"it has more than {MAX_TOOL_CALLS} tool calls")
            self._calls[index], self._functions[index], self._arguments[index] = {}, {}, []
        self._last = index
        return index

    def _add_function(self, index: int, function: dict[str, Any]) -> None:
        known = self._functions[index]
        for key, value in function.items():
            if key == "arguments" and isinstance(value, str):
                self._arguments[index].append(value)
            elif key == "name" and isinstance(value, str) and value != known.get("name"):
                # Whole in the first fragment, or in pieces; the whole name again is a repeat and no piece.
                known["name"] = known.get("name", "") + value
            elif key not in ("name", "arguments") and value is not None:
                known[key] = value


def _tool_calls(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise Malformed("its tool_calls are no list of objects")
    return value


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index", 0)
    if index is None:
        return 0
    if not isinstance(index, int):
        raise Malformed("a choice's index is no integer")
    return index


def _merged(old: object, new: object) -> object:
    """Join fields unknown to us (`logprobs`, filters): objects by key, lists end to end, anything else is replaced.

    Makes its own lists and objects: the chunk itself is on its way to the client.
    """
    if isinstance(new, dict):
        joined = dict(old) if isinstance(old, dict) else {}
        for key, value in new.items():
            joined[key] = _merged(joined.get(key), value)
        return joined
    if isinstance(new, list):
        if isinstance(old, list):
            old.extend(new)
            return old
        return list(new)
    return old if new is None else new
