"""What runs inside a worker: take orders from the pipe, make calls, send reports back.

    pipe ─► orders ─► one task a call ─► provider
     ▲                     │
     └── reports ◄─────────┘   (those of one turn of the loop travel together)

A worker remembers nothing: a call is a task, and when the task ends, its report is all that is left of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager import failpoints, wire
from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import (
    CancelCall,
    Continues,
    Dispatch,
    Endpoint,
    Finished,
    Heartbeat,
    Piece,
    Ready,
    Retire,
    Started,
)
from callpool.manager.core.pools import PoolCounts, total
from callpool.manager.errors import BrokenAnswer, CallpoolError, ProviderUnreachable, to_fault
from callpool.manager.link import Link
from callpool.workers.call import run_call
from callpool.workers.conversation import Conversation, plain_call
from callpool.workers.providers.registry import make_provider
from callpool.workers.providers.secret import Secret
from callpool.workers.usage import read_usage, reckon

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from callpool.manager.core.messages import WorkerOrder
    from callpool.manager.settings import ProviderSettings
    from callpool.workers.boot import WorkerBoot
    from callpool.workers.providers.base import Answer, Call, Pooled, Provider

log = logging.getLogger(__name__)

MAX_ANSWER = 16 * 1024 * 1024
"""Bytes of one answer as JSON."""
MAX_UNSENT = 1024 * 1024
"""Bytes of reports that may wait in the pipe before streams pause."""
RETIRE_DEADLINE = 5.0
"""Seconds for closing connections when the worker retires."""

_CANCELLED = Fault(code="cancelled", message="cancelled")


class WorkerLoop:
    """One worker's event loop. Owner of everything here: that loop's thread."""

    def __init__(self, pipe: socket.socket, boot: WorkerBoot, keys: dict[str, str]) -> None:
        self._boot = boot
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        self._calls: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._providers: dict[str, Pooled] = {}
        self._past_pools: dict[str, PoolCounts] = {}
        """Of providers that have got another address: what their connections to the old one had come to."""
        self._retired = asyncio.Event()
        self._retiring = False
        for name, settings in boot.providers.items():
            if settings.kind != "local":  # its address comes later, as an Endpoint
                self._open(name, settings)
        self._link = Link(pipe, wire.worker_orders, on_messages=self._on_orders, on_end=self._on_end)

    def _open(self, name: str, settings: ProviderSettings) -> None:
        """Make a provider's object. One that cannot be made (its key is missing) must not keep the others from working."""
        key = Secret(self._keys[name]) if name in self._keys else None
        try:
            self._providers[name] = make_provider(name, settings, key, limit=self._boot.limits[name])
        except CallpoolError as error:
            log.warning("provider %s: %s", name, error)  # its requests are refused before they come here

    async def run(self) -> None:
        """Work until retired. The end of the pipe ends the process at once."""
        self._link.send(Ready(os.getpid()))
        for provider in self._providers.values():
            provider.warm()
        heart = self._loop.create_task(self._beat())
        await self._retired.wait()
        heart.cancel()
        async with asyncio.timeout(RETIRE_DEADLINE):
            for provider in self._providers.values():
                await provider.close()
        await self._link.flushed()
        self._link.close()

    async def _beat(self) -> None:
        interval = self._boot.heartbeat_interval
        while True:
            due = self._loop.time() + interval
            await asyncio.sleep(interval)
            self._link.send(Heartbeat(len(self._calls), self._loop.time() - due, self._pools()))

    def _pools(self) -> dict[str, PoolCounts]:
        pools = dict(self._past_pools)
        for name, provider in self._providers.items():
            counts = provider.counts()
            if counts is not None:
                pools[name] = total([counts, pools[name]]) if name in pools else counts
        return pools

    def _on_end(self, _why: str) -> None:
        """The supervisor is gone, or wants us gone: nobody is left to hear of anything."""
        os._exit(0)

    def _on_orders(self, orders: list[WorkerOrder]) -> None:
        for order in orders:
            if type(order) is Dispatch:
                self._begin(order)
            elif type(order) is CancelCall:
                self._cancel(order)
            elif type(order) is Endpoint:
                self._set_endpoint(order)
            elif type(order) is Retire:
                self._retiring = True
                for provider in self._providers.values():
                    provider.stop_warming()
                self._retire_if_idle()

    # Calls.

    def _begin(self, order: Dispatch) -> None:
        if failpoints.armed:
            failpoints.hit("order.received")
        key = (order.request_id, order.attempt)
        progress = _Progress(self._link, order, self._is_lone)
        task = self._loop.create_task(self._make(order, progress))
        self._calls[key] = task
        task.add_done_callback(lambda done: self._task_ended(key, done, progress))

    def _cancel(self, order: CancelCall) -> None:
        task = self._calls.get((order.request_id, order.attempt))
        if task is not None:  # else its end is on its way already
            task.cancel()

    async def _make(self, order: Dispatch, progress: _Progress) -> None:
        """Make one call and report its end: from here, because a task's callbacks come a turn of the loop later."""
        report: Finished | Continues
        try:
            report = await self._outcome(order, progress)
        except CallpoolError as error:
            report = Finished(order.request_id, order.attempt, None, error.fault)
        self._report_end(report, progress)

    async def _outcome(self, order: Dispatch, progress: _Progress) -> Finished | Continues:
        provider = self._providers.get(order.provider)
        if provider is None:
            raise ProviderUnreachable(
                f"provider {order.provider!r} has no address yet",
                provider=order.provider,
                model=order.model,
                phase="connect",
                retryable=True,
                retry_after=None,
                scope="provider",
            )
        if order.operation != "chat":
            answer = await self._call(provider, plain_call(order), progress)
            return Finished(order.request_id, order.attempt, _encode_answer(answer, order))
        conversation = Conversation(order, self._boot.rules[order.provider])
        failure: CallpoolError
        try:
            answer = await self._call(provider, conversation.call(), progress)
            following = conversation.following(answer)
            if following is not None:
                return following
            body = _encode_answer(conversation.whole(answer), order)
            return Finished(order.request_id, order.attempt, body)
        except CallpoolError as error:
            failure = conversation.with_text(error)
        raise failure

    async def _call(self, provider: Provider, call: Call, progress: _Progress) -> Answer:
        progress.tokens = reckon(call)
        answer = await run_call(provider, call, progress)
        progress.counted(answer.usage)
        return answer

    def _task_ended(self, key: tuple[str, int], task: asyncio.Task[None], progress: _Progress) -> None:
        """Report what the task could not: it was cancelled, or it broke in a way that no provider may."""
        if key not in self._calls:
            return
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a call ended in an unexpected way", exc_info=error)
        self._report_end(Finished(*key, None, to_fault(error) if error else _CANCELLED), progress)

    def _report_end(self, finished: Finished | Continues, progress: _Progress) -> None:
        """With what this call alone has used, however it ended: a fault, too, may have cost tokens."""
        if failpoints.armed:
            failpoints.hit("call.answered")
        del self._calls[finished.request_id, finished.attempt]
        self._link.send(msgspec.structs.replace(finished, usage=progress.usage))
        if not self._calls:
            self._link.flush()  # nothing else will travel with it
        if failpoints.armed:
            self._link.flush()
            failpoints.hit("call.reported")
        self._retire_if_idle()

    def _is_lone(self) -> bool:
        """Whether there is one call only, with whose reports no others could travel."""
        return len(self._calls) == 1

    def _retire_if_idle(self) -> None:
        if self._retiring and not self._calls:
            self._retired.set()

    # Endpoints.

    def _set_endpoint(self, order: Endpoint) -> None:
        old = self._providers.pop(order.provider, None)
        if old is not None:
            counts = old.counts()
            if counts is not None:
                past = self._past_pools.get(order.provider, PoolCounts())
                self._past_pools[order.provider] = total([past, counts.ended()])
            closing = self._loop.create_task(old.close())
            closing.add_done_callback(_log_failure)
        settings = self._boot.providers[order.provider]
        key = Secret(order.key) if order.key else None
        limit = self._boot.limits[order.provider]
        provider = make_provider(order.provider, settings, key, limit=limit, base_url=order.base_url)
        self._providers[order.provider] = provider
        if not self._retiring:
            provider.warm()


class _Progress:
    """What a provider tells of one call."""

    __slots__ = ("_alone", "_link", "_order", "tokens", "usage")

    def __init__(self, link: Link, order: Dispatch, alone: Callable[[], bool]) -> None:
        self._link = link
        self._order = order
        self._alone = alone
        self.tokens = Usage()
        """What the call is reckoned to use."""
        self.usage: Usage | None = None
        """What it has used, as the provider tells."""

    async def started(self) -> None:
        """Report, and wait until the report is in the kernel: only then may the call contact the provider."""
        if failpoints.armed:
            failpoints.hit("call.before_start")
        self._link.send(Started(self._order.request_id, self._order.attempt, self.tokens))
        if self._alone():
            self._link.flush()
        await self._link.flushed()
        if failpoints.armed:
            failpoints.hit("call.started")

    async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:  # noqa: ARG002 - kept track of before
        """Report a piece; waits while the pipe is full."""
        body = msgspec.json.encode({"text": text, "raw": raw})
        self._link.send(Piece(self._order.request_id, self._order.attempt, body))
        if self._link.unsent_bytes > MAX_UNSENT:
            await self._link.flushed()

    def counted(self, usage: dict[str, Any]) -> None:
        """Remember what it means, for the report of the end; what means nothing leaves what was told before."""
        self.usage = read_usage(usage) or self.usage

    def whole(self) -> None:
        """Nothing that the supervisor has to know."""


def _encode_answer(answer: Answer, order: Dispatch) -> bytes:
    body = msgspec.json.encode(msgspec.structs.replace(answer, provider=order.provider, model=order.model))
    if len(body) > MAX_ANSWER:
        raise BrokenAnswer(
            f"the answer is {len(body)} bytes as JSON, the limit is {MAX_ANSWER}",
            provider=order.provider,
            model=order.model,
            retryable=False,
            retry_after=None,
            scope="request",
            size=len(body),
            limit=MAX_ANSWER,
        )
    return body


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("closing a provider's connections failed: %s", error)
