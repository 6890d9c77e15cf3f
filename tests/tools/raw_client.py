"""A client that hides nothing: it sends bytes, keeps every byte that comes back and how the connection ended, and reads them itself.

Nothing of the fake provider's code reads or writes for it, so that a mistake there is not a mistake here too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import uvloop

from callpool.tools.testing.fake_provider import FakeProvider

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
KEY = "sk-0123456789abcdef"
HANG = 10.0
"""Seconds after which a wait counts as a hang."""


def chat(
    *,
    model: str = "m",
    text: str = "the quick brown fox",
    stream: bool = False,
    key: str | None = None,
    close: bool = True,
    base: str = "/v1",
    **more: Any,
) -> bytes:
    """A whole chat request. With `close` the server is asked to close after its answer, so that one can read to the end."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream, **more}
    return request("POST", f"{base}/chat/completions", json.dumps(body).encode(), key=key, close=close)


def request(method: str, path: str, body: bytes = b"", *, key: str | None = None, close: bool = True) -> bytes:
    """A whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"Authorization: Bearer {key}"] if key is not None else []
    lines += ["Connection: close"] if close else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@dataclass
class Told:
    """What an answer tells, put together from a plain body or from the events of a stream."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    usage_places: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Events that are no JSON."""
    pieces: int = 0
    """Events with content."""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """Those of a stream put together by their index."""
    fragments: int = 0
    """Events with arguments of a tool call."""
    web_search: Any = None
    done: bool = False


@dataclass
class Seen:
    """Everything that came back on a connection."""

    raw: bytes
    ending: str
    """eof, or reset."""

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        version, status, _ = self.head.split(b" ", 2)
        assert version == b"HTTP/1.1"
        return int(status)

    def headers(self, name: str) -> list[str]:
        """Every value of one header."""
        pairs = [line.split(": ", 1) for line in self.head.decode("latin-1").split("\r\n")[1:]]
        return [value for found, value in pairs if found.lower() == name.lower()]

    def text(self) -> bytes:
        """The body without its chunks, after checking that it is exactly as long as announced."""
        if self.headers("transfer-encoding") == ["chunked"]:
            text, rest = dechunk(self.body)
            assert rest == b"0\r\n\r\n", f"the chunked body does not end in order: {rest[:80]!r}"
            return text
        assert self.headers("content-length") == [str(len(self.body))]
        return self.body

    def json(self) -> Any:
        """The plain JSON body."""
        assert self.headers("content-type") == ["application/json"]
        return json.loads(self.text())

    def told(self, *, stream: bool) -> Told:
        """The answer in the body, whose form must be the one that was asked for."""
        if not stream:
            return told_plain(self.json())
        assert self.headers("content-type") == ["text/event-stream; charset=utf-8"]
        return told_stream(self.text())


def dechunk(body: bytes) -> tuple[bytes, bytes]:
    """The data of all whole chunks, and what is left from the first one that is last, torn, or no chunk."""
    found: list[bytes] = []
    while True:
        size, line, after = body.partition(b"\r\n")
        try:
            length = int(size, 16)
        except ValueError:
            return b"".join(found), body
        if not line or length == 0 or len(after) < length + 2:
            return b"".join(found), body
        assert after[length : length + 2] == b"\r\n"
        found.append(after[:length])
        body = after[length + 2 :]


def told_plain(body: dict[str, Any]) -> Told:
    assert body["object"] == "chat.completion"
    [choice] = body["choices"]
    assert choice["message"]["role"] == "assistant"
    return Told(
        content=choice["message"]["content"] or "",
        reasoning=choice["message"].get("reasoning_content", ""),
        finish_reason=choice["finish_reason"],
        usage=body["usage"],
        usage_places=["top"],
        tool_calls=choice["message"].get("tool_calls", []),
        web_search=body.get("web_search"),
    )


def told_stream(body: bytes) -> Told:
    """Follow a stream as a careful client does; the order of its events is checked on the way."""
    told = Told()
    *events, rest = body.split(b"\n\n")
    assert rest == b"", "the stream stops inside an event"
    for number, event in enumerate(events):
        if event.startswith(b":"):
            continue
        data = event.removeprefix(b"data: ")
        assert data != event, f"not a data event: {event[:80]!r}"
        assert not told.done, "an event after [DONE]"
        if data == b"[DONE]":
            told.done = True
            continue
        try:
            chunk = json.loads(data)
        except ValueError:
            told.broken.append(data.decode())
            continue
        follow(told, chunk, first=number == 0)
    return told


def follow(told: Told, chunk: dict[str, Any], *, first: bool) -> None:
    """Take one chunk object in."""
    if "error" in chunk:
        told.errors.append(chunk["error"])
        return
    assert chunk["object"] == "chat.completion.chunk"
    for choice in chunk["choices"]:
        delta = choice["delta"]
        assert (delta.get("role") == "assistant") == first, "the role comes first, and once"
        assert told.finish_reason is None, "text after finish_reason"
        told.reasoning += delta.get("reasoning_content", "")
        if delta.get("content"):
            told.content += delta["content"]
            told.pieces += 1
        for call in delta.get("tool_calls", []):
            assert not delta.get("content"), "text beside a tool call"
            follow_call(told, call)
        told.finish_reason = choice["finish_reason"]
        if "usage" in choice:
            told.usage = choice["usage"]
            told.usage_places.append("choice")
    if chunk.get("usage"):
        told.usage = chunk["usage"]
        told.usage_places.append("top" if chunk["choices"] else "final")
    told.web_search = chunk.get("web_search", told.web_search)


def follow_call(told: Told, call: dict[str, Any]) -> None:
    """Take one piece of a tool call in: the first one names it, the others have arguments only."""
    fragment = call["function"]["arguments"]
    told.fragments += bool(fragment)
    if call["index"] == len(told.tool_calls):
        assert call["id"]
        assert call["function"]["name"]
        told.tool_calls.append(call)
        return
    assert set(call) == {"index", "function"}
    assert set(call["function"]) == {"arguments"}
    assert call["index"] == len(told.tool_calls) - 1, "one call after another"
    told.tool_calls[call["index"]]["function"]["arguments"] += fragment


async def connect(base_url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the server of a base URL."""
    port = urlsplit(base_url).port
    assert port is not None
    return await asyncio.open_connection("127.0.0.1", port)


async def read_all(reader: asyncio.StreamReader) -> Seen:
    """Read until the connection ends, one way or the other."""
    raw = b""
    while True:
        try:
            data = await reader.read(1 << 20)
        except ConnectionResetError:
            return Seen(raw, "reset")
        if not data:
            return Seen(raw, "eof")
        raw += data


async def ask(base_url: str, sent: bytes) -> Seen:
    """Send these bytes on a connection of their own and read to its end."""
    reader, writer = await connect(base_url)
    writer.write(sent)
    try:
        return await read_all(reader)
    finally:
        await leave(writer)


async def leave(writer: asyncio.StreamWriter) -> None:
    """Close the connection and wait until it is closed."""
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)  # a reset one raises, and is closed too


async def with_limit(main: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine: it may not hang, and leaves no task behind."""
    async with asyncio.timeout(HANG):
        await main
    assert asyncio.all_tasks() == {asyncio.current_task()}


def run(main: Callable[[FakeProvider], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def served() -> None:
        async with FakeProvider(**options) as fake:
            await main(fake)

    asyncio.run(with_limit(served()))


async def post(session: aiohttp.ClientSession, to: FakeProvider, key: str = KEY, **body: Any) -> tuple[int, Any]:
    """One plain call as an ordinary client makes it: the status and the decoded body."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]} | body
    headers = {"Authorization": f"Bearer {key}"}
    async with session.post(f"{to.base_url}/chat/completions", json=body, headers=headers) as response:
        return response.status, await response.json()
