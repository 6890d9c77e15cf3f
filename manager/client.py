"""The client: submit requests to the supervisor of this machine, follow them, ask how it is."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager.asking import embeddings_of, embeddings_submit, known_models, models_of, models_submit
from callpool.manager.channel import ANSWER_DEADLINE, Channel, Sleeper
from callpool.manager.chat import as_submit
from callpool.manager.core.catalogue import Catalogue
from callpool.manager.core.messages import PLACE_BYTES, Ask, Attach, Cancel, Grant, Reply, Revoke
from callpool.manager.core.records import fingerprint
from callpool.manager.core.refusals import request_conflict
from callpool.manager.core.states import State
from callpool.manager.errors import BadInput, ConnectionLost, DuplicateRequest, from_fault
from callpool.manager.handle import Handle
from callpool.manager.payload import build_submit, longest_function
from callpool.manager.proxy import client_name, new_holder
from callpool.manager.proxy import connect as connect_wire
from callpool.manager.request_ids import RequestIds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from callpool.manager.core.limits import Priority
    from callpool.manager.core.messages import (
        Accepted,
        Chunk,
        ClientEvent,
        Done,
        Note,
        Rejected,
        RunFunction,
        Submit,
    )
    from callpool.manager.core.options import Options
    from callpool.manager.lifecycle_logger import LifecycleLogger
    from callpool.manager.sessions import SessionManager


class Client:
    """A connection to a supervisor. Safe to use from many threads; not to be shared with a forked child.

    Closing it, or the end of its process, cancels what it still waits for. Shared state, all under `lock`: `_handles`,
    `_asked`, `_lost`, `_places`, and what the handles list.
    """

    def __init__(self, address: str, *, door: str = "python", name: str | None = None) -> None:
        """`door` is the kind of program: only a Python program of the user's own may have functions run.

        `name`, 1 to 64 of A-Z a-z 0-9 _ . -, is that under which its share, rates and budgets are reckoned: programs that give the
        same one count as one client. None takes the environment's `CALLPOOL_CLIENT`; without one each client object is its own.
        """
        self.name = client_name(name)
        """Empty where nobody gave one."""
        self.address = address
        self.door = door
        self.holder = new_holder()
        """The name under which this client holds sessions, on however many connections."""
        self.lock = threading.Lock()
        self._handles: dict[str, Handle] = {}
        self._asked: dict[int, _Question] = {}
        self._lost: ConnectionLost | None = None
        self._places = 0
        """Places in the queue that the supervisor has promised: that many submits need no answer."""
        self._numbers = itertools.count(1)
        self._pid = os.getpid()
        self._ids = RequestIds()
        self._sessions: SessionManager | None = None
        connection = connect_wire(address, holder=self.holder, door=door, name=self.name)
        try:
            described = Channel.open(connection)
            self._catalogue = msgspec.convert(described["catalogue"], Catalogue)
        except BaseException:
            connection.close()
            raise
        self.client_id: str = described["client_id"]
        self.supervisor_pid: int = described["pid"]
        self._channel = Channel(connection, on_events=self._on_events, on_lost=self._on_lost)
        self._channel.start()

    def __repr__(self) -> str:
        return f"<Client {self.client_id} of {self.address}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go: requests that have not ended are cancelled at their providers, sessions still held end. Idempotent."""
        try:
            if self._sessions is not None:
                self._sessions.let_go()
        finally:
            if self.belongs_here:
                self._channel.close()

    def generate_request_id(self) -> str:
        """A request id that no other process and no restart will make."""
        return self._ids.next()

    @property
    def catalogue(self) -> Catalogue:
        """What can be submitted, and the limits, as the supervisor told when this client connected."""
        return self._catalogue

    @property
    def belongs_here(self) -> bool:
        """Whether this process made it; a forked child did not."""
        return os.getpid() == self._pid

    @property
    def is_open(self) -> bool:
        """Whether it is connected: not closed, and its supervisor not gone."""
        return self._lost is None and os.getpid() == self._pid

    @property
    def lifecycle(self) -> LifecycleLogger:
        """The supervisor's log of what each request went through: add to it, ask it."""
        from callpool.manager.lifecycle_logger import LifecycleLogger  # noqa: PLC0415 - few clients ask it

        return LifecycleLogger(self)

    @property
    def sessions(self) -> SessionManager:
        """Sessions that this program holds and works in itself: `create_session`, `execute_with_session`, figures."""
        if self._sessions is None:
            from callpool.manager.sessions import SessionManager  # noqa: PLC0415 - most clients only submit

            manager = SessionManager(client=self)
            with self.lock:
                if self._sessions is None:  # else another thread was faster; ours has no connection yet
                    self._sessions = manager
        return self._sessions

    def submit(
        self,
        *,
        provider: str,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        stream: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
        first_token_timeout: float | None = None,
        idle_timeout: float | None = None,
        max_attempts: int | None = None,
        fallbacks: Sequence[str] | None = None,
        retry_in_doubt: bool = False,
        metadata: Mapping[str, Any] | None = None,
        options: Options | None = None,
        priority: Priority = "normal",
        queue_timeout: float | None = None,
        affinity: str | None = None,
        durable: bool = False,
        **parameters: Any,
    ) -> Handle:
        """Submit one request; returns when the supervisor has taken it. It waits in the queue while the pool is full.

        `durable` makes it a job: it returns when the job is on the disk, and from then on the job needs nobody: it outlives this
        program, a crash and a restart, waits without a bound unless `queue_timeout` gives one, and its result is kept (`attach`).
        The same `request_id` with the same provider, model and payload is the same job, also later and from elsewhere.

        `timeout` is in seconds from the call's start to its end, further calls of the same request included; of a stream
        `first_token_timeout` ends a call that brings nothing, and `idle_timeout` one that stops bringing anything (defaults: the
        model's, the provider's, then the supervisor's setting). What is transient and cannot have been billed is called again, at
        most `max_attempts` times in all; then each of `fallbacks` (`"provider/model"`) in turn; `retry_in_doubt` allows it also where
        the answer may have been billed, or a stream had begun (it then begins again, see `Chunk.restart`).
        `priority` is "interactive", "normal" or "batch"; `queue_timeout` bounds the wait for the first call in seconds (at most a
        day; None takes the settings'). Requests of the same `affinity`, 1 to 256 printable characters (else of the same option
        `cache_id`), go to the same worker while that has room.
        `metadata` is written as JSON, with `str()` for what JSON has no form for; its size counts against the limit.
        `parameters` go to the provider under their own names (`temperature`, `max_tokens`, `tools`, …); those that its models
        do not take are refused, or left out where its configuration says so. `options` are callpool's own words for what
        providers name differently. Raises at once for bad input
        (BadInput and its subclasses, MetadataTooLarge, DuplicateRequest, CredentialMissing) and when the supervisor takes
        nothing more (QueueFull, ShuttingDown). What only the supervisor knows is told by `result()` instead: an account that is stopped
        (AccountStopped), a day's allowance (BudgetExhausted), a wait that took too long (RequestTimeout, `which` "queue"), a drain.
        """
        self.check_process()
        submit = build_submit(
            self._catalogue,
            request_id=self.generate_request_id() if request_id is None else request_id,
            provider=provider,
            model=model,
            messages=messages,
            stream=stream,
            timeout=timeout,
            first_token_timeout=first_token_timeout,
            idle_timeout=idle_timeout,
            max_attempts=max_attempts,
            fallbacks=fallbacks,
            retry_in_doubt=retry_in_doubt,
            metadata=metadata,
            parameters=parameters,
            options=options,
            priority=priority,
            queue_timeout=queue_timeout,
            affinity=affinity,
            durable=durable,
        )
        handle = Handle(self, submit.request_id, provider, model, stream=stream)
        if durable:
            handle.fingerprint = fingerprint(submit)
            if (same := self._same_job(handle)) is not None:
                same.wait_accepted(ANSWER_DEADLINE)
                return same
        if not self._register(handle, submit if request_id is None and not durable else None):
            self._send_for(handle, submit)
            handle.wait_accepted(ANSWER_DEADLINE)
            return handle
        handle.accept(None)
        self._send_for(handle, msgspec.structs.replace(submit, acknowledge=False))
        return handle

    def attach(self, request_id: str) -> Handle:
        """The handle of a job that was submitted before, by whomever: its end, and what it still streams, come to it, too.

        Raises UnknownRequest, also for a job whose result is past its time, and JournalUnavailable.
        """
        self.check_process()
        if not isinstance(request_id, str):
            raise BadInput(f"request_id must be a string, got {type(request_id).__name__}", param="request_id")
        with self.lock:
            known = self._handles.get(request_id)
        if known is not None and known.fingerprint is not None:
            return known
        handle = Handle(self, request_id, "", "", stream=True)
        handle.fingerprint = b""
        self._register(handle)
        self._send_for(handle, Attach(request_id))
        handle.wait_accepted(ANSWER_DEADLINE)
        return handle

    def jobs(
        self,
        *,
        states: Sequence[str] = (),
        client: str | None = None,
        provider: str | None = None,
        before: int | None = None,
        limit: int = 100,
        counts: bool = True,
    ) -> dict[str, Any]:
        """A page of jobs, the last accepted first: `{jobs, counts, next}`; `next` is `before` of the next page, or None.

        `states`: of "queued", "started", "completed", "error", "timeout", "cancelled", "interrupted"; none are all. `counts` are of
        all jobs, whatever is listed: state → how many, or None where they are not asked for.
        """
        answer: dict[str, Any] = self.ask(
            "jobs",
            states=list(states),
            client=client,
            provider=provider,
            before=before,
            limit=limit,
            counts=counts,
        )
        return answer

    def job(self, request_id: str) -> dict[str, Any]:
        """One job as the journal has it, without its texts; `record` as `show` tells while it lives. Raises UnknownRequest."""
        answer: dict[str, Any] = self.ask("job", request_id=request_id)
        return answer

    def resolve_job(self, request_id: str, *, retry: bool) -> dict[str, Any]:
        """Decide about a job in doubt: call it again, which may pay twice, or let it have failed: `{request_id, state}`.

        Raises UnknownRequest, and IllegalMove for a job that is not in doubt.
        """
        answer: dict[str, Any] = self.ask("resolve_job", request_id=request_id, retry=retry)
        return answer

    def chat(
        self, *, provider: str, model: str, messages: Sequence[Mapping[str, Any]], **arguments: Any
    ) -> dict[str, Any]:
        """Submit one chat and wait for the whole answer, as `Handle.result` gives it. Ctrl-C cancels it at the provider.

        `arguments` are those of `submit`, `timeout_seconds`, and the options of `callpool.Options` by their names: `system_prompt`,
        `use_websearch`, `thinking_mode`, `cache_id`, `reset_cache_ttl`, `async_task`, and `enable_continuation` (here True:
        an answer that stopped at the length limit is continued and joined, or says in `metadata["continuation"]` why not) with
        `max_continuation_attempts` (answers joined, 3) and `max_total_tokens` (131,072 of all of them).
        """
        return self._wait_for(self.submit(provider=provider, model=model, messages=messages, **as_submit(arguments)))

    def embed(
        self,
        *,
        provider: str,
        model: str,
        input: str | Sequence[str],  # noqa: A002 - the field's name in every such API
        request_id: str | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Vectors for texts, through the queue like a chat: `{provider, model, embeddings, usage, metadata}`, a vector a text.

        `arguments`: `timeout`, `max_attempts`, `retry_in_doubt`, `metadata`, `priority`, `queue_timeout`, `affinity` as for
        `submit`; `fallbacks` only if named here, because
        vectors of two models cannot be compared; others (`dimensions`, …) go to the provider as they are.
        """
        own = self.generate_request_id() if request_id is None else request_id
        submit = embeddings_submit(self._catalogue, own, provider=provider, model=model, input=input, **arguments)
        return embeddings_of(self._wait_for(self._send(submit)))

    def models(self, provider: str | None = None) -> list[dict[str, Any]]:
        """The models that the configuration lists: `{provider, model, context, max_output, timeout, operations}`; tokens or None."""
        return known_models(self._catalogue, provider)

    def list_models(self, provider: str, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """The provider's own list, asked for now: objects with `id`, and what else it tells. Costs a request of the account."""
        submit = models_submit(self._catalogue, self.generate_request_id(), provider, timeout)
        return models_of(self._wait_for(self._send(submit)))

    def _send(self, submit: Submit) -> Handle:
        """Submit what is no chat; returns when the supervisor has taken it."""
        self.check_process()
        handle = Handle(self, submit.request_id, submit.provider, submit.model, stream=False)
        self._register(handle)
        self._send_for(handle, submit)
        handle.wait_accepted(ANSWER_DEADLINE)
        return handle

    def _same_job(self, handle: Handle) -> Handle | None:
        """This client's own handle of the same job, if it has one. Raises RequestConflict where it asks for something else."""
        with self.lock:
            other = self._handles.get(handle.request_id)
        if other is None or not other.fingerprint:
            return None
        if other.fingerprint != handle.fingerprint:
            raise from_fault(request_conflict(handle.request_id))
        return other

    def _send_for(self, handle: Handle, message: Submit | RunFunction | Attach) -> None:
        """Send a request, or leave no trace of its handle."""
        try:
            self._channel.send(message)
        except BaseException:
            with self.lock:
                self._handles.pop(handle.request_id, None)
            raise

    def _wait_for(self, handle: Handle) -> dict[str, Any]:
        """The answer of a request whose handle nobody else has: if the wait fails, the request is cancelled."""
        try:
            return handle.result()
        except BaseException:
            if not handle.done() and handle.fingerprint is None:  # a job needs nobody
                with contextlib.suppress(ConnectionLost):
                    handle.cancel()
            raise

    def _register(self, handle: Handle, submit: Submit | None = None) -> bool:
        """Await news for a handle. Whether `submit` may use a promised place. Raises DuplicateRequest, ConnectionLost."""
        with self.lock:
            if self._lost is not None:
                raise from_fault(self._lost.fault)
            if handle.request_id not in self._handles:
                self._handles[handle.request_id] = handle
                return submit is not None and self._use_place(submit)
        raise DuplicateRequest(f"a request with the id {handle.request_id!r} is active", param="request_id")

    def _use_place(self, submit: Submit) -> bool:
        """Take a promised place, if there is one and the supervisor can have no other reason to refuse. Under the lock."""
        size = len(submit.payload) + len(submit.metadata)
        small = size <= PLACE_BYTES and len(submit.metadata) <= self._catalogue.max_metadata_size
        if not small or self._places == 0:
            return False
        self._places -= 1
        return True

    def run_function(self, message: RunFunction) -> Done:
        """Have a function run in a process of its own, and wait for its end. For `sessions`. Raises what refuses it."""
        self.check_process()
        handle = Handle(self, message.request_id, message.provider, message.model, stream=False)
        self._register(handle)
        self._send_for(handle, message)
        try:
            return handle.wait_ended(longest_function(self._catalogue, message) + ANSWER_DEADLINE)
        except BaseException:
            with contextlib.suppress(ConnectionLost):  # then it is cancelled already
                self.cancel_own(message.request_id)
            raise

    def note(self, note: Note) -> None:
        """Send a line for the lifecycle log. Not answered."""
        self.check_process()
        self._channel.send(note)

    def status(self) -> dict[str, Any]:
        """State, workers, accounts, sessions and queue of the supervisor."""
        answer: dict[str, Any] = self.ask("status")
        return answer

    def health(self, *, wait: float = 5.0) -> dict[str, Any]:
        """How the supervisor is: `{healthy, state, reasons, checks}`; ConnectionLost after `wait` seconds without an answer."""
        answer: dict[str, Any] = self.ask("health", _wait=wait)
        return answer

    def show(self, request_id: str) -> dict[str, Any]:
        """The record of a live or recent request, with its phases, or what the journal knows of a job. Raises UnknownRequest."""
        answer: dict[str, Any] = self.ask("show", request_id=request_id)
        return answer

    def cancel(self, request_id: str) -> dict[str, Any]:
        """End any request of any client, as the operator: `{cancelling, state}`. Raises UnknownRequest."""
        answer: dict[str, Any] = self.ask("cancel", request_id=request_id)
        return answer

    def resume_account(self, account: str) -> dict[str, Any]:
        """Let an account go on that its provider had refused, as the operator: `{account, resumed}`. Raises UnknownProvider."""
        answer: dict[str, Any] = self.ask("resume_account", account=account)
        return answer

    def drain(self, timeout: float | None = None, *, wait: float | None = None) -> dict[str, Any]:
        """Drain the supervisor and end it; returns the drain report. `wait` bounds the wait for it, in seconds."""
        answer: dict[str, Any] = self.ask("drain", _wait=wait, timeout=timeout)
        return answer

    def ask(self, verb: str, *, _wait: float | None = ANSWER_DEADLINE, **arguments: Any) -> Any:
        """Call a verb of the service. Raises its error, or ConnectionLost after `_wait` seconds without an answer."""
        self.check_process()
        arguments["sent"] = time.monotonic()
        question = _Question()
        number = next(self._numbers)
        with self.lock:
            if self._lost is not None:
                raise from_fault(self._lost.fault)
            self._asked[number] = question
        try:
            self._channel.send(Ask(number, verb, arguments))
            question.sleeper.sleep(_wait)
        finally:
            with self.lock:
                self._asked.pop(number, None)
        if not question.answered:
            raise ConnectionLost(f"the supervisor did not answer {verb!r} within {_wait:g} s: is it stopped?")
        if question.error is not None:
            raise question.error
        return question.value

    # For handles.

    def cancel_own(self, request_id: str) -> None:
        """Ask to end a request of this client."""
        self.check_process()
        self._channel.send(Cancel(request_id))

    def state_of(self, request_id: str) -> str:
        """The state of a request, from the supervisor."""
        return str(self.show(request_id)["state"])

    # From the reader thread.

    def _on_events(self, events: list[ClientEvent]) -> None:
        with self.lock:
            for event in events:
                if isinstance(event, Reply):
                    self._answer(event)
                else:
                    self._tell_handle(event)

    def _tell_handle(self, event: Accepted | Rejected | Chunk | Done | Grant | Revoke) -> None:
        if isinstance(event, Grant):
            self._places += event.places
            return
        if isinstance(event, Revoke):
            self._places = 0
            return
        handle = self._handles.get(event.request_id)
        if handle is None:
            return  # ended by `_on_lost`
        if handle.take(event):
            del self._handles[event.request_id]

    def _answer(self, reply: Reply) -> None:
        question = self._asked.pop(reply.number, None)
        if question is None:
            return  # nobody waits for it any more
        question.value = reply.value
        question.end(from_fault(reply.fault) if reply.fault is not None else None)

    def _on_lost(self, error: ConnectionLost) -> None:
        with self.lock:
            self._lost = error
            for handle in self._handles.values():
                handle.end_here(State.INTERRUPTED, error.fault)
            self._handles.clear()
            for question in self._asked.values():
                question.end(from_fault(error.fault))
            self._asked.clear()

    def check_process(self) -> None:
        """Raise in a forked child: the connection, and perhaps a lock that was held, are its parent's."""
        if os.getpid() != self._pid:
            raise ConnectionLost(
                "this client belongs to the process that made it: call callpool.connect() in the child"
            )


class _Question:
    """One `ask` under way."""

    __slots__ = ("answered", "error", "sleeper", "value")

    def __init__(self) -> None:
        self.sleeper = Sleeper()
        self.answered = False
        self.value: Any = None
        self.error: Exception | None = None

    def end(self, error: Exception | None) -> None:
        """It is answered: with `value`, or with an error. Under the client's lock."""
        self.error, self.answered = error, True
        self.sleeper.wake()
