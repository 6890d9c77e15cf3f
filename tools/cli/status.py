"""`callpool status`, `callpool workers`, `callpool show`: looking without touching."""

from __future__ import annotations

from typing import Annotated

import typer

from callpool.tools.cli import terminal
from callpool.tools.cli.options import Address, AsJson, connect

RequestId = Annotated[str, typer.Argument(metavar="ID", help="The request's id, as `callpool submit` prints it.")]


def status(*, as_json: AsJson = False, address: Address = None) -> int:
    """Show how the supervisor is: sessions, queue, workers, accounts."""
    with connect(address) as client:
        facts = client.status()
    if as_json:
        terminal.write_json(facts)
        return 0
    from callpool.tools.cli import tables  # noqa: PLC0415 - JSON needs no tables

    tables.show_status(facts)
    return 0


def workers(*, as_json: AsJson = False, address: Address = None) -> int:
    """List the worker processes."""
    with connect(address) as client:
        facts = client.status()["workers"]
    if as_json:
        terminal.write_json(facts)
        return 0
    from callpool.tools.cli import tables  # noqa: PLC0415 - JSON needs no tables

    tables.show_workers(facts)
    return 0


def show(request_id: RequestId, *, as_json: AsJson = False, address: Address = None) -> int:
    """Show the record of a request: its state and the phases it went through.

    The supervisor remembers requests that are under way and the last that have ended, without prompts and answers.
    """
    with connect(address) as client:
        record = client.show(request_id)
    if as_json:
        terminal.write_json(record)
        return 0
    from callpool.tools.cli import tables  # noqa: PLC0415 - JSON needs no tables

    tables.show_record(record)
    return 0
