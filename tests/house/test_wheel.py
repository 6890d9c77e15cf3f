"""What gets installed: `callpool` and nothing beside it, complete, and usable with the checkout out of sight."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house.checkout import ROOMS, ROOT

TRASH = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")


@dataclass(frozen=True)
class Built:
    """What a packager gets from the checkout, and the source tree it was built from."""

    source: Path
    wheel: Path
    sdist: Path

    def wheel_names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def room_files(self) -> set[str]:
        """Every file of the rooms and of the doorplate, as the wheel should name it."""
        rooms = {f"callpool/{path.relative_to(self.source)}" for room in ROOMS for path in files_in(self.source / room)}
        doorplate = {f"callpool/{path.name}" for path in (self.source / "src" / "callpool").iterdir() if path.is_file()}
        return rooms | doorplate


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command that knows of no Python settings of ours; its output is in the failure report."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False, timeout=50)
    if check and done.returncode:
        pytest.fail(f"{command} ended with status {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build from a copy: the build writes into its tree. The wheel is built from the sdist, as a packager's is."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("src", "tests", *ROOMS):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=TRASH)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source / path.name)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-Im", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return Built(source, wheel, sdist)


@pytest.fixture(scope="module")
def elsewhere(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel in it, and callpool's dependencies but not its checkout in reach."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    if not uv.exists():
        pytest.skip("needs uv, which requirements/dev.txt brings")
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    run(uv, "pip", "install", "--offline", "--no-deps", "--python", python, built.wheel, cwd=home)
    site_packages = run(
        python, "-Ic", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home
    ).stdout.strip()
    # A folder that a .pth file names is searched, but its own .pth files are not read: the editable install stays hidden.
    Path(site_packages, "dependencies.pth").write_text(sysconfig.get_path("platlib") + "\n")
    return python


def test_the_wheel_holds_callpool_and_its_metadata_alone(built: Built) -> None:
    names = built.wheel_names()
    tops = {name.partition("/")[0] for name in names}
    (metadata,) = tops - {"callpool"}
    assert metadata.startswith("callpool-")
    assert metadata.endswith(".dist-info")
    assert not [name for name in names if name.endswith(".pth")]  # a .pth file runs at every start of the interpreter


def test_the_wheel_is_complete(built: Built) -> None:
    names = {name for name in built.wheel_names() if name.startswith("callpool/")}
    assert names == built.room_files()
    assert "callpool/py.typed" in names


def test_the_sdist_holds_files_where_the_checkout_has_links(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        kinds = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert [name for name, member in kinds.items() if not member.isfile() and not member.isdir()] == []
    assert {f"src/{name}" for name in built.room_files()} <= kinds.keys()
    assert {"LICENSE", "pyproject.toml", "setup.cfg", "setup.py"} <= kinds.keys()


def test_the_metadata_says_licence_and_python(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = archive.read(name).decode().splitlines()
    assert {"License-Expression: MIT", "License-File: LICENSE", "Requires-Python: >=3.11"} <= set(metadata)


def test_the_wheel_is_imported_with_the_checkout_out_of_sight(elsewhere: Path, tmp_path: Path) -> None:
    code = "import callpool, callpool.manager, callpool.workers, callpool.tools; print(callpool.tools.__file__)"
    place = run(elsewhere, "-Ic", code, cwd=tmp_path).stdout.strip()
    assert Path(place).is_relative_to(elsewhere.parent.parent)


def test_the_installed_command_runs(elsewhere: Path, tmp_path: Path) -> None:
    assert "callpool" in run(elsewhere.parent / "callpool", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("name", [*ROOMS, "tests"])
def test_a_room_is_no_package_of_its_own(name: str, elsewhere: Path, tmp_path: Path) -> None:
    for python in (Path(sys.executable), elsewhere):
        done = run(python, "-c", f"import {name}", cwd=tmp_path, check=False)
        assert f"No module named '{name}'" in done.stderr
