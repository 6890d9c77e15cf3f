"""The limits of an account, enforced the way providers do: by refusing.

Pure: time is an argument. A refused request takes nothing from any limit. One instance serves one fake; each key is an
account.
"""

from __future__ import annotations

from collections import defaultdict, deque
from math import ceil
from typing import Literal

import msgspec

WINDOW = 60.0
"""Seconds of the sliding window of RPM and TPM."""
CONCURRENCY_WAIT = 1
"""Seconds that a refusal by concurrency proposes to wait, as Moonshot's do."""


class Refused(msgspec.Struct, frozen=True):
    """Why a request is not admitted, with the figures that providers put into the message."""

    limit_name: Literal["concurrency", "rpm", "tpm"]
    limit: int
    current: int
    """What the account uses already, without this request."""
    wait: int
    """Whole seconds until a retry may succeed, at least 1."""


class _Account:
    def __init__(self) -> None:
        self.open = 0
        self.arrivals: deque[tuple[float, int]] = deque()
        self.tokens = 0

    def forget_before(self, horizon: float) -> None:
        while self.arrivals and self.arrivals[0][0] <= horizon:
            self.tokens -= self.arrivals.popleft()[1]

    def room_for(self, tokens: int, limit: int) -> float:
        """When enough of the window has passed that `tokens` more fit (monotonic seconds)."""
        excess = self.tokens + tokens - limit
        for at, charged in self.arrivals:
            excess -= charged
            if excess <= 0:
                return at + WINDOW
        return self.arrivals[-1][0] + WINDOW if self.arrivals else 0.0


class Limits:
    """Concurrency, requests per minute and tokens per minute of each key; None does not limit."""

    def __init__(self, *, concurrency: int | None = None, rpm: int | None = None, tpm: int | None = None) -> None:
        for name, value in (("concurrency", concurrency), ("rpm", rpm), ("tpm", tpm)):
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}: it must not be negative")
        self._concurrency, self._rpm, self._tpm = concurrency, rpm, tpm
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)

    def admit(self, key: str, tokens: int, now: float) -> Refused | None:
        """Admit a request that charges `tokens` in advance, or say which limit refuses it."""
        account = self._accounts[key]
        if self._concurrency is not None and account.open >= self._concurrency:
            return Refused("concurrency", self._concurrency, account.open, CONCURRENCY_WAIT)
        if self._rpm is not None or self._tpm is not None:
            account.forget_before(now - WINDOW)
            if refused := self._window(account, tokens, now):
                return refused
            account.arrivals.append((now, tokens))
            account.tokens += tokens
        account.open += 1
        return None

    def release(self, key: str) -> None:
        """An admitted request of `key` ended."""
        self._accounts[key].open -= 1

    def _window(self, account: _Account, tokens: int, now: float) -> Refused | None:
        used = len(account.arrivals)
        if self._rpm is not None and used >= self._rpm:
            room = account.arrivals[0][0] + WINDOW if used else now + WINDOW
            return Refused("rpm", self._rpm, used, max(1, ceil(room - now)))
        if self._tpm is not None and account.tokens + tokens > self._tpm:
            wait = max(1, ceil(account.room_for(tokens, self._tpm) - now))
            return Refused("tpm", self._tpm, account.tokens, wait)
        return None
