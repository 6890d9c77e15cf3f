"""Vectors for texts: the same text has the same vector, whichever fake is asked. Pure."""

from __future__ import annotations

import base64
import hashlib
import struct
from math import sqrt
from typing import Any

import msgspec

from callpool.tools.testing.fake_answers import text_tokens
from callpool.tools.testing.fake_requests import EmbeddingsRequest

DIMENSIONS = 64
"""Of a vector where the request does not say: few, because it is read by tests."""


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """A vector of length 1. Fewer dimensions are the beginning of more of them, made length 1 again."""
    digest = hashlib.shake_256(text.encode()).digest(2 * dimensions)
    # Odd numbers, so that no length is 0.
    numbers = [2 * number + 1 for number in struct.unpack(f"<{dimensions}h", digest)]
    length = sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def answer(request: EmbeddingsRequest) -> bytes:
    """The body of a right answer."""
    vectors = (vector(text, request.dimensions or DIMENSIONS) for text in request.texts)
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(found, request)}
        for index, found in enumerate(vectors)
    ]
    tokens = sum(map(text_tokens, request.texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": request.model, "usage": usage})


def _encoded(found: list[float], request: EmbeddingsRequest) -> Any:
    if request.encoding_format == "float":
        return found
    return base64.b64encode(struct.pack(f"<{len(found)}f", *found)).decode()
