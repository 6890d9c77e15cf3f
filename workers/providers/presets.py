"""What differs between the services that speak OpenAI's chat dialect, as data.

The base (`openai_compatible`) carries everything; a preset says what its requests carry besides, where its answers keep their
figures, and what its error codes mean (the meanings themselves, and their sources, are in `verdicts`). Where a service is and
what may be sent to its models is known to the supervisor, and comes with the worker's settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from callpool.workers.providers.verdicts import (
    BAD_KEY,
    BAD_REQUEST,
    CONCURRENCY,
    CONTENT,
    FAILED,
    GATEWAY_FAILED,
    NO_MODEL,
    NO_MONEY,
    NO_MONEY_OR_OTHER_PLAN,
    OVERLOADED,
    RPD,
    RPM,
    SLOW_DOWN,
    WINDOW,
    Verdict,
)


def find_usage(body: dict[str, Any]) -> dict[str, Any] | None:
    """The token counts of an answer or a chunk: at the top, else inside the first choice (Moonshot), else None."""
    usage = body.get("usage")
    if not usage:
        choices = body.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        usage = first.get("usage") if isinstance(first, dict) else None
    return usage if isinstance(usage, dict) and usage else None


PATHS: Mapping[str, str] = {"chat": "/chat/completions", "embeddings": "/embeddings", "models": "/models"}


@dataclass(frozen=True)
class Preset:
    """One kind of service. Every field has the base's behaviour as its default."""

    paths: Mapping[str, str] = field(default_factory=lambda: PATHS)
    """By operation, and for steps of one; below the root."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with each request, besides those of the base."""
    stream_parameters: Mapping[str, Any] = field(default_factory=dict)
    """Added to streamed requests that do not say otherwise."""
    usage: Callable[[dict[str, Any]], dict[str, Any] | None] = find_usage
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """By the `code` or `type` of the service's error object; wins over the HTTP status."""
    statuses: Mapping[int, Verdict] = field(default_factory=dict)
    """By an HTTP status that means something of its own here; wins over what it means elsewhere."""
    utc_offset: float = 0.0
    """Hours of the clock by which the service names times that carry no zone."""
    failed_finishes: Mapping[str, Verdict] = field(default_factory=lambda: {"content_filter": CONTENT})
    """Finish reasons that are no end of the text: it was refused, or the service broke off."""


_COUNT_STREAMS = {"stream_options": {"include_usage": True}}

OPENAI = Preset(
    stream_parameters=_COUNT_STREAMS,
    verdicts={
        "insufficient_quota": NO_MONEY,
        "billing_hard_limit_reached": NO_MONEY,
        "invalid_api_key": BAD_KEY,
        "model_not_found": NO_MODEL,
        "rate_limit_exceeded": SLOW_DOWN,
        "content_filter": CONTENT,
        "content_policy_violation": CONTENT,
        "server_error": FAILED,
    },
)

KIMI = Preset(
    stream_parameters=_COUNT_STREAMS,
    verdicts={
        "invalid_request_error": BAD_REQUEST,
        "content_filter": CONTENT,
        "invalid_authentication_error": BAD_KEY,
        "incorrect_api_key_error": BAD_KEY,
        "permission_denied_error": BAD_KEY,
        "exceeded_current_quota_error": NO_MONEY,  # as 429, and of accounts never paid for as 403
        "resource_not_found_error": NO_MODEL,
        "rate_limit_reached_error": SLOW_DOWN,  # of concurrency, RPM, TPM or TPD: the message tells
        "engine_overloaded_error": OVERLOADED,
        "client_closed_request": GATEWAY_FAILED,
        "server_error": FAILED,
        "unexpected_output": FAILED,
        "server_unavailable": FAILED,
    },
)

GLM = Preset(
    paths={**PATHS, "task": "/async/chat/completions", "result": "/async-result"},
    # Streams carry their usage unasked, and the API's own list of parameters has no `stream_options`.
    verdicts={
        **dict.fromkeys(("1000", "1001", "1002", "1003", "1004"), BAD_KEY),
        **dict.fromkeys(
            ("1110", "1111", "1112", "1121"), BAD_KEY
        ),  # the account is inactive, absent, locked, irregular
        "1313": BAD_KEY,  # restricted for unfair use
        "1113": NO_MONEY_OR_OTHER_PLAN,  # comes as 429
        "1309": NO_MONEY,
        **dict.fromkeys(("1120", "1230", "1234"), FAILED),
        # 1231: the caller's own `request_id` was used before; the same request would say so again.
        **dict.fromkeys(("1210", "1213", "1214", "1215", "1231", "1261", "1300"), BAD_REQUEST),
        "1301": CONTENT,
        **dict.fromkeys(("1211", "1212", "1220", "1221", "1222", "1311"), NO_MODEL),
        "1302": CONCURRENCY,
        "1303": RPM,
        "1304": RPD,
        **dict.fromkeys(
            ("1308", "1310", "1316"), WINDOW
        ),  # of five hours, a week or a month; the message tells its end
        **dict.fromkeys(("1305", "1312"), OVERLOADED),
    },
    statuses={434: NO_MODEL},  # no permission for what is in beta
    utc_offset=8.0,
    failed_finishes={"sensitive": CONTENT, "content_filter": CONTENT, "network_error": FAILED},
)

LOCAL = Preset(stream_parameters=_COUNT_STREAMS, verdicts=OPENAI.verdicts)
"""A model server on this machine: its address is known only once it runs."""

PRESETS: Mapping[str, Preset] = {"openai": OPENAI, "kimi": KIMI, "glm": GLM, "local": LOCAL}
