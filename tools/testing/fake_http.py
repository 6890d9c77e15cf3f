"""Just enough HTTP/1.1 for a fake server: requests in, heads and chunks out. No I/O here.

Written out rather than taken from a library because the fake must be able to break every rule of it on the way out,
and must not share the parser of the client it is a witness of on the way in.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

import msgspec

MAX_HEAD = 65_536
"""Bytes of request line and headers: what common servers allow at most."""
MAX_BODY = 64 * 1_048_576
"""Bytes of a request's body: larger than any prompt a test sends."""

Headers = Iterable[tuple[str, str]]

_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Request(msgspec.Struct, frozen=True):
    """One whole request. Header names are in lower case; of a repeated header the last one counts."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    size: int
    """Bytes on the wire: request line, headers and body."""

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants the connection to stay."""
        return self.headers.get("connection", "").lower() != "close"

    @property
    def key(self) -> str:
        """The bearer key; empty without one."""
        scheme, _, key = self.headers.get("authorization", "").partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""


class Refusal(msgspec.Struct, frozen=True):
    """What a client sent is not a request that this server takes: answer `status` and close."""

    status: int
    message: str


class RequestParser:
    """Bytes in, requests out; after a Refusal it swallows everything, since nothing after it can be trusted."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str], int] | None = None
        self._head_size = 0
        self._refused = False

    def feed(self, data: bytes) -> list[Request | Refusal]:
        """Take bytes as they came; returns the requests (or the one refusal) that are complete with them."""
        found: list[Request | Refusal] = []
        if self._refused:
            return found
        self._buffer += data
        while (item := self._next()) is not None:
            found.append(item)
            if isinstance(item, Refusal):
                self._refused = True
                self._buffer.clear()
                break
        return found

    def _next(self) -> Request | Refusal | None:
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD)
            if end < 0:
                too_long = len(self._buffer) >= MAX_HEAD
                return Refusal(431, f"request head of more than {MAX_HEAD} bytes") if too_long else None
            head = _parse_head(bytes(self._buffer[:end]).decode("latin-1"))
            del self._buffer[: end + 4]
            if isinstance(head, Refusal):
                return head
            self._head = head
            self._head_size = end + 4
        method, path, headers, length = self._head
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._head = None
        return Request(method, path, headers, body, self._head_size + length)


def _parse_head(head: str) -> tuple[str, str, dict[str, str], int] | Refusal:
    request_line, *lines = head.split("\r\n")
    words = request_line.split(" ")
    if len(words) != 3 or words[2] != "HTTP/1.1":
        return Refusal(400, f"not an HTTP/1.1 request line: {request_line[:80]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return Refusal(400, f"not a header: {line[:80]!r}")
        name, value = name.lower(), value.strip()
        if name in ("content-length", "host") and name in headers:
            return Refusal(400, f"two {name} headers")
        headers[name] = value
    if "transfer-encoding" in headers:
        return Refusal(411, "a request body needs a Content-Length here")
    length = _content_length(headers)
    return length if isinstance(length, Refusal) else (words[0], words[1], headers, length)


def _content_length(headers: dict[str, str]) -> int | Refusal:
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return Refusal(400, f"not a Content-Length: {length[:80]!r}")
    if len(length) > 12 or int(length) > MAX_BODY:
        return Refusal(413, f"request body of more than {MAX_BODY} bytes")
    return int(length)


def response_head(status: int, headers: Headers) -> bytes:
    """Status line and headers, with the empty line that ends them."""
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; `data` must not be empty, because an empty chunk is the end."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
