"""A machine, its disk and a provider in virtual time: supervisors are killed and started again, and the provider's log is the judge.

Only what was durable outlives a kill. Commits come late, and the word of them later still; a call that has to wait is sent when it has
come. Requests arrive anywhere between their sending and the first byte of their answer, and up to `LAG` after a kill or a cancel.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from callpool.manager.core.carried import Carried
from callpool.manager.core.carryover import Carryover
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.limits import AccountRules, ClientRules, Counting, LedgerRules, Limits, Usage
from callpool.manager.core.requests import Now
from callpool.manager.core.retry import Target
from callpool.manager.core.scopes import Cost, Key
from callpool.manager.core.windows import DAY, MINUTE

LAG = 0.7
"""Seconds."""
TARGET = Target("a", "m")
TICK = 5.0
"""Seconds between two looks at what may be lowered."""
ROUNDING = 1e-6
"""Seconds that two clocks differ in their last digits."""
CLIENTS = ("x", "y", "z")


class Arrival(NamedTuple):
    """A request as the provider saw it."""

    at: float
    tokens: int
    client: str


class Call:
    """One call: what it asks for, and what it will turn out to take."""

    def __init__(self, name: str, client: str, estimate: int, used: int) -> None:
        self.name = name
        self.client = client
        self.estimate = estimate
        self.used = used
        self.arrives = 0.0
        """Seconds of the world; while it is not sent, nothing."""


def rules_of(
    *,
    requests: int | None = None,
    tokens: int | None = None,
    day: int | None = None,
    organization: int | None = None,
    client_day: int | None = None,
    supervisor: int | None = None,
    charge: str = "actual",
) -> LedgerRules:
    """One account of one organisation, and any clients; what is not given does not limit."""
    limits = Limits(concurrency=9_999, requests_per_minute=requests, tokens_per_minute=tokens, tokens_per_day=day)
    counting = Counting(charge=charge, cancel_lag=LAG)  # type: ignore[arg-type]  # a literal, by the tests' hands
    return LedgerRules(
        accounts={"a": AccountRules(limits=limits, counting=counting, organization="o")},
        organizations={"o": Limits(tokens_per_minute=organization)},
        clients={"default": ClientRules(tokens_per_day=client_day)},
        requests_per_minute=supervisor,
    )


class World:
    """Everything that outlives a supervisor, and the one that runs now. `pace`: by how much longer everything takes than in a minute."""

    def __init__(
        self,
        rules: LedgerRules,
        chance: random.Random,
        *,
        pace: float = 1.0,
        made: type[Carryover] = Carryover,
        trusts_wall: bool = False,
    ) -> None:
        self.rules = rules
        self.chance = chance
        self.pace = pace
        self.made = made
        self.trusts_wall = trusts_wall
        self.commit_takes: float | None = None
        """Seconds; None: now and then long, and the word of it comes later."""
        self.time = 1_000.0
        self.boot, self._booted_at = 1, 0.0
        self.wall_off_by = 1e9
        self.arrivals: list[Arrival] = []
        self.disk: dict[Key, bytes] = {}
        self.written = 0
        """Records that reached the disk."""
        self.waited = 0
        self.sent = 0
        self._names = itertools.count()
        self.start()

    # A supervisor's life.

    def now(self) -> Now:
        return Now(self.time - self._booted_at, self.time + self.wall_off_by)

    def start(self) -> None:
        """A supervisor starts and reads the disk."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._to_disk: deque[tuple[float, Carried]] = deque()
        self._told = 0
        self.held: list[tuple[int, Call]] = []
        self.out: dict[str, Call] = {}
        self.carryover = self.made(boot=f"boot {self.boot}", trusts_wall=self.trusts_wall, lag=LAG)
        records = [msgspec.msgpack.decode(each, type=Carried) for each in self.disk.values()]
        self.write(self.carryover.restore(records, self.now()))
        self.ledger = Ledger(self.rules, self.carryover)
        self._at(self.time + TICK * self.pace, self._tick)

    def kill(self, *, reboot: bool = False, after: float | None = None) -> None:
        """Nobody has time for anything. What was on its way to the provider may still arrive, or not.

        `after`: seconds until the next start; None: any.
        """
        for call in self.out.values():
            if call.arrives <= self.time:
                self._arrive(call, call.arrives)
            elif self.chance.random() < 0.7:
                self._arrive(call, self.time + self.chance.random() * LAG)
        self._settle_disk(self.time)
        self.time += self.chance.choice([0.0, 0.1, 3.0, 20.0]) * self.pace if after is None else after
        if reboot:
            self.time += LAG  # nothing arrives from a machine that is off
            self.boot += 1
            self._booted_at = self.time - self.chance.random() * 20.0
        self.start()

    def stop(self) -> None:
        """An orderly end: what waits is dropped, what is out ends, the last records are written."""
        for _, call in self.held:
            self.ledger.settle(call.name, "unused", None, self.now().monotonic)
        self.held.clear()
        while self.out:
            self._next()
        self.write(self.carryover.final(self.now()))
        self._settle_disk(float("inf"))

    # The disk.

    def write(self, records: Iterable[Carried]) -> None:
        for record in records:
            before = self._to_disk[-1][0] if self._to_disk else self.time
            delay, word = self.commit_takes, 0.0
            if delay is None:
                delay = self.chance.choice([0.0, 0.0, 0.01, 0.3, 2.0]) * self.pace
                word = self.chance.random() * 0.5 * self.pace
            durable = max(before, self.time + delay)
            self._to_disk.append((durable, record))
            self._at(durable + word, lambda number=record.number: self._committed(number))  # type: ignore[misc]  # binds it

    def _settle_disk(self, until: float) -> None:
        while self._to_disk and self._to_disk[0][0] <= until:
            record = self._to_disk.popleft()[1]
            self.written += 1
            if record.is_empty:
                self.disk.pop(record.key, None)
            else:
                self.disk[record.key] = msgspec.msgpack.encode(record)

    def _committed(self, number: int) -> None:
        if number <= self._told:
            return
        self._told = number
        self._settle_disk(self.time)
        self.carryover.committed(number)
        free, self.held = (
            [each for each in self.held if each[0] <= number],
            [each for each in self.held if each[0] > number],
        )
        for _, call in free:
            self._send(call)

    # Calls.

    def submit(self, client: str, estimate: int, used: int) -> bool:
        """Send a call if there is room; whether there was."""
        now = self.now()
        cost = Cost(Usage(0, estimate), estimate, 0)
        if self._room_at(client, cost) > now.monotonic:
            return False
        call = Call(f"r{next(self._names)}", client, estimate, used)
        self.ledger.reserve(call.name, int(call.name[1:]), TARGET, client, cost, now.monotonic)
        due = self.carryover.cover(self.ledger.holds[call.name].entries, now)
        self.write(due.records)
        if due.waits:
            self.waited += 1
            self.held.append((self.carryover.newest, call))
        else:
            self._send(call)
        return True

    def wait_for_room(self, client: str, estimate: int) -> None:
        """Let time pass until such a call may go, if that is known and not very long."""
        for _ in range(3):  # something else may have ended meanwhile, and changed it
            wait = self._room_at(client, Cost(Usage(0, estimate), estimate, 0)) - self.now().monotonic
            if 0 < wait < 2 * MINUTE * self.pace:
                self.run(wait)

    def _room_at(self, client: str, cost: Cost) -> float:
        now = self.now()
        scopes = self.ledger.scopes(TARGET, client)
        return max(max(scope.opens_at(now), scope.fits_at(cost, now.monotonic)) for scope in scopes)

    def _send(self, call: Call) -> None:
        self.sent += 1
        self.out[call.name] = call
        latency = self.chance.choice([0.0, 0.2, 3.0, 30.0]) * self.pace
        call.arrives = self.time + self.chance.choice([0.0, 1.0, self.chance.random()]) * latency
        if self.chance.random() < 0.1:
            self._at(self.time + self.chance.random() * latency, lambda: self._cancel(call))
            return
        refused = self.chance.random() < 0.1
        answered = self.time + latency
        self._at(answered, lambda: self.ledger.answered(call.name, self.now().monotonic))
        ends = answered + self.chance.choice([0.0, 0.2, 3.0]) * self.pace
        self._at(ends, lambda: self._finish(call, refused=refused))

    def _finish(self, call: Call, *, refused: bool) -> None:
        del self.out[call.name]
        if refused:  # by a limit: the provider does not count it
            self.ledger.settle(call.name, "unused", None, self.now().monotonic)
        else:
            self._arrive(call, call.arrives)
            self.ledger.settle(call.name, "used", Usage(0, call.used), self.now().monotonic)

    def _cancel(self, call: Call) -> None:
        del self.out[call.name]
        self._arrive(call, min(call.arrives, self.time + self.chance.random() * LAG))
        self.ledger.settle(call.name, "doubt", None, self.now().monotonic)

    def _arrive(self, call: Call, at: float) -> None:
        self.arrivals.append(Arrival(at, call.used, call.client))

    # Time.

    def _at(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, next(self._names), action))

    def _tick(self) -> None:
        due = self.carryover.next_due()
        if due is not None and due <= self.now().monotonic:
            self.write(self.carryover.lower(self.now()))
        self._at(self.time + TICK * self.pace, self._tick)

    def _next(self) -> None:
        at, _, action = heapq.heappop(self._events)
        self.time = max(self.time, at)
        action()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.time + seconds
        while self._events and self._events[0][0] <= until:
            self._next()
        self.time = until

    def load(self, seconds: float, gap: float, estimate: int, *, client: str = "x") -> None:
        """Calls at an even pace, as far as there is room for them."""
        until = self.time + seconds
        while self.time < until:
            self.submit(client, estimate, estimate)
            self.run(gap)

    def used(self) -> dict[Key, int]:
        """What counts now in each window of which anything does."""
        now = self.now().monotonic
        windows = {each.key: each.window for scope in self.ledger._all_scopes() for each in scope.measures()}
        for window in windows.values():
            window.forget(now)
        return {key: window.used for key, window in windows.items() if window.used}

    # The judge.

    def excess(self) -> list[str]:
        """Every limit of which the provider saw more than it allows, in any window that begins with an arrival."""
        rules = self.rules
        account = rules.accounts["a"].limits
        day_of_client = rules.clients["default"].tokens_per_day
        log = self.arrivals
        ones = [(each.at, 1) for each in log]
        tokens = [(each.at, each.tokens) for each in log]
        return [
            *most("requests", ones, MINUTE, account.requests_per_minute),
            *most("tokens", tokens, MINUTE, account.tokens_per_minute),
            *most("organisation", tokens, MINUTE, rules.organizations["o"].tokens_per_minute),
            *most("day", tokens, DAY, account.tokens_per_day),
            *(
                found
                for name in CLIENTS
                for found in most(
                    f"client {name}",
                    [(each.at, each.tokens) for each in log if each.client == name],
                    DAY,
                    day_of_client,
                )
            ),
        ]


def most(what: str, arrivals: Sequence[tuple[float, int]], seconds: float, limit: int | None) -> list[str]:
    """The fullest window, if it is too full."""
    if limit is None or not arrivals:
        return []
    order = sorted(arrivals)
    found = begin = total = 0
    for at, amount in order:
        total += amount
        while order[begin][0] <= at - seconds + ROUNDING:
            total -= order[begin][1]
            begin += 1
        found = max(found, total)
    return [f"{what}: {found} of {limit}"] if found > limit else []


def live(world: World, steps: int) -> None:
    """Random traffic with everything that may happen to a supervisor and to clocks."""
    chance = world.chance
    for _ in range(steps):
        what = chance.random()
        if what < 0.05:
            world.kill(reboot=chance.random() < 0.3)
        elif what < 0.07:
            world.stop()
            world.start()
        elif what < 0.10 and not world.trusts_wall:
            world.wall_off_by += chance.choice([-DAY, DAY, -3.0])
        elif what < 0.12:
            world.ledger.forget_idle(world.now())
        elif what < 0.60:
            patient = chance.random() < 0.3
            for _ in range(chance.choice([1, 1, 3, 20])):
                client, estimate = chance.choice(CLIENTS), chance.randint(0, 12)
                if patient:
                    world.wait_for_room(client, estimate)
                world.submit(client, estimate, chance.randint(0, estimate))
        else:
            world.run(chance.choice([0.0, 0.05, 0.5, 4.0, 15.0, 45.0]) * world.pace)
    world.run(0.0)
