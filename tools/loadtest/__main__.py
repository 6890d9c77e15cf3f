"""`python -Im callpool.tools.loadtest` is one client process of a load test; its order comes on standard input."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop

from callpool import errors
from callpool.tools.loadtest.member import read_order_line
from callpool.tools.loadtest.messages import ThroughCallpool, decode_order


def main() -> int:
    """Carry out one order. Returns the exit status; what went wrong is on standard error."""
    try:
        order = decode_order(read_order_line())
    except msgspec.DecodeError:
        print("this is a part of `callpool loadtest`, which starts it", file=sys.stderr)
        return 2
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if isinstance(order, ThroughCallpool):
                from callpool.tools.loadtest.client import run as submit  # noqa: PLC0415 (each kind loads its own)

                runner.run(submit(order))
            else:
                from callpool.tools.loadtest.direct import run as call  # noqa: PLC0415

                runner.run(call(order))
    except (errors.CallpoolError, TimeoutError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
