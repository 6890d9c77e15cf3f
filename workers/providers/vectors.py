"""What is asked of a service besides a chat: vectors for texts, and the list of its models."""

from __future__ import annotations

import base64
import binascii
import sys
from array import array
from operator import itemgetter
from typing import Any

from callpool.workers.providers.base import Answer
from callpool.workers.providers.completion import Malformed

MAX_MODELS = 10_000


def read_embeddings(body: dict[str, Any], wanted: int) -> Answer:
    """The `wanted` vectors of an answer, in the order of the texts. Raises `Malformed`, also for fewer or more."""
    data = body.get("data")
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise Malformed("its data is no list of objects")
    numbered = [(each.get("index", place), _vector(each.get("embedding"))) for place, each in enumerate(data)]
    if sorted(index for index, _ in numbered if isinstance(index, int)) != list(range(len(numbered))):
        raise Malformed("its vectors are not numbered one by one")
    if len(numbered) != wanted:
        raise Malformed(f"it has {len(numbered)} vectors for {wanted} texts")
    if len({len(vector) for _, vector in numbered}) > 1:
        raise Malformed("its vectors differ in length")
    usage = body.get("usage")
    return Answer(
        content="",
        embeddings=[vector for _, vector in sorted(numbered, key=itemgetter(0))],
        usage=usage if isinstance(usage, dict) else {},
    )


def read_models(body: dict[str, Any]) -> Answer:
    """The models of an answer, each as the service describes it. Raises `Malformed`."""
    data = body.get("data")
    if not isinstance(data, list) or not all(
        isinstance(each, dict) and isinstance(each.get("id"), str) for each in data
    ):
        raise Malformed("its data is no list of models")
    if len(data) > MAX_MODELS:
        raise Malformed(f"it lists more than {MAX_MODELS} models")
    return Answer(content="", models=data)


def _vector(value: object) -> list[float]:
    """Numbers, or base64 of 32-bit ones, the lowest byte first."""
    if isinstance(value, str):
        try:
            packed = array("f", base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            raise Malformed("a vector is no base64 of numbers") from None
        if sys.byteorder == "big":
            packed.byteswap()
        return packed.tolist()
    if not isinstance(value, list) or not value or not all(type(each) in (int, float) for each in value):
        raise Malformed("a vector is no list of numbers")
    return value
