"""`callpool start`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from callpool.tools.cli import terminal
from callpool.tools.cli.options import AsJson, ConfigFile

Detach = Annotated[
    bool,
    typer.Option(
        "--detach/--foreground", help="Run as a daemon and return when it is ready, or run here until Ctrl-C."
    ),
]


def start(*, config: ConfigFile = None, detach: Detach = False, as_json: AsJson = False) -> int:
    """Start the supervisor: in the foreground, or as a daemon with --detach.

    In the foreground, which is what service managers want, this process becomes the supervisor: its log goes to standard
    error, Ctrl-C or SIGTERM drains it, a second one cuts the drain short. With --detach its log is a file, and the
    command returns when the supervisor accepts requests.
    """
    if as_json and not detach:
        raise typer.BadParameter(
            "goes with --detach: in the foreground there is nothing to print", param_hint="'--json'"
        )
    from callpool.manager import launch  # noqa: PLC0415 - heavy, and no other command needs it

    prepared = launch.plan(config, os.environ)
    if not detach:
        launch.run_in_foreground(prepared)
    began = launch.start_detached(prepared)
    if as_json:
        terminal.write_json({"pid": began.pid, "address": began.address, "log": str(prepared.log_path)})
    else:
        terminal.write(
            f"callpool is ready: pid {began.pid}\naddress {terminal.one_line(began.address)}\n"
            f"log     {terminal.one_line(str(prepared.log_path))}\n"
        )
    return 0
