"""From a configuration to a provider and back: rules reach the caller, what was dropped is told, words become parameters."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import HANG, HELLO, detached

VARIABLE = "FAKE_API_KEY"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sk-0123456789abcdef")


def kimi_at(base_url: str, **settings: Any) -> dict[str, Any]:
    return {"providers": {"kimi": {"kind": "kimi", "base_url": base_url, "api_key_env": VARIABLE, **settings}}}


def ask(**changes: Any) -> dict[str, Any]:
    return {"provider": "kimi", "model": "kimi-k3", "messages": HELLO} | changes


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_account_drops_is_in_the_answer(stream: bool) -> None:  # noqa: FBT001
    with (
        FakeProviderProcess(dialect="kimi") as fake,
        detached(kimi_at(fake.base_url, unsupported_parameters="drop")) as supervisor,
        supervisor.connect() as client,
    ):
        handle = client.submit(**ask(temperature=0.3, n=2, top_p=0.95), stream=stream)
        assert handle.result(HANG)["metadata"]["dropped_parameters"] == ["temperature", "n"]
        assert "dropped_parameters" not in client.submit(**ask(temperature=1), stream=stream).result(HANG)["metadata"]


def test_what_an_account_refuses_is_refused_in_the_caller_and_never_sent() -> None:
    with (
        FakeProviderProcess(dialect="kimi") as fake,
        detached(kimi_at(fake.base_url)) as supervisor,
        supervisor.connect() as client,
    ):
        with pytest.raises(callpool.BadInput, match="fixed at 1.0") as caught:
            client.submit(**ask(temperature=0.3))
        assert "unsupported_parameters" in (caught.value.hint or "")
        with pytest.raises(callpool.BadInput, match="off"):
            client.submit(**ask(options=callpool.Options(thinking_mode="off")))
        assert client.catalogue.providers["kimi"].rules.of("kimi-k3").context == 1_048_576
        assert fake.log() == []
        assert client.status()["sessions"]["total_sessions_created"] == 0


def test_a_system_prompt_arrives_as_the_first_message_from_both_clients() -> None:
    prompt = callpool.Options(system_prompt="Be brief")
    spelled = [{"role": "system", "content": "Be brief"}, *HELLO]

    async def main() -> None:
        async with callpool.AsyncClient() as client:
            await (await client.submit(**ask(options=prompt))).result()

    with (
        FakeProviderProcess(dialect="kimi") as fake,
        detached(kimi_at(fake.base_url)) as supervisor,
        supervisor.connect() as client,
    ):
        client.submit(**ask(messages=spelled)).result(HANG)
        client.submit(**ask(options=prompt)).result(HANG)
        asyncio.run(main())
        digests = {call.digest for call in fake.log()}
        assert (len(fake.log()), len(digests)) == (3, 1)
