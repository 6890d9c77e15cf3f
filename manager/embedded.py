"""`callpool.connect` and `callpool.start`: the two ways to a client."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from callpool.manager import paths
from callpool.manager.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from callpool.manager.config import Source


def connect(address: str | os.PathLike[str] | None = None) -> Client:
    """Connect to a running supervisor: the one at `address`, else this user's. Raises NotRunning if there is none."""
    return Client(default_address() if address is None else os.fspath(address))


def default_address() -> str:
    """The socket of this user's supervisor, as the environment says."""
    return str(paths.socket_path(paths.runtime_dir(os.environ), explicit=bool(os.environ.get("CALLPOOL_RUNTIME_DIR"))))


@contextlib.contextmanager
def start(config: Source = None) -> Iterator[Client]:
    """Run an embedded supervisor for the length of a `with` block; yields a connected client.

    The supervisor is a process of its own and belongs to this one: it drains and ends with the block, or with this
    process. Other processes connect to it by `client.address`. `config` is a path or a dict like the TOML file.
    """
    from callpool.manager.launch import Embedded  # noqa: PLC0415 - `connect` needs none of it

    supervisor = Embedded(config, os.environ)
    try:
        with Client(supervisor.address) as client:
            yield client
    finally:
        supervisor.close()
