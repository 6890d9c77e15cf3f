"""Frames and the handshake, without I/O."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager import wire
from callpool.manager.core.messages import PROTOCOL_VERSION, Cancel, Submit
from callpool.manager.errors import HandshakeFailed, ProtocolError

KEY = b"k" * wire.KEY_BYTES


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, repeated."""
    pieces: list[bytes] = []
    for size in itertools.cycle(sizes):
        if not data:
            return pieces
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@given(bodies=st.lists(st.binary(max_size=300), max_size=8), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_any_cut_of_the_stream_gives_the_same_frames(bodies: list[bytes], sizes: list[int]) -> None:
    framer = wire.Framer()
    stream = b"".join(wire.frame(body) for body in bodies)
    got = [body for piece in _cut(stream, sizes) for body in framer.feed(piece)]
    assert got == bodies
    assert not framer.partial


@given(body=st.binary(min_size=1, max_size=100), missing=st.integers(1, 100))
def test_half_a_frame_is_kept_and_is_no_frame(body: bytes, missing: int) -> None:
    framer = wire.Framer()
    stream = wire.frame(body)
    cut = max(1, len(stream) - missing)
    assert list(framer.feed(stream[:cut])) == []
    assert framer.partial
    assert list(framer.feed(stream[cut:])) == [body]


@pytest.mark.parametrize("length", [101, 2**31 - 1, -1, -(2**31)])
def test_a_length_beyond_the_limit_is_refused_from_its_header_alone(length: int) -> None:
    with pytest.raises(ProtocolError, match="limit of 100"):
        list(wire.Framer(limit=100).feed(wire.HEADER.pack(length)))


def test_frames_before_a_bad_one_are_still_delivered() -> None:
    framer = wire.Framer(limit=100)
    frames = framer.feed(wire.frame(b"good") + wire.HEADER.pack(101))
    assert next(frames) == b"good"
    with pytest.raises(ProtocolError):
        next(frames)


@given(sizes=st.lists(st.integers(0, 400_000), max_size=20))
def test_batches_carry_every_message_once_in_order_and_stay_small(sizes: list[int]) -> None:
    messages = [Submit(f"r{number}", "p", "m", b"x" * size) for number, size in enumerate(sizes)]
    framer = wire.Framer()
    frames = list(wire.batches(messages)) if messages else []
    bodies = [body for frame in frames for body in framer.feed(frame)]
    assert [message for body in bodies for message in wire.client_messages.decode(body)] == messages
    largest = max(sizes, default=0)
    assert all(len(body) <= max(wire.BATCH_BYTES, largest + 200) for body in bodies)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80",
        msgspec.msgpack.encode([[99, "unknown tag"]]),
        msgspec.msgpack.encode([[2]]),
        msgspec.msgpack.encode([[2, 5]]),
        msgspec.msgpack.encode(Cancel("alone, not in a list")),
        b"\x91" * 100_000,
    ],
)
def test_what_is_not_a_list_of_messages_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed message"):
        wire.decode(wire.client_messages, body, "message")


def _client(key: bytes = KEY, label: str = "test:1") -> wire.ClientHandshake:
    return wire.ClientHandshake(key, b"c" * wire.NONCE_BYTES, label, holder="h1", door="python")


def _shake(server_key: bytes, client_key: bytes, label: str = "test:1") -> tuple[bool, str]:
    server = wire.ServerHandshake(server_key, b"s" * wire.NONCE_BYTES, "client_7")
    client = _client(client_key, label)
    good, answer = server.answer(client.prove(server.hello()))
    return good, client.finish(answer)


def test_both_sides_with_the_key_agree() -> None:
    assert _shake(KEY, KEY) == (True, "client_7")
    assert _shake(KEY, KEY, "ü" * 300) == (True, "client_7")


def test_a_client_without_the_key_is_refused() -> None:
    with pytest.raises(HandshakeFailed, match="key is wrong"):
        _shake(KEY, b"x" * wire.KEY_BYTES)


def test_a_server_without_the_key_is_found_out() -> None:
    client = _client()
    impostor = wire.ServerHandshake(b"x" * wire.KEY_BYTES, b"s" * wire.NONCE_BYTES, "client_7")
    client.prove(impostor.hello())
    welcome = wire.encoder.encode(wire.Welcome("client_7", b"\0" * 32))
    with pytest.raises(HandshakeFailed, match="does not know the key"):
        client.finish(welcome)


def test_the_clients_own_proof_does_not_prove_the_server() -> None:
    """A reflected mac is one of the other role."""
    client = _client()
    server = wire.ServerHandshake(KEY, b"s" * wire.NONCE_BYTES, "client_7")
    proof = msgspec.msgpack.decode(client.prove(server.hello()))
    with pytest.raises(HandshakeFailed):
        client.finish(wire.encoder.encode(wire.Welcome("client_7", proof[-1])))


def test_another_version_is_named() -> None:
    client = _client()
    with pytest.raises(HandshakeFailed, match="speaks protocol"):
        client.prove(wire.encoder.encode(wire.Hello([PROTOCOL_VERSION + 1], b"s" * wire.NONCE_BYTES)))


@pytest.mark.parametrize("index", range(7))
def test_every_part_of_the_proof_is_under_the_mac(index: int) -> None:
    server = wire.ServerHandshake(KEY, b"s" * wire.NONCE_BYTES, "client_7")
    client = _client()
    parts = msgspec.msgpack.decode(client.prove(server.hello()))[1:]
    parts[index] = [PROTOCOL_VERSION + 1, "test:2", "h2", "gateway", "other", b"d" * wire.NONCE_BYTES, b"\0" * 32][
        index
    ]
    good, answer = server.answer(msgspec.msgpack.encode(["prove", *parts]))
    assert not good
    with pytest.raises(HandshakeFailed):
        client.finish(answer)


def _named(name: str) -> tuple[wire.ServerHandshake, bool, wire.ClientHandshake, bytes]:
    server = wire.ServerHandshake(KEY, b"s" * wire.NONCE_BYTES, "client_7")
    client = wire.ClientHandshake(KEY, b"c" * wire.NONCE_BYTES, "test:1", holder="h1", door="python", name=name)
    good, answer = server.answer(client.prove(server.hello()))
    return server, good, client, answer


@pytest.mark.parametrize("name", ["", "a", "nightly-report_2.v1", "x" * 64])
def test_a_clients_name_arrives(name: str) -> None:
    server, good, client, answer = _named(name)
    assert good
    assert client.finish(answer) == "client_7"
    assert server.name == name


@pytest.mark.parametrize("name", ["x" * 65, "x" * 2000, "a b", "a/b", "ü", "a\n", "\x1b[31m", "٣"], ids=ascii)
def test_a_name_that_is_none_is_refused_with_the_reason(name: str) -> None:
    server, good, client, answer = _named(name)
    assert not good
    with pytest.raises(HandshakeFailed, match="name must be 1 to 64 of A-Z a-z 0-9") as caught:
        client.finish(answer)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200
    assert server.name == ""


def test_to_whoever_has_no_key_nothing_is_said_of_the_name() -> None:
    server = wire.ServerHandshake(KEY, b"s" * wire.NONCE_BYTES, "client_7")
    client = wire.ClientHandshake(b"x" * 32, b"c" * wire.NONCE_BYTES, "test:1", holder="h1", door="python", name="a b")
    good, answer = server.answer(client.prove(server.hello()))
    assert not good
    with pytest.raises(HandshakeFailed, match="key is wrong"):
        client.finish(answer)
