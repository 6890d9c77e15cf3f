"""The strict decoder against the catalogue of bad input; ids B1 to B31 are the catalogue's."""

from __future__ import annotations

import json
import pickle
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.strict import StrictError, check_identifier, check_text, decode_object, printable

from .build import STEADY

MEGABYTE = 1_000_000
NUL = "\0"


def nested(depth: int) -> bytes:
    """An object around arrays, `depth` levels in all."""
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


REFUSED: dict[str, tuple[bytes, str]] = {
    "B1-empty": (b"", "invalid_json"),
    "B1-spaces": (b" \r\n\t", "invalid_json"),
    "B2-twice": (b"\xef\xbb\xbf\xef\xbb\xbf{}", "invalid_json"),
    "B3-utf16": ('{"a":1}'.encode("utf-16"), "not_utf8"),
    "B3-utf16-le": ('{"a":1}'.encode("utf-16-le"), "not_utf8"),
    "B3-utf16-be": ('{"a":1}'.encode("utf-16-be"), "not_utf8"),
    "B3-utf32": ('{"a":1}'.encode("utf-32-le"), "not_utf8"),
    "B4": (b'{"a":"\xff"}', "not_utf8"),
    "B4-surrogate": (b'{"a":"\xed\xa0\x80"}', "not_utf8"),
    "B4-overlong": (b'{"a":"\xc0\xaf"}', "not_utf8"),
    "B4-cut": (b'{"a":"\xf0\x9f', "not_utf8"),
    "B5": (b'{"a":NaN}', "non_finite_number"),
    "B6": (b'{"a":-Infinity}', "non_finite_number"),
    "B6-plus": (b'{"a":[Infinity]}', "non_finite_number"),
    "B7": (b'{"a":1e999}', "non_finite_number"),
    "B7-minus": (b'{"a":-1e999}', "non_finite_number"),
    "B7-digits": (b'{"a":' + b"9" * 400 + b".0}", "non_finite_number"),
    "B8": (b'{"model":"a","model":"b"}', "duplicate_key"),
    "B8-escaped": (b'{"model":"a","\\u006dodel":"b"}', "duplicate_key"),
    "B8-deep": (b'{"a":[{"b":{"c":1,"c":1}}]}', "duplicate_key"),
    "B9": (b'{"a":' + b"1" * 4_301 + b"}", "number_out_of_range"),
    "B9-million": (b'{"a":' + b"1" * MEGABYTE + b"}", "number_out_of_range"),
    "B10": (b'{"a":9223372036854775808}', "number_out_of_range"),
    "B10-minus": (b'{"a":-9223372036854775809}', "number_out_of_range"),
    "B11": (b'{"a":"\\ud800"}', "invalid_unicode"),
    "B11-low": (b'{"a":"x\\uDFFF"}', "invalid_unicode"),
    "B11-swapped": (b'{"a":"\\ude00\\ud83d"}', "invalid_unicode"),
    "B11-key": (b'{"\\ud800":1}', "invalid_unicode"),
    "B11-deep": (b'{"a":[1,{"b":["ok","\\ud800"]}]}', "invalid_unicode"),
    "B12": (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
    "B12-open": (b"[" * 100_000, "too_deep"),
    "B12-inside": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
    "B13": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too_deep"),
    "B13-mixed": (b'[{"a":' * 50_000, "too_deep"),
    "B14": (nested(65), "too_deep"),
    "B15-key": (b'{"a\\u0000b":1}', "invalid_unicode"),
    "B16": (b'{"a":"x\ny"}', "invalid_json"),
    "B16-tab": (b'{"a":"x\ty"}', "invalid_json"),
    "B16-nul": (b'{"aaaa":"x\0y"}', "invalid_json"),
    "B17": (b"{} x", "invalid_json"),
    "B17-twice": (b"{}{}", "invalid_json"),
    "B18-null": (b"null", "expected_object"),
    "B18-string": (b'"x"', "expected_object"),
    "B18-array": (b"[]", "expected_object"),
    "B18-number": (b"7", "expected_object"),
    "B18-true": (b"true", "expected_object"),
    "B20": (json.dumps({f"k{number}": 1 for number in range(100_000)}).encode(), "too_many_keys"),
    "B20-inside": (json.dumps({"a": [{f"k{number}": 1 for number in range(10_001)}]}).encode(), "too_many_keys"),
    "B31": (b'{"a":"' + b"x" * 3 * MEGABYTE + b'"}', "too_large"),
    "comment": (b'{"a":1} // no', "invalid_json"),
    "single-quotes": (b"{'a':1}", "invalid_json"),
    "trailing-comma": (b'{"a":1,}', "invalid_json"),
    "leading-zero": (b'{"a":01}', "invalid_json"),
    "cut": (b'{"a":"b', "invalid_json"),
    "no-break-space": ("\u00a0{}".encode(), "invalid_json"),
    "unterminated-quotes": (b'{"a":[' + b"[]," * 100 + b'"' + b'\\"' * 400_000, "invalid_json"),
}

ACCEPTED: dict[str, tuple[bytes, dict[str, Any]]] = {
    "B2-once": (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
    "B10-greatest": (b'{"a":[9223372036854775807,-9223372036854775808]}', {"a": [2**63 - 1, -(2**63)]}),
    "B11-pair": (b'{"a":"\\ud83d\\ude00"}', {"a": "😀"}),
    "B11-escaped-backslash": (b'{"a":"\\\\ud800"}', {"a": "\\ud800"}),
    "B15-value": (b'{"a":"x\\u0000y"}', {"a": f"x{NUL}y"}),
    "B16-escaped": (b'{"a":"x\\ny"}', {"a": "x\ny"}),
    "B20-limit": (
        json.dumps({f"k{number}": 1 for number in range(10_000)}).encode(),
        {f"k{n}": 1 for n in range(10_000)},
    ),
    "B38": (b'{"t":[-0.0,1e308,1e-999]}', {"t": [-0.0, 1e308, 0.0]}),
    "brackets-in-strings": (b'{"a":"' + b"[{" * 1_000 + b'"}', {"a": "[{" * 1_000}),
    "brackets-after-quotes": (b'{"a":"\\"' + b"[" * 1_000 + b'\\\\","b":[]}', {"a": '"' + "[" * 1_000 + "\\", "b": []}),
    "many-siblings": (b'{"a":[' + b"[]," * 1_000 + b"[]]}", {"a": [[]] * 1_001}),
    "same-key-elsewhere": (b'{"a":{"a":[{"a":1},{"a":1}]}}', {"a": {"a": [{"a": 1}, {"a": 1}]}}),
    "plain": ('{"é":"😀","n":null,"b":[true,false]}'.encode(), {"é": "😀", "n": None, "b": [True, False]}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    data, code = REFUSED[case]
    with pytest.raises(StrictError) as error:
        decode_object(data, max_bytes=2 * MEGABYTE)
    fault = error.value.fault
    assert fault.code == code
    assert fault.message.startswith("body")
    assert str(error.value) == fault.message
    assert (fault.param or "").startswith("body")
    assert fault.message.isprintable()
    assert len(fault.message) < 200
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    data, value = ACCEPTED[case]
    decoded = decode_object(data, max_bytes=MEGABYTE)
    assert decoded == value
    assert repr(decoded) == repr(value)  # 1 == True == 1.0, -0.0 == 0.0


def test_b14_the_limit_itself_passes() -> None:
    value: Any = decode_object(nested(64), max_bytes=1_000)["a"]
    for _ in range(62):
        [value] = value
    assert value == []


@pytest.mark.parametrize("size", [10, 11])
def test_size_is_checked_before_anything_else(size: int) -> None:
    data = b"{" + b" " * (size - 2) + b"}"
    if size <= 10:
        assert decode_object(data, max_bytes=10) == {}
        return
    with pytest.raises(StrictError) as error:
        decode_object(b"\xff" * size, max_bytes=10, what="metadata")
    assert error.value.fault.message == "metadata is 11 bytes, the limit is 10"
    assert (error.value.fault.param, error.value.fault.details) == ("metadata", {"size": 11, "limit": 10})


def test_a_fault_names_the_field_and_quotes_nothing_that_a_terminal_obeys() -> None:
    with pytest.raises(StrictError, match="half a character") as error:
        decode_object(b'{"messages":[{"role":"user"},{"content":"ab\\ud800"}]}', max_bytes=1_000)
    assert error.value.fault.param == "body.messages[1].content"
    assert "position 2" in error.value.fault.message
    with pytest.raises(StrictError) as error:
        decode_object(b'{"\\u001b[2J":1,"\\u001b[2J":2}', max_bytes=1_000)
    assert error.value.fault.message == r'body has the key "\x1b[2J" twice in one object'


def test_the_place_of_a_bad_byte_counts_the_byte_order_mark() -> None:
    with pytest.raises(StrictError) as error:
        decode_object(b'\xef\xbb\xbf{"a":"\xff"}', max_bytes=1_000)
    assert error.value.fault.message == "body must be UTF-8; byte 9 (0xff) is not"


def test_the_error_survives_pickling() -> None:
    with pytest.raises(StrictError) as error:
        decode_object(b"[]", max_bytes=10)
    back = pickle.loads(pickle.dumps(error.value))  # noqa: S301 — our own
    assert (type(back), back.fault) == (StrictError, error.value.fault)


words = st.text(max_size=6)
keys = words.filter(lambda key: NUL not in key)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | words
plain = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(keys, plain, max_size=3)


@STEADY
@given(objects, st.booleans())
def test_what_json_writes_is_read_back(value: dict[str, Any], ascii_only: bool) -> None:  # noqa: FBT001
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert repr(decode_object(data, max_bytes=MEGABYTE)) == repr(value)


@STEADY
@given(st.one_of(st.binary(max_size=100), st.text('[]{}",:\\u d8017e-.aNntrfls\x00', max_size=60).map(str.encode)))
def test_anything_is_an_object_or_a_fault(data: bytes) -> None:
    try:
        value = decode_object(data, max_bytes=100)
    except StrictError:
        return
    assert json.loads(data) == value
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("good", ["", "x" * 10, "a\0b", "😀" * 10, "line\nline"])
def test_text_that_passes(good: str) -> None:
    assert check_text(good, param="prompt", max_chars=10) == good


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (None, "wrong_type"),
        (5, "wrong_type"),
        (True, "wrong_type"),
        (b"x", "wrong_type"),
        (["x"], "wrong_type"),
        ("x" * 11, "too_large"),
        ("\ud800", "invalid_unicode"),
    ],
)
def test_text_that_is_refused(bad: object, code: str) -> None:
    with pytest.raises(StrictError) as error:
        check_text(bad, param="prompt", max_chars=10)
    assert (error.value.fault.code, error.value.fault.param) == (code, "prompt")
    assert error.value.fault.message.startswith("prompt ")


@pytest.mark.parametrize("good", ["a", "req_9", "A-Z_09", "x" * 64])
def test_identifiers_that_pass(good: str) -> None:
    assert check_identifier(good, param="id") == good


BAD_IDS = {
    "B21": "x\n2026-01-01 ERROR fake",
    "B25": "../../etc/passwd",
    "B26": "/etc/passwd",
    "B27": "a\0b",
    "B28": "x" * 256,
    "B29-empty": "",
    "B29-dot": ".",
    "B29-dots": "..",
    "B30": "abc\n",
    "65": "x" * 65,
    "letter": "é",
    "digit": "٣",
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("case", BAD_IDS)
def test_identifiers_that_are_refused(case: str) -> None:
    with pytest.raises(StrictError) as error:
        check_identifier(BAD_IDS[case], param="request_id")
    assert (error.value.fault.code, error.value.fault.param) == ("bad_id", "request_id")
    assert error.value.fault.message.isprintable()


@pytest.mark.parametrize("bad", [None, 5, b"abc", True])
def test_an_identifier_is_a_string(bad: object) -> None:
    with pytest.raises(StrictError, match="request_id must be a string") as error:
        check_identifier(bad, param="request_id")
    assert error.value.fault.code == "wrong_type"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("plain é 😀 \\n", "plain é 😀 \\n", id="harmless"),
        pytest.param("a\n2026 ERROR", r"a\n2026 ERROR", id="B21"),
        pytest.param("\x1b[2J", r"\x1b[2J", id="B22"),
        pytest.param("\x9b2J", r"\x9b2J", id="B22-C1"),
        pytest.param("\u202e\u2066x", r"\u202e\u2066x", id="B23"),
        pytest.param("a\r\n\tb\x7f\0", r"a\r\n\tb\x7f\x00", id="controls"),
        pytest.param("a\u2028b\u2029", r"a\u2028b\u2029", id="separators"),
        pytest.param("\ud800", r"\ud800", id="surrogate"),
        pytest.param("\U000e0041", r"\U000e0041", id="tag"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("123456", "123456"), ("1234567", "12345…"), ("12345\n", "12345…"), ("1234\n", "1234\\n"), ("\x1b\x1b", "\\x1b…")],
)
def test_printable_is_bounded_and_cuts_no_escape(text: str, shown: str) -> None:
    assert printable(text, 6) == shown


@STEADY
@given(st.text(st.characters(), max_size=100), st.integers(1, 50))
def test_printable_is_always_safe(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    shown.encode()
    unsafe = {"Cc", "Cs", "Zl", "Zp"}
    assert not [character for character in shown if unicodedata.category(character) in unsafe]
    assert not [character for character in shown if unicodedata.bidirectional(character) in BIDI_CONTROLS]


BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
