"""From a caller's arguments to a submit: what is refused in the caller, and what travels."""

from __future__ import annotations

import json
from typing import Any

import pytest

from callpool.manager.core.catalogue import Catalogue, ProviderEntry, Timeouts
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


def build(*, provider: str = "kimi", model: str = "kimi-k3", stream: bool = False, **changes: Any) -> Submit:
    own = {"messages": changes.pop("messages", HELLO), "options": changes.pop("options", None)}
    return build_submit(
        CATALOGUE,
        request_id="r",
        provider=provider,
        model=model,
        stream=stream,
        timeout=None,
        first_token_timeout=None,
        idle_timeout=None,
        max_attempts=None,
        fallbacks=None,
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
