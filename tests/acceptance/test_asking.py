"""Vectors, lists of models and requests left with the provider, from the client to the fake provider."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.running import HANG, HELLO, detached

Served = tuple[dict[str, FakeProviderProcess], callpool.Client]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    key = tmp_path_factory.mktemp("keys") / "key"
    key.write_text("sk-fake")
    key.chmod(0o600)
    with ExitStack() as stack:
        fakes = {kind: stack.enter_context(FakeProviderProcess(dialect=kind)) for kind in ("openai", "kimi", "glm")}
        supervisor = stack.enter_context(detached(configured(fakes, key)))
        yield fakes, stack.enter_context(supervisor.connect())


def configured(fakes: dict[str, FakeProviderProcess], key: Path) -> dict[str, Any]:
    providers: dict[str, Any] = {
        kind: {"kind": kind, "base_url": fake.base_url, "api_key_file": str(key)} for kind, fake in fakes.items()
    }
    providers["openai"] |= {"fallbacks": ["scripted/m"]}
    providers["scripted"] = {"kind": "scripted", "models": {"m": {"reply": "hello"}}}
    return {"supervisor": {"retry_wait": 0.01}, "providers": providers}


@pytest.mark.parametrize("provider", ["openai", "glm", "scripted"])
def test_vectors_for_texts(served: Served, provider: str) -> None:
    _, client = served
    one = client.embed(provider=provider, model="m", input="a text")
    two = client.embed(provider=provider, model="m", input=["another", "a text"], metadata={"job": 7})
    assert one.keys() == two.keys() == {"provider", "model", "embeddings", "usage", "metadata"}
    assert (one["provider"], one["model"]) == (provider, "m")
    assert len(two["embeddings"]) == 2
    assert two["embeddings"][1] == pytest.approx(one["embeddings"][0])
    assert math.hypot(*one["embeddings"][0]) == pytest.approx(1.0)
    assert one["usage"]["prompt_tokens"] > 0
    record = client.show(two["metadata"]["session"]["request_id"])
    assert (record["state"], record["metadata_bytes"]) == ("completed", len('{"job": 7}'))


def test_what_else_is_said_goes_to_the_provider(served: Served) -> None:
    fakes, client = served
    answer = client.embed(provider="openai", model="m", input="x", dimensions=5, encoding_format="base64")
    assert len(answer["embeddings"][0]) == 5
    assert fakes["openai"].log()[-1].path.endswith("/embeddings")


def test_vectors_of_another_model_are_no_way_out(served: Served) -> None:
    """The configuration has a fallback, and vectors of two models cannot be compared."""
    _, client = served
    with pytest.raises(callpool.ModelGone):
        client.embed(provider="openai", model="fault-model_gone", input="x", fake={"fault": "model_gone"})
    answer = client.embed(
        provider="openai", model="m", input="x", fake={"fault": "model_gone"}, fallbacks=["scripted/m"]
    )
    assert answer["provider"] == "scripted"


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"provider": "kimi", "input": "x"}, "provider"),
        ({"provider": "openai", "input": b"x"}, "input"),
        ({"provider": "openai", "input": []}, "input"),
        ({"provider": "openai", "input": ["x", 7]}, "input[1]"),
        ({"provider": "openai", "input": "x", "timeout": -1}, "timeout"),
        ({"provider": "openai", "input": "x", "api_key": "k"}, "api_key"),
        ({"provider": "openai", "input": "x", "fallbacks": ["kimi/m"]}, "fallbacks[0]"),
        ({"provider": "nobody", "input": "x"}, "provider"),
    ],
)
def test_bad_input_is_told_at_once(served: Served, arguments: dict[str, Any], param: str) -> None:
    _, client = served
    with pytest.raises(callpool.BadInput) as caught:
        client.embed(model="m", **arguments)
    assert caught.value.param == param


def test_lists_of_models(served: Served) -> None:
    _, client = served
    assert {"id", "context_length"} <= client.list_models("kimi")[0].keys()
    assert [model["id"] for model in client.list_models("scripted")] == ["m"]
    with pytest.raises(callpool.BadInput) as caught:
        client.list_models("glm")
    assert "does not serve models" in caught.value.message
    [known] = client.models("scripted")
    assert (known["provider"], known["model"], known["timeout"]) == ("scripted", "m", 30.0)
    assert client.models() == [known]
    with pytest.raises(callpool.UnknownProvider):
        client.models("nobody")


def test_a_request_left_with_the_provider(served: Served) -> None:
    fakes, client = served
    before = len(fakes["glm"].log())
    answer = client.chat(provider="glm", model="glm-4.7", messages=HELLO, async_task=True, fake={"polls": 1})
    assert answer["content"] == "echo: hello"
    assert answer["usage"]["completion_tokens"] > 0
    paths = [call.path.rpartition("/v4")[2].split("/")[1] for call in fakes["glm"].log()[before:]]
    assert paths == ["async", "async-result", "async-result"]
    assert client.show(answer["metadata"]["session"]["request_id"])["attempt"] == 1


def test_a_task_that_fails(served: Served) -> None:
    _, client = served
    with pytest.raises(callpool.BrokenAnswer) as caught:
        client.chat(
            provider="glm", model="glm-4.7", messages=HELLO, async_task=True, fake={"polls": 0, "task_fails": True}
        )
    assert "task has failed" in caught.value.message
    assert caught.value.in_doubt


def test_a_task_ends_at_its_deadline(served: Served) -> None:
    _, client = served
    with pytest.raises(callpool.RequestTimeout):
        client.chat(
            provider="glm", model="glm-4.7", messages=HELLO, async_task=True, timeout_seconds=0.6, fake={"polls": 1_000}
        )


@pytest.mark.parametrize("provider", ["kimi", "openai", "scripted"])
def test_other_providers_keep_no_requests(served: Served, provider: str) -> None:
    _, client = served
    with pytest.raises(callpool.BadInput) as caught:
        client.chat(provider=provider, model="m", messages=HELLO, async_task=True)
    assert caught.value.param == "async_task"


def test_the_same_from_an_event_loop(served: Served) -> None:
    _, client = served

    async def main() -> None:
        async with await callpool.AsyncClient.connect(client.address) as own:
            answer = await own.embed(provider="scripted", model="m", input=["a", "b"])
            assert len(answer["embeddings"]) == 2
            assert [model["id"] for model in await own.list_models("scripted")] == ["m"]
            assert own.models() == client.models()

    asyncio.run(asyncio.wait_for(main(), HANG))
