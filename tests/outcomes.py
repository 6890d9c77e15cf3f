"""What each fault of the fake provider comes to: one table for the provider objects and for the whole house."""

from __future__ import annotations

from typing import Literal

from callpool.manager.errors import (
    BrokenAnswer,
    CallpoolError,
    ContentRefused,
    CredentialRefused,
    ModelGone,
    ProviderError,
    ProviderOverloaded,
    ProviderRejected,
    ProviderUnreachable,
    QuotaExhausted,
    RateLimited,
    RequestTimeout,
)
from callpool.tools.testing.fake_provider import FAULTS

Outcome = type[CallpoolError] | str
"""An error class, or the finish reason of an answer ("" where it has none)."""

HANGING = [
    "silence",
    "silent_stream",
    "header_drip",
    "body_drip",
    "stream_drip_forever",
    "comment_drip",
    "empty_drip",
    "stall",
]
BREAKING = [
    "close_before_headers",
    "reset",
    "reset_mid_body",
    "short_body",
    "garbage",
    "cut_stream",
    "invalid_chunk",
    "wrong_length",
    "duplicate_length",
    "huge_header",
]
WIRE = [*HANGING, *BREAKING, "sse_endless"]

OUTCOMES: dict[str, tuple[Outcome, Outcome]] = {
    **dict.fromkeys(HANGING, (RequestTimeout, RequestTimeout)),
    **dict.fromkeys(BREAKING, (ProviderUnreachable, ProviderUnreachable)),
    **dict.fromkeys(
        ("html_200", "bad_json", "bad_json_event", "empty_choices", "sse_huge_line", "sse_endless", "gzip_bomb"),
        (BrokenAnswer, BrokenAnswer),
    ),
    # A plain answer is whole when its JSON is; a stream is whole only with its finish reason.
    "no_done": ("", BrokenAnswer),
    "no_finish": ("", BrokenAnswer),
    **dict.fromkeys(("error_object_200", "error_event", "http_500", "http_503"), (ProviderError, ProviderError)),
    **dict.fromkeys(("x_should_retry_false", "html_504", "overload", "redirect_loop"), (ProviderError, ProviderError)),
    **dict.fromkeys(("bad_request", "x_should_retry_true"), (ProviderRejected, ProviderRejected)),
    **dict.fromkeys(("content_filter", "finish_content_filter"), (ContentRefused, ContentRefused)),
    "unauthorized": (CredentialRefused, CredentialRefused),
    "quota": (QuotaExhausted, QuotaExhausted),
    "model_gone": (ModelGone, ModelGone),
    **dict.fromkeys(("limit_concurrency", "limit_rpm", "limit_tpm", "limit_tpd"), (RateLimited, RateLimited)),
    **dict.fromkeys([name for name in FAULTS if name.startswith("retry_after_")], (RateLimited, RateLimited)),
    "stalled_refusal": (RateLimited, RateLimited),
    "arrears": (RateLimited, RateLimited),  # GLM's code, which only GLM's preset knows
    **dict.fromkeys(("usage_top", "usage_choice", "usage_final", "no_end"), ("stop", "stop")),
    **dict.fromkeys(("finish_no_done", "duplicate_headers"), ("stop", "stop")),
    **dict.fromkeys(("length", "reasoning_only_length"), ("length", "length")),
    "finish_sensitive": ("sensitive", "sensitive"),
    "finish_network_error": ("network_error", "network_error"),  # a failure only for those who use this word
    "finish_context_exceeded": ("model_context_window_exceeded", "model_context_window_exceeded"),
}
"""By fault: as OpenAI words it, plain and streamed."""

OTHER_DIALECTS: dict[str, tuple[Outcome, Outcome]] = {
    "bad_request": (ProviderRejected, ProviderRejected),
    "content_filter": (ContentRefused, ContentRefused),
    "finish_content_filter": (ContentRefused, ContentRefused),
    "unauthorized": (CredentialRefused, CredentialRefused),
    "model_gone": (ModelGone, ModelGone),
    "overload": (ProviderOverloaded, ProviderOverloaded),
    "quota": (QuotaExhausted, QuotaExhausted),
    "arrears": (RateLimited, QuotaExhausted),
    "limit_concurrency": (RateLimited, RateLimited),
    "limit_rpm": (RateLimited, RateLimited),
    "limit_tpm": (RateLimited, RateLimited),
    "limit_tpd": (RateLimited, RateLimited),
    "http_500": (ProviderError, ProviderError),
    "http_503": (ProviderError, ProviderError),
    "error_event": (ProviderOverloaded, ProviderOverloaded),
    "error_object_200": (ProviderError, ProviderError),
    "finish_network_error": ("network_error", ProviderError),
    "finish_sensitive": ("sensitive", ContentRefused),
    "usage_choice": ("stop", "stop"),
}
"""By fault: as Kimi and as GLM word it, plain and streamed alike."""


# What the outcome means for further calls of the same request (docs/providers.md).

Further = Literal["answered", "safe", "doubt", "final"]
"""`safe`: transient, and nothing can have been billed. `doubt`: transient, but called again only with leave."""

WAITS_TOO_LONG = ["retry_after_huge", "retry_after_exponent", "retry_after_minutes", "stalled_refusal"]
"""Transient refusals that name a time which no deadline of a test has room for."""
TOO_LONG = ["sse_huge_line", "sse_endless", "gzip_bomb"]
SAFE = [
    "http_500",
    "http_503",
    "overload",
    "arrears",
    "limit_concurrency",
    "limit_rpm",
    "limit_tpm",
    "limit_tpd",  # it says that there will be room in a second: such a day rolls
    *[name for name in FAULTS if name.startswith("retry_after_") and name not in WAITS_TOO_LONG],
]
IN_DOUBT = [
    *BREAKING,
    "html_200",
    "html_504",
    "bad_json",
    "bad_json_event",
    "empty_choices",
    "error_object_200",
    "error_event",
    "no_done",
    "no_finish",
]
FINAL = [
    *HANGING,
    *TOO_LONG,
    *WAITS_TOO_LONG,
    "bad_request",
    "content_filter",
    "finish_content_filter",
    "model_gone",
    "quota",
    "redirect_loop",
    "unauthorized",
    "x_should_retry_false",
    "x_should_retry_true",
]
"""Also the end of a whole deadline: it leaves no time for another call."""


def further(fault: str, *, stream: bool) -> Further:
    """What follows a call with this fault, worded as OpenAI does."""
    if isinstance(OUTCOMES[fault][stream], str):
        return "answered"
    if fault in SAFE:
        return "safe"
    return "doubt" if fault in IN_DOUBT else "final"
