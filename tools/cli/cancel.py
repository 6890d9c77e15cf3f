"""`callpool cancel`: end any request, whoever submitted it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from callpool import errors
from callpool.manager.exits import Exit
from callpool.tools.cli import failures, terminal
from callpool.tools.cli.options import Address, AsJson, connect

if TYPE_CHECKING:
    from callpool.manager.client import Client

END_WAIT: Final = 10.0
"""Seconds for the word that it has ended; the supervisor gives up on a silent worker sooner."""
LOOK_INTERVAL: Final = 0.05
"""Seconds between two looks whether it has ended."""
_UNDER_WAY: Final = frozenset({"received", "idle", "queued", "allocated", "processing", "started"})

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id, as `callpool submit` prints it.")]


def cancel(request_id: RequestId, *, as_json: AsJson = False, address: Address = None) -> int:
    """Cancel a request or a job of any client, and wait until it has ended at the provider.

    One that has ended stays as it is, and that is said. Exit status: 0 it has ended, whatever it came to; 1 no such request.
    """
    with connect(address) as client:
        answer = client.cancel(request_id)
        state = _end_of(client, request_id) if answer["cancelling"] else answer["state"]
    if state in _UNDER_WAY:
        told = errors.CallpoolError(
            f"{request_id} is to be cancelled, and has not ended after {END_WAIT:g} s",
            code="still_running",
            hint=f"see `callpool show {request_id}`",
            state=state,
        )
        failures.tell(told, as_json=as_json)
        return Exit.FAILED
    if as_json:
        terminal.write_json({"request_id": request_id, "cancelled": state == "cancelled", **answer, "state": state})
    elif answer["cancelling"] and state == "cancelled":
        terminal.write(f"{terminal.one_line(request_id)} is cancelled\n")
    else:
        terminal.write(f"{terminal.one_line(request_id)} had ended before: {terminal.one_line(state)}\n")
    return Exit.OK


def _end_of(client: Client, request_id: str) -> str:
    """The state in which it has ended, or still is."""
    deadline = time.monotonic() + END_WAIT
    while True:
        state = str(client.show(request_id)["state"])
        if state not in _UNDER_WAY or time.monotonic() >= deadline:
            return state
        time.sleep(LOOK_INTERVAL)
