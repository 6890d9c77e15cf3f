"""A client in a process of its own, ready to make no-op requests when it is told to."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import uvloop

import callpool
from pool import noops
from work import PATIENCE, REPLY, request_for


class ClientProcess:
    """One client. `begin` tells it how many requests to make; `finish` waits until it has made them."""

    def __init__(self, address: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(address, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.finish()  # connected

    def begin(self, count: int) -> None:
        """Make this many requests."""
        self._ours.send(count)

    def finish(self) -> None:
        """Wait for the end of what was begun. TimeoutError after `PATIENCE`, EOFError if the process failed."""
        if not self._ours.poll(PATIENCE):
            raise TimeoutError(f"a client process did not answer within {PATIENCE:g} s")
        self._ours.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()  # ends its loop
        self._process.join(PATIENCE)


def _serve(address: str, pipe: Connection) -> None:
    with callpool.connect(address) as client:
        pipe.send(None)
        while True:
            try:
                count: int = pipe.recv()
            except EOFError:
                return
            noops(client, count)
            pipe.send(None)


class AsyncClientProcess:
    """A client in a process of its own that has several requests under way."""

    def __init__(self, address: str, at_once: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve_at_once, args=(address, theirs, at_once), daemon=True)
        self._process.start()
        theirs.close()
        self.finish()  # connected

    def begin(self, count: int, *, durable: bool) -> None:
        """Make this many requests."""
        self._ours.send((count, durable))

    def finish(self) -> None:
        """Wait for the end of what was begun. TimeoutError after `PATIENCE`, EOFError if the process failed."""
        if not self._ours.poll(PATIENCE):
            raise TimeoutError(f"a client process did not answer within {PATIENCE:g} s")
        self._ours.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()  # ends its loop
        self._process.join(PATIENCE)


def _serve_at_once(address: str, pipe: Connection, at_once: int) -> None:
    uvloop.run(_make_at_once(address, pipe, at_once))


async def _make_at_once(address: str, pipe: Connection, at_once: int) -> None:
    async with callpool.AsyncClient(address) as client:
        pipe.send(None)
        while True:
            try:
                count, durable = pipe.recv()
            except EOFError:
                return
            numbers = iter(range(count))

            async def some(numbers: Iterator[int] = numbers, *, durable: bool = durable) -> None:
                for _ in numbers:
                    handle = await client.submit(**request_for("noop", "hello"), durable=durable)
                    assert (await handle.result(PATIENCE))["content"] == REPLY

            await asyncio.gather(*(some() for _ in range(at_once)))
            pipe.send(None)
