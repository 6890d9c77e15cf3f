"""`callpool sessions`: who holds the pool's slots."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from callpool.tools.cli import terminal
from callpool.tools.cli.options import Address, AsJson, connect

TimedOut = Annotated[bool, typer.Option("--timed-out", help="Only those that are past their timeout.")]


def sessions(*, as_json: AsJson = False, timed_out: TimedOut = False, address: Address = None) -> int:
    """List the active sessions, the newest last, and the totals since the start.

    In JSON each comes with its metadata, without what looks like a credential.
    """
    with connect(address) as client:
        manager = client.sessions
        handles = manager.get_timed_out_sessions() if timed_out else manager.get_active_sessions()
        status = client.status()
    statistics: dict[str, Any] = {**status["sessions"], "max_concurrent_sessions": status["max_concurrent_sessions"]}
    if as_json:
        terminal.write_json({"sessions": [handle.describe() for handle in handles], "statistics": statistics})
        return 0
    from callpool.tools.cli import session_tables  # noqa: PLC0415 - JSON needs no tables

    session_tables.show_sessions([handle.describe(metadata=False) for handle in handles], statistics)
    return 0
