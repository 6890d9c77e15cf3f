"""The scripted provider: answers and faults from the configuration, without any network.

For trying callpool out, for tests, and for measuring everything around a provider: without a delay a call costs no
timer, no task and no turn of the event loop. Its tokens are words.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from callpool.manager.errors import ConfigError
from callpool.manager.settings import ModelSettings
from callpool.workers.providers.base import Answer, Call, Progress
from callpool.workers.providers.completion import text_of
from callpool.workers.providers.script_faults import FAULTS, check_fault

__all__ = ["FAULTS", "Scripted", "check_fault"]

VECTOR_SIZE = 8
_WORD = re.compile(r"\S+\s*|\s+")
_ECHO = ModelSettings()


class Scripted:
    """Plays the scripts of its models; a model without one echoes the last message.

    `replies` advance per provider object, so each worker goes through them by itself.
    """

    def __init__(self, models: Mapping[str, ModelSettings]) -> None:
        """Raise `ConfigError` for a fault that does not exist."""
        for name, script in models.items():
            nearest = check_fault(script.error) if script.error is not None else None
            if nearest is not None:
                raise ConfigError(
                    f"model {name!r}: there is no fault {script.error!r}; did you mean {nearest!r}?",
                    param=f"models.{name}.error",
                )
        self._models = dict(models)
        self._given: dict[str, int] = {}
        self._failed: dict[str, int] = {}

    async def call(self, call: Call, progress: Progress) -> Answer:
        """Play the model's script: delay, then chunks where the call streams, then the answer or the fault."""
        if call.operation == "models":
            return Answer(content="", models=[{"id": name, "object": "model"} for name in self._models])
        script = self._models.get(call.model, _ECHO)
        fails = script.error is not None and self._still_fails(call.model, script)
        if call.stream or script.delay > 0 or fails:
            # An answer at once needs no report before it: there is no provider, and nothing lies between start and end.
            await progress.started()
        if script.delay > 0:
            await asyncio.sleep(script.delay)
        text = self._reply(call, script)
        if call.stream and (script.chunks or not fails):
            await _send_chunks(call, script, text, progress, whole=not fails)
        if fails and script.error is not None:
            await FAULTS[script.error](call)
        if call.operation == "embeddings":
            return _vectors(call)
        return _answer(call, text)

    def warm(self) -> None:
        """There is nothing to open."""

    def stop_warming(self) -> None:
        """Nothing was begun."""

    def counts(self) -> None:
        """There are no connections."""

    async def close(self) -> None:
        """Nothing is open."""

    def _still_fails(self, model: str, script: ModelSettings) -> bool:
        """Whether this call gets the fault; counts it."""
        failed = self._failed.get(model, 0)
        self._failed[model] = failed + 1
        return script.error_times is None or failed < script.error_times

    def _reply(self, call: Call, script: ModelSettings) -> str:
        if script.replies:
            turn = self._given.get(call.model, 0)
            self._given[call.model] = turn + 1
            return script.replies[min(turn, len(script.replies) - 1)]
        if script.reply is not None:
            return script.reply
        return text_of(call.messages[-1].get("content")) if call.messages else ""


def _vectors(call: Call) -> Answer:
    """A vector of length 1 for each text: the same text always has the same."""
    given = call.parameters.get("input")
    texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    words = sum(len(str(text).split()) for text in texts)
    return Answer(
        content="",
        embeddings=[_vector(str(text)) for text in texts],
        usage={"prompt_tokens": words, "total_tokens": words},
    )


def _vector(text: str) -> list[float]:
    numbers = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:VECTOR_SIZE]]
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


async def _send_chunks(call: Call, script: ModelSettings, text: str, progress: Progress, *, whole: bool) -> None:
    created = int(time.time())
    first = True
    for piece in _pieces(text, script.chunks):
        if not first and script.chunk_delay > 0:
            await asyncio.sleep(script.chunk_delay)
        delta = {"role": "assistant", "content": piece} if first else {"content": piece}
        first = False
        await progress.chunk(piece, _chunk(call, created, delta, None))
    if whole:
        await progress.chunk("", _chunk(call, created, {}, "stop"))


def _pieces(text: str, count: int) -> Iterator[str]:
    """The text in `count` pieces of about the same length, or word by word with 0; joined they are the text again."""
    if count <= 0:
        yield from _WORD.findall(text)
        return
    for index in range(count):
        yield text[len(text) * index // count : len(text) * (index + 1) // count]


def _chunk(call: Call, created: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {
        "id": call.request_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": call.model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


def _answer(call: Call, text: str) -> Answer:
    prompt = sum(len(text_of(message.get("content")).split()) for message in call.messages)
    completion = len(text.split())
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    message = {"role": "assistant", "content": text}
    raw = {
        "id": call.request_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": call.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
    }
    return Answer(content=text, finish_reason="stop", usage=usage, raw=raw)
