"""The contract between a worker and a kind of provider.

A provider object lives in one worker process and serves many calls at once on that worker's event loop. It keeps
connections, and nothing about any request. Part of the contract that no type can say:

- A call that has to wait for a connection waits before `progress.started()`.
- `await progress.started()` comes before the first byte leaves for the provider, and nowhere else: after it the call
  counts as made, and a crash leaves it in doubt.
- Cancelling the task that runs `call` closes the exchange at once (the provider sees the socket close) and leaks nothing.
- The deadlines of a call are the caller's business (`callpool.workers.call`): a provider sets none of its own that is shorter. It
  tells of a stream what brings the answer on, and when the answer is whole.
- Every failure leaves as a `CallpoolError` of the provider family, never as a library's exception, and never with a key in it.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from callpool.manager.core.messages import Operation
from callpool.manager.core.options import NO_OPTIONS, Options
from callpool.manager.core.pools import PoolCounts


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call to make: what the client asked, decoded."""

    request_id: str
    attempt: int
    provider: str
    model: str
    stream: bool
    timeout: float
    """Seconds for the whole call. This and the next two are kept by `callpool.workers.call`; informative here."""
    first_token_timeout: float | None = None
    """Of a stream: seconds from `started` to the first chunk that brings anything."""
    idle_timeout: float | None = None
    """Of a stream: seconds from one chunk that brings anything to the next."""
    operation: Operation = "chat"
    messages: list[dict[str, Any]] = []
    """Of a chat."""
    parameters: dict[str, Any] = {}
    """Everything else of the request's body, passed to the provider as it is (`temperature`, `max_tokens`, `tools`, …)."""
    options: Options = NO_OPTIONS
    """What callpool itself was asked for. What a provider has a parameter for is in `parameters` and `messages` already."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A provider's complete answer. Travels to the client as JSON; the supervisor never looks inside."""

    content: str
    """The text; empty where the model only reasoned or only called tools."""
    finish_reason: str | None = None
    usage: dict[str, Any] = {}
    """The provider's own counts: `prompt_tokens`, `completion_tokens`, `total_tokens`, and what else it sends."""
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    provider: str = ""
    """Who answered, by the name in the configuration; a fallback is another one than the request named. Set by the worker."""
    model: str = ""
    embeddings: list[list[float]] | None = None
    """One vector a text, where vectors were asked for."""
    models: list[dict[str, Any]] | None = None
    """The provider's own list, where it was asked for."""
    continuation: dict[str, Any] | None = None
    """Of an answer that was cut at the length limit, where the request asked for more: `answers` joined, `total_tokens`,
    `is_complete`, `was_truncated`, and `why` it still is."""
    searches: dict[str, Any] | None = None
    """Of an answer for which the provider searched: in how many `rounds`, and `why` that is all."""
    dropped_parameters: list[str] = []
    """What the request stated and the provider was not sent, because it leaves no choice there."""
    raw: Any = None
    """The provider's own answer. Of a stream: an equivalent `chat.completion` object, joined from the chunks."""


class Progress(Protocol):
    """How a provider tells the worker what happens during a call."""

    async def started(self) -> None:
        """The next thing is the provider: returns once the supervisor's pipe has the news."""

    async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:
        """A piece of a streamed answer: its text (may be empty) and the provider's own chunk object.

        `useful`: whether it brings the answer on; a service may send empty ones only to keep the connection. Awaiting it is the
        stream's flow control: it waits while the way to the client is full.
        """

    def counted(self, usage: dict[str, Any]) -> None:
        """What the provider tells that this call has used until now, as it tells it: known also if no answer comes of it."""

    def whole(self) -> None:
        """The answer is whole, or refused: what still comes is counts, or words, and no silence is too long any more."""


class Provider(Protocol):
    """One account of one kind, inside one worker."""

    async def call(self, call: Call, progress: Progress) -> Answer:
        """Make one call. Raises `callpool.manager.errors.CallpoolError` subclasses only."""
        ...

    async def close(self) -> None:
        """Close connections. Called once, when no call is active any more."""


class Pooled(Provider, Protocol):
    """A provider as its worker keeps it, with its connections."""

    def warm(self) -> None:
        """Begin to open connections ahead of the calls, where that was asked for. Called once, in the running loop."""

    def stop_warming(self) -> None:
        """No more calls come: open no connections ahead any more."""

    def counts(self) -> PoolCounts | None:
        """What the connections come to; None where none have been made."""
