"""The wire between clients, supervisor and workers: frames, msgpack, and the handshake. Sans I/O.

A frame is a four-byte big-endian length and that many bytes of msgpack, the framing of `multiprocess.connection`. The length is
checked against a limit before anything is allocated for it. No pickle: the supervisor never runs code that it received.

The handshake (client connects, server speaks first):

    S → C   Hello    protocol versions, server nonce
    C → S   Prove    version, label, holder, door, name, client nonce, HMAC-SHA256(key, "client" | both nonces | the others)
    S → C   Welcome  client id, HMAC-SHA256(key, "server" | both nonces | client id)      or   Refused  fault

Each side proves that it holds the key without sending it, bound to its role and to both nonces, so that neither a replay nor a
relayed challenge of the other role passes. (The stock handshake is HMAC-MD5 on 3.11, one-way per message and without version.)
"""

from __future__ import annotations

import hmac
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager.core.catalogue import refuse_client_name
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import PROTOCOL_VERSION, ClientEvent, ClientMessage, WorkerOrder, WorkerReport
from callpool.manager.errors import HandshakeFailed, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct("!i")
FRAME_LIMIT = 64 * 1024 * 1024
"""Bytes of one frame between authenticated peers: room for the largest answer (16 MiB) and a batch of payloads."""
HANDSHAKE_FRAME_LIMIT = 4096
"""Bytes of one frame before the peer has proved that it knows the key."""
HANDSHAKE_DEADLINE = 5.0
"""Seconds for the whole handshake."""
FRAME_DEADLINE = 30.0
"""Seconds for the rest of a frame whose first byte has come."""
KEY_BYTES = 32
NONCE_BYTES = 32
MAX_TEXT = 200
"""Characters of each text in a proof."""
BATCH_BYTES = 1024 * 1024
"""Bytes of messages after which a batch is closed and a new frame begun, far below `FRAME_LIMIT`."""

encoder = msgspec.msgpack.Encoder()


class Framer:
    """Cuts a byte stream into frames. Feed it what arrives; it yields complete frames and keeps the rest."""

    def __init__(self, limit: int = FRAME_LIMIT) -> None:
        self.limit = limit
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Whether part of a frame is waiting for the rest."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the frames that `data` completes. Raises ProtocolError for a length beyond the limit, before reading on."""
        if self._buffer:
            self._buffer += data
            source: bytes | bytearray = self._buffer
        else:
            source = data
        start, end = 0, len(source)
        try:
            while end - start >= HEADER.size:
                (length,) = HEADER.unpack_from(source, start)
                if not 0 <= length <= self.limit:
                    raise ProtocolError(
                        f"a frame of {length} bytes is over the limit of {self.limit}", limit=self.limit
                    )
                stop = start + HEADER.size + length
                if stop > end:
                    break
                frame = bytes(source[start + HEADER.size : stop])
                start = stop
                yield frame
        finally:
            if source is self._buffer:
                del self._buffer[:start]
            elif start < end:
                self._buffer += data[start:]


def frame(body: bytes) -> bytes:
    """One frame around `body`."""
    return HEADER.pack(len(body)) + body


def encode_frame(value: object) -> bytes:
    """One frame around the msgpack of `value`."""
    buffer = bytearray(HEADER.size)
    encoder.encode_into(value, buffer, HEADER.size)
    HEADER.pack_into(buffer, 0, len(buffer) - HEADER.size)
    return bytes(buffer)


def decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes, what: str) -> Any:
    """Decode one frame; anything that is not exactly the expected shape is a ProtocolError."""
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec raises ValueErrors, of text that is no UTF-8 a plain one
        raise ProtocolError(f"malformed {what}: {error}") from None


client_messages = msgspec.msgpack.Decoder(list[ClientMessage])
client_events = msgspec.msgpack.Decoder(list[ClientEvent])
worker_orders = msgspec.msgpack.Decoder(list[WorkerOrder])
worker_reports = msgspec.msgpack.Decoder(list[WorkerReport])


# The handshake.


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="callpool"):
    """The server's first words."""

    versions: list[int]
    nonce: bytes


class Prove(msgspec.Struct, frozen=True, array_like=True, tag="prove"):
    """The client's proof that it knows the key.

    Connections of one process that give the same `holder` hold sessions together. `door` is the kind of program. Clients that give
    the same `name` share what a client may use; empty, each is its own.
    """

    version: int
    label: str
    holder: str
    door: str
    name: str
    nonce: bytes
    mac: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The server's proof, and the name that it gives this connection."""

    client_id: str
    mac: bytes


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Why there will be no connection."""

    fault: Fault


_hello = msgspec.msgpack.Decoder(Hello)
_prove = msgspec.msgpack.Decoder(Prove)
_answer = msgspec.msgpack.Decoder(Welcome | Refused)


def _mac(key: bytes, role: bytes, *parts: bytes) -> bytes:
    lengths = b"".join(HEADER.pack(len(part)) for part in parts)
    return hmac.digest(key, role + lengths + b"".join(parts), "sha256")


class ServerHandshake:
    """The server's side of one handshake."""

    def __init__(self, key: bytes, nonce: bytes, client_id: str) -> None:
        self._key = key
        self._nonce = nonce
        self._client_id = client_id
        self.label = ""
        """What the client calls itself; for people only."""
        self.holder = ""
        self.door = ""
        self.name = ""

    def hello(self) -> bytes:
        """The first frame's body."""
        return encoder.encode(Hello([PROTOCOL_VERSION], self._nonce))

    def answer(self, body: bytes) -> tuple[bool, bytes]:
        """Whether the client's proof is good, and the body of the frame to answer with."""
        prove: Prove = decode(_prove, body, "handshake")
        if prove.version != PROTOCOL_VERSION:
            return False, _refuse(f"the supervisor speaks protocol {PROTOCOL_VERSION}, the client {prove.version}")
        texts = (prove.label, prove.holder, prove.door)
        if len(prove.nonce) != NONCE_BYTES or any(len(text) > MAX_TEXT for text in texts):
            return False, _refuse("malformed proof")
        encoded = (text.encode() for text in (*texts, prove.name))
        expected = _mac(self._key, b"client", self._nonce, prove.nonce, bytes([prove.version]), *encoded)
        if not hmac.compare_digest(expected, prove.mac):
            return False, _refuse("the key is wrong: the supervisor makes a new one at each start")
        # Only now: to whoever has no key nothing is said of its words. The frame's limit has bounded the name.
        if prove.name and (fault := refuse_client_name(prove.name)) is not None:
            return False, encoder.encode(Refused(msgspec.structs.replace(fault, code=HandshakeFailed.code)))
        self.label, self.holder, self.door = texts
        self.name = prove.name
        mac = _mac(self._key, b"server", self._nonce, prove.nonce, self._client_id.encode())
        return True, encoder.encode(Welcome(self._client_id, mac))


class ClientHandshake:
    """The client's side of one handshake."""

    def __init__(self, key: bytes, nonce: bytes, label: str, *, holder: str, door: str, name: str = "") -> None:
        self._key = key
        self._nonce = nonce
        self._texts = (label[:MAX_TEXT], holder, door, name)
        self._server_nonce = b""

    def prove(self, body: bytes) -> bytes:
        """The body of the proof, from the body of the server's hello."""
        hello: Hello = decode(_hello, body, "handshake")
        if PROTOCOL_VERSION not in hello.versions:
            raise HandshakeFailed(f"the supervisor speaks protocol {hello.versions}, this client {PROTOCOL_VERSION}")
        self._server_nonce = hello.nonce
        encoded = (text.encode() for text in self._texts)
        mac = _mac(self._key, b"client", hello.nonce, self._nonce, bytes([PROTOCOL_VERSION]), *encoded)
        return encoder.encode(Prove(PROTOCOL_VERSION, *self._texts, self._nonce, mac))

    def finish(self, body: bytes) -> str:
        """Check the server's answer; returns the client id. Raises HandshakeFailed."""
        answer: Welcome | Refused = decode(_answer, body, "handshake")
        if isinstance(answer, Refused):
            raise HandshakeFailed(answer.fault.message)
        expected = _mac(self._key, b"server", self._server_nonce, self._nonce, answer.client_id.encode())
        if not hmac.compare_digest(expected, answer.mac):
            raise HandshakeFailed("the server does not know the key: something else listens at this address")
        return answer.client_id


def _refuse(message: str) -> bytes:
    return encoder.encode(Refused(Fault(code=HandshakeFailed.code, message=message)))


def batches(messages: list[Any]) -> Iterator[bytes]:
    """Frames that carry these messages in order, as few as `BATCH_BYTES` allows. Small batches take the quick way."""
    body = encode_frame(messages)
    if len(body) <= BATCH_BYTES or len(messages) == 1:
        yield body
        return
    half = len(messages) // 2
    yield from batches(messages[:half])
    yield from batches(messages[half:])


# The Manager's own message shape, for lockstep calls: (ident, method, args, kwds) → (kind, value).

KIND_RETURN = "#RETURN"
KIND_ERROR = "#ERROR"

lockstep_calls = msgspec.msgpack.Decoder(tuple[str | None, str, list[Any], dict[str, Any]])
lockstep_answers = msgspec.msgpack.Decoder(tuple[str, Any])
