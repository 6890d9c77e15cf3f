"""One submitted request, as its submitter sees it."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import msgspec

from callpool.manager.channel import Sleeper
from callpool.manager.core import messages
from callpool.manager.core.messages import Done
from callpool.manager.core.states import State
from callpool.manager.errors import BadInput, ConnectionLost, ResultTimeout, from_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from callpool.manager.client import Client
    from callpool.manager.core.faults import Fault


ABOUT = ("continuation", "searches", "dropped_parameters")
"""What of an answer is about how it came to be."""


class Chunk(str):
    """A piece of a streamed answer: the text itself, with the provider's own chunk object as `raw`."""

    __slots__ = ("raw", "restart")
    raw: dict[str, Any] | None
    restart: bool
    """Whether what came before is to be forgotten: the call failed, and another one answers. Only with `retry_in_doubt`."""

    def __new__(cls, text: str, raw: dict[str, Any] | None = None, *, restart: bool = False) -> Self:
        """A chunk of this text."""
        chunk = super().__new__(cls, text)
        chunk.raw = raw
        chunk.restart = restart
        return chunk


class Progress:
    """What a client knows of a request: what the sync and the async handle have in common."""

    __slots__ = (
        "_accepted",
        "_chunks",
        "_done",
        "_model",
        "_position",
        "_predicted",
        "_provider",
        "_stream",
        "fingerprint",
        "request_id",
    )

    def __init__(self, request_id: str, provider: str, model: str, *, stream: bool) -> None:
        self.request_id = request_id
        self._provider = provider
        self._model = model
        self._stream = stream
        self._chunks: deque[bytes] = deque()
        self._done: Done | None = None
        """How it ended: in the supervisor's words, or in the client's where the supervisor could say nothing."""
        self.fingerprint: bytes | None = None
        """Of a job: what makes another submit of its id the same; empty where it is not known here."""
        self._accepted = False
        self._position: int | None = None
        self._predicted: float | None = None

    def __repr__(self) -> str:
        outcome = "ended" if self._done else "under way"
        return f"<{type(self).__name__} {self.request_id} {self._provider}/{self._model} {outcome}>"

    @property
    def position(self) -> int | None:
        """Place in its account's queue when it was accepted (0: next), or None if it was not asked for; `forecast` asks now."""
        return self._position

    @property
    def predicted_wait(self) -> float | None:
        """Seconds that it would probably wait, when it was accepted; None where nothing was known, or it was not asked for."""
        return self._predicted

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._done is not None

    def _answer(self) -> dict[str, Any]:
        done = self._done
        if done is None:
            raise RuntimeError("the request has not ended")
        if done.fault is not None:
            raise from_fault(done.fault)
        session = {"session_id": done.session_id, "request_id": self.request_id, "duration_seconds": done.duration}
        answer = {
            "provider": self._provider,
            "model": self._model,
            "usage": {},
            "finish_reason": None,
            "raw": None,
            **msgspec.json.decode(done.body or b"{}"),
        }
        about = {name: answer.pop(name) for name in ABOUT if name in answer}
        return {**answer, "metadata": {"session": session, **about}}

    def is_from(self, answer: dict[str, Any]) -> bool:
        """Whether an answer is of the target that was asked, and not of a fallback."""
        return bool((answer["provider"], answer["model"]) == (self._provider, self._model))

    def _next_chunk(self) -> Chunk:
        """The oldest piece that was not taken yet; there must be one."""
        piece = msgspec.json.decode(self._chunks.popleft())
        return Chunk(piece["text"], piece["raw"], restart=piece.get("restart", False))

    def _end_unless_refused(self) -> Done:
        done = self._done
        if done is None:
            raise RuntimeError("the request has not ended")
        if done.state == State.REJECTED.value and done.fault is not None:
            raise from_fault(done.fault)
        return done

    def _refuse_unless_accepted(self) -> None:
        if not self._accepted and self._done is not None and self._done.fault is not None:
            raise from_fault(self._done.fault)

    # For the client.

    def take(self, event: messages.Accepted | messages.Rejected | messages.Chunk | Done) -> bool:
        """Note what the supervisor tells of it; whether it has ended with that."""
        if type(event) is messages.Chunk:
            self._chunks.append(event.body)
            self._wake()
        elif type(event) is messages.Accepted:
            self.accept(event.position, event.wait)
        elif type(event) is Done:
            self._end(event)
        elif type(event) is messages.Rejected:
            self.end_here(State.REJECTED, event.fault)
        return self._done is not None

    def accept(self, position: int | None, wait: float | None = None) -> None:
        """The supervisor has taken it, or has promised to."""
        self._accepted, self._position, self._predicted = True, position, wait
        self._wake()

    def end_here(self, state: State, fault: Fault) -> None:
        """It has ended, in the client's own words."""
        self._end(Done(self.request_id, state.value, None, 0.0, None, fault))

    def _end(self, done: Done) -> None:
        if done.fault is not None:  # whoever catches the error may not have the handle: `chat` makes its own
            details = {**done.fault.details, "request_id": self.request_id}
            done = msgspec.structs.replace(done, fault=msgspec.structs.replace(done.fault, details=details))
        self._done = done
        self._wake()

    def _wake(self) -> None:
        """Something of the above has changed."""
        raise NotImplementedError


class Handle(Progress):
    """A request under way. Iterate over it for its text as it comes; ask `result()` for the whole answer.

    Shared state, all under the client's lock: `_chunks`, `_done`, `_accepted`, `_position`, `_waiters`.
    """

    __slots__ = ("_client", "_waiters")

    def __init__(self, client: Client, request_id: str, provider: str, model: str, *, stream: bool) -> None:
        super().__init__(request_id, provider, model, stream=stream)
        self._client = client
        self._waiters: list[Sleeper] = []

    @property
    def state(self) -> str:
        """Its state now: asked of the supervisor while it is under way."""
        done = self._done
        return self._client.state_of(self.request_id) if done is None else done.state

    def forecast(self) -> dict[str, Any]:
        """Ask how long it still waits: `{state, position, predicted_wait}`, the last two None once it waits no more.

        `position` is about how many go before it, `predicted_wait` in seconds, by what calls on its account took lately.
        """
        return forecast_of(self._client.show(self.request_id))

    def cancel(self) -> bool:
        """Ask to end it: the provider's socket is closed if its call runs. False if it had ended already.

        `result()` then raises RequestCancelled, or returns the answer if that was faster.
        """
        if self._done is not None:
            return False
        self._client.cancel_own(self.request_id)
        return True

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """The whole answer: `{provider, model, content, usage, metadata: {session: {…}}, finish_reason, raw, …}`.

        Waits at most `timeout` seconds, then raises ResultTimeout (the request goes on). Raises the request's own error:
        RequestTimeout, RequestCancelled, WorkerLost, a ProviderError, ….
        """
        check_wait(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._done is None:
            self._wait(deadline, timeout, lambda: self._done is not None)
        return self._answer()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The request's error, or None if it has an answer. Waits like `result`."""
        try:
            self.result(timeout)
        except ResultTimeout:
            raise
        except Exception as error:  # noqa: BLE001 - the request's own error is what is asked for
            return error
        return None

    def __iter__(self) -> Iterator[Chunk]:
        """The text, piece by piece, as it comes; of a request without `stream`, in one piece. Raises like `result`.

        A piece may be empty: it is there for its `raw`, which may hold reasoning, a tool call or the finish reason.
        """
        while True:
            while self._chunks:
                yield self._next_chunk()
            if self._done is not None and not self._chunks:
                break
            self._wait(None, None, lambda: self._done is not None or bool(self._chunks))
        answer = self._answer()
        if not self._stream:
            yield Chunk(answer["content"], answer["raw"])

    def wait_ended(self, seconds: float) -> Done:
        """Wait for the end as the supervisor tells it. Raises the refusal; ConnectionLost if there is no end for so long."""
        deadline = time.monotonic() + seconds
        try:
            while self._done is None:
                self._wait(deadline, seconds, lambda: self._done is not None)
        except ResultTimeout:
            raise no_end(self.request_id, seconds) from None
        return self._end_unless_refused()

    # For the client; what changes the handle, under its lock.

    def _wake(self) -> None:
        for waiter in self._waiters:
            waiter.wake()

    def wait_accepted(self, seconds: float) -> None:
        """Wait until the supervisor has taken or refused it; raises the refusal."""
        deadline = time.monotonic() + seconds
        while not self._accepted and self._done is None:
            self._wait(deadline, seconds, lambda: self._accepted or self._done is not None)
        self._refuse_unless_accepted()

    def _wait(self, deadline: float | None, seconds: float | None, ready: Callable[[], bool]) -> None:
        self._client.check_process()
        sleeper = Sleeper()
        try:
            with self._client.lock:
                self._waiters.append(sleeper)
            while not (in_time := ready()):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                sleeper.sleep(left)
        finally:
            with self._client.lock:
                if sleeper in self._waiters:
                    self._waiters.remove(sleeper)
        if not in_time:
            raise ResultTimeout(f"{self.request_id} has not ended after {seconds:g} s; it goes on", seconds=seconds)


def forecast_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of a wait."""
    return {name: record[name] for name in ("state", "position", "predicted_wait")}


def no_end(request_id: str, seconds: float) -> ConnectionLost:
    """The supervisor keeps deadlines; where it does not, it is not there."""
    return ConnectionLost(f"the supervisor did not end {request_id} within {seconds:g} s: is it stopped?")


def check_wait(timeout: float | None) -> None:
    """Refuse what is no number of seconds to wait for. Raises BadInput."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise BadInput(f"timeout must be a number of seconds, got {type(timeout).__name__}", param="timeout")
    if not 0 <= timeout <= threading.TIMEOUT_MAX:
        raise BadInput(
            f"timeout must be from 0 to {threading.TIMEOUT_MAX:.0f} seconds, got {timeout!r}", param="timeout"
        )
