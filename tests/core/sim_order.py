"""Who may go before whom, judged from outside: by what the scheduler promises, not by how it keeps it.

- Within one client's name, class and target nobody is overtaken.
- No class goes before a higher one of its account that could go; every eighth turn may be for whoever has waited long enough.
- Two clients of one class that both wait all the time have their shares, up to one call of each.
- Nobody who could go waits; and nobody who has waited for `ageing` seconds sees more than eight turns for each who came before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core.scheduler import AGED_TURN, HELD_TICK

from .sim_model import Submission, Violation

if TYPE_CHECKING:
    from .sim_ledger import Bound
    from .sim_model import Books

LATE = 2 * HELD_TICK
"""Seconds by which the core may learn late that a client's own limit has room again."""
ROUNDING = 1e-9


class _Pair:
    """Two clients of one class of one account, as long as both wait."""

    __slots__ = ("ahead", "least", "most")

    def __init__(self) -> None:
        self.ahead = self.least = self.most = 0.0


class Order:
    """Judges each dispatch before it is booked, and after each event what was left waiting."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._limits = books.limits
        self._world = books.world
        self._pairs: dict[tuple[str, int, str, str], _Pair] = {}
        self._turns: dict[str, int] = {}
        self._aged: dict[str, int] = {}
        self._slack: dict[tuple[str, int], float] = {}
        """(account, class) → what turns for the oldest may have shifted between its clients."""

    # What is known of one request.

    def _cost(self, found: Submission) -> tuple[int, int]:
        return self._limits.cost(found.target, found.tokens)

    def _may_end_or_go(self, found: Submission, now: float) -> bool:
        """Whether its turn would come to something: a call, or its end because a day's limit has no room for it."""
        cost = self._cost(found)
        for bound in self._limits.bounds(found.target, found.name):
            if bound.overdrawn(cost, now):
                return True
            if bound.kind != "supervisor" and not bound.fits(cost, now):
                return False
        return True

    def _is_held(self, found: Submission, now: float) -> bool:
        """Whether its client may be at a limit of its own, or it may rest: then it need not go."""
        if now < found.rests_until:
            return True
        own = self._limits.client(found.name)
        if own is None:
            return False
        if not (own.has_request(now) and own.has_request(now, late=LATE)):
            return True
        if any(tally.day and tally.under_way() for tally in own.tallies):
            return True  # it is looked at again when one of its calls ends
        return any(
            not own.fits(self._cost(each), now, late=LATE) and not own.overdrawn(self._cost(each), now)
            for waiting in self._books.waiting.values()
            for each in waiting
            if each.name == found.name
        )

    def _is_surely_held(self, found: Submission, now: float) -> bool:
        """Whether its client has no request left in this minute."""
        own = self._limits.client(found.name)
        return own is not None and not own.has_request(now)

    def _is_overdrawn(self, found: Submission, now: float) -> bool:
        cost = self._cost(found)
        return any(bound.overdrawn(cost, now) for bound in self._limits.bounds(found.target, found.name))

    def _model(self, found: Submission) -> Bound | None:
        return self._limits.model(found.target)

    def _model_takes(self, found: Submission, now: float) -> bool:
        """Whether what limits its model alone has room, for it and whoever else waits for that model."""
        model = self._model(found)
        if model is None:
            return True
        if not model.opens(now) or model.was_cut:
            return False
        waiting = self._books.waiting[found.target.provider]
        return all(model.fits(self._cost(each), now) for each in waiting if each.target == found.target)

    def _is_due(self, found: Submission, now: float) -> bool:
        """Whether it has waited for long enough to go before its turn."""
        return now - found.submitted_at >= self._world.ageing

    # A dispatch.

    def going(self, found: Submission, now: float) -> None:
        """It goes: nobody may be wronged by that. The books still have it waiting."""
        account = found.target.provider
        waiting = self._books.waiting[account]
        for other in waiting:
            same = (other.name, other.rank, other.target) == (found.name, found.rank, found.target)
            if same and other.number < found.number and now >= other.rests_until:
                raise Violation("overtaken", f"{found} went before {other}")
        above = [each for each in waiting if each.rank < found.rank and self._could_go_first(each, now)]
        if above:
            aged = self._aged[account] = self._aged.get(account, 0) + 1
            turns = self._turns.get(account, 0)
            if not self._is_due(found, now) or any(each.number < found.number for each in above):
                raise Violation("class_order", f"{found} went before {above}")
            if aged > turns // AGED_TURN + 1:
                raise Violation("class_order", f"{found} went before {above}: {aged} aged turns of {turns}")
            self._books.seen["aged turn"] += 1
        self._count_turn(found, now)
        self._share(found, now)

    def _could_go_first(self, found: Submission, now: float) -> bool:
        return not self._is_held(found, now) and self._model_takes(found, now) and not self._is_overdrawn(found, now)

    def _count_turn(self, found: Submission, now: float) -> None:
        account = found.target.provider
        self._turns[account] = self._turns.get(account, 0) + 1
        if len(self._world.models) > 1:
            return
        for other in self._books.waiting[account]:
            if other is found or not self._is_due(other, now):
                continue
            if self._limits.client(other.name) is not None or now < other.rests_until:
                continue
            if found.number < other.number:
                other.older += 1
            else:
                other.passed += 1
            if other.passed > AGED_TURN * (other.older + 2):
                raise Violation("starved", f"{other} has seen {other.passed} turns of younger ones since it was due")

    def ended_by_turn(self, found: Submission) -> None:
        """One that waited may have had its turn, and ended with it."""
        account = found.target.provider
        self._turns[account] = self._turns.get(account, 0) + 1
        self._forget(account, found.rank)

    # Shares.

    def _share(self, found: Submission, now: float) -> None:
        """Its client has had a call: nobody of the same class who waits too may be left behind by more than one each."""
        account, rank, name = found.target.provider, found.rank, found.name
        if len(self._world.models) > 1 or self._world.attempts > 1 or self._limits.client(name) is not None:
            return
        key = account, rank
        mine = 1.0 / self._limits.weight(name)
        waiting = self._books.waiting[account]
        older = [each for each in waiting if each.number < found.number and not self._is_held(each, now)]
        if self._is_due(found, now) and not older:
            self._slack[key] = self._slack.get(key, 0.0) + mine
        others = {each.name for each in waiting if each.rank == rank and each.name != name}
        for other in others:
            if self._limits.client(other) is not None:
                continue
            theirs = 1.0 / self._limits.weight(other)
            first, second = sorted((name, other))
            pair = self._pairs.setdefault((account, rank, first, second), _Pair())
            pair.ahead += mine if name == first else -mine
            pair.least, pair.most = min(pair.least, pair.ahead), max(pair.most, pair.ahead)
            bound = mine + theirs + self._slack.get(key, 0.0)
            if pair.most - pair.least > bound + ROUNDING:
                raise Violation(
                    "unfair",
                    f"{found}: {first} against {second} went from {pair.least} to {pair.most}, at most {bound}",
                )
            self._books.seen["share"] += 1
        if not any(each.rank == rank and each.name == name and each is not found for each in waiting):
            self._forget(account, rank, name)

    def _forget(self, account: str, rank: int, name: str | None = None) -> None:
        for key in [key for key in self._pairs if key[:2] == (account, rank) and (name is None or name in key[2:])]:
            del self._pairs[key]

    def _prune(self) -> None:
        """Shares are compared only while both wait all the time."""
        for key in list(self._pairs):
            account, rank, *names = key
            there = {each.name for each in self._books.waiting[account] if each.rank == rank}
            if not there.issuperset(names):
                del self._pairs[key]

    # After an event.

    def nothing_waits_needlessly(self, now: float) -> None:
        """Whoever could go has gone."""
        books, limits = self._books, self._limits
        if self._pairs:
            self._prune()
        if not books.up.keys() - books.retiring or books.active >= books.pool:
            return
        if limits.supervisor is not None and not limits.supervisor.opens(now):
            return
        for account, waiting in books.waiting.items():
            if not waiting or account in books.closed or limits.is_stopped(account, now):
                continue
            shared = limits.organization(account)
            if not limits.accounts[account].opens(now) or (shared is not None and not shared.opens(now)):
                continue
            open_ones = [
                each for each in waiting if self._model_opens(each, now) and not self._is_surely_held(each, now)
            ]
            able = [each for each in open_ones if not self._is_held(each, now)]
            if not able:
                continue
            best = min(each.rank for each in able)
            heads = [each for each in open_ones if each.rank <= best or self._is_due(each, now)]
            if shared is not None and self._somebody_saves(shared, now):
                continue
            if all(self._may_end_or_go(each, now) for each in heads):
                raise Violation("missed_wakeup", f"account {account} has room, and {heads} wait for it")

    def _model_opens(self, found: Submission, now: float) -> bool:
        model = self._model(found)
        return model is None or model.opens(now)

    def _somebody_saves(self, shared: Bound, now: float) -> bool:
        """Whether somebody of this organisation has waited for long, and needs more tokens than are free: they are kept for it."""
        return any(
            self._is_due(each, now)
            and self._limits.organization(account) is shared
            and not shared.fits(self._cost(each), now)
            and not self._is_surely_held(each, now)
            for account, waiting in self._books.waiting.items()
            for each in waiting
        )
