from __future__ import annotations

import gc
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core import messages
from callpool.manager.core.faults import Fault
from callpool.manager.core.pools import PoolCounts

from .build import STEADY

FAULT = Fault(
    code="timeout", message="é😀 after 3 s", param="timeout", hint="wait", details={"seconds": 3.5, "n": 1, "x": None}
)

WIRE: dict[str, dict[int, list[msgspec.Struct]]] = {
    "ClientMessage": {
        1: [
            messages.Submit("r1", "kimi", "k3", b'{"messages":[]}'),
            messages.Submit("r1", "kimi", "k3", b"\0\xff", b'{"a":1}', 2.5, stream=True, acknowledge=False),
        ],
        2: [messages.Cancel("r1")],
        3: [messages.Ask(1, "status"), messages.Ask(2, "show", {"request_id": "r1", "deep": [1, {"a": None}]})],
        4: [messages.RunFunction("r1", "kimi", "k3", b"\0opaque", b'{"a":1}', 2.5)],
        5: [messages.Note("r1", "RECEIVED", 1.5), messages.Note("r1", "X", 1.5, "session_1", "kimi", "k3", b'{"a":1}')],
        6: [messages.Attach("r1")],
    },
    "ClientEvent": {
        1: [messages.Accepted("r1", 0)],
        2: [messages.Rejected("r1", FAULT)],
        3: [messages.Chunk("r1", b"{}")],
        4: [
            messages.Done("r1", "completed", "session_1", 1.5, b"{}"),
            messages.Done("r1", "timeout", None, 0.0, None, FAULT),
        ],
        5: [messages.Reply(1, {"state": "running"}), messages.Reply(2, None, FAULT)],
        6: [messages.Grant(100)],
        7: [messages.Revoke()],
    },
    "WorkerOrder": {
        1: [messages.Dispatch("r1", 1, "kimi", "k3", 30.0, stream=True, payload=b"{}")],
        2: [messages.CancelCall("r1", 1)],
        3: [
            messages.Endpoint("local", "http://127.0.0.1:1/v1", None),
            messages.Endpoint("local", "http://h", "secret"),
        ],
        4: [messages.Retire()],
    },
    "WorkerReport": {
        1: [messages.Ready(4711)],
        2: [messages.Started("r1", 1)],
        3: [messages.Piece("r1", 1, b"{}")],
        4: [messages.Finished("r1", 1, b"{}"), messages.Finished("r1", 2, None, FAULT)],
        5: [messages.Heartbeat(3, 0.25), messages.Heartbeat(3, 0.25, {"kimi": PoolCounts(7, 2, connect_seconds=0.5)})],
        6: [messages.Continues("r1", 3, b'{"messages":[]}')],
    },
}
"""Every union of the wire with every message of it, under the tag that peers of this protocol version use."""

CASES = [(union, tag, message) for union, tags in WIRE.items() for tag, all_of in tags.items() for message in all_of]
NAMES = [f"{type(message).__name__}" for _, _, message in CASES]
each_message = pytest.mark.parametrize(("union", "tag", "message"), CASES, ids=NAMES)


def decoder(union: str) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(list[getattr(messages, union)])  # type: ignore[misc]


def raw(message: msgspec.Struct) -> list[Any]:
    """A message as the array that travels."""
    array: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    return array


@pytest.mark.parametrize("union", WIRE)
def test_the_table_above_has_every_message(union: str) -> None:
    assert {type(message) for case, _, message in CASES if case == union} == set(get_args(getattr(messages, union)))


@each_message
def test_round_trip_as_a_list_of_the_union(union: str, tag: int, message: msgspec.Struct) -> None:
    frame = msgspec.msgpack.encode([message, message])
    assert decoder(union).decode(frame) == [message, message]
    assert raw(message)[0] == tag


@each_message
def test_a_message_is_frozen_and_not_walked_by_the_collector(union: str, tag: int, message: msgspec.Struct) -> None:
    assert not gc.is_tracked(message)
    for field in message.__struct_fields__:
        with pytest.raises(AttributeError, match="immutable"):
            setattr(message, field, None)


@pytest.mark.parametrize("union", WIRE)
@pytest.mark.parametrize("tag", [0, 99, -1, "Submit", None, True, 1.0])
def test_an_unknown_tag_is_refused(union: str, tag: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        decoder(union).decode(msgspec.msgpack.encode([[tag, "r1", 1]]))


@each_message
def test_a_missing_field_is_refused(union: str, tag: int, message: msgspec.Struct) -> None:
    required = len(message.__struct_fields__) - len(message.__struct_defaults__)
    for length in range(required + 1):  # the tag counts as one
        with pytest.raises(msgspec.ValidationError, match="Expected `array` of at least length"):
            decoder(union).decode(msgspec.msgpack.encode([raw(message)[:length]]))


@each_message
def test_a_newer_peer_may_add_a_field_at_the_end(union: str, tag: int, message: msgspec.Struct) -> None:
    frame = msgspec.msgpack.encode([[*raw(message), "new in a later version", {"a": [1]}]])
    assert decoder(union).decode(frame) == [message]


@each_message
def test_a_field_of_another_type_is_refused(union: str, tag: int, message: msgspec.Struct) -> None:
    hints = type(message).__annotations__
    for index, name in enumerate(message.__struct_fields__, start=1):
        if "Any" in hints[name] and "dict" not in hints[name]:
            continue  # a verb's answer is anything
        broken = raw(message)
        broken[index] = [["no field is a list of lists"]]
        with pytest.raises(msgspec.ValidationError, match="Expected"):
            decoder(union).decode(msgspec.msgpack.encode([broken]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("request_id", 5), ("request_id", None), ("payload", "text"), ("timeout", "30"), ("timeout", True), ("stream", 1)],
)
def test_nothing_is_coerced(field: str, value: object) -> None:
    array = raw(messages.Submit("r1", "kimi", "k3", b"{}"))
    array[1 + messages.Submit.__struct_fields__.index(field)] = value
    with pytest.raises(msgspec.ValidationError):
        decoder("ClientMessage").decode(msgspec.msgpack.encode([array]))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x91\x92\x02", id="cut"),
        pytest.param(b"\x91\x92\x02\xa1a\x00", id="trailing"),
        pytest.param(b"\x92\x02\xa1a", id="no-list"),
        pytest.param(b"\x81\xa1a\x01", id="map"),
        pytest.param(b"\x91\x92\x02\xa1\xff", id="not-utf8"),
        pytest.param(b"\x91\x92\x02\xa3\xed\xa0\x80", id="surrogate"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="four-billion-messages"),
        pytest.param(b"\x91\x92\x02\xdb\xff\xff\xff\xff", id="four-billion-bytes"),
        pytest.param(b"\x91\x94\x03\x01\xa1v" + b"\x81\xa1a" * 100_000, id="deep"),
    ],
)
def test_hostile_frames_are_refused_as_a_value_error_or_too_deep(frame: bytes) -> None:
    """Whoever reads a frame catches these two: msgspec's errors are ValueErrors, and so is bad UTF-8 (not msgspec's own)."""
    with pytest.raises((ValueError, RecursionError)):
        decoder("ClientMessage").decode(frame)


@STEADY
@given(st.binary(max_size=60), st.sampled_from(sorted(WIRE)))
def test_random_bytes_are_a_message_or_a_value_error(frame: bytes, union: str) -> None:
    try:
        decoded = decoder(union).decode(frame)
    except ValueError:
        return
    assert all(isinstance(message, get_args(getattr(messages, union))) for message in decoded)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@STEADY
@given(text, text, text, st.binary(max_size=50), st.binary(max_size=50), st.none() | st.floats(), st.booleans())
def test_any_submit_survives(
    request_id: str,
    provider: str,
    model: str,
    payload: bytes,
    metadata: bytes,
    timeout: float | None,
    stream: bool,  # noqa: FBT001
) -> None:
    submit = messages.Submit(request_id, provider, model, payload, metadata, timeout, stream)
    [back] = decoder("ClientMessage").decode(msgspec.msgpack.encode([submit]))
    assert back == submit or timeout != timeout  # noqa: PLR0124 — NaN travels, and is refused by the catalogue
    assert repr(back) == repr(submit)
