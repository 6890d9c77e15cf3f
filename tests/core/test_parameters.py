"""What may be sent to which model: every rule that is shipped, in the check that clients and workers share."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.faults import Fault
from callpool.manager.core.options import NO_OPTIONS, THINKING_MODES, Options
from callpool.manager.core.parameter_rules import ModelRules, Rule, Rules
from callpool.manager.core.parameters import Shaped, check, shape
from callpool.manager.kinds import rules_of
from callpool.manager.settings import Kind, ModelSettings, ProviderSettings

from .build import STEADY

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
OFF = {"type": "disabled"}
ON = {"type": "enabled"}
PARTIAL = [*HELLO, {"role": "assistant", "content": "He", "partial": True}]
JSON = {"type": "json_object"}
FUNCTION = {"type": "function", "function": {"name": "f"}}
RULES = {
    (kind, drops): rules_of(ProviderSettings(kind=kind, unsupported_parameters="drop" if drops else "refuse"))
    for kind in ("kimi", "glm", "openai", "local", "scripted")
    for drops in (False, True)
}
MODELS = {
    "kimi": ["kimi-k3", "kimi-k3.1-pro", "kimi-k2.6", "kimi-k2.7-code", "moonshot-v1-8k", "other"],
    "glm": ["glm-5.3", "glm-5.3-flash", "glm-5.2", "glm-4.6", "glm-4.5-air", "glm-4-32b-0414-128k", "other"],
    "openai": ["gpt-x"],
    "local": ["smollm2"],
    "scripted": ["m"],
}


def rules(kind: str = "openai", *, drops: bool = False) -> Rules:
    return RULES[kind, drops]


def fault(kind: str, model: str, *, messages: Any = HELLO, options: Any = NO_OPTIONS, **parameters: Any) -> Fault:
    found = check(rules(kind), model, messages, parameters, options)
    assert found is not None, (kind, model, parameters, options)
    assert found.code == "bad_input"
    assert found.message.startswith(f"{found.param} ")
    assert found.message.isprintable()
    assert len(found.message) < 400
    return found


def sent(
    kind: str, model: str, *, messages: Any = HELLO, options: Any = NO_OPTIONS, drops: bool = False, **parameters: Any
) -> Shaped:
    found = shape(rules(kind, drops=drops), model, messages, parameters, options)
    assert isinstance(found, Shaped), found
    return found


# What no server can mean.


WRONG: list[tuple[str, Any, str]] = [
    ("temperature", 2.1, "from 0 to 2, got 2.1"),
    ("temperature", 1e308, "from 0 to 2"),
    ("temperature", -0.1, "from 0 to 2"),
    ("temperature", float("nan"), "finite"),
    ("temperature", float("inf"), "finite"),
    ("temperature", True, "a number, got true"),
    ("temperature", "0.5", "a number, got '0.5'"),
    ("temperature", [0.5], "a number, got a list"),
    ("top_p", 1.1, "from 0 to 1"),
    ("n", 0, "from 1 to 128"),
    ("n", 10**9, "from 1 to 128, got 1000000000"),
    ("n", 1.0, "a whole number"),
    ("max_tokens", True, "a whole number, got true"),
    ("max_tokens", 10**12, "from 1 to 10000000"),
    ("max_tokens", 10**5000, "got a far greater number"),
    ("max_tokens", -(10**5000), "got a far smaller number"),
    ("max_tokens", 0, "from 1 to 10000000"),
    ("max_completion_tokens", "100", "a whole number"),
    ("max_completion_tokens", 0, "from 1"),
    ("presence_penalty", -2.1, "from -2 to 2"),
    ("frequency_penalty", 2.1, "from -2 to 2"),
    ("frequency_penalty", False, "a number, got false"),
    ("stop", 5, "text or a list of texts"),
    ("stop", ["a", 5], "text or a list of texts, got a list"),
    ("seed", 2**63, "from -9223372036854775808"),
    ("tools", {"type": "function"}, "a list, got an object"),
    ("tool_choice", 1, "text or an object"),
    ("parallel_tool_calls", "yes", "true or false"),
    ("response_format", "json", "an object"),
    ("stream_options", [], "an object"),
    ("logprobs", 1, "true or false, got 1"),
    ("top_logprobs", 21, "from 0 to 20"),
    ("logit_bias", [], "an object"),
    ("reasoning_effort", 3, "text, got 3"),
    ("thinking", True, "an object, got true"),
    ("prompt_cache_key", 5, "text"),
    ("prompt_cache_options", "1h", "an object"),
    ("user", {}, "text"),
    ("user", object(), "text, got a object"),
]


@pytest.mark.parametrize("kind", ["openai", "kimi", "glm", "local", "scripted"])
@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}: {case[2]}")
def test_what_is_wrong_everywhere(kind: str, case: tuple[str, Any, str]) -> None:
    name, value, said = case
    found = fault(kind, "whatever", **{name: value})
    assert found.param == name
    assert said in found.message


def test_every_rule_for_everywhere_has_a_case() -> None:
    assert {name for name, _, _ in WRONG} == set(rules().parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"temperature": 0, "top_p": 1, "n": 128, "max_tokens": 10_000_000, "presence_penalty": -2},
        {"temperature": 2.0, "top_p": 0.0, "n": 1, "max_completion_tokens": 1, "frequency_penalty": 2.0},
        {"stop": "x", "tools": [], "tool_choice": "auto"},
        {"stop": ["x"], "tool_choice": FUNCTION, "seed": -(2**63)},
        {"stop": ("x",), "tools": ({},)},
        {"temperature": -0.0},
        {"chat_template_kwargs": {"any": ["thing"]}, "guided_json": {}, "top_k": 40},
    ],
)
@pytest.mark.parametrize("kind", ["openai", "local", "scripted"])
def test_an_unknown_server_gets_what_it_is_sent(kind: str, parameters: dict[str, Any]) -> None:
    messages = [{"role": "developer", "content": "x"}]
    assert sent(kind, "m", messages=messages, **parameters) == Shaped(messages, parameters, [])


def test_none_is_a_parameter_that_is_not_stated() -> None:
    assert sent("openai", "m", temperature=None, unheard_of=None).parameters == {}
    assert "temperature" not in sent("kimi", "kimi-k3", temperature=None).parameters


# The rules of kinds and models.


@pytest.mark.parametrize(
    ("kind", "model", "parameters", "param", "said"),
    [
        ("kimi", "kimi-k3", {"temperature": 0.6}, "temperature", "fixed at 1.0 by 'kimi-k3', got 0.6"),
        ("kimi", "KIMI-K3", {"temperature": 0.6}, "temperature", "fixed at 1.0"),
        ("kimi", "kimi-k2.6", {"temperature": 0.6}, "temperature", "fixed at 1.0"),
        ("kimi", "kimi-k2.6", {"temperature": 0.6, "thinking": ON}, "temperature", "fixed at 1.0"),
        ("kimi", "kimi-k2.6", {"temperature": 1.0, "thinking": OFF}, "temperature", "fixed at 0.6"),
        ("kimi", "kimi-k3", {"top_p": 1}, "top_p", "fixed at 0.95"),
        ("kimi", "kimi-k3", {"n": 2}, "n", "fixed at 1"),
        ("kimi", "kimi-k3", {"presence_penalty": 0.1}, "presence_penalty", "fixed at 0"),
        ("kimi", "kimi-k3", {"frequency_penalty": -1}, "frequency_penalty", "fixed at 0"),
        ("kimi", "kimi-k3", {"stop": ["x"] * 6}, "stop", "at most 5 items, got 6"),
        ("kimi", "kimi-k3", {"stop": "é" * 17}, "stop", "at most 32 bytes each, one has 34"),
        ("kimi", "kimi-k3", {"stop": ["x", "x" * 33]}, "stop", "at most 32 bytes each, one has 33"),
        ("kimi", "kimi-k3", {"tools": [{}] * 129}, "tools", "at most 128 items, got 129"),
        ("kimi", "kimi-k2.6", {"tool_choice": "required"}, "tool_choice", "one of auto, none, got 'required'"),
        ("kimi", "kimi-k3", {"tool_choice": FUNCTION}, "tool_choice", "one of auto, none, required, got an object"),
        ("kimi", "kimi-k2.7-code", {"tool_choice": FUNCTION}, "tool_choice", "one of auto, none, got an object"),
        ("kimi", "kimi-k3", {"reasoning_effort": "medium"}, "reasoning_effort", "one of low, high, max, got 'medium'"),
        ("kimi", "kimi-k2.6", {"reasoning_effort": "low"}, "reasoning_effort", "not supported by 'kimi-k2.6'"),
        ("kimi", "kimi-k3", {"thinking": ON}, "thinking", "not supported by 'kimi-k3'"),
        ("kimi", "kimi-k3.1-pro", {"thinking": ON}, "thinking", "not supported"),
        ("kimi", "kimi-k2.6", {"thinking": {"type": "on"}}, "thinking.type", "one of enabled, disabled, got 'on'"),
        ("kimi", "kimi-k2.7-code", {"thinking": OFF}, "thinking.type", "must be enabled, got 'disabled'"),
        ("kimi", "kimi-k2.7-code-highspeed", {"thinking": OFF}, "thinking.type", "cannot be switched off"),
        ("kimi", "kimi-k3", {"max_tokens": 1_048_577}, "max_tokens", "at most 1048576, the most that 'kimi-k3'"),
        ("kimi", "kimi-k2.6", {"max_completion_tokens": 262_145}, "max_completion_tokens", "at most 262144"),
        ("kimi", "kimi-k3", {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "leave one of them out"),
        ("kimi", "moonshot-v1-8k", {"temperature": 1.1}, "temperature", "from 0 to 1, got 1.1"),
        ("kimi", "moonshot-v1-8k", {"n": 6}, "n", "from 1 to 5"),
        ("kimi", "moonshot-v1-8k", {"max_tokens": 8_193}, "max_tokens", "at most 8192"),
        ("glm", "glm-4.6", {"temperature": 1.1}, "temperature", "from 0 to 1"),
        ("glm", "glm-4.6", {"top_p": 0}, "top_p", "from 0.01 to 1"),
        ("glm", "glm-4.6", {"max_tokens": 131_073}, "max_tokens", "at most 131072"),
        ("glm", "glm-4.5-air", {"max_tokens": 98_305}, "max_tokens", "at most 98304"),
        ("glm", "glm-4-32b-0414-128k", {"max_completion_tokens": 16_385}, "max_completion_tokens", "at most 16384"),
        ("glm", "glm-4.6", {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "leave one of them out"),
        ("glm", "glm-4.6", {"stop": []}, "stop", "at least 1 items, got 0"),
        ("glm", "glm-4.6", {"stop": ["x"] * 5}, "stop", "at most 4 items"),
        ("glm", "glm-4.6", {"tools": [{}] * 129}, "tools", "at most 128 items"),
        ("glm", "glm-4.6", {"tool_choice": "none"}, "tool_choice", "must be auto, got 'none'"),
        ("glm", "glm-4.6", {"tool_choice": FUNCTION}, "tool_choice", "must be auto, got an object"),
        ("glm", "glm-4.6", {"n": 2}, "n", "fixed at 1"),
        ("glm", "glm-4.6", {"presence_penalty": 1}, "presence_penalty", "fixed at 0"),
        ("glm", "glm-4.6", {"frequency_penalty": 1}, "frequency_penalty", "fixed at 0"),
        ("glm", "glm-5.3", {"thinking": OFF}, "thinking.type", "cannot be switched off"),
        ("glm", "glm-5.2", {"thinking": {"type": 1}}, "thinking.type", "one of enabled, disabled, got 1"),
        ("glm", "glm-5.2", {"reasoning_effort": "xlow"}, "reasoning_effort", "one of none, minimal, low, medium, high"),
        ("glm", "glm-5.1", {"reasoning_effort": "low"}, "reasoning_effort", "not supported by 'glm-5.1'"),
    ],
)
def test_what_a_kind_or_a_model_refuses(
    kind: str, model: str, parameters: dict[str, Any], param: str, said: str
) -> None:
    found = fault(kind, model, **parameters)
    assert found.param == param
    assert said in found.message
    withheld = "fixed" in said or "not supported" in said
    assert ("unsupported_parameters" in (found.hint or "")) == withheld


@pytest.mark.parametrize(
    ("kind", "model", "parameters", "expected"),
    [
        ("kimi", "kimi-k3", {"temperature": 1, "top_p": 0.95, "n": 1, "presence_penalty": 0.0}, {}),
        ("kimi", "kimi-k2.6", {"temperature": 0.6, "thinking": OFF}, {"thinking": OFF}),
        ("kimi", "kimi-k2.6", {"thinking": {"type": "enabled", "keep": "all"}}, None),
        ("kimi", "kimi-k3", {"stop": ["x" * 32] * 5, "tools": [{}] * 128, "tool_choice": "required"}, None),
        ("kimi", "kimi-k2.6", {"stop": "x", "tool_choice": "none"}, None),
        ("kimi", "kimi-k3.1-pro-highspeed", {"reasoning_effort": "max", "logprobs": True}, None),
        ("kimi", "moonshot-v1-32k", {"temperature": 0.3, "n": 5, "top_p": 0.5, "presence_penalty": 1}, None),
        ("glm", "glm-4.6", {"temperature": 1, "top_p": 0.01, "stop": ["x"] * 4, "tools": [{}] * 128}, None),
        ("glm", "glm-4.6", {"tool_choice": "auto", "thinking": OFF, "tool_stream": True, "do_sample": False}, None),
        ("glm", "glm-4.6", {"n": 1, "presence_penalty": 0, "max_tokens": 131_072}, {"max_tokens": 131_072}),
        ("glm", "glm-5.3", {"thinking": ON, "reasoning_effort": "xhigh"}, None),
        ("glm", "glm-6-air", {"reasoning_effort": "none"}, None),
        ("openai", "gpt-x", {"max_tokens": 1, "max_completion_tokens": 2}, None),
    ],
)
def test_what_passes_is_sent_and_equals_of_fixed_values_are_left_out(
    kind: str, model: str, parameters: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    shaped = sent(kind, model, **parameters)
    limit = {} if kind != "kimi" or model.startswith("moonshot") else {"max_completion_tokens": 32_768}
    assert shaped == Shaped(HELLO, limit | (parameters if expected is None else expected), [])


@pytest.mark.parametrize(
    ("kind", "model", "given", "expected"),
    [
        ("kimi", "kimi-k3", {}, {"max_completion_tokens": 32_768}),
        ("kimi", "kimi-k3", {"max_tokens": 100}, {"max_completion_tokens": 100}),
        ("kimi", "kimi-k3", {"max_tokens": None}, {"max_completion_tokens": 32_768}),
        ("kimi", "kimi-k3", {"max_completion_tokens": 100}, {"max_completion_tokens": 100}),
        ("kimi", "kimi-k3", {"max_tokens": 7, "max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ("kimi", "kimi-k3", {"max_tokens": None, "max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ("kimi", "moonshot-v1-8k", {}, {}),
        ("glm", "glm-4.6", {}, {}),
        ("glm", "glm-4.6", {"max_completion_tokens": 100}, {"max_tokens": 100}),
        ("openai", "m", {"max_completion_tokens": 100}, {"max_completion_tokens": 100}),
    ],
)
def test_the_limit_of_an_answer_has_the_providers_name(
    kind: str, model: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert sent(kind, model, **given).parameters == expected


def test_a_models_own_facts_win_over_what_is_known() -> None:
    models = {
        "kimi-k3": ModelSettings(max_output=1_000, context=2_000),
        "kimi-k2.6": ModelSettings(max_tokens=500),
        "odd[1]*": ModelSettings(max_tokens=9),
    }
    found = rules_of(ProviderSettings(kind="kimi", models=models))
    assert (found.of("kimi-k3").context, found.of("kimi-k3").max_output) == (2_000, 1_000)
    assert shape(found, "kimi-k3", HELLO, {}) == Shaped(HELLO, {"max_completion_tokens": 1_000}, [])
    assert shape(found, "kimi-k2.6", HELLO, {}) == Shaped(HELLO, {"max_completion_tokens": 500}, [])
    assert shape(found, "odd[1]*", HELLO, {}) == Shaped(HELLO, {"max_completion_tokens": 9}, [])
    assert shape(found, "odd1", HELLO, {}) == Shaped(HELLO, {}, [])
    above = check(found, "kimi-k3", HELLO, {"max_tokens": 1_001})
    assert above is not None
    assert (above.param, above.details) == ("max_tokens", {"limit": 1_000})


# Messages.


def seen(address: Any, kind: str = "image_url") -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": kind, kind: address}]}


@pytest.mark.parametrize("address", ["data:image/png;base64,AA==", "ms://file-1", {"url": "ms://file-1"}, {}, None, 7])
def test_what_a_provider_can_look_at_passes(address: Any) -> None:
    assert check(RULES["kimi", False], "kimi-k3", [seen(address)], {}) is None
    assert check(RULES["glm", False], "glm-4.6v", [seen("https://example.org/cat.png")], {}) is None


@pytest.mark.parametrize(
    ("kind", "messages", "parameters", "param"),
    [
        ("glm", [{"role": "system", "content": "x"}], {}, "messages"),
        ("glm", [{"role": "system", "content": "x"}, {"role": "assistant", "content": "x"}], {}, "messages"),
        ("glm", [*HELLO, {"role": "developer", "content": "x"}], {}, "messages[1].role"),
        ("kimi", [{"role": "developer", "content": "x"}], {}, "messages[0].role"),
        ("kimi", [{"role": ["user"], "content": "x"}], {}, "messages[0].role"),
        ("kimi", [{"content": "x"}], {}, "messages[0].role"),
        ("kimi", PARTIAL, {"response_format": JSON}, "response_format.type"),
        ("kimi", [seen("https://example.org/cat.png")], {}, "messages[0].content[1].image_url"),
        ("kimi", [seen({"url": "http://example.org/cat.png"})], {}, "messages[0].content[1].image_url"),
        ("kimi", [seen({"url": "file:///etc/passwd"}, "video_url")], {}, "messages[0].content[1].video_url"),
    ],
)
def test_messages_that_a_provider_refuses(kind: str, messages: Any, parameters: dict[str, Any], param: str) -> None:
    assert fault(kind, MODELS[kind][0], messages=messages, **parameters).param == param


def test_messages_that_pass() -> None:
    tool = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "x"}]
    system = [{"role": "system", "content": "x"}]
    assert sent("glm", "glm-4.6", messages=tool).messages == tool
    assert sent("kimi", "kimi-k3", messages=system).messages == system
    assert sent("kimi", "kimi-k3", messages=PARTIAL, response_format={"type": "json_schema"})
    assert sent("kimi", "kimi-k3", messages=HELLO, response_format=JSON)
    assert sent("kimi", "kimi-k3", messages=[{**PARTIAL[1], "partial": False}], response_format=JSON)
    assert sent("openai", "m", messages=PARTIAL, response_format=JSON)


# What an account drops.


@pytest.mark.parametrize(
    ("kind", "model", "given", "left", "dropped"),
    [
        ("kimi", "kimi-k3", {"temperature": 0.3, "n": 3, "seed": 1}, {"seed": 1}, ["temperature", "n"]),
        ("kimi", "kimi-k3", {"thinking": OFF}, {}, ["thinking"]),
        ("kimi", "kimi-k2.6", {"reasoning_effort": "low"}, {}, ["reasoning_effort"]),
        ("kimi", "kimi-k3", {"temperature": 1}, {}, []),
        ("glm", "glm-4.6", {"presence_penalty": 1, "reasoning_effort": "x"}, {}, ["presence_penalty", "reasoning_effort"]),
    ],
)  # fmt: skip
def test_what_is_dropped_is_told(
    kind: str, model: str, given: dict[str, Any], left: dict[str, Any], dropped: list[str]
) -> None:
    shaped = sent(kind, model, drops=True, **given)
    shaped.parameters.pop("max_completion_tokens", None)
    assert (shaped.parameters, shaped.dropped) == (left, dropped)


@pytest.mark.parametrize(
    ("kind", "model", "parameters"),
    [
        ("kimi", "kimi-k3", {"temperature": "warm"}),
        ("kimi", "kimi-k3", {"temperature": 3}),
        ("kimi", "kimi-k3", {"stop": ["x"] * 6}),
        ("kimi", "kimi-k3", {"reasoning_effort": "medium"}),
        ("kimi", "kimi-k2.7-code", {"thinking": OFF}),
        ("glm", "glm-4.6", {"temperature": 1.5}),
        ("glm", "glm-4.6", {"tool_choice": "none"}),
    ],
)
def test_what_a_request_may_choose_and_chose_wrong_is_never_dropped(
    kind: str, model: str, parameters: dict[str, Any]
) -> None:
    assert check(rules(kind, drops=True), model, HELLO, parameters) is not None


# Callpool's own words.


def test_a_system_prompt_becomes_the_first_message() -> None:
    asked = Options(system_prompt="Be brief")
    first = {"role": "system", "content": "Be brief"}
    messages = list(HELLO)
    for kind in MODELS:
        assert sent(kind, "m", messages=messages, options=asked).messages == [first, *HELLO]
    assert messages == HELLO, "the caller's list is the caller's"
    for role in ("system", "developer"):
        both = [{"role": role, "content": "x"}, *HELLO]
        assert fault("openai", "m", messages=both, options=asked).param == "system_prompt"


KIMI_SEARCH = {"type": "builtin_function", "function": {"name": "$web_search"}}


def glm_search(engine: str) -> dict[str, Any]:
    search = {"enable": True, "search_engine": engine, "search_recency_filter": "oneWeek"}
    return {"type": "web_search", "web_search": search}


@pytest.mark.parametrize(
    ("kind", "platform", "tool"),
    [
        ("kimi", None, KIMI_SEARCH),
        ("kimi", "china", KIMI_SEARCH),
        ("glm", None, glm_search("search_pro")),
        ("glm", "coding", glm_search("search_pro")),
        ("glm", "international", glm_search("search_pro_jina")),
        ("glm", "coding-international", glm_search("search_pro_jina")),
    ],
)
def test_web_search_is_a_tool_of_the_platform(kind: Kind, platform: str | None, tool: dict[str, Any]) -> None:
    found = rules_of(ProviderSettings(kind=kind, platform=platform))
    for tools in (None, [FUNCTION], (FUNCTION,)):
        shaped = shape(found, MODELS[kind][0], HELLO, {"tools": tools}, Options(use_websearch=True))
        assert isinstance(shaped, Shaped)
        assert shaped.parameters["tools"] == [*(tools or ()), tool]
        assert tool not in (tools or ()), "the caller's list is the caller's"


def test_web_search_that_cannot_be() -> None:
    asked = Options(use_websearch=True)
    for kind in ("openai", "local", "scripted"):
        assert fault(kind, "m", options=asked).param == "use_websearch"
    assert "while it reasons" in fault("kimi", "kimi-k2.6", options=asked).message
    assert sent("kimi", "kimi-k2.6", options=asked, thinking=OFF)
    assert sent("kimi", "kimi-k2.6", options=Options(use_websearch=True, thinking_mode="off"))
    assert fault("kimi", "kimi-k3", options=asked, tools={}).param == "tools"
    assert fault("kimi", "kimi-k3", options=asked, tools=[{}] * 128).param == "tools"


THINKING: dict[tuple[str, str], list[dict[str, Any] | None]] = {
    ("kimi", "kimi-k3"): [
        None,
        *({"reasoning_effort": word} for word in ("low", "low", "high", "high", "max")),
    ],
    ("kimi", "kimi-k2.6"): [{"thinking": OFF}, *[{"thinking": ON}] * 5],
    ("kimi", "kimi-k2.7-code"): [None, *[{"thinking": ON}] * 5],
    ("kimi", "moonshot-v1-8k"): [None] * 6,
    ("glm", "glm-4.6"): [{"thinking": OFF}, *[{"thinking": ON}] * 5],
    ("glm", "glm-5.2"): [
        {"thinking": OFF},
        *({"thinking": ON, "reasoning_effort": word} for word in ("minimal", "low", "medium", "high", "max")),
    ],
    ("glm", "glm-5.3"): [
        None,
        *({"thinking": ON, "reasoning_effort": word} for word in ("minimal", "low", "medium", "high", "max")),
    ],
    ("openai", "m"): [{"reasoning_effort": word} for word in ("none", "minimal", "low", "medium", "high", "high")],
    ("local", "m"): [None] * 6,
    ("scripted", "m"): [None] * 6,
}


@pytest.mark.parametrize(("kind", "model"), THINKING)
@pytest.mark.parametrize("drops", [False, True])
def test_each_thinking_mode_has_a_meaning_or_is_refused(kind: str, model: str, drops: bool) -> None:  # noqa: FBT001
    for mode, expected in zip(THINKING_MODES, THINKING[kind, model], strict=True):
        shaped = shape(rules(kind, drops=drops), model, HELLO, {}, msgspec.convert({"thinking_mode": mode}, Options))
        if expected is None:
            assert isinstance(shaped, Fault)
            assert shaped.param == "thinking_mode"
            assert mode in shaped.message
            continue
        assert isinstance(shaped, Shaped)
        shaped.parameters.pop("max_completion_tokens", None)
        assert (shaped.parameters, shaped.dropped) == (expected, [])


def test_a_mode_that_is_refused_names_those_there_are() -> None:
    found = fault("kimi", "kimi-k3", options=Options(thinking_mode="off"))
    assert "its modes are minimal, low, medium, high, max" in found.message
    assert "off" not in fault("glm", "glm-5.3", options=Options(thinking_mode="off")).message.partition("modes are")[2]


def test_an_option_and_a_parameter_that_say_the_same_are_refused() -> None:
    found = fault("kimi", "kimi-k3", options=Options(thinking_mode="low"), reasoning_effort="low")
    assert found.param == "thinking_mode"
    assert "sets reasoning_effort, which is given too" in found.message
    assert fault("openai", "m", options=Options(cache_id="a"), prompt_cache_key="b").param == "cache_id"
    assert sent("openai", "m", options=Options(cache_id="a"), prompt_cache_key=None).parameters == {
        "prompt_cache_key": "a"
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("kimi", {"prompt_cache_key": "a", "prompt_cache_options": {"ttl": "1h"}, "max_completion_tokens": 32_768}),
        ("openai", {"prompt_cache_key": "a"}),
        ("glm", {}),
        ("local", {}),
        ("scripted", {}),
    ],
)
def test_the_cache_is_asked_for_where_there_is_one(kind: str, expected: dict[str, Any]) -> None:
    asked = Options(cache_id="a", reset_cache_ttl=True)
    dropped = [] if kind == "kimi" else ["reset_cache_ttl"] if kind == "openai" else ["cache_id", "reset_cache_ttl"]
    model = MODELS[kind][0]
    assert sent(kind, model, options=asked, drops=True) == Shaped(HELLO, expected, dropped)
    if dropped:
        found = fault(kind, model, options=asked)
        assert found.param == dropped[0]
        assert "unsupported_parameters" in (found.hint or "")
    else:
        assert sent(kind, model, options=asked) == Shaped(HELLO, expected, [])


def test_a_task_is_for_platforms_that_keep_it_and_never_streamed() -> None:
    asked = Options(async_task=True)
    for kind, platform, refused in (
        ("glm", None, False),
        ("glm", "international", True),
        ("glm", "coding", True),
        ("kimi", None, True),
        ("openai", "openai", True),
        ("scripted", None, True),
    ):
        found = check(
            rules_of(msgspec.convert({"kind": kind, "platform": platform}, ProviderSettings)), "m", HELLO, {}, asked
        )
        assert (found is not None and found.param == "async_task") == refused, (kind, platform)
    streamed = check(rules("glm"), "glm-4.6", HELLO, {}, asked, stream=True)
    assert streamed is not None
    assert "stream" in streamed.message


def test_continuation_sends_nothing_of_its_own() -> None:
    asked = Options(enable_continuation=True, max_continuation_attempts=2, max_total_tokens=9)
    for kind, models in MODELS.items():
        assert sent(kind, models[0], options=asked) == sent(kind, models[0])


# As a whole.

_numbers = st.one_of(st.integers(-3, 300_000), st.floats(-3, 3), st.sampled_from([0, 1, 0.6, 0.95, 1.0, True, False]))
_values = st.one_of(
    st.none(),
    _numbers,
    st.sampled_from(["auto", "none", "low", "high", "max", "x" * 33, ""]),
    st.sampled_from([OFF, ON, {"type": "x"}, {}, JSON, FUNCTION]),
    st.lists(st.sampled_from(["a", 5, "x" * 33]), max_size=6),
)
_parameters = st.dictionaries(st.sampled_from([*rules().parameters, "unheard_of"]), _values, max_size=6)
_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"])},
        optional={"partial": st.booleans(), "content": st.text(max_size=3)},
    ),
    min_size=1,
    max_size=3,
)
_options = st.builds(
    Options,
    system_prompt=st.none() | st.just("s"),
    use_websearch=st.booleans(),
    thinking_mode=st.none() | st.sampled_from(THINKING_MODES),
    cache_id=st.none() | st.just("c"),
    reset_cache_ttl=st.booleans(),
)
_targets = st.sampled_from([(kind, model) for kind, models in MODELS.items() for model in models])


@STEADY
@given(_targets, st.booleans(), _messages, _parameters, _options)
def test_nothing_is_sent_that_the_check_refuses_and_shaping_twice_changes_nothing(
    target: tuple[str, str], drops: bool, messages: Any, parameters: dict[str, Any], options: Options  # noqa: FBT001
) -> None:  # fmt: skip
    kind, model = target
    before = msgspec.json.encode([messages, parameters])
    shaped = shape(rules(kind, drops=drops), model, messages, parameters, options)
    assert msgspec.json.encode([messages, parameters]) == before
    assert (check(rules(kind, drops=drops), model, messages, parameters, options) is None) == isinstance(shaped, Shaped)
    if isinstance(shaped, Shaped):
        strict = rules(kind)
        assert check(strict, model, shaped.messages, shaped.parameters) is None
        assert shape(strict, model, shaped.messages, shaped.parameters) == Shaped(
            shaped.messages, shaped.parameters, []
        )
        assert set(shaped.dropped) <= {*parameters, "cache_id", "reset_cache_ttl"}
        assert not shaped.dropped or drops


@STEADY
@given(st.dictionaries(st.sampled_from([*rules().parameters]), _values, max_size=6))
def test_without_drop_a_request_keeps_what_it_stated_or_is_refused(parameters: dict[str, Any]) -> None:
    """But for values that the provider takes anyway: nothing that a caller stated differently is lost."""
    shaped = shape(rules("kimi"), "kimi-k3", HELLO, parameters)
    if isinstance(shaped, Shaped):
        fixed = {
            name: rule.fixed for name, rule in rules("kimi").of("kimi-k3").parameters.items() if rule.fixed is not None
        }
        names = {name for name, value in parameters.items() if value is not None and value != fixed.get(name)}
        assert {"max_completion_tokens" if name == "max_tokens" else name for name in names} <= shaped.parameters.keys()


def test_rules_cross_a_process_border() -> None:
    for found in RULES.values():
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Rules) == found


def test_rules_of_no_kind_let_everything_pass() -> None:
    assert shape(Rules(), "m", HELLO, {"temperature": "warm", "max_tokens": None}) == Shaped(
        HELLO, {"temperature": "warm"}, []
    )


@pytest.mark.parametrize(
    ("rule", "good", "bad", "said"),
    [
        (Rule(least=1), [1, 10**30, 1.0, "x"], [0, 0.9], "must be 1 or more, got 0"),
        (Rule(most=1), [1, -(10**30), True], [2, 1.1], "must be at most 1, got 2"),
        (Rule(least=0, most=1), [0, 1, 0.5], [-1, 2], "must be from 0 to 1, got -1"),
        (Rule(choices=("a",)), ["a"], ["b", 1, ["a"]], "must be a, got 'b'"),
        (Rule(min_items=1, max_items=2), ["x", ["x"], ["x", "x"]], [[]], "at least 1 items, got 0"),
        (Rule(max_bytes=2), ["é", ["aa", 5], 12345], ["éa", ["a", "\ud800"]], "at most 2 bytes each, one has 3"),
        (Rule(types=("flag", "text")), [True, "x"], [1, None], "must be true or false or text, got 1"),
        (Rule(fixed="x"), ["x"], ["y", None], "is fixed at x by the provider, got 'y': leave it out"),
        (Rule(unsupported=True, why="it is gone"), [], [1], "is not supported by the provider: it is gone"),
        (Rule(choices=("a",), why="it is so"), ["a"], ["b"], "must be a, got 'b': it is so"),
    ],
)
def test_each_part_of_a_rule(rule: Rule, good: list[Any], bad: list[Any], said: str) -> None:
    assert [value for value in good if rule.refuse("p", value) is not None] == []
    found = [rule.refuse("p", value) for value in bad]
    assert None not in found
    assert found[0] is not None
    assert said in found[0].message


def test_rules_of_a_model_alone_leave_types_to_the_provider() -> None:
    found = Rules(models=(ModelRules(names=("*",), max_output=5),))
    assert check(found, "m", HELLO, {"max_tokens": "many"}) is None
    assert check(found, "m", HELLO, {"max_tokens": 6}) is not None


def test_a_field_of_what_is_dropped_is_nobodys_business() -> None:
    parameters = {"x": Rule(unsupported=True), "x.y": Rule(choices=("a",))}
    found = Rules(models=(ModelRules(names=("*",), parameters=parameters),), drops=True)
    assert shape(found, "m", HELLO, {"x": {"y": "b"}}) == Shaped(HELLO, {}, ["x"])


def test_later_entries_refine_earlier_ones() -> None:
    found = Rules(
        models=(
            ModelRules(names=("a*",), context=10, parameters={"x": Rule(fixed=1), "y": Rule(fixed=1)}),
            ModelRules(names=("ab*",), max_output=5, parameters={"x": Rule(unsupported=True)}),
            ModelRules(names=("ab*",), when="partial", context=9),
        )
    )
    assert found.of("abc") == ModelRules(
        context=10, max_output=5, parameters={"x": Rule(unsupported=True), "y": Rule(fixed=1)}
    )
    assert found.of("abc", {"partial"}).context == 9
    assert found.of("b") == ModelRules()


def test_the_memory_of_joined_entries_is_bounded() -> None:
    found = Rules(models=(ModelRules(names=("*",), context=1),))
    for number in range(2_500):
        assert found.of(f"m{number}").context == 1
    assert len(found.__dict__["_joined"]) <= 1_000
