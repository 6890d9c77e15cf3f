"""`callpool result`: what a job has come to, now or when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from callpool import errors
from callpool.manager.exits import Exit
from callpool.tools.cli import failures, terminal
from callpool.tools.cli.options import Address, AsJson, connect, parse_seconds
from callpool.tools.cli.outliving import outliving
from callpool.tools.cli.submit import tell_more, write_text

if TYPE_CHECKING:
    from callpool.manager.client import Client

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as `callpool submit --detach` prints it.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")]
WaitTimeout = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", help="With --wait: wait for so long at most.")
]


def result(
    request_id: JobId,
    *,
    wait: Wait = False,
    timeout: WaitTimeout = None,
    as_json: AsJson = False,
    address: Address = None,
) -> int:
    """Print the answer of a job, or its error.

    Exit status: 5 while it has not ended; else that of `callpool submit`: 0 answered, 1 error, 3 timed out, cancelled or in
    doubt. Ctrl-C ends the wait; the job goes on.
    """
    parse_seconds(timeout)
    if timeout is not None and not wait:
        raise typer.BadParameter("goes with --wait", param_hint="'--timeout'")
    with connect(address) as client, outliving(request_id, as_json=as_json, taken=True):
        if not wait:
            job = client.job(request_id)
            if not job["ended"]:
                return _not_yet(request_id, job["state"], job["blocked"], as_json=as_json)
        try:
            answer = client.attach(request_id).result(timeout)
        except errors.ResultTimeout:
            return _not_yet(request_id, *_state_of(client, request_id), as_json=as_json)
    if as_json:
        terminal.write_json({"request_id": request_id, **answer})
    else:
        write_text(answer)
        tell_more(answer)
    return Exit.OK


def _state_of(client: Client, request_id: str) -> tuple[str, str | None]:
    job: dict[str, Any] = client.job(request_id)
    return job["state"], job["blocked"]


def _not_yet(request_id: str, state: str, blocked: str | None, *, as_json: bool) -> Exit:
    """Say that there is no result yet, and why."""
    why = "" if blocked is None else f", and blocked until that is mended and the supervisor started again: {blocked}"
    failures.tell(
        errors.CallpoolError(
            f"job {request_id} has not ended: it is {state}{why}",
            code="not_yet",
            hint=f"`callpool result {request_id} --wait` waits for it" if blocked is None else None,
            request_id=request_id,
            state=state,
            blocked=blocked,
        ),
        as_json=as_json,
    )
    return Exit.NOT_YET
