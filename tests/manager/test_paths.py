from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from callpool.manager import paths
from callpool.manager.errors import ConfigError
from callpool.manager.paths import runtime_dir, socket_path, state_dir, user_lock_dir

US = os.geteuid()


@pytest.fixture
def no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system whose /run/user is an empty folder of the test's."""
    folder = tmp_path / "run-user"
    folder.mkdir()
    monkeypatch.setattr(paths, "_SYSTEM_RUNTIME", str(folder))
    return folder


def test_where_state_is() -> None:
    home = {"HOME": "/home/u"}
    assert state_dir(home) == Path("/home/u/.local/state/callpool")
    assert state_dir(home | {"XDG_STATE_HOME": "/s"}) == Path("/s/callpool")
    assert state_dir(home | {"XDG_STATE_HOME": "relative"}) == Path("/home/u/.local/state/callpool")
    assert state_dir(home | {"XDG_STATE_HOME": "/s", "CALLPOOL_HOME": "/own"}) == Path("/own")
    assert state_dir(home | {"CALLPOOL_HOME": ""}) == Path("/home/u/.local/state/callpool")
    assert state_dir(home | {"CALLPOOL_HOME": "~/own"}) == Path("/home/u/own")
    assert state_dir(home | {"CALLPOOL_HOME": "own"}) == Path.cwd() / "own"
    assert state_dir({}).is_absolute()


def test_where_run_time_things_are(tmp_path: Path, no_session: Path) -> None:
    session = tmp_path / "session"
    environ = {"HOME": "/home/u", "XDG_RUNTIME_DIR": str(session)}
    assert runtime_dir(environ) == Path("/home/u/.local/state/callpool/run"), "there is no session folder yet"
    assert runtime_dir(environ | {"CALLPOOL_HOME": "/own"}) == Path("/own/run")
    (no_session / str(US)).mkdir()
    assert runtime_dir(environ) == no_session / str(US) / "callpool"
    session.mkdir()
    assert runtime_dir(environ) == session / "callpool"
    assert runtime_dir(environ | {"CALLPOOL_RUNTIME_DIR": ""}) == session / "callpool"
    assert runtime_dir(environ | {"CALLPOOL_RUNTIME_DIR": "/own"}) == Path("/own")
    assert runtime_dir(environ | {"CALLPOOL_RUNTIME_DIR": "~/own"}) == Path("/home/u/own")


def test_a_session_folder_that_is_not_ours_is_passed_over(
    tmp_path: Path, no_session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, link = tmp_path / "session", tmp_path / "link"
    session.mkdir()
    link.symlink_to(session)
    environ = {"HOME": "/home/u", "XDG_RUNTIME_DIR": str(session)}
    assert runtime_dir(environ | {"XDG_RUNTIME_DIR": str(link)}) == Path("/home/u/.local/state/callpool/run")
    assert runtime_dir(environ) == session / "callpool"
    monkeypatch.setattr(os, "geteuid", lambda: US + 1)
    assert runtime_dir(environ) == Path("/home/u/.local/state/callpool/run")


def test_where_key_locks_are_does_not_depend_on_the_supervisor(tmp_path: Path, no_session: Path) -> None:
    environ = {"HOME": "/home/u", "CALLPOOL_HOME": "/own", "CALLPOOL_RUNTIME_DIR": "/own-runtime"}
    assert user_lock_dir(environ) == Path("/home/u/.local/state/callpool/keys")
    assert user_lock_dir(environ | {"XDG_RUNTIME_DIR": str(tmp_path)}) == user_lock_dir(environ)
    assert user_lock_dir(environ | {"CALLPOOL_KEY_LOCK_DIR": "/locks"}) == Path("/locks")


def test_the_longest_socket_path_is_the_one_that_the_system_can_bind(base_folder: Path) -> None:
    """Shown in a child process: it may change its umask and directory."""
    limit = paths.LONGEST_SOCKET_PATH
    runtime = base_folder / ("x" * (limit - len(os.fsencode(base_folder / "callpool.sock")) - 1))
    runtime.mkdir()
    path = socket_path(runtime, explicit=True)
    assert path == runtime / "callpool.sock"
    assert len(os.fsencode(path)) == limit
    bind = "import socket, sys\nwith socket.socket(socket.AF_UNIX) as s: s.bind(sys.argv[1])"
    subprocess.run([sys.executable, "-c", bind, str(path)], check=True)
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert subprocess.run([sys.executable, "-c", bind, f"{path}x"], capture_output=True, check=False).returncode != 0
    with pytest.raises(ConfigError):
        socket_path(runtime.with_name(runtime.name + "x"), explicit=True)


def test_a_long_directory_of_the_users_own_is_refused_with_the_figures() -> None:
    runtime = Path("/" + "é" * 50 + "/" + "x" * 10)  # bytes count, not characters
    with pytest.raises(
        ConfigError, match=r"CALLPOOL_RUNTIME_DIR: the socket's name .* has 126 bytes, and this"
    ) as caught:
        socket_path(runtime, explicit=True)
    assert (caught.value.length, caught.value.limit) == (126, paths.LONGEST_SOCKET_PATH)
    assert caught.value.param == "CALLPOOL_RUNTIME_DIR"


def test_a_long_directory_of_ours_gets_a_short_name_that_depends_on_it() -> None:
    runtime = Path("/" + "x" * 120)
    short = socket_path(runtime, explicit=False)
    assert len(os.fsencode(short)) < paths.LONGEST_SOCKET_PATH
    assert short == socket_path(runtime, explicit=False)
    assert short != socket_path(Path("/" + "y" * 120), explicit=False)
    assert short.parent.name.startswith(f"callpool-{US}-")
    assert socket_path(Path("/run/callpool"), explicit=False) == Path("/run/callpool/callpool.sock")
