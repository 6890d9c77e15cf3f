"""What the demo checks before it says that all went well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callpool.tools.demo.stage import Seat, State

if TYPE_CHECKING:
    from collections.abc import Sequence


class DemoFailed(Exception):
    """The demo did not show what it promises; the message says what happened."""


def check_answers(seats: Sequence[Seat]) -> None:
    """Raise `DemoFailed` unless every client has a whole answer of its own."""
    for seat in seats:
        if seat.state is not State.DONE:
            raise DemoFailed(f"client {seat.number} got no answer: {seat.error}")
        if not seat.content.strip() or seat.tokens < 1:
            raise DemoFailed(f"client {seat.number} got an empty answer")
        if seat.content != seat.text:
            raise DemoFailed(f"client {seat.number} was streamed another text than its result has")
    if len({seat.session_id for seat in seats}) != len(seats):
        raise DemoFailed("two clients were given the same session")


def check_sessions(sessions: dict[str, Any], *, expected: int) -> None:
    """Raise `DemoFailed` unless the supervisor's own count agrees with what the clients saw."""
    counted = {name: sessions.get(name) for name in ("total_sessions_completed", "active_sessions")}
    if counted != {"total_sessions_completed": expected, "active_sessions": 0}:
        raise DemoFailed(f"the supervisor counts {counted} after {expected} answers")
