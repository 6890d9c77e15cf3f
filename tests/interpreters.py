"""Run pytest on every further Python that callpool supports and that is present; say which are not, and why.

    python -I tests/interpreters.py [PYTEST ARGUMENTS]

The interpreter that runs this script is taken as tested. Each other one gets an environment of its own, `.venv-3.12` and
so on, made from the same lock file and kept until that or the interpreter changes. The exit status is 1 if a test failed or
an environment could not be made, and 0 otherwise: an interpreter that is absent is no failure, but it is reported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUPPORTED = ((3, 11), (3, 12), (3, 13), (3, 14))
CHECKOUT = Path(__file__).resolve().parent.parent
LOCK = CHECKOUT / "requirements" / "dev.txt"

PROBE = """
import json, sys, sysconfig
print(json.dumps({
    "minor": sys.version_info[:2],
    "version": sys.version.split()[0],
    "usable": sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED"),
}))
"""
"""The stable build of CPython is what the locked wheels are for."""


@dataclass(frozen=True)
class Interpreter:
    """One that runs: its path and its full version, like `3.12.1`."""

    path: Path
    version: str


def on_path(name: str) -> Iterator[Path]:
    """Every executable of this name on PATH, not the first alone: an earlier one may be a placeholder that does not run."""
    for folder in os.get_exec_path():
        found = shutil.which(name, path=folder)
        if found:
            yield Path(found)


def of_pyenv(minor: tuple[int, int]) -> list[Path]:
    """The versions that pyenv has installed, newest first; empty without pyenv."""
    pyenv = shutil.which("pyenv")
    if pyenv is None:
        return []
    root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False, timeout=60).stdout.strip()
    prefix = f"{minor[0]}.{minor[1]}."
    versions = [path for path in Path(root, "versions").glob(f"{prefix}*/bin/python") if os.access(path, os.X_OK)]
    return sorted(versions, key=lambda path: path.parts[-3].removeprefix(prefix).zfill(8), reverse=True)


def probe(path: Path, minor: tuple[int, int]) -> Interpreter | str:
    """The interpreter at `path`, or the reason why it cannot be used."""
    try:
        done = subprocess.run([path, "-Ic", PROBE], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run ({error})"
    if done.returncode:
        return f"{path} does not run (exit status {done.returncode})"
    about = json.loads(done.stdout)
    if tuple(about["minor"]) != minor or not about["usable"]:
        return f"{path} is another build ({about['version']})"
    return Interpreter(path, about["version"])


def find(candidates: Iterable[Path], minor: tuple[int, int]) -> Interpreter | str:
    """The first candidate that can be used, or why there is none."""
    reasons = []
    for path in candidates:
        result = probe(path, minor)
        if isinstance(result, Interpreter):
            return result
        reasons.append(result)
    return "; ".join(reasons) or "not on PATH and not among pyenv's versions"


def environment(interpreter: Interpreter, home: Path) -> Path:
    """The Python of an environment at `home` with the lock file and callpool in it; made again where anything changed.

    Raises `subprocess.SubprocessError` where it cannot be made.
    """
    python = home / "bin" / "python"
    stamp = home / "made-for"
    key = hashlib.sha256(repr((CHECKOUT, interpreter)).encode())
    for declared in (LOCK, CHECKOUT / "setup.cfg", CHECKOUT / "pyproject.toml"):
        key.update(declared.read_bytes())
    if (
        stamp.exists()
        and stamp.read_text() == key.hexdigest()
        and isinstance(probe(python, minor_of(interpreter)), Interpreter)
    ):
        return python
    try:
        perform(with_uv(interpreter, home, python))
    except (OSError, subprocess.SubprocessError) as error:
        # uv does not read pip's configuration, so behind a package mirror only pip may find its way.
        print(f"uv could not make {home.name} ({error}); trying pip", flush=True)
        perform(with_pip(interpreter, home, python))
    stamp.write_text(key.hexdigest())
    return python


def minor_of(interpreter: Interpreter) -> tuple[int, int]:
    """`(3, 12)` of `3.12.1`."""
    major, minor = interpreter.version.split(".")[:2]
    return int(major), int(minor)


Command = list[str | Path]


def with_uv(interpreter: Interpreter, home: Path, python: Path) -> list[Command]:
    """The steps by uv, which the lock file brings: about a second, where pip takes twenty."""
    uv = Path(sys.executable).parent / "uv"
    install: Command = [uv, "pip", "install", "--quiet", "--python", python]
    return [
        [uv, "venv", "--quiet", "--clear", "--python", interpreter.path, home],
        [*install, "--require-hashes", "--requirement", LOCK],
        [*install, "--no-deps", "--no-build-isolation", "--editable", CHECKOUT],
    ]


def with_pip(interpreter: Interpreter, home: Path, python: Path) -> list[Command]:
    """The same steps by the standard library and pip."""
    install: Command = [python, "-Im", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    return [
        [interpreter.path, "-m", "venv", "--clear", home],
        [*install, "--require-hashes", "--requirement", LOCK],
        [*install, "--no-deps", "--no-build-isolation", "--editable", CHECKOUT],
    ]


def perform(commands: Iterable[Command]) -> None:
    """Run each in turn. Raises `subprocess.SubprocessError` at the first that fails."""
    for command in commands:
        subprocess.run(command, check=True, timeout=900, stdin=subprocess.DEVNULL)


def run_tests(interpreter: Interpreter, arguments: list[str]) -> str:
    """`passed`, or what went wrong."""
    home = CHECKOUT / f".venv-{'.'.join(map(str, minor_of(interpreter)))}"
    print(f"\n---- Python {interpreter.version}: {interpreter.path}", flush=True)
    try:
        python = environment(interpreter, home)
    except (OSError, subprocess.SubprocessError) as error:
        return f"FAILED: no environment: {error}"
    status = subprocess.run([python, "-Im", "pytest", *arguments], check=False, cwd=CHECKOUT).returncode
    return f"FAILED: pytest ended with status {status}" if status else "passed"


def main(arguments: list[str]) -> int:
    """Test every supported interpreter but this one, then print one line for each."""
    outcomes: dict[str, str] = {}
    for minor in SUPPORTED:
        name = "python" + ".".join(map(str, minor))
        if minor == sys.version_info[:2]:
            outcomes[name] = "passed before: this interpreter runs the whole suite"
            continue
        found = find([*on_path(name), *of_pyenv(minor)], minor)
        outcomes[name] = run_tests(found, arguments) if isinstance(found, Interpreter) else f"skipped: {found}"
    skipped = sum(outcome.startswith("skipped") for outcome in outcomes.values())
    print(f"\n---- interpreters: {len(outcomes) - skipped} tested, {skipped} skipped")
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
