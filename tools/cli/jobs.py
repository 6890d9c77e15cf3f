"""`callpool jobs`: what the journal keeps, and deciding about what is in doubt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from callpool.manager.exits import Exit
from callpool.tools.cli import terminal
from callpool.tools.cli.options import Address, AsJson, connect

if TYPE_CHECKING:
    from callpool.manager.client import Client

USUAL_ROWS: Final = 100
PAGE_ROWS: Final = 500
"""Jobs that are asked for at once."""

States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="Only these: queued, started, completed, error, timeout, cancelled, interrupted. Repeatable.",
    ),
]
OfClient = Annotated[str | None, typer.Option("--client", metavar="NAME", help="Only those of this client.")]
OfProvider = Annotated[str | None, typer.Option("--provider", metavar="NAME", help="Only those of this provider.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help=f"So many at most; else {USUAL_ROWS}, the newest.")
]
Every = Annotated[bool, typer.Option("--all", help="All of them.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Retry = Annotated[bool, typer.Option("--retry", help="Call again. It may have been billed, and then is paid twice.")]
Fail = Annotated[bool, typer.Option("--fail", help="Let it have failed.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a --retry.")]


def list_(
    *,
    state: States = None,
    client_name: OfClient = None,
    provider: OfProvider = None,
    limit: Limit = None,
    every: Every = False,
    as_json: AsJson = False,
    address: Address = None,
) -> int:
    """List jobs, the newest first, and how many there are in each state.

    A job is what was submitted with --durable or --detach. The counts are of all jobs, whatever is listed.
    """
    if every and limit is not None:
        raise typer.BadParameter("goes not with --all", param_hint="'--limit'")
    wanted = None if every else limit or USUAL_ROWS
    with connect(address) as client:
        document = _gather(client, wanted, states=state or (), client=client_name, provider=provider)
    if as_json:
        terminal.write_json(document)
        return 0
    from callpool.tools.cli import job_tables  # noqa: PLC0415 - JSON needs no tables

    job_tables.show_jobs(document, filtered=bool(state or client_name or provider))
    return 0


def resolve(
    request_id: JobId,
    *,
    retry: Retry = False,
    fail: Fail = False,
    yes: Yes = False,
    as_json: AsJson = False,
    address: Address = None,
) -> int:
    """Decide about a job in doubt, whose call may have been billed: call it again, or let it have failed.

    Exactly one of --retry and --fail. A --retry asks first; where nobody can be asked it needs --yes.
    """
    if retry == fail:
        raise typer.BadParameter("give exactly one of --retry and --fail", param_hint="'--retry' / '--fail'")
    ask = retry and not yes
    if ask:
        _refuse_unless_somebody_is_there()
    with connect(address) as client:
        # What is not in doubt is refused below: nobody is asked about it.
        if ask and client.job(request_id)["state"] == "interrupted" and not _may_pay_twice(request_id):
            terminal.say("callpool: nothing was changed")
            return Exit.FAILED
        answer = client.resolve_job(request_id, retry=retry)
    if as_json:
        terminal.write_json(answer)
    elif retry:
        terminal.write(f"job {terminal.one_line(request_id)} is called again: it is {answer['state']}\n")
    else:
        terminal.write(f"job {terminal.one_line(request_id)} has failed\n")
    return Exit.OK


def _gather(asked: Client, wanted: int | None, **filters: Any) -> dict[str, Any]:
    """Pages until there is enough: `{jobs, counts, more}`. One job more than wanted is asked for, to know whether there is one."""
    rows: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    before: int | None = None
    while True:
        size = PAGE_ROWS if wanted is None else min(PAGE_ROWS, wanted + 1 - len(rows))
        page = asked.jobs(before=before, limit=size, counts=before is None, **filters)
        rows += page["jobs"]
        counts = counts if page["counts"] is None else page["counts"]
        before = page["next"]
        if before is None or (wanted is not None and len(rows) > wanted):
            more = wanted is not None and len(rows) > wanted
            return {"jobs": rows[:wanted], "counts": counts, "more": more}


def _refuse_unless_somebody_is_there() -> None:
    """Raise typer.BadParameter where nobody can be asked."""
    if not (terminal.is_terminal(sys.stdin) and terminal.is_terminal(sys.stderr)):
        raise typer.BadParameter(
            "needs --yes where nobody can be asked: the call may be paid twice", param_hint="'--retry'"
        )


def _may_pay_twice(request_id: str) -> bool:
    """Ask."""
    sys.stderr.write(f"Call job {terminal.one_line(request_id)} again? It may be paid twice. [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
