"""The guard that keeps tests on this machine. Nothing here would send a packet, even without it: see each test."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests import network
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


def test_one_server_can_be_reached_within_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        network.guard("socket.getaddrinfo", (host, port))
        with pytest.raises(Beyond):
            network.guard("socket.getaddrinfo", ("other.example", port))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (DOCUMENTATION, port))] * 2

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with network.reaching("api.example", 443) as addresses:
        assert addresses == [DOCUMENTATION]
        network.guard("socket.connect", (None, (DOCUMENTATION, 443)))
        for event, *arguments in (
            ("socket.connect", None, (DOCUMENTATION, 80)),
            ("socket.connect", None, ("192.0.2.2", 443)),
            ("socket.getaddrinfo", "api.example", 443),
        ):
            with pytest.raises(Beyond):
                network.guard(str(event), tuple(arguments))
    with pytest.raises(Beyond):
        network.guard("socket.connect", (None, (DOCUMENTATION, 443)))


def test_a_name_that_is_not_found_opens_nothing() -> None:
    # AI_NUMERICHOST is not ours to give here: a label of 64 letters is refused before anyone is asked.
    with pytest.raises((OSError, UnicodeError)), network.reaching("x" * 64 + ".invalid", 443):
        pass
    with pytest.raises(Beyond):
        network.guard("socket.getaddrinfo", ("x" * 64 + ".invalid", 443))
