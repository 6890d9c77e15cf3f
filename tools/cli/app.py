"""The commands, and what holds for all of them: parsing, errors, exit status."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from callpool import errors
from callpool.tools.cli import accounts, failures, jobs, journal, terminal
from callpool.tools.cli.cancel import cancel
from callpool.tools.cli.chat import chat
from callpool.tools.cli.check import check
from callpool.tools.cli.health import health
from callpool.tools.cli.loadtest import quota
from callpool.tools.cli.models import models
from callpool.tools.cli.result import result
from callpool.tools.cli.sessions import sessions
from callpool.tools.cli.start import start
from callpool.tools.cli.status import show, status, workers
from callpool.tools.cli.stop import stop
from callpool.tools.cli.submit import submit
from callpool.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_HELP = "One supervisor for every LLM call made on this machine: start it, submit to it, look at it, stop it."
_SETTINGS = {"help_option_names": ["-h", "--help"]}


class _ListByDefault(typer.core.TyperGroup):
    """A group that lists where no command of it is named: `callpool jobs --state queued` is `callpool jobs list --state queued`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the command that is meant."""
        asks_help = bool(args) and args[0] in _SETTINGS["help_option_names"]
        completes = ctx.resilient_parsing and not args  # a shell asks which words may come
        if not completes and (not args or (args[0].startswith("-") and not asks_help)):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if asked:
        terminal.write(f"callpool {__version__}\n")
        raise typer.Exit


def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What comes before a command."""


def build() -> typer.Typer:
    """The program as typer knows it."""
    app = typer.Typer(help=_HELP, no_args_is_help=True, context_settings=_SETTINGS, pretty_exceptions_enable=False)
    app.callback(help=_HELP)(_root)
    for command in (start, submit, result, chat, show, cancel, models, status, sessions, workers, health, stop):
        app.command()(command)
    config = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
    config.command()(check)
    app.add_typer(config, name="config")
    jobs_ = typer.Typer(cls=_ListByDefault, help="List jobs (without a further word), and decide about those in doubt.")
    jobs_.command("list")(jobs.list_)
    jobs_.command()(jobs.resolve)
    app.add_typer(jobs_, name="jobs")
    journal_ = typer.Typer(help="Check, copy and compact the file that keeps the jobs.", no_args_is_help=True)
    for command in (journal.check, journal.export, journal.compact):
        journal_.command()(command)
    app.add_typer(journal_, name="journal")
    account = typer.Typer(help="Look at the accounts, and let a stopped one go on.", no_args_is_help=True)
    account.command("list")(accounts.list_)
    account.command()(accounts.resume)
    app.add_typer(account, name="account")
    loadtest = typer.Typer(
        help="Measure callpool beside programs without it, on a fake provider.", no_args_is_help=True
    )
    loadtest.command()(quota)
    app.add_typer(loadtest, name="loadtest")
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit status. Tells every error, and lets none out."""
    terminal.prepare()
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in options
    try:
        status_ = typer.main.get_command(build()).main(list(arguments), prog_name="callpool", standalone_mode=False)
        terminal.flush()
    except terminal.ReaderGone:
        return _end_as_by_sigpipe()
    except errors.CallpoolError as error:
        return failures.tell(error, as_json=as_json)
    except typer.TyperException as error:
        return failures.tell_usage(error, as_json=as_json)
    except typer.Abort:
        return failures.tell_usage(typer.TyperException("the input ended"), as_json=as_json)
    except OSError as error:
        terminal.drop_output()
        return failures.tell_system(error, as_json=as_json)
    except Exception as error:  # noqa: BLE001 - the last resort: a defect is told in one line, too
        return failures.tell_defect(error, as_json=as_json)
    return int(status_ or 0)


def _end_as_by_sigpipe() -> int:
    """End the way every Unix tool ends in `… | head`, so that a shell's `pipefail` reads it the same."""
    terminal.drop_output()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    return 128 + signal.SIGPIPE
