"""Jobs of an asyncio client: the same methods as `Client` has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from callpool.manager.aio_handle import AsyncHandle
from callpool.manager.channel import ANSWER_DEADLINE
from callpool.manager.core.messages import Attach
from callpool.manager.core.refusals import request_conflict
from callpool.manager.errors import BadInput, from_fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from callpool.manager.aio import AsyncClient
    from callpool.manager.core.messages import ClientMessage


class AsyncJobs:
    """What an asyncio client can ask of jobs. A part of `AsyncClient`, which has what is declared here."""

    _handles: dict[str, AsyncHandle]

    if TYPE_CHECKING:

        async def ask(self, verb: str, **arguments: Any) -> Any:
            """Call a verb of the service."""

        async def _send_request(self, handle: AsyncHandle, message: ClientMessage) -> None:
            """Send a request and await news for its handle."""

    async def attach(self, request_id: str) -> AsyncHandle:
        """The handle of a job that was submitted before, as `Client.attach`."""
        if not isinstance(request_id, str):
            raise BadInput(f"request_id must be a string, got {type(request_id).__name__}", param="request_id")
        known = self._handles.get(request_id)
        if known is not None and known.fingerprint is not None:
            return known
        handle = AsyncHandle(cast("AsyncClient", self), request_id, "", "", stream=True)
        handle.fingerprint = b""
        await self._send_request(handle, Attach(request_id))
        await handle.wait_accepted(ANSWER_DEADLINE)
        return handle

    async def jobs(
        self,
        *,
        states: Sequence[str] = (),
        client: str | None = None,
        provider: str | None = None,
        before: int | None = None,
        limit: int = 100,
        counts: bool = True,
    ) -> dict[str, Any]:
        """A page of jobs, the last accepted first, as `Client.jobs`."""
        answer: dict[str, Any] = await self.ask(
            "jobs",
            states=list(states),
            client=client,
            provider=provider,
            before=before,
            limit=limit,
            counts=counts,
        )
        return answer

    async def job(self, request_id: str) -> dict[str, Any]:
        """One job as the journal has it, as `Client.job`. Raises UnknownRequest."""
        answer: dict[str, Any] = await self.ask("job", request_id=request_id)
        return answer

    async def resolve_job(self, request_id: str, *, retry: bool) -> dict[str, Any]:
        """Decide about a job in doubt, as `Client.resolve_job`."""
        answer: dict[str, Any] = await self.ask("resolve_job", request_id=request_id, retry=retry)
        return answer


def same_job(handles: dict[str, AsyncHandle], request_id: str, print_of_it: bytes) -> AsyncHandle | None:
    """This client's own handle of the same job, if it has one. Raises RequestConflict where that asks for something else."""
    other = handles.get(request_id)
    if other is None or not other.fingerprint:
        return None
    if other.fingerprint != print_of_it:
        raise from_fault(request_conflict(request_id))
    return other
