"""Starting a supervisor: in this process's place (foreground), as a daemon (detached), or for one program (embedded).

The supervisor is always `python -m callpool.manager` in a process of its own with an environment of its own: never a
fork of the caller, so that it works from a thread, an unguarded script, standard input and a notebook.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from callpool.manager import config, failpoints, keys, paths
from callpool.manager.boot import Began, Boot, Mode, memory_file
from callpool.manager.core.faults import Fault
from callpool.manager.errors import PlatformUnsupported, StartFailed, from_fault
from callpool.manager.private import ensure_private_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

    from callpool.manager.settings import Settings

READY_DEADLINE = 35.0
"""Seconds from the start of a supervisor to its word that it is ready. A worker that hangs in its start is made to show where after
30 s (`arbiter.START_DEADLINE`): that is then among the last words."""
LAST_WORDS = 2000
"""Bytes of the log's end that a failed start shows."""


class Plan:
    """One start, prepared: configuration checked, keys read, directories verified. Holds descriptors until started."""

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], *, home: Path, runtime: Path, explicit: bool
    ) -> None:
        _require_platform()
        self.settings = settings
        self.home = home
        self.runtime = runtime
        self.socket = paths.socket_path(runtime, explicit=explicit)
        self.log_path = home / "logs" / "supervisor.log"
        for directory in (home, home / "logs", self.socket.parent):
            ensure_private_dir(directory)
        found = keys.resolve(settings, environ)
        self._facts = found.facts()
        self._key_lock_dir = paths.user_lock_dir(environ)
        self._failpoint = environ.get("CALLPOOL_FAILPOINT") or None
        if self._failpoint is not None:
            failpoints.check(self._failpoint)
        self._secrets = memory_file("callpool-keys", found.blob())
        self.environment = keys.process_environment(
            environ, purpose="supervisor", withhold=keys.key_variables(settings)
        )

    def command(
        self, mode: Mode, *, ready: int | None = None, lifeline: int | None = None
    ) -> tuple[list[str], list[int]]:
        """The command line of the supervisor, and the descriptors that it must inherit."""
        boot = Boot(
            mode=mode,
            settings=self.settings,
            key_facts=self._facts,
            home=str(self.home),
            runtime=str(self.runtime),
            socket=str(self.socket),
            key_lock_dir=str(self._key_lock_dir),
            secrets_descriptor=self._secrets,
            ready_descriptor=ready,
            lifeline_descriptor=lifeline,
            failpoint=self._failpoint,
            owner_pid=os.getpid() if lifeline is not None else None,
        )
        document = memory_file("callpool-boot", msgspec.msgpack.encode(boot))
        # -P: a file called callpool.py, or an own `tools` folder, in the working directory must not be imported.
        command = [sys.executable, "-P", "-m", "callpool.manager", "--boot", str(document)]
        if mode == "detached":
            command.append("--fork")  # so that it is nobody's child: its starter need not live on to reap it
        inherited = [descriptor for descriptor in (document, self._secrets, ready, lifeline) if descriptor is not None]
        return command, inherited

    def close(self) -> None:
        """Close the key file in this process. Idempotent."""
        if self._secrets >= 0:
            os.close(self._secrets)
            self._secrets = -1


def plan(source: config.Source, environ: Mapping[str, str]) -> Plan:
    """Prepare a supervisor of this user's own directories, or of those that the environment names."""
    return Plan(
        config.load(source, environ),
        environ,
        home=paths.state_dir(environ),
        runtime=paths.runtime_dir(environ),
        explicit=bool(environ.get("CALLPOOL_RUNTIME_DIR")),
    )


def run_in_foreground(prepared: Plan) -> NoReturn:
    """Become the supervisor: same process id, so that Ctrl-C and signals find it. Raises only if it cannot be executed."""
    command, inherited = prepared.command("foreground")
    for descriptor in inherited:
        os.set_inheritable(descriptor, True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, prepared.environment)  # noqa: S606 - our own interpreter


def start_detached(prepared: Plan) -> Began:
    """Start a daemon in a session of its own, and wait until it is ready. Raises what kept it from starting."""
    with contextlib.closing(prepared), prepared.log_path.open("ab") as log:
        process, ready = _spawn(prepared, "detached", lifeline=None, log=log.fileno())
    try:
        return _await_ready(process, ready, prepared.log_path)
    finally:
        process.wait(timeout=READY_DEADLINE)  # the daemon is its child and lives on


class Embedded:
    """A supervisor that belongs to this process: it drains and ends when this object is closed, or this process ends."""

    def __init__(
        self, source: config.Source, environ: Mapping[str, str], supervisor: Mapping[str, Any] | None = None
    ) -> None:
        """`supervisor`: settings that win over the source's own."""
        settings = config.override(config.load(source, environ), supervisor or {})
        self._directory = _embedded_directory(environ)
        self._pid = os.getpid()
        self._lifeline = -1
        try:
            prepared = Plan(
                settings, environ, home=self._directory / "home", runtime=self._directory / "run", explicit=False
            )
            ours, theirs = os.pipe()
            self._lifeline = theirs
            try:
                with contextlib.closing(prepared), prepared.log_path.open("ab") as log:
                    self._process, ready = _spawn(prepared, "embedded", lifeline=ours, log=log.fileno())
            finally:
                os.close(ours)
            self._drain_seconds = settings.supervisor.shutdown_timeout
            self.began = _await_ready(self._process, ready, prepared.log_path)
        except BaseException:
            self._remove()
            raise

    @property
    def address(self) -> str:
        """What `callpool.connect` takes."""
        return self.began.address

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self.began.pid

    def close(self) -> None:
        """Let go, and wait for the drain to end; kill what outlives its deadline. Idempotent."""
        if self._lifeline < 0:
            return
        if os.getpid() != self._pid:  # a forked child: the supervisor is its parent's, and so is the directory
            os.close(self._lifeline)
            self._lifeline = -1
            return
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            os.write(self._lifeline, b"x")  # closing alone is not heard while a forked child holds a copy
        os.close(self._lifeline)
        self._lifeline = -1
        try:
            self._process.wait(timeout=self._drain_seconds + 10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5.0)
        finally:
            self._remove()

    def _remove(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        shutil.rmtree(self._directory, ignore_errors=True)


def _spawn(prepared: Plan, mode: Mode, *, lifeline: int | None, log: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start the supervisor process; returns it and the descriptor where it tells that it is ready."""
    ours, theirs = os.pipe()
    inherited: list[int] = []
    try:
        command, inherited = prepared.command(mode, ready=theirs, lifeline=lifeline)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=prepared.environment,
            pass_fds=inherited,
            start_new_session=True,  # a Ctrl-C in the caller's terminal is the caller's
            cwd="/" if mode == "detached" else None,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
        if inherited:
            os.close(inherited[0])  # the boot document; the others have owners
        prepared.close()
    return process, ours


def _await_ready(process: subprocess.Popen[bytes], ready: int, log_path: Path) -> Began:
    """Read the one line that the supervisor writes when it is ready, or why it is not."""
    deadline = time.monotonic() + READY_DEADLINE
    said = b""
    try:
        while not said.endswith(b"\n"):
            piece = _read_before(deadline, ready, log_path)
            if not piece:
                break
            said += piece
    except BaseException:  # Ctrl-C as well: a supervisor that nobody was told of must not stay
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: the process and all below it
        process.wait(timeout=5.0)
        raise
    finally:
        os.close(ready)
    if not said:
        process.wait(timeout=10.0)
        raise StartFailed(f"the supervisor ended before it was ready:\n{_last_words(log_path)}", log=str(log_path))
    try:
        return msgspec.json.decode(said, type=Began)
    except msgspec.ValidationError:
        process.wait(timeout=10.0)
        raise from_fault(msgspec.json.decode(said, type=Fault)) from None


def _read_before(deadline: float, ready: int, log_path: Path) -> bytes:
    left = deadline - time.monotonic()
    poller = select.poll()  # select() knows no descriptor above 1,023
    poller.register(ready, select.POLLIN)
    if left > 0 and poller.poll(left * 1000):
        return os.read(ready, 65536)
    message = f"the supervisor was not ready after {READY_DEADLINE:.0f} s:\n{_last_words(log_path)}"
    raise StartFailed(message, log=str(log_path))


def _last_words(log_path: Path) -> str:
    with contextlib.suppress(OSError), log_path.open("rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - LAST_WORDS))
        return log.read().decode(errors="replace").strip()
    return "(its log cannot be read)"


def _embedded_directory(environ: Mapping[str, str]) -> Path:
    """A private directory for one embedded supervisor, below the user's own; those of dead ones are removed."""
    parent = paths.runtime_dir(environ) / "embedded"
    ensure_private_dir(parent)
    for old in parent.iterdir():
        if _is_abandoned(old / "run" / "supervisor.lock"):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix="", dir=parent))


def _is_abandoned(lock: Path) -> bool:
    """Whether a lock file exists that nobody holds. One that does not exist yet belongs to a supervisor that begins."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _require_platform() -> None:
    if sys.platform not in {"linux", "darwin"}:
        raise PlatformUnsupported(f"callpool does not run on {sys.platform}: it needs Unix sockets and Unix processes")
