"""What a load test asks: how many clients and requests, how long a call takes, what the account allows. Pure."""

from __future__ import annotations

import random
import re
from typing import Literal

import msgspec

from callpool.tools.testing.fake_answers import estimate_tokens

DialectName = Literal["kimi", "glm", "openai"]

MODEL = "fake-model"
"""No vendor's rules hold for this name: the test is about limits."""
SPREAD = 0.5
"""A call takes from 1 - SPREAD to 1 + SPREAD times the mean, all as likely: calls that end in step would hide waits."""
SKEW = 0.8
"""Share of all requests that the first client has in a skewed test."""
LONGEST_PROMPT = 60
"""Characters of the longest message that `message` makes; less than the fake's log keeps of one."""
_NAMED = re.compile(r"client (\d+), request (\d+):")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an account allows."""

    concurrency: int
    """Calls at once."""
    rpm: int
    """Requests in any 60 seconds."""
    tpm: int
    """Tokens in any 60 seconds, charged in advance: prompt and token limit of each request."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One load test. The same seed makes the same requests, for every run of the comparison."""

    clients: int = 10
    requests: int = 2_000
    concurrency: int = 50
    """What clients believe that the account allows: callpool by its configuration, direct clients by their own limit."""
    true_concurrency: int = 50
    """What the provider allows."""
    rpm: int = 3_000
    tpm: int = 2_000_000
    seconds: float = 1.0
    """Mean duration of a call."""
    max_tokens: int = 512
    """Token limit of each request."""
    dialect: DialectName = "kimi"
    workers: int = 2
    """Worker processes of the supervisor."""
    skew: bool = False
    seed: int = 1

    @property
    def limits(self) -> Limits:
        """What the provider really enforces."""
        return Limits(concurrency=self.true_concurrency, rpm=self.rpm, tpm=self.tpm)

    @property
    def call_timeout(self) -> float:
        """Seconds for one call; ten times the mean, since a test of limits is none of deadlines."""
        return max(60.0, 10 * self.seconds)

    @property
    def shortest(self) -> float:
        """Seconds that no client can beat: the work divided by what is allowed at once. The minute limits can make it longer."""
        return self.requests * self.seconds / min(self.true_concurrency, self.requests)

    @property
    def deadline(self) -> float:
        """Seconds after which a run counts as hanging: many times what its limits ask for, and time for a busy machine."""
        minutes = max(self.requests / self.rpm, self.requests * largest_charge(self.max_tokens) / self.tpm)
        return 180.0 + 6 * (self.shortest + 60 * minutes)

    def shares(self) -> list[int]:
        """Requests of each client, in their order; they add up to `requests`, and each client has at least one."""
        if not self.skew or self.clients == 1:
            return deal(self.requests, self.clients)
        first = min(round(SKEW * self.requests), self.requests - (self.clients - 1))
        return [first, *deal(self.requests - first, self.clients - 1)]

    def delays(self, client: int) -> list[float]:
        """Seconds that each call of a client takes, drawn from the seed: the same ones in every run."""
        draw = random.Random(f"{self.seed}/{client}")  # noqa: S311 - no secret
        count = self.shares()[client - 1]
        return [round(self.seconds * draw.uniform(1 - SPREAD, 1 + SPREAD), 4) for _ in range(count)]


def deal(total: int, parts: int) -> list[int]:
    """`total` in whole parts that differ by at most one, larger ones first."""
    least, over = divmod(total, parts)
    return [least + (part < over) for part in range(parts)]


def message(client: int, number: int) -> str:
    """The text of a request. It names the request, so that the fake's log tells whose call each one was."""
    return f"client {client}, request {number}: how are you?"


def named(text: str) -> tuple[int, int] | None:
    """Client and number of the request with this text; None for a text that `message` did not make."""
    found = _NAMED.match(text)
    return None if found is None else (int(found[1]), int(found[2]))


def charge(text: str, max_tokens: int) -> int:
    """Tokens that the fake charges in advance for a request with this one message."""
    return estimate_tokens([{"content": text}]) + max_tokens


def largest_charge(max_tokens: int) -> int:
    """Tokens that no request of a test is charged more than."""
    return charge("x" * LONGEST_PROMPT, max_tokens)
