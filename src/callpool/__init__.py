"""One supervisor for every LLM call made on a machine.

>>> client = callpool.connect()  # or: with callpool.start(config) as client
>>> handle = client.submit(provider="kimi", model="kimi-k3", messages=[{"role": "user", "content": "Hello"}])
>>> handle.result()["content"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callpool.manager import errors
from callpool.manager.errors import *  # noqa: F403 - the error classes are public names of the package
from callpool.version import __version__

if TYPE_CHECKING:
    from callpool.manager.aio import AsyncClient
    from callpool.manager.aio_handle import AsyncHandle
    from callpool.manager.aio_session import AsyncSession
    from callpool.manager.aio_sessions import AsyncSessionManager
    from callpool.manager.client import Client
    from callpool.manager.core.options import Options
    from callpool.manager.embedded import connect, start
    from callpool.manager.execution import ExecutionResult
    from callpool.manager.handle import Chunk, Handle
    from callpool.manager.session import Session
    from callpool.manager.sessions import SessionManager

__all__ = [
    "AsyncClient",
    "AsyncHandle",
    "AsyncSession",
    "AsyncSessionManager",
    "Chunk",
    "Client",
    "ExecutionResult",
    "Handle",
    "Options",
    "Session",
    "SessionManager",
    "__version__",
    "connect",
    "errors",
    "start",
]
__all__ += errors.__all__

_LAZY = {
    "AsyncClient": "callpool.manager.aio",
    "AsyncHandle": "callpool.manager.aio_handle",
    "AsyncSession": "callpool.manager.aio_session",
    "AsyncSessionManager": "callpool.manager.aio_sessions",
    "Chunk": "callpool.manager.handle",
    "Client": "callpool.manager.client",
    "ExecutionResult": "callpool.manager.execution",
    "Handle": "callpool.manager.handle",
    "Options": "callpool.manager.core.options",
    "Session": "callpool.manager.session",
    "SessionManager": "callpool.manager.sessions",
    "connect": "callpool.manager.embedded",
    "start": "callpool.manager.embedded",
}


def __getattr__(name: str) -> Any:
    """Import the client's parts when they are first used: worker processes import this package and need none of them."""
    if name in _LAZY:
        from importlib import import_module  # noqa: PLC0415

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'callpool' has no attribute {name!r}")
