"""Every error as a person or a program is told it: one line, a hint, an exit status. Never a traceback for what a user can cause."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer

from callpool import errors
from callpool.manager.exits import Exit
from callpool.tools.cli import terminal

_STATUSES: tuple[tuple[tuple[type[errors.CallpoolError], ...], Exit], ...] = (
    ((errors.ConfigError,), Exit.CONFIG),
    ((errors.AlreadyRunning,), Exit.ALREADY_RUNNING),
    ((errors.UnsafePath,), Exit.NOT_ALLOWED),
    ((errors.NotRunning, errors.ConnectionLost, errors.HandshakeFailed), Exit.NOT_RUNNING),
    ((errors.RequestTimeout, errors.RequestCancelled, errors.RequestInterrupted), Exit.REQUEST_ENDED),
    ((errors.BadInput,), Exit.USAGE),
)
"""The first line with a class of the error counts; an error of no line is FAILED."""


def status_of(error: errors.CallpoolError) -> Exit:
    """The exit status that this error ends the program with."""
    if error.fault.code == errors.CallpoolError.code:
        return Exit.INTERNAL
    return next((status for classes, status in _STATUSES if isinstance(error, classes)), Exit.FAILED)


def tell(error: errors.CallpoolError, *, as_json: bool) -> Exit:
    """Print an error of callpool; returns its exit status."""
    message, hint = error.message, error.hint
    if not as_json and isinstance(error, errors.ConfigError) and "\n" in message:
        message = f"the configuration is refused, {error.details.get('count')} problems:\n{message}"
    if hint is None and isinstance(error, errors.NotRunning):
        hint = "run `callpool start`"
    _print(error.fault.code, message, param=error.param, hint=hint, details=error.details, as_json=as_json)
    return status_of(error)


def tell_usage(error: typer.TyperException, *, as_json: bool) -> int:
    """Print what is wrong with the command line; returns the exit status."""
    if not error.format_message():  # without a command typer has printed the help, and that is all there is to say
        return error.exit_code
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "callpool"
    _print("usage", error.format_message(), hint=f"see `{command} --help`", as_json=as_json)
    return error.exit_code


def tell_system(error: OSError, *, as_json: bool) -> Exit:
    """Print what the operating system refused: a full disk, a directory that cannot be made."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    _print("system_error", f"{where}{error.strerror or error}", as_json=as_json)
    return Exit.FAILED


def tell_defect(error: Exception, *, as_json: bool) -> Exit:
    """Print an exception that nobody foresaw."""
    if os.environ.get("CALLPOOL_DEBUG") == "1":
        terminal.say(terminal.safe("".join(traceback.format_exception(error)).rstrip()))
    message = f"{type(error).__name__}: {error}".partition("\n")[0]
    hint = "this is a defect of callpool: run it again with CALLPOOL_DEBUG=1, and report what that prints"
    _print(errors.CallpoolError.code, message, hint=hint, as_json=as_json)
    return Exit.INTERNAL


def _print(
    code: str,
    message: str,
    *,
    as_json: bool,
    param: str | None = None,
    hint: str | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    if as_json:
        fields = {"code": code, "message": message, "param": param, "hint": hint, "details": details or {}}
        terminal.say(terminal.as_json({"error": fields}))
        return
    first, *more = message.splitlines() or [""]
    terminal.say(f"{terminal.paint('callpool: error:', terminal.RED, sys.stderr)} {terminal.safe(first)}")
    for line in more:
        terminal.say(terminal.safe(line))
    if (details or {}).get("in_doubt") is True:
        terminal.say("the call may have been billed")
    if hint:
        terminal.say(f"{terminal.paint('hint:', terminal.BOLD, sys.stderr)} {terminal.one_line(hint)}")
