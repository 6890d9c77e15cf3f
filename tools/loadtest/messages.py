"""What a load test and its client processes tell each other: one JSON object a line.

parent ──Order──► client        client ──Ready──► parent ──"go"──► client ──Ended …──► parent
"""

from __future__ import annotations

import msgspec


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What one client process is to do. It travels on standard input, since it may hold a key."""

    client: int
    """Its number, from 1."""
    delays: list[float]
    """Seconds that each of its calls takes."""
    max_tokens: int
    wait: float
    """Seconds for everything."""


class ThroughCallpool(Order, frozen=True, kw_only=True, tag="callpool"):
    """Submit everything to the supervisor, at once."""

    address: str


class Directly(Order, frozen=True, kw_only=True, tag="direct"):
    """Call the provider."""

    url: str
    """Of chat completions."""
    key: str
    timeout: float
    """Seconds for one call."""
    at_once: int
    """Calls at once that this process allows itself."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The client has what it needs, and waits for the word."""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """One request is over. Times are `time.monotonic()`, one clock for all processes of a machine."""

    number: int
    """From 1, in the order of submission."""
    submitted: float
    ended: float
    error: str | None
    """None for an answer; else the code of the error."""


News = Ready | Ended

_orders = msgspec.json.Decoder(ThroughCallpool | Directly)
_news = msgspec.json.Decoder(News)


def encode(message: Order | News) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def decode_order(line: bytes) -> ThroughCallpool | Directly:
    """Raises `msgspec.DecodeError` for what `encode` did not make of an order."""
    order: ThroughCallpool | Directly = _orders.decode(line)
    return order


def decode_news(line: bytes) -> News:
    """Raises `msgspec.DecodeError` for what `encode` did not make of news."""
    news: News = _news.decode(line)
    return news
