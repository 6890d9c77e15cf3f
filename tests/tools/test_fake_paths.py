"""The fake provider's paths besides chat: answers that are ordered and fetched later, and embeddings."""

from __future__ import annotations

import base64
import json
import struct
from math import isclose
from typing import Any

import pytest

from callpool.tools.testing import fake_tasks
from callpool.tools.testing.fake_provider import FakeProvider
from tests.tools.raw_client import KEY, Seen, ask, chat, request, run

GLM = "/api/paas/v4"
ROOTS = {"openai": "/v1", "glm": GLM}


# Tasks.


async def order(fake: FakeProvider, /, key: str | None = None, **body: Any) -> Seen:
    sent = chat(base=f"{GLM}/async", key=key, **body)
    return await ask(fake.base_url, sent)


async def look(fake: FakeProvider, task: str, key: str | None = None) -> Seen:
    return await ask(fake.base_url, request("GET", f"{GLM}/async-result/{task}", key=key))


def test_a_task_is_at_work_and_then_done() -> None:
    async def main(fake: FakeProvider) -> None:
        made = (await order(fake, text="later", model="glm-5", request_id="mine", stream=True)).json()
        assert set(made) == {"id", "request_id", "model", "task_status"}
        assert (made["request_id"], made["model"], made["task_status"]) == ("mine", "glm-5", "PROCESSING")
        for _ in range(2):
            assert (await look(fake, made["id"])).json() == made
        for _ in range(2):
            done = (await look(fake, made["id"])).json()
            assert {name: done[name] for name in made} == made | {"task_status": "SUCCESS"}
            assert done["choices"][0]["message"]["content"] == "echo: later"
            assert done["choices"][0]["finish_reason"] == "stop"
            assert done["usage"]["total_tokens"] == done["usage"]["prompt_tokens"] + 3
        paths = [call.path.removeprefix(GLM) for call in fake.calls]
        assert paths == ["/async/chat/completions", *[f"/async-result/{made['id']}"] * 4]
        assert {call.outcome for call in fake.calls} == {"answered"}
        assert {call.model for call in fake.calls} == {"glm-5"}

        assert (await order(fake, request_id="mine")).json()["error"]["code"] == "1231"
        assert (await order(fake, temperature=2)).json()["error"]["code"] == "1214"

    run(main, dialect="glm")


def test_a_task_may_fail_or_be_done_at_once() -> None:
    async def main(fake: FakeProvider) -> None:
        made = (await order(fake, fake={"polls": 0, "task_fails": True})).json()
        assert (await look(fake, made["id"])).json() == made | {"task_status": "FAIL"}
        other = (await order(fake, fake={"polls": 0, "reasoning": "hm", "tool_calls": [{"name": "f"}]})).json()
        assert other["id"] != made["id"]
        assert other["request_id"] != made["request_id"]
        [choice] = (await look(fake, other["id"])).json()["choices"]
        assert choice["message"]["reasoning_content"] == "hm"
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}

    run(main, dialect="glm")


def test_a_task_belongs_to_its_key() -> None:
    async def main(fake: FakeProvider) -> None:
        made = (await order(fake, key=KEY)).json()
        for task, key in ((made["id"], "sk-another-key"), (made["id"], None), ("task-none", KEY)):
            assert (await look(fake, task, key)).status == 404
        assert (await look(fake, made["id"], KEY)).json() == made
        assert [call.outcome for call in fake.calls] == ["answered", *["rejected"] * 3, "answered"]

    run(main, dialect="glm")

    async def guarded(fake: FakeProvider) -> None:
        assert (await order(fake, key="sk-another-key")).status == 401
        assert (await look(fake, "task-none", "sk-another-key")).status == 401

    run(guarded, dialect="glm", api_key=KEY)


def test_an_order_may_go_wrong_like_any_call() -> None:
    async def main(fake: FakeProvider) -> None:
        assert (await order(fake, model="fault-http_500-1")).json()["error"]["code"] == "1230"
        assert (await order(fake, model="fault-http_500-1")).json()["task_status"] == "PROCESSING"
        short = await order(fake, model="fault-short_body", stream=True)
        assert 0 < len(short.body) < int(short.headers("content-length")[0])
        assert b"task_status" in (await order(fake, model="fault-duplicate_headers")).body
        redirect = await order(fake, model="fault-redirect_loop")
        assert redirect.headers("location") == [f"{GLM}/async/chat/completions"]
        huge = await order(fake, fake={"fault": "sse_huge_line", "size": 1 << 20})
        assert len(huge.json()["choices"][0]["message"]["content"]) == 1 << 20
        assert (await order(fake, fake={"fault": "empty_choices"})).json()["choices"] == []

    run(main, dialect="glm")


def test_the_oldest_task_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_tasks, "TASKS_KEPT", 2)

    async def main(fake: FakeProvider) -> None:
        made = [(await order(fake)).json()["id"] for _ in range(3)]
        assert [(await look(fake, task)).status for task in made] == [404, 200, 200]

    run(main, dialect="glm")


@pytest.mark.parametrize("dialect", ["openai", "kimi"])
def test_others_have_no_tasks(dialect: str) -> None:
    async def main(fake: FakeProvider) -> None:
        assert (await ask(fake.base_url, chat(base="/v1/async"))).status == 404
        assert (await ask(fake.base_url, request("GET", "/v1/async-result/task-1"))).status == 404
        assert fake.calls == []

    run(main, dialect=dialect)


# Embeddings.


async def embed(fake: FakeProvider, /, dialect: str = "openai", key: str | None = None, **body: Any) -> Seen:
    path = f"{ROOTS.get(dialect, '/v1')}/embeddings"
    return await ask(fake.base_url, request("POST", path, json.dumps({"model": "m", **body}).encode(), key=key))


@pytest.mark.parametrize("dialect", ROOTS)
def test_embeddings(dialect: str) -> None:
    async def main(fake: FakeProvider) -> None:
        found = (await embed(fake, dialect, input=["one", "two words", "one"])).json()
        assert (found["object"], found["model"]) == ("list", "m")
        assert [entry["index"] for entry in found["data"]] == [0, 1, 2]
        first, second, third = (entry["embedding"] for entry in found["data"])
        assert first == third != second
        assert all(isclose(sum(number * number for number in vector), 1.0) for vector in (first, second))
        assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == 1 + 3 + 1
        [alone] = (await embed(fake, dialect, input="one")).json()["data"]
        assert alone["embedding"] == first
        [small] = (await embed(fake, dialect, input="one", dimensions=3)).json()["data"]
        ratio = first[0] / small["embedding"][0]
        assert [isclose(number * ratio, first[index]) for index, number in enumerate(small["embedding"])] == [True] * 3
        [packed] = (await embed(fake, dialect, input="one", dimensions=3, encoding_format="base64")).json()["data"]
        numbers = struct.unpack("<3f", base64.b64decode(packed["embedding"]))
        assert all(isclose(one, two, rel_tol=1e-6) for one, two in zip(numbers, small["embedding"], strict=True))
        assert [call.path for call in fake.calls] == [f"{ROOTS[dialect]}/embeddings"] * 4
        assert fake.calls[-1].parameters == {"dimensions": 3, "encoding_format": "base64"}
        assert fake.calls[0].last_message == "one"

    run(main, dialect=dialect)


@pytest.mark.parametrize(
    "body",
    [{}, {"input": ""}, {"input": []}, {"input": ["a", ""]}, {"input": [1, 2]}, {"input": "a", "dimensions": 0}],
    ids=str,
)
def test_bad_requests_for_embeddings(body: dict[str, Any]) -> None:
    async def main(fake: FakeProvider) -> None:
        assert (await embed(fake, **body)).status == 400
        assert [call.outcome for call in fake.calls] == ["rejected"]
        assert (await embed(fake, input="a")).status == 200

    run(main)


def test_embeddings_have_faults_keys_and_limits() -> None:
    async def main(fake: FakeProvider) -> None:
        assert (await embed(fake, input="a")).status == 401
        assert (await embed(fake, input="a", key=KEY, model="fault-http_500-1")).status == 500
        for fault in ("length", "no_done", "finish_sensitive"):
            seen = await embed(fake, input="a", key=KEY, fake={"fault": fault})
            assert seen.json()["object"] == "list", "there is nothing to spoil but the right answer"
        assert len((await embed(fake, input="a", key=KEY, model="fault-http_500-1")).json()["data"]) == 1
        answers = [await embed(fake, input="a" * 80, key=KEY) for _ in range(3)]
        assert [seen.status for seen in answers] == [200, 200, 429], "5 tokens of the others, and 20 each"
        assert "TPM" in answers[2].json()["error"]["message"]

    run(main, api_key=KEY, tpm=50)


def test_kimi_has_no_embeddings() -> None:
    async def main(fake: FakeProvider) -> None:
        seen = await embed(fake, "kimi", input="a")
        assert (seen.status, seen.json()["error"]["type"]) == (404, "resource_not_found_error")
        assert fake.calls == []

    run(main, dialect="kimi")
