"""Options that several commands have, and what is made of them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

import callpool
from callpool.manager.core.limits import PRIORITIES, Priority
from callpool.manager.core.options import THINKING_MODES, Options
from callpool.tools.cli import terminal

if TYPE_CHECKING:
    from callpool.manager.client import Client

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="CALLPOOL_ADDRESS",
        show_envvar=True,
        metavar="SOCKET",
        help="The socket of another supervisor than your own.",
    ),
]
ClientName = Annotated[
    str | None,
    typer.Option(
        "--client",
        metavar="NAME",
        help="Count as the client of this name, with others that give it; else as CALLPOOL_CLIENT, else as a client of its own.",
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE", help="The TOML file; else the one that CALLPOOL_CONFIG names, else the usual one."
    ),
]
Provider = Annotated[str, typer.Option("--provider", metavar="NAME", help="A provider of the configuration.")]
Model = Annotated[str, typer.Option("--model", metavar="NAME", help="The model, by the provider's name of it.")]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="Instructions that come before the prompt.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="Time from the first call to the end; else as configured."),
]
FirstToken = Annotated[
    float | None,
    typer.Option(
        "--first-token-timeout",
        metavar="SECONDS",
        help="Of a stream: time until it brings anything; else as configured.",
    ),
]
Idle = Annotated[
    float | None,
    typer.Option(
        "--idle-timeout",
        metavar="SECONDS",
        help="Of a stream: time in which it brings nothing more; else as configured.",
    ),
]
Fallbacks = Annotated[
    list[str] | None,
    typer.Option(
        "--fallback", metavar="PROVIDER/MODEL", help="Where to go on if this one cannot serve the request. Repeatable."
    ),
]
MaxAttempts = Annotated[
    int | None,
    typer.Option("--max-attempts", metavar="N", help="Calls on one model at most; else what the configuration says."),
]
RequestId = Annotated[str | None, typer.Option("--request-id", metavar="ID", help="An id of your own for the request.")]
Durable = Annotated[
    bool,
    typer.Option("--durable", help="Make it a job: it is on the disk before anything else, and outlives this command."),
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Make it a job, print its id and do not wait: see `callpool result`.")
]
InDoubt = Annotated[
    bool,
    typer.Option("--retry-in-doubt", help="Call again also where the lost answer may be billed, or had begun to come."),
]
Thinking = Annotated[
    str | None,
    typer.Option("--thinking", metavar="MODE", help=f"How much the model reasons: {', '.join(THINKING_MODES)}."),
]
WebSearch = Annotated[bool, typer.Option("--websearch", help="Let the provider's own web search be used.")]
Continue = Annotated[
    bool, typer.Option("--continue", help="Have an answer that stopped at the length limit continued, where possible.")
]
Task = Annotated[
    bool, typer.Option("--task", help="Leave the request with the provider and ask for its answer, where possible.")
]
CacheId = Annotated[
    str | None, typer.Option("--cache-id", metavar="ID", help="Share a cached beginning with requests of the same id.")
]
Order = Annotated[
    Priority, typer.Option("--priority", metavar="CLASS", help=f"Who goes first: {', '.join(PRIORITIES)}.")
]
QueueTimeout = Annotated[
    float | None,
    typer.Option("--queue-timeout", metavar="SECONDS", help="Time that it may wait for its first call."),
]
Affinity = Annotated[
    str | None,
    typer.Option(
        "--affinity", metavar="TEXT", help="Go to the worker that served others of the same text, while it has room."
    ),
]
Metadata = Annotated[
    str | None, typer.Option("--metadata", metavar="JSON", help="An object that is kept with the session.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=JSON", help="A parameter for the provider, like temperature=0.2. Repeatable."
    ),
]

LARGEST_PROMPT: Final = 8 * 1024 * 1024
"""Bytes read from standard input: as much as a supervisor takes in one request."""
_OWN_OPTIONS: Final = {
    "provider": "--provider",
    "model": "--model",
    "stream": "--stream",
    "request_id": "--request-id",
    "timeout": "--timeout",
    "first_token_timeout": "--first-token-timeout",
    "idle_timeout": "--idle-timeout",
    "max_attempts": "--max-attempts",
    "fallbacks": "--fallback",
    "retry_in_doubt": "--retry-in-doubt",
    "metadata": "--metadata",
    "options": "the Python client",
    "priority": "--priority",
    "queue_timeout": "--queue-timeout",
    "affinity": "--affinity",
    "durable": "--durable",
    "messages": "PROMPT and --system",
}
"""What `Client.submit` takes by a name of its own → where the command line takes it."""


def connect(address: str | None, name: str | None = None) -> Client:
    """Connect to the supervisor at `address`, else to the user's own, as the client `name`. Raises NotRunning, BadInput."""
    return callpool.connect(Path(address).expanduser().absolute() if address else None, door="cli", name=name)


def parse_parameters(given: list[str] | None) -> dict[str, Any]:
    """`NAME=JSON` options as a dict. Raises typer.BadParameter."""
    parameters: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{_quote(text)} is not NAME=JSON", param_hint="'--param'")
        if name in _OWN_OPTIONS or name == "self":
            raise typer.BadParameter(
                f"{name} is no parameter: give it by {_OWN_OPTIONS.get(name, 'another name')}", param_hint="'--param'"
            )
        if name in parameters:
            raise typer.BadParameter(f"{name} is given twice", param_hint="'--param'")
        parameters[name] = _parse_json(value, f"--param {name}")
    return parameters


def parse_metadata(given: str | None) -> dict[str, Any] | None:
    """The object in `--metadata`. Raises typer.BadParameter."""
    if given is None:
        return None
    value = _parse_json(given, "--metadata")
    if not isinstance(value, dict):
        raise typer.BadParameter("must be a JSON object, like '{\"job\": 7}'", param_hint="'--metadata'")
    return value


def parse_options(**given: Any) -> Options | None:
    """The options that were given, or None; what is wrong with one is told when it is submitted."""
    named = {name: value for name, value in given.items() if value is not None and value is not False}
    return Options(**named) if named else None


def parse_seconds(given: float | None) -> float | None:
    """A duration that may be 0. Raises typer.BadParameter for what is none: NaN, infinite, negative."""
    if given is not None and not (math.isfinite(given) and given >= 0):
        raise typer.BadParameter(f"must be a number of seconds, at least 0, got {given}", param_hint="'--timeout'")
    return given


def read_prompt(given: str) -> str:
    """The prompt; `-` reads it from standard input, without the newlines at its end. Raises typer.BadParameter."""
    text = _read_input() if given == "-" else given
    if not text.strip():
        raise typer.BadParameter("is empty", param_hint="'PROMPT'")
    return text


def as_messages(system: str | None, *turns: dict[str, str]) -> list[dict[str, str]]:
    """The messages of a request."""
    return [*([{"role": "system", "content": system}] if system is not None else []), *turns]


def _read_input() -> str:
    if sys.stdin is None:
        raise typer.BadParameter("standard input is closed", param_hint="'PROMPT'")
    content = sys.stdin.buffer.read(LARGEST_PROMPT + 1)
    if len(content) > LARGEST_PROMPT:
        raise typer.BadParameter(f"standard input has more than {LARGEST_PROMPT} bytes", param_hint="'PROMPT'")
    try:
        return content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"standard input is not UTF-8 text (byte {error.start})", param_hint="'PROMPT'"
        ) from None


def _parse_json(text: str, what: str) -> Any:
    """JSON as the standard says: Python's own parser would take NaN."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise typer.BadParameter("is nested too deeply", param_hint=f"'{what}'") from None
    except ValueError as error:
        raise typer.BadParameter(
            f"{_quote(text)} is not JSON ({error}); a string is written '\"…\"'", param_hint=f"'{what}'"
        ) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _quote(text: str) -> str:
    return repr(terminal.one_line(text if len(text) <= 60 else text[:60] + "…"))
