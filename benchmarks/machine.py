"""Where the figures come from: machine, versions, load."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

PACKAGES = ("aiohttp", "callpool", "msgspec", "multiprocess", "uvloop")
DURABILITY = "live, not durable, where a table does not say durable: then `full`, on the disk before anybody is told"


def facts() -> dict[str, str]:
    """What a reader must know to compare figures with others."""
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {_processor()}",
        "cpus": f"{psutil.cpu_count()} ({_usable_cpus()} usable by this process)",
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB",
        "load at start": f"{os.getloadavg()[0]:.2f} over the last minute",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
        "durability": DURABILITY,
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():  # on Linux, where `platform` does not know
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _usable_cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else psutil.cpu_count() or 1
