"""Who is at the other end of a Unix socket, from the kernel."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import NamedTuple

_UCRED = struct.Struct("3i")
_XUCRED = struct.Struct("2Ih16I")  # macOS: version, uid, group count (padded), groups
_LOCAL_PEERCRED = 0x001
_LOCAL_PEERPID = 0x002


class Credentials(NamedTuple):
    """The peer's process id (0 where the kernel does not tell, as across pid namespaces) and user id."""

    pid: int
    uid: int


def credentials(connected: socket.socket) -> Credentials:
    """The credentials that the kernel recorded when this connection was made."""
    if sys.platform == "darwin":
        level = 0  # SOL_LOCAL
        fields = _XUCRED.unpack(connected.getsockopt(level, _LOCAL_PEERCRED, _XUCRED.size))
        (pid,) = struct.unpack("i", connected.getsockopt(level, _LOCAL_PEERPID, 4))
        return Credentials(pid, fields[1])
    pid, uid, _gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Credentials(pid, uid)


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where there is no such thing or no such process."""
    if pid <= 0 or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
