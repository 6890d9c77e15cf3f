"""How accounts look to a person: limits and what is used of them, and the history of what refusals have taught."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from callpool.tools.cli import terminal
from callpool.tools.cli.figures import bar, span
from callpool.tools.cli.tables import columns, print_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType


def show_accounts(accounts: list[dict[str, Any]], clients: list[dict[str, Any]]) -> None:
    """The accounts of `Client.status`, each with its limits, and the clients that have some."""
    if not accounts:
        print_parts(Text("no provider is configured"))
        return
    parts: list[RenderableType] = []
    for account in accounts:
        parts += _account(account)
    if clients:
        table = _limits()
        for scope in clients:
            _add_windows(table, scope, scope["name"] or "whole supervisor")
        parts += [Text("\nClients", style="bold"), Padding(table, (0, 0, 0, 2))]
    print_parts(*parts)


def _account(account: dict[str, Any]) -> Iterator[RenderableType]:
    yield Text.assemble(("\n" + terminal.one_line(account["name"]), "bold"), "  ", *_state(account))
    table = _limits()
    for scope, name in _scopes(account):
        _add_slots(table, scope, name)
        _add_windows(table, scope, name)
    yield Padding(table, (0, 0, 0, 2))
    lessons = [(lesson, name) for scope, name in _scopes(account) for lesson in scope["history"]]
    if lessons:
        lessons.sort(key=lambda pair: float(pair[0]["at"]))
        yield Padding(Group(Text("what refusals have taught", style="dim"), _history(lessons)), (0, 0, 0, 2))


def _state(account: dict[str, Any]) -> Iterator[Text]:
    """What keeps it from serving, and how many wait."""
    if account["stopped"]:
        when = "" if account["resumes_in"] is None else f" (goes on in {span(account['resumes_in'])})"
        yield Text(f"stopped{when}: {terminal.one_line(account['stopped'])}", style="red")
    elif account["closed"]:
        yield Text(f"closed: {terminal.one_line(account['closed'])}", style="yellow")
    elif account["paused_seconds"] > 0:
        yield Text(f"paused for {account['paused_seconds']:.0f} s", style="yellow")
    queued, wait = account["queued"], account["predicted_wait"]
    if queued:
        yield Text(f"  {queued} queued" + ("" if wait is None else f", the last one for about {wait:.0f} s"))


def _scopes(account: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    yield account, ""
    for model in account["models"]:
        yield model, model["name"].partition("/")[2]
    if account["organization"] is not None:
        yield account["organization"], f"organisation {account['organization']['name']}"


def _limits() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("limit", overflow="fold")
    for name in ("used", "of"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def _add_slots(table: Table, scope: dict[str, Any], name: str) -> None:
    limit, configured = scope["effective_limit"], scope["limit"]
    if limit is None:
        return
    most = f"{limit}" if limit == configured else f"{limit} (learned; {configured} configured)"
    lagging = f" +{scope['lagging']}" if scope["lagging"] else ""
    table.add_row(_what("concurrency", name), f"{scope['active']}{lagging}", most, _gauge(scope["active"], limit))


def _add_windows(table: Table, scope: dict[str, Any], name: str) -> None:
    for limit, window in scope["windows"].items():
        table.add_row(
            _what(limit, name),
            _number(window["used"]),
            _number(window["limit"]),
            _gauge(window["used"], window["limit"]),
        )


def _what(limit: str, name: str) -> Text:
    return Text(limit + (f" of {terminal.one_line(name)}" if name else ""))


def _number(value: float) -> str:
    return f"{value:,.2f}" if value % 1 else f"{value:,.0f}"


def _gauge(used: float, limit: float) -> Text:
    unicode = (getattr(sys.stdout, "encoding", None) or "ascii").lower().startswith("utf")
    return Text(bar(int(used), int(limit), unicode=unicode), style="yellow" if used >= limit else "green")


def _history(lessons: Iterable[tuple[dict[str, Any], str]]) -> Table:
    table = columns("at", "what", note="why")
    for lesson, name in lessons:
        what = str(lesson["what"])
        if lesson["limit"] is not None:
            what += f" to {lesson['limit']}"
        elif lesson["seconds"]:
            what += f" for {lesson['seconds']:.0f} s"
        if lesson["times"] > 1:
            what += f" (found {lesson['times']} times)"
        at = time.strftime("%H:%M:%S", time.localtime(lesson["at"]))
        why = terminal.one_line(lesson["why"]) + (f" ({terminal.one_line(name)})" if name else "")
        table.add_row(at, what, Text(why))
    return table
