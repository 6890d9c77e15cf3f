"""What a call uses: reckoned from what is really sent, and read from what the provider tells of it afterwards. Pure."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

from callpool.manager.core.limits import Usage
from callpool.manager.core.tokens import chat_usage, texts_usage
from callpool.workers.providers.base import Call

MAX_TOLD: Final = 100_000_000
"""Tokens of one call: a provider that tells more is wrong. Ten times the greatest context of today, or 128 answers of the longest."""
_CACHED: Final = ("cached_tokens", "prompt_cache_hit_tokens")
"""Where Kimi, and DeepSeek and its like, put the prompt's cached tokens; OpenAI and GLM have them in `prompt_tokens_details`."""


def reckon(call: Call) -> Usage:
    """What this call will use, as it is sent. A list of models uses nothing."""
    if call.operation == "chat":
        return chat_usage(call.messages, call.parameters)
    return texts_usage(call.parameters.get("input")) if call.operation == "embeddings" else Usage()


def read_usage(told: object) -> Usage | None:
    """A provider's own counts; None where it tells too few of them, or what cannot be: a budget must not hang on it.

    Two of prompt, answer and total suffice (of vectors nobody tells an answer). What the total has beyond both is the answer's:
    some do not count the reasoning in `completion_tokens`, and bill it.
    """
    if not isinstance(told, dict):
        return None
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    counts = {name: told[name] for name in names if told.get(name) is not None}
    if len(counts) < 2 or not all(_is_count(value) for value in counts.values()):
        return None
    total = counts.get("total_tokens", 0)
    answer = counts.get("completion_tokens", 0)
    prompt = counts.get("prompt_tokens", total - answer)
    answer = max(answer, total - prompt)
    if prompt <= 0:
        return None  # nothing can be asked with no token: whoever tells that does not count
    return Usage(prompt, answer, _cached(told, prompt))


def _cached(told: dict[str, Any], prompt: int) -> int:
    """Of the prompt's tokens; none where the figure cannot be, for cached ones are cheaper."""
    details = told.get("prompt_tokens_details")
    places = [
        details.get("cached_tokens") if isinstance(details, dict) else None,
        *(told.get(name) for name in _CACHED),
    ]
    return next((count for count in places if _is_count(count) and 0 < count <= prompt), 0)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_TOLD
