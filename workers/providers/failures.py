"""From what a provider did to the error that says so: the one place where provider failures are worded.

Every error of this module carries `provider`, `model` and `retryable` (may the same request succeed later?); a refusal
also `status`, `provider_code` and `retry_after`; one that cut an answer short also `partial`, the text until then.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from callpool.manager.errors import (
    BrokenAnswer,
    CredentialRefused,
    ModelGone,
    ProviderError,
    ProviderRejected,
    ProviderUnreachable,
    RateLimited,
)
from callpool.workers.providers.base import Call
from callpool.workers.providers.presets import WRONG_ADDRESS, Preset, Verdict, by_status
from callpool.workers.providers.secret import redact
from callpool.workers.providers.wording import clean

MAX_RETRY_AFTER = 3600.0
"""Seconds: a longer wait is not a wait but an outage, and is looked at again after this."""

MAX_PARTIAL = 1 << 20
"""Characters of `partial`: the longest answer of today's models fits (131,072 tokens of about four letters)."""

_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE]\+?[0-9]{1,3})?")

_DID = {
    ProviderRejected: "refused the request",
    CredentialRefused: "refused the key",
    ModelGone: "does not serve the model",
    RateLimited: "refused by a rate limit",
    ProviderError: "failed",
}


class Refusal(msgspec.Struct, frozen=True):
    """What a provider said instead of an answer."""

    message: str
    status: int
    """The HTTP status; 200 where the refusal came as, or inside of, an answer."""
    codes: tuple[str, ...] = ()
    """The provider's own words for it, the most exact one first."""
    structured: bool = False
    """Whether there was an error object: a bare 404 is a wrong address, one with an error object a missing model."""
    retry_after: float | None = None
    """Seconds."""


def refused(preset: Preset, call: Call, refusal: Refusal, partial: str | None = None) -> ProviderError:
    """The error of a refusal: by the provider's own code where the preset knows it, else by the HTTP status."""
    verdict, code = _judge(preset, refusal)
    code = clean(code, 80) if code else None
    note = f"HTTP {refusal.status}, {code}" if code else f"HTTP {refusal.status}"
    text = f"provider {call.provider!r} {_DID.get(verdict.error, 'failed')} ({note})"
    return verdict.error(
        f"{text}: {clean(refusal.message)}" if refusal.message else text,
        hint=verdict.hint,
        provider=call.provider,
        model=call.model,
        status=refusal.status,
        provider_code=code,
        retryable=verdict.retryable,
        retry_after=refusal.retry_after,
        **_partial(partial),
    )


def failed_finish(call: Call, reason: str, verdict: Verdict, text: str) -> ProviderError:
    """The error of an answer whose finish reason says that the service broke off by its own fault."""
    return verdict.error(
        f"provider {call.provider!r} broke off the answer (finish_reason {clean(reason, 80)!r})",
        hint=verdict.hint,
        provider=call.provider,
        model=call.model,
        status=200,
        provider_code=clean(reason, 80),
        retryable=verdict.retryable,
        retry_after=None,
        **_partial(text),
    )


def unreachable(
    call: Call, phase: str, reason: str, *, retryable: bool, partial: str | None = None
) -> ProviderUnreachable:
    """The error of a connection that was not made (`phase` "connect") or broke ("request", "body")."""
    did = {"connect": "cannot be reached", "request": "closed the connection before an answer"}
    return ProviderUnreachable(
        f"provider {call.provider!r} {did.get(phase, 'broke the connection within its answer')}: {clean(reason)}",
        provider=call.provider,
        model=call.model,
        phase=phase,
        retryable=retryable,
        **_partial(partial),
    )


def broken(call: Call, reason: str, partial: str | None = None) -> BrokenAnswer:
    """The error of an answer that came and cannot be understood."""
    return BrokenAnswer(
        f"the answer of provider {call.provider!r} cannot be used: {clean(reason)}",
        provider=call.provider,
        model=call.model,
        retryable=True,
        **_partial(partial),
    )


def read_refusal(body: bytes, status: int, retry_after: float | None) -> Refusal:
    """What a body of an error status says; a body that is no JSON object (a gateway's HTML page) says little."""
    try:
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace").strip()
        return Refusal("" if text.startswith("<") else text, status, retry_after=retry_after)
    if isinstance(decoded, dict):
        found = find_refusal(decoded, status, retry_after)
        if found is not None:
            return found
        # FastAPI says `detail`; other gateways put the sentence at the top.
        words = decoded.get("message") or decoded.get("msg") or decoded.get("detail")
        return Refusal(words if isinstance(words, str) else "", status, _codes(decoded), retry_after=retry_after)
    return Refusal(decoded if isinstance(decoded, str) else "", status, retry_after=retry_after)


def find_refusal(body: dict[str, Any], status: int, retry_after: float | None = None) -> Refusal | None:
    """The error inside an object that should have been an answer or a chunk, or None where there is none."""
    error = body.get("error")
    if isinstance(error, dict) and error:
        source, words = error, error.get("message")
    elif error:
        source, words = body, error
    elif body.get("object") == "error":  # vLLM puts it at the top
        source, words = body, body.get("message")
    else:
        return None
    text = words if isinstance(words, str) else ""
    return Refusal(text, status, _codes(source), structured=True, retry_after=retry_after)


def read_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, 0 to 3600, from `Retry-After` (seconds or a date) or `Retry-After-Ms`; None if they say nothing.

    What is no time at all (negative, `inf`, `NaN`, words) says nothing: as 0 it would make us call again at once.
    `now` is the wall clock, for a date without a `Date` header to compare it with.
    """
    milliseconds = _number(headers.get("Retry-After-Ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER)
    value = headers.get("Retry-After")
    seconds = _number(value)
    if seconds is None:
        then, since = _timestamp(value), _timestamp(headers.get("Date"))
        if then is None:
            return None
        seconds = max(0.0, then - (now if since is None else since))
    return min(seconds, MAX_RETRY_AFTER)


def _judge(preset: Preset, refusal: Refusal) -> tuple[Verdict, str | None]:
    for code in refusal.codes:
        if code in preset.verdicts:
            return preset.verdicts[code], code
    first = refusal.codes[0] if refusal.codes else None
    if refusal.status == 404 and not refusal.structured:
        return WRONG_ADDRESS, first
    return by_status(refusal.status), first


def _codes(error: dict[str, Any]) -> tuple[str, ...]:
    """`code` (GLM's digits, OpenAI's words) before `type` (Moonshot's words, OpenAI's coarser ones)."""
    found = (error.get("code"), error.get("type"))
    return tuple(str(value) for value in found if isinstance(value, (str, int)) and value)


def _partial(text: str | None) -> dict[str, str]:
    return {} if text is None else {"partial": redact(text)[:MAX_PARTIAL]}


def _number(value: str | None) -> float | None:
    if value is None or not _NUMBER.fullmatch(value.strip()):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _timestamp(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):  # the ways in which the parser refuses
        return None
