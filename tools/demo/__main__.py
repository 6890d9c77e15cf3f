"""`python -Im callpool.tools.demo` runs the demo; `… client N` is what it starts eight times."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    match arguments:
        case []:
            from callpool.tools.demo.story import main as run  # noqa: PLC0415 (a client need not load the screen)

            return run()
        case ["client", number] if number.isdecimal():
            from callpool.tools.demo.asker import main as ask  # noqa: PLC0415

            return ask(int(number))
        case _:
            print("usage: python -Im callpool.tools.demo", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
