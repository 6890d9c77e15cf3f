"""Providers that speak OpenAI's chat dialect, spoken directly: one request, one answer or one stream of chunks.

No retries, no deadlines, no redirects here: each call is one exchange, and whoever asked decides what a failure means.
What services do differently is data, in `presets`.

    call ─► body ─► send ─► Reply ─┬─ status not 2xx ───► refused()
                                   ├─ plain: read_all ──► read_completion ─► Answer      (or embeddings, models)
                                   └─ stream: SseDecoder ─► Joined ─┬─ chunk by chunk to `progress`
                                                                    └─► read_completion ─► Answer
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import msgspec
from yarl import URL

from callpool.manager.core.pools import PoolCounts
from callpool.manager.errors import ConfigError, ProviderError, ProviderRejected
from callpool.manager.settings import KEEP_IDLE
from callpool.version import __version__
from callpool.workers.providers import failures
from callpool.workers.providers.base import Answer, Call, Progress
from callpool.workers.providers.completion import Joined, Malformed, brings_on, read_completion
from callpool.workers.providers.connections import ConnectionFailed, Connections, Reply
from callpool.workers.providers.presets import Preset
from callpool.workers.providers.secret import Secret
from callpool.workers.providers.sse import MAX_EVENT_BYTES, EventTooLarge, SseDecoder
from callpool.workers.providers.tasks import FIRST_LOOK, LONGEST_PAUSE, has_ended, result_url
from callpool.workers.providers.vectors import read_embeddings, read_models
from callpool.workers.providers.wording import describe

MAX_REFUSAL_BYTES = 64 << 10
REFUSAL_WAIT = 5.0
"""Bytes and seconds for the body of a refusal: the status says what happened, the body only adds words."""

TRAILER_WAIT = 5.0
"""Seconds from a stream's finish reason to its end: the answer is there, the token counts may follow."""
LAST_MOMENT = 0.1
"""Seconds before the call's deadline (a tenth of a shorter one) from which on nothing is waited for that only counts, or explains:
a whole answer, or a refusal, must not be lost to the deadline."""

CLOSING_WAIT = 0.1
"""Seconds from `[DONE]` to a stream's end: waiting longer than a new connection takes would be no gain."""

DONE = b"[DONE]"

NO_STREAM = ("application/json", "text/html")
"""Content types of what is no stream though one was asked for: services that cannot, and gateways' pages. Anything else is
read as events, because some services name their streams wrongly."""


@dataclass(frozen=True)
class Bounds:
    """The most bytes that we take from a provider, counted after decompression."""

    answer: int = 16 << 20
    """A plain answer: the longest text of today's models is about 0.5 MB."""
    stream: int = 64 << 20
    """A stream with its framing: 131,072 tokens (today's longest output) in chunks of 300 bytes are 39 MB."""
    event: int = MAX_EVENT_BYTES


DEFAULT_BOUNDS = Bounds()


class TooLong(Malformed):
    """More came than our bounds allow: the same request would bring as much again, and cost as much."""


class OpenAICompatible:
    """One account of a service with OpenAI's chat dialect; many calls at once in one event loop."""

    def __init__(
        self,
        preset: Preset,
        key: Secret | None,
        *,
        base_url: str,
        limit: int,
        keep_alive: float = KEEP_IDLE,
        warm: int = 0,
        bounds: Bounds = DEFAULT_BOUNDS,
    ) -> None:
        """Allow `limit` connections at once, each kept unused for `keep_alive` seconds, `warm` of them opened ahead.

        Without a key no `Authorization` is sent. Raises `ConfigError`.
        """
        self._preset = preset
        self._urls = {name: service_url(base_url, path) for name, path in preset.paths.items()}
        self._bounds = bounds
        self._warm = warm
        self._connections = Connections(_headers(preset, key), limit, keep_alive=keep_alive)

    async def call(self, call: Call, progress: Progress) -> Answer:
        """Make one call. Raises `ProviderError` subclasses; a cancelled call closes its connection at once."""
        body = self._body(call)
        joined = Joined(self._preset.usage) if call.stream else None
        last_call = _now() + call.timeout - min(LAST_MOMENT, call.timeout / 10)
        await self._connections.take_place()
        try:
            await progress.started()
            return await self._exchange(call, body, joined, progress, last_call)
        finally:
            self._connections.leave_place()

    async def _exchange(
        self, call: Call, body: bytes | None, joined: Joined | None, progress: Progress, last_call: float
    ) -> Answer:
        failure: ProviderError
        try:
            if call.options.async_task:
                return await self._run_task(call, body, progress, last_call)
            async with await self._connections.send(self._urls[call.operation], body) as reply:
                if joined is not None and reply.is_good and reply.content_type not in NO_STREAM:
                    return await self._read_stream(call, reply, joined, progress, last_call)
                return await self._read_plain(call, reply, progress, last_call)
        except ConnectionFailed as lost:
            partial = joined.text if joined else None
            failure = failures.unreachable(call, lost.phase, lost.reason, retryable=lost.retryable, partial=partial)
        except (TooLong, EventTooLarge) as endless:
            failure = failures.too_long(call, str(endless), joined.text if joined else None)
        except Malformed as malformed:
            failure = failures.broken(call, str(malformed), joined.text if joined else None)
        except RecursionError:  # in decoding, in joining, or in passing on
            failure = failures.broken(call, "its JSON is nested too deeply", joined.text if joined else None)
        raise failure

    def warm(self) -> None:
        """Begin to open connections ahead of the calls, where that was asked for."""
        if self._warm > 0:
            self._connections.warm(self._urls["chat"], self._warm)

    def stop_warming(self) -> None:
        """Open none ahead any more."""
        self._connections.stop_warming()

    def counts(self) -> PoolCounts | None:
        """What the connections come to."""
        return self._connections.counts()

    async def close(self) -> None:
        """Close every connection."""
        await self._connections.close()

    def _body(self, call: Call) -> bytes | None:
        """What is sent; None asks without a body."""
        if call.operation == "models":
            return None
        body = {**call.parameters, "model": call.model}
        if call.operation == "chat":
            extra = self._preset.stream_parameters if call.stream else {}
            body = {**extra, **body, "messages": call.messages, "stream": call.stream}
        try:
            return msgspec.json.encode(body)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = describe(error)
        raise ProviderRejected(
            f"the request cannot be written as JSON: {reason}",
            provider=call.provider,
            model=call.model,
            status=0,
            provider_code=None,
            retryable=False,
            retry_after=None,
            scope="request",
        )

    async def _read_object(self, call: Call, reply: Reply, progress: Progress, last_call: float) -> dict[str, Any]:
        """The whole answer as an object; what is a refusal is raised."""
        if not reply.is_good:
            progress.whole()  # what still comes are words that explain it
            words = await reply.read_what_comes(MAX_REFUSAL_BYTES, min(_now() + REFUSAL_WAIT, last_call))
            refusal = failures.read_refusal(words, reply.status, reply.headers)
            raise failures.refused(self._preset, call, refusal, now=time.time())
        body = await reply.read_all(self._bounds.answer)
        if body is None:
            raise TooLong(f"it is longer than {self._bounds.answer} bytes")
        try:
            answered = _decode(body)
        except Malformed as malformed:
            raise Malformed(f"{malformed} (content type {reply.content_type}, {len(body)} bytes)") from None
        self._check_refusal(call, answered, reply)
        return answered

    async def _read_plain(self, call: Call, reply: Reply, progress: Progress, last_call: float) -> Answer:
        body = await self._read_object(call, reply, progress, last_call)
        progress.counted(self._preset.usage(body) or {})  # whatever is wrong with the rest
        if call.operation != "chat":
            texts = call.parameters.get("input")
            wanted = len(texts) if isinstance(texts, list) else 1
            return read_embeddings(body, wanted) if call.operation == "embeddings" else read_models(body)
        answer = self._checked(call, read_completion(body, self._preset.usage))
        if call.stream and answer.content:
            await progress.chunk(answer.content, None)
        return answer

    async def _run_task(self, call: Call, body: bytes | None, progress: Progress, last_call: float) -> Answer:
        """Leave the request with the service, and look for its answer: what breaks while we only look loses nothing."""
        async with await self._connections.send(self._urls["task"], body) as reply:
            order = await self._read_object(call, reply, progress, last_call)
        url = result_url(self._urls["result"], order)
        pause = FIRST_LOOK
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                async with await self._connections.send(url) as reply:
                    task = await self._read_object(call, reply, progress, last_call)
            except TooLong:
                raise  # it is ready, and will be no shorter the next time
            except (ConnectionFailed, Malformed):
                continue  # the task goes on without us
            except ProviderError as error:
                if not error.retryable:
                    raise failures.after_order(error) from None
                pause = max(pause, error.retry_after or 0.0)
                continue
            if has_ended(task):
                progress.counted(self._preset.usage(task) or {})
                return self._checked(call, read_completion(task, self._preset.usage))

    async def _read_stream(
        self, call: Call, reply: Reply, joined: Joined, progress: Progress, last_call: float
    ) -> Answer:
        """Chunks until `[DONE]` or the end; after the finish reason a break, or TRAILER_WAIT, is an end too."""
        decoder = SseDecoder(self._bounds.event)
        size = 0
        until: float | None = None
        done = False
        while not done:
            try:
                piece = await reply.read(until)
            except ConnectionFailed:
                if not joined.complete:
                    raise
                break
            size += len(piece)
            if size > self._bounds.stream:
                raise TooLong(f"its stream is longer than {self._bounds.stream} bytes")
            done = not piece
            for payload in decoder.feed(piece) if piece else decoder.end():
                if payload == DONE:
                    done = True
                    break
                chunk = _decode(payload)
                self._check_refusal(call, chunk, reply, joined)
                await _pass_on(call, chunk, joined, progress)
            until = _trailer_until(call, joined, until, last_call)
        if not joined.complete:
            raise Malformed("its stream ended without a finish reason")
        if done:
            await _read_to_end(reply, last_call)
        return self._checked(call, read_completion(joined.body(), self._preset.usage))

    def _check_refusal(self, call: Call, body: dict[str, Any], reply: Reply, joined: Joined | None = None) -> None:
        """Raise the error that stands where an answer or a chunk should be: overload can strike after the 200."""
        refusal = failures.find_refusal(body, reply.status, reply.headers)
        if refusal is not None:
            partial = joined.text if joined else None
            raise failures.refused(self._preset, call, refusal, now=time.time(), partial=partial)

    def _checked(self, call: Call, answer: Answer) -> Answer:
        verdict = self._preset.failed_finishes.get(answer.finish_reason or "")
        if verdict is not None:
            raise failures.failed_finish(call, answer.finish_reason or "", verdict, answer.content)
        return answer


def service_url(base_url: str, path: str) -> URL:
    """The address of an endpoint. Raises `ConfigError` for anything but a plain http(s) root."""
    try:
        url = URL(base_url.rstrip("/") + path)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment:
        raise ConfigError("base_url must be an http or https address without query or fragment", param="base_url")
    if url.user is not None or url.password is not None:
        # It would show in every message that names the address.
        raise ConfigError("base_url must hold no user name or password", param="base_url")
    return url


def _headers(preset: Preset, key: Secret | None) -> dict[str, str]:
    headers = {
        "Accept": "application/json",  # for streams too: the official SDK does so, and services are tested with that
        # Compressed, events would sit in the gateway's compressor until it flushes, and an answer's length says nothing
        # about its size. A service that compresses all the same is understood; limits count decompressed bytes.
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"callpool/{__version__}",
        **preset.headers,
    }
    if key is not None:
        headers["Authorization"] = f"Bearer {key.reveal()}"
    return headers


def _decode(data: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(data)
    except ValueError:
        raise Malformed("it is not JSON") from None
    if not isinstance(decoded, dict):
        raise Malformed("it is no JSON object")
    return decoded


def _trailer_until(call: Call, joined: Joined, until: float | None, last_call: float) -> float | None:
    """Until when counts are awaited; None while something of the answer is: the next choice may begin when the one before has ended."""
    if not joined.has_all(call.parameters.get("n")):
        return None
    return min(_now() + TRAILER_WAIT, last_call) if until is None else until


async def _pass_on(call: Call, chunk: dict[str, Any], joined: Joined, progress: Progress) -> None:
    before = joined.usage
    text = joined.add(chunk)
    if joined.usage is not None and joined.usage is not before:
        progress.counted(joined.usage)
    if joined.has_all(call.parameters.get("n")):
        progress.whole()
    await progress.chunk(text, chunk, useful=brings_on(chunk))


async def _read_to_end(reply: Reply, last_call: float) -> None:
    """Give the connection the chance to be used again: only a body that ended leaves it clean."""
    until = min(_now() + CLOSING_WAIT, last_call)
    try:
        while await reply.read(until):
            pass
    except ConnectionFailed:
        pass  # the answer is complete; the connection is closed instead of kept


def _now() -> float:
    return asyncio.get_running_loop().time()
