"""Where things are: the directories of state and of run time, and the address of the supervisor's socket.

Every function reads the environment that it is given and touches nothing: clients and supervisors must come to the same
answers. What makes these places and proves that they are private is in `callpool.manager.private`.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from callpool.manager.errors import ConfigError

LONGEST_SOCKET_PATH: Final = 103 if sys.platform == "darwin" else 107
"""Bytes: `sun_path` has 104 on macOS and 108 on Linux, with the NUL at its end."""
_SHORT_ROOT: Final = "/tmp"  # noqa: S108 - not TMPDIR, which may be long, and may differ between client and supervisor
_SYSTEM_RUNTIME: Final = "/run/user"


def state_dir(environ: Mapping[str, str]) -> Path:
    """Journal, results and logs: CALLPOOL_HOME, else `callpool` in the XDG state directory."""
    own = environ.get("CALLPOOL_HOME")
    return expand_home(own, environ).absolute() if own else _user_state(environ)


def runtime_dir(environ: Mapping[str, str]) -> Path:
    """Socket, key file, lock: CALLPOOL_RUNTIME_DIR, else `callpool` in XDG_RUNTIME_DIR or /run/user, else in the state.

    A runtime directory that is not there or is another user's (`sudo` and `su` keep the variable) is passed over.
    """
    own = environ.get("CALLPOOL_RUNTIME_DIR")
    if own:
        return expand_home(own, environ).absolute()
    return _session_runtime(environ) or state_dir(environ) / "run"


def user_lock_dir(environ: Mapping[str, str]) -> Path:
    """The locks on provider keys, where all supervisors of a user meet: one key has one ledger.

    So CALLPOOL_HOME and CALLPOOL_RUNTIME_DIR, which tell supervisors apart, do not move it, and it is not in the session's
    runtime directory, which a supervisor started by cron does not have. CALLPOOL_KEY_LOCK_DIR does, and is for tests.
    """
    own = environ.get("CALLPOOL_KEY_LOCK_DIR")
    if own:
        return expand_home(own, environ).absolute()
    return _user_state(environ) / "keys"


def socket_path(runtime: Path, *, explicit: bool) -> Path:
    """The socket in a runtime directory; where that name is too long for the system, in a short one named by a hash.

    `explicit` says that the user chose the directory (CALLPOOL_RUNTIME_DIR): then a long name is refused with
    `ConfigError` instead. Before use, prove the result's parent with `ensure_private_dir` or `check_private_dir`.
    """
    path = runtime / "callpool.sock"
    length = len(os.fsencode(path))
    if length <= LONGEST_SOCKET_PATH:
        return path
    if explicit:
        raise ConfigError(
            f"CALLPOOL_RUNTIME_DIR: the socket's name {str(path)!r} has {length} bytes, "
            f"and this system allows {LONGEST_SOCKET_PATH}",
            param="CALLPOOL_RUNTIME_DIR",
            hint="choose a shorter directory",
            length=length,
            limit=LONGEST_SOCKET_PATH,
        )
    # The name can be foreseen, because clients must find it: if another user makes it first, the proof refuses it.
    digest = hashlib.blake2s(os.fsencode(runtime), digest_size=8).hexdigest()
    return Path(_SHORT_ROOT) / f"callpool-{os.geteuid()}-{digest}" / "callpool.sock"


def config_home(environ: Mapping[str, str]) -> Path:
    """The XDG configuration directory."""
    return _xdg("XDG_CONFIG_HOME", environ) or _home(environ) / ".config"


def expand_home(path: str, environ: Mapping[str, str]) -> Path:
    """`~` and `~/…` with the home directory of `environ`; everything else as it is."""
    if path == "~" or path.startswith("~/"):
        return _home(environ) / path[2:]
    return Path(path)


def _user_state(environ: Mapping[str, str]) -> Path:
    return (_xdg("XDG_STATE_HOME", environ) or _home(environ) / ".local" / "state") / "callpool"


def _session_runtime(environ: Mapping[str, str]) -> Path | None:
    for directory in (_xdg("XDG_RUNTIME_DIR", environ), Path(_SYSTEM_RUNTIME, str(os.geteuid()))):
        if directory is not None and _is_ours(directory):
            return directory / "callpool"
    return None


def _xdg(name: str, environ: Mapping[str, str]) -> Path | None:
    """The XDG specification: a relative path is invalid and to be ignored."""
    value = environ.get(name, "")
    return Path(value) if value.startswith("/") else None


def _is_ours(directory: Path) -> bool:
    try:
        facts = directory.lstat()
    except OSError:  # not there, or not for us to see
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid()


def _home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:  # a container's user that no file knows
        raise ConfigError(
            "there is no home directory", param="HOME", hint="set HOME, or CALLPOOL_HOME and CALLPOOL_RUNTIME_DIR"
        ) from None
