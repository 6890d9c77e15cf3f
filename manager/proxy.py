"""The client's end of the Manager: a registered serializer without pickle, a BaseManager, and a proxy.

    from callpool.manager.proxy import ServiceManager
    manager = ServiceManager(address="/run/user/1000/callpool/callpool.sock")
    manager.connect()
    manager.service().status()

`listener_client` is the Manager's own extension point: a name and a pair (Listener, Client). The Client here checks who
serves the socket, shakes hands under a deadline, and speaks msgpack. There is no Listener: the server runs on the
supervisor's event loop (`callpool.manager.server`).
"""

from __future__ import annotations

import errno
import os
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from multiprocess.managers import BaseManager, BaseProxy, Token, listener_client

from callpool.manager import peers, wire
from callpool.manager.core.catalogue import refuse_client_name
from callpool.manager.core.faults import Fault
from callpool.manager.errors import CallpoolError, ConnectionLost, HandshakeFailed, NotRunning, from_fault
from callpool.manager.private import check_private_dir, read_private_file

SERIALIZER = "callpool"
SERVICE = "service"
KEY_FILE = "key"
CLIENT_VARIABLE = "CALLPOOL_CLIENT"
"""Of the environment: the name of clients that are given none."""
READ_BYTES = 64 * 1024


class WireConnection:
    """A connected, authenticated socket that looks like a `multiprocess` Connection: `send` and `recv` of calls."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.client_id = ""
        self._framer = wire.Framer()
        self._frames: list[bytes] = []

    def send(self, call: tuple[Any, ...]) -> None:
        """Send one call: (ident, method, args, kwds)."""
        try:
            self.socket.sendall(wire.encode_frame(call))
        except OSError as error:
            raise ConnectionLost(f"the connection to the supervisor broke: {error}") from None

    def recv(self) -> tuple[str, Any]:
        """The answer to the call: (kind, value); an error's value is the exception to raise."""
        kind, value = wire.decode(wire.lockstep_answers, self.recv_frame(), "answer")
        if kind == wire.KIND_ERROR:
            return kind, from_fault(msgspec.convert(value, Fault))
        return kind, value

    def recv_frame(self) -> bytes:
        """The next frame's body."""
        while not self._frames:
            try:
                data = self.socket.recv(READ_BYTES)
            except (TimeoutError, BlockingIOError):  # a deadline: of Python's, or of the socket's own
                raise
            except OSError as error:
                raise ConnectionLost(f"the connection to the supervisor broke: {error}") from None
            if not data:
                raise ConnectionLost("the supervisor closed the connection")
            self._frames += self._framer.feed(data)
        return self._frames.pop(0)

    def rest(self) -> tuple[wire.Framer, list[bytes]]:
        """What came with the last answer, for whoever reads on: the framer and the complete frames."""
        return self._framer, self._frames

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def __del__(self) -> None:
        """As a `multiprocess` Connection: the Manager and its proxies let connections go without closing them."""
        self.socket.close()


def new_holder() -> str:
    """A name under which connections of this process hold sessions together, and no others."""
    return os.urandom(16).hex()


_process_holder: list[tuple[int, str]] = []
"""(process id, name) of what plain proxies of this process hold: they open a connection for each thread."""


def _holder_of_process() -> str:
    if not _process_holder or _process_holder[0][0] != os.getpid():  # a forked child is another process
        _process_holder[:] = [(os.getpid(), new_holder())]
    return _process_holder[0][1]


def client_name(given: str | None) -> str:
    """The name under which a client is reckoned: the given one, else the environment's, else none (empty). Raises BadInput."""
    name, param = given, "name"
    if name is None:
        name, param = os.environ.get(CLIENT_VARIABLE) or None, CLIENT_VARIABLE
    if name is None:
        return ""
    if (fault := refuse_client_name(name, param)) is not None:
        raise from_fault(fault)
    return name


def connect(
    address: str,
    authkey: bytes | None = None,
    *,
    holder: str | None = None,
    door: str = "python",
    name: str | None = None,
) -> WireConnection:
    """Connect, check who serves, and shake hands, all within `wire.HANDSHAKE_DEADLINE`.

    Raises NotRunning, HandshakeFailed or UnsafePath. Without `authkey` the key is read from the file beside the socket;
    without `holder` the connection holds sessions together with all others of this process that gave none. `name` is what
    `client_name` returned; None asks it.
    """
    own = client_name(None) if name is None else name
    deadline = time.monotonic() + wire.HANDSHAKE_DEADLINE
    key = check_address(address, authkey)
    connected = _connect(address, deadline)
    try:
        check_server(connected, address)
        shared = holder if holder is not None else _holder_of_process()
        handshake = new_handshake(key, holder=shared, door=door, name=own)
        return _shake_hands(connected, handshake, deadline)
    except BaseException:
        connected.close()
        raise


def check_address(address: str, authkey: bytes | None = None) -> bytes:
    """Check, before connecting, that nobody else can have put a socket here; returns the key. NotRunning, UnsafePath."""
    if not os.path.lexists(address):
        raise not_running(address)
    try:
        check_private_dir(Path(address).parent)
    except (FileNotFoundError, NotADirectoryError):
        raise not_running(address) from None
    return bytes(authkey) if authkey is not None else read_key(address)


def check_server(connected: socket.socket, address: str) -> None:
    """Whoever put another socket at this path must not get our half of the handshake."""
    uid = peers.credentials(connected).uid
    if uid != os.geteuid():
        raise HandshakeFailed(f"{address} is served by user id {uid}, not by you")


def read_key(address: str) -> bytes:
    """The key of the supervisor at this address. Raises NotRunning if there is none."""
    path = Path(address).with_name(KEY_FILE)
    try:
        return read_private_file(path)
    except FileNotFoundError:
        raise not_running(address) from None


def not_running(address: str) -> NotRunning:
    """The error of an address where nobody answers."""
    return NotRunning(f"no supervisor runs at {address}", hint="run `callpool start`", address=address)


def _connect(address: str, deadline: float) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            left = deadline - time.monotonic()
            connected.settimeout(max(0.001, left))
            if try_connect(connected, address, last=left <= 0):
                return connected
            time.sleep(burst_pause())
    except BaseException:
        connected.close()
        raise


def try_connect(connected: socket.socket, address: str, *, last: bool = False) -> bool:
    """Connect; False if the backlog is full, as in a burst of connects: try again. Raises NotRunning, then too if `last`."""
    try:
        connected.connect(address)
    except (FileNotFoundError, ConnectionRefusedError, TimeoutError):
        raise not_running(address) from None
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EINTR} and not last:
            return False
        raise NotRunning(f"cannot connect to {address}: {error}", address=address) from None
    return True


def burst_pause() -> float:
    """Seconds to wait for a full backlog, with jitter against the other callers of the burst."""
    return random.uniform(0.001, 0.02)  # noqa: S311 - no secret


def new_handshake(key: bytes, *, holder: str, door: str, name: str) -> wire.ClientHandshake:
    """This process's side of a handshake."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    label = f"{program.encode('utf-8', 'replace').decode()}:{os.getpid()}"
    return wire.ClientHandshake(key, os.urandom(wire.NONCE_BYTES), label, holder=holder, door=door, name=name)


def handshake_overdue() -> HandshakeFailed:
    """The error of a handshake that was not over at its deadline."""
    seconds = wire.HANDSHAKE_DEADLINE
    return HandshakeFailed(f"the supervisor did not answer within {seconds:g} s: is it stopped?")


def handshake_broken(error: Exception) -> HandshakeFailed:
    """The error of a handshake in which the connection ended."""
    return HandshakeFailed(f"the supervisor ended the handshake ({error}): too many clients, or another user")


def _shake_hands(connected: socket.socket, handshake: wire.ClientHandshake, deadline: float) -> WireConnection:
    connection = WireConnection(connected)
    try:
        connected.settimeout(max(0.001, deadline - time.monotonic()))
        hello = connection.recv_frame()
        connected.sendall(wire.frame(handshake.prove(hello)))
        connected.settimeout(max(0.001, deadline - time.monotonic()))
        connection.client_id = handshake.finish(connection.recv_frame())
    except TimeoutError:
        raise handshake_overdue() from None
    except HandshakeFailed:
        raise
    except (ConnectionLost, OSError) as error:
        raise handshake_broken(error) from None
    connected.settimeout(None)
    return connection


class NoListener:
    """The place of the Listener in the registered pair; the supervisor's event loop listens instead."""

    def __init__(self, *_arguments: Any, **_keywords: Any) -> NoReturn:
        raise TypeError("this Manager's server is the supervisor: start it with `callpool start` or callpool.start()")


listener_client[SERIALIZER] = (NoListener, connect)


class ServiceProxy(BaseProxy):  # type: ignore[misc]  # multiprocess has no types
    """The service, one call at a time on a connection per thread: what a plain BaseManager proxy is.

    `callpool.Client` carries many requests over one connection; this is the way in for coarse, occasional calls.
    """

    _exposed_ = ("ping", "status", "show", "cancel", "drain", "call")

    def ping(self) -> None:
        """Nothing, and back."""
        self._callmethod("ping")

    def status(self) -> dict[str, Any]:
        """State, workers, accounts, sessions and queue."""
        return self._plain("status")

    def show(self, request_id: str) -> dict[str, Any]:
        """The record of a live or recent request."""
        return self._plain("show", request_id=request_id)

    def cancel(self, request_id: str) -> dict[str, Any]:
        """End any request, as the operator."""
        return self._plain("cancel", request_id=request_id)

    def drain(self, timeout: float | None = None) -> dict[str, Any]:
        """Drain and end the supervisor; answers with the drain report."""
        return self._plain("drain", timeout=timeout)

    def call(self, **submit: Any) -> dict[str, Any]:
        """Submit one request and wait for its end; keywords are the fields of `messages.Submit`."""
        return self._plain("call", **submit)

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Call any verb of the service by its name, those of sessions among them."""
        return self._callmethod(verb, (), arguments)

    def _callmethod(self, methodname: str, args: tuple[Any, ...] = (), kwds: dict[str, Any] | None = None) -> Any:
        """As the stock proxy's, without the cycle of its frame and the error: whichever thread collected that would end this proxy.

        A proxy closes only the connection of the thread in which it ends; those of others would stay open.
        """
        try:
            return super()._callmethod(methodname, args, kwds or {})
        except CallpoolError as error:
            raise error.with_traceback(None) from None

    def _plain(self, verb: str, **keywords: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._callmethod(verb, (), keywords)
        return answer


class ServiceManager(BaseManager):  # type: ignore[misc]  # multiprocess has no types
    """A Manager that is connected to, never started: its server is the supervisor."""

    def __init__(self, address: str, authkey: bytes | None = None) -> None:
        super().__init__(address, authkey if authkey is not None else read_key(address), serializer=SERIALIZER)

    def open_service(self) -> ServiceProxy:
        """The service's proxy, made without the four connections that create, incref and decref take."""
        return ServiceProxy(
            Token(SERVICE, self._address, SERVICE), SERIALIZER, manager=self, authkey=self._authkey, incref=False
        )


ServiceManager.register(SERVICE, proxytype=ServiceProxy, exposed=ServiceProxy._exposed_)
