"""The service: THE lock, the core behind it, and the verbs that processes call.

    connections ──handle_client, call_verb──►┐
    worker links ──handle_reports───────────►│  with lock: effects = core.apply(event, now)   ──► perform(effects)
    signals, timers ──ask_drain, tick───────►┘          (pure, nothing slow)                     (sends, after the lock)

Shared state and its owner:

    _core       every request, session, slot and counter; touched only under `_lock`
    _reconciled how often the books were compared, and what was wrong; event loop's thread only
    journal     what is not durable yet, and what waits for it; event loop's thread only
    own_metrics what the service measures of itself; event loop's thread, the lock's times under `_lock`
    _timer      the armed tick; event loop's thread only
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from callpool.manager import failpoints
from callpool.manager.core.events import (
    AccountClosed,
    Answer,
    CancelAsked,
    ClientGone,
    ClientJoined,
    CutAsked,
    DrainAsked,
    Drained,
    Effect,
    Event,
    FromJournal,
    FunctionAsked,
    JobKnown,
    JobsRecovered,
    JournalDown,
    JournalSlow,
    JournalUp,
    Noted,
    Reported,
    Submitted,
    Tick,
    ToClient,
    ToJournal,
    ToLane,
    ToWorker,
    WindowsWritten,
    WorkerDown,
    WorkerRetiring,
    WorkerUp,
)
from callpool.manager.core.messages import (
    Accepted,
    Attach,
    Cancel,
    ClientMessage,
    Dispatch,
    Done,
    Finished,
    Note,
    Piece,
    Rejected,
    RunFunction,
    Started,
    Submit,
)
from callpool.manager.core.requests import Now
from callpool.manager.errors import BadInput, FunctionsRefused, JournalUnavailable, ProtocolError, from_fault
from callpool.manager.health_facts import inconsistencies, survey_pool
from callpool.manager.history import History
from callpool.manager.job_verbs import JobVerbs
from callpool.manager.journal import Journal
from callpool.manager.measured_lock import MeasuredLock
from callpool.manager.request_verbs import Descriptions, RequestVerbs
from callpool.manager.service_metrics import ServiceMetrics, weigh_sessions
from callpool.manager.session_verbs import NoArguments, SessionVerbs
from callpool.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from callpool.manager.core.events import DrainReport
    from callpool.manager.core.faults import Fault
    from callpool.manager.core.lifecycle import Fresh
    from callpool.manager.core.machine import Core
    from callpool.manager.core.messages import ClientEvent, WorkerOrder
    from callpool.manager.core.pending import Undone
    from callpool.manager.core.records import Job
    from callpool.manager.holders import Caller
    from callpool.manager.store import Store


class Outlets(Descriptions, Protocol):
    """Where effects go. Called on the event loop's thread, never under the lock."""

    def to_client(self, client: str, event: ClientEvent) -> None:
        """Send to a client."""

    def to_worker(self, worker: int, order: WorkerOrder) -> None:
        """Send to a worker."""

    def to_lane(self, holder: str, order: WorkerOrder) -> None:
        """Send to the function lane, for a function of this holder."""

    def release_lane(self, holder: str) -> None:
        """End the processes of the function lane that belong to this holder."""

    def log_lifecycle(self, events: list[Fresh]) -> None:
        """Write these elsewhere; never waits."""

    def flush_client(self, client: str) -> None:
        """Send a client now what was given for it."""

    def flush_worker(self, worker: int) -> None:
        """Send a worker now what was given for it."""

    def drained(self, report: DrainReport) -> None:
        """The drain is over."""


log = logging.getLogger(__name__)

RECONCILE_INTERVAL = 30.0
"""Seconds between two looks at whether the books agree; one walks all live requests, a tenth of a millisecond for a thousand."""
FEW = 2
"""Effects of a commit up to which nothing else will travel with them: an answer and a dispatch."""
MOST_SAID = 5
"""Inconsistencies that one look logs."""
PYTHON_DOOR = "python"
"""The one kind of client whose functions are run: it is this user's own program."""


def _point_of(effect: Effect) -> str:
    """The name of the failpoints around an effect."""
    if type(effect) is ToClient:
        return {Accepted: "ack", Done: "result"}.get(type(effect.message), "")
    return "dispatch" if type(effect) is ToWorker and type(effect.order) is Dispatch else ""


def read_clocks() -> Now:
    """The one place that reads the clocks for the core."""
    return Now(time.monotonic(), time.time())


class Service:
    """One object, coarse verbs, each a complete transition."""

    def __init__(
        self,
        core: Core,
        outlets: Outlets,
        *,
        address: str,
        functions: bool = False,
        store: Store | None = None,
        keep_seconds: float = 0.0,
        clock: Callable[[], Now] = read_clocks,
    ) -> None:
        """`functions`: whether Python clients may have functions run. `store`: of the journal, where jobs are taken."""
        self._core = core
        self._outlets = outlets
        self._functions = functions
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        boot = os.urandom(4).hex()
        self._session_ids = (f"session_{boot}{number:08x}" for number in itertools.count(1))
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._later: set[asyncio.Task[None]] = set()
        """Submits that wait for the disk."""
        self.journal = None if store is None else Journal(store, self, keep_seconds=keep_seconds)
        self._history: History | None = None
        self._requests = RequestVerbs(self, outlets, address=address, journal=self.journal)
        self._jobs = JobVerbs(self, self.journal, outlets)
        self._verbs: dict[str, tuple[type[msgspec.Struct], Callable[[Caller, Any], Any]]] = {
            "open_channel": (NoArguments, self._open_channel),
            "let_go": (NoArguments, self._let_go),
            **self._requests.verbs,
            **self._jobs.verbs,
            **SessionVerbs(self).verbs,
        }
        self.exposed = tuple(self._verbs)
        self.own_metrics = ServiceMetrics(self._verbs)
        self._lock = MeasuredLock(self.own_metrics.lock_wait.add, self.own_metrics.lock_hold.add)
        self.own_metrics.start()
        self._reconciled = {"looks": 0, "inconsistencies": 0}
        self._reconciler = self._loop.call_later(RECONCILE_INTERVAL, self._reconcile)

    # From the journal.

    def recover(self, jobs: list[Job], last_attempt: int) -> None:
        """Take up what earlier runs have left; before the first worker is up."""
        self.apply([JobsRecovered(jobs, last_attempt)])

    def begin_history(self, totals: dict[str, int], *, days: float) -> None:
        """Go on with the totals of earlier runs, and write down what becomes of sessions."""
        if self.journal is None:
            raise RuntimeError("history is kept in the journal")
        self._history = History(self, self.journal, days=days)
        with self._lock:
            self._core.sessions.writes_history = True
            self._core.sessions.lifetime.update(
                {name: count for name, count in totals.items() if name in self._core.sessions.lifetime}
            )
        self._history.start()

    def perform(self, effects: Sequence[Effect]) -> None:
        """Do what waited for records that are durable now."""
        for effect in effects:
            self._send(effect)
        if len(effects) <= FEW:
            self._flush(effects)

    def jobs_known(self, jobs: dict[str, Job], submits: dict[str, tuple[bytes, list[str]]]) -> None:
        """The journal has jobs of these ids already. One step: or what one of them frees might go to the next."""
        self.apply([JobKnown(request_id, job, *submits[request_id]) for request_id, job in jobs.items()])

    def journal_down(self, fault: Fault, undone: Undone) -> None:
        """Nothing can be written down now."""
        self.apply([JournalDown(fault, undone.refused, undone.unstarted, undone.bereft)])

    def journal_up(self) -> None:
        """It can be written again."""
        self.apply([JournalUp()])

    def journal_slow(self) -> None:
        """The disk takes its time: what is written ahead holds no live call back."""
        self.apply([JournalSlow()])

    def windows_written(self, number: int) -> None:
        """What windows must remember is durable up to this number."""
        self.apply([WindowsWritten(number)])

    # Events from outside. All on the event loop's thread.

    def handle_client(self, caller: Caller, messages: list[ClientMessage]) -> None:
        """Apply a batch of a client's messages as one step."""
        if failpoints.armed and any(type(message) is Submit for message in messages):
            failpoints.hit("submit.received")
        events: list[Event] = []
        seen: set[str] = set()
        for message in messages:
            if type(message) is Submit and message.durable and message.request_id in seen:
                self.apply(events)  # what was said of it before comes first, as a step of its own: it may end it
                events, seen = [], set()
            seen.add(getattr(message, "request_id", ""))
            event = self._event_of(caller, message)
            if event is not None:
                events.append(event)
        self.apply(events)

    def handle_reports(self, worker: int, reports: Iterable[Started | Piece | Finished]) -> None:
        """Apply a batch of a worker's reports as one step."""
        if failpoints.armed:
            reports = list(reports)
            for report in reports:
                failpoints.hit("report.started" if type(report) is Started else "report.finished")
        self.apply([Reported(worker, report) for report in reports])

    def client_joined(self, client: str) -> None:
        """A client has opened its channel, and knows it."""
        self.apply([ClientJoined(client)])

    def client_gone(self, client: str) -> None:
        """A client's connection or process ended."""
        self.apply([ClientGone(client)])

    def holds(self, holder: str) -> bool:
        """Whether this process holds any session, or works on in one that timed out."""
        with self._lock:
            return holder in self._core.by_client or holder in self._core.abandoned

    def holder_gone(self, holder: str) -> None:
        """A process that may hold sessions ended, or let go of its connections for good."""
        self.apply([ClientGone(holder)])
        self._outlets.release_lane(holder)

    def worker_up(self, worker: int) -> None:
        """A worker can make calls."""
        self.apply([WorkerUp(worker)])

    def worker_retiring(self, worker: int) -> None:
        """A worker ends when its calls have: no new ones for it."""
        self.apply([WorkerRetiring(worker)])

    def worker_is_idle(self, worker: int) -> bool:
        """Whether no request is with this worker."""
        with self._lock:
            return not self._core.by_worker.get(worker)

    def worker_down(self, worker: int, reason: str) -> None:
        """A worker has ended and its pipe is empty."""
        unsent = [] if self.journal is None else self.journal.worker_down(worker)
        self.apply([WorkerDown(worker, reason, unsent)])

    def may_retire(self, worker: int) -> bool:
        """Whether a worker that retires can be told: nothing that it is to be sent waits for the disk any more."""
        return self.journal is None or not self.journal.holds_for(worker)

    def close_account(self, account: str, reason: str | None) -> None:
        """Hold back an account's requests, or with None let them go on."""
        self.apply([AccountClosed(account, reason)])

    def begin_drain(self, timeout: float) -> None:
        """Refuse new requests; cut after `timeout` seconds."""
        self.apply([DrainAsked(timeout)])
        failpoints.hit("drain.begun")

    def cut(self) -> None:
        """The drain's deadline is now."""
        self.apply([CutAsked()])

    def call_verb(self, caller: Caller, verb: str, arguments: dict[str, Any]) -> Any:
        """Answer a verb with a plain value, or with a future of one. Raises CallpoolError.

        Any verb may be told when it was `sent`, by the machine's monotonic clock, so that its wait can be measured.
        """
        began = time.monotonic()
        found = self._verbs.get(verb)
        if found is None:
            raise ProtocolError(f"no verb {verb[:80]!r}; known: {', '.join(self._verbs)}")
        shape, handler = found
        sent = arguments.pop("sent", None)
        try:
            typed = msgspec.convert(arguments, shape)
        except msgspec.ValidationError as error:
            raise BadInput(f"{verb}: {error}", param=verb) from None
        try:
            return handler(caller, typed)
        finally:
            self.own_metrics.record(verb, sent if isinstance(sent, float) else None, began, time.monotonic())

    # The one step.

    def apply(self, events: list[Event]) -> list[Effect]:
        """Apply events as one step, and perform what they came to."""
        now = self._clock()
        with self._lock:
            effects = self._core.apply_batch(events, now)
            due = self._core.next_deadline()
            lone = len(self._core.requests) <= 1
            fresh = self._core.lifecycle.take_fresh()
        for effect in effects:
            self._perform(effect)
        if self.journal is not None:
            self.journal.turn()
        if lone:
            self._flush(effects)
        if due is not None and (self._timer is None or due < self._timer_due):
            self._arm(due, now)
        if fresh:
            self._outlets.log_lifecycle(fresh)
        return effects

    def step(self, event: Event) -> Any:
        """Apply an event that is answered; returns its value, raises its fault."""
        for effect in self.apply([event]):
            if type(effect) is Answer:
                if effect.fault is not None:
                    raise from_fault(effect.fault)
                return effect.value
        raise RuntimeError(f"{type(event).__name__} was not answered")

    def look(self, read: Callable[[Core, Now], Any]) -> Any:
        """Read the core under the lock."""
        now = self._clock()
        with self._lock:
            return read(self._core, now)

    def next_session_id(self) -> str:
        """An id that was never given."""
        return next(self._session_ids)

    def _perform(self, effect: Effect) -> None:
        if self.journal is not None:
            if type(effect) is ToJournal:
                self.journal.record(effect.record)
                return
            if self.journal.defer(effect):
                return
        self._send(effect)

    def _send(self, effect: Effect) -> None:
        if failpoints.armed:
            self._send_between(effect)
            return
        self._hand_on(effect)

    def _send_between(self, effect: Effect) -> None:
        """Between two failpoints, with what is sent in the kernel before the second."""
        point = _point_of(effect)
        failpoints.hit(f"{point}.before")
        self._hand_on(effect)
        self._flush([effect])
        failpoints.hit(f"{point}.after")

    def _hand_on(self, effect: Effect) -> None:
        if type(effect) is ToClient:
            if self._requests.has_waiters and self._requests.answer_waiter(effect.client, effect.message):
                return
            self._outlets.to_client(effect.client, effect.message)
        elif type(effect) is ToWorker:
            self._outlets.to_worker(effect.worker, effect.order)
        elif type(effect) is ToLane:
            self._outlets.to_lane(effect.holder, effect.order)
        elif type(effect) is FromJournal:
            self._jobs.tell_end(effect.client, effect.request_id)
        elif type(effect) is Drained:
            self._outlets.drained(effect.report)

    def _flush(self, effects: Sequence[Effect]) -> None:
        """With one request under way nothing else will travel with its messages: a turn of the loop is won each time."""
        for effect in effects:
            if type(effect) is ToClient:
                self._outlets.flush_client(effect.client)
            elif type(effect) is ToWorker:
                self._outlets.flush_worker(effect.worker)

    def _arm(self, due: float, now: Now) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(0.0, due - now.monotonic), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.apply([Tick()])

    def _reconcile(self) -> None:
        """Prove, now and then, that slots = live leases. What this finds is a defect: it is said, and never mended in silence."""
        found = inconsistencies(self.look(survey_pool))
        self._reconciled["looks"] += 1
        self._reconciled["inconsistencies"] += len(found)
        for each in found[:MOST_SAID]:
            log.error("the books do not agree: %s", each)
        self._reconciler = self._loop.call_later(RECONCILE_INTERVAL, self._reconcile)

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        with self._lock:
            return self._core.drain is not None

    def account_limits(self) -> dict[str, int]:
        """Account name → calls at once."""
        with self._lock:
            return {name: account.limit for name, account in self._core.ledger.accounts.items()}

    def stop(self) -> None:
        """No more ticks: the supervisor ends."""
        self.own_metrics.stop()
        self._reconciler.cancel()
        if self._history is not None:
            self._history.stop()
        if self._timer is not None:
            self._timer.cancel()

    def _event_of(self, caller: Caller, message: ClientMessage) -> Event | None:
        """The event of a message; None where it was refused here."""
        if type(message) is Submit:
            if message.durable and self._waits_for_its_last_end(caller, message):
                return None
            return Submitted(caller.client, message, next(self._session_ids), caller.name)
        if type(message) is Cancel:
            return CancelAsked(caller.client, message.request_id)
        if type(message) is Note:
            return Noted(caller.client, message)
        if type(message) is RunFunction:
            return self._function_of(caller, message)
        if type(message) is Attach:
            self._jobs.attach(caller, message.request_id)
            return None
        raise ProtocolError(f"no message for the service: {type(message).__name__}")

    def _waits_for_its_last_end(self, caller: Caller, message: Submit) -> bool:
        """Whether the id is that of a job whose end is on its way to the disk: the submit is looked at again when it is there."""
        journal = self.journal
        if journal is None or journal.fault is not None or not journal.is_behind(message.request_id):
            return False
        if self.look(lambda core, _now: message.request_id in core.requests):
            return False

        async def again() -> None:
            with contextlib.suppress(JournalUnavailable):  # then the submit is refused for that
                await journal.durable(message.request_id)
            self.handle_client(caller, [message])

        task = self._loop.create_task(again())
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return True

    def _function_of(self, caller: Caller, message: RunFunction) -> Event | None:
        if self._functions and caller.door == PYTHON_DOOR:
            submit = Submit(**msgspec.structs.asdict(message))
            return FunctionAsked(caller.client, caller.holder, submit, next(self._session_ids), caller.name)
        why = f"by the door {caller.door[:40]!r}" if self._functions else "by this supervisor's function_workers = 0"
        refused = FunctionsRefused(f"functions are refused {why}: only Python clients may have them run")
        self._outlets.to_client(caller.client, Rejected(message.request_id, refused.fault))
        return None

    # Verbs.

    def _open_channel(self, caller: Caller, _arguments: NoArguments) -> dict[str, Any]:
        with self._lock:
            catalogue = msgspec.to_builtins(self._core.catalogue)
        return {"client_id": caller.client, "version": __version__, "pid": os.getpid(), "catalogue": catalogue}

    def _let_go(self, caller: Caller, _arguments: NoArguments) -> None:
        """A client is done: its sessions end now, and not when its connections have been gone for a while."""
        self.holder_gone(caller.holder)

    def metrics(self) -> dict[str, Any]:
        """The session metrics of the core, and what the service measures of itself."""
        now = self._clock()
        with self._lock:
            core = self._core
            counted = core.sessions.metrics(now=now.monotonic, shutdown_requested=core.drain is not None)
            memory = weigh_sessions(core.requests)
            lock = {
                "acquisitions": self._lock.acquisitions,
                "contended": self._lock.contended,
                "contended_share": self._lock.contended / max(1, self._lock.acquisitions),
                "wait_seconds": self.own_metrics.lock_wait.as_plain(),
                "hold_seconds": self.own_metrics.lock_hold.as_plain(),
            }
            abandoned = sum(core.abandoned.values())
            accounts = {name: core.ledger.describe(name, now.monotonic) for name in core.ledger.accounts}
            clients = core.ledger.describe_clients(now.monotonic)
        return {
            **counted,
            **self.own_metrics.as_plain(),
            "lock": lock,
            "memory": memory,
            "abandoned_threads": abandoned,
            "accounts": accounts,
            "clients": clients,
            "connections": self._outlets.describe_pools(),
            "workers": self._outlets.describe_supervision(),
            "reconciliation": dict(self._reconciled),
        }

    def reset_metrics(self) -> None:
        """Zero what is measured beside the core."""
        with self._lock:
            self.own_metrics.clear()
            self._lock.acquisitions = self._lock.contended = 0

    def shut_down(self, timeout: float | None) -> asyncio.Future[dict[str, Any]]:
        """Drain the supervisor; the future is `{report, statistics, metrics}`."""
        reported = self._outlets.ask_drain(timeout)
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()

        def tell(done: asyncio.Future[dict[str, Any]]) -> None:
            if future.cancelled() or done.cancelled():
                return
            metrics = self.metrics()
            names = self.look(lambda core, _now: core.sessions.statistics(shutdown_requested=True))
            statistics = {name: metrics[name] for name in names}
            future.set_result({"report": done.result(), "statistics": statistics, "metrics": metrics})

        reported.add_done_callback(tell)
        return future
