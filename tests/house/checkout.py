"""The checkout under test: where it is and which files belong to it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("manager", "workers", "tools")


def tracked_files() -> list[Path]:
    """Every regular file that git knows or would add, without links. Skips the test where this is no git checkout."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a git checkout, to know which files belong to the project")
    # safe.directory: a checkout of another user (a mounted folder in a container) is all right to list.
    listing = subprocess.run(
        [git, "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    names = set(listing.stdout.split("\0")) - {""}
    paths = [ROOT / name for name in sorted(names)]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def installed_modules() -> Iterator[tuple[str, Path]]:
    """`(module name, file)` of everything that is installed: the rooms where they stand, and the doorplate."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield module_name(Path("callpool", path.relative_to(ROOT))), path
    for path in sorted((ROOT / "src" / "callpool").glob("*.py")):
        yield module_name(Path("callpool", path.name)), path


def module_name(path: Path) -> str:
    """`callpool.manager` of `callpool/manager/__init__.py`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
