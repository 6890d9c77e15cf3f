"""What a provider's refusal means: class, retry and wait, from status, code and headers."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.errors import (
    ContentRefused,
    CredentialRefused,
    ModelGone,
    ProviderError,
    ProviderOverloaded,
    ProviderRejected,
    QuotaExhausted,
    RateLimited,
)
from callpool.workers.providers.base import Call
from callpool.workers.providers.failures import (
    MAX_PARTIAL,
    Refusal,
    broken,
    failed_finish,
    find_refusal,
    read_refusal,
    refused,
    unreachable,
)
from callpool.workers.providers.presets import GLM, KIMI, LOCAL, OPENAI, Preset
from callpool.workers.providers.secret import Secret

CALL = Call(request_id="req_1", attempt=1, provider="fake", model="m", stream=False, timeout=1.0, messages=[])
NOW = 1_800_000_000.0


def refusal_of(preset: Preset, status: int, body: object, **headers: str) -> ProviderError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return refused(preset, CALL, read_refusal(data, status, headers), now=NOW)


def error(**fields: Any) -> dict[str, Any]:
    return {"error": {"message": "words", **fields}}


# (status, code or type, class, scope, retryable, limit where there is one): the provider's tables, row by row.

REQUEST, MODEL, ACCOUNT, PROVIDER = "request", "model", "account", "provider"
Row = tuple[int, str, type[ProviderError], str, bool] | tuple[int, str, type[ProviderError], str, bool, str | None]

KIMI_TABLE: list[Row] = [
    (400, "invalid_request_error", ProviderRejected, REQUEST, False),
    (400, "content_filter", ContentRefused, REQUEST, False),
    (401, "invalid_authentication_error", CredentialRefused, ACCOUNT, False),
    (401, "incorrect_api_key_error", CredentialRefused, ACCOUNT, False),
    (403, "permission_denied_error", CredentialRefused, ACCOUNT, False),
    (404, "resource_not_found_error", ModelGone, MODEL, False),
    (429, "rate_limit_reached_error", RateLimited, ACCOUNT, True, None),
    (429, "engine_overloaded_error", ProviderOverloaded, PROVIDER, True),
    (429, "exceeded_current_quota_error", QuotaExhausted, ACCOUNT, False),
    (403, "exceeded_current_quota_error", QuotaExhausted, ACCOUNT, False),
    (499, "client_closed_request", ProviderError, PROVIDER, True),
    (500, "server_error", ProviderError, PROVIDER, True),
    (500, "unexpected_output", ProviderError, PROVIDER, True),
    (503, "server_unavailable", ProviderError, PROVIDER, True),
]
GLM_TABLE: list[Row] = [
    *[(401, str(code), CredentialRefused, ACCOUNT, False) for code in (1000, 1001, 1002, 1003, 1004)],
    *[(401, str(code), CredentialRefused, ACCOUNT, False) for code in (1110, 1111, 1112, 1121)],
    (429, "1113", QuotaExhausted, ACCOUNT, False),
    (429, "1120", ProviderError, PROVIDER, True),
    *[(400, str(code), ProviderRejected, REQUEST, False) for code in (1210, 1213, 1214, 1215, 1261, 1300)],
    *[(400, str(code), ModelGone, MODEL, False) for code in (1211, 1212, 1220, 1221, 1222, 1311)],
    (500, "1230", ProviderError, PROVIDER, True),
    (500, "1234", ProviderError, PROVIDER, True),
    (400, "1231", ProviderRejected, REQUEST, False),
    (400, "1301", ContentRefused, REQUEST, False),
    (429, "1302", RateLimited, ACCOUNT, True, "concurrency"),
    (429, "1303", RateLimited, ACCOUNT, True, "rpm"),
    (429, "1304", RateLimited, ACCOUNT, False, "rpd"),
    (429, "1305", ProviderOverloaded, PROVIDER, True),
    (429, "1312", ProviderOverloaded, PROVIDER, True),
    (429, "1308", RateLimited, ACCOUNT, False, "window"),
    (429, "1310", RateLimited, ACCOUNT, False, "window"),
    (429, "1316", RateLimited, ACCOUNT, False, "window"),
    (429, "1309", QuotaExhausted, ACCOUNT, False),
    (429, "1313", CredentialRefused, ACCOUNT, False),
    (200, "1234", ProviderError, PROVIDER, True),
]
OPENAI_TABLE: list[Row] = [
    (400, "invalid_request_error", ProviderRejected, REQUEST, False),
    (400, "content_filter", ContentRefused, REQUEST, False),
    (400, "content_policy_violation", ContentRefused, REQUEST, False),
    (401, "invalid_api_key", CredentialRefused, ACCOUNT, False),
    (404, "model_not_found", ModelGone, MODEL, False),
    (404, "of a kind we never saw", ModelGone, MODEL, False),
    (422, "of a kind we never saw", ProviderRejected, REQUEST, False),
    (429, "insufficient_quota", QuotaExhausted, ACCOUNT, False),
    (429, "billing_hard_limit_reached", QuotaExhausted, ACCOUNT, False),
    (429, "rate_limit_exceeded", RateLimited, ACCOUNT, True, None),
    (429, "of a kind we never saw", RateLimited, ACCOUNT, True, None),
    (200, "server_error", ProviderError, PROVIDER, True),
    (400, "server_error", ProviderError, PROVIDER, True),
    (529, "overloaded_error", ProviderOverloaded, PROVIDER, True),
]


@pytest.mark.parametrize("field", ["code", "type"])
@pytest.mark.parametrize(
    ("preset", "row"),
    [
        (preset, row)
        for preset, table in ((KIMI, KIMI_TABLE), (GLM, GLM_TABLE), (OPENAI, OPENAI_TABLE))
        for row in table
    ],
    ids=lambda each: f"{each[1]}-{each[0]}" if isinstance(each, tuple) else "",
)
def test_the_providers_tables(preset: Preset, row: Row, field: str) -> None:
    status, code, kind, scope, retryable, *limits = row
    found = refusal_of(preset, status, error(**{field: code}))
    assert type(found) is kind
    expected = {
        "provider": "fake",
        "model": "m",
        "status": status,
        "provider_code": code,
        "retryable": retryable,
        "retry_after": 1.0 if limits == ["concurrency"] else None,
        "scope": scope,
        # A gateway that gave up, or a failure within an answer: the service may have gone on.
        "in_doubt": scope == "provider" and status in (200, 499, 502, 504),
    }
    assert found.details == (expected | {"limit": limits[0]} if limits else expected)
    assert bool(limits) == (kind is RateLimited)
    assert f"HTTP {status}" in str(found)
    assert pickle.loads(pickle.dumps(found)).details == found.details  # noqa: S301  our own bytes


def test_the_tables_name_every_code_that_a_preset_knows() -> None:
    for preset, table in ((KIMI, KIMI_TABLE), (GLM, GLM_TABLE), (OPENAI, OPENAI_TABLE)):
        assert set(preset.verdicts) <= {code for _, code, *_ in table}
    assert set(KIMI.verdicts) == {code for _, code, *_ in KIMI_TABLE}
    assert set(GLM.verdicts) == {code for _, code, *_ in GLM_TABLE}


@pytest.mark.parametrize(
    ("preset", "status", "body", "kind", "retryable", "code"),
    [
        (OPENAI, 400, error(type="invalid_request_error", code=None), ProviderRejected, False, "invalid_request_error"),
        (OPENAI, 403, error(), CredentialRefused, False, None),
        (OPENAI, 404, error(), ModelGone, False, None),
        (OPENAI, 404, b"<html>nothing here</html>", ProviderError, False, None),
        (OPENAI, 404, {"detail": "Not Found"}, ProviderError, False, None),
        (OPENAI, 405, b"", ProviderError, False, None),
        *[(OPENAI, status, b"", ProviderError, True, None) for status in (408, 409, 425, 499)],
        (OPENAI, 402, b"", QuotaExhausted, False, None),
        (OPENAI, 413, b"", ProviderRejected, False, None),
        (OPENAI, 429, error(type="tokens", code="rate_limit_exceeded"), RateLimited, True, "rate_limit_exceeded"),
        (OPENAI, 302, b"", ProviderError, False, None),
        (OPENAI, 500, b"", ProviderError, True, None),
        (KIMI, 504, b"<html>504</html>", ProviderError, True, None),
        # As Zhipu's gateway answers a wrong path, and as Google's wraps its errors.
        (
            GLM,
            404,
            {
                "timestamp": "2026-01-01",
                "status": 404,
                "error": "Not Found",
                "path": "/api/paas/v4/v1/chat/completions",
            },
            ProviderError,
            False,
            None,
        ),
        (OPENAI, 404, [error(code=404, status="NOT_FOUND")], ModelGone, False, "404"),
        # A refusal under a status that was sent before it was known.
        (LOCAL, 200, {"object": "error", "message": "prompt too long", "code": 400}, ProviderRejected, False, "400"),
        (OPENAI, 200, error(type="invalid_request_error"), ProviderRejected, False, "invalid_request_error"),
        (OPENAI, 200, error(code=402), QuotaExhausted, False, "402"),
        (OPENAI, 200, error(code=429), RateLimited, True, "429"),
        (OPENAI, 200, error(code="n/a"), ProviderError, True, "n/a"),
        (OPENAI, 200, error(code="1234567"), ProviderError, True, "1234567"),
        (LOCAL, 429, error(code="insufficient_quota"), QuotaExhausted, False, "insufficient_quota"),
        (LOCAL, 503, {"object": "error", "message": "loading", "code": 503}, ProviderError, True, "503"),
        (GLM, 429, error(code=1302), RateLimited, True, "1302"),
        (GLM, 434, b"", ModelGone, False, None),
        (GLM, 435, b"", ProviderRejected, False, None),
    ],
)
def test_other_shapes_and_bare_statuses(
    preset: Preset, status: int, body: object, kind: type[ProviderError], *, retryable: bool, code: str | None
) -> None:
    found = refusal_of(preset, status, body)
    assert type(found) is kind
    assert (found.status, found.provider_code, found.retryable) == (status, code, retryable)


LIMITS = [
    # Messages as users have reported them.
    (
        KIMI,
        "Your account org-1 / proj-2 <ak-3> request reached organization TPD rate limit, current: 9, limit: 8",
        "tpd",
        None,
    ),
    (
        KIMI,
        "Your account org-1<ak-3> request reached organization max RPM: 20, please try again after 1 seconds",
        "rpm",
        1.0,
    ),
    (KIMI, "request reached project TPM rate limit, current: 1410, limit: 100, see https://example.com", "tpm", None),
    (KIMI, "request reached max organization concurrency: 1, please try again after 2 seconds", "concurrency", 2.0),
    (KIMI, "request reached max organization Concurrency: 1", "concurrency", 1.0),
    (KIMI, "request reached max request: 3, please try again after 1 seconds", None, 1.0),
    (OPENAI, "Rate limit reached for m on requests per min (RPM): Limit 3. Please try again in 20s.", "rpm", 20.0),
    (OPENAI, "Rate limit reached for m on tokens per min (TPM): Please try again in 6m0.5s.", "tpm", 360.5),
    (OPENAI, "Rate limit reached for m on requests per day (RPD): Limit 200", "rpd", None),
    (OPENAI, "slow down", None, None),
    (OPENAI, "the rpmless trpd words are no limit", None, None),
    (GLM, "已达到 5 小时的使用上限。您的限额将在 2027-01-15 17:00:00 重置。", "window", 3600.0),
    (GLM, "Weekly/Monthly Limit Exhausted. Your limit will reset at 2027-01-15T09:00:00Z", "window", 3600.0),
    (GLM, "[2027-01-15 15:59:00] limit reached, it will reset at 2027-01-15 18:00:00", "window", 7200.0),
    (GLM, "the limit resets, some time", "window", None),
    (GLM, "您的限额将在 5 小时后重置", "window", 18_000.0),
    (OPENAI, "Rate limit reached on tokens per day (TPD). Please try again in 7h12m0s.", "tpd", 25_920.0),
]
CODES = [(KIMI, "rate_limit_reached_error"), (OPENAI, "rate_limit_exceeded"), (GLM, "1308")]


@pytest.mark.parametrize(("preset", "message", "limit", "wait"), LIMITS)
def test_limits_are_told_apart(preset: Preset, message: str, limit: str | None, wait: float | None) -> None:
    [code] = [code for each, code in CODES if each is preset]
    found = refusal_of(preset, 429, {"error": {"type": code, "message": message}})
    assert type(found) is RateLimited
    assert (found.limit, found.retry_after) == (limit, wait)
    assert found.retryable is (limit not in {"tpd", "rpd", "window"})


@pytest.mark.parametrize(
    ("code", "limit"), [("1302", "concurrency"), ("1303", "rpm"), ("1304", "rpd"), ("1310", "window")]
)
def test_glm_tells_limits_apart_by_code(code: str, limit: str) -> None:
    assert refusal_of(GLM, 429, error(code=code)).limit == limit


def test_a_header_wins_over_the_words_and_the_words_over_the_usual_wait() -> None:
    body = {"error": {"type": "rate_limit_reached_error", "message": "concurrency: try again after 7 seconds"}}
    assert refusal_of(KIMI, 429, body, **{"Retry-After": "3"}).retry_after == 3.0
    assert refusal_of(KIMI, 429, body, **{"Retry-After": "soon"}).retry_after == 7.0
    assert refusal_of(KIMI, 401, error(type="invalid_authentication_error"), **{"Retry-After": "3"}).retry_after is None
    assert refusal_of(OPENAI, 503, error(), **{"Retry-After": "3"}).retry_after == 3.0
    assert refusal_of(KIMI, 429, error(type="engine_overloaded_error"), **{"Retry-After": "3"}).retry_after == 3.0
    words = {"error": {"type": "engine_overloaded_error", "message": "overloaded, try again in 30 seconds"}}
    assert refusal_of(KIMI, 429, words).retry_after == 30.0
    assert refusal_of(OPENAI, 500, {"error": {"message": "try again in 30 seconds"}}).retry_after is None


def test_the_end_of_a_plan_may_be_further_than_an_hour() -> None:
    for code in ("1308", "1304"):
        assert refusal_of(GLM, 429, error(code=code), **{"Retry-After-Ms": "7200000"}).retry_after == 7200.0
    assert refusal_of(GLM, 429, error(code="1302"), **{"Retry-After-Ms": "7200000"}).retry_after == 3600.0


def test_more_tokens_than_a_minute_has_are_no_wait() -> None:
    message = "Request too large for m on tokens per min (TPM): Limit 10, Requested 20. The input must be reduced."
    found = refusal_of(OPENAI, 429, {"error": {"code": "rate_limit_exceeded", "message": message}})
    assert (type(found), found.retryable) == (ProviderRejected, False)


def test_a_finish_that_is_none_has_the_verdict_of_its_reason() -> None:
    for reason, verdict in GLM.failed_finishes.items():
        found = failed_finish(CALL, reason, verdict, "text")
        assert (type(found), found.retryable, found.scope) == (verdict.error, verdict.retryable, verdict.scope)
        assert (found.provider_code, found.partial) == (reason, "text")
    assert GLM.failed_finishes["network_error"].retryable
    assert not GLM.failed_finishes["sensitive"].retryable


def test_what_to_do_is_told_where_the_class_alone_would_not() -> None:
    for code in ("1113", "1309", "1305", "1304", "1308"):
        assert refusal_of(GLM, 429, error(code=code)).hint
    assert "base_url" in str(refusal_of(GLM, 429, error(code="1113")).hint)


def test_a_message_as_long_as_an_answer_is_not_searched_to_its_end() -> None:
    message = "a " * 4_000_000 + "TPM"
    assert refusal_of(OPENAI, 429, {"error": {"code": "rate_limit_exceeded", "message": message}}).limit is None


def test_a_service_may_lower_our_hopes_and_not_raise_them() -> None:
    for value, hope in (("false", False), (" FALSE", False), ("true", True), ("", True), ("no", True)):
        assert refusal_of(OPENAI, 500, error(), **{"x-should-retry": value}).retryable is hope
    assert not refusal_of(OPENAI, 401, error(), **{"x-should-retry": "true"}).retryable


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
    found = read_refusal(body, 500, {})
    assert words in found.message if words else not found.message
    assert str(refused(OPENAI, CALL, found, now=NOW)).isprintable()


@given(st.binary(max_size=200))
def test_no_body_breaks_the_reading(body: bytes) -> None:
    assert isinstance(read_refusal(body, 500, {}), Refusal)


@pytest.mark.parametrize("body", [{}, {"error": None}, {"error": {}}, {"choices": []}, {"object": "chat.completion"}])
def test_an_answer_is_no_refusal(body: dict[str, Any]) -> None:
    assert find_refusal(body, 200, {}) is None


def test_the_key_never_shows_in_a_failure() -> None:
    secret = Secret("sk-0123456789abcdef")
    key = secret.reveal()
    refusal = Refusal(f"{'x' * 290}{key}", 401, (f"bad-{key}",))
    for failure in (
        refused(OPENAI, CALL, refusal, now=NOW, partial=f"the key is {key}"),
        unreachable(CALL, "connect", f"cannot send {key}", retryable=True, partial=key),
        broken(CALL, f"starts with {key}", partial=key),
    ):
        assert key[:6] not in str(failure)
        assert key not in str(failure.details)


def test_long_foreign_words_are_cut() -> None:
    assert len(str(refused(OPENAI, CALL, Refusal("x" * 100_000, 400), now=NOW))) < 400
    assert len(broken(CALL, "cut", partial="x" * (MAX_PARTIAL + 1)).partial) == MAX_PARTIAL
