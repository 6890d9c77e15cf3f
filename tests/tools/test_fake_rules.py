"""What the fake provider refuses of readable requests, as each provider does; and what it lets pass that is just allowed."""

from __future__ import annotations

from typing import Any

import pytest

from callpool.tools.testing.fake_provider import FakeProvider
from tests.tools.raw_client import KEY, ask, chat, run

ROOTS = {"openai": "/v1", "kimi": "/v1", "glm": "/api/paas/v4"}
K3, K26, K27 = "kimi-k3", "kimi-k2.6", "kimi-k2.7-code"
OFF = {"type": "disabled"}
NAMED = {"type": "function", "function": {"name": "f"}}


def tools(count: int) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": f"f{number}"}} for number in range(count)]


KIMI_REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("temperature: only 1 is", {"model": K3, "temperature": 0.6}),
    ("temperature: only 1 is", {"model": K26, "temperature": 0.6}),
    ("temperature: only 1 is", {"model": K27, "temperature": 0.6, "thinking": OFF}),
    ("temperature: only 0.6 is", {"model": K26, "temperature": 1, "thinking": OFF}),
    ("top_p: only 0.95", {"model": K3, "top_p": 1}),
    ("n: only 1", {"model": K3, "n": 2}),
    ("presence_penalty: only 0", {"model": K3, "presence_penalty": 0.1}),
    ("frequency_penalty: only 0", {"model": K3, "frequency_penalty": -0.1}),
    ("6 strings, at most 5", {"stop": list("abcdef")}),
    ("more than 32 bytes", {"stop": "é" * 16 + "x"}),
    ("does not know 'required'", {"model": K26, "tool_choice": "required"}),
    ("auto, none, required or", {"model": "moonshot-v1-8k", "tool_choice": "any"}),
    ("while the model reasons", {"model": K3, "tool_choice": NAMED}),
    ("while the model reasons", {"model": K26, "tool_choice": NAMED}),
    ("at most 128", {"tools": tools(129)}),
    (
        "tool_call_id 'b' is not found",
        {"messages": [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "b", "content": "y"}]},
    ),
]
KIMI_ALLOWED: list[dict[str, Any]] = [
    {"model": K3, "temperature": 1, "top_p": 0.95, "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0},
    {"model": K26, "temperature": 0.6, "thinking": OFF},
    {"model": K26, "temperature": None, "top_p": None},
    {"model": "moonshot-v1-8k", "temperature": 0.3, "n": 5, "tool_choice": NAMED},
    {"model": K3, "stop": ["é" * 16, *"abcd"], "tool_choice": "required", "tools": tools(128)},
    {"model": K26, "tool_choice": NAMED, "thinking": OFF},
    {"model": K27, "tool_choice": "none", "unheard_of": 1},
]
GLM_REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("temperature is 1.01", {"temperature": 1.01}),
    ("temperature is -0.1", {"temperature": -0.1}),
    ("top_p is 0:", {"top_p": 0}),
    ("top_p is 1.1", {"top_p": 1.1}),
    ("from 1 to 131072", {"max_tokens": 131_073}),
    ("5 strings", {"stop": list("abcde")}),
    ("0 strings", {"stop": []}),
    ("only auto", {"tool_choice": "none"}),
    ("only auto", {"tool_choice": NAMED}),
    ("at most 128", {"tools": tools(129)}),
    (
        "system and assistant only",
        {"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]},
    ),
    ("count is 0", {"tools": [{"type": "web_search", "web_search": {"count": 0}}]}),
    ("count is True", {"tools": [{"type": "web_search", "web_search": {"count": True}}]}),
]
GLM_ALLOWED: list[dict[str, Any]] = [
    {"temperature": 0, "top_p": 0.01, "stop": "one"},
    {"temperature": 1.0, "top_p": 1, "max_tokens": 131_072, "stop": list("abcd"), "tools": tools(128)},
    {"tool_choice": "auto", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
]


def test_kimi_refuses_what_its_models_do_not_have() -> None:
    async def main(fake: FakeProvider) -> None:
        for words, body in KIMI_REFUSED:
            seen = await ask(fake.base_url, chat(**body))
            assert (seen.status, seen.json()["error"]["type"]) == (400, "invalid_request_error"), body
            assert words in seen.json()["error"]["message"]
        assert {call.outcome for call in fake.calls} == {"rejected"}
        for body in KIMI_ALLOWED:
            assert (await ask(fake.base_url, chat(**body))).status == 200, body

    run(main, dialect="kimi")


def test_glm_refuses_what_is_outside_of_its_ranges() -> None:
    async def main(fake: FakeProvider) -> None:
        for words, body in GLM_REFUSED:
            seen = await ask(fake.base_url, chat(base=ROOTS["glm"], **body))
            assert (seen.status, seen.json()["error"]["code"]) == (400, "1214"), body
            assert words in seen.json()["error"]["message"]
        for body in GLM_ALLOWED:
            assert (await ask(fake.base_url, chat(base=ROOTS["glm"], **body))).status == 200, body

    run(main, dialect="glm")


def test_nobody_has_the_rules_of_another() -> None:
    async def main(fake: FakeProvider) -> None:
        for _, body in (*KIMI_REFUSED, *GLM_REFUSED):
            assert (await ask(fake.base_url, chat(**body))).status == 200, body

    run(main)


@pytest.mark.parametrize("dialect", ROOTS)
def test_a_wrong_type_is_refused_everywhere(dialect: str) -> None:
    async def main(fake: FakeProvider) -> None:
        wrong: list[dict[str, Any]] = [
            {"temperature": "hot"},
            {"stop": [1]},
            {"tools": {}},
            {"n": 1.5},
            {"tool_choice": 1},
        ]
        for body in wrong:
            seen = await ask(fake.base_url, chat(base=ROOTS[dialect], **body))
            assert seen.status == 400
            assert next(iter(body)) in seen.json()["error"]["message"]

    run(main, dialect=dialect)


def test_glm_takes_a_request_id_once_for_each_key() -> None:
    async def main(fake: FakeProvider) -> None:
        async def code(**body: Any) -> Any:
            seen = await ask(fake.base_url, chat(base=ROOTS["glm"], **body))
            return seen.json()["error"]["code"] if seen.status != 200 else None

        assert await code(request_id="a", key=KEY) is None
        assert await code(request_id="a", key=KEY) == "1231"
        assert await code(request_id="b", key=KEY) is None
        assert await code(request_id="a", key="sk-another-key") is None
        assert await code(request_id="c", temperature=2) == "1214"
        assert await code(request_id="c") is None, "a refused request has not used its id"
        assert await code() is None
        assert await code() is None, "none is none of the caller's"

    run(main, dialect="glm")

    async def elsewhere(fake: FakeProvider) -> None:
        for _ in range(2):
            assert (await ask(fake.base_url, chat(request_id="a"))).status == 200

    run(elsewhere, dialect="kimi")
