"""Which interpreters the tests run on, and which one make takes: placeholders that do not run are passed over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import interpreters
from tests.house.checkout import ROOT

THIS = sys.version_info[:2]
NAME = f"python{THIS[0]}.{THIS[1]}"


def program(folder: Path, name: str, script: str) -> Path:
    """An executable shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def placeholder(folder: Path, name: str) -> Path:
    """What a version manager puts on PATH for a version that is not switched on."""
    return program(folder, name, f"echo '{name}: command not found' >&2; exit 127")


def working(folder: Path, name: str) -> Path:
    return program(folder, name, f'exec "{sys.executable}" "$@"')


def test_a_placeholder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placeholder(tmp_path / "first", NAME)
    good = working(tmp_path / "second", NAME)
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    found = interpreters.find(interpreters.on_path(NAME), THIS)
    assert isinstance(found, interpreters.Interpreter)
    assert found.path == good
    assert interpreters.minor_of(found) == THIS


def test_an_absent_interpreter_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert interpreters.find(interpreters.on_path(NAME), THIS) == "not on PATH and not among pyenv's versions"
    bad = placeholder(tmp_path, NAME)
    assert interpreters.find(interpreters.on_path(NAME), THIS) == f"{bad} does not run (exit status 127)"
    other = working(tmp_path, "python3.99")
    assert "is another build" in str(interpreters.find([other], (3, 99)))


def test_the_versions_of_pyenv_are_found_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "pyenv", f'[ "$1" = root ] && echo "{tmp_path}"')
    monkeypatch.setenv("PATH", f"{tmp_path}")
    (tmp_path / "versions").mkdir()
    for version in ("3.12.9", "3.12.10", "3.11.7", "3.1.2"):
        (tmp_path / "versions" / version).mkdir()
        working(tmp_path / "versions" / version / "bin", "python")
    assert [path.parts[-3] for path in interpreters.of_pyenv((3, 12))] == ["3.12.10", "3.12.9"]


def test_each_interpreter_gets_one_line_and_a_failure_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {(3, 97): "passed", (3, 98): "FAILED: pytest ended with status 1"}
    monkeypatch.setattr(interpreters, "SUPPORTED", (THIS, *outcomes, (3, 99)))
    monkeypatch.setattr(interpreters, "of_pyenv", lambda _: [])
    monkeypatch.setattr(
        interpreters,
        "find",
        lambda _, minor: interpreters.Interpreter(Path("x"), f"3.{minor[1]}.0") if minor in outcomes else "not there",
    )
    monkeypatch.setattr(interpreters, "run_tests", lambda found, _: outcomes[interpreters.minor_of(found)])
    assert interpreters.main([]) == 1
    printed = capsys.readouterr().out
    assert "3 tested, 1 skipped" in printed
    assert "python3.98: FAILED" in printed
    assert "python3.99: skipped: not there" in printed
    outcomes[3, 98] = "passed"
    assert interpreters.main([]) == 0


def make_python(path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Ask make which interpreter it would take, with nothing of the surrounding make in the environment."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    return subprocess.run(
        [make, "--silent", "--no-print-directory", "python"],
        cwd=ROOT,
        env={**kept, "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def test_make_takes_the_newest_interpreter_that_runs(tmp_path: Path) -> None:
    for name in ("python3.14", "python3.13"):
        placeholder(tmp_path, name)
    program(tmp_path, "python3.12", "exit 1")  # too old, or without venv
    working(tmp_path, "python3.11")
    working(tmp_path, "python3")
    assert make_python(str(tmp_path)).stdout == "python3.11\n"


def test_make_takes_the_interpreter_it_is_given(tmp_path: Path) -> None:
    working(tmp_path, "python3")
    mine = working(tmp_path, "mine")
    assert make_python(str(tmp_path), PYTHON=str(mine)).stdout == f"{mine}\n"
    assert make_python(str(tmp_path), PYTHON=str(tmp_path / "none")).returncode


def test_make_says_what_is_missing(tmp_path: Path) -> None:
    placeholder(tmp_path, "python3")
    done = make_python(str(tmp_path))
    assert done.returncode
    assert done.stdout == ""
    assert "callpool needs Python 3.11 or newer" in done.stderr
