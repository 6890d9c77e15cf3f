"""What happens to the core, and what it asks the shell to do: `(event, now) → effects`.

The shell turns everything outside (a frame, an exit, a signal, a timer) into one of these events, applies it under the
lock, and performs the effects after it has let the lock go.
"""

from __future__ import annotations

import msgspec

from callpool.manager.core.messages import ClientEvent, Finished, Piece, Started, Submit, WorkerOrder


class _Event(msgspec.Struct, frozen=True, gc=False):
    """Common options."""


class Submitted(_Event, frozen=True):
    """A client submits. Ids are made outside, so that the core needs no randomness."""

    client: str
    submit: Submit
    session_id: str


class CancelAsked(_Event, frozen=True):
    """Somebody asks to end a request. `client` None: the operator, who may end anything."""

    client: str | None
    request_id: str


class ClientJoined(_Event, frozen=True):
    """A client opened its channel: it can be promised places in the queue."""

    client: str


class ClientGone(_Event, frozen=True):
    """A client's process or connection ended: nobody waits for its requests any more."""

    client: str


class WorkerUp(_Event, frozen=True):
    """A worker is ready for calls."""

    worker: int


class WorkerDown(_Event, frozen=True):
    """A worker has ended, and everything it ever sent has been applied."""

    worker: int
    reason: str


class Reported(_Event, frozen=True):
    """A worker reports on one of its calls."""

    worker: int
    report: Started | Piece | Finished


class AccountClosed(_Event, frozen=True):
    """Dispatch nothing on this account for now (`reason`), or go on (None)."""

    account: str
    reason: str | None


class DrainAsked(_Event, frozen=True):
    """Refuse new requests, let accepted ones finish for `timeout` seconds, then cut."""

    timeout: float


class CutAsked(_Event, frozen=True):
    """The drain's deadline is now."""


class Tick(_Event, frozen=True):
    """Time passed: look at the deadlines."""


Event = (
    Submitted
    | CancelAsked
    | ClientGone
    | ClientJoined
    | WorkerUp
    | WorkerDown
    | Reported
    | AccountClosed
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
    timeout_reached: bool
    total_sessions_at_shutdown: int


class Drained(_Event, frozen=True):
    """Nothing is left to wait for: the supervisor can end."""

    report: DrainReport


Effect = ToClient | ToWorker | Drained
