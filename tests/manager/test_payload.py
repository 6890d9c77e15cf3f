"""From a caller's arguments to a submit: what is refused in the caller, and what travels."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from callpool.manager.asking import embeddings_submit, models_submit
from callpool.manager.core.catalogue import Catalogue, ProviderEntry, Timeouts
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import Submit
from callpool.manager.core.options import Options
from callpool.manager.errors import BadInput, CallpoolError, CredentialMissing, NotSerializable, UnknownProvider
from callpool.manager.errors import CredentialMissing as Missing
from callpool.manager.kinds import rules_of
from callpool.manager.payload import build_submit
from callpool.manager.settings import ProviderSettings

HELLO = [{"role": "user", "content": "hello"}]


def entry(kind: Any, **changes: Any) -> ProviderEntry:
    rules = rules_of(ProviderSettings(kind=kind))
    return ProviderEntry(timeouts=Timeouts(30.0), limit=1, any_model=True, rules=rules, **changes)


CATALOGUE = Catalogue(
    providers={
        "kimi": entry("kimi"),
        "glm": entry("glm"),
        "any": entry("scripted"),
        "keyless": entry("kimi", refusal=Missing("no key").fault),
    },
    max_metadata_size=100,
    max_payload_size=10_000,
)


def build(**changes: Any) -> Submit:
    return built(CATALOGUE, **changes)


def built(
    catalogue: Catalogue, *, provider: str = "kimi", model: str = "kimi-k3", stream: bool = False, **changes: Any
) -> Submit:
    own = {"messages": changes.pop("messages", HELLO), "options": changes.pop("options", None)}
    own |= {name: changes.pop(name) for name in ("priority", "queue_timeout", "affinity") if name in changes}
    fallbacks = changes.pop("fallbacks", None)
    return build_submit(
        catalogue,
        request_id="r",
        provider=provider,
        model=model,
        stream=stream,
        timeout=None,
        first_token_timeout=None,
        idle_timeout=None,
        max_attempts=None,
        fallbacks=fallbacks,
        retry_in_doubt=False,
        metadata=None,
        parameters=changes,
        **own,
    )


def test_what_was_asked_travels_as_it_was_asked() -> None:
    """Shaping is the worker's: it may know more than the client."""
    asked = Options(thinking_mode="low", cache_id="c")
    sent = build(temperature=1, max_tokens=5, options=asked)
    assert json.loads(sent.payload) == {
        "messages": HELLO,
        "temperature": 1,
        "max_tokens": 5,
        "callpool": {"thinking_mode": "low", "cache_id": "c"},
    }


@pytest.mark.parametrize("nothing", [None, Options()])
def test_without_options_nothing_of_them_travels(nothing: Options | None) -> None:
    assert json.loads(build(options=nothing).payload) == {"messages": HELLO}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"provider": "glm", "temperature": 1.5}, "temperature"),
        ({"provider": "any", "temperature": 2.5}, "temperature"),
        ({"max_tokens": True}, "max_tokens"),
        ({"provider": "glm", "messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"callpool": {}}, "callpool"),
        ({"system_prompt": "x"}, "system_prompt"),
        ({"use_websearch": True}, "use_websearch"),
        ({"options": {"thinking_mode": "low"}}, "options"),
        ({"options": Options(thinking_mode="off")}, "thinking_mode"),
        ({"options": Options(cache_id="a\r\nb")}, "cache_id"),
        ({"options": Options(async_task=True)}, "async_task"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": None}, "priority"),
        ({"queue_timeout": float("nan")}, "queue_timeout"),
        ({"queue_timeout": True}, "queue_timeout"),
        ({"queue_timeout": "5"}, "queue_timeout"),
        ({"affinity": ""}, "affinity"),
        ({"affinity": "x" * 257}, "affinity"),
        ({"affinity": 5}, "affinity"),
        ({"provider": "glm", "stream": True, "options": Options(async_task=True)}, "async_task"),
    ],
)
def test_what_is_refused_in_the_caller(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(BadInput) as caught:
        build(**changes)
    assert caught.value.param == param
    assert caught.value.message.startswith(f"{param} ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"provider": "nobody", "temperature": 9}, UnknownProvider),
        ({"provider": "keyless", "temperature": 9}, CredentialMissing),
        ({"stop": b"x"}, NotSerializable),
        ({"temperature": float("nan")}, BadInput),
    ],
)
def test_other_faults_come_first(changes: dict[str, Any], expected: type[CallpoolError]) -> None:
    with pytest.raises(expected) as caught:
        build(**changes)
    assert type(caught.value) is expected


AROUND = 4 + 3
"""Tokens around the text of one message."""


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, Usage(AROUND + 2, 32_768)),  # the limit that is sent to Kimi where none is stated
        ({"max_tokens": 50}, Usage(AROUND + 2, 50)),
        ({"provider": "any"}, Usage(AROUND + 2, 0)),
        ({"provider": "any", "max_tokens": 50, "n": 4}, Usage(AROUND + 2, 200)),
        ({"provider": "glm", "model": "glm-4.7"}, Usage(AROUND + 2, 0)),
        ({"provider": "any", "messages": [{"role": "user", "content": "x" * 4_000}]}, Usage(AROUND + 1_000, 0)),
        ({"provider": "any", "options": Options(system_prompt="abcd")}, Usage(AROUND + 2 + 4 + 1, 0)),
        ({"provider": "any", "tools": [{"type": "function"}]}, Usage(AROUND + 2 + 6, 0)),
    ],
)
def test_what_a_request_will_use_is_reckoned_from_what_will_be_sent(changes: dict[str, Any], tokens: Usage) -> None:
    assert build(**changes).tokens == tokens


def test_a_fallback_keeps_the_estimate() -> None:
    """Though GLM would not be sent Kimi's limit: the worker that calls it reckons again."""
    alone = build()
    assert build(fallbacks=["any/m", "glm/glm-4.7"]).tokens == alone.tokens
    changed = CATALOGUE.providers["kimi"], CATALOGUE.providers["glm"]
    fitting = Catalogue(
        providers={"kimi": replace(changed[0], fallbacks=["glm/glm-4.7", "kimi/kimi-k3"]), "glm": changed[1]},
        max_metadata_size=100,
    )
    some = built(fitting, provider="kimi", n=1, messages=[{"role": "assistant", "content": "hello"}])
    assert some.fallbacks == [], "GLM takes no conversation without a user: it was left out after the reckoning"
    assert some.tokens == alone.tokens


def test_turn_and_patience_travel() -> None:
    plain = build()
    assert (plain.priority, plain.queue_timeout, plain.affinity) == ("normal", None, None)
    asked = build(priority="batch", queue_timeout=5, affinity="b 7")
    assert (asked.priority, asked.queue_timeout, asked.affinity) == ("batch", 5, "b 7")
    assert asked.payload == plain.payload, "nothing of it is for the provider"


@pytest.mark.parametrize(("given", "affinity"), [(None, "shared"), ("own", "own")])
def test_requests_that_share_a_cache_go_to_one_worker(given: str | None, affinity: str) -> None:
    assert build(options=Options(cache_id="shared"), affinity=given).affinity == affinity


def embed(**changes: Any) -> Submit:
    return embeddings_submit(CATALOGUE, "r", **{"provider": "any", "model": "m", "input": "hello", **changes})


def test_requests_for_vectors_and_models_are_reckoned_too() -> None:
    assert embed().tokens == Usage(2)
    assert embed(input=["hello", "狐狸"]).tokens == Usage(4)
    asked = embed(priority="interactive", queue_timeout=0.5, affinity="x", dimensions=5)
    assert (asked.priority, asked.queue_timeout, asked.affinity) == ("interactive", 0.5, "x")
    assert json.loads(asked.payload) == {"input": "hello", "dimensions": 5}
    assert models_submit(CATALOGUE, "r", "any", None).tokens == Usage()


@pytest.mark.parametrize("bad", [{"priority": 1}, {"queue_timeout": float("nan")}, {"affinity": "a\n"}])
def test_a_wrong_turn_of_vectors_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as caught:
        embed(**bad)
    assert [caught.value.param] == list(bad)
