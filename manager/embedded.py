"""`callpool.connect` and `callpool.start`: the two ways to a client."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from callpool.manager import paths
from callpool.manager.client import Client

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

    from callpool.manager.config import Source


def connect(address: str | os.PathLike[str] | None = None, *, door: str = "python", name: str | None = None) -> Client:
    """Connect to a running supervisor: the one at `address`, else this user's. Raises NotRunning if there is none.

    `door` is the kind of program: what is not the user's own Python program gives its name, and may not have functions run.
    `name`, 1 to 64 of A-Z a-z 0-9 _ . -, is that under which the client's share, rates and budgets are reckoned: programs that give
    the same one count as one client. None takes `CALLPOOL_CLIENT`; without one each client object is its own.
    """
    return Client(default_address() if address is None else os.fspath(address), door=door, name=name)


def default_address() -> str:
    """The socket of this user's supervisor, as the environment says."""
    return str(paths.socket_path(paths.runtime_dir(os.environ), explicit=bool(os.environ.get("CALLPOOL_RUNTIME_DIR"))))


_shared: dict[str, Client] = {}
_shared_lock = threading.Lock()


def shared_client(address: str) -> Client:
    """This process's own client of a supervisor, for what came from another process and only has the address."""
    with _shared_lock:
        if address not in _shared or not _shared[address].is_open:
            _shared[address] = Client(address)
        return _shared[address]


def _begin_child() -> None:
    """In a forked child: no lock that another thread held, and none of the parent's clients."""
    global _shared_lock  # noqa: PLW0603 - a lock that was held at the fork is held for ever
    _shared_lock = threading.Lock()
    _shared.clear()


os.register_at_fork(after_in_child=_begin_child)


class start:  # noqa: N801 - used like a function: `with callpool.start(config) as client:`
    """Run an embedded supervisor for the length of a `with` block; the block gets a connected client.

    The supervisor is a process of its own and belongs to this one: it drains and ends with the block, or with this
    process. Other processes connect to it by `client.address`. `config` is a path or a dict like the TOML file; what
    `supervisor` holds wins over its `[supervisor]`.
    """

    def __init__(self, config: Source = None, *, supervisor: Mapping[str, Any] | None = None) -> None:
        self._config = config
        self._supervisor = supervisor
        self._running: contextlib.ExitStack | None = None

    def __enter__(self) -> Client:
        """Start the supervisor and connect to it."""
        from callpool.manager.launch import Embedded  # noqa: PLC0415 - `connect` needs none of it

        if self._running is not None:
            raise RuntimeError("this supervisor is running already: call callpool.start() again for another one")
        with contextlib.ExitStack() as stack:
            supervisor = Embedded(self._config, os.environ, self._supervisor)
            stack.callback(supervisor.close)
            client = stack.enter_context(Client(supervisor.address))
            self._running = stack.pop_all()
        return client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client, and let the supervisor drain and end."""
        if self._running is not None:
            running, self._running = self._running, None
            running.close()
