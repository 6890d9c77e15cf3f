"""What the supervisor remembers of a request: while it lives, and what `show` says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from callpool.manager.core.ledger import Outcome
from callpool.manager.core.limits import PRIORITIES, Usage
from callpool.manager.core.retry import Attempt, Target
from callpool.manager.core.scopes import NO_COST
from callpool.manager.core.states import State, Word

if TYPE_CHECKING:
    from callpool.manager.core.catalogue import Timeouts
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.jobs import Ticket
    from callpool.manager.core.messages import Submit
    from callpool.manager.core.retry import Route
    from callpool.manager.core.scopes import Scope
    from callpool.manager.core.sessions import Session


class Now(NamedTuple):
    """One reading of both clocks, in seconds. The core reckons with `monotonic`; `wall` is only recorded, for people."""

    monotonic: float
    wall: float


class Phase(Word):
    """What the lifecycle of a request records."""

    RECEIVED = "RECEIVED"
    QUEUED = "QUEUED"
    DEQUEUED = "DEQUEUED"
    SESSION_ALLOCATED = "SESSION_ALLOCATED"
    PROVIDER_CALL_START = "PROVIDER_CALL_START"
    FIRST_TOKEN = "FIRST_TOKEN"  # noqa: S105 - no password
    PROVIDER_CALL_END = "PROVIDER_CALL_END"
    SESSION_RELEASED = "SESSION_RELEASED"
    COMPLETED = "COMPLETED"
    TIMEOUT = "TIMEOUT"
    ERROR = "ERROR"
    CANCELLED = "CANCELLED"
    INTERRUPTED = "INTERRUPTED"
    RETRY = "RETRY"
    """Its call failed, or was lost before it began: it waits for another one."""
    CONTINUED = "CONTINUED"
    """Its call brought a part of the answer: it waits for the next one."""


class Kind(Word):
    """Who does the work of a request."""

    CALL = "call"
    """A worker calls a provider."""
    FUNCTION = "function"
    """A process of the function lane runs a client's function."""
    HELD = "held"
    """The client itself: it only holds the session."""


class Request:
    """A live request. Owned by the machine; `state` is changed by `states.advance` alone."""

    __slots__ = (
        "affinity",
        "attempt",
        "client",
        "cost",
        "ending",
        "ending_since",
        "holder",
        "job",
        "kind",
        "metadata",
        "metadata_bytes",
        "model",
        "name",
        "operation",
        "outcome",
        "payload",
        "payload_bytes",
        "phases",
        "priority",
        "provider",
        "queue_timeout",
        "rank",
        "released",
        "request_id",
        "result",
        "route",
        "scopes",
        "sequence",
        "session",
        "session_id",
        "since",
        "state",
        "stream",
        "target",
        "timeout",
        "timeouts",
        "tokens",
        "tries",
        "usage",
        "worker",
    )

    def __init__(
        self,
        client: str,
        submit: Submit,
        session_id: str,
        sequence: int,
        timeout: float,
        kind: Kind = Kind.CALL,
        name: str = "",
    ) -> None:
        self.request_id = submit.request_id
        self.client = client
        self.name = name or client
        """Whose share, rates and budgets it counts against."""
        self.provider = submit.provider
        self.model = submit.model
        self.target = Target(submit.provider, submit.model)
        """The two above: where its calls go."""
        self.payload = submit.payload
        self.payload_bytes = len(submit.payload)
        self.kind = kind
        self.holder = client
        """The process that a session ends with: of a held one, or of a function."""
        self.metadata = submit.metadata
        self.metadata_bytes = len(submit.metadata)
        self.result: bytes | None = None
        """What the holder said that it came to, as JSON."""
        self.released = False
        """Whether the holder is done with the session, so that it is only history."""
        self.stream = submit.stream
        self.operation = submit.operation
        self.timeout = timeout
        self.timeouts: Timeouts | None = None
        """Of a call: all of them, the one above included."""
        self.session_id = session_id
        self.sequence = sequence
        """Order of arrival: its place in the queue, kept when it has to wait again."""
        self.since = 0.0
        """Monotonic seconds since when it waits: from its arrival on, however often it has to wait again."""
        self.priority = submit.priority
        self.rank = PRIORITIES.index(submit.priority)
        self.affinity = submit.affinity
        self.queue_timeout = submit.queue_timeout
        """Seconds for which it waits for its first call at most."""
        self.tokens = submit.tokens
        """What its next call will use, as far as its client, or its last worker, can say."""
        self.cost = NO_COST
        """The same, as its account reckons."""
        self.scopes: tuple[Scope, ...] = ()
        """What limited its present call, as of the look that let it go."""
        self.outcome: Outcome | None = None
        """What came of its present call, where a report has said it."""
        self.usage: Usage | None = None
        """Tokens of its present call, where its provider has told them."""
        self.state = State.RECEIVED
        self.attempt = 0
        """The number of its last dispatch, unique in the supervisor's life: a fencing token, also against an older request
        with the same id whose worker never acknowledged its end."""
        self.tries = 0
        """How often it has been dispatched: what people call its attempts."""
        self.worker: int | None = None
        self.session: Session | None = None
        self.ending: Fault | None = None
        """Why its call is being ended, from the order to the worker until the worker's report."""
        self.ending_since = 0.0
        """Monotonic seconds of that order."""
        self.job: Ticket | None = None
        """Of a durable one: what the journal knows of it, and who waits for its end."""
        self.route: Route | None = None
        """Of a call: what it may still try, and what it has tried."""
        self.phases: list[tuple[Phase, Now]] = []


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a request for `show`: envelope and times, never the prompt or the answer."""

    request_id: str
    session_id: str
    client: str
    provider: str
    model: str
    state: str
    kind: str
    attempt: int
    worker: int | None
    timeout: float
    metadata_bytes: int
    payload_bytes: int
    phases: list[tuple[str, float, float]]
    """(phase, wall seconds since the epoch, seconds since the request was received)"""
    duration: float
    fault: Fault | None = None
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    attempts: list[Attempt] = []
    """The calls before the last one, where there were any."""
    name: str = ""
    """Whose share, rates and budgets it counts against."""
    priority: str = "normal"
    prompt_tokens: int = 0
    """As estimated, or told by the provider of the last call."""
    answer_tokens: int = 0
    position: int | None = None
    """While it waits: about how many go before it."""
    durable: bool = False
    """Whether the journal keeps it."""
    blocked: str | None = None
    """Of a job of an earlier run: why it cannot go before the supervisor is started again."""
    predicted_wait: float | None = None
    """While it waits: seconds that it probably still will; None where nothing is known."""

    @classmethod
    def of(cls, request: Request, now: Now, fault: Fault | None = None) -> Record:
        """The record of a request as it stands at `now`."""
        received = request.phases[0][1].monotonic if request.phases else now.monotonic
        timeouts = request.timeouts
        return cls(
            request_id=request.request_id,
            session_id=request.session_id,
            client=request.client,
            provider=request.provider,
            model=request.model,
            state=request.state.value,
            kind=request.kind.value,
            attempt=request.tries,
            worker=request.worker,
            timeout=request.timeout,
            metadata_bytes=request.metadata_bytes,
            payload_bytes=request.payload_bytes,
            phases=[(phase.value, at.wall, at.monotonic - received) for phase, at in request.phases],
            duration=request.session.duration(now.monotonic) if request.session else 0.0,
            fault=fault,
            first_token_timeout=timeouts.first_token if timeouts else None,
            idle_timeout=timeouts.idle if timeouts else None,
            attempts=list(request.route.tried) if request.route else [],
            name=request.name,
            priority=request.priority,
            prompt_tokens=(request.usage or request.tokens).prompt,
            answer_tokens=(request.usage or request.tokens).answer,
            durable=request.job is not None,
            blocked=None if request.job is None else request.job.blocked,
        )


def as_plain(record: Record) -> dict[str, Any]:
    """A record as the dict that doors print as JSON."""
    plain: dict[str, Any] = msgspec.to_builtins(record)
    plain["phases"] = [{"phase": phase, "at": wall, "after_seconds": after} for phase, wall, after in record.phases]
    return plain
