"""One submitted request, as a task sees it that submitted it. Owner: the event loop's thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from callpool.manager.errors import ConnectionLost, ResultTimeout, from_fault
from callpool.manager.handle import Chunk, Progress, check_wait, forecast_of, no_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from callpool.manager.aio import AsyncClient
    from callpool.manager.core.messages import Done


class AsyncHandle(Progress):
    """A request under way: `async for` gives its text as it comes, `await result()` the whole answer."""

    __slots__ = ("_client", "_waiters")

    def __init__(self, client: AsyncClient, request_id: str, provider: str, model: str, *, stream: bool) -> None:
        super().__init__(request_id, provider, model, stream=stream)
        self._client = client
        self._waiters: list[asyncio.Future[None]] = []

    async def state(self) -> str:
        """Its state now: asked of the supervisor while it is under way, so it is awaited."""
        return await self._client.state_of(self.request_id) if self._done is None else self._done.state

    async def forecast(self) -> dict[str, Any]:
        """Ask how long it still waits, as `Handle.forecast` tells it."""
        return forecast_of(await self._client.show(self.request_id))

    def cancel(self) -> bool:
        """Ask to end it: the provider's socket is closed if its call runs. False if it had ended already.

        There is nothing to await: the order leaves with this turn of the loop. `result()` then raises RequestCancelled, or
        returns the answer if that was faster.
        """
        if self._done is not None:
            return False
        self._client.cancel_own(self.request_id)
        return True

    async def result(self, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109 - as in `Handle`
        """The whole answer, as `Handle.result`. Waits at most `timeout` seconds, then raises ResultTimeout.

        The request goes on after that, and after the waiting task is cancelled. Raises the request's own error.
        """
        await self._wait_done(timeout)
        return self._answer()

    async def exception(self, timeout: float | None = None) -> BaseException | None:  # noqa: ASYNC109 - as above
        """The request's error, or None if it has an answer. Waits like `result`."""
        done = await self._wait_done(timeout)
        return from_fault(done.fault) if done.fault is not None else None

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The text, piece by piece, as it comes; as with `Handle`."""
        while True:
            while self._chunks:
                yield self._next_chunk()
            if self._done is not None:
                break
            await self._wait(None, lambda: self.done() or bool(self._chunks))
        answer = self._answer()
        if not self._stream:
            yield Chunk(answer["content"], answer["raw"])

    # For the client.

    async def wait_accepted(self, seconds: float) -> None:
        """Wait until the supervisor has taken or refused it; raises the refusal."""
        if not await self._wait(seconds, lambda: self._accepted or self.done()):
            raise ConnectionLost(f"the supervisor did not take the request within {seconds:g} s: is it stopped?")
        self._refuse_unless_accepted()

    async def wait_ended(self, seconds: float) -> Done:
        """Wait for the end as the supervisor tells it. Raises the refusal; ConnectionLost if there is no end for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._wait_done(None)
        except TimeoutError:
            raise no_end(self.request_id, seconds) from None
        return self._end_unless_refused()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _wait_done(self, seconds: float | None) -> Done:
        check_wait(seconds)
        while (done := self._done) is None:
            if not await self._wait(seconds, self.done):
                raise ResultTimeout(f"{self.request_id} has not ended after {seconds:g} s; it goes on", seconds=seconds)
        return done

    async def _wait(self, seconds: float | None, ready: Callable[[], bool]) -> bool:
        """Wait until `ready` holds; False if it did not within so many seconds."""
        if ready():
            return True
        self._client.check_use()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                while not ready():
                    waiter = loop.create_future()
                    self._waiters.append(waiter)
                    try:
                        await waiter
                    finally:
                        if waiter in self._waiters:
                            self._waiters.remove(waiter)
        except TimeoutError:
            return ready()
        return True
