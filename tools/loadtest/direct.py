"""A client process without callpool, as people write it today: aiohttp, a semaphore, and retries.

The retries are those of the official OpenAI client, whose users are most: two of them, after 0.5 seconds doubled each time
up to 8, with jitter down to 75 %, or after what Retry-After says if that is at most 60 seconds. Source: openai-python,
`_base_client.py` (`_should_retry`, `_calculate_retry_timeout`) and `_constants.py`. The place under the semaphore is kept
during the pauses, since they happen inside of that client's call.
"""

from __future__ import annotations

import asyncio
import random

import aiohttp

from callpool.tools.loadtest.member import perform
from callpool.tools.loadtest.messages import Directly
from callpool.tools.loadtest.scenario import MODEL, message

MAX_RETRIES = 2
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
JITTER = 0.25
"""Share of a pause that chance takes away at most."""
LONGEST_RETRY_AFTER = 60.0
"""Seconds; a Retry-After of more is not obeyed."""
RETRIED = frozenset({408, 409, 429})
"""Statuses that are retried, beside those from 500."""


async def run(order: Directly) -> None:
    """Make all requests of the order."""
    slots = asyncio.Semaphore(order.at_once)
    headers = {"Authorization": f"Bearer {order.key}"}
    timeout = aiohttp.ClientTimeout(total=order.timeout)
    connector = aiohttp.TCPConnector(limit=0)  # the semaphore is the limit
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:

        async def ask(number: int) -> str | None:
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": message(order.client, number)}],
                "max_tokens": order.max_tokens,
                "fake": {"delay": order.delays[number - 1]},
            }
            async with slots:
                return await _with_retries(session, order.url, body)

        await perform(len(order.delays), ask, wait=order.wait)


async def _with_retries(session: aiohttp.ClientSession, url: str, body: dict[str, object]) -> str | None:
    for retry in range(MAX_RETRIES + 1):
        error, retryable, named = await _call(session, url, body)
        if error is None or not retryable or retry == MAX_RETRIES:
            return error
        await asyncio.sleep(pause(retry, named, random.random()))  # noqa: S311 - no secret
    raise AssertionError("the last try returns")


async def _call(
    session: aiohttp.ClientSession, url: str, body: dict[str, object]
) -> tuple[str | None, bool, str | None]:
    """One try: the error, whether it is retried, and what Retry-After says."""
    try:
        async with session.post(url, json=body) as response:
            await response.read()
            if response.status == 200:
                return None, False, None
            retryable = response.status in RETRIED or response.status >= 500
            return f"http_{response.status}", retryable, response.headers.get("Retry-After")
    except TimeoutError:
        return "timeout", True, None
    except aiohttp.ClientError:
        return "connection", True, None


def pause(retry: int, named: str | None, drawn: float) -> float:
    """Seconds before retry `retry` (from 0). `named` is the Retry-After header; `drawn` is from 0 to below 1."""
    try:
        seconds = float(named) if named is not None else 0.0
    except ValueError:  # a date: the fake's limits name seconds
        seconds = 0.0
    if 0 < seconds <= LONGEST_RETRY_AFTER:
        return seconds
    bound: float = min(FIRST_PAUSE * 2.0**retry, LONGEST_PAUSE)
    return bound * (1 - JITTER * drawn)
