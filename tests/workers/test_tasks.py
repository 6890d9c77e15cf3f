"""Requests that are left with the service: what breaks while we only look for the answer loses nothing, and is paid for once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from callpool.manager.core.options import Options
from callpool.manager.errors import BrokenAnswer, CredentialRefused, ProviderError, QuotaExhausted, RequestTimeout
from callpool.workers.providers import openai_compatible
from callpool.workers.providers.base import Call
from callpool.workers.providers.presets import GLM

from .test_providers_http import COUNTS, Exchange, counted, make_call, run_against

ORDERED = b'{"id": "task-1", "task_status": "PROCESSING"}'
AT_WORK = b'{"task_status": "PROCESSING"}'
DONE = (
    b'{"task_status": "SUCCESS", "usage": {"total_tokens": 3},'
    b' "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}'
)
Look = Callable[[Exchange], Any]


def body(content: bytes, status: str = "200 OK", **more: str) -> Look:
    return lambda exchange: exchange.send(content, status=status, **more)


async def hang_up(exchange: Exchange) -> None:
    exchange.writer.transport.abort()


def run(*looks: Look, timeout: float = 10.0, order: Look | None = None) -> tuple[list[str], Any]:
    """What was asked, and what came of a call whose looks are answered one after another; the last one's answer is repeated."""
    script = list(looks)

    async def respond(exchange: Exchange) -> None:
        if exchange.line.startswith("POST"):
            await (order or body(ORDERED))(exchange)
        else:
            await (script.pop(0) if len(script) > 1 else script[0])(exchange)

    call: Call = msgspec.structs.replace(make_call(timeout=timeout), options=Options(async_task=True))
    server, [found] = run_against(respond, call, preset=GLM)
    return [exchange.line.removesuffix(" HTTP/1.1") for exchange in server.exchanges], found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_compatible, "FIRST_LOOK", 0.01)


def test_an_order_and_looks_until_it_is_done() -> None:
    asked, answer = run(body(AT_WORK), body(AT_WORK), body(DONE))
    assert asked == ["POST /v1/async/chat/completions", *["GET /v1/async-result/task-1"] * 3]
    assert (answer.content, answer.usage) == ("hi", {"total_tokens": 3})


@pytest.mark.parametrize(
    "look",
    [
        body(b"", "500 Internal Server Error"),
        body(b"", "503 Service Unavailable"),
        body(b"<html>", kind="text/html"),
        body(b"[]"),
        hang_up,
    ],
)
def test_a_look_that_fails_is_repeated(look: Look) -> None:
    asked, answer = run(look, look, body(DONE))
    assert answer.content == "hi"
    assert len(asked) == 4
    assert sum(line.startswith("POST") for line in asked) == 1, "it is ordered once"


def test_a_look_waits_as_long_as_it_is_told_to() -> None:
    _, found = run(body(b"", "429 Too Many Requests", more="Retry-After: 60\r\n"), timeout=0.5)
    assert isinstance(found, RequestTimeout)
    asked, _ = run(body(b"", "429 Too Many Requests", more="Retry-After: 60\r\n"), timeout=0.5)
    assert len(asked) == 2, "one order, one look"


@pytest.mark.parametrize(
    ("look", "kind"),
    [
        (body(b"{}", "401 Unauthorized"), CredentialRefused),
        (body(b"", "404 Not Found"), ProviderError),
        (body(b'{"error": {"code": "1113"}}', "429 Too Many Requests"), QuotaExhausted),
    ],
)
def test_a_look_that_is_refused_for_good_may_be_billed_all_the_same(look: Look, kind: type[ProviderError]) -> None:
    """Without the doubt a fallback would order, and pay, once more."""
    _, error = run(look)
    assert type(error) is kind
    assert (error.in_doubt, error.retryable) == (True, False)


def test_an_answer_that_is_too_long_is_not_fetched_again_and_again() -> None:
    asked, error = run(body(b'{"task_status":"SUCCESS","x":"' + b"a" * (17 << 20) + b'"}'))
    assert isinstance(error, BrokenAnswer)
    assert (error.retryable, error.in_doubt) == (False, True)
    assert len(asked) == 2


def test_an_order_that_is_refused_is_no_task() -> None:
    asked, error = run(body(DONE), order=body(b"{}", "401 Unauthorized"))
    assert type(error) is CredentialRefused
    assert not error.in_doubt
    assert len(asked) == 1


@pytest.mark.parametrize("state", [b'{"task_status": "FAIL"}', b'{"task_status": "ELSE"}', b"{}"])
def test_a_task_that_comes_to_nothing(state: bytes) -> None:
    _, error = run(body(state))
    assert isinstance(error, BrokenAnswer)
    assert error.in_doubt


@pytest.mark.parametrize(("choices", "error"), [([{"message": {"content": "hi"}}], None), ([], BrokenAnswer)])
def test_counts_of_a_task_are_told_also_where_its_answer_is_none(choices: list[Any], error: type | None) -> None:
    ended = msgspec.json.encode({"task_status": "SUCCESS", "usage": COUNTS, "choices": choices})

    async def respond(exchange: Exchange) -> None:
        await exchange.send(ORDERED if exchange.line.startswith("POST") else ended)

    told, found = counted(respond, msgspec.structs.replace(make_call(), options=Options(async_task=True)), GLM)
    assert told == [COUNTS]
    assert error is None or type(found) is error
