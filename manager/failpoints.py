"""Named points of a supervisor and of its workers at which a test lets the process die. Free when none is armed: one look at a flag.

A point lies on each side of whatever must not be lost or done twice: a commit, an acknowledgement, a dispatch, a report, a result. A
test names one (`CALLPOOL_FAILPOINT=result.before`, or `accepted.after_commit:kill:3` for its third time) where a supervisor is started,
and afterwards looks at what the next supervisor makes of it.
"""

from __future__ import annotations

import os
import signal
from typing import Final, Literal, get_args

from callpool.manager.errors import BadInput

Action = Literal["kill", "exit", "stop"]
"""SIGKILL, an exit without any clean-up, or SIGSTOP."""

SUPERVISOR_POINTS: Final = (
    "submit.received", "accepted.before_commit", "accepted.after_commit", "started.before_commit", "started.after_commit",
    "waits.before_commit", "waits.after_commit", "ended.before_commit", "ended.after_commit", "batch.told",
    "ack.before", "ack.after", "dispatch.before", "dispatch.after", "report.started", "report.finished",
    "result.before", "result.after", "recovery.read", "recovery.applied", "drain.begun", "drain.done", "drain.closed",
    "checkpoint.before", "checkpoint.after", "sweep.before", "sweep.after",
)  # fmt: skip
WORKER_POINTS: Final = ("order.received", "call.before_start", "call.started", "call.answered", "call.reported")

armed = False
"""Whether any point is: look at it before `hit`."""
_name, _action, _left = "", "kill", 0


def check(spec: str) -> tuple[str, str, int]:
    """(name, action, time) of `name[:action[:time]]`. Raises BadInput."""
    name, _, rest = spec.partition(":")
    action, _, times = rest.partition(":")
    if name not in SUPERVISOR_POINTS + WORKER_POINTS:
        known = ", ".join(SUPERVISOR_POINTS + WORKER_POINTS)
        raise BadInput(f"no failpoint {name[:60]!r}; there are {known}", param="CALLPOOL_FAILPOINT")
    if (action or "kill") not in get_args(Action) or not (times or "1").isdigit() or int(times or 1) < 1:
        raise BadInput(f"a failpoint is name[:kill|exit|stop[:time]], not {spec[:80]!r}", param="CALLPOOL_FAILPOINT")
    return name, action or "kill", int(times or 1)


def arm(spec: str | None, points: tuple[str, ...]) -> None:
    """Arm one point of this process, if it is among its own."""
    global armed, _name, _action, _left  # noqa: PLW0603 - of the whole process, set once at its start
    if spec is not None:
        _name, _action, _left = check(spec)
        armed = _name in points


def hit(name: str) -> None:
    """Here it is: if it is the armed one, and its time has come, the process dies."""
    global _left  # noqa: PLW0603
    if not armed or name != _name:
        return
    _left -= 1
    if _left:
        return
    if _action == "exit":
        os._exit(99)
    os.kill(os.getpid(), signal.SIGSTOP if _action == "stop" else signal.SIGKILL)
