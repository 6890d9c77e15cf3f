"""What a chat request may ask of the fake, and how."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from callpool.tools.testing import fake_answers

Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to answer: the fake's own options, overridden by the `fake` object in a request's body."""

    delay: Seconds = 0.0
    """Seconds before the answer, or before its first chunk."""
    chunks: Count = 4
    """Pieces of a streamed content."""
    chunk_delay: Seconds = 0.0
    """Seconds before each further piece; the interval of faults that drip, where 0 means 1 second."""
    reply: str | None = None
    """None echoes the last user message."""
    finish_reason: str | None = None
    """None is `stop`."""
    size: Size | None = None
    """Bytes of the faults that are about size; None takes the fault's own."""
    fault: str | None = None


class Overrides(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `fake` object of a request: only what it names is overridden."""

    delay: Seconds | msgspec.UnsetType = msgspec.UNSET
    chunks: Count | msgspec.UnsetType = msgspec.UNSET
    chunk_delay: Seconds | msgspec.UnsetType = msgspec.UNSET
    reply: str | msgspec.UnsetType = msgspec.UNSET
    finish_reason: str | msgspec.UnsetType = msgspec.UNSET
    size: Size | msgspec.UnsetType = msgspec.UNSET
    fault: str | msgspec.UnsetType = msgspec.UNSET

    def over(self, options: Options) -> Options:
        """`options` with what this names put in."""
        named = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not msgspec.UNSET}
        return msgspec.structs.replace(options, **named)


class StreamOptions(msgspec.Struct, frozen=True):
    """Only what the fake obeys."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a chat request, as far as the fake looks at it; other fields are ignored, as providers do."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    fake: Overrides = Overrides()

    @property
    def charged_tokens(self) -> int:
        """What TPM charges in advance: the prompt, and the most that the answer may have."""
        limit = self.max_completion_tokens or self.max_tokens or fake_answers.DEFAULT_MAX_TOKENS
        return fake_answers.estimate_tokens(self.messages) + limit
