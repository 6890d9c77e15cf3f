"""The ground that the other tests stand on: each kind of leftover is found, named and cleared away."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests import ground
from tests.house.checkout import ROOT

WAITS = [sys.executable, "-Ic", "import sys; sys.stdin.read()"]
"""A process that ends when its standard input does."""


def test_a_child_process_is_found_and_removed() -> None:
    child = subprocess.Popen(WAITS, stdin=subprocess.PIPE)
    assert child.stdin
    with child.stdin:
        before = ground.Ground(frozenset(), ground.open_descriptors(), ground.keeping_alive())
        left = ground.leftovers(before, patience=0)
        assert re.fullmatch(rf"process {child.pid} [\w-]+: .*sys.stdin.read.*", str(left))
        ground.remove(left)
    assert not psutil.pid_exists(child.pid)
    child.wait()


def test_a_zombie_is_found_and_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-Ic", ""])
    ground.wait_for("the child's end", lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    left = ground.leftovers(ground.Ground(frozenset(), ground.open_descriptors(), ground.keeping_alive()), patience=0)
    assert str(left).startswith(f"process {child.pid} zombie")
    ground.remove(left)
    assert not psutil.pid_exists(child.pid)
    child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: elsewhere another process's environment is hidden")
def test_a_daemon_that_left_its_parent_is_found_by_its_marker(tmp_path: Path) -> None:
    # The child starts the daemon and ends, so the daemon is nobody's child here.
    start = f"from subprocess import *; print(Popen({WAITS!r}, stdout=DEVNULL, stderr=DEVNULL).pid)"
    marker = f"CALLPOOL_RUNTIME_DIR={tmp_path}"
    before = ground.survey()
    with subprocess.Popen(
        [sys.executable, "-Ic", start],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CALLPOOL_RUNTIME_DIR": str(tmp_path)},
    ) as starter:
        assert starter.stdin
        assert starter.stdout
        daemon = int(starter.stdout.readline())
        starter.wait()
        assert {process.pid for process in ground.compare(before, marker).processes} == {daemon}
        starter.stdin.close()  # the daemon's standard input too, which it waits for
        ground.wait_for("the daemon's end", lambda: not ground.marked(marker))


def test_a_descriptor_is_found_by_what_it_refers_to(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w"):
        before = ground.survey()
        with (tmp_path / "log").open("a"):
            left = ground.leftovers(before, patience=0)
        assert str(left) == f"descriptor of {tmp_path / 'log'}, 1 times"
        assert not ground.leftovers(before, patience=0)


def test_a_thread_is_found_unless_it_is_a_daemon() -> None:
    end = threading.Event()
    threads = [
        threading.Thread(target=end.wait, args=(50,), name="stays"),
        threading.Thread(target=end.wait, args=(50,), name="goes with the process", daemon=True),
    ]
    before = ground.survey()
    for thread in threads:
        thread.start()
    left = ground.leftovers(before, patience=0)
    end.set()
    for thread in threads:
        thread.join()
    assert str(left) == "thread stays"


def test_what_is_just_ending_gets_its_time() -> None:
    before = ground.survey()
    ours, theirs = socket.socketpair()

    def close() -> None:
        ours.close()
        theirs.close()

    threading.Timer(0.05, close).start()
    assert ground.compare(before, None)
    assert not ground.leftovers(before)


LEAKS = """
import os, subprocess, sys, threading

import pytest

from tests import ground

ground.PATIENCE = 0.2
KEPT = []


def test_process():
    KEPT.append(subprocess.Popen([sys.executable, "-Ic", "import time; time.sleep(50)"]))


def test_descriptor():
    KEPT.append(os.open("/dev/null", os.O_RDONLY))


def test_thread():
    end = threading.Event()
    KEPT.append(end)
    threading.Thread(target=end.wait, args=(50,)).start()


def test_daemon():
    folder = os.environ["CALLPOOL_RUNTIME_DIR"]
    open(os.path.join(folder, "socket"), "w").close()
    start = "import subprocess, sys; subprocess.Popen([sys.executable, '-Ic', 'import time; time.sleep(50)'])"
    subprocess.run([sys.executable, "-Ic", start], check=True)


def test_clean():
    assert len(os.environ["CALLPOOL_RUNTIME_DIR"]) < 60
    assert os.environ["CALLPOOL_HOME"] != os.environ["CALLPOOL_RUNTIME_DIR"]
    assert not [name for name in os.environ if name in ("CALLPOOL_CONFIG", "KIMI_API_KEY", "HTTPS_PROXY")]


def test_seeded(seed):
    assert seed != 4711


def test_end():
    KEPT[0].wait()  # killed by the ground
    os.close(KEPT[1])
    KEPT[2].set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: elsewhere another process's environment is hidden")
def test_a_test_that_leaves_something_behind_fails(tmp_path: Path) -> None:
    """The fixtures of conftest.py, in a run of their own over tests that leak."""
    (tmp_path / "tests").mkdir()
    for name in ("__init__.py", "conftest.py", "ground.py", "network.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests" / "test_leaks.py").write_text(LEAKS)
    extra = {"CALLPOOL_CONFIG": "x", "KIMI_API_KEY": "x", "HTTPS_PROXY": "x", "CALLPOOL_TEST_SEED": "4711"}
    done = subprocess.run(
        [
            sys.executable,
            "-Im",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--override-ini",
            "addopts=--import-mode=importlib -rfE",
        ],
        cwd=tmp_path,
        # With CI set, pytest prints each message twice.
        env={name: value for name, value in os.environ.items() if name not in {"CI", "BUILD_NUMBER"}} | extra,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    failed = set(re.findall(r"^(ERROR|FAILED) tests/test_leaks.py::test_(\w+)", done.stdout, flags=re.MULTILINE))
    assert failed == {
        ("ERROR", "process"),
        ("ERROR", "descriptor"),
        ("ERROR", "thread"),
        ("ERROR", "daemon"),
        ("FAILED", "seeded"),
    }, done.stdout
    assert done.stdout.count("-Ic import time; time.sleep(50)\n") == 2, "a leftover process is named by its command"
    assert "run it again with CALLPOOL_TEST_SEED=4711" in done.stdout
