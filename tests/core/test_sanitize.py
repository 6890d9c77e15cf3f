"""Metadata made safe: properties over any JSON, planted credentials, and examples of what must stay readable."""

from __future__ import annotations

import base64
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callpool.manager.core.sanitize import (
    LEFT_OUT,
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_TEXT,
    REDACTED,
    names_a_secret,
    redact,
    sanitize,
)

from .build import STEADY

MEGABYTE = 2**20
BIDIRECTIONAL_CONTROLS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


def clean(value: Any) -> dict[str, Any]:
    result = sanitize(json.dumps(value).encode())
    assert result is not None
    return result


def text_of(text: str) -> str:
    """A text as it comes out."""
    value = clean({"a": text})["a"]
    assert isinstance(value, str)
    return value


def strings(value: Any) -> list[str]:
    """Every text and key of a value."""
    if isinstance(value, dict):
        return [*value, *(text for inner in value.values() for text in strings(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


# Secrets, in pieces where a scanner of source code would stumble over them.

TAIL = "Ab3dE6gH1jK4mN7pQ0sT5vW8yZ2cF9xLqR6u"
LONG_SECRETS = {
    "openai": f"sk-proj-{TAIL}",
    "kimi": f"sk-{TAIL}{TAIL[:12]}",
    "glm": f"{'0a1b2c3d4e5f6789' * 2}.{TAIL[:16]}",
    "jwt": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4iLCJpYXQiOjE1fQ.{TAIL}",
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "github": f"ghp_{TAIL}",
}
"""Known by their own form, so they may be glued to anything."""
SECRETS = {
    **{name: (secret, secret) for name, secret in LONG_SECRETS.items()},
    "bearer": ("Bearer " + "opaque-Value_17.x", "opaque-Value_17.x"),
    "bearer-small": ("authorization: bearer hunter", "hunter"),
    "basic": ("Basic " + base64.b64encode(b"ann:hunter2").decode(), base64.b64encode(b"ann:hunter2").decode()),
    "twice": ("Bearer Bearer opaqueValue17", "opaqueValue17"),
    "url": ("postgres://ann:hun:t@r2@db.example/x", "hun:t@r2"),
    "url-no-user": ("redis://:hunter2@localhost:6379", "hunter2"),
    "pem": (f"-----BEGIN RSA PRIVATE KEY-----\n{TAIL}\n{TAIL}\n-----END RSA PRIVATE KEY-----", TAIL),
    "pem-cut": (f"-----BEGIN OPENSSH PRIVATE KEY-----\n{TAIL}\n", TAIL),
    "assigned": ("password=hunter2", "hunter2"),
    "assigned-json": ('{"api_key": "correct horse battery"}', "battery"),
    "assigned-json-twice": (json.dumps('{"secret": "correct"}'), "correct"),
    "assigned-bearer": ("secret=Bearer opaqueValue17", "opaqueValue17"),
    "query": ("https://h.example/x?a=1&token=hunter2&b=2", "hunter2"),
    "cookie": ("Cookie: a=1; session=hunter2", "hunter2"),
    "authorization": ("Authorization: Token hunter2", "hunter2"),
}
"""Name → text that holds a secret, the secret that must not survive."""

TEXT = st.text(max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([s for s, _ in SECRETS.values()]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXT, inner, max_size=6),
    max_leaves=30,
)
OBJECT = st.dictionaries(TEXT | st.sampled_from(["password", "max_tokens", LEFT_OUT, "sk-" + TAIL]), JSON, max_size=8)


def check(data: bytes) -> None:
    """What holds for every result."""
    result = sanitize(data)
    if not data:
        assert result is None
        return
    written = json.dumps(result, allow_nan=False, ensure_ascii=False).encode()  # no surrogates either
    assert sanitize(written) == result
    for text in strings(result):
        assert len(text) <= MAX_TEXT
        assert not any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text)
        assert not any(unicodedata.bidirectional(character) in BIDIRECTIONAL_CONTROLS for character in text)
        assert redact(text) == text
    assert items(result) <= 2 * MAX_ITEMS  # at most one mark for each container
    assert depth(result) <= MAX_DEPTH


def items(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return len(inner) + sum(items(one) for one in inner)


def depth(value: Any) -> int:
    """Levels that have something in them."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + max(map(depth, inner)) if inner else 0


# Properties.


@settings(STEADY, max_examples=80)
@given(OBJECT)
@example({"a": [[[[[[[["deep"]]]]]]]], "b": {LEFT_OUT: "3 more", "c": ["[left out: 4 more]"]}})
@example({LEFT_OUT: "999999999 more", **{f"k{number}": number for number in range(150)}})
@example({"a": float("nan"), "b": 10**400, "c": float("inf")})
@example({"a": list(range(99)), "b": [[1], [2]], "c": {"d": {}, "e": []}})
@example({"a_" * 230 + "token_" + "x" * 60 + "_count": 17})  # a counter until it is cut
@example({"a": "x" * 488 + "://a:\x1cb@"})  # a credential only once it is escaped, and longer when it is redacted
@example({"Bearer sk-" + TAIL: 1, "Bearer sk-x" + TAIL: 2, "[key 2]": 3})
def test_any_object_comes_out_safe_and_is_not_changed_again(value: dict[str, Any]) -> None:
    check(json.dumps(value).encode())


@STEADY
@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\u018dnaé \x00', max_size=60).map(str.encode))
def test_any_bytes_come_out_safe(data: bytes) -> None:
    check(data)


@STEADY
@given(
    st.lists(
        st.sampled_from(
            [
                *(secret for secret, _ in SECRETS.values()),
                *"\x1b\u2028\u202e\ud800\\\"'=:;,&.@/ \n",
                "password",
                "Bearer ",
                "basic ",
                "://",
                "x" * 97,
                "é" * 111,
                "\x00" * 60,
                "sk-",
                "[redacted]",
                "…",
                "a" * 32 + ".",
            ]
        ),
        max_size=25,
    ).map("".join)
)
def test_hostile_texts_come_out_safe(text: str) -> None:
    check(json.dumps({"a": text, text: 1}).encode())


@pytest.mark.parametrize("name", SECRETS)
@settings(STEADY, max_examples=30)
@given(before=TEXT, after=TEXT, padding=st.integers(0, MAX_TEXT + 20))
@example(before="", after="", padding=0)
def test_a_planted_secret_never_survives(name: str, before: str, after: str, padding: int) -> None:
    text, secret = SECRETS[name]
    # Between words anywhere, also across the cut; quotation marks open in front would end a value early.
    planted = f"{'x' * padding} {before} {text} {after}"
    result = clean({"note": planted, "list": [1, {"deep": [planted]}], planted: "value"})
    assert secret not in json.dumps(result, ensure_ascii=False)
    assert secret[: len(secret) * 3 // 4] not in json.dumps(result, ensure_ascii=False)


@pytest.mark.parametrize("name", LONG_SECRETS)
@settings(STEADY, max_examples=30)
@given(before=TEXT, after=TEXT)
def test_a_long_secret_is_known_even_if_glued_to_other_text(name: str, before: str, after: str) -> None:
    secret = LONG_SECRETS[name]
    assert secret not in json.dumps(clean({"note": before + secret + after, before + secret + after: 1}))


# Names.


@pytest.mark.parametrize(
    "name",
    [
        "password", "PASSWORD", "db_password", "dbPassword", "userpassword", "passwd", "pwd", "secret", "client-secret",
        "clientSecret", "token", "Token", "accessToken", "access_token", "accesstoken", "X-Auth-Token", "csrf_token",
        "api_tokens", "api_key", "apikey", "apiKey", "APIKey", "OPENAI_API_KEY", "x-api-key", "Authorization",
        "proxy-authorization", "cookie", "Set-Cookie", "credential", "aws_credentials", "private_key", "privateKey",
        "session_key", "access_key", "AccessKeyId", "signing.key", "auth", "\uff30ass\uff57ord", "pass\u200bword", "jwt",
    ],
)  # fmt: skip
def test_values_under_secret_names_are_not_shown(name: str) -> None:
    for value in ("hunter2", 4711, ["hunter2"], {"a": {"b": "hunter2"}}, None):
        result = clean({"outer": [{name: value}]})
        assert list(result["outer"][0].values()) == [REDACTED], result


def test_a_name_is_secret_even_where_it_is_cut() -> None:
    assert list(clean({"x" * MAX_TEXT + "_password": "hunter2"}).values()) == [REDACTED]


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens", "maxTokens", "maxtokens", "tokens", "token_count", "tokenCount", "prompt_tokens", "completion_tokens",
        "total_tokens", "cost_per_token", "time_to_first_token", "FIRST_TOKEN", "eos_token_id", "session_tokens",
        "tokenizer", "session_id", "request_id", "author", "key", "public_key", "monkey", "user", "compass", "",
    ],
)  # fmt: skip
def test_counters_and_plain_names_are_shown(name: str) -> None:
    assert not names_a_secret(name)
    assert clean({name: 17}) == {name: 17}


# Texts.


@pytest.mark.parametrize("name", SECRETS)
def test_the_rest_of_the_text_stays(name: str) -> None:
    text, _ = SECRETS[name]
    shown = text_of(f"before, {text}\nafter")
    assert shown.startswith("before, ")
    assert REDACTED in shown
    if name != "pem-cut":
        assert shown.endswith("\\nafter")


@pytest.mark.parametrize(
    "text",
    [
        "a basic subscription", "Basic Plan", "the task-force met", "risk-assessment", "https://h.example:8080/@ann/x?a=b",
        "ssh://git@h.example/x", "mail ann@h.example", "12:30", "0a1b2c3d" * 8, "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "tokens: 17", "max_token=5", "secretary of state", "kimi-k2-0711-preview", "naïve 漢字 😀 é",
    ],
)  # fmt: skip
def test_plain_texts_stay_as_they_are(text: str) -> None:
    assert text_of(text) == text


def test_control_characters_are_escaped() -> None:
    assert text_of("a\x1b[31m\r\nb\u202ec\u2028d\ud800") == r"a\x1b[31m\r\nb\u202ec\u2028d\ud800"
    assert clean({"k\x00\n": 1}) == {r"k\x00\n": 1}


def test_a_long_text_is_cut_and_says_by_how_much() -> None:
    assert text_of("x" * MAX_TEXT) == "x" * MAX_TEXT
    shown = text_of("x" * 10_000)
    kept = shown.index("…")
    assert shown == f"{'x' * kept}… [{10_000 - kept} more characters]"
    assert MAX_TEXT - 2 < len(shown) <= MAX_TEXT
    # A redaction is cut off whole, so that what is left is not taken for something else.
    for padding in range(MAX_TEXT - 60, MAX_TEXT + 1):
        shown = text_of("x" * padding + " password=hunter2 " + "y" * 500)
        assert "[r" not in shown.replace(REDACTED, "")
        assert shown.startswith("x" * (MAX_TEXT - 60))


# Bounds.


def test_items_are_bounded_in_all_and_outer_ones_come_first() -> None:
    result = clean({"many": list(range(1_000)), "few": {"a": 1, "b": 2}, "user": "ann"})
    assert result["user"] == "ann"
    assert result["many"] == [*range(MAX_ITEMS - 3), f"[left out: {1_000 - MAX_ITEMS + 3} more]"]
    assert result["few"] == {LEFT_OUT: "2 more"}
    wide = clean({f"k{number}": number for number in range(1_000)})
    assert len(wide) == MAX_ITEMS + 1
    assert wide[LEFT_OUT] == f"{1_000 - MAX_ITEMS} more"


def test_levels_are_bounded() -> None:
    value: Any = {"end": 1, "other": 2}
    for _ in range(MAX_DEPTH - 1):
        value = {"a": value}
    assert clean(value) == value
    inner = clean({"a": value})
    for _ in range(MAX_DEPTH - 1):
        inner = inner["a"]
    assert inner == {"a": "[too deep: 2 items]"}


def test_keys_that_come_out_alike_are_both_kept() -> None:
    secret = LONG_SECRETS["github"]
    assert clean({secret + "a": 1, secret + "b": 2, LEFT_OUT: 3}) == {REDACTED: 1, "[key 2]": 2, "[key 3]": 3}


@pytest.mark.parametrize(
    "data",
    [
        b"{", b"[1]", b'"sk-' + TAIL.encode() + b'"', b"7", b"null", b"\xff\xfe", b'{"a":"\xff"}', b'{"a":1} x', b" ",
        b"[" * 200_000, b'{"a":' * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_object_is_unreadable(data: bytes) -> None:
    assert sanitize(data) == {"unreadable": f"{len(data)} bytes"}


def test_no_metadata_is_none() -> None:
    assert sanitize(b"") is None
    assert sanitize(b"{}") == {}


def test_numbers_that_json_does_not_have_become_texts() -> None:
    assert sanitize(b'{"a":NaN,"b":-Infinity,"c":1e999,"d":' + b"9" * 30 + b',"e":-5,"f":1.5,"g":true}') == {
        "a": "NaN", "b": "-Infinity", "c": "1e999", "d": "9" * 30, "e": -5, "f": 1.5, "g": True,
    }  # fmt: skip


# Linear time: with a pattern that is quadratic, each of these takes hours, and the hang limit ends it.


@pytest.mark.parametrize(
    "piece",
    [
        "a", "://a:", "eyJ", "sk-a ", "Bearer ", "basic:=", "password  ", "secret-", "-----BEGIN A-----", "\x1b",
        "0" * 32 + ".", "cookie",
    ],
)  # fmt: skip
def test_hostile_text_takes_linear_time(piece: str) -> None:
    text = piece * (MEGABYTE // len(piece)) + "=:@"
    assert len(text_of(text)) <= MAX_TEXT


def test_hostile_spaces_take_linear_time() -> None:
    assert len(text_of(f"Bearer{' ' * MEGABYTE}password{' ' * MEGABYTE}=")) <= MAX_TEXT
