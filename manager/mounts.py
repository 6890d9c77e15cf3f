"""On which kind of file system a path is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import psutil

_NETWORK: Final = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "vboxsf", "vmhgfs",
})  # fmt: skip
"""Where other machines, or a host, write too. Locks of these lie, or shared memory does not work."""
_NETWORK_FUSE: Final = (
    "ceph",
    "cifs",
    "dav",
    "gcsfuse",
    "gluster",
    "goofys",
    "mount-s3",
    "nfs",
    "rclone",
    "s3fs",
    "smb",
    "ssh",
    "vmhgfs",
)
"""Beginnings of what stands after `fuse.`."""


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that a directory is on, or None where it is on this machine's own disks."""
    kind = file_system_of(path)
    name = kind.lower()
    if name in _NETWORK or name.removeprefix("fuse.").startswith(_NETWORK_FUSE):
        return kind
    return None


def file_system_of(path: Path) -> str:
    """The type of the file system that a path is on, as the system's table of mounts says; empty where it does not tell."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for mount in psutil.disk_partitions(all=True):
        point = mount.mountpoint
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # the last of equals covers the others
            best, kind = point, mount.fstype
    return kind
