"""`callpool models`: what can be asked for, and what is known of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from callpool.tools.cli import terminal
from callpool.tools.cli.options import Address, AsJson, ClientName, Timeout, connect

Account = Annotated[
    str | None, typer.Option("--provider", metavar="NAME", help="Only this provider of the configuration.")
]
Ask = Annotated[
    bool, typer.Option("--ask", help="Ask the provider itself for its list (needs --provider; one request).")
]


def models(
    *,
    provider: Account = None,
    ask: Ask = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
    address: Address = None,
    client_name: ClientName = None,
) -> int:
    """List the models of the configuration, with the tokens of a prompt and answer (context) and of an answer where known."""
    if ask and provider is None:
        raise typer.BadParameter("needs --provider: a list is asked of one account", param_hint="'--ask'")
    if timeout is not None and not ask:
        raise typer.BadParameter("is for --ask: nothing else is asked of a provider", param_hint="'--timeout'")
    with connect(address, client_name) as client:
        if ask and provider is not None:
            rows = [{"provider": provider, **_known(each)} for each in client.list_models(provider, timeout=timeout)]
        else:
            rows = client.models(provider)
    if as_json:
        terminal.write_json({"models": rows})
        return 0
    from callpool.tools.cli import tables  # noqa: PLC0415 - JSON needs no tables

    tables.show_models(rows)
    return 0


def _known(told: dict[str, Any]) -> dict[str, Any]:
    """A model as its provider tells it, under our names where it tells the same."""
    context = told.get("context_length")
    return {"model": told["id"], "context": context if type(context) is int and context > 0 else None, "raw": told}
