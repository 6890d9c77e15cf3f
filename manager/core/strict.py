"""The strict decoder: outside JSON becomes plain data or one clear fault, never a surprise further in.

Rules of this file:

- What Python's own decoder lets pass (UTF-16, NaN, 1e999, duplicate keys, lone surrogates) is refused here, because it
  fails later and elsewhere: in a log, a socket, a database.
- Hostile input costs time and memory linear in its size: the size is checked first, the depth before parsing.
- A fault quotes input through `printable` only, so that a terminal or a log shows it and never obeys it.

Theory of operation: bytes → size → UTF-8 → depth (a scan without parsing) → the standard library's C parser, whose
hooks see every object, integer, float and constant → a walk for lone surrogates, where escapes could have made one.

Choices: a leading UTF-8 byte order mark is ignored, as RFC 8259 section 8.1 permits. U+0000 is a character like others
in values (prompts may hold it) and refused in keys. Integers are those of 64 signed bits, which all later stages hold.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from callpool.manager.core.faults import Detail, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH = 64
"""Arrays and objects inside one another, the outermost counted. The parser recurses, so this is known before it runs."""
MAX_KEYS = 10_000
"""Keys of one object. Not of the whole document: a long conversation has a few in each of many thousand messages."""
INPUT_CODES = frozenset({
    "bad_id", "duplicate_key", "expected_object", "invalid_json", "invalid_unicode", "non_finite_number", "not_utf8",
    "number_out_of_range", "too_deep", "too_large", "too_many_keys", "wrong_type",
})  # fmt: skip
"""Every code of this file: each is the input's fault."""
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_QUOTED = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, or an unterminated one up to the end: always a match and possessive, so hostile quotes cost linear time."""
_BRACKETS = b"[]{}"
_NOT_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_STEPS = bytes.maketrans(_BRACKETS, array("b", (1, -1, 1, -1)).tobytes())
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: ANSI sequences begin with one of these
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff"  # surrogates: no encoder takes them
    "\ufeff\U000e0000-\U000e007f"  # invisible: byte order mark, tags
    "]"
)
_SHORT_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


class StrictError(Exception):
    """Outside data was refused; `fault` says why. Doors turn it into their own kind of answer."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return self.fault.message


def decode_object(data: bytes, *, max_bytes: int, what: str = "body") -> dict[str, Any]:
    """Return the JSON object in `data`, or raise `StrictError`. `what` names the input in messages and as `param`.

    Codes: too_large, not_utf8, invalid_json, too_deep, duplicate_key, too_many_keys, number_out_of_range,
    non_finite_number, invalid_unicode, expected_object.
    """
    if len(data) > max_bytes:
        raise _error(
            "too_large", what, f"is {len(data)} bytes, the limit is {max_bytes}", size=len(data), limit=max_bytes
        )
    text = _decode_utf8(data, what)
    if _depth(data) > MAX_DEPTH:
        raise _error("too_deep", what, f"is nested more than {MAX_DEPTH} deep", limit=MAX_DEPTH)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        message = f"is not valid JSON: {error.msg} at {where}" if text.strip() else "is empty"
        raise _error("invalid_json", what, message) from None
    except _Refused as refused:
        raise _error(refused.code, what, refused.message, **refused.details) from None
    if not isinstance(value, dict):
        raise _error("expected_object", what, f"must be a JSON object, got {_json_type(value)}")
    if _SURROGATE_ESCAPE.search(text):
        for path, string in _strings(value, what):
            if (at := _lone_surrogate(string)) is not None:
                raise _error("invalid_unicode", path, f"has half a character (a lone surrogate) at position {at}")
    return value


def check_text(value: object, *, param: str, max_chars: int) -> str:
    """Return `value` if it is a string of at most `max_chars` characters that UTF-8 can carry; raises `StrictError` otherwise.

    Codes: wrong_type, too_large, invalid_unicode.
    """
    if not isinstance(value, str):
        raise _error("wrong_type", param, f"must be a string, got {_json_type(value)}")
    if len(value) > max_chars:
        size = len(value)
        raise _error("too_large", param, f"has {size} characters, the limit is {max_chars}", size=size, limit=max_chars)
    if (at := _lone_surrogate(value)) is not None:
        raise _error("invalid_unicode", param, f"has half a character (a lone surrogate) at position {at}")
    return value


def check_identifier(value: object, *, param: str) -> str:
    """Return `value` if it is an identifier: 1 to 64 ASCII letters, digits, `_`, `-`. Codes: wrong_type, bad_id."""
    if not isinstance(value, str):
        raise _error("wrong_type", param, f"must be a string, got {_json_type(value)}")
    if _IDENTIFIER.fullmatch(value) is None:
        raise _error("bad_id", param, f'must match [A-Za-z0-9_-]{{1,64}}, got "{printable(value, 80)}"')
    return value


def printable(text: str, limit: int = 256) -> str:
    """Return `text` on one line of at most `limit` characters, safe for logs and terminals; what was cut is marked by `…`.

    Control characters (so ANSI sequences too), line separators, bidirectional controls and surrogates become escapes.
    Backslashes stay as they are: the result is for eyes, it cannot be turned back. Costs O(limit).
    """
    if len(text) <= limit:
        safe = text if text.isprintable() else _UNSAFE.sub(_escape, text)
        if len(safe) <= limit:
            return safe
    pieces: list[str] = []
    room = limit - 1  # for the mark
    for character in text[:limit]:
        piece = _UNSAFE.sub(_escape, character)
        room -= len(piece)
        if room < 0:
            break  # an escape is never cut in two
        pieces.append(piece)
    return "".join(pieces) + "…"


class _Refused(Exception):
    """What a parser hook refuses; `decode_object` knows the rest of the fault."""

    def __init__(self, code: str, message: str, **details: Detail) -> None:
        super().__init__(code)
        self.code = code
        self.message = message
        self.details = details


def _error(code: str, param: str, message: str, **details: Detail) -> StrictError:
    return StrictError(Fault(code=code, message=f"{param} {message}", param=param, details=details))


def _decode_utf8(data: bytes, what: str) -> str:
    if 0 in data[:4]:  # JSON begins with two ASCII characters or is one: a zero byte there means UTF-16 or UTF-32
        raise _error("not_utf8", what, "must be UTF-8; this looks like UTF-16 or UTF-32")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start + len(data) - len(error.object)
        raise _error("not_utf8", what, f"must be UTF-8; byte {at} (0x{data[at]:02x}) is not", position=at) from None


def _depth(data: bytes) -> int:
    """The greatest number of brackets that are open at once, outside strings. Exact for valid JSON, safe for the rest."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return 0  # not enough brackets to be too deep: the common case, at the speed of memchr
    brackets = _QUOTED.sub(b"", data).translate(_STEPS, _NOT_BRACKETS)
    return max(accumulate(array("b", brackets)), default=0)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _Refused(
            "too_many_keys", f"has an object with {len(pairs)} keys, the limit is {MAX_KEYS}", limit=MAX_KEYS
        )
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        name = printable(twice, 80)
        raise _Refused("duplicate_key", f'has the key "{name}" twice in one object', key=name)
    for key in value:
        if "\0" in key:
            raise _Refused("invalid_unicode", f'has U+0000 in the key "{printable(key, 80)}"')
    return value


def _integer(digits: str) -> int:
    # Length first: int() of 4,301 digits raises a ValueError of its own, and of fewer it takes quadratic time.
    if len(digits) > len(str(MIN_INTEGER)) or not MIN_INTEGER <= (value := int(digits)) <= MAX_INTEGER:
        raise _Refused("number_out_of_range", f"has an integer beyond 64 bits: {printable(digits, 40)}")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Refused("non_finite_number", f"has a number that no float can hold: {printable(digits, 40)}")
    return value


def _constant(name: str) -> float:
    raise _Refused("non_finite_number", f"has {name}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
"""Holds no state between calls, so one serves every thread."""


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string in a decoded value with the path to it, keys included; recursion is bounded by MAX_DEPTH."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield path, key
            yield from _strings(inner, f"{path}.{printable(key, 80)}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{path}[{index}]")


def _lone_surrogate(text: str) -> int | None:
    """Position of the first surrogate, or None. A decoded pair is one character, so any surrogate left is alone."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _json_type(value: object) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if (short := _SHORT_ESCAPES.get(character)) is not None:
        return short
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
