"""What a refusal means, as data: its error, whose trouble it is, whether the same request may succeed later, and when.

The services' own codes stand in `presets`; here are the meanings that they share, what an HTTP status means by itself, and the short
words by which a message tells which limit it speaks of. Sources: Moonshot's `api/errors` and help pages, Zhipu's `api/api-code` page,
OpenAI's error guide, all as of 2026, and messages that users have reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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

Scope = Literal["request", "model", "account", "provider"]
"""What would be refused again: this request, anything for the model, anything on the account; or nothing, the service being in trouble."""

Limit = Literal["concurrency", "rpm", "tpm", "rpd", "tpd", "window"]
"""Which limit: calls at once, requests or tokens per minute or per day, or a plan's window of hours or days."""
LONG_LIMITS = frozenset({"rpd", "tpd", "window"})
"""Limits whose refusals may name the moment at which they end."""

MAX_WORDS = 2_000
"""Characters of a message that are searched: it may be as long as an answer, and the search holds up every other call."""


@dataclass(frozen=True)
class Verdict:
    """What a refusal means."""

    error: type[ProviderError]
    scope: Scope
    retryable: bool = False
    """Whether the same request may succeed without anybody's doing."""
    limit: Limit | None = None
    wait: float | None = None
    """Seconds to the next try where the service names none; None leaves it to whoever tries again."""
    hint: str | None = None
    """Better than the class's."""
    in_doubt: bool = False
    """Whether the call may have been answered, and billed, all the same: it is a gateway that gave up, not the service."""


BAD_REQUEST = Verdict(ProviderRejected, "request")
CONTENT = Verdict(ContentRefused, "request")
BAD_KEY = Verdict(CredentialRefused, "account")
NO_MONEY = Verdict(QuotaExhausted, "account", hint="top up the account or check its plan: it is refused until then")
NO_MONEY_OR_OTHER_PLAN = Verdict(
    QuotaExhausted,
    "account",
    hint="top up the account; or the key belongs to the other plan or platform: check `base_url`",
)
NO_MODEL = Verdict(ModelGone, "model")

CONCURRENCY = Verdict(RateLimited, "account", retryable=True, limit="concurrency", wait=1.0)
RPM = Verdict(RateLimited, "account", retryable=True, limit="rpm")
TPM = Verdict(RateLimited, "account", retryable=True, limit="tpm")
SLOW_DOWN = Verdict(RateLimited, "account", retryable=True)
"""Some limit of the account; the words may tell which."""
_LATER = "the account's allowance for this period is used up: try again after it, or use another account"
RPD = Verdict(RateLimited, "account", limit="rpd", hint=_LATER)
TPD = Verdict(RateLimited, "account", limit="tpd", hint=_LATER)
WINDOW = Verdict(RateLimited, "account", limit="window", hint=_LATER)

# Overload is the platform's trouble, not this account's limit: lowering our concurrency would be the wrong lesson.
OVERLOADED = Verdict(
    ProviderOverloaded, "provider", retryable=True, hint="the provider is overloaded: try again later, or another model"
)
FAILED = Verdict(ProviderError, "provider", retryable=True)
GATEWAY_FAILED = Verdict(ProviderError, "provider", retryable=True, in_doubt=True)
WRONG_ADDRESS = Verdict(ProviderError, "account", hint="nothing serves this at that address: check `base_url`")

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
    499: GATEWAY_FAILED,  # its word for a client that left; ours has not
    502: GATEWAY_FAILED,
    504: Verdict(
        ProviderError,
        "provider",
        retryable=True,
        in_doubt=True,
        hint="a gateway's time limit: long answers need stream=True",
    ),
    529: OVERLOADED,
}

BY_WORD: Mapping[str, Verdict] = {
    "concurrency": CONCURRENCY,
    "concurrent": CONCURRENCY,
    "rpm": RPM,
    "tpm": TPM,
    "rpd": RPD,
    "tpd": TPD,
}
"""By the short word in a message that refuses for a limit. Sentences change and are translated, these words stay."""
_TOO_LARGE = re.compile(r"\brequest (is )?too large\b", re.IGNORECASE | re.ASCII)
_WORD = re.compile(rf"\b({'|'.join(BY_WORD)})\b", re.IGNORECASE | re.ASCII)


def by_status(status: int) -> Verdict:
    """The verdict where the service's own code says nothing."""
    if status in BY_STATUS:
        return BY_STATUS[status]
    if 300 <= status < 400:
        return WRONG_ADDRESS  # not followed: a redirect would carry prompt and key to an address nobody configured
    if 400 <= status < 500:
        return BAD_REQUEST
    return FAILED


def by_words(message: str) -> Verdict:
    """Which limit a refusal for some limit speaks of."""
    words = message[:MAX_WORDS]
    if _TOO_LARGE.search(words):
        return BAD_REQUEST  # more tokens than a whole minute has: it would be refused for ever
    found = _WORD.search(words)
    return SLOW_DOWN if found is None else BY_WORD[found[1].lower()]
