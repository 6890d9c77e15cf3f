"""The supervisor process: `python -m callpool.manager --boot N [--fork]`. Started by `callpool.manager.launch`, not by hand.

Its name ends in `__main__`, so that spawned workers do not import it again.
"""

from __future__ import annotations

import os
import signal
import sys


def main(arguments: list[str]) -> int:
    """Run the supervisor that descriptor N describes; the exit status is one of `callpool.manager.exits`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the drain ladder stands, Ctrl-C ends it without a traceback
    match arguments:
        case ["--boot", number] if number.isdigit():
            pass
        case ["--boot", number, "--fork"] if number.isdigit():
            if os.fork():  # nothing is imported and no thread runs yet: the one place where a fork is safe
                os._exit(0)
        case _:
            sys.stderr.write("this is the supervisor's own process: use `callpool start`\n")
            return 2
    from callpool.manager.daemon import run  # noqa: PLC0415 - after the fork, and a wrong call needs none of it

    return run(int(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
