"""The guard that keeps tests on this machine. Nothing here would send a packet, even without it: see each test."""

from __future__ import annotations

import socket

import pytest

from tests.network import Beyond, is_here

DOCUMENTATION = "192.0.2.1"
"""Reserved for examples (RFC 5737): it belongs to nobody."""


def test_connecting_to_another_machine_is_refused() -> None:
    # Connecting a datagram socket only notes the address.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        for connect in (outside.connect, outside.connect_ex):
            with pytest.raises(Beyond, match=DOCUMENTATION):
                connect((DOCUMENTATION, 9))


def test_a_foreign_name_is_not_looked_up() -> None:
    # AI_NUMERICHOST: without the guard this fails without asking anyone.
    with pytest.raises(Beyond, match="nobody"):
        socket.getaddrinfo("nobody.invalid", 9, flags=socket.AI_NUMERICHOST)


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        server.accept()[0].close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendmsg([b"x"])
        assert theirs.recv(1) == b"x"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "::1%lo", "localhost", b"localhost", "", None, "0.0.0.0"]
)
def test_here(host: str | bytes | None) -> None:
    assert is_here(host)


@pytest.mark.parametrize("host", [DOCUMENTATION, "2001:db8::1", "example.org", b"example.org", "localhost.example.org"])
def test_elsewhere(host: str | bytes) -> None:
    assert not is_here(host)
