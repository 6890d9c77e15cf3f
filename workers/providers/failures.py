"""From what a provider did to the error that says so: the one place where provider failures are worded.

Every error of this module carries `provider`, `model`, `retryable` (may the same request succeed later?) and `retry_after` (in how
many seconds, if that is known), `scope`, and `in_doubt` (may the call have been answered, and billed, all the same?); a refusal also
`status`, `provider_code` and, where one was reached, `limit`; one that cut an answer short also `partial`, the text until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from callpool.manager.errors import (
    BrokenAnswer,
    ContentRefused,
    CredentialRefused,
    ModelGone,
    ProviderError,
    ProviderOverloaded,
    ProviderRejected,
    ProviderUnreachable,
    QuotaExhausted,
    RateLimited,
    from_fault,
)
from callpool.workers.providers.base import Call
from callpool.workers.providers.presets import Preset
from callpool.workers.providers.secret import redact
from callpool.workers.providers.verdicts import (
    LONG_LIMITS,
    SLOW_DOWN,
    WRONG_ADDRESS,
    Scope,
    Verdict,
    by_status,
    by_words,
)
from callpool.workers.providers.waits import (
    MAX_RETRY_AFTER,
    MAX_WINDOW,
    read_retry_after,
    seconds_in,
    seconds_until_moment,
)
from callpool.workers.providers.wording import clean

MAX_PARTIAL = 1 << 20
"""Characters of `partial`: the longest answer of today's models fits (131,072 tokens of about four letters)."""

BAD_REQUEST_TYPES = frozenset({"invalid_request_error", "BadRequestError"})
"""What servers without codes call a request that they refuse in the middle of a stream, whose status was sent long before."""

_DID = {
    ProviderRejected: "refused the request",
    ContentRefused: "refused the content",
    QuotaExhausted: "refuses the account until it is paid for",
    ProviderOverloaded: "is overloaded",
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
    headers: Mapping[str, str] = {}
    """They may tell when to try again, or that there is no hope."""


def refused(preset: Preset, call: Call, refusal: Refusal, *, now: float, partial: str | None = None) -> ProviderError:
    """The error of a refusal: by the provider's own code where the preset knows it, else by the HTTP status.

    `now` is the wall clock: a refusal may name the moment until which it stands.
    """
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
        retryable=verdict.retryable and not _is_hopeless(refusal.headers),
        retry_after=_wait(preset, verdict, refusal, now),
        scope=verdict.scope,
        # Under a status of success the service had begun to answer.
        in_doubt=verdict.in_doubt or (refusal.status < 300 and verdict.scope == "provider"),
        **({} if verdict.error is not RateLimited else {"limit": verdict.limit}),
        **_partial(partial),
    )


def failed_finish(call: Call, reason: str, verdict: Verdict, text: str) -> ProviderError:
    """The error of an answer whose finish reason says that it is none: it was refused, or the service broke off."""
    did = "refused to go on with" if verdict.error is ContentRefused else "broke off"
    return verdict.error(
        f"provider {call.provider!r} {did} the answer (finish_reason {clean(reason, 80)!r})",
        hint=verdict.hint,
        provider=call.provider,
        model=call.model,
        status=200,
        provider_code=clean(reason, 80),
        retryable=verdict.retryable,
        retry_after=None,
        scope=verdict.scope,
        in_doubt=True,
        **_partial(text),
    )


def after_order(error: ProviderError) -> ProviderError:
    """The error of a look for an answer that the service works on: whatever kept us from it, it may be billed."""
    fault = msgspec.structs.replace(error.fault, details={**error.fault.details, "in_doubt": True})
    found = from_fault(fault)
    return found if isinstance(found, ProviderError) else error


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
        retry_after=None,
        scope="provider",
        in_doubt=phase != "connect",
        **_partial(partial),
    )


def broken(call: Call, reason: str, partial: str | None = None) -> BrokenAnswer:
    """The error of an answer that came and cannot be understood."""
    return _broken(call, reason, partial, retryable=True, scope="provider")


def too_long(call: Call, reason: str, partial: str | None = None) -> BrokenAnswer:
    """The error of an answer that is more than we take: it would be no shorter the next time, and the provider is not in trouble."""
    return _broken(call, reason, partial, retryable=False, scope="request", hint="ask for less at once")


def _broken(
    call: Call, reason: str, partial: str | None, *, retryable: bool, scope: Scope, hint: str | None = None
) -> BrokenAnswer:
    return BrokenAnswer(
        f"the answer of provider {call.provider!r} cannot be used: {clean(reason)}",
        hint=hint,
        provider=call.provider,
        model=call.model,
        retryable=retryable,
        retry_after=None,
        scope=scope,
        in_doubt=True,
        **_partial(partial),
    )


def read_refusal(body: bytes, status: int, headers: Mapping[str, str]) -> Refusal:
    """What an answer with an error status says; a body that is no JSON object (a gateway's HTML page) says little."""
    try:
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace").strip()
        return Refusal("" if text.startswith("<") else text, status, headers=headers)
    if isinstance(decoded, list) and len(decoded) == 1:  # as Google's gateway wraps it
        decoded = decoded[0]
    if isinstance(decoded, dict):
        found = find_refusal(decoded, status, headers)
        if found is not None:
            return found
        # FastAPI says `detail`; other gateways put the sentence at the top.
        words = decoded.get("message") or decoded.get("msg") or decoded.get("detail")
        return Refusal(words if isinstance(words, str) else "", status, _codes(decoded), headers=headers)
    return Refusal(decoded if isinstance(decoded, str) else "", status, headers=headers)


def find_refusal(body: dict[str, Any], status: int, headers: Mapping[str, str]) -> Refusal | None:
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
    structured = source is error or body.get("object") == "error"
    return Refusal(text, status, _codes(source), structured=structured, headers=headers)


def _judge(preset: Preset, refusal: Refusal) -> tuple[Verdict, str | None]:
    for code in refusal.codes:
        if code in preset.verdicts:
            return _told_apart(preset.verdicts[code], refusal), code
    first = refusal.codes[0] if refusal.codes else None
    if refusal.status == 404 and not refusal.structured:
        return WRONG_ADDRESS, first
    status = _status_within(refusal) if refusal.status < 300 else refusal.status
    return _told_apart(preset.statuses.get(status) or by_status(status), refusal), first


def _status_within(refusal: Refusal) -> int:
    """What would have been the status of a refusal under a status of success: its code says it, or its type."""
    for code in refusal.codes:
        if code.isascii() and code.isdecimal() and len(code) == 3 and code[0] in "45":
            return int(code)
    return 400 if BAD_REQUEST_TYPES.intersection(refusal.codes) else refusal.status


def _is_hopeless(headers: Mapping[str, str]) -> bool:
    """Whether the service forbids another try.

    The official SDKs let this header overrule the status both ways; here a service may only lower our hopes: on its word alone
    nobody calls again on an account without money.
    """
    return headers.get("x-should-retry", "").strip().lower() == "false"


def _told_apart(verdict: Verdict, refusal: Refusal) -> Verdict:
    return by_words(refusal.message) if verdict is SLOW_DOWN else verdict


def _wait(preset: Preset, verdict: Verdict, refusal: Refusal, now: float) -> float | None:
    """Seconds until the same request may succeed: by header, by the message's words, by what such a refusal usually needs."""
    if not verdict.retryable and verdict.limit is None:
        return None
    is_long = verdict.limit in LONG_LIMITS
    longest = MAX_WINDOW if is_long else MAX_RETRY_AFTER
    said = read_retry_after(refusal.headers, now, longest)
    if said is None and is_long:
        said = seconds_until_moment(refusal.message, now, preset.utc_offset)
    if said is None and verdict.error in (RateLimited, ProviderOverloaded):
        said = seconds_in(refusal.message, longest)
    return verdict.wait if said is None else said


def _codes(error: dict[str, Any]) -> tuple[str, ...]:
    """`code` (GLM's digits, OpenAI's words) before `type` (Moonshot's words, OpenAI's coarser ones)."""
    found = (error.get("code"), error.get("type"))
    return tuple(str(value) for value in found if isinstance(value, (str, int)) and value)


def _partial(text: str | None) -> dict[str, str]:
    return {} if text is None else {"partial": bounded(text)}


def bounded(text: str) -> str:
    """Text of an answer as it may stand in an error."""
    return redact(text)[:MAX_PARTIAL]
