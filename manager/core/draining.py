"""How a drain goes: refuse what is new, wait for what was accepted, end the rest at the deadline, report.

    asked ─► (requests end by themselves) ─┬─ none is left ──────────────────────────────► Drained
                                           └─ the deadline: cut ─► acknowledged, or not ─► Drained

The handlers are the machine's; they live here because they are one idea. Its books are `drain.Drain`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from callpool.manager.core import refusals
from callpool.manager.core.drain import Drain
from callpool.manager.core.events import DrainAsked, Drained, Tick, ToClient
from callpool.manager.core.messages import Revoke

if TYPE_CHECKING:
    from callpool.manager.core.events import CutAsked, Effect
    from callpool.manager.core.machine import Core
    from callpool.manager.core.requests import Now


class Draining:
    """The handlers of a drain, over the machine's tables."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def asked(self, event: DrainAsked, now: Now, effects: list[Effect]) -> None:
        """Begin; a second order can only shorten the first."""
        core = self._core
        timeout = max(0.0, event.timeout)  # NaN too: a drain must end
        if core.drain is not None:
            if core.drain.cut_at is None:
                core.drain.deadline = min(core.drain.deadline, now.monotonic + timeout)
            return
        core.drain = Drain(
            now=now.monotonic,
            timeout=timeout,
            active=core.sessions.active,
            total_sessions=core.sessions.created,
        )
        effects += [ToClient(client, Revoke()) for client in core.places.revoke_all()]
        core.jobs.park_waiting()
        core.tick(Tick(), now, effects)

    def cut_asked(self, _event: CutAsked, now: Now, effects: list[Effect]) -> None:
        """The deadline is now."""
        core = self._core
        if core.drain is None:
            self.asked(DrainAsked(0.0), now, effects)
        elif core.drain.cut_at is None:
            core.drain.deadline = now.monotonic
            core.tick(Tick(), now, effects)

    def begins_to_cut(self, drain: Drain, now: Now) -> bool:
        """Whether the deadline has come, and there is anything left that it could cut."""
        core = self._core
        if drain.cut_at is not None or now.monotonic < drain.deadline or not core.requests:
            return False
        drain.cut(now=now.monotonic, active=core.sessions.active)
        return True

    def cut(self, now: Now, effects: list[Effect]) -> None:
        """End everything that is left."""
        core = self._core
        for request in sorted(core.requests.values(), key=lambda each: each.sequence):
            core.order_end(request, refusals.cut_by_drain(), now, effects)

    def finish(self, now: Now, effects: list[Effect]) -> None:
        """After every step: report when nothing is left, and give up on what does not acknowledge its end."""
        core = self._core
        drain = core.drain
        if drain is None or drain.reported:
            return
        if core.requests and drain.give_up_at is not None and now.monotonic >= drain.give_up_at:
            for request in list(core.requests.values()):
                core.end(request, refusals.unacknowledged(request), now, effects)
        if not core.requests:
            drain.reported = True
            if core.ledger.carryover is not None:
                core.ledger.records += core.ledger.carryover.final(now)
            effects.append(Drained(drain.report(now.monotonic)))
