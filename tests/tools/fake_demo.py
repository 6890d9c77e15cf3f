"""Programs that the demo's tests start instead of the real ones: scripted clients, and a command line with a daemon.

Run as `python -I fake_demo.py client SCRIPT N` or `… callpool COMMAND …`: it needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def _say(tag: str, **fields: Any) -> None:
    print(json.dumps({"type": tag, **fields}), flush=True)


def client(script: str, number: str) -> int:  # noqa: C901 - a table of acts
    """SCRIPT is the path of a JSON file: for each client number, or `*`, a list of acts, each a list of words.

    `["connect"]`, `["wait"]` for the word to begin, `["piece", text]`, `["lock", path]` waits for a file's lock,
    `["done", content, tokens]`, `["broken", message]`, `["print", line]`, `["warn", line]`, `["exit", status]`,
    `["pause"]` for ever, `["hang"]` for ever and deaf to SIGTERM.
    """
    scripts = json.loads(Path(script).read_text())
    for act, *words in scripts.get(number, scripts.get("*")):
        match act:
            case "connect":
                _say("connected")
            case "wait":
                if not sys.stdin.readline():
                    return 1
            case "piece":
                _say("piece", text=words[0].replace("PID", str(os.getpid())))
            case "lock":
                with Path(words[0]).open() as file:
                    fcntl.flock(file, fcntl.LOCK_SH)
            case "done":
                _say("done", content=words[0], tokens=words[1], session_id=f"session-{number}")
            case "broken":
                _say("broken", message=words[0])
            case "print":
                print(words[0], flush=True)
            case "warn":
                print(words[0], file=sys.stderr, flush=True)
            case "exit":
                return int(words[0])
            case "pause":
                signal.pause()
            case "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    signal.pause()
    return 0


def callpool(command: str, *arguments: str) -> int:
    """A command line whose supervisor is a process that waits for SIGTERM. `FAKE_DEMO` (environment) spoils it."""
    home = Path(os.environ["CALLPOOL_HOME"])
    fault = os.environ.get("FAKE_DEMO")
    if command == "start":
        if fault == "start":
            print("no model here", file=sys.stderr)
            return 3
        home.mkdir()
        ready, says = os.pipe()
        subprocess.Popen(
            [sys.executable, "-I", __file__, "daemon", str(says)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[says],
        )
        if fault == "stray":  # a process whose parent ends before anybody has looked
            subprocess.Popen(
                [sys.executable, "-I", __file__, "worker"], stdout=says, stderr=says, start_new_session=True
            )
        os.close(says)
        os.read(ready, 1)
        return 0
    pid = int((home / "pid").read_text())
    sessions = {"total_sessions_completed": 8 - (fault == "count"), "active_sessions": 0}
    text = json.dumps({"pid": pid, "state": "running", "sessions": sessions})
    print(text if "--json" in arguments else "state running")
    return 0


def daemon(says: str) -> int:
    """The supervisor: with a child of its own, and a report at its end."""
    home = Path(os.environ["CALLPOOL_HOME"])
    fault = os.environ.get("FAKE_DEMO")
    endings = (signal.SIGTERM,)
    signal.pthread_sigmask(signal.SIG_BLOCK, endings)
    bare = {name: value for name, value in os.environ.items() if name != "CALLPOOL_HOME"}
    worker = subprocess.Popen([sys.executable, "-I", __file__, "worker"], env=bare)
    (home / "pid").write_text(str(os.getpid()))
    (home / "supervisor.log").write_text("the last line of the log\n")
    os.write(int(says), b"1")
    signal.sigwait(endings)
    if fault != "orphan":
        worker.kill()
        worker.wait()
    if fault != "report":
        (home / "drain-report.json").write_text(json.dumps({"finished": 1, "shutdown_duration": 0.25}))
    return 0


def worker() -> int:
    """A process of the supervisor that does nothing."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    while True:
        signal.pause()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    ROLES: dict[str, Callable[..., int]] = {"client": client, "callpool": callpool, "daemon": daemon, "worker": worker}
    sys.exit(ROLES[what](*rest))
