"""The faults that a scripted provider can produce: every way in which a call, or the process around it, can go wrong.

Light to import: settings are checked against these names in processes that never make a call.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

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
)
from callpool.workers.providers.base import Call

BLOCK_SECONDS = 600.0
"""How long `block` keeps the event loop: longer than any patience with a stuck worker, and not for ever."""

EXIT_STATUS = 3
"""What `exit` and `system_exit` leave with."""

Fault = Callable[[Call], Awaitable[NoReturn]]


class ForeignError(Exception):
    """A library's exception at its worst: it cannot be unpickled, because its constructor wants two arguments."""

    def __init__(self, reason: str, request: object) -> None:
        super().__init__(f"{reason} in {request}")


def _raises(kind: type[ProviderError], words: str, **details: Any) -> Fault:
    async def fault(call: Call) -> NoReturn:
        raise kind(
            f"provider {call.provider!r} {words} (scripted)",
            provider=call.provider,
            model=call.model,
            **details,
        )

    return fault


def _refuses(
    kind: type[ProviderError], words: str, status: int, code: str, *, scope: str, retryable: bool = False, **more: Any
) -> Fault:
    return _raises(
        kind,
        words,
        retryable=retryable,
        retry_after=1.0 if kind is RateLimited else None,
        scope=scope,
        status=status,
        provider_code=code,
        **more,
    )


async def _hang(_: Call) -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody resolves this future")


async def _crash(_: Call) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("the process is dead")


async def _exit(_: Call) -> NoReturn:
    os._exit(EXIT_STATUS)


async def _block(call: Call) -> NoReturn:
    time.sleep(BLOCK_SECONDS)  # noqa: ASYNC251  on purpose: a worker whose loop is stuck
    raise ProviderError(f"the loop was blocked for {BLOCK_SECONDS:g} s", provider=call.provider, model=call.model)


async def _raise(call: Call) -> NoReturn:
    raise ForeignError("scripted exception", call.request_id)


async def _system_exit(_: Call) -> NoReturn:
    raise SystemExit(EXIT_STATUS)


async def _recursion(call: Call) -> NoReturn:
    await _recursion(call)
    raise AssertionError("the stack has no end")


async def _memory(_: Call) -> NoReturn:
    raise MemoryError("scripted")


FAULTS: Mapping[str, Fault] = {
    "unreachable": _raises(
        ProviderUnreachable, "cannot be reached", retryable=True, retry_after=None, scope="provider", phase="connect"
    ),
    "rejected": _refuses(ProviderRejected, "refused the request", 400, "invalid_request_error", scope="request"),
    "content": _refuses(ContentRefused, "refused the content", 400, "content_filter", scope="request"),
    "credential": _refuses(CredentialRefused, "refused the key", 401, "invalid_authentication_error", scope="account"),
    "quota": _refuses(QuotaExhausted, "refuses the account", 429, "exceeded_current_quota_error", scope="account"),
    "model_gone": _refuses(ModelGone, "does not serve the model", 404, "resource_not_found_error", scope="model"),
    "rate_limited": _refuses(
        RateLimited,
        "refused by a rate limit",
        429,
        "rate_limit_reached_error",
        scope="account",
        retryable=True,
        limit="concurrency",
    ),
    "overloaded": _refuses(
        ProviderOverloaded, "is overloaded", 429, "engine_overloaded_error", scope="provider", retryable=True
    ),
    "server_error": _refuses(ProviderError, "failed", 500, "server_error", scope="provider", retryable=True),
    "broken_answer": _raises(
        BrokenAnswer, "broke off its answer", retryable=True, retry_after=None, scope="provider", partial=""
    ),
    "hang": _hang,  # until cancelled
    "crash": _crash,  # the process dies by SIGKILL
    "exit": _exit,  # the process ends at once, without clean-up
    "block": _block,  # the event loop stands still
    "raise": _raise,  # an exception that is none of ours
    "system_exit": _system_exit,
    "recursion": _recursion,
    "memory": _memory,
}
"""By the name that a model's `error` setting uses."""


def check_fault(name: str) -> str | None:
    """None for a known fault, else the known name that is most like it."""
    if name in FAULTS:
        return None
    return difflib.get_close_matches(name, FAULTS, n=1, cutoff=0.0)[0]
