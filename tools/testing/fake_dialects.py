"""The three ways in which the fake words its answers and refusals: OpenAI's, Kimi's (Moonshot) and GLM's (Zhipu).

A refusal is chosen by what it means (`overload`, `limit_rpm`, …); the tables below give each dialect's status, fields
and words. Kimi tells limits apart by one short word in the message, GLM by a code of digits, OpenAI by `type` and
`code`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

DialectName = Literal["openai", "kimi", "glm"]
UsagePlace = Literal["top", "choice", "final"]
"""Where a stream's usage is: in the finish chunk, in its `choices[0]`, or in a last chunk without choices."""

ErrorRow = tuple[int, dict[str, Any], str]
"""HTTP status, the fields beside the message, the message."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One provider's wording."""

    name: DialectName
    root: str
    """Path of the API's root; chat is at `root + /chat/completions`."""
    lists_models: bool
    usage_place: UsagePlace
    usage_on_request: bool
    """A stream has usage only where the request says `stream_options.include_usage`."""
    retry_after: bool
    """Refusals by a limit carry a Retry-After header."""
    joins: bool = False
    """A last message of the assistant's with `partial` is the beginning of the answer; elsewhere nobody knows the word."""
    search: Literal["tool_call", "list"] | None = None
    """A web search of the provider's own: a tool call that the client gives back, or a list beside the answer."""
    fragments_on_request: bool = False
    """A stream tells a tool call's arguments in pieces only where the request says `tool_stream`."""
    embeddings: bool = False
    tasks: bool = False
    """Answers can be ordered, and fetched later."""
    unique_ids: bool = False
    """A `request_id` of the client's own can be used once."""
    errors: dict[str, ErrorRow]

    def error(
        self, meaning: str, message: str | None = None, figures: Mapping[str, int] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of a refusal. `message` replaces the dialect's own words; `figures` fill their gaps."""
        status, fields, words = self.errors[meaning]
        text = message if message is not None else words.format_map(figures or EXAMPLE_FIGURES)
        return status, msgspec.json.encode({"error": {**fields, "message": text}})

    def usage(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """The usage object, with the dialect's own way to tell cached tokens."""
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        if self.name == "kimi":
            usage["cached_tokens"] = 0
        else:
            usage["prompt_tokens_details"] = {"cached_tokens": 0}
        return usage

    def models(self, names: list[str]) -> bytes:
        """The body of GET /models."""
        entries: list[dict[str, Any]] = [
            {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "fake"} for name in names
        ]
        if self.name == "kimi":
            for entry in entries:
                entry |= {"context_length": 262_144, "supports_image_in": False, "supports_video_in": False}
                entry["supports_reasoning"] = True
        return msgspec.json.encode({"object": "list", "data": entries})


EXAMPLE_FIGURES = {"limit": 3, "current": 3, "wait": 1}
"""What a refusal says that was asked for by a fault's name and not caused by a real limit."""


def _openai(status: int, kind: str, code: str | None, message: str) -> ErrorRow:
    return status, {"type": kind, "code": code, "param": None}, message


def _kimi(status: int, kind: str, message: str) -> ErrorRow:
    return status, {"type": kind}, message


def _glm(status: int, code: int, message: str) -> ErrorRow:
    return status, {"code": str(code)}, message


_ARREARS = _glm(429, 1113, "Your account is in arrears. Please recharge and try again.")
_OPENAI_LIMIT = "Rate limit reached on {}: Limit {{limit}}, Used {{current}}. Please try again in {{wait}}s."
_KIMI_LIMIT = "Your account <fake> request reached {}, please try again after {{wait}} seconds"

OPENAI = Dialect(
    name="openai",
    root="/v1",
    lists_models=True,
    usage_place="final",
    usage_on_request=True,
    retry_after=True,
    embeddings=True,
    errors={
        "bad_request": _openai(400, "invalid_request_error", "invalid_value", "Invalid value for a parameter."),
        "bad_parameter": _openai(400, "invalid_request_error", "invalid_value", "Invalid value for a parameter."),
        "content_filter": _openai(400, "invalid_request_error", "content_filter", "The content was filtered."),
        "unauthorized": _openai(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
        "model_gone": _openai(404, "invalid_request_error", "model_not_found", "The model does not exist."),
        "no_such_path": _openai(404, "invalid_request_error", None, "Unknown request URL."),
        "overload": _openai(503, "server_error", None, "The engine is currently overloaded, please try again later"),
        "quota": _openai(429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
        "arrears": _ARREARS,
        "server_error": _openai(500, "server_error", None, "The server had an error while processing your request."),
        "unavailable": _openai(503, "server_error", None, "The service is temporarily unavailable."),
        "limit_concurrency": _openai(
            429, "requests", "rate_limit_exceeded", _OPENAI_LIMIT.format("concurrent requests")
        ),
        "limit_rpm": _openai(429, "requests", "rate_limit_exceeded", _OPENAI_LIMIT.format("requests per min (RPM)")),
        "limit_tpm": _openai(429, "tokens", "rate_limit_exceeded", _OPENAI_LIMIT.format("tokens per min (TPM)")),
        "limit_tpd": _openai(429, "tokens", "rate_limit_exceeded", _OPENAI_LIMIT.format("tokens per day (TPD)")),
    },
)

KIMI = Dialect(
    name="kimi",
    root="/v1",
    lists_models=True,
    usage_place="choice",
    usage_on_request=False,
    retry_after=False,
    joins=True,
    search="tool_call",
    errors={
        "bad_request": _kimi(400, "invalid_request_error", "Invalid request: a parameter has a bad value"),
        "bad_parameter": _kimi(400, "invalid_request_error", "Invalid request: a parameter has a bad value"),
        "content_filter": _kimi(400, "content_filter", "The request was rejected because it was considered high risk"),
        "unauthorized": _kimi(401, "invalid_authentication_error", "Invalid Authentication"),
        "model_gone": _kimi(404, "resource_not_found_error", "Not found the model or Permission denied"),
        "no_such_path": _kimi(404, "resource_not_found_error", "The requested resource was not found"),
        "overload": _kimi(429, "engine_overloaded_error", "The engine is currently overloaded, please try again later"),
        "quota": _kimi(
            429,
            "exceeded_current_quota_error",
            "Your account <fake> is suspended, please check your plan and billing details",
        ),
        "arrears": _ARREARS,
        "server_error": _kimi(500, "server_error", "Internal server error"),
        "unavailable": _kimi(503, "server_unavailable", "The service is temporarily unavailable"),
        "limit_concurrency": _kimi(
            429, "rate_limit_reached_error", _KIMI_LIMIT.format("max organization concurrency: {limit}")
        ),
        "limit_rpm": _kimi(429, "rate_limit_reached_error", _KIMI_LIMIT.format("organization max RPM: {limit}")),
        "limit_tpm": _kimi(
            429,
            "rate_limit_reached_error",
            _KIMI_LIMIT.format("organization TPM rate limit, current: {current}, limit: {limit}"),
        ),
        "limit_tpd": _kimi(
            429,
            "rate_limit_reached_error",
            _KIMI_LIMIT.format("organization TPD rate limit, current: {current}, limit: {limit}"),
        ),
    },
)

GLM = Dialect(
    name="glm",
    root="/api/paas/v4",
    lists_models=False,
    usage_place="top",
    usage_on_request=False,
    retry_after=False,
    search="list",
    fragments_on_request=True,
    embeddings=True,
    tasks=True,
    unique_ids=True,
    errors={
        "bad_request": _glm(400, 1210, "API call parameters are incorrect, please check the documentation."),
        "bad_parameter": _glm(400, 1214, "A parameter is illegal, please check the documentation."),
        "used_id": _glm(400, 1231, "This request_id was used before."),
        "no_such_task": _glm(404, 1222, "The task does not exist."),
        "content_filter": _glm(400, 1301, "The system detected potentially unsafe or sensitive content."),
        "unauthorized": _glm(401, 1000, "Authentication failed"),
        "model_gone": _glm(404, 1211, "The model does not exist, please check the model code."),
        "no_such_path": _glm(404, 1222, "The API does not exist."),
        "overload": _glm(429, 1305, "The platform is overloaded at present, please try again later."),
        "quota": _ARREARS,
        "arrears": _ARREARS,
        "server_error": _glm(500, 1230, "API call process error"),
        "unavailable": _glm(503, 1234, "Network error, please try again later"),
        "limit_concurrency": _glm(429, 1302, "Too many concurrent requests for this API, please reduce concurrency."),
        "limit_rpm": _glm(429, 1303, "Requests to this API are too frequent, please reduce the frequency."),
        "limit_tpm": _glm(429, 1302, "Rate limit reached for tokens, please reduce the request rate."),
        "limit_tpd": _glm(429, 1304, "The daily call limit of this API is reached."),
    },
)

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (OPENAI, KIMI, GLM)}
