"""What differs between the services that speak OpenAI's chat dialect, as data.

The base (`openai_compatible`) carries everything; a preset says where a service is, how its requests are shaped, where
its answers keep their figures, and what its error codes mean. Sources of the codes: Moonshot's `api/errors` page and
Zhipu's `api/api-code` page, both as of 2026.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from callpool.manager.errors import (
    CredentialRefused,
    ModelGone,
    ProviderError,
    ProviderRejected,
    RateLimited,
)
from callpool.manager.settings import DEFAULT_BASE_URLS


@dataclass(frozen=True)
class Verdict:
    """What a refusal means: its class, whether the same request may succeed later, a hint better than the class's."""

    error: type[ProviderError]
    retryable: bool = False
    hint: str | None = None


BAD_REQUEST = Verdict(ProviderRejected)
BAD_KEY = Verdict(CredentialRefused)
NO_MONEY = Verdict(CredentialRefused, hint="top up the account or check its plan: the provider refuses it until then")
NO_MODEL = Verdict(ModelGone)
SLOW_DOWN = Verdict(RateLimited, retryable=True)
NOT_TODAY = Verdict(RateLimited, hint="the account's allowance for this period is used up: try again after it")
# Overload is the platform's trouble, not this account's limit: lowering our concurrency would be the wrong lesson.
OVERLOADED = Verdict(
    ProviderError, retryable=True, hint="the provider is overloaded: try again later, or another model"
)
FAILED = Verdict(ProviderError, retryable=True)
WRONG_ADDRESS = Verdict(ProviderError, hint="nothing serves chat completions at this address: check `base_url`")

BY_STATUS: Mapping[int, Verdict] = {
    401: BAD_KEY,
    402: NO_MONEY,
    403: BAD_KEY,
    404: NO_MODEL,
    405: WRONG_ADDRESS,
    408: FAILED,
    409: FAILED,
    425: FAILED,
    429: SLOW_DOWN,
    529: OVERLOADED,
}


def by_status(status: int) -> Verdict:
    """The verdict where the provider's own code says nothing."""
    if status in BY_STATUS:
        return BY_STATUS[status]
    if 300 <= status < 400:
        return WRONG_ADDRESS  # not followed: a redirect would carry prompt and key to an address nobody configured
    if 400 <= status < 500:
        return BAD_REQUEST
    return FAILED


def unchanged(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameter hook of services that need none."""
    return parameters


def find_usage(body: dict[str, Any]) -> dict[str, Any] | None:
    """The token counts of an answer or a chunk: at the top, else inside the first choice (Moonshot), else None."""
    usage = body.get("usage")
    if not usage:
        choices = body.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        usage = first.get("usage") if isinstance(first, dict) else None
    return usage if isinstance(usage, dict) and usage else None


@dataclass(frozen=True)
class Preset:
    """One kind of service. Every field has the base's behaviour as its default."""

    base_url: str | None = None
    """Root of the API where the settings name none; None makes it compulsory there."""
    chat_path: str = "/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with each request, besides those of the base."""
    parameters: Callable[[dict[str, Any]], dict[str, Any]] = unchanged
    """Makes the service's parameters from the request's."""
    stream_parameters: Mapping[str, Any] = field(default_factory=dict)
    """Added to streamed requests that do not say otherwise."""
    usage: Callable[[dict[str, Any]], dict[str, Any] | None] = find_usage
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By the `code` or `type` of the service's error object; wins over the HTTP status."""
    failed_finishes: Mapping[str, Verdict] = field(default_factory=dict)
    """Finish reasons that mean a failure of the service and not an end of the text."""


_COUNT_STREAMS = {"stream_options": {"include_usage": True}}

OPENAI = Preset(
    base_url="https://api.openai.com/v1",
    stream_parameters=_COUNT_STREAMS,
    verdicts={
        "insufficient_quota": NO_MONEY,
        "billing_hard_limit_reached": NO_MONEY,
        "invalid_api_key": BAD_KEY,
        "model_not_found": NO_MODEL,
        "rate_limit_exceeded": SLOW_DOWN,
        "server_error": FAILED,
    },
)

KIMI = Preset(
    base_url=DEFAULT_BASE_URLS["kimi"],
    stream_parameters=_COUNT_STREAMS,
    verdicts={
        "invalid_request_error": BAD_REQUEST,
        "content_filter": BAD_REQUEST,
        "invalid_authentication_error": BAD_KEY,
        "incorrect_api_key_error": BAD_KEY,
        "permission_denied_error": BAD_KEY,
        "exceeded_current_quota_error": NO_MONEY,
        "resource_not_found_error": NO_MODEL,
        "rate_limit_reached_error": SLOW_DOWN,
        "engine_overloaded_error": OVERLOADED,
        "server_error": FAILED,
        "unexpected_output": FAILED,
        "server_unavailable": FAILED,
    },
)

GLM = Preset(
    base_url=DEFAULT_BASE_URLS["glm"],
    # Streams carry their usage unasked, and the API's own list of parameters has no `stream_options`.
    verdicts={
        **dict.fromkeys(("1000", "1001", "1002", "1003", "1004"), BAD_KEY),
        **dict.fromkeys(("1110", "1111", "1112", "1121", "1313"), BAD_KEY),
        "1113": NO_MONEY,  # also the answer to a key of the other plan or platform; comes as 429
        "1309": NO_MONEY,
        **dict.fromkeys(("1120", "1230", "1231", "1234"), FAILED),
        **dict.fromkeys(("1210", "1213", "1214", "1215", "1261", "1300", "1301"), BAD_REQUEST),
        **dict.fromkeys(("1211", "1212", "1220", "1221", "1222", "1311"), NO_MODEL),
        **dict.fromkeys(("1302", "1303"), SLOW_DOWN),
        **dict.fromkeys(("1304", "1308", "1310"), NOT_TODAY),
        **dict.fromkeys(("1305", "1312"), OVERLOADED),
    },
    failed_finishes={"network_error": FAILED},
)

LOCAL = Preset(stream_parameters=_COUNT_STREAMS)
"""A model server on this machine: its address is known only once it runs."""

PRESETS: Mapping[str, Preset] = {"openai": OPENAI, "kimi": KIMI, "glm": GLM, "local": LOCAL}
