"""One call: its deadline, and the border where everything that can go wrong becomes a `CallpoolError`.

Behind this border only two things happen: an `Answer` comes back, or a `CallpoolError` is raised. The one exception is
the CancelledError of a task that really was cancelled, which passes untouched.
"""

from __future__ import annotations

import asyncio

from callpool.manager.errors import CallpoolError, ProviderError, RequestTimeout
from callpool.workers.providers.base import Answer, Call, Progress, Provider
from callpool.workers.providers.wording import clean, describe


async def run_call(provider: Provider, call: Call, progress: Progress) -> Answer:
    """Make one call within `call.timeout` seconds. Raises `CallpoolError` and, when cancelled, CancelledError."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("run_call needs a task: it tells a cancellation from outside by the task's count of them")
    cancels_before = task.cancelling()
    deadline: asyncio.Timeout | None = None
    failure: CallpoolError
    try:
        async with asyncio.timeout(call.timeout) as deadline:
            answer: object = await provider.call(call, progress)  # what providers promise, and what they do
        if isinstance(answer, Answer):
            return answer
        failure = _fault_in_provider(call, f"it returned a {type(answer).__name__}", type(answer).__name__)
    except GeneratorExit:
        raise  # the loop is gone and this coroutine is being thrown away
    except BaseException as error:  # SystemExit and KeyboardInterrupt of provider code must not end the worker
        if task.cancelling() > cancels_before:
            # Cancelled from outside, whatever the provider made of it, and whether or not the deadline came as well.
            if isinstance(error, asyncio.CancelledError):
                raise
            raise asyncio.CancelledError from None
        failure = _failure(call, error, expired=deadline is not None and deadline.expired())
    # Raised outside of `except` and without a chain: a library's exception may hold the request's headers, so the key.
    failure.__context__ = failure.__cause__ = None
    raise failure


def _failure(call: Call, error: BaseException, *, expired: bool) -> CallpoolError:
    if expired:
        # Also where the provider turned the cancellation at the deadline into an error of its own.
        return RequestTimeout(
            f"the call of {clean(call.model)!r} at provider {call.provider!r} took longer than {call.timeout:g} s",
            seconds=call.timeout,
            provider=call.provider,
            model=call.model,
            which="total",
        )
    if isinstance(error, CallpoolError):
        return error
    return _fault_in_provider(call, describe(error), type(error).__name__)


def _fault_in_provider(call: Call, what: str, kind: str) -> ProviderError:
    return ProviderError(
        f"the code of provider {call.provider!r} failed: {what}",
        hint="this is a fault in callpool or in a provider added to it, not in the request: please report it",
        provider=call.provider,
        model=call.model,
        retryable=False,
        exception=clean(kind, 80),
    )
