"""Long answers in pieces, from the client to the fake provider that cuts them. Its rules judge each join, its log each call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import HANG, HELLO, detached

REPLY = " ".join(f"Nº{number}: «grüß dich» € 😀." for number in range(120))
"""Some 1,000 tokens of the fake; characters of one to four bytes."""
PIECE = 64
PIECES = -(-len(REPLY.encode()) // (4 * PIECE))
MANY = {"max_continuation_attempts": 100}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeProviderProcess, callpool.Client]]:
    key = tmp_path_factory.mktemp("keys") / "key"
    key.write_text("sk-fake")
    key.chmod(0o600)
    with (
        FakeProviderProcess(dialect="kimi") as fake,
        detached(configured(fake.base_url, key)) as supervisor,
        supervisor.connect() as client,
    ):
        yield fake, client


def configured(base_url: str, key: Path) -> dict[str, Any]:
    pool = {"retry_wait": 0.01}
    return {"supervisor": pool, "providers": {"kimi": {"kind": "kimi", "base_url": base_url, "api_key_file": str(key)}}}


def calls_since(fake: FakeProviderProcess, before: int) -> list[Any]:
    return fake.log()[before:]


def test_a_long_answer_is_joined_exactly_and_all_of_it_is_counted(
    served: tuple[FakeProviderProcess, callpool.Client],
) -> None:
    fake, client = served
    before = len(fake.log())
    answer = client.chat(
        provider="kimi", model="kimi-k3", messages=HELLO, fake={"reply": REPLY, "piece_tokens": PIECE}, **MANY
    )
    seen = calls_since(fake, before)
    assert answer["content"] == REPLY
    assert answer["finish_reason"] == "stop"
    assert len(seen) >= PIECES
    continuation = answer["metadata"]["continuation"]
    assert (continuation["answers"], continuation["is_complete"]) == (len(seen), True)
    told = answer["usage"]["completion_tokens"]
    assert len(REPLY.encode()) / 4 <= told <= len(REPLY.encode()) / 4 + len(seen), (
        "each piece begins a token of its own"
    )
    record = client.show(answer["metadata"]["session"]["request_id"])
    assert record["attempt"] == len(seen), "every part is a call in the record"
    assert [each["code"] for each in record["attempts"]] == ["length"] * (len(seen) - 1)


def test_a_streamed_one_brings_every_piece_in_order(served: tuple[FakeProviderProcess, callpool.Client]) -> None:
    _, client = served
    handle = client.submit(
        provider="kimi",
        model="kimi-k3",
        messages=HELLO,
        stream=True,
        options=callpool.Options(enable_continuation=True, max_continuation_attempts=100),
        fake={"reply": REPLY, "piece_tokens": PIECE},
    )
    assert "".join(handle) == REPLY
    assert handle.result()["content"] == REPLY


def test_only_the_part_that_fails_is_called_again(served: tuple[FakeProviderProcess, callpool.Client]) -> None:
    """The second call's last message is new to the fake: it fails once for each text."""
    fake, client = served
    before = len(fake.log())
    answer = client.chat(
        provider="kimi",
        model="kimi-k3",
        messages=[{"role": "user", "content": "fails once"}],
        fake={"reply": REPLY, "piece_tokens": PIECE * 8, "fault": "http_500", "fault_times": 1},
        **MANY,
    )
    assert answer["content"] == REPLY
    seen = calls_since(fake, before)
    assert seen[0].status == 500
    assert client.show(answer["metadata"]["session"]["request_id"])["attempt"] == len(seen)


def test_what_a_failing_continuation_leaves_is_an_error_with_the_text(
    served: tuple[FakeProviderProcess, callpool.Client],
) -> None:
    _, client = served
    with pytest.raises(callpool.RequestTimeout) as caught:
        client.chat(
            provider="kimi",
            model="kimi-k3",
            messages=HELLO,
            timeout_seconds=1.0,
            fake={"reply": REPLY, "piece_tokens": 1, "delay": 0.2},
            **MANY,
        )
    assert REPLY.startswith(caught.value.partial)
    assert len(caught.value.partial) >= 2


def test_a_limit_that_is_reached_marks_the_answer(served: tuple[FakeProviderProcess, callpool.Client]) -> None:
    _, client = served
    answer = client.chat(provider="kimi", model="kimi-k3", messages=HELLO, fake={"reply": REPLY, "piece_tokens": PIECE})
    assert REPLY.startswith(answer["content"])
    assert answer["finish_reason"] == "length"
    continuation = answer["metadata"]["continuation"]
    assert (continuation["answers"], continuation["was_truncated"]) == (3, True)
    assert "max_continuation_attempts" in continuation["why"]


def test_the_budget_of_tokens_holds(served: tuple[FakeProviderProcess, callpool.Client]) -> None:
    _, client = served
    answer = client.chat(
        provider="kimi",
        model="kimi-k3",
        messages=HELLO,
        max_total_tokens=150,
        fake={"reply": REPLY, "piece_tokens": PIECE},
        **MANY,
    )
    assert answer["usage"]["completion_tokens"] <= 150
    assert "max_total_tokens" in answer["metadata"]["continuation"]["why"]


def test_a_search_of_the_providers_own(served: tuple[FakeProviderProcess, callpool.Client]) -> None:
    fake, client = served
    before = len(fake.log())
    answer = client.chat(provider="kimi", model="kimi-k3", messages=HELLO, use_websearch=True)
    assert answer["content"] == "echo: hello"
    assert len(calls_since(fake, before)) == 2
    assert answer["usage"]["prompt_tokens"] > 0


def test_the_same_from_an_event_loop(served: tuple[FakeProviderProcess, callpool.Client]) -> None:
    _, client = served

    async def main() -> dict[str, Any]:
        async with await callpool.AsyncClient.connect(client.address) as own:
            return await own.chat(
                provider="kimi",
                model="kimi-k3",
                messages=HELLO,
                system_prompt="Be brief",
                fake={"reply": REPLY, "piece_tokens": PIECE},
                **MANY,
            )

    answer = asyncio.run(asyncio.wait_for(main(), HANG))
    assert answer["content"] == REPLY


def test_words_that_chat_does_not_take(served: tuple[FakeProviderProcess, callpool.Client]) -> None:
    _, client = served
    asked: dict[str, Any] = {"provider": "kimi", "model": "kimi-k3", "messages": HELLO}
    for wrong, param in (
        ({"stream": True}, "stream"),
        ({"options": callpool.Options()}, "options"),
        ({"timeout": 1.0, "timeout_seconds": 1.0}, "timeout_seconds"),
        ({"thinking_mode": "off"}, "thinking_mode"),
        ({"temperature": 0.2}, "temperature"),
        ({"fallbacks": ["kimi/kimi-k2.6"], "reasoning_effort": "low"}, "reasoning_effort"),
    ):
        with pytest.raises(callpool.BadInput) as caught:
            client.chat(**asked, **wrong)
        assert caught.value.param == param
