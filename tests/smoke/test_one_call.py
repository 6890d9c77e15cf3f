"""One call from end to end, plain and streamed, through real processes: what every interpreter has to do."""

from __future__ import annotations

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess

HANG = 20.0


def test_a_call_through_every_process_and_back() -> None:
    with FakeProviderProcess(chunks=3) as fake:
        config = {"providers": {"fake": {"kind": "openai", "base_url": fake.base_url}}}
        with callpool.start(config) as client:
            question = [{"role": "user", "content": "héllo 🌍"}]
            plain = client.submit(provider="fake", model="m", messages=question).result(HANG)
            streamed = client.submit(provider="fake", model="m", messages=question, stream=True)
            assert "".join(streamed) == streamed.result(HANG)["content"] == plain["content"] == "echo: héllo 🌍"
            assert plain["metadata"]["session"]["duration_seconds"] > 0
            assert plain["usage"]["total_tokens"] > 0
            assert client.status()["sessions"]["total_sessions_completed"] == 2
        assert [call.outcome for call in fake.log()] == ["answered", "answered"]
