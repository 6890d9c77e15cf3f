"""Promised places: what is promised can always be kept, and nothing is promised twice."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.events import ClientGone, ClientJoined, CutAsked, DrainAsked, Submitted, ToClient, WorkerUp
from callpool.manager.core.machine import Core
from callpool.manager.core.messages import PLACE_BYTES, Grant, Rejected, Revoke, Submit
from callpool.manager.core.places import WINDOW
from callpool.manager.core.requests import Now

from .build import make_core

NOW = Now(1000.0, 2000.0)


class Room:
    """A core without workers, so that everything waits, and clients that count what they are promised."""

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self.core: Core = make_core(max_requests=max_requests, max_bytes=max_bytes, max_payload=10 * PLACE_BYTES)
        self.places: dict[str, int] = {}
        self.number = 0

    def apply(self, event: object) -> Sequence[object]:
        messages = [effect.message for effect in self.core.apply(event, NOW) if isinstance(effect, ToClient)]  # type: ignore[arg-type]
        client = getattr(event, "client", "")
        for message in messages:
            if isinstance(message, Grant):
                self.places[client] += message.places
        return messages

    def join(self, client: str) -> None:
        self.places[client] = 0
        self.apply(ClientJoined(client))

    def leave(self, client: str) -> None:
        del self.places[client]
        self.apply(ClientGone(client))

    def submit(self, client: str, *, ask: bool, size: int = 10) -> bool:
        """Whether it was taken. Without asking, a place is used if the client has one, as clients do."""
        self.number += 1
        if not ask and self.places.get(client):
            self.places[client] -= 1
        submit = Submit(f"r{self.number}", "a", "m", b"x" * size, metadata=b"", acknowledge=ask)
        messages = self.apply(Submitted(client, submit, f"session_{self.number}"))
        return not any(isinstance(message, Rejected) for message in messages)


def test_a_client_that_joins_is_promised_a_window_and_gets_more_as_it_uses_it() -> None:
    room = Room(max_requests=10_000, max_bytes=1 << 30)
    room.join("c1")
    assert room.places["c1"] == WINDOW
    for _ in range(3 * WINDOW):
        assert room.places["c1"] > 0
        assert room.submit("c1", ask=False)
    assert len(room.core.scheduler) == 3 * WINDOW


def test_promises_stop_at_a_quarter_of_the_queue_and_asking_goes_on_to_its_end() -> None:
    room = Room(max_requests=100, max_bytes=1 << 30)
    room.join("c1")
    room.join("c2")
    assert (room.places["c1"], room.places["c2"]) == (25, 0)
    taken = [room.submit("c2", ask=True) for _ in range(80)]
    assert taken == [True] * 75 + [False] * 5, "what is promised to c1 is not given to c2"
    assert all(room.submit("c1", ask=False) for _ in range(25))
    assert not room.submit("c1", ask=False), "without a place a submit is refused like any other"


def test_promises_are_bounded_in_bytes_too() -> None:
    room = Room(max_requests=10_000, max_bytes=10 * PLACE_BYTES)
    room.join("c1")
    assert room.places["c1"] == 2
    assert all(room.submit("c1", ask=False, size=PLACE_BYTES) for _ in range(2))
    assert not room.submit("c1", ask=True, size=8 * PLACE_BYTES + 1)
    assert room.submit("c1", ask=True, size=8 * PLACE_BYTES)


def test_a_place_does_not_hold_a_large_payload() -> None:
    room = Room(max_requests=4, max_bytes=8 * PLACE_BYTES)
    room.join("c1")
    assert room.places["c1"] == 1
    assert not room.submit("c1", ask=False, size=8 * PLACE_BYTES), (
        "it is no use of the place, and there is no room beside it"
    )


def test_a_client_that_leaves_gives_its_promises_back() -> None:
    room = Room(max_requests=100, max_bytes=1 << 30)
    room.join("c1")
    room.leave("c1")
    assert room.core.places.total == 0
    room.join("c2")
    assert room.places["c2"] == 25


@pytest.mark.parametrize("event", [DrainAsked(10.0), CutAsked()])
def test_a_drain_takes_all_promises_back(event: msgspec.Struct) -> None:
    room = Room(max_requests=100, max_bytes=1 << 30)
    room.core.apply(WorkerUp(1), NOW)
    room.join("c1")
    effects = room.core.apply(event, NOW)  # type: ignore[arg-type]
    assert ToClient("c1", Revoke()) in effects
    assert room.core.places.total == 0
    room.join("c2")
    assert room.places["c2"] == 0


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["join", "leave", "ask", "use"]), st.sampled_from(["c1", "c2", "c3"])), max_size=200
    ),
    max_requests=st.integers(1, 30),
)
def test_what_is_promised_is_always_kept(steps: list[tuple[str, str]], max_requests: int) -> None:
    room = Room(max_requests=max_requests, max_bytes=1 << 30)
    for step, client in steps:
        if step == "join" and client not in room.places:
            room.join(client)
        elif step == "leave" and client in room.places:
            room.leave(client)
        elif step == "ask":
            room.submit(client, ask=True)
        elif step == "use" and room.places.get(client):
            assert room.submit(client, ask=False), "a promised place was refused"
        assert room.core.places.total == sum(room.places.values())
        assert len(room.core.scheduler) + room.core.places.total <= max_requests
