"""A look past callpool, at what its own path does not show: headers, the list of models, the words of a limit that is met.

A handful of small requests to the one address that the account has. `look` is for every run, `meet_limit` only where somebody
asked for it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import urllib.parse
from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from tests import network
from tests.live.accounts import Account

DEADLINE = 60.0
"""Seconds for one request."""
LONGEST_TEXT = 2_000
"""Characters of a refusal that are kept."""
MOST_MODELS = 100
FEW_TOKENS = 16
TELLING = re.compile(r"rate-?limit|^retry-after|^x-should-retry$", re.IGNORECASE)
"""Headers whose values are kept: figures of limits. Others may name an account, so of them only the names are."""

Seen = dict[str, Any]


class Resolved(AbstractResolver):
    """The addresses that were looked up before; no name is looked up again."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Every address, for whatever name: the client asks for one only."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Probe:
    """A client of one account. `requests` counts what it sent."""

    def __init__(self, account: Account, session: aiohttp.ClientSession) -> None:
        self._account = account
        self._session = session
        self.requests = 0

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Seen, Any]:
        """One request: its status, what its headers tell, and the body (JSON where it is that, else text)."""
        self.requests += 1
        url = self._account.base_url + path
        async with self._session.request(method, url, json=body, allow_redirects=False) as response:
            text = await response.text(errors="replace")
            try:
                content = await response.json(content_type=None)
            except ValueError:
                content = text[:LONGEST_TEXT]
            return response.status, headers_of(response.headers), content

    async def chat(self, tokens: int) -> tuple[int, Seen, Any]:
        """The smallest chat."""
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": self._account.model, "messages": messages, self._account.usual.one_token: tokens}
        return await self.ask("POST", "/chat/completions", body)


def look(account: Account) -> tuple[Seen, int]:
    """What the account tells beside its answers, and how many requests that took."""
    return _run(account, _look)


def meet_limit(account: Account) -> tuple[Seen, int]:
    """One call more at once than the account allows, of one token each: what the refused ones say."""
    return _run(account, _meet_limit)


def _run(account: Account, ask: Any) -> tuple[Seen, int]:
    parts = urllib.parse.urlsplit(account.base_url)
    host, port = parts.hostname or "", parts.port or {"https": 443, "http": 80}[parts.scheme]

    async def main(addresses: list[str]) -> tuple[Seen, int]:
        connector = aiohttp.TCPConnector(resolver=Resolved(addresses))
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=DEADLINE),
            headers={"Authorization": f"Bearer {account.key}"},
        ) as session:
            probe = Probe(account, session)
            try:
                seen: Seen = await ask(probe, account)
            finally:
                await connector.close(abort_ssl=True)  # a slow goodbye would outlive the loop, and its socket with it
            return seen, probe.requests

    with network.reaching(host, port) as addresses:
        return asyncio.run(main(addresses))


async def _look(probe: Probe, account: Account) -> Seen:
    status, content = (await probe.ask("GET", "/models"))[::2]
    chat_status, before, _ = await probe.chat(FEW_TOKENS)
    seen = {
        "models": {"status": status, **models_in(content, account.kind)},
        "chat": {"status": chat_status, "headers": before},
    }
    if account.kind == "kimi":
        body = {"model": account.model, "messages": [{"role": "user", "content": "Hello"}]}
        status, between, _ = await probe.ask("POST", "/tokenizers/estimate-token-count", body)
        _, after, _ = await probe.chat(FEW_TOKENS)
        seen["estimate"] = {
            "status": status,
            "headers": between,
            "headers_of_chat_after": after,
            "counts_toward_rpm": counts(before, after),
        }
    return seen


async def _meet_limit(probe: Probe, account: Account) -> Seen:
    answers = await asyncio.gather(*(probe.chat(1) for _ in range(account.concurrency + 1)))
    refused = [{"headers": headers, "body": body} for status, headers, body in answers if status == 429]
    return {
        "calls_at_once": account.concurrency + 1,
        "statuses": sorted(answer[0] for answer in answers),
        "refused": refused,
    }


def headers_of(headers: Mapping[str, str]) -> Seen:
    """The names of an answer's headers, and the values of those that tell of limits."""
    return {
        "names": sorted({name.lower() for name in headers}),
        "limits": {name.lower(): value for name, value in headers.items() if TELLING.search(name)},
    }


def models_in(content: Any, kind: str) -> Seen:
    """How many models a list has, and which: but not with OpenAI, where the names of one's own models are the account's."""
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return {"served": False}
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    told = {} if kind == "openai" else {"names": names[:MOST_MODELS]}
    return {"served": True, "count": len(entries), **told}


def counts(before: Seen, after: Seen) -> str:
    """Whether the request between two chats was charged, as far as the headers tell: a chat takes one itself."""
    left = [_remaining(before), _remaining(after)]
    if left[0] is None or left[1] is None:
        return "the headers do not tell"
    return {1: "no", 2: "yes"}.get(left[0] - left[1], f"unclear: {left[0]} requests left, then {left[1]}")


def _remaining(seen: Seen) -> int | None:
    """Requests left in the minute, as one of the customary headers says."""
    for name in ("x-ratelimit-remaining-requests", "x-ratelimit-remaining"):
        value = seen["limits"].get(name, "")
        if value.isdecimal():
            return int(value)
    return None
