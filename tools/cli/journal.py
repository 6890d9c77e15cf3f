"""`callpool journal`: check the file that keeps the jobs, copy what is in it, make it smaller.

The supervisor is asked while one runs; else the file itself is opened, under the lock that a supervisor holds.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from callpool import errors
from callpool.manager import paths
from callpool.manager.exits import Exit
from callpool.tools.cli import job_export, terminal
from callpool.tools.cli.figures import byte_size, counted
from callpool.tools.cli.options import Address, AsJson, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from callpool.manager.client import Client

Output = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write a file that only you can read, whole or not at all."),
]
WithPayload = Annotated[
    bool, typer.Option("--with-payload", help="Also what was asked, of jobs that have not ended or are in doubt.")
]
WithoutResults = Annotated[bool, typer.Option("--without-results", help="Leave the answers out.")]


class Door(Protocol):
    """Whoever can be asked about the journal."""

    def check(self) -> dict[str, Any]:
        """Look through the whole file: `{problems, counts, sessions, journal}`."""

    def compact(self) -> dict[str, Any]:
        """Give unused space back: `{before, after}` in bytes."""

    def export(self, *, after: int, payload: bool, results: bool) -> dict[str, Any]:
        """A page of whole jobs: `{jobs, next}`."""


def check(*, as_json: AsJson = False, address: Address = None) -> int:
    """Look through the whole journal. Jobs wait while the supervisor looks: a second for each gigabyte, about.

    Exit status: 0 all is well, 65 something is wrong.
    """
    with _door(address) as door:
        found = door.check()
    problems = [*found["problems"]]
    if found["journal"].get("fault"):
        problems.append(f"it cannot be written: {found['journal']['fault']}")
    if as_json:
        terminal.write_json({"ok": not problems, **found, "problems": problems})
    elif problems:
        lines = [f"the journal is not well: {found['journal']['path']}", *(f"- {each}" for each in problems)]
        terminal.write("".join(f"{terminal.one_line(line)}\n" for line in lines))
    else:
        from callpool.tools.cli.job_tables import counts_line  # noqa: PLC0415 - JSON needs no tables

        size = byte_size(found["journal"]["bytes"])
        terminal.write(f"the journal is well: {terminal.one_line(found['journal']['path'])}, {size}\n")
        terminal.write(f"{counts_line(found['counts'])}\n")
    return Exit.DAMAGED if problems else Exit.OK


def compact(*, as_json: AsJson = False, address: Address = None) -> int:
    """Give the space of forgotten jobs back to the file system. It takes as much again meanwhile, and jobs wait for it."""
    with _door(address) as door:
        sizes = door.compact()
    if as_json:
        terminal.write_json(sizes)
    else:
        terminal.write(f"the journal had {byte_size(sizes['before'])}, and has {byte_size(sizes['after'])} now\n")
    return Exit.OK


def export(
    *,
    output: Output = None,
    with_payload: WithPayload = False,
    without_results: WithoutResults = False,
    as_json: AsJson = False,
    address: Address = None,
) -> int:
    """Print all jobs as JSON lines, the first accepted first. With --output and --json: what was written.

    What was asked is in it with --with-payload alone, and was dropped when a job ended.
    """
    path = None if output is None else job_export.output_path(output)
    with _door(address) as door:
        lines = _lines(door, payload=with_payload, results=not without_results)
        if path is None:
            for line in lines:
                terminal.write_json(line)
            return Exit.OK
        count = job_export.write_file(path, lines)
    if as_json:
        terminal.write_json({"path": str(path), "jobs": count, "bytes": path.stat().st_size})
    else:
        terminal.write(f"{counted(count, 'job')} in {terminal.one_line(str(path))}\n")
    return Exit.OK


def _lines(door: Door, *, payload: bool, results: bool) -> Iterator[dict[str, Any]]:
    """Every job, page by page."""
    after: int | None = 0
    while after is not None:
        page = door.export(after=after, payload=payload, results=results)
        for job in page["jobs"]:
            yield job_export.plain(job)
        after = page["next"]


@contextmanager
def _door(address: str | None) -> Iterator[Door]:
    """The supervisor, else the file. Raises NotRunning where an address was named, and what refuses the file."""
    try:
        client = connect(address)
    except errors.NotRunning:
        if address is not None:
            raise
        from callpool.manager.journal_file import closed_journal  # noqa: PLC0415 - heavy, and rarely needed

        with closed_journal(paths.state_dir(os.environ)) as journal:
            yield journal
        return
    with client:
        yield _Live(client)


class _Live:
    """The journal of a supervisor that runs. A large one takes its time: nothing bounds the wait but Ctrl-C."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def check(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.ask("check_journal", _wait=None)
        return answer

    def compact(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.ask("compact_journal", _wait=None)
        return answer

    def export(self, *, after: int, payload: bool, results: bool) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.ask("export_jobs", after=after, payload=payload, results=results)
        return answer
