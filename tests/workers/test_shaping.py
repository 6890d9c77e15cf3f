"""What a kind of provider is really sent, and what a worker refuses by itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from callpool.manager.core.messages import Dispatch
from callpool.manager.core.options import Options
from callpool.manager.errors import BadInput
from callpool.manager.kinds import rules_of
from callpool.manager.settings import ProviderSettings
from callpool.workers.call import run_call
from callpool.workers.conversation import Conversation
from callpool.workers.providers.base import Call
from callpool.workers.providers.presets import PRESETS
from callpool.workers.shaping import shape_call

from .recorder import Recorder
from .test_providers_http import HANG, answer, make_provider, serving

HELLO = [{"role": "user", "content": "hello"}]
SYSTEM = {"role": "system", "content": "Be brief"}
ASKED = Options(system_prompt="Be brief", use_websearch=True, thinking_mode="high", cache_id="c", reset_cache_ttl=True)


def make_call(model: str, options: Options = ASKED, **parameters: Any) -> Call:
    return Call(
        request_id="r",
        attempt=1,
        provider="p",
        model=model,
        stream=False,
        timeout=HANG,
        messages=HELLO,
        parameters=parameters,
        options=options,
    )


def body_of(kind: Any, call: Call) -> tuple[dict[str, Any], list[str]]:
    """What a server of this kind gets, and what was left out."""
    rules = rules_of(ProviderSettings(kind=kind, unsupported_parameters="drop"))

    async def main() -> tuple[dict[str, Any], list[str]]:
        async with serving(answer) as (server, url):
            provider = make_provider(url, preset=PRESETS[kind])
            shaped, dropped = shape_call(rules, call)
            await run_call(provider, shaped, Recorder())
            await provider.close()
            return json.loads(server.exchanges[0].body), dropped

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "model", "asked", "added", "dropped"),
    [
        (
            "kimi",
            "kimi-k3",
            {"temperature": 0.3, "max_tokens": 50, "stop": "x"},
            {
                "max_completion_tokens": 50,
                "stop": "x",
                "reasoning_effort": "high",
                "prompt_cache_key": "c",
                "prompt_cache_options": {"ttl": "1h"},
                "tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}],
            },
            ["temperature"],
        ),
        (
            "glm",
            "glm-5.2",
            {"temperature": 0.3, "max_completion_tokens": 50, "n": 2},
            {
                "temperature": 0.3,
                "max_tokens": 50,
                "thinking": {"type": "enabled"},
                "reasoning_effort": "high",
                "tools": [
                    {
                        "type": "web_search",
                        "web_search": {
                            "enable": True,
                            "search_engine": "search_pro",
                            "search_recency_filter": "oneWeek",
                        },
                    }
                ],
            },
            ["cache_id", "reset_cache_ttl", "n"],
        ),
        (
            "openai",
            "m",
            {"temperature": 0.3, "max_tokens": 50, "top_k": 3},
            {"temperature": 0.3, "max_tokens": 50, "top_k": 3, "reasoning_effort": "high", "prompt_cache_key": "c"},
            ["reset_cache_ttl"],
        ),
    ],
)
def test_the_body_that_a_kind_is_sent(
    kind: str, model: str, asked: dict[str, Any], added: dict[str, Any], dropped: list[str]
) -> None:
    options = ASKED if kind != "openai" else msgspec.structs.replace(ASKED, use_websearch=False)
    body, left_out = body_of(kind, make_call(model, options, **asked))
    assert body == {"model": model, "messages": [SYSTEM, *HELLO], "stream": False, **added}
    assert left_out == dropped


def test_a_call_is_shaped_and_not_changed() -> None:
    call = make_call("kimi-k3", max_tokens=5)
    shaped, _ = shape_call(rules_of(ProviderSettings(kind="kimi")), call)
    assert (call.messages, call.parameters) == (HELLO, {"max_tokens": 5})
    assert shaped.options == ASKED, "who continues answers, or asks for them later, still has to know"


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (make_call("kimi-k3", Options(), temperature=0.5), "temperature"),
        (make_call("kimi-k3", Options(), max_tokens=10.5), "max_tokens"),
        (make_call("kimi-k3", Options(thinking_mode="off")), "thinking_mode"),
        (make_call("kimi-k3", Options(max_total_tokens=0)), "max_total_tokens"),
        (make_call("kimi-k3", Options(cache_id="a\nb")), "cache_id"),
    ],
)
def test_a_worker_refuses_what_a_client_did_not(call: Call, param: str) -> None:
    with pytest.raises(BadInput) as caught:
        shape_call(rules_of(ProviderSettings(kind="kimi")), call)
    assert caught.value.param == param


def decoded(**body: Any) -> Call:
    order = Dispatch("r", 1, "p", "m", HANG, stream=False, payload=json.dumps(body).encode())
    return Conversation(order, rules_of(ProviderSettings(kind="openai"))).call()


def test_options_come_with_the_payload() -> None:
    call = decoded(messages=HELLO, temperature=1, callpool={"thinking_mode": "low"})
    assert call.options == Options(thinking_mode="low")
    assert call.parameters == {"temperature": 1, "reasoning_effort": "low"}
    assert decoded(messages=HELLO).options == Options()


@pytest.mark.parametrize("wrong", [None, [], "x", {"thinking_mode": "hard"}, {"max_total_tokens": True}, {"typo": 1}])
def test_options_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(BadInput) as caught:
        decoded(messages=HELLO, callpool=wrong)
    assert caught.value.param == "options"
