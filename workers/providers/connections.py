"""HTTP to one provider account: connections kept warm, answers read within bounds, and every break told with its phase.

Only this module, `pool` and `names` know aiohttp. Importing it takes a fifth of a second, so whoever may do without imports it late.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

import aiohttp

from callpool.manager.settings import KEEP_IDLE
from callpool.workers.providers.pool import Pool
from callpool.workers.providers.wording import describe

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver
    from yarl import URL

    from callpool.manager.core.pools import PoolCounts

log = logging.getLogger(__name__)

BIG_BODY = 1 << 20
"""Bytes from which aiohttp wants a body as a file, which it sends in pieces, yielding to other calls in between."""

WARM_TURNS = 3
"""Looks at the warm connections within the time that an unused one is kept: it is replaced in the last of them, before it lapses."""
WARM_PAUSE_LIMIT = 60.0
"""Seconds between two attempts to open connections ahead that fail."""


class ConnectionFailed(Exception):
    """No connection, or it broke: in `phase` "connect" (nothing was sent), "request" (no answer began) or "body"."""

    def __init__(self, phase: str, reason: str, *, retryable: bool = True) -> None:
        super().__init__(reason)
        self.phase = phase
        self.reason = reason
        self.retryable = retryable


class Connections:
    """One pool of connections, made on first use in the running loop. Not usable after `close`."""

    def __init__(
        self,
        headers: Mapping[str, str],
        limit: int,
        *,
        keep_alive: float = KEEP_IDLE,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """At most `limit` connections at once, each kept unused for `keep_alive` seconds; `resolver` looks up names."""
        self._headers = dict(headers)
        self._limit = limit
        self._keep_alive = keep_alive
        self._resolver = resolver
        self._places = asyncio.Semaphore(limit)
        self._waiting = 0
        self._pool: Pool | None = None
        self._session: aiohttp.ClientSession | None = None
        self._warming: asyncio.Task[None] | None = None

    async def take_place(self) -> None:
        """Wait until a connection for one exchange is free, or can be opened: here nothing has begun yet. Then `leave_place`."""
        if not self._places.locked():
            await self._places.acquire()
            return
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    def leave_place(self) -> None:
        """The exchange is over: the next may begin."""
        self._places.release()

    async def send(self, url: URL, body: bytes | None = None) -> Reply:
        """POST a body, or GET without one, and wait for the head of the answer. Raises `ConnectionFailed`; follows no redirect."""
        session = self._session or self._open()
        data = body if body is None or len(body) < BIG_BODY else io.BytesIO(body)
        method = "GET" if body is None else "POST"
        try:
            return Reply(await session.request(method, url, data=data, allow_redirects=False))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failure = _request_failed(error)
        raise failure  # outside of `except`: the library's exception holds the request's headers, and with them the key

    def counts(self) -> PoolCounts | None:
        """What the pool has done, and has; None before its first use."""
        return None if self._pool is None else self._pool.counts(self._waiting)

    def warm(self, url: URL, wanted: int) -> None:
        """Begin to keep so many connections open, used or not. Call it in the running loop, once."""
        self._warming = asyncio.get_running_loop().create_task(self._keep_warm(url, wanted))

    def stop_warming(self) -> None:
        """Open none ahead any more. Harmless where that has not begun."""
        if self._warming is not None:
            self._warming.cancel()

    async def close(self) -> None:
        """Close every connection."""
        self.stop_warming()
        if self._warming is not None:
            await asyncio.wait([self._warming])
        if self._session is not None:
            await self._session.close()
        if self._pool is not None:
            await self._pool.names.close()

    async def _keep_warm(self, url: URL, wanted: int) -> None:
        if self._session is None:
            self._open()
        turn = pause = self._keep_alive / WARM_TURNS
        told = False
        while self._pool is not None:
            failure = await self._pool.keep_warm(url, wanted, turn)
            if failure is not None and not told:
                told = True
                log.info("no connection to %s opens ahead of a call (said once): %s", url.host, describe(failure))
            pause = next_pause(pause, turn, failed=failure is not None)
            await asyncio.sleep(pause)

    def _open(self) -> aiohttp.ClientSession:
        self._pool = Pool(self._limit, self._keep_alive, self._resolver)
        self._session = aiohttp.ClientSession(
            connector=self._pool,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),  # calls share nothing but the connection
            trust_env=False,  # no proxy and no .netrc by accident: prompts and keys go where the settings say
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the caller has one for the whole call
        )
        return self._session


def next_pause(pause: float, turn: float, *, failed: bool) -> float:
    """Seconds to the next look at the warm connections: each failure doubles them."""
    return max(turn, min(WARM_PAUSE_LIMIT, 2 * pause)) if failed else turn


class Reply:
    """An answer whose head has come. Leave it by `async with`: a body not read to its end closes the connection."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.is_good = 200 <= response.status < 300
        self.headers: Mapping[str, str] = response.headers
        self.content_type = response.content_type
        connection = response.connection  # None: the body has ended, and the connection is back in the pool
        protocol = None if connection is None else connection.protocol
        self._closed = None if protocol is None else protocol.closed
        if self._closed is not None:
            self._closed.add_done_callback(self._on_closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After a body that ended, the connection is back in the pool already and this does nothing; before, closing is
        # what ends the call at the provider.
        if self._closed is not None:
            self._closed.remove_done_callback(self._on_closed)
        self._response.close()

    def _on_closed(self, _closed: asyncio.Future[None]) -> None:
        """The connection is gone. Where chunks cannot be parsed, aiohttp 3.14 closes it and tells nobody who reads the body."""
        body = self._response.content
        if not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("what follows the head is not HTTP as we accept it"))

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
