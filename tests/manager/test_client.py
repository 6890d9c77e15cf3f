"""The client: what it puts on the envelope, and the name that all its connections give."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import callpool
from callpool import BadInput
from callpool.manager import proxy
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import Accepted, Submit
from callpool.manager.handle import Handle
from callpool.manager.lockstep import Lockstep
from tests.acceptance.running import HANG, HELLO, scripted

ASKED: dict[str, Any] = {"provider": "fake", "model": "m"}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each handshake of this process."""
    given: list[str] = []
    make = proxy.new_handshake

    def noting(key: bytes, **words: str) -> Any:
        given.append(words["name"])
        return make(key, **words)

    monkeypatch.setattr(proxy, "new_handshake", noting)
    monkeypatch.delenv("CALLPOOL_CLIENT", raising=False)
    return given


def test_every_connection_of_a_client_gives_its_name(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask_async(address: str, name: str | None) -> str:
        async with await callpool.AsyncClient.connect(address, name=name) as client:
            await client.status()
            return client.name

    with callpool.start(scripted()) as unnamed:
        address = unnamed.address
        assert (unnamed.name, names) == ("", [""])
        with callpool.connect(address, name="nightly") as client:
            client.sessions.create_session("fake", "m").release()
            assert client.name == "nightly"
        assert names[1:] == ["nightly", "nightly"], "sessions have connections of their own"
        assert asyncio.run(ask_async(address, "other")) == "other"
        proxy.connect(address).close()
        assert names[3:] == ["other", ""], "of a plain proxy's connections, too"
        monkeypatch.setenv("CALLPOOL_CLIENT", "of-the-environment")
        with callpool.connect(address) as client, callpool.connect(address, name="own") as own:
            assert (client.name, own.name) == ("of-the-environment", "own")
            monkeypatch.setenv("CALLPOOL_CLIENT", "changed")
            client.sessions.create_session("fake", "m").release()
        assert asyncio.run(ask_async(address, None)) == "changed"
        proxy.connect(address).close()
        assert names[5:] == ["of-the-environment", "own", "of-the-environment", "changed", "changed"]
        monkeypatch.setenv("CALLPOOL_CLIENT", "")
        with callpool.connect(address) as client:
            assert client.name == "", "an empty variable is none"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, "ü", 5, b"x", True], ids=ascii)
def test_a_wrong_name_is_refused_before_anything_is_connected(bad: Any) -> None:
    for make in (lambda: callpool.connect("/nowhere", name=bad), lambda: callpool.AsyncClient("/nowhere", name=bad)):
        with pytest.raises(BadInput, match="name must be 1 to 64 of A-Z a-z 0-9") as caught:
            make()
        assert caught.value.param == "name"


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLPOOL_CLIENT", "a b")
    for make in (callpool.connect, callpool.AsyncClient, lambda: proxy.connect("/nowhere")):
        with pytest.raises(BadInput, match=r"^CALLPOOL_CLIENT must be 1 to 64"):
            make()


def test_what_a_client_submits(monkeypatch: pytest.MonkeyPatch) -> None:
    turn: dict[str, Any] = {"priority": "interactive", "queue_timeout": 60, "affinity": "a"}
    with callpool.start(scripted()) as client:
        sent: list[Any] = []
        send = client._channel.send

        def noting(message: Any) -> None:
            sent.append(message)
            send(message)

        monkeypatch.setattr(client._channel, "send", noting)
        client.submit(**ASKED, messages=HELLO, **turn).result(HANG)
        client.chat(**ASKED, messages=HELLO, max_tokens=70, **turn)
        client.embed(**ASKED, input=["abcd", "abcd"], **turn)
        client.list_models("fake")
        submits = [message for message in sent if type(message) is Submit]
        assert [message.tokens for message in submits] == [Usage(9), Usage(9, 70), Usage(2), Usage()]
        for message in submits[:3]:
            assert (message.priority, message.queue_timeout, message.affinity) == ("interactive", 60, "a")
        sent.clear()
        for wrong in ({"priority": "x"}, {"queue_timeout": float("nan")}, {"affinity": 5}):
            for ask in (client.submit, client.chat):
                with pytest.raises(BadInput) as caught:
                    ask(**ASKED, messages=HELLO, **wrong)
                assert [caught.value.param] == list(wrong)
            with pytest.raises(BadInput):
                client.embed(**ASKED, input="x", **wrong)
        assert sent == []


def test_what_a_lockstep_call_says_of_its_turn_is_checked_by_the_supervisor() -> None:
    with callpool.start(scripted()) as client:
        calls = Lockstep(client.address, holder="h", door="python")
        asked: dict[str, Any] = {**ASKED, "payload": b'{"messages": [{"role": "user", "content": "x"}]}'}
        turn = {"priority": "batch", "queue_timeout": 5.0, "affinity": "a", "tokens": Usage(3, 4)}
        assert calls.call("call", request_id="r1", **asked, **turn)["state"] == "completed"
        assert calls.call("call", request_id="r2", **asked)["state"] == "completed"
        for name, wrong in (
            ("priority", "x"),
            ("queue_timeout", float("nan")),
            ("queue_timeout", True),
            ("affinity", ""),
            ("affinity", 5),
            ("tokens", Usage(-1)),
            ("tokens", [1.5]),
        ):
            with pytest.raises(BadInput, match=name):
                calls.call("call", request_id="r3", **asked, **{name: wrong})
        calls.close()


def test_the_wait_that_was_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handle, "_wake", lambda _self: None)
    handle = Handle(None, "r", "p", "m", stream=False)  # type: ignore[arg-type]
    assert (handle.position, handle.predicted_wait) == (None, None)
    handle.take(Accepted("r", 2))
    assert (handle.position, handle.predicted_wait) == (2, None)
    handle.take(Accepted("r", 4, 1.5))
    assert (handle.position, handle.predicted_wait) == (4, 1.5)
