"""Everything that crosses a process border, typed and versioned, one class per meaning.

A frame carries a list of messages, so that whatever is ready travels together. Structs are encoded as msgpack arrays
with an integer tag. Payloads and results are opaque bytes to the supervisor: it decodes envelopes only.

    client ──ClientMessage──► supervisor ──WorkerOrder──► worker
    client ◄─ClientEvent────  supervisor ◄─WorkerReport── worker
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import Priority, Usage
from callpool.manager.core.pools import PoolCounts

PROTOCOL_VERSION = 6
"""Raised with every change of meaning below; both sides of a handshake must have the same."""


Operation = Literal["chat", "embeddings", "models"]
"""What is asked of a provider: an answer to messages, vectors for texts, the list of its models."""
PLACE_BYTES = 64 * 1024
"""Payload and metadata that a promised place in the queue holds; larger submits ask."""


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Common options. `gc=False`: messages hold no cycles, and the collector need not walk a hundred thousand of them."""


# Client → supervisor, on a channel.


class Submit(_Message, frozen=True, tag=1):
    """One request. `payload` is canonical JSON (`messages`, parameters and options); `metadata` is JSON and counts against its limit."""

    request_id: str
    provider: str
    model: str
    payload: bytes
    metadata: bytes = b"{}"
    timeout: float | None = None
    stream: bool = False
    acknowledge: bool = True
    """Answer with `Accepted` or `Rejected` at once; without it only a refusal is answered."""
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    max_attempts: int | None = None
    """Calls on one target at most; None takes the account's setting."""
    fallbacks: list[str] | None = None
    """Targets to go on with, as `provider/model`; None takes the settings'."""
    retry_in_doubt: bool = False
    """Whether a call that may have been billed, or whose stream had begun, may be made again."""
    operation: Operation = "chat"
    tokens: Usage = Usage()
    """What the client reckons it will use."""
    priority: Priority = "normal"
    queue_timeout: float | None = None
    """Seconds that it may wait for its first call; None takes the settings'."""
    affinity: str | None = None
    """Requests of the same one go to the same worker while that has room: its connection is warm."""
    durable: bool = False
    """Keep it in the journal: it is acknowledged when it is on the disk, and outlives its client, a crash and a restart."""


class Cancel(_Message, frozen=True, tag=2):
    """End this request wherever it is."""

    request_id: str


class Ask(_Message, frozen=True, tag=3):
    """Call a verb of the service; answered by the `Reply` with the same number."""

    number: int
    verb: str
    arguments: dict[str, Any] = {}


class RunFunction(_Message, frozen=True, tag=4):
    """Run a function in a process of its own, within a session. `payload` is for that process alone to open.

    Unlike a `Submit` it never waits for a session: without a free one it is rejected. `Done.body` is the function's outcome,
    for the client alone to open, also where `fault` says that the function failed.
    """

    request_id: str
    provider: str
    model: str
    payload: bytes
    metadata: bytes = b"{}"
    timeout: float | None = None


class Note(_Message, frozen=True, tag=5):
    """A line for the lifecycle log, from a client. Not answered."""

    request_id: str
    phase: str
    at: float
    """Wall-clock seconds since the epoch, at the client."""
    session_id: str | None = None
    provider: str | None = None
    model: str | None = None
    metadata: bytes = b"{}"


class Attach(_Message, frozen=True, tag=6):
    """Wait for the end of a job that was submitted before. Answered like a `Submit`."""

    request_id: str


ClientMessage = Submit | Cancel | Ask | RunFunction | Note | Attach


# Supervisor → client, on a channel.


class Accepted(_Message, frozen=True, tag=1):
    """The request is in the queue, at this position (0: next), or already on its way."""

    request_id: str
    position: int
    wait: float | None = None
    """Seconds that it will probably wait; None where nothing is known yet."""


class Rejected(_Message, frozen=True, tag=2):
    """The request was not taken; nothing of it was kept."""

    request_id: str
    fault: Fault


class Chunk(_Message, frozen=True, tag=3):
    """A piece of a streamed answer: JSON bytes of `{text, raw}`; with `restart`, forget what came before: another call answers."""

    request_id: str
    body: bytes


RESTART = b'{"text":"","raw":null,"restart":true}'


class Done(_Message, frozen=True, tag=4):
    """The request ended. `body` is the answer (JSON of the worker's `Answer`) when `state` is `completed`, else `fault` says why."""

    request_id: str
    state: str
    session_id: str | None
    duration: float
    """Seconds from the start of the session to its end; 0 where no session was ever held."""
    body: bytes | None = None
    fault: Fault | None = None


class Reply(_Message, frozen=True, tag=5):
    """The answer to an `Ask`."""

    number: int
    value: Any = None
    fault: Fault | None = None


class Grant(_Message, frozen=True, tag=6):
    """So many more places in the queue are promised to this client.

    A submit that uses one does not ask to be acknowledged, has at most `PLACE_BYTES` of payload, and cannot be refused for
    a full queue.
    """

    places: int


class Revoke(_Message, frozen=True, tag=7):
    """All promised places are taken back: the supervisor drains."""


ClientEvent = Accepted | Rejected | Chunk | Done | Reply | Grant | Revoke


# Supervisor → worker.


class Dispatch(_Message, frozen=True, tag=1):
    """Make this call. `attempt` numbers all dispatches of this supervisor: reports count only with the current one."""

    request_id: str
    attempt: int
    provider: str
    model: str
    timeout: float
    stream: bool
    payload: bytes
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    operation: Operation = "chat"
    part: int = 0
    """How many calls have brought parts of the answer before: only with some of them may the payload tell of any."""


class CancelCall(_Message, frozen=True, tag=2):
    """End this call, close its socket, and report."""

    request_id: str
    attempt: int


class Endpoint(_Message, frozen=True, tag=3):
    """Where a provider is that gets its address while the pool runs (the local model server), and its key."""

    provider: str
    base_url: str
    key: str | None


class Retire(_Message, frozen=True, tag=4):
    """Take no more calls, finish those that are active, exit."""


WorkerOrder = Dispatch | CancelCall | Endpoint | Retire


# Worker → supervisor.


class Ready(_Message, frozen=True, tag=1):
    """The worker can make calls."""

    pid: int


class Started(_Message, frozen=True, tag=2):
    """The next thing this call does is to contact the provider: from here on a crash leaves it in doubt."""

    request_id: str
    attempt: int
    tokens: Usage | None = None
    """What the worker reckons that this call will use: it sees what is really sent."""


class Piece(_Message, frozen=True, tag=3):
    """A piece of a streamed answer, as in `Chunk`."""

    request_id: str
    attempt: int
    body: bytes


class Finished(_Message, frozen=True, tag=4):
    """The call ended: with an answer, or with the fault that says how (`timeout`, `cancelled`, or an error)."""

    request_id: str
    attempt: int
    body: bytes | None = None
    fault: Fault | None = None
    usage: Usage | None = None
    """What this call has used, as the provider tells; None where it told nothing."""


class Continues(_Message, frozen=True, tag=6):
    """The call ended with a part of the answer: this payload is the call that goes on with it."""

    request_id: str
    attempt: int
    payload: bytes
    why: Literal["length", "search"] = "length"
    """It was cut at its limit, or asks for a search of the provider's own."""
    partial: str = ""
    """The text of all the parts until now, for whoever gets no answer in the end; bounded and redacted."""
    usage: Usage | None = None
    """Of this call alone."""


class Heartbeat(_Message, frozen=True, tag=5):
    """The worker's event loop turns. `delay` is by how many seconds it woke late."""

    active: int
    delay: float
    pools: dict[str, PoolCounts] = {}
    """Provider → what this worker's connections to it have come to."""


WorkerReport = Ready | Started | Piece | Finished | Continues | Heartbeat
