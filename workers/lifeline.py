"""A child process dies with its parent, whatever it is doing."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux); end now if it is dead already.

    The signal follows the parent *thread* that spawned this process: the supervisor spawns from its main thread, which
    lives as long as the process. Elsewhere the end of the pipe has to do.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died between our birth and the line above
        os._exit(1)
