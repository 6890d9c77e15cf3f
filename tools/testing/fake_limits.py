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
DAY = 86_400.0
"""Seconds of the sliding window of TPD; the providers' days end at a time of day, which a test could not wait for either."""
CONCURRENCY_WAIT = 1
"""Seconds that a refusal by concurrency proposes to wait, as Moonshot's do."""


class Refused(msgspec.Struct, frozen=True):
    """Why a request is not admitted, with the figures that providers put into the message."""

    limit_name: Literal["concurrency", "rpm", "tpm", "tpd"]
    limit: int
    current: int
    """What the account uses already, without this request."""
    wait: int
    """Whole seconds until a retry may succeed, at least 1."""


class _Window:
    """What came within the last `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.tokens = 0
        self._seconds = seconds
        self._arrivals: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        return len(self._arrivals)

    def add(self, tokens: int, now: float) -> None:
        self._arrivals.append((now, tokens))
        self.tokens += tokens

    def forget(self, now: float) -> None:
        while self._arrivals and self._arrivals[0][0] <= now - self._seconds:
            self.tokens -= self._arrivals.popleft()[1]

    def next_end(self, now: float) -> float:
        """When the first of all leaves (monotonic seconds)."""
        return (self._arrivals[0][0] if self._arrivals else now) + self._seconds

    def room_for(self, tokens: int, limit: int) -> float:
        """When enough of the window has passed that `tokens` more fit (monotonic seconds)."""
        excess = self.tokens + tokens - limit
        for at, charged in self._arrivals:
            excess -= charged
            if excess <= 0:
                return at + self._seconds
        return self._arrivals[-1][0] + self._seconds if self._arrivals else 0.0


class _Account:
    def __init__(self) -> None:
        self.open = 0
        self.minute = _Window(WINDOW)
        self.day = _Window(DAY)


class Limits:
    """Concurrency, requests and tokens per minute, and tokens per day of each key; None does not limit."""

    def __init__(
        self,
        *,
        concurrency: int | None = None,
        rpm: int | None = None,
        tpm: int | None = None,
        tpd: int | None = None,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("rpm", rpm), ("tpm", tpm), ("tpd", tpd)):
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}: it must not be negative")
        self._concurrency, self._rpm, self._tpm, self._tpd = concurrency, rpm, tpm, tpd
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)

    def admit(self, key: str, tokens: int, now: float) -> Refused | None:
        """Admit a request that charges `tokens` in advance, or say which limit refuses it."""
        account = self._accounts[key]
        if self._concurrency is not None and account.open >= self._concurrency:
            return Refused("concurrency", self._concurrency, account.open, CONCURRENCY_WAIT)
        refused = self._minute(account.minute, tokens, now) or self._day(account.day, tokens, now)
        if refused is not None:
            return refused
        if self._rpm is not None or self._tpm is not None:
            account.minute.add(tokens, now)
        if self._tpd is not None:
            account.day.add(tokens, now)
        account.open += 1
        return None

    def release(self, key: str) -> None:
        """An admitted request of `key` ended."""
        self._accounts[key].open -= 1

    def _minute(self, window: _Window, tokens: int, now: float) -> Refused | None:
        window.forget(now)
        if self._rpm is not None and len(window) >= self._rpm:
            return Refused("rpm", self._rpm, len(window), _wait(window.next_end(now), now))
        if self._tpm is not None and window.tokens + tokens > self._tpm:
            return Refused("tpm", self._tpm, window.tokens, _wait(window.room_for(tokens, self._tpm), now))
        return None

    def _day(self, window: _Window, tokens: int, now: float) -> Refused | None:
        window.forget(now)
        if self._tpd is not None and window.tokens + tokens > self._tpd:
            return Refused("tpd", self._tpd, window.tokens, _wait(window.room_for(tokens, self._tpd), now))
        return None


def _wait(until: float, now: float) -> int:
    return max(1, ceil(until - now))
