"""HTTP to one provider account: connections kept warm, answers read within bounds, and every break told with its phase.

The only module that knows aiohttp. Importing it takes a fifth of a second, so whoever may do without imports it late.
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from callpool.workers.providers.wording import describe

KEEP_IDLE = 15.0
"""Seconds that an unused connection is kept. Balancers close theirs after 60 s and more; a request sent into one that
is just being closed fails, so we let go well before."""

BIG_BODY = 1 << 20
"""Bytes from which aiohttp wants a body as a file, which it sends in pieces, yielding to other calls in between."""


class ConnectionFailed(Exception):
    """No connection, or it broke: in `phase` "connect" (nothing was sent), "request" (no answer began) or "body"."""

    def __init__(self, phase: str, reason: str, *, retryable: bool = True) -> None:
        super().__init__(reason)
        self.phase = phase
        self.reason = reason
        self.retryable = retryable


class Connections:
    """One pool of connections, made on first use in the running loop. Not usable after `close`."""

    def __init__(self, headers: Mapping[str, str], limit: int) -> None:
        self._headers = dict(headers)
        self._limit = limit
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: URL, body: bytes) -> Reply:
        """Send one request and wait for the head of its answer. Raises `ConnectionFailed`; no redirect is followed."""
        session = self._session or self._open()
        data = body if len(body) < BIG_BODY else io.BytesIO(body)
        try:
            return Reply(await session.post(url, data=data, allow_redirects=False))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = _request_failed(error)
        raise failure  # outside of `except`: the library's exception holds the request's headers, and with them the key

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._limit, keepalive_timeout=KEEP_IDLE, socket_factory=make_socket),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),  # calls share nothing but the connection
            trust_env=False,  # no proxy and no .netrc by accident: prompts and keys go where the settings say
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the caller has one for the whole call
        )
        return self._session


class Reply:
    """An answer whose head has come. Leave it by `async with`: a body not read to its end closes the connection."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.content_type = response.content_type

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After a body that ended, the connection is back in the pool already and this does nothing; before, closing is
        # what ends the call at the provider.
        self._response.close()

    async def read(self, until: float | None = None) -> bytes:
        """The next bytes of the body, b"" at its end. Raises `ConnectionFailed`, also at loop time `until`."""
        try:
            if until is None:
                return await self._response.content.readany()
            async with asyncio.timeout_at(until):
                return await self._response.content.readany()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = ConnectionFailed("body", describe(error))
        raise failure

    async def read_all(self, limit: int) -> bytes | None:
        """The whole body, or None as soon as it is longer than `limit` bytes (counted after decompression)."""
        pieces: list[bytes] = []
        size = 0
        while piece := await self.read():
            size += len(piece)
            if size > limit:
                return None
            pieces.append(piece)
        return b"".join(pieces)

    async def read_what_comes(self, limit: int, until: float) -> bytes:
        """What of the body comes until then, by the loop's clock. Never fails: it is for words that explain what the status has said."""
        body = b""
        try:
            while len(body) < limit and (piece := await self.read(until)):
                body += piece
        except ConnectionFailed:
            pass
        return body[:limit]


def make_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that notices a dead peer: a long answer may be minutes of silence, in which routers forget connections.

    The probes keep such a connection alive, or end it; the user time-out ends one whose peer takes no more bytes, which
    otherwise would outlive even its cancelled call while bytes wait to be sent.
    """
    family, kind, protocol = address[:3]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            if hasattr(socket, option):  # names differ between systems
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    except BaseException:
        sock.close()
        raise
    return sock


KEEP_ALIVE: Mapping[str, int] = {
    "TCP_KEEPIDLE": 30,  # seconds of silence before the first probe; routers forget after 60 s at the earliest
    "TCP_KEEPINTVL": 15,  # seconds between probes
    "TCP_KEEPCNT": 4,  # unanswered probes that end the connection
    "TCP_USER_TIMEOUT": 90_000,  # milliseconds that sent bytes may wait for their acknowledgement
}


def _request_failed(error: Exception) -> ConnectionFailed:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientSSLError | aiohttp.InvalidURL):
        # A certificate that does not fit is not cured by trying again; a refused or unresolved address may be.
        hopeless = isinstance(error, aiohttp.ClientSSLError | aiohttp.InvalidURL)
        return ConnectionFailed("connect", describe(error), retryable=not hopeless)
    if isinstance(error, aiohttp.ClientResponseError):
        # A head that is no HTTP, or one beyond the parser's limits (8 KB a line). After a colon the parser quotes what it
        # read, which may be somebody's answer: that has no place in an error.
        kind = error.message.partition(":")[0]
        return ConnectionFailed("request", f"what came back is not HTTP as we accept it ({kind})")
    return ConnectionFailed("request", describe(error))
