"""`callpool account`: what each provider account allows, what its refusals have taught, and letting a stopped one go on."""

from __future__ import annotations

from typing import Annotated

import typer

from callpool.tools.cli import terminal
from callpool.tools.cli.options import Address, AsJson, connect

Name = Annotated[str, typer.Argument(metavar="NAME", help="The account: the provider's name in the configuration.")]


def list_(*, as_json: AsJson = False, address: Address = None) -> int:
    """List the accounts: slots, what is used of each limit, what refusals have taught, and why."""
    with connect(address) as client:
        facts = client.status()
    if as_json:
        terminal.write_json({"accounts": facts["accounts"], "clients": facts["clients"]})
        return 0
    from callpool.tools.cli import account_tables  # noqa: PLC0415 - JSON needs no tables

    account_tables.show_accounts(facts["accounts"], facts["clients"])
    return 0


def resume(name: Name, *, as_json: AsJson = False, address: Address = None) -> int:
    """Let an account go on: after a dead key or an empty balance was mended, or to forget what refusals have taught."""
    with connect(address) as client:
        answer = client.resume_account(name)
    if as_json:
        terminal.write_json(answer)
    elif answer["resumed"]:
        terminal.write(f"account {terminal.one_line(name)} goes on\n")
    else:
        terminal.write(f"account {terminal.one_line(name)} was not stopped, and has learned nothing to forget\n")
    return 0
