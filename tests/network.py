"""No test reaches beyond this machine: connecting, sending and looking up names of others raises `Beyond`.

An audit hook sees every Python socket of this process, whoever made it. uvloop connects its own sockets without Python's,
but aiohttp hands it sockets that Python connected; processes that a test starts are not covered.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import Any

ADDRESS_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
"""Their arguments are the socket and the address: a path for a Unix socket, else a tuple that begins with the host."""
NAME_EVENTS = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
"""Their first argument is the host."""


class Beyond(RuntimeError):
    """The test tried to reach another machine: let it talk to a fake on the loopback address."""


def is_here(host: Any) -> bool:
    """Whether a host is this machine: a loopback address, `localhost`, or none at all (a wildcard to bind to)."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in {None, "", "localhost"}:
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook. Raises `Beyond`, which makes the socket operation fail before it does anything."""
    if event in ADDRESS_EVENTS:
        address = arguments[1]
        if isinstance(address, tuple) and not is_here(address[0]):
            raise Beyond(f"{event} to {address}")
    elif event in NAME_EVENTS and not is_here(arguments[0]):
        raise Beyond(f"{event} of {arguments[0]!r}")


def install() -> None:
    """Guard this process until it ends; an audit hook cannot be taken away."""
    sys.addaudithook(guard)
