"""The client for asyncio: the same verbs as `Client`, awaited, on the event loop that connected it.

    async with await AsyncClient.connect() as client:
        handle = await client.submit(provider="kimi", model="kimi-k3", messages=[{"role": "user", "content": "Hello"}])
        print((await handle.result())["content"])

No threads: one connection, and a future for whoever waits. It works on asyncio's own loop and on uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from typing import TYPE_CHECKING, Any

from callpool.manager.aio_channel import CLOSE_DEADLINE, open_channel
from callpool.manager.aio_handle import AsyncHandle
from callpool.manager.aio_jobs import AsyncJobs, same_job
from callpool.manager.asking import embeddings_of, embeddings_submit, known_models, models_of, models_submit
from callpool.manager.channel import ANSWER_DEADLINE
from callpool.manager.chat import as_submit
from callpool.manager.core.messages import Ask, Cancel, Grant, Reply, Revoke
from callpool.manager.core.records import fingerprint
from callpool.manager.core.states import State
from callpool.manager.errors import BadInput, CallpoolError, ConnectionLost, DuplicateRequest, from_fault
from callpool.manager.payload import build_submit, longest_function
from callpool.manager.proxy import client_name, new_holder
from callpool.manager.request_ids import RequestIds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from callpool.manager.aio_channel import AsyncChannel
    from callpool.manager.aio_sessions import AsyncSessionManager
    from callpool.manager.core.catalogue import Catalogue
    from callpool.manager.core.limits import Priority
    from callpool.manager.core.messages import ClientEvent, ClientMessage, Done, Note, RunFunction, Submit
    from callpool.manager.core.options import Options


class AsyncClient(AsyncJobs):
    """A connection to a supervisor, for the tasks of one event loop. Not to be shared with threads or a forked child.

    `async with await AsyncClient.connect() as client` and `async with AsyncClient() as client` are the same. Closing it, or the
    end of its process, cancels what it still waits for. Owner of everything here: the event loop's thread.
    """

    def __init__(
        self, address: str | os.PathLike[str] | None = None, *, door: str = "python", name: str | None = None
    ) -> None:
        """Not connected yet. `address`: default this user's supervisor. `door`, `name`: as in `Client`."""
        self.name = client_name(name)
        """Empty where nobody gave one."""
        self.address = _default_address() if address is None else os.fspath(address)
        self.door = door
        self.holder = new_holder()
        """The name under which this client holds sessions."""
        self.holds_sessions = False
        """Whether it ever asked for a session: whoever asks sets it, and `close` lets go of them."""
        self.client_id = ""
        self.supervisor_pid = 0
        self._ids = RequestIds()
        self._sessions: AsyncSessionManager | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Reply]] = {}
        self._handles: dict[str, AsyncHandle] = {}
        """Requests that have not ended, those too that nobody waits for any more: until then their ids are taken."""
        self._catalogue: Catalogue | None = None
        self._channel: AsyncChannel | None = None
        self._lost: ConnectionLost | None = None
        self._connecting = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()

    @classmethod
    async def connect(
        cls, address: str | os.PathLike[str] | None = None, *, door: str = "python", name: str | None = None
    ) -> Self:
        """A connected client. Raises NotRunning, HandshakeFailed or UnsafePath, all within `wire.HANDSHAKE_DEADLINE`."""
        return await cls(address, door=door, name=name).__aenter__()

    def __repr__(self) -> str:
        return f"<AsyncClient {self.client_id or '(not connected)'} of {self.address}>"

    async def __aenter__(self) -> Self:
        self.check_process()
        async with self._connecting:
            if self._channel is None:
                self._loop, self._lost = asyncio.get_running_loop(), None
                self._channel, self._catalogue = await open_channel(
                    self.address,
                    holder=self.holder,
                    door=self.door,
                    name=self.name,
                    on_events=self._on_events,
                    on_lost=self._on_lost,
                )
                self.client_id, self.supervisor_pid = self._channel.client_id, self._channel.supervisor_pid
        self._open_channel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go: requests that have not ended are cancelled at their providers, sessions still held end. Idempotent."""
        if self._channel is None or os.getpid() != self._pid:
            return
        self.check_use()
        try:
            if self.holds_sessions and self._lost is None:
                self.holds_sessions = False
                with contextlib.suppress(ConnectionLost):  # a supervisor that is gone, or stopped, holds nothing for us
                    await self.ask("let_go", _wait=CLOSE_DEADLINE)
        finally:
            await self._channel.close()

    @property
    def catalogue(self) -> Catalogue:
        """What can be submitted, as the supervisor told at the connect."""
        if self._catalogue is None:
            raise _not_connected()
        return self._catalogue

    @property
    def is_open(self) -> bool:
        """Whether it is connected: not closed, and its supervisor not gone."""
        return self._lost is None and self._channel is not None and os.getpid() == self._pid

    @property
    def sessions(self) -> AsyncSessionManager:
        """Sessions that this program holds and works in itself: `create_session`, `execute_with_session`, figures."""
        if self._sessions is None:
            from callpool.manager.aio_sessions import AsyncSessionManager  # noqa: PLC0415 - most clients only submit

            self._sessions = AsyncSessionManager(client=self)
        return self._sessions

    def generate_request_id(self) -> str:
        """A request id that no other process and no restart will make."""
        return self._ids.next()

    async def submit(
        self,
        *,
        provider: str,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        stream: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it bounds the call, not this wait
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
    ) -> AsyncHandle:
        """Submit one request; returns when the supervisor has taken it. Arguments and errors are those of `Client.submit`.

        If this task is cancelled before, so is the request: nobody has its handle. A durable one goes on: its id leads to it.
        """
        self._open_channel()
        submit = build_submit(
            self.catalogue,
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
        handle = AsyncHandle(self, submit.request_id, provider, model, stream=stream)
        if durable:
            handle.fingerprint = fingerprint(submit)
            if (same := same_job(self._handles, submit.request_id, handle.fingerprint)) is not None:
                await same.wait_accepted(ANSWER_DEADLINE)
                return same
        await self._send_request(handle, submit)
        with self._cancelling(handle):
            await handle.wait_accepted(ANSWER_DEADLINE)
        return handle

    async def chat(
        self, *, provider: str, model: str, messages: Sequence[Mapping[str, Any]], **arguments: Any
    ) -> dict[str, Any]:
        """Submit one chat and wait for the whole answer. Arguments are those of `Client.chat`.

        A task that is cancelled cancels its call at the provider.
        """
        handle = await self.submit(provider=provider, model=model, messages=messages, **as_submit(arguments))
        with self._cancelling(handle):
            return await handle.result()

    async def embed(
        self,
        *,
        provider: str,
        model: str,
        input: str | Sequence[str],  # noqa: A002 - the field's name in every such API
        request_id: str | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Vectors for texts: arguments and answer are those of `Client.embed`."""
        own = self.generate_request_id() if request_id is None else request_id
        submit = embeddings_submit(self.catalogue, own, provider=provider, model=model, input=input, **arguments)
        return embeddings_of(await self._answer_to(submit))

    def models(self, provider: str | None = None) -> list[dict[str, Any]]:
        """The models that the configuration lists, as `Client.models`. Nothing is asked for."""
        return known_models(self.catalogue, provider)

    async def list_models(self, provider: str, *, timeout: float | None = None) -> list[dict[str, Any]]:  # noqa: ASYNC109
        """The provider's own list, as `Client.list_models`."""
        submit = models_submit(self.catalogue, self.generate_request_id(), provider, timeout)
        return models_of(await self._answer_to(submit))

    async def _answer_to(self, submit: Submit) -> dict[str, Any]:
        """The answer of a request whose handle nobody has: if this task is cancelled, so is the request."""
        self._open_channel()
        handle = AsyncHandle(self, submit.request_id, submit.provider, submit.model, stream=False)
        await self._send_request(handle, submit)
        with self._cancelling(handle):
            await handle.wait_accepted(ANSWER_DEADLINE)
            return await handle.result()

    async def run_function(self, message: RunFunction) -> Done:
        """Have a function run in a process of its own, and wait for its end. For sessions. Raises what refuses it.

        If this task is cancelled, so is the function: its process is killed.
        """
        handle = AsyncHandle(self, message.request_id, message.provider, message.model, stream=False)
        await self._send_request(handle, message)
        with self._cancelling(handle):
            return await handle.wait_ended(longest_function(self.catalogue, message) + ANSWER_DEADLINE)

    def note(self, note: Note) -> None:
        """Send a line for the lifecycle log. Not answered, and it never waits for room."""
        self._open_channel().send(note)

    async def status(self) -> dict[str, Any]:
        """State, workers, accounts, sessions and queue of the supervisor."""
        answer: dict[str, Any] = await self.ask("status")
        return answer

    async def show(self, request_id: str) -> dict[str, Any]:
        """The record of a live or recent request, with its phases, or what the journal knows of a job. Raises UnknownRequest."""
        answer: dict[str, Any] = await self.ask("show", request_id=request_id)
        return answer

    async def cancel(self, request_id: str) -> dict[str, Any]:
        """End any request of any client, as the operator: `{cancelling, state}`. Raises UnknownRequest."""
        answer: dict[str, Any] = await self.ask("cancel", request_id=request_id)
        return answer

    async def resume_account(self, account: str) -> dict[str, Any]:
        """Let an account go on that its provider had refused, as the operator: `{account, resumed}`. Raises UnknownProvider."""
        answer: dict[str, Any] = await self.ask("resume_account", account=account)
        return answer

    async def drain(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - it bounds the drain
        *,
        wait: float | None = None,
    ) -> dict[str, Any]:
        """Drain the supervisor and end it; returns the drain report. `wait` bounds the wait for it, in seconds."""
        answer: dict[str, Any] = await self.ask("drain", _wait=wait, timeout=timeout)
        return answer

    async def ask(self, verb: str, *, _wait: float | None = ANSWER_DEADLINE, **arguments: Any) -> Any:
        """Call a verb of the service. Raises its error, or ConnectionLost after `_wait` seconds without an answer.

        A task that is cancelled meanwhile forgets the question; what was asked may then have happened or not.
        """
        channel = self._open_channel()
        arguments["sent"] = time.monotonic()
        number = next(self._numbers)
        question = asyncio.get_running_loop().create_future()
        self._asked[number] = question
        try:
            async with asyncio.timeout(_wait):
                if not channel.has_room:
                    await channel.room()
                channel.send(Ask(number, verb, arguments))
                await question
        except TimeoutError:
            if question.cancelled() or not question.done():
                raise ConnectionLost(
                    f"the supervisor did not answer {verb!r} within {_wait:g} s: is it stopped?"
                ) from None
        finally:
            self._asked.pop(number, None)
        reply: Reply = question.result()
        if reply.fault is not None:
            raise from_fault(reply.fault)
        return reply.value

    # Requests.

    async def _send_request(self, handle: AsyncHandle, message: ClientMessage) -> None:
        """Send a request and await news for its handle, or leave no trace of it."""
        channel = self._open_channel()
        if handle.request_id in self._handles:
            raise DuplicateRequest(f"a request with the id {handle.request_id!r} is active", param="request_id")
        self._handles[handle.request_id] = handle
        try:
            if not channel.has_room:
                await channel.room()
            channel.send(message)
        except BaseException:
            self._handles.pop(handle.request_id, None)
            raise

    @contextlib.contextmanager
    def _cancelling(self, handle: AsyncHandle) -> Iterator[None]:
        """Cancel the request of a wait that fails, if it has not ended by itself. Its end takes it out of `_handles`."""
        try:
            yield
        except (asyncio.CancelledError, CallpoolError):
            if not handle.done() and handle.fingerprint is None:  # a job needs nobody
                with contextlib.suppress(ConnectionLost):  # then the supervisor cancels it
                    self.cancel_own(handle.request_id)
            raise

    # For handles.

    def cancel_own(self, request_id: str) -> None:
        """Ask to end a request of this client."""
        self._open_channel().send(Cancel(request_id))

    async def state_of(self, request_id: str) -> str:
        """The state of a request, from the supervisor."""
        return str((await self.show(request_id))["state"])

    def check_process(self) -> None:
        """Raise in a forked child: the connection is its parent's."""
        if os.getpid() != self._pid:
            raise ConnectionLost(
                "this client belongs to the process that made it: call AsyncClient.connect() in the child"
            )

    def check_use(self) -> None:
        """Raise in a forked child, and outside the event loop that connected this client: there it would wait for ever."""
        self.check_process()
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._loop is not None and running is not self._loop:
            raise BadInput("this client belongs to the event loop that connected it: connect one for each loop")

    def _open_channel(self) -> AsyncChannel:
        self.check_use()
        if self._lost is not None:
            raise from_fault(self._lost.fault)
        if self._channel is None:
            raise _not_connected()
        return self._channel

    # From the channel.

    def _on_events(self, events: list[ClientEvent]) -> None:
        for event in events:
            if type(event) is Reply:
                question = self._asked.get(event.number)
                if question is not None and not question.done():
                    question.set_result(event)
            elif not isinstance(event, Reply | Grant | Revoke):  # promised places are for those who do not wait
                handle = self._handles.get(event.request_id)
                if handle is not None and handle.take(event):
                    del self._handles[event.request_id]

    def _on_lost(self, error: ConnectionLost) -> None:
        self._lost = error
        for handle in self._handles.values():
            handle.end_here(State.INTERRUPTED, error.fault)
        self._handles.clear()
        for number, question in self._asked.items():
            if not question.done():
                question.set_result(Reply(number, None, error.fault))


def _default_address() -> str:
    from callpool.manager.embedded import default_address  # noqa: PLC0415 - it knows the sync client and how to start

    return default_address()


def _not_connected() -> ConnectionLost:
    return ConnectionLost("the client is not connected: `await AsyncClient.connect()`, or use it with `async with`")
