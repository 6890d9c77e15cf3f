"""The pool of connections to one provider account, in one worker: which one a request gets, and what becomes of it after.

    request ──connect──► an idle one, if it is fresh and clean ──► request, answer ──┬─ ended: idle again
               │                                                                     └─ not ended: closed, or cut
               └───────► else a new one: name, TCP, TLS

aiohttp's connector keeps and opens connections; added here is what it lacks: connections that are opened ahead, counts, an address
that failed is looked up again, bytes that came unasked never reach the next request, and what cannot be sent is thrown away.

Checked in aiohttp 3.14: a connection goes back only from the end of an answer whose request was sent whole. A cancel, an
error, or an answer before the end of the upload closes it (`ClientSession._request`, `ClientRequest.write_bytes`,
`ResponseHandler.should_close`).
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import socket
import struct
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from callpool.manager.core.pools import PoolCounts
from callpool.workers.providers.names import NameCache

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace
    from yarl import URL

WARM_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10.0)
"""Seconds for a connection that nobody waits for yet."""


class Pool(aiohttp.TCPConnector):
    """At most `connections` at once. Owner: the worker's loop.

    TLS is by aiohttp's one context for all verified connections, built when it is imported; asyncio resumes no TLS sessions.
    """

    def __init__(self, connections: int, keep_alive: float, resolver: AbstractResolver | None = None) -> None:
        """`keep_alive`: seconds that an unused connection is kept."""
        self.names = NameCache(resolver or aiohttp.DefaultResolver())
        super().__init__(
            limit=connections,
            keepalive_timeout=keep_alive,
            socket_factory=make_socket,
            resolver=self.names,
            use_dns_cache=False,  # that is what `names` is
        )
        self._patience = keep_alive
        self._last_used: dict[ResponseHandler, float] = {}
        """Each connection that is open → when a request last gave it back, or when it was opened; and some that were closed since."""
        self._in_use = 0
        self._requests = self._opened = self._reused = self._failed = self._warmed = 0
        self._seconds = self._longest = 0.0

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own signature
    ) -> Connection:
        """A connection for this request: what aiohttp calls. Raises `aiohttp.ClientError` and OSError."""
        self._requests += 1
        connection, is_new = await self._take(req, traces, timeout)
        self._reused += not is_new
        connection.add_callback(functools.partial(self._leave, connection, is_use=True))
        return connection

    async def keep_warm(self, url: URL, wanted: int, turn: float) -> Exception | None:
        """Have so many connections, none of which lapses unused within `turn` seconds. Why one could not be opened, or None."""
        request = aiohttp.ClientRequest("POST", url, loop=self._loop)
        begun = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            visits = [
                group.create_task(self._visit(request, turn, begun)) for _ in range(wanted - self._in_use)
            ]  # those in use come back by themselves
            await asyncio.sleep(0)
            begun.set()
        return next((failure for visit in visits if (failure := visit.result()) is not None), None)

    async def _visit(self, request: aiohttp.ClientRequest, turn: float, begun: asyncio.Event) -> Exception | None:
        """Look at an idle connection, or open one where none is left."""
        try:
            connection, is_new = await self._take(request, [], WARM_TIMEOUT, turn)
        except (aiohttp.ClientError, OSError) as error:
            return error
        connection.add_callback(functools.partial(self._leave, connection, is_use=False))
        try:
            self._warmed += is_new
            if not is_new:
                await begun.wait()  # the next visit would only take this one again
        finally:
            connection.release()
        return None

    def counts(self, waiting: int) -> PoolCounts:
        """What the pool has done, and has now."""
        self._forget_closed()
        is_open = len(self._last_used)
        return PoolCounts(
            requests=self._requests,
            opened=self._opened,
            reused=self._reused,
            failed=self._failed,
            warmed=self._warmed,
            dns_lookups=self.names.lookups,
            dns_cache_hits=self.names.hits,
            connect_seconds=self._seconds,
            connect_seconds_max=self._longest,
            open=is_open,
            idle=max(0, is_open - self._in_use),
            waiting=waiting,
        )

    async def _take(
        self, request: aiohttp.ClientRequest, traces: list[Trace], limits: aiohttp.ClientTimeout, turn: float = 0.0
    ) -> tuple[Connection, bool]:
        """A connection that is not about to lapse within `turn` seconds, and whether it is new."""
        while True:  # each turn but the last closes an idle one
            began = self._loop.time()
            connection = await self._connect(request, traces, limits)
            protocol = cast("ResponseHandler", connection.protocol)
            now, used = self._loop.time(), self._last_used.get(protocol)
            if used is None:
                self._opened += 1
                self._seconds += now - began
                self._longest = max(self._longest, now - began)
                self._last_used[protocol] = now
                if len(self._last_used) > 2 * self.limit:
                    self._forget_closed()
                if protocol.closed is not None:
                    protocol.closed.add_done_callback(_heard)
            elif now + turn - used >= self._patience or protocol.should_close:
                # What came while nobody had asked (a server's 408 before it hangs up, the rest of an answer that was longer
                # than it said) lies in the connection, and would be read as the answer to the next request.
                connection.close()
                continue
            self._in_use += 1
            return connection, used is None

    async def _connect(
        self, request: aiohttp.ClientRequest, traces: list[Trace], limits: aiohttp.ClientTimeout
    ) -> Connection:
        """Once more with a fresh lookup where an address that was remembered led nowhere: nothing has been sent yet."""
        known = self.names.known(request.host, request.port)
        try:
            return await super().connect(request, traces, limits)
        except aiohttp.ClientConnectorError:
            self._failed += 1
            if known is None:
                raise
        except (aiohttp.ClientError, OSError):
            self._failed += 1
            raise
        self.names.forget(request.host, request.port, known)
        try:
            return await super().connect(request, traces, limits)
        except (aiohttp.ClientError, OSError):
            self._failed += 1
            raise

    def _leave(self, connection: Connection, *, is_use: bool) -> None:
        """The connection goes back, or is about to be closed. A look at an idle one is no use of it.

        Closing politely would wait: for the peer to read what it never will, and with TLS for its goodbye, half a minute long.
        """
        self._in_use -= 1
        transport, protocol = connection.transport, connection.protocol
        if transport is None or protocol is None or transport.is_closing():
            return
        if is_use:
            self._last_used[protocol] = self._loop.time()
        task = asyncio.current_task()
        is_cancelled = task is not None and task.cancelling() > 0
        if transport.get_write_buffer_size() > 0 or (is_cancelled and has_unsent(transport)):
            reset(transport)
        elif is_cancelled:
            transport.abort()

    def _forget_closed(self) -> None:
        self._last_used = {protocol: used for protocol, used in self._last_used.items() if protocol.is_connected()}


def _heard(closed: asyncio.Future[None]) -> None:
    """Take note of how a connection ended: asyncio would complain of an error that nobody asked for."""
    if not closed.cancelled():
        closed.exception()


UNSENT = 0x894B if sys.platform == "linux" else None
"""SIOCOUTQNSD: asks how many bytes of a socket the kernel has not sent, because the peer has no room for them. Linux alone tells."""


def has_unsent(transport: asyncio.Transport) -> bool:
    """Whether bytes of the request are still in the kernel, as far as the system tells."""
    if UNSENT is None:
        return False
    left = fcntl.ioctl(transport.get_extra_info("socket").fileno(), UNSENT, bytes(4))
    return int.from_bytes(left, sys.byteorder) > 0


def reset(transport: asyncio.Transport) -> None:
    """Close at once, and have the kernel throw away what is unsent.

    It would keep the socket
    for as long as the peer may still read, and the peer would learn of the end only after it had read everything.
    """
    linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()


def make_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket that notices a dead peer: a long answer may be minutes of silence, in which routers forget connections.

    The probes keep such a connection alive, or end it; the user time-out ends one whose peer takes no more bytes, long before
    the deadline of a long call does.
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
