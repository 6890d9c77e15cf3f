"""Circuits: an account's model that fails request after request is left alone for a while, and then asked by one request.

    closed ── `failures` requests in a row failed ──► open ── its pause is over ──► half open: ONE call, the probe
       ▲                                              ▲  │                              │        │
       │                                              │  └── the pause doubles ◄─ fails ┘        │ answered
       └──────────────────────────────────────────────┼─── or begins to be ─────────────────────┘
                                                      └─ the probe was cancelled, or lost: the next request is one

Half open is no state that could last: it is an open circuit whose pause is over. The probe is a request that has a slot, so it ends
as surely as every request does, and whatever its end, the circuit lets go of it.

What counts is the provider's trouble (no connection, 5xx, overload, an answer that breaks off, a timeout that the configuration set).
Any refusal that a working service gives (a limit, a bad request) shows that it works. Requests are counted, not calls: one request
that makes a service fail, three times over, opens nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager.core.deadlines import Deadlines
from callpool.manager.core.retry import Target

if TYPE_CHECKING:
    from callpool.manager.core.faults import Fault

MAX_CIRCUITS = 1_000
"""Targets with trouble that are remembered at once; any model's name may be one where an account allows all."""
FORGOTTEN = 600.0
"""Seconds after its pause for which an open circuit waits for somebody who tries it."""
WAKE_TICK = 0.02
"""Seconds by which a probe may come late."""


class CircuitRules(msgspec.Struct, frozen=True, kw_only=True):
    """When circuits open, and for how long."""

    failures: int = 5
    """Requests in a row; 0 never opens one."""
    first_pause: float = 5.0
    """Seconds."""
    longest_pause: float = 60.0
    """Seconds: the pause doubles with each probe that fails, up to this."""
    patience: float = 30.0
    """Seconds that a request waits for an open circuit at most; while a probe is out it waits for the probe's end."""


class _Circuit:
    __slots__ = ("failed", "last", "pause", "probe", "until")

    def __init__(self) -> None:
        self.failed: set[str] = set()
        """Requests that failed since one was answered."""
        self.until: float | None = None
        """When its pause is over; None while it is closed."""
        self.pause = 0.0
        self.probe: str | None = None
        self.last: Fault | None = None


class Circuits:
    """All circuits that are not simply closed: a target without trouble costs nothing here."""

    def __init__(self, rules: CircuitRules) -> None:
        self.rules = rules
        self._circuits: dict[Target, _Circuit] = {}
        self._open: set[Target] = set()
        self._wakes = Deadlines(WAKE_TICK)
        self._patience = Deadlines(WAKE_TICK)
        """When somebody may have waited for a circuit for long enough."""
        self._targets: dict[str, Target] = {}
        """By the keys of the two above: of circuits that are open."""
        self.opened = 0
        """How often one opened, or opened again."""

    @property
    def any_open(self) -> bool:
        """Whether any is; where none is, nothing else need be asked."""
        return bool(self._open)

    def is_shut(self, target: Target, now: float) -> bool:
        """Whether no call may go there now: it is open, and pausing or being probed."""
        if target not in self._open:
            return False
        circuit = self._circuits[target]
        return circuit.probe is not None or (circuit.until is not None and now < circuit.until)

    def begin(self, target: Target, request_id: str) -> None:
        """A call goes there; of an open circuit it is the probe. The caller has asked `is_shut`."""
        if target in self._open:
            self._circuits[target].probe = request_id

    def leave(self, target: Target, request_id: str) -> None:
        """The call is over, whatever it came to."""
        if self.probes(target, request_id):
            self._circuits[target].probe = None
            self.look_again(target, 0.0)  # nobody's patience ended while it was out

    def works(self, target: Target) -> bool:
        """The service has answered, be it with a refusal; whether that closed a circuit."""
        if self._circuits.pop(target, None) is None or target not in self._open:
            return False
        key = _key(target)
        self._open.remove(target)
        self._wakes.clear(key)
        self._patience.clear(key)
        del self._targets[key]
        return True

    def fails(self, target: Target, request_id: str, fault: Fault, now: float, *, weak: bool = False) -> bool:
        """A call met trouble of the provider's; whether that opened the circuit, or opened it again.

        `weak`: it had little time of its own, so a probe that it was shows nothing, and the same pause begins again.
        """
        if self.rules.failures == 0:
            return False
        circuit = self._circuits.get(target)
        if circuit is None:
            if len(self._circuits) >= MAX_CIRCUITS and not self._forget_one():
                return False  # names that clients make up must not fill the memory
            circuit = self._circuits[target] = _Circuit()
        circuit.last = fault
        if target in self._open:
            if circuit.probe != request_id:
                return False  # a call that began before it opened: it tells nothing new
            pause = circuit.pause if weak else min(2 * circuit.pause, self.rules.longest_pause)
            self._pause(target, circuit, pause, now)
            return True
        circuit.failed.add(request_id)
        if len(circuit.failed) < self.rules.failures:
            return False
        circuit.failed.clear()
        self._pause(target, circuit, self.rules.first_pause, now)
        return True

    def probes(self, target: Target, request_id: str) -> bool:
        """Whether this request is the one that tries it."""
        return target in self._open and self._circuits[target].probe == request_id

    def _forget_one(self) -> bool:
        """Make room: the oldest that is not open; whether there was one."""
        oldest = next((target for target in self._circuits if target not in self._open), None)
        if oldest is not None:
            del self._circuits[oldest]
        return oldest is not None

    def _pause(self, target: Target, circuit: _Circuit, seconds: float, now: float) -> None:
        self._open.add(target)
        self.opened += 1
        circuit.pause = seconds
        circuit.until = now + seconds
        key = _key(target)
        self._wakes.set(key, circuit.until)
        if key not in self._targets:
            self._targets[key] = target
            self.look_again(target, now + self.rules.patience)

    def next_wake(self) -> float | None:
        """Monotonic seconds at which a pause is over, or somebody has waited long enough; or None."""
        wake, patience = self._wakes.next(), self._patience.next()
        return wake if patience is None or (wake is not None and wake < patience) else patience

    def wake(self, now: float) -> list[Target]:
        """Time passed: the circuits for which somebody may have waited long enough. Forgets those that nobody tries."""
        for key in self._wakes.pop_due(now):
            target = self._targets[key]
            circuit = self._circuits[target]
            if not self._is_forgotten(circuit, now):
                # Its pause is over: whoever comes may try.
                self._wakes.set(key, (now if circuit.probe else circuit.until or now) + FORGOTTEN)
            else:
                self.works(target)
        return [self._targets[key] for key in self._patience.pop_due(now)]

    def look_again(self, target: Target, at: float) -> None:
        """Look then whether somebody has waited for this circuit for long enough."""
        self._patience.set(_key(target), at)

    def last_fault(self, target: Target) -> Fault | None:
        """What went wrong there last."""
        circuit = self._circuits.get(target)
        return None if circuit is None else circuit.last

    def seconds_left(self, target: Target, now: float) -> float:
        """Of the pause."""
        circuit = self._circuits.get(target)
        return 0.0 if circuit is None or circuit.until is None else max(0.0, circuit.until - now)

    def as_plain(self, account: str, now: float) -> list[dict[str, Any]]:
        """What `status` says of an account's circuits that are not closed."""
        return [
            {
                "model": target.model,
                "state": "half_open" if self.seconds_left(target, now) == 0.0 else "open",
                "seconds_left": self.seconds_left(target, now),
                "why": circuit.last.message if circuit.last else "",
            }
            for target, circuit in self._circuits.items()
            if target.provider == account and target in self._open and not self._is_forgotten(circuit, now)
        ]

    def open_targets(self) -> list[Target]:
        """Those that are open."""
        return list(self._open)

    def is_probed(self, target: Target) -> bool:
        """Whether somebody tries it now."""
        return target in self._open and self._circuits[target].probe is not None

    @staticmethod
    def _is_forgotten(circuit: _Circuit, now: float) -> bool:
        return circuit.probe is None and circuit.until is not None and now >= circuit.until + FORGOTTEN


def _key(target: Target) -> str:
    return f"{target.provider}/{target.model}"  # no provider's name has a slash
