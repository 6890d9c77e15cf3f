"""`python -m callpool` is the command line `callpool`."""

from __future__ import annotations

import sys

from callpool.tools.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
