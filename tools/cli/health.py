"""`callpool health`: whether all is well with the supervisor, for people, probes and scripts."""

from __future__ import annotations

from typing import Any

from callpool import errors
from callpool.manager.exits import Exit
from callpool.tools.cli import failures, terminal
from callpool.tools.cli.options import Address, AsJson, connect

ANSWER_WAIT = 5.0
"""Seconds for the judgement, which takes milliseconds: a supervisor that needs longer is not well."""
_STYLES = {"healthy": "green", "degraded": "yellow", "draining": "yellow", "unhealthy": "red"}


def health(*, as_json: AsJson = False, address: Address = None) -> int:
    """Tell whether all is well: event loop, workers, models, descriptors, memory, disk, queue, books.

    Exit status: 0 healthy (a pool that is busy is healthy), 4 something is wrong or it drains, 69 no supervisor answers.
    """
    try:
        with connect(address) as client:
            facts: dict[str, Any] = client.health(wait=ANSWER_WAIT)
    except (errors.NotRunning, errors.HandshakeFailed, errors.ConnectionLost) as error:
        if not as_json:
            raise
        terminal.write_json(_unanswered(error))
        return failures.status_of(error)
    if as_json:
        terminal.write_json(facts)
    else:
        _show(facts)
    return Exit.OK if facts["healthy"] else Exit.UNHEALTHY


def _unanswered(error: errors.CallpoolError) -> dict[str, Any]:
    """The judgement over a supervisor that does not answer, in the shape of every other one."""
    check = {"name": "answer", "ok": False, "value": None, "limit": None, "unit": "", "message": error.message}
    return {"healthy": False, "state": "unhealthy", "reasons": [error.message], "checks": [check]}


def _show(facts: dict[str, Any]) -> None:
    from rich.text import Text  # noqa: PLC0415 - JSON needs no tables

    from callpool.tools.cli import tables  # noqa: PLC0415 - as above

    state = facts["state"]
    parts = [Text(terminal.one_line(state), style=f"bold {_STYLES.get(state, '')}")]
    parts += [Text(terminal.one_line(f"- {reason}")) for reason in facts["reasons"]]
    table = tables.columns("check", "", note="found")
    for check in facts["checks"]:
        verdict = Text("ok", style="green") if check["ok"] else Text("wrong", style="red")
        table.add_row(Text(terminal.one_line(check["name"])), verdict, Text(terminal.one_line(check["message"])))
    tables.print_parts(*parts, Text(), table)
