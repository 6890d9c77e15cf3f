"""The live side of the records: each event of one fake is written to its log, then folded into its memory."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from callpool.tools.testing.fake_records import (
    Arrived,
    CallRecord,
    ClientGone,
    Connected,
    Ended,
    Event,
    FirstByte,
    Fold,
    LogWriter,
    Started,
    Totals,
)

Predicate = Callable[[list[CallRecord]], bool]


class History:
    """Every call of one fake. Owner of all of it: the fake's event loop."""

    def __init__(self, log_path: Path | None, *, keep: bool) -> None:
        self.active = 0
        self.peak_active = 0
        self._fold = Fold(keep=keep)
        self._log_path = log_path
        self._log: LogWriter | None = None
        self._numbers = itertools.count(1)
        self._server = ""
        self._waiters: list[tuple[Predicate, asyncio.Future[None]]] = []

    @property
    def calls(self) -> list[CallRecord]:
        """Calls seen, in order of arrival; empty where they are not kept."""
        return self._fold.calls

    @property
    def totals(self) -> Totals:
        """Connections and calls seen, kept or not."""
        return self._fold.totals

    def open(self) -> None:
        """Open the log. OSError where it cannot be written."""
        if self._log_path is not None:
            self._log = LogWriter(self._log_path)

    def start(self, port: int, base_url: str, dialect: str) -> None:
        """The fake listens from now on."""
        self._server = f"{os.getpid()}:{port}"
        self._note(Started(self._server, time.monotonic(), base_url, dialect))

    def connect(self, number: int) -> None:
        """A connection was accepted."""
        self._note(Connected(self._server, number, time.monotonic()))

    def arrive(
        self,
        *,
        connection: int,
        path: str,
        size: int,
        model: str,
        stream: bool,
        parameters: dict[str, Any],
        digest: str,
        last_message: str,
        key_tail: str,
        fault: str | None,
    ) -> CallRecord:
        """A call begins; it is open until `end` or `client_gone`."""
        self.active += 1
        self.peak_active = max(self.peak_active, self.active)
        event = Arrived(
            server=self._server,
            number=next(self._numbers),
            at=time.monotonic(),
            connection=connection,
            active=self.active,
            path=path,
            size=size,
            model=model,
            stream=stream,
            parameters=parameters,
            digest=digest,
            last_message=last_message,
            key_tail=key_tail,
            fault=fault,
        )
        self._note(event)
        return self._fold.open_call(event.server, event.number)

    def first_byte(self, record: CallRecord, status: int | None) -> None:
        """The answer's first byte is about to be handed to the socket."""
        self._note(FirstByte(self._server, record.number, time.monotonic(), status))

    def end(self, record: CallRecord, outcome: str) -> None:
        """The call is over, by the fake's doing."""
        self.active -= 1
        self._note(Ended(self._server, record.number, time.monotonic(), outcome))

    def client_gone(self, record: CallRecord) -> None:
        """The call is over because its client left."""
        self.active -= 1
        self._note(ClientGone(self._server, record.number, time.monotonic()))

    async def wait_for(self, predicate: Predicate, limit: float) -> list[CallRecord]:
        """Return the calls as soon as `predicate` holds of them; TimeoutError after `limit` seconds."""
        if not predicate(self.calls):
            waiter = (predicate, asyncio.get_running_loop().create_future())
            self._waiters.append(waiter)
            try:
                async with asyncio.timeout(limit):
                    await waiter[1]
            except TimeoutError:
                raise TimeoutError(f"not seen within {limit} s; calls: {self.calls[-5:]}") from None
            finally:
                self._waiters.remove(waiter)
        return list(self.calls)

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _note(self, event: Event) -> None:
        if self._log is not None:
            self._log.append(event)
        self._fold.apply(event)
        for predicate, future in self._waiters:
            if future.done():
                continue
            try:
                if predicate(self.calls):
                    future.set_result(None)
            except Exception as error:  # noqa: BLE001  # the asker's mistake goes to the asker, not to the call at hand
                future.set_exception(error)
