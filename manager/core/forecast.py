"""How long a request will wait: its position, over the rate at which its account has served calls lately."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from callpool.manager.core.limits import Usage
from callpool.manager.core.windows import MINUTE, NEVER

if TYPE_CHECKING:
    from callpool.manager.core.ledger import Account
    from callpool.manager.core.requests import Now
    from callpool.manager.core.scopes import Cost, Scope

NEWEST: Final = 0.1
"""Weight of the newest call in the means."""


class _Served:
    __slots__ = ("seconds", "tokens")

    def __init__(self, seconds: float, tokens: float) -> None:
        self.seconds = seconds
        self.tokens = tokens


class Forecast:
    """What calls on each account took lately."""

    def __init__(self) -> None:
        self._served: dict[str, _Served] = {}

    def add(self, account: str, seconds: float, usage: Usage | None) -> None:
        """A call was served, from its dispatch to its end."""
        tokens = 0 if usage is None else usage.prompt + usage.answer
        served = self._served.get(account)
        if served is None:
            self._served[account] = _Served(seconds, tokens)
            return
        served.seconds += NEWEST * (seconds - served.seconds)
        served.tokens += NEWEST * (tokens - served.tokens)

    def rate(self, account: Account, most: int) -> float | None:
        """Calls a second that the account can serve, `most` at once; None while nothing is known."""
        served = self._served.get(account.name)
        if served is None:
            return None
        slots, rates = most, []
        for scope in (account.scope, account.organization):
            if scope is None:
                continue
            if scope.concurrency is not None:
                slots = min(slots, scope.concurrency.limit)
            for measure in scope.minutes:
                each = 1.0 if measure.what == "requests" else max(1.0, served.tokens)
                rates.append(measure.window.limit / 60.0 / each)
        rates.append(slots / max(served.seconds, 1e-3))
        return min(rates)

    def wait(self, account: Account, position: int, most: int, room: int, now: float) -> float | None:
        """Seconds until a request at this position (0: next) goes; None while nothing is known.

        `most` calls at once may be out over all accounts, `room` more than now.
        """
        if account.scope.closed is not None:
            return None
        paused, free = 0.0, room
        for scope in filter(None, (account.scope, account.organization)):
            paused = max(paused, scope.pause.until - now)
            if scope.concurrency is not None:
                free = (
                    0 if scope.is_full(now) else min(free, scope.concurrency.limit - scope.active - len(scope.lagging))
                )
        if position < free:
            return paused
        rate = self.rate(account, most)
        return None if rate is None else paused + (position - max(0, free) + 1) / rate

    def wait_in(self, scope: Scope, account: str, position: int, cost: Cost, now: Now) -> float | None:
        """Seconds for which one scope alone would hold back a request of this cost at this position; None while nothing is known."""
        time = now.monotonic
        wait = max(0.0, scope.pause.until - time)
        if scope.kind == "model" and scope.concurrency is not None:
            free = 0 if scope.is_full(time) else scope.concurrency.limit - scope.active - len(scope.lagging)
            if position >= free:
                served = self._served.get(account)
                if served is None:
                    return None
                wait = max(wait, (position - free + 1) * served.seconds / scope.concurrency.limit)
        for measure in scope.minutes:
            window, amount = measure.window, position + 1 if measure.what == "requests" else measure.amount(cost)
            minutes, rest = divmod(amount - 1, window.limit) if amount else (0, -1)
            at = window.room_at(rest + 1, time)
            wait = max(wait, MINUTE * minutes + (MINUTE if at == NEVER else at - time))
        return wait

    def mean_seconds(self, account: str) -> float | None:
        """Of a call there."""
        served = self._served.get(account)
        return None if served is None else served.seconds
