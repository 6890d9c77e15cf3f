"""`callpool stop`: the drain, from the order to the end of the supervisor's process."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from callpool import errors
from callpool.manager.exits import Exit
from callpool.tools.cli import failures, terminal
from callpool.tools.cli.options import Address, AsJson, connect, parse_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from callpool.manager.client import Client

LOOK_INTERVAL: Final = 0.2
"""Seconds between two looks at a drain; each look also proves that the supervisor still answers."""
END_WAIT: Final = 15.0
"""Seconds from the drain report to the end of the process: workers have gone before the report, or go within two seconds."""

DrainTimeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="SECONDS", help="Time for active requests; else the supervisor's shutdown_timeout."
    ),
]


def stop(*, timeout: DrainTimeout = None, as_json: AsJson = False, address: Address = None) -> int:
    """Drain the supervisor and end it; print how the drain went.

    It takes no new requests, lets active ones finish until the time is over, then cancels the rest at their providers.
    The command returns when the supervisor's process has ended. Ctrl-C leaves the drain going on.
    """
    parse_seconds(timeout)
    from callpool.tools.cli import processes  # noqa: PLC0415 - psutil takes a while to import, and only this command needs it

    with connect(address) as client:
        pid: int = client.status()["pid"]
        process = processes.find(pid)
        drain = _Drain(client, timeout)
        try:
            with _progress() as look:
                report = drain.follow(look)
        except KeyboardInterrupt:
            return _let_go(client, pid)
        except errors.ConnectionLost as error:
            raise errors.ConnectionLost(f"{error.message}; the supervisor (pid {pid}) gave no drain report") from None
    if as_json:
        terminal.write_json(report)
    else:
        from callpool.tools.cli import tables  # noqa: PLC0415 - JSON needs no tables

        tables.show_drain(report)
    if process is not None and not processes.wait_ended(process, END_WAIT):
        hint = f"it answers nobody any more; look at its log, then `kill -KILL {pid}`"
        failures.tell(
            errors.CallpoolError(
                f"process {pid} has not ended {END_WAIT:.0f} s after its drain", code="still_running", hint=hint
            ),
            as_json=as_json,
        )
        return Exit.FAILED
    return Exit.OK


class _Drain:
    """A drain that is being waited for, on a thread of its own; the main thread looks on and hears Ctrl-C."""

    def __init__(self, client: Client, timeout: float | None) -> None:
        self._client = client
        self._timeout = timeout
        self._report: dict[str, Any] | None = None
        self._error: errors.CallpoolError | None = None
        self._ended = threading.Event()

    def follow(self, look: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Give the order and return the report. Raises ConnectionLost if the supervisor goes away or falls silent."""
        threading.Thread(target=self._wait, name="callpool-drain", daemon=True).start()
        while not self._ended.wait(LOOK_INTERVAL):
            try:
                look(self._client.status())
            except errors.ConnectionLost:
                # The connection ends right after the report; without one, the waiting thread has lost it too.
                if not self._ended.wait(LOOK_INTERVAL):
                    raise
        if self._report is None:
            raise self._error or errors.ConnectionLost("the supervisor gave no answer")
        return self._report

    def _wait(self) -> None:
        try:
            self._report = self._client.drain(self._timeout)
        except errors.CallpoolError as error:
            self._error = error
        finally:
            self._ended.set()


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A line on the terminal that tells how far the drain is; elsewhere nothing. Yields what takes each status."""
    if not terminal.has_movement(sys.stderr):
        yield lambda _status: None
        return
    from callpool.tools.cli import tables  # noqa: PLC0415 - only a terminal needs it

    with tables.live_line() as update:
        update("draining …")
        yield lambda status: update(tables.drain_line(status))


def _let_go(client: Client, pid: int) -> Exit:
    """Ctrl-C: say what is true."""
    try:
        state = client.status()["state"]
    except errors.CallpoolError:
        state = "ending"
    if state == "running":
        terminal.say("callpool: the drain had not begun; the supervisor goes on")
    else:
        terminal.say(f"callpool: the drain goes on without this command (pid {pid}): see `callpool status`")
    return Exit.INTERRUPTED
