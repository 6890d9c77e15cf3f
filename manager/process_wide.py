"""One session manager for a whole process: of the supervisor that runs, else of an embedded one.

    get_session_manager() ── the user's supervisor answers ──► a client of it
                          └─ nobody answers ──► an embedded supervisor ── its key is in use elsewhere ──► a client of that one

Safe from many threads, and in a forked child, which connects to the supervisor of its parent. `close_process_wide` takes everything
down, at the latest when the process ends.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from callpool.manager.aio_sessions import AsyncSessionManager
from callpool.manager.core.requests import Phase
from callpool.manager.embedded import connect, start
from callpool.manager.errors import ConfigMismatch, HandshakeFailed, KeyInUse, NotRunning
from callpool.manager.session_calls import shut_down
from callpool.manager.sessions import SessionManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from callpool.manager.aio import AsyncClient
    from callpool.manager.client import Client
    from callpool.manager.lifecycle_logger import LifecycleLogger


class _UnsaidFloat(float):
    """A default that the caller did not give: it contradicts nothing."""


class _UnsaidInt(int):
    """The same, of whole numbers."""


class _Shared(NamedTuple):
    pid: int
    client: Client
    manager: SessionManager
    embedded: start | None


_lock = threading.Lock()
_shared: list[_Shared] = []
"""At most one. Under `_lock`."""
_parents: list[str] = []
"""In a forked child: the address of its parent's supervisor, which is the one to connect to. Under `_lock`."""
_async_managers: dict[asyncio.AbstractEventLoop, AsyncSessionManager] = {}
"""Under `_lock`; those of closed loops go when somebody asks for another one."""
_keepers: dict[asyncio.AbstractEventLoop, AsyncIterator[None]] = {}
"""What closes the connection of each loop with it. Under `_lock`, but for the loop's own entry."""


def get_session_manager(
    default_timeout: float = _UnsaidFloat(30.0),
    max_concurrent_sessions: int = _UnsaidInt(200),
    max_metadata_size: int = _UnsaidInt(10_240),
) -> SessionManager:
    """This process's manager: connected to the user's supervisor, or to an embedded one that is started for it.

    The arguments configure an embedded supervisor, in place of its configuration's. Raises ConfigMismatch where one that was given
    contradicts the supervisor that runs.
    """
    wanted = _said(
        default_timeout=default_timeout,
        max_concurrent_sessions=max_concurrent_sessions,
        max_metadata_size=max_metadata_size,
    )
    with _lock:
        if _shared and not _is_usable(_shared[0]):
            _take_down()
        if not _shared:
            _shared.append(_connect(wanted))
        shared = _shared[0]
    _compare(wanted, shared.client)
    return shared.manager


def get_async_session_manager(
    default_timeout: float = _UnsaidFloat(30.0),
    max_concurrent_sessions: int = _UnsaidInt(200),
    max_metadata_size: int = _UnsaidInt(10_240),
) -> AsyncSessionManager:
    """The manager of the running event loop, over the same supervisor as `get_session_manager`. It connects when it is first used.

    Raises RuntimeError outside of an event loop; what `get_session_manager` raises, its first verb raises.
    """
    loop = asyncio.get_running_loop()

    async def connect_async() -> AsyncClient:
        from callpool.manager.aio import AsyncClient  # noqa: PLC0415 - a program without it need not import it

        manager = await asyncio.to_thread(
            get_session_manager, default_timeout, max_concurrent_sessions, max_metadata_size
        )
        if manager.is_shut_down:
            raise shut_down()
        client = await AsyncClient.connect(manager.address)
        keeper = _close_with_loop(client)
        await anext(keeper)
        _keepers[loop] = keeper
        return client

    with _lock:
        for each in [known for known in _async_managers if known.is_closed()]:
            del _async_managers[each]  # the manager holds its loop: neither would ever be let go
            _keepers.pop(each, None)
        manager = _async_managers.get(loop)
        if manager is None or manager.is_over:
            manager = _async_managers[loop] = AsyncSessionManager(connect=connect_async)
    return manager


async def _close_with_loop(client: AsyncClient) -> AsyncIterator[None]:
    """`asyncio.run` ends async generators before it closes the loop: the last moment in which a connection can be closed."""
    try:
        yield
    finally:
        await client.close()


def get_lifecycle_logger() -> LifecycleLogger:
    """The lifecycle log of the process-wide manager's supervisor."""
    return process_client().lifecycle


def process_client() -> Client:
    """The client of the process-wide manager."""
    get_session_manager()
    with _lock:
        return _shared[0].client


def close_process_wide() -> None:
    """Close the process-wide manager, and the embedded supervisor that was started for it. Idempotent."""
    with _lock:
        if _shared and _shared[0].pid == os.getpid():
            _take_down()
        _shared.clear()


def _is_usable(shared: _Shared) -> bool:
    """Not after a crash of its supervisor. After an orderly `shutdown`, and during one, it still answers: that it is shut down."""
    return shared.client.is_open or shared.manager.is_shutting_down


def _take_down() -> None:
    shared = _shared.pop()
    shared.client.close()
    if shared.embedded is not None:
        shared.embedded.__exit__(None, None, None)


def _connect(wanted: Mapping[str, Any]) -> _Shared:
    embedded: start | None = None
    try:
        client = _connect_to_running()
    except NotRunning:
        embedded = start(supervisor=wanted)
        try:
            client = embedded.__enter__()
        except KeyInUse as error:  # somebody else's embedded supervisor holds the key: that is the one to use
            if not error.details.get("address"):
                raise
            client, embedded = connect(error.address), None
    return _Shared(os.getpid(), client, client.sessions, embedded)


def _connect_to_running() -> Client:
    """A client of the parent's supervisor, in a forked child; else of the user's own. Raises NotRunning."""
    if _parents:
        with contextlib.suppress(NotRunning, HandshakeFailed):
            return connect(_parents[0])
    return connect()


def _begin_child() -> None:
    """In a forked child: no lock that another thread held, and none of the parent's connections."""
    global _lock  # noqa: PLW0603 - a lock that was held at the fork is held for ever
    _lock = threading.Lock()
    _parents[:] = [each.client.address for each in _shared] or _parents
    _shared.clear()
    _async_managers.clear()
    _keepers.clear()


def _said(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if not isinstance(value, (_UnsaidFloat, _UnsaidInt))}


def _compare(wanted: Mapping[str, Any], client: Client) -> None:
    running = {name: getattr(client.catalogue, name) for name in wanted}
    wrong = [name for name, value in wanted.items() if value != running[name]]
    if wrong:
        told = ", ".join(f"{name} is {running[name]}, not {wanted[name]}" for name in wrong)
        raise ConfigMismatch(
            f"the supervisor at {client.address} runs with other settings: {told}",
            param=wrong[0],
            hint="leave the argument out, or stop that supervisor first",
            wanted=wanted[wrong[0]],
            running=running[wrong[0]],
        )


atexit.register(close_process_wide)
os.register_at_fork(after_in_child=_begin_child)


# Chat.


def chat_completions_create_with_session(
    provider: str, model: str, messages: Sequence[Mapping[str, Any]], **arguments: Any
) -> dict[str, Any]:
    """One chat through the pool: waits in the queue, then for the answer `{provider, model, content, usage, metadata, …}`.

    `arguments` and errors are those of `Client.chat`.
    """
    return process_client().chat(provider=provider, model=model, messages=messages, **arguments)


async def chat_completions_create_async_with_session(
    provider: str, model: str, messages: Sequence[Mapping[str, Any]], **arguments: Any
) -> dict[str, Any]:
    """The same for the tasks of an event loop; a task that is cancelled cancels its call at the provider."""
    client = await get_async_session_manager().client()
    return await client.chat(provider=provider, model=model, messages=messages, **arguments)


# The lifecycle log, a function for each phase.


def _logging(phase: Phase) -> Callable[..., None]:
    def log(
        request_id: str,
        /,
        session_id: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        **metadata: Any,
    ) -> None:
        get_lifecycle_logger().log_event(phase, request_id, session_id, provider, model, **metadata)

    log.__doc__ = f"Add the phase {phase.value} of a request to the lifecycle log. Does not wait."
    return log


log_request_received = _logging(Phase.RECEIVED)
log_request_queued = _logging(Phase.QUEUED)
log_request_dequeued = _logging(Phase.DEQUEUED)
log_session_allocated = _logging(Phase.SESSION_ALLOCATED)
log_provider_call_start = _logging(Phase.PROVIDER_CALL_START)
log_provider_call_end = _logging(Phase.PROVIDER_CALL_END)
log_session_released = _logging(Phase.SESSION_RELEASED)
log_request_completed = _logging(Phase.COMPLETED)
log_request_timeout = _logging(Phase.TIMEOUT)
log_request_error = _logging(Phase.ERROR)
log_request_cancelled = _logging(Phase.CANCELLED)
