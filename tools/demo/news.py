"""What a client process tells the demo: one JSON object a line on its standard output."""

from __future__ import annotations

import msgspec


class Connected(msgspec.Struct, frozen=True, tag="connected"):
    """The client has its connection and waits for the word to begin."""


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """The next piece of the answer."""

    text: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The answer is complete."""

    content: str
    """The whole text, as the result has it."""
    tokens: int
    """The model's own count of the answer."""
    session_id: str


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """The client got an error instead."""

    message: str


News = Connected | Piece | Done | Broken

_decoder = msgspec.json.Decoder(News)


def encode(news: News) -> bytes:
    """One line."""
    return msgspec.json.encode(news) + b"\n"


def decode(line: bytes) -> News:
    """Raises `msgspec.DecodeError` for anything that `encode` did not make."""
    news: News = _decoder.decode(line)
    return news
