"""A request that cannot even be sent leaves nothing of itself: its id is free, and nobody waits for it."""

from __future__ import annotations

import asyncio

import pytest

import callpool
from callpool.manager.wire import FRAME_LIMIT
from tests.acceptance.running import HELLO, scripted

TOO_MUCH = {"k": "x" * FRAME_LIMIT}


def test_what_cannot_be_sent_is_forgotten() -> None:
    with callpool.start(scripted()) as client:
        for _ in range(2):
            with pytest.raises(callpool.CallpoolError) as caught:
                client.submit(provider="fake", model="m", messages=HELLO, request_id="mine", metadata=TOO_MUCH)
            assert not isinstance(caught.value, callpool.DuplicateRequest)
            with pytest.raises(callpool.CallpoolError):
                client.embed(provider="fake", model="m", input="x", request_id="mine", metadata=TOO_MUCH)
        assert not client._handles
        answer = client.submit(provider="fake", model="m", messages=HELLO, request_id="mine").result(10)
        assert answer["content"] == "hello"


def test_the_same_in_an_event_loop() -> None:
    async def main(address: str) -> None:
        async with await callpool.AsyncClient.connect(address) as client:
            for _ in range(2):
                with pytest.raises(callpool.CallpoolError) as caught:
                    await client.submit(
                        provider="fake", model="m", messages=HELLO, request_id="mine", metadata=TOO_MUCH
                    )
                assert not isinstance(caught.value, callpool.DuplicateRequest)
            assert not client._handles

    with callpool.start(scripted()) as client:
        asyncio.run(asyncio.wait_for(main(client.address), 20))


def test_an_account_without_its_key_says_so_in_the_status() -> None:
    with callpool.start({"providers": {"kimi": {"kind": "kimi"}}}) as client:
        [account] = client.status()["accounts"]
        assert "has no key" in account["closed"]
        with pytest.raises(callpool.CredentialMissing):
            client.submit(provider="kimi", model="kimi-k3", messages=HELLO)
