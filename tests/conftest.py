"""What holds for every test: clean ground, a home of its own, no way out of this machine, a seed that can be repeated."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import uvloop

from tests import ground, network

network.install()

# Deadlines off: no test measures time. CI looks at the same examples in every run; elsewhere each run looks at new ones.
hypothesis.settings.register_profile("desk", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")


@pytest.fixture(scope="session", autouse=True)
def uvloop_is_warm() -> None:
    """The first uvloop of a process opens a pipe that stays, so it is opened before any test counts descriptors."""
    uvloop.new_event_loop().close()


@pytest.fixture(scope="module", autouse=True)
def module_home(uvloop_is_warm: None) -> Iterator[None]:
    """A home for what the fixtures of a whole module start: without one they would be in the user's own."""
    with short_folder() as folder, clean_ground_at(folder), pytest.MonkeyPatch.context() as patch:
        move_in(folder, patch)
        yield


@pytest.fixture
def base_folder() -> Iterator[Path]:
    """A private folder with a short path."""
    with short_folder() as folder:
        yield folder


@pytest.fixture(autouse=True)
def clean_ground(base_folder: Path, uvloop_is_warm: None) -> Iterator[None]:
    """Fail the test that leaves a process, a descriptor or a thread behind."""
    with clean_ground_at(base_folder):
        yield


@pytest.fixture(autouse=True)
def own_environment(base_folder: Path, clean_ground: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes of the test's own, and nothing of the user's: no configuration, no provider key, no proxy."""
    move_in(base_folder, monkeypatch)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder that goes away: the address of a Unix socket has at most 107 bytes, and `tmp_path` is long."""
    folder = Path(tempfile.mkdtemp(prefix="cp-", dir="/tmp"))  # mkdtemp makes it private and unpredictable
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def clean_ground_at(folder: Path) -> Iterator[None]:
    """Fail what leaves a process, a descriptor or a thread behind."""
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    untouched = runtime.stat().st_mtime_ns
    before = ground.survey()
    yield
    # A look at every process of the machine takes milliseconds; only a supervisor touches its runtime folder.
    marker = f"CALLPOOL_RUNTIME_DIR={runtime}" if runtime.stat().st_mtime_ns != untouched else None
    left = ground.leftovers(before, marker)
    found = str(left)  # before the processes are gone, and their names with them
    ground.remove(left)
    if left:
        pytest.fail(f"left behind:\n{found}", pytrace=False)


def move_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let a supervisor that is started now live in this folder, without anything of the user's."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    patch.setenv("CALLPOOL_HOME", str(home))
    patch.setenv("CALLPOOL_RUNTIME_DIR", str(folder / "run"))
    patch.setenv("CALLPOOL_KEY_LOCK_DIR", str(folder / "keys"))
    patch.delenv("CALLPOOL_CONFIG", raising=False)
    patch.delenv("CALLPOOL_CLIENT", raising=False)
    for name in list(os.environ):
        if name.upper().endswith(("_API_KEY", "_PROXY")):
            patch.delenv(name)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed for the test's random numbers: CALLPOOL_TEST_SEED, or a new one that the failure report names."""
    chosen = int(os.environ.get("CALLPOOL_TEST_SEED") or secrets.randbits(32))
    request.node.add_report_section("setup", "seed", f"run it again with CALLPOOL_TEST_SEED={chosen}")
    return chosen
