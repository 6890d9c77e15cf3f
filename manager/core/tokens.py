"""What a request will use, reckoned before its call: tokens of the prompt, and the most that the answer may have. Pure.

    texts           ASCII characters / 4, and its digits / 2, rounded up; any other character 1
    a message       4 more; its fields besides role and content as text, or by their JSON
    parts           text as text; an image, sound, video or file `FILE_TOKENS`, whatever its size; others by their JSON
    parameters      tools and response_format by their JSON
    the answer      3 to begin with

It is an estimate, for whoever has to decide before a provider counts. Four ASCII characters a token is what English has with
today's vocabularies of 100,000 and more, and program text nearly. No vocabulary joins more than three digits, and numbers are
short: at four a token, tables would be reckoned at half of what they have. Chinese has 0.6 to 1 tokens a character with these vendors,
Cyrillic and Greek about a half: so what is not ASCII is reckoned rather too high, but for emoji, which have 1 to 3.

Nothing here trusts what it is given: a worker reckons with what a client of any kind sent. The result is never negative and fits 64
bits. The time is that of encoding everything once, or of one look at each item of what is nested.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from callpool.manager.core.limits import Usage
from callpool.manager.core.parameter_rules import is_number
from callpool.manager.core.parameters import TOKEN_LIMITS

CHARACTERS_PER_TOKEN: Final = 4
"""Of ASCII text. A digit counts as two characters."""
MESSAGE_TOKENS: Final = 4
"""What marks a message's beginning, its role and its end."""
ANSWER_TOKENS: Final = 3
"""What marks the answer's beginning."""
FILE_TOKENS: Final = 1024
"""Of an image or another file in a message. What it comes to depends on its pixels, seconds or pages, which nobody here looks at;
its bytes tell nothing. A picture of 1024 x 1024 has 765 with OpenAI's models of 2024, one of 512 x 512 has 1,296 with Kimi's, as one
host of them says; Moonshot itself only says that more pixels have more."""
MOST: Final = 10**12
"""Where an estimate ends: far beyond every request that is meant, and sums of many still fit 64 bits."""

IN_PROMPT: Final = ("tools", "functions", "response_format")
"""Parameters that the model is told of in its prompt."""
CALLS: Final = ("tool_calls", "function_call")
"""Fields of a message that tell what the model called."""
FILES: Final = frozenset({
    "audio", "audio_url", "document", "document_url", "file", "file_url", "image", "image_url", "input_audio", "input_file",
    "input_image", "input_video", "video", "video_url",
})  # fmt: skip
"""Types of a part that is no text, and names of the fields that hold it."""
_DIGITS: Final = b"0123456789"
_MARKS: Final = 3
"""Characters around a text or a name in JSON: two quotes, and a comma or colon."""
_SCALAR: Final = 5
"""Characters of a number, true or null with its comma, about."""
_ENCODED: Final = re.compile(r"data:[^,\s]{0,100};base64,|[A-Za-z0-9+/_-]{1024}")
"""The beginning of base64: marked, or longer than any word."""


def chat_usage(messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> Usage:
    """Of one chat call, as it is sent: with the limit that the rules add, and the messages that options stand for."""
    return Usage(prompt_tokens(messages, parameters), answer_limit(parameters))


def texts_usage(texts: object) -> Usage:
    """Of one call for vectors: a text, or a list of texts. There is no answer to count."""
    given = texts if isinstance(texts, list | tuple) else [texts]
    return Usage(min(MOST, sum(text_tokens(each) if isinstance(each, str) else _nested(each) for each in given)))


def prompt_tokens(messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> int:
    """Tokens of all that a model is told."""
    told = ANSWER_TOKENS
    for message in messages:
        told += MESSAGE_TOKENS
        for name, value in message.items():
            if name == "role":
                continue
            if isinstance(value, str):
                told += text_tokens(value) if name == "content" else _loose(value)
            elif isinstance(value, list | tuple | Mapping):  # a flag, or nothing, is no text
                told += _json(value) if name in CALLS else _parts(value)
    for name in IN_PROMPT:
        if parameters.get(name) is not None:
            told += _json(parameters[name])
    return min(MOST, told)


def answer_limit(parameters: Mapping[str, Any]) -> int:
    """The most tokens that all answers of a call may have; 0 where nothing limits them.

    Of two limits the greater one: which of them a provider heeds is not known here.
    """
    stated = [parameters.get(name) for name in TOKEN_LIMITS]
    limit = max((_count(value) for value in stated), default=0)
    return min(MOST, limit * max(1, _count(parameters.get("n"))))


def text_tokens(text: str) -> int:
    """Tokens of a text."""
    plain, others = _characters(text)
    return _tokens(plain) + others


def _parts(value: object) -> int:
    return sum(map(_part, value)) if isinstance(value, list | tuple) else _part(value)


def _loose(text: str) -> int:
    """Of a text that no type calls one."""
    return FILE_TOKENS if _ENCODED.match(text) else text_tokens(text)


def _part(part: object) -> int:
    if isinstance(part, str):
        return _loose(part)
    if not isinstance(part, Mapping):
        return _nested(part)
    kind, text = part.get("type"), part.get("text")
    if kind == "text" and isinstance(text, str):
        return text_tokens(text)
    if (isinstance(kind, str) and kind in FILES) or not FILES.isdisjoint(part):
        return FILE_TOKENS
    return _nested(part)


def _json(value: object) -> int:
    """Of the JSON text of a value in which no files are."""
    try:
        plain, others = _characters(msgspec.json.encode(value).decode())
    except (TypeError, ValueError, OverflowError, RecursionError):  # what it writes in no way; others may
        return _nested(value)
    return _tokens(plain) + others


def _nested(value: object) -> int:
    """Of about the JSON text of a value, whatever it is. What is base64 in it counts as a file."""
    plain = others = files = 0
    waiting: list[Iterable[object]] = [(value,)]
    while waiting:
        for each in waiting.pop():
            if isinstance(each, str):
                if _ENCODED.match(each):
                    files += 1
                    continue
                ascii_, more = _characters(each)
                plain, others = plain + ascii_ + _MARKS, others + more
            elif isinstance(each, Mapping):
                waiting += (each.keys(), each.values())
            elif isinstance(each, list | tuple):
                waiting.append(each)
            else:
                plain += _SCALAR
    return _tokens(plain) + others + FILE_TOKENS * files


def _characters(text: str) -> tuple[int, int]:
    """ASCII characters, digits twice, and others. Encoding counts them: half of a surrogate pair, too, is one that is no ASCII."""
    plain = text.encode("ascii", "ignore")
    return 2 * len(plain) - len(plain.translate(None, _DIGITS)), len(text) - len(plain)


def _tokens(plain: int) -> int:
    return -(-plain // CHARACTERS_PER_TOKEN)


def _count(value: object) -> int:
    """A limit that means something, else 0. NaN and infinity mean nothing."""
    return int(min(value, MOST)) if is_number(value) and 1 <= value < float("inf") else 0
