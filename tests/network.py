"""No test reaches beyond this machine: connecting, sending and looking up names of others raises `Beyond`.

An audit hook sees every Python socket of this process, whoever made it. uvloop connects its own sockets without Python's,
but aiohttp hands it sockets that Python connected; processes that a test starts are not covered.

A live test may open one way out, to one server, for the length of a `with` block: `reaching`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Iterator
from typing import Any

ADDRESS_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
"""Their arguments are the socket and the address: a path for a Unix socket, else a tuple that begins with the host."""
NAME_EVENTS = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
"""Their first argument is the host."""

# Owner: the one test that runs. Empty outside of `reaching`.
_names: set[str] = set()
"""Names of others that may be looked up."""
_places: set[tuple[str, int]] = set()
"""Addresses and ports of others that may be connected to."""


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
        if isinstance(address, tuple) and not is_here(address[0]) and address[:2] not in _places:
            raise Beyond(f"{event} to {address}")
    elif event in NAME_EVENTS and not is_here(arguments[0]) and arguments[0] not in _names:
        raise Beyond(f"{event} of {arguments[0]!r}")


@contextlib.contextmanager
def reaching(host: str, port: int) -> Iterator[list[str]]:
    """Let this process reach one server, at one port, within a `with` block that gets its addresses. For live tests alone.

    The name is looked up here, once: the block connects to these addresses and needs no other name. Raises OSError where it
    has none.
    """
    _names.add(host)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    finally:
        _names.clear()
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    _places.update((address, port) for address in addresses)
    try:
        yield addresses
    finally:
        _places.clear()


def install() -> None:
    """Guard this process until it ends; an audit hook cannot be taken away."""
    sys.addaudithook(guard)
