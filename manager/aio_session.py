"""A session as the tasks of an event loop see it: the same as `Session`, with what asks the supervisor awaitable."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

from callpool.manager.errors import CallpoolError, UnknownRequest
from callpool.manager.session import ACTIVE_STATES, PROCESSING, SessionFacts
from callpool.manager.session_calls import complete_arguments, end_arguments, fail_arguments, nothing, read_view

if TYPE_CHECKING:
    from types import TracebackType

    from callpool.manager.aio_sessions import AsyncSessionManager
    from callpool.manager.core.held import SessionView


class AsyncSession(SessionFacts):
    """A handle of a session. Attributes show what was last seen; `await session.refresh()` looks again.

    A move that its state does not allow raises IllegalMove and changes nothing. As an async context manager it starts the session,
    completes or fails it, and releases it.
    """

    __slots__ = ("_manager",)

    def __init__(self, manager: AsyncSessionManager, view: SessionView, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(view, metadata)
        self._manager = manager

    async def __aenter__(self) -> Self:
        try:
            if (await self._look()).state != PROCESSING:
                await self.start()
        except BaseException as error:
            if not isinstance(error, CallpoolError):  # a cancel: nobody is there to end it
                await self._manager.settle(self.ids, end_arguments(error))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._manager.settle(self.ids, end_arguments(error))

    @property
    def state(self) -> str:
        """The state when it was last seen."""
        return str(self._view.state)

    @property
    def started_at(self) -> float | None:
        """Wall-clock seconds since the epoch, or None."""
        return self._view.started_at

    @property
    def completed_at(self) -> float | None:
        """Wall-clock seconds since the epoch of its end, or None."""
        return self._view.completed_at

    @property
    def result(self) -> Any:
        """What it was completed with when it was last seen, as JSON has it, or None."""
        return None if self._view.result is None else json.loads(self._view.result)

    @property
    def error(self) -> str | None:
        """Why it ended without a result, or None."""
        return None if self._view.fault is None else self._view.fault.message

    async def refresh(self) -> Self:
        """Look again."""
        await self._look(whole=True)
        return self

    async def start(self) -> None:
        """The work begins: from here on its duration and its timeout count."""
        await self._move(move="start")

    async def complete(self, result: Any = None) -> None:
        """The work is done. `result` is kept as JSON (at most 64 KiB) for whoever asks for it."""
        await self._move(**complete_arguments(result))

    async def fail(self, error: object = "failed") -> None:
        """The work failed: an exception, or a text."""
        await self._move(**fail_arguments(error))

    async def timeout(self) -> None:
        """The work was not done in time."""
        await self._move(move="time_out")

    async def release(self) -> None:
        """Be done with it; if it is still active it ends as cancelled. The same as `release_session`."""
        self._see(await self._manager.ask_or(nothing, "move_session", **self.ids._asdict(), release=True))

    async def is_active(self) -> bool:
        """Whether it holds a slot: it is idle, allocated or processing."""
        return (await self._look()).state in ACTIVE_STATES

    async def is_timed_out(self) -> bool:
        """Whether it is past its timeout, or ended by it."""
        return (await self._look()).timed_out

    async def get_duration(self) -> float:
        """Seconds from the start (the creation, while it is idle) to the end, or to now."""
        return (await self._look()).duration

    async def _look(self, *, whole: bool = False) -> SessionView:
        if not self._is_final or (whole and self._view.metadata is None):
            value = await self._manager.ask_or(nothing, "get_session", **self.ids._asdict())
            if value is None and self._manager.is_shut_down:
                return self._view  # there is nobody left to ask: what was seen last
            if value is None and not self._is_final:
                raise UnknownRequest(
                    f"the session of {self.request_id!r} has ended and is forgotten", param="request_id"
                )
            if value is not None:
                self._view = read_view(value)
        return self._view

    async def _move(self, **arguments: Any) -> None:
        self._see(await self._manager.ask("move_session", **self.ids._asdict(), **arguments))

    def _see(self, value: Any) -> None:
        if value is not None:
            self._view = read_view(value)
