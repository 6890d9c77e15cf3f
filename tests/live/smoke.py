"""The smoke calls: each asks one thing of one account through callpool, checks the answer, and returns what it learnt.

A check is a function of a `Target`, and further arguments of `submit` that the fake provider needs. CHECKS lists them all;
the live tests run each on each account, the quick tests run each on the fake.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import callpool
from tests.live.accounts import WRONG
from tests.live.facts import Facts

MOST_REQUESTS = 20
"""HTTP requests to one account in one run, but for those that look for a limit."""
ROOM = 4_096
"""Tokens that an answer may have: what is asked for is a few words, but some models think long before those."""
CUT = 600
"""Tokens after which the long answer is cut: room for some reasoning, and not for all of NUMBERS."""
NUMBERS = " ".join(map(str, range(1, 401)))
"""About 1,000 tokens, of which every piece is known."""
NO_MODEL = "callpool-no-such-model"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

Learnt = dict[str, Any]


class BudgetSpent(RuntimeError):
    """The account has had all the requests that one run may make."""


@dataclasses.dataclass
class Target:
    """One account as callpool has it."""

    client: callpool.Client
    provider: str
    model: str
    options: callpool.Options = dataclasses.field(default_factory=callpool.Options)
    """With each request."""
    most: int = MOST_REQUESTS
    beside: int = 0
    """Requests that were made past callpool."""
    asked: list[str] = dataclasses.field(default_factory=list)

    def requests(self) -> int:
        """HTTP requests made until now: every call of every request, and those past callpool."""
        calls: list[int] = [self.client.show(request_id)["attempt"] for request_id in self.asked]
        return self.beside + sum(calls)

    def ask(self, text: str, *, provider: str | None = None, model: str | None = None, **arguments: Any) -> Any:
        """Submit one question; its handle. Raises BudgetSpent."""
        made = self.requests()
        if made >= self.most:
            raise BudgetSpent(f"{self.provider} has had {made} requests, the limit of one run is {self.most}")
        arguments = {"options": self.options, "max_completion_tokens": ROOM, **arguments}
        messages = [{"role": "user", "content": text}]
        handle = self.client.submit(
            provider=provider or self.provider, model=model or self.model, messages=messages, **arguments
        )
        self.asked.append(handle.request_id)
        return handle


def plain(target: Target, **extra: Any) -> Learnt:
    """A whole answer with its counts."""
    answer = target.ask("Answer with the one word: ready", **extra).result()
    assert answer["content"].strip()
    assert answer["finish_reason"] == "stop"
    return _of_answer(answer)


def streamed(target: Target, **extra: Any) -> Learnt:
    """A streamed answer: pieces that make up the whole, and counts at the end."""
    handle = target.ask("Count from one to ten, in words.", stream=True, **extra)
    pieces = list(handle)
    answer = handle.result()
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == answer["content"]
    return _of_answer(answer) | {"chunks": len(pieces), "usage_in": _usage_places(pieces)}


def tool_call(target: Target, **extra: Any) -> Learnt:
    """A call of a tool, with arguments that can be read."""
    answer = target.ask("What is the weather in Paris? Use the tool.", tools=[WEATHER], **extra).result()
    assert answer["finish_reason"] == "tool_calls"
    called = answer["tool_calls"][0]["function"]
    assert called["name"] == "get_weather"
    assert "paris" in json.loads(called["arguments"])["city"].lower()
    return _of_answer(answer) | {"tool_call_fields": sorted(answer["tool_calls"][0])}


def reasoning(target: Target, **extra: Any) -> Learnt:
    """What the model thought: of the kinds that tell it, a text beside the answer."""
    answer = target.ask("Is 1,001 a prime number? Answer yes or no.", **extra).result()
    assert answer["content"].strip()
    thoughts = answer.get("reasoning_content") or ""
    if target.options.thinking_mode is not None:
        assert thoughts
    return _of_answer(answer) | {"reasoning_characters": len(thoughts)}


def continued(target: Target, **extra: Any) -> Learnt:
    """An answer that is cut, continued and joined: not a character may be lost or doubled."""
    options = callpool.Options(
        thinking_mode=target.options.thinking_mode, enable_continuation=True, max_total_tokens=4 * CUT
    )
    answer = target.ask(
        "Write the whole numbers from 1 to 400 in figures, separated by single spaces, and nothing else.",
        **{"options": options, "max_completion_tokens": CUT, **extra},
    ).result()
    told = answer["metadata"].get("continuation", {})
    assert told.get("answers", 1) > 1, f"nothing was continued: {told}"
    assert NUMBERS.startswith(" ".join(answer["content"].split()))
    return _of_answer(answer) | {"continuation": told}


def cancelled(target: Target, **extra: Any) -> Learnt:
    """A stream that is ended while it comes."""
    handle = target.ask("Count from 1 to 1,000 in words.", stream=True, **extra)
    next(iter(handle))
    handle.cancel()
    with pytest.raises(callpool.RequestCancelled) as caught:
        handle.result()
    return {"cancel_seconds": caught.value.cancel_seconds}


def wrong_key(target: Target, **extra: Any) -> Learnt:
    """A key of nobody's."""
    with pytest.raises(callpool.CredentialRefused) as caught:
        target.ask("Hello", provider=target.provider + WRONG, **extra).result()
    return of_error(caught.value)


def unknown_model(target: Target, **extra: Any) -> Learnt:
    """A model that does not exist; without options, because callpool knows none for it."""
    with pytest.raises(callpool.ModelGone) as caught:
        target.ask("Hello", model=NO_MODEL, **{"options": callpool.Options(), **extra}).result()
    return of_error(caught.value)


def bad_parameter(target: Target, **extra: Any) -> Learnt:
    """What callpool lets through and no provider can mean: a tool without a name that one may have, a format of no kind."""
    nameless = {"type": "function", "function": {"name": "not a name!", "parameters": {"type": "nothing"}}}
    with pytest.raises(callpool.ProviderRejected) as caught:
        target.ask("Hello", tools=[nameless], response_format={"type": "no_such_format"}, **extra).result()
    return of_error(caught.value)


Check = Callable[..., Learnt]
CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        plain,
        streamed,
        tool_call,
        reasoning,
        continued,
        cancelled,
        wrong_key,
        unknown_model,
        bad_parameter,
    )
}
ONLY_FOR = {"continued": frozenset({"kimi"})}
"""Kinds that a check is for, where it is not for all."""


def checks_for(kind: str) -> list[str]:
    """The names of the checks of a kind, in their order."""
    return [name for name in CHECKS if kind in ONLY_FOR.get(name, {kind})]


def run(name: str, target: Target, facts: Facts, **extra: Any) -> None:
    """Run one check and keep what it learns, of a failure too. A limit of the account is nobody's fault: it skips the test."""
    try:
        facts.note(target.provider, name, CHECKS[name](target, **extra))
    except callpool.RateLimited as error:
        facts.note(target.provider, f"{name}, refused by a limit", of_error(error))
        pytest.skip(f"a limit of the account: {error.details.get('limit') or 'it does not say which'}")
    except callpool.CallpoolError as error:
        facts.note(target.provider, f"{name}, failed", of_error(error))
        raise


def of_error(error: callpool.CallpoolError) -> Learnt:
    """What an error tells of its provider."""
    names = ("status", "provider_code", "limit", "retry_after", "scope", "retryable")
    about = {name: error.details[name] for name in names if error.details.get(name) is not None}
    return {"error": type(error).__name__, **about, "message": error.message}


def _of_answer(answer: dict[str, Any]) -> Learnt:
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["usage"]["completion_tokens"] > 0
    raw = answer["raw"]
    return {
        "finish_reason": answer["finish_reason"],
        "usage": answer["usage"],
        "fields": sorted(raw),
        "message_fields": sorted(raw["choices"][0]["message"]),
    }


def _usage_places(pieces: Sequence[callpool.Chunk]) -> list[str]:
    """Where in a stream the counts stood: in a chunk, in its first choice, in a chunk without choices."""
    places = set()
    for piece in pieces:
        raw = piece.raw or {}
        choices = raw.get("choices") or []
        if raw.get("usage"):
            places.add("chunk" if choices else "chunk without choices")
        if choices and choices[0].get("usage"):
            places.add("choice")
    return sorted(places)
