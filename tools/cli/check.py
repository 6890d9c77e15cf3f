"""`callpool config check`: what a supervisor would run with, or everything that is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

from callpool.tools.cli import terminal
from callpool.tools.cli.options import AsJson, ConfigFile


def check(*, config: ConfigFile = None, as_json: AsJson = False) -> int:
    """Check the configuration: print what is in effect, or every problem in it.

    Of a provider's key it tells where it comes from and whether it is set, never the value. Exit status: 0 good, 78 refused.
    """
    from callpool.manager.config import config_file, describe, load  # noqa: PLC0415 - no other command needs it
    from callpool.manager.keys import resolve  # noqa: PLC0415 - as above

    settings = load(config, os.environ)
    facts = describe(settings, resolve(settings, os.environ).facts())
    found = config if config is not None else config_file(os.environ)
    path = None if found is None else str(Path(found).expanduser().absolute())
    if as_json:
        terminal.write_json({"file": path, **facts})
        return 0
    from callpool.tools.cli import tables  # noqa: PLC0415 - JSON needs no tables

    tables.show_config(path, facts)
    return 0
