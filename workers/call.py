"""One call: its deadlines, and the border where everything that can go wrong becomes a `CallpoolError`.

    started ──first_token──► a chunk that brings anything ──idle──► the next … ──idle──► whole       (of a stream)
    run_call ─────────────────────────────── timeout ─────────────────────────────────────────► end

What comes without bringing the answer on (comments, empty chunks, a head that drips) restarts nothing. While the way to the client
is full, no silence of the provider's is measured.

Behind this border only two things happen: an `Answer` comes back, or a `CallpoolError` is raised. The one exception is
the CancelledError of a task that really was cancelled, which passes untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any

from callpool.manager.errors import CallpoolError, ProviderError, RequestTimeout
from callpool.workers.providers.base import Answer, Call, Progress, Provider
from callpool.workers.providers.failures import MAX_PARTIAL
from callpool.workers.providers.secret import redact
from callpool.workers.providers.wording import clean, describe

_NO_SILENCE = contextlib.nullcontext()
LATE = 0.05
"""Seconds by which a timer that comes later shows that this process stood still."""
READ_FIRST = 0.1
"""Seconds that a stream then has to bring what lies in its socket."""


async def run_call(provider: Provider, call: Call, progress: Progress) -> Answer:
    """Make one call within its timeouts. Raises `CallpoolError` and, when cancelled, CancelledError."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("run_call needs a task: it tells a cancellation from outside by the task's count of them")
    cancels_before = task.cancelling()
    total: asyncio.Timeout | None = None
    stream = _Stream(call, progress) if call.stream else None
    told = stream or _Told(progress)
    failure: CallpoolError
    try:
        async with asyncio.timeout(call.timeout) as total:
            async with stream or _NO_SILENCE:
                # What providers promise, and what they do.
                answer: object = await provider.call(call, told)
        if isinstance(answer, Answer):
            return answer
        failure = _fault_in_provider(call, f"it returned a {type(answer).__name__}", type(answer).__name__)
    except GeneratorExit:
        raise  # the loop is gone and this coroutine is being thrown away
    except BaseException as error:  # SystemExit and KeyboardInterrupt of provider code must not end the worker
        if task.cancelling() > cancels_before:
            # Cancelled from outside, whatever the provider made of it, and whether or not the deadline came as well.
            if isinstance(error, asyncio.CancelledError):
                raise
            raise asyncio.CancelledError from None
        if total is not None and total.expired():
            failure = _overdue(call, "total", call.timeout, stream, sent=told.began)
        elif stream is not None and stream.silence.expired():
            failure = _overdue(call, stream.awaits, stream.patience or 0.0, stream)
        else:
            failure = (
                error
                if isinstance(error, CallpoolError)
                else _fault_in_provider(call, describe(error), type(error).__name__)
            )
    # Raised outside of `except` and without a chain: a library's exception may hold the request's headers, so the key.
    failure.__context__ = failure.__cause__ = None
    raise failure


class _Told:
    """The progress of a call that does not stream: passes everything on, and remembers whether it began."""

    __slots__ = ("_progress", "began")

    def __init__(self, progress: Progress) -> None:
        self.began = False
        """Whether the provider was contacted, or was just about to be."""
        self._progress = progress

    async def started(self) -> None:
        """The provider is next."""
        self.began = True
        await self._progress.started()

    async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:
        """A piece."""
        await self._progress.chunk(text, raw, useful=useful)

    def counted(self, usage: dict[str, Any]) -> None:
        """Its tokens."""
        self._progress.counted(usage)

    def whole(self) -> None:
        """The answer is there."""
        self._progress.whole()


class _Stream:
    """The progress of a streamed call: passes everything on, and measures the silences between."""

    def __init__(self, call: Call, progress: Progress) -> None:
        self.silence = asyncio.Timeout(None)
        """Expires when a silence was too long."""
        self.awaits = "first_token"
        """Which timeout a silence would end."""
        self.patience = call.first_token_timeout
        self.texts: list[str] = []
        self.began = False
        """Whether the provider was contacted, or was just about to be."""
        self._idle = call.idle_timeout
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._measures = self.patience is not None or self._idle is not None
        """Whether a silence can still end the call."""

    async def __aenter__(self) -> None:
        await self.silence.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.silence.__aexit__(kind, error, trace)

    async def started(self) -> None:
        """The provider is next: from here on it may be silent for so long."""
        self.began = True
        await self._progress.started()
        self._listen()

    async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:
        """A piece. What brings nothing leaves the silence as long as it is."""
        if text:
            self.texts.append(text)
        if not self._measures:
            await self._progress.chunk(text, raw, useful=useful)
            return
        due, now = self._due, self._loop.time()
        listened = self.close()  # from here on it is our client that is waited for
        await self._progress.chunk(text, raw, useful=useful)
        if useful:
            self.awaits, self.patience = "idle", self._idle
            self._listen()
        elif listened and self._measures:
            self._listen_until(due + self._loop.time() - now)

    def counted(self, usage: dict[str, Any]) -> None:
        """Its tokens."""
        self._progress.counted(usage)

    def whole(self) -> None:
        """Nothing is awaited any more that could come too late."""
        self._measures = False
        self.close()
        self._progress.whole()

    def close(self) -> bool:
        """Listen no more; whether it did."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return timer is not None

    def _listen(self) -> None:
        self.close()
        if self.patience is not None and self._measures:
            self._listen_until(self._loop.time() + self.patience)

    def _listen_until(self, due: float) -> None:
        self._due = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """The silence has lasted. If it was ours (the loop stood still), what came meanwhile is still to be read."""
        late = self._loop.time() - self._due > LATE
        self._timer = self._loop.call_later(READ_FIRST, self._expire) if late else None
        if not late:
            self._expire()

    def _expire(self) -> None:
        self._timer = None
        self._measures = False  # whatever the provider makes of it: it is this silence that ended the call
        self.silence.reschedule(self._loop.time())


_WORDS = {
    "connection": "was not sent within {seconds:g} s: it waited for a free connection all the time",
    "total": "took longer than {seconds:g} s",
    "first_token": "brought nothing within {seconds:g} s",
    "idle": "stopped bringing anything for {seconds:g} s",
}


def _overdue(call: Call, which: str, seconds: float, stream: _Stream | None, *, sent: bool = True) -> RequestTimeout:
    """Also where the provider turned the cancellation at the deadline into an error of its own."""
    words = _WORDS[which if sent else "connection"].format(seconds=seconds)
    return RequestTimeout(
        f"the call of {clean(call.model)!r} at provider {call.provider!r} {words}",
        seconds=seconds,
        provider=call.provider,
        model=call.model,
        which=which,
        sent=sent,
        **({} if stream is None else {"partial": redact("".join(stream.texts))[:MAX_PARTIAL]}),
    )


def _fault_in_provider(call: Call, what: str, kind: str) -> ProviderError:
    return ProviderError(
        f"the code of provider {call.provider!r} failed: {what}",
        hint="this is a fault in callpool or in a provider added to it, not in the request: please report it",
        provider=call.provider,
        model=call.model,
        retryable=False,
        retry_after=None,
        scope="request",
        exception=clean(kind, 80),
    )
