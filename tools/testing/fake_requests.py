"""What a request may ask of the fake, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from callpool.tools.testing import fake_answers
from callpool.tools.testing.fake_records import kept_parameters

Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Times = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
TokenLimit = Annotated[int, msgspec.Meta(ge=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class OrderedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool call that the fake is to make."""

    name: Text
    arguments: str | dict[str, Any] = "{}"
    """Told as it is, also where it is no JSON; an object is told as its JSON."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to answer: the fake's own options, overridden by the `fake` object in a request's body."""

    delay: Seconds = 0.0
    """Seconds before the answer, or before its first chunk."""
    chunks: Count = 4
    """Pieces of a streamed content, of reasoning, and of a tool call's arguments."""
    chunk_delay: Seconds = 0.0
    """Seconds before each further piece; the interval of faults that drip, where 0 means 1 second."""
    reply: str | None = None
    """None echoes the last user message."""
    reasoning: str | None = None
    """What the model thinks before it answers."""
    tool_calls: list[OrderedCall] = []
    """Told where the messages do not end with a tool's result, and then without an echo."""
    finish_reason: str | None = None
    """None tells what is true: stop, tool_calls or length."""
    piece_tokens: Count | None = None
    """Tokens after which an answer is cut, whatever more the request allows."""
    size: Size | None = None
    """Bytes of the faults that are about size; None takes the fault's own."""
    fault: str | None = None
    fault_times: Count | None = None
    """The fault only at the first so many requests with the same user's text; None means each."""
    polls: Times = 2
    """How often a look at an asynchronous task finds it at work."""
    task_fails: bool = False
    """Whether an asynchronous task comes to nothing."""


class Overrides(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `fake` object of a request: only what it names is overridden."""

    delay: Seconds | msgspec.UnsetType = msgspec.UNSET
    chunks: Count | msgspec.UnsetType = msgspec.UNSET
    chunk_delay: Seconds | msgspec.UnsetType = msgspec.UNSET
    reply: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[OrderedCall] | msgspec.UnsetType = msgspec.UNSET
    finish_reason: str | msgspec.UnsetType = msgspec.UNSET
    piece_tokens: Count | msgspec.UnsetType = msgspec.UNSET
    size: Size | msgspec.UnsetType = msgspec.UNSET
    fault: str | msgspec.UnsetType | None = msgspec.UNSET
    fault_times: Count | msgspec.UnsetType = msgspec.UNSET
    polls: Times | msgspec.UnsetType = msgspec.UNSET
    task_fails: bool | msgspec.UnsetType = msgspec.UNSET

    def over(self, options: Options) -> Options:
        """`options` with what this names put in."""
        named = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not msgspec.UNSET}
        return msgspec.structs.replace(options, **named) if named else options


class StreamOptions(msgspec.Struct, frozen=True):
    """Only what the fake obeys."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a chat request, as far as the fake looks at it; other fields are ignored, as providers do."""

    model: Text
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    tool_stream: bool | None = None
    response_format: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    request_id: str | None = None
    fake: Overrides = Overrides()

    @property
    def token_limit(self) -> int | None:
        """The most tokens that the answer may have; None where the request states no limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def charged_tokens(self) -> int:
        """What TPM charges in advance: the prompt, and the most that the answer may have."""
        limit = self.token_limit or fake_answers.DEFAULT_MAX_TOKENS
        return fake_answers.estimate_tokens(self.messages) + limit

    @property
    def stops(self) -> list[str]:
        """The stop words, however they were given."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request for embeddings; other fields are ignored."""

    model: Text
    input: Text | Annotated[list[Text], msgspec.Meta(min_length=1, max_length=2_048)]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4_096)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    fake: Overrides = Overrides()

    @property
    def texts(self) -> list[str]:
        """The texts, in their order."""
        return [self.input] if isinstance(self.input, str) else self.input


UNREADABLE = ChatRequest(model="", messages=[])
"""Stands in the records for a body that is not a request."""


class Asked(msgspec.Struct, frozen=True):
    """A request as far as it could be read."""

    chat: ChatRequest
    """Texts to embed stand in it as messages of a user."""
    parameters: dict[str, Any] = {}
    """For the record."""
    complaint: str | None = None
    """What is wrong with it; then `chat` is UNREADABLE."""
    embeddings: EmbeddingsRequest | None = None

    @property
    def charged_tokens(self) -> int:
        """What TPM charges in advance."""
        if self.embeddings is not None:
            return sum(map(fake_answers.text_tokens, self.embeddings.texts))
        return self.chat.charged_tokens


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def read_chat(body: bytes) -> Asked:
    """The body of a chat."""
    parameters: dict[str, Any] = {}
    try:
        fields = _decode(body)
        parameters = kept_parameters(fields)
        return Asked(msgspec.convert(fields, ChatRequest), parameters)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Asked(UNREADABLE, parameters, str(error))


def read_embeddings(body: bytes) -> Asked:
    """The body of a request for embeddings."""
    parameters: dict[str, Any] = {}
    try:
        fields = _decode(body)
        parameters = kept_parameters(fields)
        request = msgspec.convert(fields, EmbeddingsRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Asked(UNREADABLE, parameters, str(error))
    messages = [{"role": "user", "content": text} for text in request.texts]
    return Asked(ChatRequest(model=request.model, messages=messages, fake=request.fake), parameters, None, request)
