"""Faults inside correct HTTP: refusals, and answers that are not what was asked for.

`delay` passes before every one of them. A fault that is about streams has for a plain call the nearest thing that a
plain answer can have; the tables at the end say which.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import msgspec

from callpool.tools.testing import fake_answers
from callpool.tools.testing.fake_exchange import HTML, JSON, Exchange
from callpool.tools.testing.fake_replies import Reply

Produce = Callable[[Exchange], Awaitable[None]]

PAGE = b"<!DOCTYPE html><html><head><title>%b</title></head><body><h1>%b</h1></body></html>\n"


def refusal(meaning: str, *headers: tuple[str, str]) -> Produce:
    """The dialect's own refusal of this meaning."""

    async def produce(exchange: Exchange) -> None:
        status, body = exchange.dialect.error(meaning)
        await exchange.answer(status, body, headers=headers)

    return produce


def retry_after(value: Callable[[], str]) -> Produce:
    """The dialect's refusal by RPM, with this Retry-After header."""

    async def produce(exchange: Exchange) -> None:
        status, body = exchange.dialect.error("limit_rpm")
        await exchange.answer(status, body, headers=[("Retry-After", value())])

    return produce


def page(status: int, title: bytes) -> Produce:
    """An HTML page, as gateways send."""

    async def produce(exchange: Exchange) -> None:
        await exchange.answer(status, PAGE % (title, title), HTML)

    return produce


def other(**changes: Any) -> Produce:
    """The good answer with other fields."""

    async def produce(exchange: Exchange) -> None:
        await exchange.tell(msgspec.structs.replace(exchange.honest(), **changes))

    return produce


async def duplicate_headers(exchange: Exchange) -> None:
    """A right answer with headers that come twice and contradict each other."""
    headers = [("Content-Type", HTML), ("x-request-id", "fake-other"), ("Retry-After", "1"), ("Retry-After", "60")]
    await exchange.answer(200, exchange.body(), exchange.content_type, headers)


async def redirect_loop(exchange: Exchange) -> None:
    """307 keeps method and body, so each step of a client that follows is a call in the log."""
    await exchange.answer(307, b"", headers=[("Location", exchange.path)])


async def error_object_200(exchange: Exchange) -> None:
    """The body of an error under a status of success."""
    _, body = exchange.dialect.error("server_error")
    await exchange.answer(200, body)


async def empty_choices(exchange: Exchange) -> None:
    """Everything but a choice."""
    answer = exchange.honest()
    if exchange.stream:
        await exchange.open_chunked(fake_answers.stream_chunk(answer, [], usage=answer.usage))
        await exchange.last_chunk(fake_answers.DONE)
    else:
        whole = msgspec.json.decode(exchange.plain(answer))
        await exchange.answer(200, msgspec.json.encode(whole | {"choices": []}))


async def bad_json(exchange: Exchange) -> None:
    """The first half of a plain answer, with the length of that half."""
    body = exchange.plain()
    await exchange.answer(200, body[: len(body) // 2], JSON)


async def bad_json_event(exchange: Exchange) -> None:
    """A stream whose third event stops in the middle; the rest is as it should be."""
    if not exchange.stream:
        await bad_json(exchange)
        return
    told = fake_answers.events(exchange.honest())
    await exchange.open_chunked(told.role, *told.deltas[:1], told.finish[0][:40] + b"\n\n")
    await exchange.last_chunk(*told.deltas[1:], *told.finish, told.done)


async def error_event(exchange: Exchange) -> None:
    """An overload that shows up after the stream has begun."""
    _, body = exchange.dialect.error("overload")
    if not exchange.stream:
        await exchange.answer(200, body)
        return
    told = fake_answers.events(exchange.honest())
    await exchange.open_chunked(told.role, *told.deltas[:1])
    await exchange.last_chunk(b"data: " + body + b"\n\n")


async def no_done(exchange: Exchange) -> None:
    """All the text, and then nothing that says it is complete."""
    if not exchange.stream:
        await other(finish_reason=None)(exchange)
        return
    await exchange.deltas(fake_answers.events(exchange.honest()))
    await exchange.last_chunk()


async def finish_no_done(exchange: Exchange) -> None:
    """Complete by its finish_reason; only the last word is missing."""
    told = fake_answers.events(exchange.honest())
    if not exchange.stream:
        await exchange.tell(exchange.honest())
        return
    await exchange.deltas(told)
    await exchange.last_chunk(*told.finish)


async def no_finish(exchange: Exchange) -> None:
    """`[DONE]` without any finish_reason before it."""
    if not exchange.stream:
        await other(finish_reason=None)(exchange)
        return
    told = fake_answers.events(exchange.honest())
    await exchange.deltas(told)
    await exchange.last_chunk(told.done)


async def length(exchange: Exchange) -> None:
    """The first half of the text."""
    content = exchange.honest().content
    said = Reply(reasoning=None, content=content[: len(content) // 2])
    await exchange.tell(exchange.put(said, "length"))


async def reasoning_only_length(exchange: Exchange) -> None:
    """The limit was reached while the model was still thinking."""
    said = Reply(reasoning=exchange.options.reasoning or "first, let us consider", content="")
    await exchange.tell(exchange.put(said, "length"))


def _http_date(seconds_from_now: float) -> str:
    return formatdate(time.time() + seconds_from_now, usegmt=True)


ANSWER_FAULTS: dict[str, tuple[str, Produce]] = {
    "bad_request": ("400 in the dialect's body", refusal("bad_request")),
    "content_filter": ("400 in the dialect's body: the content is refused", refusal("content_filter")),
    "unauthorized": ("401 in the dialect's body", refusal("unauthorized")),
    "model_gone": ("404 in the dialect's body", refusal("model_gone")),
    "overload": ("the platform is overloaded: 429, or 503 as openai", refusal("overload")),
    "quota": ("429: the money is used up, as the dialect says it", refusal("quota")),
    "arrears": ("429 with code 1113, whatever the dialect", refusal("arrears")),
    "limit_concurrency": ("429 as by the concurrency limit", refusal("limit_concurrency")),
    "limit_rpm": ("429 as by the RPM limit", refusal("limit_rpm")),
    "limit_tpm": ("429 as by the TPM limit", refusal("limit_tpm")),
    "limit_tpd": ("429 as by the daily token limit", refusal("limit_tpd")),
    "http_500": ("500 in the dialect's body", refusal("server_error")),
    "http_503": ("503 in the dialect's body", refusal("unavailable")),
    "x_should_retry_false": ("500 with `x-should-retry: false`", refusal("server_error", ("x-should-retry", "false"))),
    "x_should_retry_true": ("400 with `x-should-retry: true`", refusal("bad_request", ("x-should-retry", "true"))),
    "retry_after_seconds": ("429 with Retry-After: 1", retry_after(lambda: "1")),
    "retry_after_date": ("429 with Retry-After as a date 2 s ahead", retry_after(lambda: _http_date(2))),
    "retry_after_past_date": ("429 with Retry-After as a date of yesterday", retry_after(lambda: _http_date(-86_400))),
    "retry_after_zero": ("429 with Retry-After: 0", retry_after(lambda: "0")),
    "retry_after_huge": ("429 with Retry-After: 1000000000", retry_after(lambda: "1000000000")),
    "retry_after_exponent": ("429 with Retry-After: 1e9", retry_after(lambda: "1e9")),
    "retry_after_nonsense": ("429 with Retry-After: soon", retry_after(lambda: "soon")),
    "retry_after_negative": ("429 with Retry-After: -1", retry_after(lambda: "-1")),
    "retry_after_inf": ("429 with Retry-After: inf", retry_after(lambda: "inf")),
    "retry_after_nan": ("429 with Retry-After: nan", retry_after(lambda: "nan")),
    "retry_after_minutes": ("429 with Retry-After: 300", retry_after(lambda: "300")),
    "retry_after_twice": (
        "429 with Retry-After: 2 and Retry-After: 60",
        refusal("limit_rpm", ("Retry-After", "2"), ("Retry-After", "60")),
    ),
    "retry_after_ms": ("429 with Retry-After-Ms: 1500", refusal("limit_rpm", ("Retry-After-Ms", "1500"))),
    "duplicate_headers": ("a right answer with Content-Type and others twice, which differ", duplicate_headers),
    "redirect_loop": ("307 to the same address", redirect_loop),
    "html_200": ("200 with an HTML page", page(200, b"Welcome")),
    "html_504": ("504 with an HTML page", page(504, b"504 Gateway Time-out")),
    "error_object_200": ("200 with an error object, never a stream", error_object_200),
    "empty_choices": ("200 with an empty list of choices", empty_choices),
    "bad_json": ("200 with half of a JSON answer, never a stream", bad_json),
    "bad_json_event": ("stream: one event is cut JSON; plain: as bad_json", bad_json_event),
    "error_event": ("stream: an error object after the first text; plain: 200 with an error object", error_event),
    "no_done": ("stream: ends in order without finish_reason and [DONE]; plain: finish_reason null", no_done),
    "finish_no_done": ("stream: finish_reason, then ends in order without [DONE]; plain: as always", finish_no_done),
    "no_finish": ("stream: [DONE] without finish_reason; plain: finish_reason null", no_finish),
    "usage_top": ("stream: usage at the top of the finish chunk; plain: as always", other(usage_place="top")),
    "usage_choice": (
        "stream: usage inside choices[0] of the finish chunk; plain: as always",
        other(usage_place="choice"),
    ),
    "usage_final": ("stream: usage in a last chunk without choices; plain: as always", other(usage_place="final")),
    "length": ("half of the text, finish_reason length", length),
    "reasoning_only_length": ("reasoning and no text, finish_reason length", reasoning_only_length),
    "finish_sensitive": ("finish_reason sensitive", other(finish_reason="sensitive")),
    "finish_content_filter": ("finish_reason content_filter", other(finish_reason="content_filter")),
    "finish_network_error": ("finish_reason network_error", other(finish_reason="network_error")),
    "finish_context_exceeded": (
        "finish_reason model_context_window_exceeded",
        other(finish_reason="model_context_window_exceeded"),
    ),
}
"""Name → what it does, and how."""
