"""Who may import whom. The picture is in docs/architecture.md; this is the part of it that cannot rot."""

from __future__ import annotations

import ast
import sys

import pytest

from tests.house.checkout import ROOMS, installed_modules, tracked_files
from tests.house.imports import imports_of, parse

PUBLIC = tuple(
    f"callpool.manager.{name}"
    for name in (
        "aio",
        "aio_handle",
        "aio_session",
        "aio_sessions",
        "batch",
        "client",
        "config",
        "core.limits",
        "core.options",
        "embedded",
        "errors",
        "execution",
        "executor",
        "exits",
        "handle",
        "launch",
        "lifecycle_logger",
        "paths",
        "process_wide",
        "session",
        "sessions",
        "settings",
    )
)
"""What doors and the doorplate know of the office: its client, how to start it, its words. Never its inside."""

ARROWS = {
    "callpool.manager.core": ("callpool.manager.core",),
    "callpool.manager": ("callpool.manager", "callpool.workers"),
    "callpool.workers": (
        "callpool.workers",
        "callpool.manager.core.faults",
        "callpool.manager.core.limits",
        "callpool.manager.core.messages",
        "callpool.manager.core.options",
        "callpool.manager.core.parameter_rules",
        "callpool.manager.core.parameters",
        "callpool.manager.core.pools",
        "callpool.manager.core.strict",
        "callpool.manager.core.tokens",
        "callpool.manager.errors",
        "callpool.manager.failpoints",
        "callpool.manager.link",
        "callpool.manager.settings",
        "callpool.manager.wire",
    ),
    "callpool.tools": ("callpool.tools", *PUBLIC),
    # It tells whether a provider's key is set, and where it comes from.
    "callpool.tools.cli.check": ("callpool.tools", *PUBLIC, "callpool.manager.keys"),
    # Where no supervisor runs, it opens the file itself.
    "callpool.tools.cli.journal": ("callpool.tools", *PUBLIC, "callpool.manager.journal_file"),
    "callpool": ("callpool.tools.cli", *PUBLIC),
}
"""Room, or one file of it → what it may import of callpool. The longest match counts."""

PURE_NAMES = """
__future__ abc array bisect codecs collections contextlib copy dataclasses difflib enum fnmatch fractions functools hashlib
heapq itertools json math msgspec operator re statistics string struct types typing unicodedata
"""
PURE = frozenset(PURE_NAMES.split())
"""All that the core may import from outside: nothing that reads a clock, a file, a socket, or chance."""
IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "__import__", "breakpoint"})


def violations(module: str, tree: ast.Module, *, is_package: bool = False) -> list[str]:
    """Each line of a file that breaks a rule, as `module:line: what`."""
    found = [
        f"{module}:{line}: may not import {name}"
        for line, name in imports_of(tree, module, is_package=is_package)
        if not is_allowed(module, name)
    ]
    if room_of(module) == "callpool.manager.core":
        found += [
            f"{module}:{node.lineno}: may not call {node.func.id}()"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
        ]
    return found


def room_of(module: str) -> str:
    """The longest key of ARROWS that the module is in."""
    return max((room for room in ARROWS if is_in(module, room)), key=len)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def is_allowed(module: str, name: str) -> bool:
    """Whether a file of this module may import this name."""
    room = room_of(module)
    top = name.partition(".")[0]
    if top in ROOMS:
        return False  # `import manager` works in the checkout alone, and is somebody else's package elsewhere
    if top != "callpool":
        return room != "callpool.manager.core" or top in PURE
    if is_doorplate(name):
        # The public names import the client: the core and the workers must not depend on them.
        return room == "callpool" or is_in(room, "callpool.tools") or is_in(name, "callpool.version")
    return any(is_in(name, package) for package in ARROWS[room])


def is_doorplate(name: str) -> bool:
    """`callpool`, `callpool.connect`: a public name, not a room."""
    return not any(is_in(name, f"callpool.{room}") for room in ROOMS)


def test_every_import_follows_the_arrows() -> None:
    modules = list(installed_modules())
    assert {room_of(module) for module, _ in modules} == set(ARROWS), "a rule has no file, or the files were not found"
    found = [
        violation
        for module, path in modules
        for violation in violations(module, parse(path), is_package=path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("callpool.manager.core.states", "import time"),
        ("callpool.manager.core.states", "from datetime import datetime"),
        ("callpool.manager.core.states", "def f():\n    import random"),
        ("callpool.manager.core.states", "if TYPE_CHECKING:\n    import socket"),
        ("callpool.manager.core.states", "import os.path"),
        ("callpool.manager.core.states", "from callpool.manager.errors import BadInput"),
        ("callpool.manager.core.states", "from .. import errors"),
        ("callpool.manager.core.states", "from callpool.version import __version__\nfrom callpool import connect"),
        ("callpool.manager.core.states", "print('here')"),
        ("callpool.manager.server", "from callpool.tools.cli import main"),
        ("callpool.manager.server", "import callpool"),
        ("callpool.manager.server", "import workers"),
        ("callpool.workers.loop", "importlib.import_module('callpool.manager.service')"),
        ("callpool.workers.loop", "from callpool.manager.service import Service"),
        ("callpool.workers.loop", "from callpool.manager import journal"),
        ("callpool.workers.loop", "from callpool.manager.core.sessions import SessionTable"),
        ("callpool.workers.loop", "import callpool.manager"),
        ("callpool.tools.cli.main", "from callpool.manager.core.states import State"),
        ("callpool.tools.cli.main", "from callpool.manager.supervisor import Supervisor"),
        ("callpool.tools.cli.main", "from callpool import manager"),
        ("callpool.tools.cli.main", "from callpool.workers.call import perform"),
        ("callpool.tools.testing.fake", "from callpool.workers.providers import base"),
        ("callpool.tools.testing.fake", "from tools.testing import other"),
        ("callpool", "from callpool.manager.core.faults import Fault"),
        ("callpool", "from callpool.workers import loop"),
    ],
)
def test_an_import_against_an_arrow_is_found(module: str, source: str) -> None:
    assert violations(module, ast.parse(source), is_package=module == "callpool")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("callpool.manager.core.states", "import msgspec\nfrom .faults import Fault\nimport collections.abc"),
        (
            "callpool.manager.server",
            "import os\nfrom callpool.manager import core, wire\nfrom callpool.version import __version__",
        ),
        (
            "callpool.workers.loop",
            "from callpool.manager import wire\nfrom callpool.manager.core.messages import Finished",
        ),
        (
            "callpool.tools.cli.main",
            "import callpool\nfrom callpool import connect\nfrom callpool.manager.client import Client",
        ),
        ("callpool", "from callpool.manager.client import Client\nfrom .version import __version__"),
    ],
)
def test_an_import_along_an_arrow_is_allowed(module: str, source: str) -> None:
    assert violations(module, ast.parse(source), is_package=module == "callpool") == []


def test_the_pure_list_names_the_standard_library() -> None:
    assert set(sys.stdlib_module_names) | {"msgspec"} >= PURE


def test_no_file_anywhere_imports_a_room_by_its_bare_name() -> None:
    found = [
        f"{path}:{line}: import {name}"
        for path in tracked_files()
        if path.suffix == ".py"
        for line, name in imports_of(parse(path), path.stem)
        if name.partition(".")[0] in ROOMS
    ]
    assert not found, "\n".join(found)
