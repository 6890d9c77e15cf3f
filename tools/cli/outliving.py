"""Waiting for a job: whatever ends the wait, the job goes on, and a person is told how to come back to it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from callpool import errors
from callpool.manager.exits import Exit
from callpool.tools.cli import failures, terminal

if TYPE_CHECKING:
    from collections.abc import Iterator


class Wait:
    """What is known of the job that is waited for."""

    def __init__(self, *, taken: bool) -> None:
        self.taken = taken
        """Whether the supervisor has said that it is on the disk."""


@contextmanager
def outliving(request_id: str, *, as_json: bool, taken: bool = False) -> Iterator[Wait]:
    """Around the wait for a job: Ctrl-C and a supervisor that goes away end the wait alone, and say how to go on.

    Raises typer.Exit after a Ctrl-C, ConnectionLost with a hint.
    """
    wait = Wait(taken=taken)
    try:
        yield wait
    except KeyboardInterrupt:
        _let_go(request_id, taken=wait.taken, as_json=as_json)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except errors.ConnectionLost as error:
        hint = (
            f"the job is kept: start the supervisor again, then `callpool result {request_id} --wait`"
            if wait.taken
            else f"it may have been taken: submit it again with --request-id {request_id}, which is the same job"
        )
        raise errors.ConnectionLost(error.message, hint=hint, request_id=request_id) from None


def _let_go(request_id: str, *, taken: bool, as_json: bool) -> None:
    """Say what is true of a job whose waiter has pressed Ctrl-C."""
    message = f"job {request_id} goes on without this command" if taken else f"job {request_id} may have been taken"
    hint = f"`callpool result {request_id} --wait` waits for it, `callpool cancel {request_id}` ends it"
    if as_json:
        failures.tell(
            errors.CallpoolError(message, code="let_go", hint=hint, request_id=request_id, taken=taken), as_json=True
        )
        return
    terminal.say(f"callpool: {message}")
    terminal.say(f"hint: {hint}")
