"""How facts look to a person: tables of 80 columns, with colours where the terminal takes them."""

from __future__ import annotations

import io
import shutil
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from callpool.tools.cli import processes, terminal
from callpool.tools.cli.figures import bar, byte_size, counted, span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import RenderableType

_WORK = {"call": "request", "function": "function", "held": "client's own work"}
"""Kind of a request → what its time is for."""
_STATE_STYLES = {
    "running": "green",
    "up": "green",
    "starting": "yellow",
    "draining": "yellow",
    "stuck": "red",
    "down": "red",
    "completed": "green",
    "error": "red",
    "timeout": "red",
    "cancelled": "yellow",
    "interrupted": "red",
    "missing": "red",
    "set": "green",
}


def show_status(facts: dict[str, Any]) -> None:
    """The answer of `Client.status`."""
    head = Text.assemble(
        (f"callpool {facts['version']}", "bold"), "   ", _state(facts["state"]),
        f"   pid {facts['pid']}   up {span(facts['uptime_seconds'])}",
    )  # fmt: skip
    parts = [head, _text(facts["address"]), _pool(facts), _titled("Workers", _workers(facts["workers"]))]
    if facts["accounts"]:
        parts.append(_titled("Accounts", _accounts(facts["accounts"])))
    circuits = [(row["name"], each) for row in facts["accounts"] for each in row.get("circuits", ())]
    if circuits:
        parts.append(_titled("Circuits that are open", _circuits(circuits)))
    if facts["model_servers"]:
        parts.append(_titled("Model servers", _model_servers(facts["model_servers"])))
    if facts["function_lane"]:
        parts.append(_titled("Function lane", _function_lane(facts["function_lane"])))
    print_parts(*parts)


def show_workers(rows: list[dict[str, Any]]) -> None:
    """The workers of `Client.status`."""
    print_parts(_workers(rows))


def show_models(rows: list[dict[str, Any]]) -> None:
    """The answer of `Client.models`, or a provider's own list."""
    if not rows:
        print_parts(Text("no model is listed: any name is passed on"))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("model", overflow="fold")
    for name in ("context", "max output", "timeout"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        seconds = row.get("timeout")
        table.add_row(
            _text(f"{row['provider']}/{row['model']}"),
            *(f"{row[name]:,}" if row.get(name) else "-" for name in ("context", "max_output")),
            "-" if seconds is None else f"{seconds:g} s",
        )
    print_parts(table)


def show_record(record: dict[str, Any]) -> None:
    """The answer of `Client.show`."""
    fields = pairs()
    fields.add_row("request", _text(record["request_id"]))
    fields.add_row("state", _state(record["state"]))
    fields.add_row("model", _text(f"{record['provider']}/{record['model']}"))
    if record.get("blocked"):
        fields.add_row(
            "blocked",
            Text(
                terminal.one_line(f"until that is mended and the supervisor started again: {record['blocked']}"),
                "yellow",
            ),
        )
    fields.add_row("session", _text(_or_dash(record["session_id"])))
    if record["client"]:  # a job of an earlier run has none
        fields.add_row("client", _text(record["client"]))
    if record["kind"] == "call":
        fields.add_row("attempt", f"{record['attempt']}, worker {_or_dash(record['worker'])}")
        fields.add_row("priority", _text(f"{record['priority']}, for {record['name']}"))
    if record["timeout"] is not None:
        fields.add_row("limits", _limits(record))
        fields.add_row("metadata", counted(record["metadata_bytes"], "byte"))
    if record.get("durable"):
        fields.add_row("journal", _text(f"keeps it: see `callpool result {record['request_id']}`"))
    fields.add_row("duration", f"{record['duration']:.3f} s")
    if record.get("position") is not None and not record.get("blocked"):
        wait = record["predicted_wait"]
        fields.add_row("waits", f"behind {record['position']}" + ("" if wait is None else f", for about {wait:.0f} s"))
    if record["phases"]:
        began = time.localtime(record["phases"][0]["at"])
        fields.add_row("received", time.strftime("%Y-%m-%d %H:%M:%S", began))
    if record["fault"]:
        fields.add_row("error", _text(f"{record['fault']['code']}: {record['fault']['message']}"))
    print_parts(fields, *_attempts(record.get("attempts") or []), Text(), _phases(record["phases"]))


def _attempts(attempts: list[dict[str, Any]]) -> list[RenderableType]:
    """The calls before the last one, where there were any."""
    if not attempts:
        return []
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("call", "where", "took", "then waited", "ended with"):
        table.add_column(name, overflow="fold")
    for each in attempts:
        where = terminal.one_line(f"{each['provider']}/{each['model']}")
        took = f"{each['seconds']:.3f} s" if each["called"] else "not begun"
        table.add_row(str(each["number"]), where, took, f"{each['wait']:.2f} s", terminal.one_line(each["code"]))
    return [_titled("Earlier calls", table)]


def _limits(record: dict[str, Any]) -> str:
    limits = [f"{record['timeout']:g} s for the {_WORK[record['kind']]}"]
    words = {"first_token_timeout": "to the first token", "idle_timeout": "between tokens"}
    limits += [f"{record[name]:g} s {what}" for name, what in words.items() if record.get(name) is not None]
    return ", ".join(limits)


def show_drain(report: dict[str, Any]) -> None:
    """The drain report: what became of the requests, and the six shutdown figures."""
    counts = ("finished", "parked", "cancelled", "interrupted")
    styles = {"cancelled": "yellow", "interrupted": "red"}
    fields = pairs()
    for name in counts:
        fields.add_row(name, Text(str(report[name]), styles.get(name, "green") if report[name] else ""))
    figures = pairs()
    for name, value in report.items():
        if name not in counts:
            shown = f"{value:.3f} s" if name == "shutdown_duration" else str(value)
            figures.add_row(_text(name), "yes" if value is True else "no" if value is False else shown)
    print_parts(Text(f"drained in {report['shutdown_duration']:.2f} s", style="bold"), fields, Text(), figures)


def show_config(path: str | None, facts: dict[str, Any]) -> None:
    """The answer of `callpool.manager.config.describe`, and the file that it came from."""
    source = "no configuration file: these are the defaults" if path is None else terminal.one_line(f"{path} is good")
    fields = pairs()
    for name, value in facts["supervisor"].items():
        shown = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        fields.add_row(_text(name), _text(shown))
    parts: list[RenderableType] = [Text(source, style="bold"), _titled("[supervisor]", fields)]
    parts += [_titled(f"[{name}]", _provider(facts[name])) for name in ("journal", "retention")]
    for group in ("providers", "organizations", "clients"):
        for name, table in facts[group].items():
            # Money is shown to its last digit: `_provider` rounds what is a number still.
            exact = {key: f"{value:.15g}" if isinstance(value, float) else value for key, value in table.items()}
            parts.append(_titled(f"[{group}.{name}]", _provider(exact)))
    if not facts["providers"]:
        parts.append(Text("\nno provider is configured: nothing can be submitted", style="yellow"))
    print_parts(*parts)


@contextmanager
def live_line() -> Iterator[Callable[[str], None]]:
    """A moving line on standard error while the block runs; yields what changes its text."""
    console = Console(file=sys.stderr, markup=False, highlight=False, emoji=False)
    spinner = Spinner("dots" if _is_unicode(sys.stderr) else "line", text="")
    with Live(spinner, console=console, transient=True, redirect_stdout=False, redirect_stderr=False):
        yield lambda text: spinner.update(text=Text(text, no_wrap=True, overflow="ellipsis"))


def drain_line(status: dict[str, Any]) -> str:
    """How far a drain is, in a line."""
    sessions, queue = status["sessions"]["active_sessions"], status["queue"]["requests"]
    left = f"{status['drain']['seconds_left']:.0f} s left" if status["drain"] else "beginning"
    return f"{status['state']}: {sessions} active, {queue} queued, {left}"


# Parts.


def _pool(facts: dict[str, Any]) -> RenderableType:
    sessions, queue = facts["sessions"], facts["queue"]
    fields = pairs()
    ended = [
        f"{sessions[f'total_sessions_{outcome}']} {outcome}"
        for outcome in ("completed", "error", "timeout", "cancelled", "interrupted")
    ]
    fields.add_row(
        "sessions",
        f"{sessions['active_sessions']} of {facts['max_concurrent_sessions']} active, "
        f"{sessions['peak_concurrent_sessions']} at the peak",
    )
    fields.add_row("ended", ", ".join(ended))
    clients = counted(facts["clients_with_requests"], "client")
    fields.add_row(
        "queue", f"{counted(queue['requests'], 'request')}, {byte_size(queue['bytes'])}; {clients} with requests"
    )
    fields.add_row("jobs", _jobs(facts["jobs"], facts["journal"]))
    supervision = facts.get("supervision") or {}
    if supervision.get("state") == "degraded":
        why = f"die too fast, {supervision['deaths_last_minute']} in the last minute: {supervision['cause']}"
        fields.add_row("workers", Text(terminal.one_line(why), style="yellow"))
    return Padding(fields, (1, 0, 0, 0))


def _jobs(jobs: dict[str, int], journal: dict[str, Any] | None) -> Text:
    """One line: what lives, what is in doubt, how large the journal is; or why no job is taken."""
    if journal is None:
        return Text("none are taken: no journal is kept")
    blocked = f" ({jobs['blocked']} blocked)" if jobs["blocked"] else ""
    told = f"{jobs['queued']} queued{blocked}, {jobs['started']} started, {journal['in_doubt']} interrupted"
    told += f"; journal {byte_size(journal['bytes'])}"
    if journal["fault"] is None:
        return Text(told)
    return Text.assemble(f"{told}; ", (terminal.one_line(f"none are taken: {journal['fault']}"), "red"))


def _workers(rows: Iterable[dict[str, Any]]) -> Table:
    table = columns("id", "pid", "state", "active", "restarts", "memory", note="note")
    for row in rows:
        memory = processes.memory_of(row["pid"])
        table.add_row(
            str(row["id"]),
            _or_dash(row["pid"]),
            _state(row["state"]),
            str(row["active"]),
            str(row["restarts"]),
            "-" if memory is None else byte_size(memory),
            _text(_worker_note(row)),
        )
    return table


def _worker_note(row: dict[str, Any]) -> str:
    """How the last one died and when in its life; how often it was replaced as planned."""
    failure = f" ({row['last_failure']} failure)" if row.get("last_failure") else ""
    died = f"last one {row['last_death']}{failure}" if row["last_death"] else ""
    recycled = (
        f"recycled {counted(row['recycled'], 'time')}, last for {row['last_recycled']}" if row.get("recycled") else ""
    )
    return "; ".join(filter(None, (died, recycled)))


def _accounts(rows: Iterable[dict[str, Any]]) -> Table:
    table = columns("name", "active", "", "queued", "connections", note="note")
    for row in rows:
        connections = row.get("connections")
        limit = row.get("effective_limit") or row["limit"]
        gauge = bar(row["active"], limit, unicode=_is_unicode(sys.stdout))
        full = row["active"] >= limit
        table.add_row(
            _text(row["name"]),
            f"{row['active']}/{limit}",
            Text(gauge, style="yellow" if full else "green"),
            str(row["queued"]),
            _or_dash(connections and connections["open"]),
            Text(terminal.one_line(_why_less(row)), style="yellow"),
        )
    return table


def _why_less(account: dict[str, Any]) -> str:
    """What keeps an account from all that was configured, if anything does; `callpool account list` tells the whole of it."""
    if account["closed"]:
        return f"closed: {account['closed']}"
    if account.get("stopped"):
        return f"stopped: {account['stopped']}"
    organization = account.get("organization") or {}
    paused = max(account.get("paused_seconds", 0.0), organization.get("paused_seconds", 0.0))
    if paused:
        return f"paused for {paused:.0f} s"
    limited = [account, *account.get("models", ()), *([organization] if organization else [])]
    cut = [each for each in limited if (each.get("effective_limit") or 0) < (each.get("limit") or 0)]
    return "; ".join(f"{each['name']}: {each['effective_limit']} of {each['limit']} calls, learned" for each in cut)


def _circuits(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    """Models that fail, and are left alone."""
    table = columns("model", "", note="why")
    for account, circuit in rows:
        when = "is tried" if circuit["state"] == "half_open" else f"for {circuit['seconds_left']:.0f} s"
        table.add_row(
            _text(f"{account}/{circuit['model']}"), when, Text(terminal.one_line(circuit["why"]), style="yellow")
        )
    return table


def _model_servers(rows: Iterable[dict[str, Any]]) -> Table:
    table = columns("provider", "pid", "state", "restarts", "memory")
    for row in rows:
        memory = processes.memory_of(row["pid"])
        table.add_row(
            _text(row["provider"]),
            _or_dash(row["pid"]),
            _state(row["state"]),
            str(row["restarts"]),
            "-" if memory is None else byte_size(memory),
        )
    return table


def _function_lane(rows: Iterable[dict[str, Any]]) -> Table:
    table = columns("id", "pid", "state", "calls", "memory", note="request")
    for row in rows:
        memory = processes.memory_of(row["pid"])
        table.add_row(
            str(row["id"]),
            _or_dash(row["pid"]),
            _state(row["state"]),
            str(row["calls"]),
            "-" if memory is None else byte_size(memory),
            _text(_or_dash(row["request_id"])),
        )
    return table


def _phases(phases: list[dict[str, Any]]) -> Table:
    """Each phase with the time since the request was received, and how long it lasted."""
    table = columns("phase", "after", "until next")
    ends = [phase["after_seconds"] for phase in phases[1:]] + [None]
    for phase, end in zip(phases, ends, strict=True):
        after = phase["after_seconds"]
        table.add_row(_text(phase["phase"]), f"{after:.3f} s", "" if end is None else f"{end - after:.3f} s")
    return table


def _provider(provider: dict[str, Any]) -> Table:
    fields = pairs()
    for name, value in provider.items():
        if name == "key":
            fields.add_row("key", _key(value))
        elif name == "models":
            for model, settings in value.items():
                shown = ", ".join(f"{field} {setting!r}" for field, setting in settings.items())
                fields.add_row("model", _text(f"{model}: {shown}"))
        elif isinstance(value, list):
            fields.add_row(_text(name), _text(", ".join(value) or "none"))
        elif value is not None:
            fields.add_row(_text(name), _text(f"{value:g}" if isinstance(value, float) else str(value)))
    return fields


def _key(key: dict[str, Any]) -> Text:
    source = "" if key["source"] == "none" else f" ({key['source']})"
    return Text.assemble(_state(key["state"]), _text(source))


# Pieces.


def print_parts(*parts: RenderableType) -> None:
    """Render for standard output, and write in one piece: a reader that goes away is then noticed in one place."""
    coloured = terminal.has_colour(sys.stdout)
    out = io.StringIO()
    console = Console(
        file=out,
        width=shutil.get_terminal_size().columns,
        force_terminal=coloured,
        color_system="standard" if coloured else None,
        markup=False,
        highlight=False,
        emoji=False,
    )
    console.print(Group(*parts))
    terminal.write("".join(line.rstrip() + "\n" for line in out.getvalue().splitlines()))


def columns(*names: str, note: str | None = None) -> Table:
    """A table without lines. Names that hold numbers are to the right; a `note` column takes what is left."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    numeric = {"active", "calls", "connections", "queued", "restarts", "memory", "after", "until next"}
    for name in names:
        table.add_column(name, justify="right" if name in numeric else "left", no_wrap=name in numeric, overflow="fold")
    if note is not None:
        table.add_column(note, overflow="fold")
    return table


def pairs() -> Table:
    """Names and values."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _titled(title: str, table: Table) -> RenderableType:
    return Group(Text(f"\n{terminal.one_line(title)}", style="bold"), Padding(table, (0, 0, 0, 2)))


def _text(text: str) -> Text:
    return Text(terminal.one_line(text))


def _state(state: str) -> Text:
    return Text(terminal.one_line(state), style=_STATE_STYLES.get(state, ""))


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _is_unicode(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "ascii").lower().startswith("utf")
