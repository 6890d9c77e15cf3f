"""The supervisor process: `python -m callpool.manager --boot N`. Started by `callpool.manager.launch`, not by hand.

Its name ends in `__main__`, so that spawned workers do not import it again.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the supervisor that descriptor N describes; the exit status is one of `callpool.manager.exits`."""
    if len(sys.argv) != 3 or sys.argv[1] != "--boot" or not sys.argv[2].isdigit():  # noqa: PLR2004 - program, flag, value
        print("this is the supervisor's own process: use `callpool start`", file=sys.stderr)
        return 2
    from callpool.manager.daemon import run  # noqa: PLC0415 - a wrong call needs none of it

    return run(int(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
