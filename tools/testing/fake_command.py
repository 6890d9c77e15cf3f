"""The command line of the fake provider: `python -Im callpool.tools.testing.fake_provider --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from callpool.tools.testing.fake_dialects import DIALECTS
from callpool.tools.testing.fake_faults import FAULTS
from callpool.tools.testing.fake_process import Ready
from callpool.tools.testing.fake_requests import Options
from callpool.tools.testing.fake_server import FakeProvider

OPTIONS = [field.name for field in msgspec.structs.fields(Options)]
"""Options of each answer; one that is not given is not passed on, so that the fake's own default counts."""


def parser() -> argparse.ArgumentParser:
    """The options; their defaults are those of `FakeProvider`."""
    options = argparse.ArgumentParser(
        prog="callpool.tools.testing.fake_provider",
        allow_abbrev=False,
        description="An LLM provider on loopback that keeps limits and fails on order. Prints one JSON line with base_url "
        "and pid when it is ready. Ends on SIGTERM and SIGINT.",
    )
    options.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 takes a free one (default)")
    options.add_argument(
        "--dialect", choices=list(DIALECTS), default="openai", help="wording and paths (default: openai)"
    )
    options.add_argument("--delay", type=float, metavar="S", help="seconds before an answer")
    options.add_argument("--chunks", type=int, metavar="N", help="pieces of a streamed answer (default: 4)")
    options.add_argument("--chunk-delay", type=float, metavar="S", help="seconds before each further piece")
    options.add_argument("--concurrency", type=int, metavar="N", help="calls at once that a key may have")
    options.add_argument("--rpm", type=int, metavar="N", help="requests per minute that a key may make")
    options.add_argument("--tpm", type=int, metavar="N", help="tokens per minute that a key may charge")
    options.add_argument("--tpd", type=int, metavar="N", help="tokens per day that a key may charge")
    options.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the only key to accept")
    options.add_argument("--reply", metavar="TEXT", help="the answer; without it the last user message is echoed")
    options.add_argument("--reasoning", metavar="TEXT", help="what is thought before each answer")
    options.add_argument(
        "--tool-calls",
        type=_json,
        metavar="JSON",
        help='tool calls of each answer: [{"name": "f", "arguments": {}}, …]',
    )
    options.add_argument("--finish-reason", metavar="WORD", help="instead of the true one")
    options.add_argument("--piece-tokens", type=int, metavar="N", help="cut every answer after so many tokens")
    options.add_argument("--fault", metavar="NAME", help="the fault of every request")
    options.add_argument(
        "--fault-times", type=int, metavar="N", help="the fault only at the first N requests with the same user's text"
    )
    options.add_argument("--size", type=int, metavar="BYTES", help="size of the faults that are about size")
    options.add_argument("--polls", type=int, metavar="N", help="looks that find a task at work (default: 2)")
    options.add_argument("--task-fails", action="store_true", default=None, help="tasks come to nothing")
    options.add_argument("--log", type=Path, metavar="FILE", help="append one JSON line per event to FILE")
    options.add_argument("--lifeline", action="store_true", help="end when standard input is closed")
    options.add_argument("--list-faults", action="store_true", help="list the faults and exit")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to end; 0. A wrong option ends with 2 and a message."""
    options = parser()
    chosen = options.parse_args(argv)
    if chosen.list_faults:
        width = max(map(len, FAULTS))
        sys.stdout.write("".join(f"{fault.name:{width}}  {fault.doc}\n" for fault in FAULTS.values()))
        return 0
    key = None
    if chosen.api_key_env is not None:
        key = os.environ.get(chosen.api_key_env)
        if not key:
            options.error(f"--api-key-env: the environment has no {chosen.api_key_env}")
    try:
        fake = FakeProvider(
            dialect=chosen.dialect,
            concurrency=chosen.concurrency,
            rpm=chosen.rpm,
            tpm=chosen.tpm,
            tpd=chosen.tpd,
            api_key=key,
            log_path=chosen.log,
            port=chosen.port,
            keep_calls=False,
            **{name: value for name in OPTIONS if (value := getattr(chosen, name)) is not None},
        )
    except ValueError as error:
        options.error(str(error))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(_serve(fake, lifeline=chosen.lifeline))
        except OSError as error:  # the port or the log
            options.error(str(error))
    return 0


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def _serve(fake: FakeProvider, *, lifeline: bool) -> None:
    loop = asyncio.get_running_loop()
    told_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_end.set)
    async with fake:
        if lifeline:
            stdin = sys.stdin.fileno()

            def closed() -> None:
                if not os.read(stdin, 4_096):
                    loop.remove_reader(stdin)
                    told_to_end.set()

            loop.add_reader(stdin, closed)
        sys.stdout.write(msgspec.json.encode(Ready(fake.base_url, os.getpid())).decode() + "\n")
        sys.stdout.flush()
        await told_to_end.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop where it is installed: a fake slower than what it measures would be measured instead."""
    try:
        import uvloop  # noqa: PLC0415  # the fake runs without it
    except ImportError:
        return None
    return uvloop.new_event_loop
