"""What happens to the core, and what it asks the shell to do: `(event, now) → effects`.

The shell turns everything outside (a frame, an exit, a signal, a timer) into one of these events, applies it under the
lock, and performs the effects after it has let the lock go.
"""

from __future__ import annotations

from typing import Any

import msgspec

from callpool.manager.core.carried import Carried
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import ClientEvent, Continues, Finished, Note, Piece, Started, Submit, WorkerOrder
from callpool.manager.core.records import Job, Record
from callpool.manager.core.states import Move


class _Event(msgspec.Struct, frozen=True, gc=False):
    """Common options."""


class Submitted(_Event, frozen=True):
    """A client submits. Ids are made outside, so that the core needs no randomness."""

    client: str
    submit: Submit
    session_id: str
    name: str = ""
    """Whose share, rates and budgets it counts against; without one the client's own."""


class SessionAsked(_Event, frozen=True):
    """A client wants to hold a session itself, now or not at all. Answered with its `SessionView`."""

    holder: str
    submit: Submit
    session_id: str
    start: bool = False
    """Start it in the same step."""
    name: str = ""
    """As of a `Submitted`; without one the holder's own."""


class SessionMoved(_Event, frozen=True):
    """A client moves a session that is held. Answered with its `SessionView`, or None where there is nothing to release."""

    request_id: str
    session_id: str | None = None
    """Which session is meant, where an id was used again; None takes the one that lives, else the last."""
    move: Move | None = None
    fault: Fault | None = None
    """Why it failed, for `Move.FAIL`."""
    result: bytes | None = None
    """JSON, for `Move.COMPLETE`."""
    release: bool = False
    """Forget the session afterwards; one that is still active ends as cancelled."""
    settle: bool = False
    """Let an end that came first stand, without an error."""


class SessionsCleaned(_Event, frozen=True):
    """Somebody asks to end and release every held session that is past its timeout. Answered with their number."""


class CreationFailed(_Event, frozen=True):
    """A session could not even be asked for: its metadata cannot be written, an argument is of a wrong type."""


class ThreadsAbandoned(_Event, frozen=True):
    """Threads of a holder that work on although their session timed out: `change` more, or fewer. Answered."""

    holder: str
    change: int


class MetricsReset(_Event, frozen=True):
    """Zero the session counters."""


class FunctionAsked(_Event, frozen=True):
    """A client wants a function run within a session, now or not at all. `holder` is the client's process."""

    client: str
    holder: str
    submit: Submit
    session_id: str
    name: str = ""
    """As of a `Submitted`; without one the holder's own."""


class Noted(_Event, frozen=True):
    """A client adds a line to the lifecycle log."""

    client: str
    note: Note


class CancelAsked(_Event, frozen=True):
    """Somebody asks to end a request. `client` None: the operator, who may end anything."""

    client: str | None
    request_id: str


class ClientJoined(_Event, frozen=True):
    """A client opened its channel: it can be promised places in the queue."""

    client: str


class ClientGone(_Event, frozen=True):
    """A client's process or connection ended: nobody waits for its requests any more, and nobody works in its sessions."""

    client: str


class WorkerUp(_Event, frozen=True):
    """A worker is ready for calls."""

    worker: int


class WorkerRetiring(_Event, frozen=True):
    """A worker is to end when its calls have: it gets no new ones, and keeps those that it has. `WorkerDown` follows."""

    worker: int


class WorkerDown(_Event, frozen=True):
    """A worker has ended, and everything it ever sent has been applied."""

    worker: int
    reason: str
    unsent: list[str] = []
    """Requests whose dispatch was still held back: it never heard of them."""


class Reported(_Event, frozen=True):
    """A worker reports on one of its calls."""

    worker: int
    report: Started | Piece | Finished | Continues


class AccountResumed(_Event, frozen=True):
    """An operator has mended what stopped an account. Answered with whether there was anything to resume."""

    account: str


class AccountClosed(_Event, frozen=True):
    """Dispatch nothing on this account for now (`reason`), or go on (None)."""

    account: str
    reason: str | None


class JobsRecovered(_Event, frozen=True):
    """What the journal held when the supervisor started: jobs that have not ended, in the order of their acceptance."""

    jobs: list[Job]
    last_attempt: int
    """The highest number that an attempt of any earlier run had."""


class JobKnown(_Event, frozen=True):
    """A submit has been taken in, and not recorded: the journal has a job of its id already."""

    request_id: str
    job: Job
    """Without its texts."""
    fingerprint: bytes
    """Of the submit."""
    clients: list[str] = []
    """Who was to be told something of it, and was not."""


class JobWatched(_Event, frozen=True):
    """A client wants to hear of a job's end. Answered with whether the job lives: of others the journal tells."""

    client: str
    request_id: str


class JobResolved(_Event, frozen=True):
    """A person decides about a job in doubt. Answered with `{request_id, state}`."""

    job: Job
    retry: bool


class JournalDown(_Event, frozen=True):
    """Records could not be written: nothing of these was sent to anybody."""

    fault: Fault
    refused: list[str] = []
    """Jobs whose acceptance was not recorded."""
    unstarted: list[str] = []
    """Jobs whose start was not."""
    bereft: dict[str, list[str]] = {}
    """Job of `refused` → who was to be told something of it, and was not: it may have ended meanwhile."""


class JournalUp(_Event, frozen=True):
    """Records are written again."""


class JournalSlow(_Event, frozen=True):
    """The disk takes its time: what is written ahead of windows holds no call back until it has come back."""


class WindowsWritten(_Event, frozen=True):
    """Every record of a window up to this number is durable."""

    number: int


class DrainAsked(_Event, frozen=True):
    """Refuse new requests, let accepted ones finish for `timeout` seconds, then cut."""

    timeout: float


class CutAsked(_Event, frozen=True):
    """The drain's deadline is now."""


class Tick(_Event, frozen=True):
    """Time passed: look at the deadlines."""


Event = (
    Submitted
    | SessionAsked
    | SessionMoved
    | SessionsCleaned
    | CreationFailed
    | ThreadsAbandoned
    | MetricsReset
    | FunctionAsked
    | Noted
    | CancelAsked
    | ClientGone
    | ClientJoined
    | WorkerUp
    | WorkerRetiring
    | WorkerDown
    | Reported
    | AccountClosed
    | AccountResumed
    | JobsRecovered
    | JobKnown
    | JobResolved
    | JobWatched
    | JournalDown
    | JournalUp
    | JournalSlow
    | WindowsWritten
    | DrainAsked
    | CutAsked
    | Tick
)


class ToClient(_Event, frozen=True):
    """Send this to a client, if it is still there."""

    client: str
    message: ClientEvent


class ToWorker(_Event, frozen=True):
    """Send this to a worker."""

    worker: int
    order: WorkerOrder
    after: int = 0
    """Not before the window of this number is durable (`carried.Carried`); 0 waits for none."""


class ToLane(_Event, frozen=True):
    """Send this to the function lane: `holder` says whose processes may open the function."""

    holder: str
    order: WorkerOrder


class ToJournal(_Event, frozen=True):
    """Write this down. What follows about the same request waits until that is durable."""

    record: Record | Carried


class FromJournal(_Event, frozen=True):
    """Tell a client what the journal has of a job that has ended."""

    client: str
    request_id: str


class Answer(_Event, frozen=True):
    """What a session event came to: a plain value, or the fault that refused it."""

    value: Any = None
    fault: Fault | None = None


class DrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a drain went. The last six are the specification's shutdown figures."""

    finished: int
    """Requests that ended with an outcome of their own after the drain began."""
    parked: int
    """Durable requests that wait for the next start."""
    cancelled: int
    """Requests that the drain's deadline ended, the provider's socket closed."""
    interrupted: int
    """Requests in doubt: their calls could not be ended in an orderly way."""
    shutdown_duration: float
    """Seconds."""
    initial_active_sessions: int
    final_active_sessions: int
    """Sessions still active at the deadline, before they were cut."""
    sessions_completed_during_shutdown: int
    """Sessions that ended before the deadline, whatever they came to."""
    timeout_reached: bool
    total_sessions_at_shutdown: int


class Drained(_Event, frozen=True):
    """Nothing is left to wait for: the supervisor can end."""

    report: DrainReport


Effect = ToClient | ToWorker | ToLane | ToJournal | FromJournal | Answer | Drained
