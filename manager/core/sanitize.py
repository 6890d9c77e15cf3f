"""Metadata made safe to log and to show: no credentials, no control characters, of bounded size.

Metadata is what a client liked to write beside its request, so it may hold anything: the headers of its own call, a
connection string, a prompt. What is kept here is for eyes; nothing is ever computed from it.

Theory of operation: bytes → JSON → a walk with a budget of items and of levels → each key and each text without what
looks like a credential, on one line, cut. A value whose key says that it is secret is not looked at. Sanitizing what was
sanitized changes nothing, so it does not matter how often a value passes: marks are known again and not counted, and a
text is taken on until it stands.

Every pattern takes time linear in the text. Where one fails it has looked at a bounded number of characters, or at some
that no other start looks at again (up to the next slash, the next character that is no space).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any, Final

from callpool.manager.core.strict import MAX_INTEGER, MIN_INTEGER, printable

MAX_TEXT: Final = 500
"""Characters of one key or text, the mark of what was cut included."""
MAX_ITEMS: Final = 100
"""Entries of objects and arrays, in all. Outer ones come first: a long list never hides the key beside it."""
MAX_DEPTH: Final = 6
"""Objects and arrays inside one another, the outermost counted."""
REDACTED: Final = "[redacted]"
LEFT_OUT: Final = "[left out]"
"""The key under which an object says how many of its entries are missing; an array says it in its last text."""

_WIDEST_ESCAPE: Final = 10  # characters that `printable` makes of one: \U000e0001
_MOST_ROUNDS: Final = 8  # one is the rule; more only where a cut or an escape makes something look like a credential
_MOST_MISSING: Final = 999_999_999  # as many digits as a mark has when it is read again
_ENTRY_MARK: Final = re.compile(r"([0-9]{1,9}) more")
_ELEMENT_MARK: Final = re.compile(r"\[left out: ([0-9]{1,9}) more\]")

# Names: which keys say that their value is secret.

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NO_LETTER: Final = re.compile(r"[^a-z]+")
_SECRET_NAME: Final = re.compile(
    r"passw(?:or)?d|passphrase|passcode|secret|authorization|cookie|credential|bearer|jwt"
    r"|(?:access|account|api|auth|client|encryption|master|private|service|session|shared|signing|ssh)keys?"
)
"""Looked for in a name's letters alone, in small ones, so that no way of joining words hides it."""
_SECRET_WORDS: Final = frozenset({"auth", "pass", "pwd"})
"""Secret as a word, and too short to be looked for inside others (`author`, `bypass`)."""
_TOKEN_HOLDERS: Final = frozenset({"access", "api", "auth", "refresh", "security"})
"""`tokens` are what models count, unless one of these stands beside them."""
_COUNTING: Final = frozenset({
    "average", "avg", "bos", "budget", "cached", "completion", "cost", "count", "eos", "estimate", "estimated",
    "first", "input", "last", "left", "length", "limit", "max", "maximum", "mean", "min", "minimum", "n", "num",
    "number", "output", "pad", "per", "price", "prompt", "rate", "reasoning", "remaining", "size", "stop", "time",
    "total", "type", "unk", "usage", "used",
})  # fmt: skip
"""Beside one of these a `token` is one of a model's, as in `time_to_first_token`."""

# Texts: what looks like a credential wherever it stands.

_PEM: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{1,40}-----.*?(?:-----END [A-Z0-9 ]{1,40}-----|\Z)", re.DOTALL)
_SCHEME: Final = re.compile(r"((?:(?:bearer|basic)[\s:=]+)+)(?!\[redacted\])([^\s\"',;…]+)", re.IGNORECASE)
_USER_INFO: Final = re.compile(r"(://)[^\s/:@\"<>]*:[^\s/\"<>]*@")
_ASSIGNED: Final = re.compile(
    r"((?:passw(?:or)?d|passphrase|passcode|secret|credential|api[_-]?key|(?<![A-Za-z0-9_-])(?:token(?!\w)|pwd(?!\w))"
    r"|(?:access|auth|private|refresh|secret|session|signing)[_-]?(?:key|token))[\w-]{0,16}+"
    r"[\\\"']{0,4}\s{0,4}[=:]\s{0,4}\\{0,3})"
    r"(?:([\"'])(?!\[redacted\])[^\"']*|(?!\[redacted\])[^\s\"',;&…]+)",
    re.IGNORECASE,
)
"""`password=…`, `"api_key": "…"`; of a value in quotation marks all of it, spaces included."""
_HEADER: Final = re.compile(
    r"((?:authorization|cookie)[\\\"']{0,4}\s{0,4}[=:]\s{0,4}[\\\"']{0,4})(?!\[redacted\])[^\"'\\\r\n…]+", re.IGNORECASE
)
"""Authorization and Cookie take the rest of the line: their values have spaces and semicolons in them."""
_KEYS: Final = re.compile(
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{8,}|sk-[A-Za-z0-9_-]{32,}"  # not `task-force`
    r"|eyJ[A-Za-z0-9_=-]{16,}(?:\.[A-Za-z0-9_=-]+)*"  # a JSON web token: base64 of `{"`
    r"|[0-9A-Fa-f]{32}\.[A-Za-z0-9]{16,}"  # GLM
    r"|A(?:KIA|SIA)[0-9A-Z]{16,}|AIza[A-Za-z0-9_-]{30,}"
    r"|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}"
    r"|xox[a-z]-[A-Za-z0-9-]{10,}|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"
)


def sanitize(metadata: bytes) -> dict[str, Any] | None:
    """A copy of a JSON object that is safe to log and to show; None where there is no metadata at all.

    What is no JSON object becomes `{"unreadable": "<n> bytes"}`. Raises nothing, and takes time linear in the size.
    """
    if not metadata:
        return None
    try:
        value = _DECODER.decode(metadata.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # nesting that the parser does not take is as unreadable as half an object
        value = None
    if not isinstance(value, dict):
        return {"unreadable": f"{len(metadata)} bytes"}
    return _Walk().entries(value, 1)


class _Walk:
    """One walk through a decoded value; it remembers how many items there is room for."""

    def __init__(self) -> None:
        self._room = MAX_ITEMS

    def entries(self, source: dict[str, Any], depth: int) -> dict[str, Any]:
        """The object `source`, which stands at level `depth`."""
        missing = 0
        mark = source.get(LEFT_OUT)
        if isinstance(mark, str) and (match := _ENTRY_MARK.fullmatch(mark)) is not None:
            missing = int(match[1])
            source = {key: value for key, value in source.items() if key != LEFT_OUT}
        taken = self._take(len(source))
        missing += len(source) - taken
        result: dict[str, Any] = {}
        for (key, value), _ in zip(source.items(), range(taken), strict=False):
            name = _free(_text(key), result)
            # Both are asked: the name as it was written, and the one that a second sanitizing sees.
            secret = names_a_secret(key) or names_a_secret(name)
            result[name] = REDACTED if secret else self._value(value, depth + 1)
        if missing:
            result[LEFT_OUT] = f"{min(missing, _MOST_MISSING)} more"
        return result

    def _elements(self, source: list[Any], depth: int) -> list[Any]:
        missing = 0
        if source and isinstance(source[-1], str) and (match := _ELEMENT_MARK.fullmatch(source[-1])) is not None:
            missing = int(match[1])
            source = source[:-1]
        taken = self._take(len(source))
        missing += len(source) - taken
        result = [self._value(value, depth + 1) for value in source[:taken]]
        if missing:
            result.append(f"[left out: {min(missing, _MOST_MISSING)} more]")
        return result

    def _value(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return _text(value)
        if not isinstance(value, dict | list) or not value:
            return value  # a number, a truth value, null; nothing in it
        if depth > MAX_DEPTH:
            return f"[too deep: {len(value)} items]"
        return self.entries(value, depth) if isinstance(value, dict) else self._elements(value, depth)

    def _take(self, wanted: int) -> int:
        """How many of `wanted` items there is room for; a container's own items come before what is inside them."""
        taken = min(wanted, self._room)
        self._room -= taken
        return taken


def names_a_secret(name: str) -> bool:
    """Whether a key says that its value is secret: `apiKey`, `X-Auth-Token`, `db_password`; not `max_tokens`."""
    name = unicodedata.normalize("NFKC", name)
    if _SECRET_NAME.search(_NO_LETTER.sub("", name.lower())):
        return True
    words = {word.lower() for word in _WORD.findall(name)}
    if not words.isdisjoint(_SECRET_WORDS):
        return True
    for word in tuple(words):
        if word.endswith(("token", "tokens")):
            beside = words | {word.removesuffix("s").removesuffix("token")}  # `maxtokens`, `accesstoken`
            counted = not beside.isdisjoint(_COUNTING)
            if not counted and (word.endswith("token") or not beside.isdisjoint(_TOKEN_HOLDERS)):
                return True
    return False


def redact(text: str) -> str:
    """The text with all that looks like a credential replaced by `[redacted]`, in one pass of each pattern.

    What a pattern begins with is looked for first: nearly every text has none of it, and that is seen much faster.
    The order matters: whole blocks and headers come before the parts that they are made of.
    """
    lower = text.lower()
    if "-----begin " in lower:
        text = _PEM.sub(REDACTED, text)
    if "bearer" in lower or "basic" in lower:
        text = _SCHEME.sub(_without_scheme, text)
    if "://" in lower and "@" in lower:
        text = _USER_INFO.sub(rf"\1{REDACTED}@", text)
    if "=" in lower or ":" in lower:
        if "authorization" in lower or "cookie" in lower:
            text = _HEADER.sub(rf"\1{REDACTED}", text)
        text = _ASSIGNED.sub(rf"\1\2{REDACTED}", text)
    return _KEYS.sub(REDACTED, text)


def _without_scheme(match: re.Match[str]) -> str:
    scheme, token = match.groups()
    plain = token.isascii() and token.isalpha() and (token.islower() or token.istitle() or token.isupper())
    if plain and "bearer" not in scheme.lower():
        return match.group()  # a basic subscription: base64 has digits, or small and great letters mixed
    return f"{scheme}{REDACTED}"


def _text(raw: str) -> str:
    """A text without credentials, on one line, of at most MAX_TEXT characters.

    Credentials go first, while they are whole and stand between the characters that they were written between.
    """
    text = redact(raw)
    beyond = max(len(text) - MAX_TEXT, 0)
    text = _cut(printable(text[:MAX_TEXT], _WIDEST_ESCAPE * MAX_TEXT), beyond)
    for _ in range(_MOST_ROUNDS):
        before = text
        text = redact(before)
        if text == before:
            return text
        text = _cut(text)
    return REDACTED  # it looks like a credential whatever is taken from it


def _cut(text: str, beyond: int = 0) -> str:
    """At most MAX_TEXT characters of a text of which `beyond` characters are gone already; a redaction is not cut in two."""
    if len(text) + beyond <= MAX_TEXT:
        return text
    kept = MAX_TEXT - len(f"… [{len(text) + beyond} more characters]")
    at = text.rfind(REDACTED, 0, kept + len(REDACTED) - 1)
    if at >= 0 and at + len(REDACTED) > kept:
        kept = at
    return f"{text[:kept]}… [{len(text) - kept + beyond} more characters]"


def _free(name: str, taken: dict[str, Any]) -> str:
    """`name`, or a numbered one where two keys came out alike; the key that marks what is missing is never free."""
    number = 1
    while name in taken or name == LEFT_OUT:
        number += 1
        name = f"[key {number}]"
    return name


def _integer(digits: str) -> int | str:
    """A whole number of 64 bits; a longer one, which not every encoder takes, is kept as text."""
    if len(digits) <= len(str(MIN_INTEGER)) and MIN_INTEGER <= (value := int(digits)) <= MAX_INTEGER:
        return value
    return digits


def _float(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


_DECODER: Final = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=str)
"""Takes what Python's encoder writes (NaN, numbers of any size), as text where JSON or the log's reader has no number."""
