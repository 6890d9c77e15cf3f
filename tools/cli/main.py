"""The program `callpool`. Nothing is imported here until a Ctrl-C is taken care of."""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command of `sys.argv`; the exit status is one of `callpool.manager.exits`."""
    try:
        from callpool.tools.cli.app import run  # noqa: PLC0415 - a Ctrl-C during the imports is no traceback either

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
