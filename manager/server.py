"""The hardened Manager server: the Manager's protocol on the supervisor's event loop.

    accept ─► same user? ─► room? ─► handshake ─► lockstep calls  (what a stock BaseManager proxy speaks)
      │          │no         │no      │5 s │no        └─ open_channel ─► batches of messages, both ways, by id
      └ EMFILE:  close       close    close           either way: frames within limit and deadline, or close
        back off

A connection is a client: when it ends, or the process at its other end does, the service hears `client_gone`. What a process
holds outlives its connections by a moment (`holders`), and then the service hears `holder_gone`. Owner of
everything here: the event loop's thread.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Protocol

from callpool.manager import peers
from callpool.manager.connection import Connection
from callpool.manager.holders import Holders

if TYPE_CHECKING:
    from pathlib import Path

    from callpool.manager.core.messages import ClientEvent, ClientMessage
    from callpool.manager.holders import Caller

log = logging.getLogger(__name__)

BACKLOG = 1024
ACCEPTS_PER_TURN = 64
ACCEPT_PAUSE = 0.1
"""Seconds without accepting after the process ran out of descriptors; the listener would spin otherwise."""
SWEEP_INTERVAL = 1.0


class ServiceVerbs(Protocol):
    """What the server needs of the service."""

    def handle_client(self, caller: Caller, messages: list[ClientMessage]) -> None:
        """Apply a client's messages."""

    def client_joined(self, client: str) -> None:
        """A client has opened its channel, and knows it."""

    def client_gone(self, client: str) -> None:
        """A client's connection or process ended."""

    exposed: tuple[str, ...]
    """Names of the verbs."""

    def holds(self, holder: str) -> bool:
        """Whether this process holds any session."""

    def holder_gone(self, holder: str) -> None:
        """A process that may hold sessions ended, or let go of its connections for good."""

    def call_verb(self, caller: Caller, verb: str, arguments: dict[str, Any]) -> Any:
        """Answer a verb: with a value, or with a future of one. Raises CallpoolError."""


class ManagerServer:
    """Listens, admits, and carries frames. Knows nothing of requests."""

    def __init__(self, service: ServiceVerbs, *, key: bytes, max_connections: int) -> None:
        self.service = service
        self.key = key
        self.clients: dict[str, Connection] = {}
        """client id → connection that has proved itself."""
        self.holders = Holders(service.holder_gone, holds=service.holds)
        self.refused_connections = 0
        self.open_connections: set[Connection] = set()
        """Every open connection, those that still shake hands included."""
        self._max_connections = max_connections
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._loop = asyncio.get_running_loop()
        self._serial = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._admitting: set[asyncio.Task[Any]] = set()

    def listen(self, path: Path) -> None:
        """Put the socket at `path`, whose directory is private and locked by us, so that an old one there is stale."""
        temporary = path.with_name(path.name + "~")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(str(temporary))
            temporary.chmod(0o600)
            listener.listen(BACKLOG)
            temporary.rename(path)  # clients see a socket that listens, or none
        except BaseException:
            listener.close()
            raise
        self._listener, self._path = listener, path
        self._loop.add_reader(listener.fileno(), self._accept)
        self._sweeper = self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    def stop_listening(self) -> None:
        """Accept nobody any more and take the socket away."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def close(self) -> None:
        """Stop listening, flush what is owed to clients, end every connection."""
        self.stop_listening()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.holders.close()
        for connection in list(self.open_connections):
            connection.close()

    def send(self, client: str, event: ClientEvent) -> None:
        """Send an event to a client's channel at the end of this turn of the loop; dropped when the client is gone."""
        connection = self.clients.get(client)
        if connection is not None:
            connection.send(event)

    def flush(self, client: str) -> None:
        """Send a client what this turn of the loop has brought so far."""
        connection = self.clients.get(client)
        if connection is not None:
            connection.flush()

    def _accept(self) -> None:
        listener = self._listener
        for _ in range(ACCEPTS_PER_TURN):
            if listener is None:
                return
            try:
                accepted, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    raise
                log.warning("cannot accept clients: %s; pausing for %s s", error.strerror, ACCEPT_PAUSE)
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(ACCEPT_PAUSE, self._resume_accepting)
                return
            self._admit(accepted)

    def _resume_accepting(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _admit(self, accepted: socket.socket) -> None:
        """Decide before a byte is read: another user, or one too many, is closed at once."""
        credentials = peers.credentials(accepted)
        if credentials.uid != os.geteuid():
            log.warning("refused a connection of user id %s (pid %s)", credentials.uid, credentials.pid)
            self.refused_connections += 1
            accepted.close()
            return
        if len(self.open_connections) >= self._max_connections:
            log.warning("refused a connection of pid %s: %s are open", credentials.pid, len(self.open_connections))
            self.refused_connections += 1
            accepted.close()
            return
        accepted.setblocking(False)
        self._serial += 1
        connection = Connection(self, f"client_{self._serial}", credentials.pid)
        self.open_connections.add(connection)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, accepted))
        self._admitting.add(task)
        task.add_done_callback(lambda done: self._admitted(done, connection, accepted))

    def _admitted(self, task: asyncio.Task[Any], connection: Connection, accepted: socket.socket) -> None:
        self._admitting.discard(task)
        if task.cancelled() or task.exception() is not None:  # it broke before it had a transport
            self.open_connections.discard(connection)
            accepted.close()

    def _sweep(self) -> None:
        """End connections that are past a deadline. Once a second, over the connections alone."""
        now = self._loop.time()
        for connection in [each for each in self.open_connections if each.overdue(now)]:
            connection.abort("it kept the supervisor waiting beyond the deadline")
        self._sweeper = self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    def welcome(self, connection: Connection) -> None:
        """A connection has proved that it knows the key: it is a client now."""
        self.clients[connection.client_id] = connection

    def closed(self, connection: Connection) -> None:
        """A connection has ended."""
        self.open_connections.discard(connection)
        if self.clients.pop(connection.client_id, None) is not None:
            self.service.client_gone(connection.client_id)
