"""What a provider's refusal means: class, retry and wait, from status, code and headers."""

from __future__ import annotations

import json
import pickle
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.errors import (
    CredentialRefused,
    ModelGone,
    ProviderError,
    ProviderRejected,
    RateLimited,
)
from callpool.workers.providers.base import Call
from callpool.workers.providers.failures import (
    MAX_PARTIAL,
    MAX_RETRY_AFTER,
    Refusal,
    broken,
    find_refusal,
    read_refusal,
    read_retry_after,
    refused,
    unreachable,
)
from callpool.workers.providers.presets import GLM, KIMI, LOCAL, OPENAI, Preset
from callpool.workers.providers.secret import Secret

CALL = Call(request_id="req_1", attempt=1, provider="fake", model="m", stream=False, timeout=1.0, messages=[])
NOW = 1_800_000_000.0


def refusal_of(preset: Preset, status: int, body: object) -> ProviderError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return refused(preset, CALL, read_refusal(data, status, None))


def error(**fields: Any) -> dict[str, Any]:
    return {"error": {"message": "words", **fields}}


@pytest.mark.parametrize(
    ("preset", "status", "body", "kind", "retryable", "code"),
    [
        (OPENAI, 400, error(type="invalid_request_error", code=None), ProviderRejected, False, "invalid_request_error"),
        (OPENAI, 401, error(code="invalid_api_key"), CredentialRefused, False, "invalid_api_key"),
        (OPENAI, 403, error(), CredentialRefused, False, None),
        (OPENAI, 404, error(code="model_not_found"), ModelGone, False, "model_not_found"),
        (OPENAI, 404, error(), ModelGone, False, None),
        (OPENAI, 404, b"<html>nothing here</html>", ProviderError, False, None),
        (OPENAI, 404, {"detail": "Not Found"}, ProviderError, False, None),
        (OPENAI, 405, b"", ProviderError, False, None),
        (OPENAI, 408, b"", ProviderError, True, None),
        (OPENAI, 413, b"", ProviderRejected, False, None),
        (OPENAI, 429, error(type="tokens", code="rate_limit_exceeded"), RateLimited, True, "rate_limit_exceeded"),
        (OPENAI, 429, error(type="insufficient_quota"), CredentialRefused, False, "insufficient_quota"),
        (OPENAI, 302, b"", ProviderError, False, None),
        (OPENAI, 500, b"", ProviderError, True, None),
        (OPENAI, 529, b"", ProviderError, True, None),
        (LOCAL, 503, {"object": "error", "message": "loading", "code": 503}, ProviderError, True, "503"),
        (KIMI, 401, error(type="incorrect_api_key_error"), CredentialRefused, False, "incorrect_api_key_error"),
        (KIMI, 404, error(type="resource_not_found_error"), ModelGone, False, "resource_not_found_error"),
        (KIMI, 429, error(type="rate_limit_reached_error"), RateLimited, True, "rate_limit_reached_error"),
        (KIMI, 429, error(type="engine_overloaded_error"), ProviderError, True, "engine_overloaded_error"),
        (
            KIMI,
            429,
            error(type="exceeded_current_quota_error"),
            CredentialRefused,
            False,
            "exceeded_current_quota_error",
        ),
        (KIMI, 400, error(type="content_filter"), ProviderRejected, False, "content_filter"),
        (GLM, 429, error(code="1302"), RateLimited, True, "1302"),
        (GLM, 429, error(code=1302), RateLimited, True, "1302"),
        (GLM, 429, error(code="1113"), CredentialRefused, False, "1113"),
        (GLM, 429, error(code="1304"), RateLimited, False, "1304"),
        (GLM, 429, error(code="1305"), ProviderError, True, "1305"),
        (GLM, 400, error(code="1211"), ModelGone, False, "1211"),
        (GLM, 400, error(code="1301"), ProviderRejected, False, "1301"),
        (GLM, 401, error(code="1002"), CredentialRefused, False, "1002"),
        (GLM, 200, error(code="1234"), ProviderError, True, "1234"),
    ],
)
def test_classes(  # one row, one refusal
    preset: Preset, status: int, body: object, kind: type[ProviderError], *, retryable: bool, code: str | None
) -> None:
    found = refusal_of(preset, status, body)
    assert type(found) is kind
    assert found.details == {
        "provider": "fake",
        "model": "m",
        "status": status,
        "provider_code": code,
        "retryable": retryable,
        "retry_after": None,
    }
    assert f"HTTP {status}" in str(found)
    assert pickle.loads(pickle.dumps(found)).details == found.details  # noqa: S301  our own bytes


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": "just a string"}', "just a string"),
        (b'{"error": {"message": "an object"}}', "an object"),
        (b'{"detail": "as FastAPI"}', "as FastAPI"),
        (b'{"code": 1, "msg": "as a gateway"}', "as a gateway"),
        (b'"a bare string"', "a bare string"),
        (b"plain text", "plain text"),
        (b"<html>a page</html>", ""),
        (b'{"error": {"message": {"no": "text"}}}', ""),
        (b'{"error": ["odd"]}', ""),
        (b"[1, 2]", ""),
        (b"", ""),
        (b"\xff\xfe broken \xff", "broken"),
        (b"[" * 100_000, "["),
    ],
)
def test_the_words_of_every_kind_of_body(body: bytes, words: str) -> None:
    found = read_refusal(body, 500, None)
    assert words in found.message if words else not found.message
    assert str(refused(OPENAI, CALL, found)).isprintable()


@given(st.binary(max_size=200))
def test_no_body_breaks_the_reading(body: bytes) -> None:
    assert isinstance(read_refusal(body, 500, None), Refusal)


@pytest.mark.parametrize("body", [{}, {"error": None}, {"error": {}}, {"choices": []}, {"object": "chat.completion"}])
def test_an_answer_is_no_refusal(body: dict[str, Any]) -> None:
    assert find_refusal(body, 200) is None


def test_the_key_never_shows_in_a_failure() -> None:
    secret = Secret("sk-0123456789abcdef")
    key = secret.reveal()
    refusal = Refusal(f"{'x' * 290}{key}", 401, (f"bad-{key}",))
    for failure in (
        refused(OPENAI, CALL, refusal, partial=f"the key is {key}"),
        unreachable(CALL, "connect", f"cannot send {key}", retryable=True, partial=key),
        broken(CALL, f"starts with {key}", partial=key),
    ):
        assert key[:6] not in str(failure)
        assert key not in str(failure.details)


def test_long_foreign_words_are_cut() -> None:
    assert len(str(refused(OPENAI, CALL, Refusal("x" * 100_000, 400)))) < 400
    assert len(broken(CALL, "cut", partial="x" * (MAX_PARTIAL + 1)).partial) == MAX_PARTIAL


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1.0),
        ("0", 0.0),
        (" 2.5 ", 2.5),
        ("3600", 3600.0),
        ("1000000000", MAX_RETRY_AFTER),
        ("1e9", MAX_RETRY_AFTER),
        ("-1", None),
        ("-0.5", None),
        ("inf", None),
        ("1e999", None),
        ("nan", None),
        ("NaN", None),
        ("soon", None),
        ("", None),
        ("1_000", None),
        ("٣", None),
        ("0x10", None),
        ("9" * 5000, None),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 86_400, usegmt=True), 0.0),
        (formatdate(NOW + 1e6, usegmt=True), MAX_RETRY_AFTER),
        ("Mon, 99 Foo 2026 00:00:00 GMT", None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert read_retry_after({"Retry-After": value}, NOW) == seconds


@given(st.text(max_size=40) | st.floats().map(str) | st.integers().map(str))
def test_retry_after_is_none_or_within_bounds(value: str) -> None:
    seconds = read_retry_after({"Retry-After": value}, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


def test_a_date_is_measured_by_the_providers_own_clock() -> None:
    headers = {"Retry-After": formatdate(NOW + 500, usegmt=True), "Date": formatdate(NOW + 490, usegmt=True)}
    assert read_retry_after(headers, NOW) == 10.0


def test_milliseconds_win() -> None:
    assert read_retry_after({"Retry-After-Ms": "250", "Retry-After": "1"}, NOW) == 0.25
    assert read_retry_after({"Retry-After-Ms": "soon", "Retry-After": "1"}, NOW) == 1.0
    assert read_retry_after({}, NOW) is None
