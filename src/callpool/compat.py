"""The specification's names for the same things: the process-wide session manager, chat calls, the lifecycle log.

>>> from callpool.compat import get_session_manager
>>> manager = get_session_manager()
>>> manager.execute_with_session("kimi", "kimi-k3", call_the_model)
"""

from __future__ import annotations

from callpool.manager.aio_sessions import AsyncSessionManager
from callpool.manager.lifecycle_logger import LifecycleLogger
from callpool.manager.process_wide import (
    chat_completions_create_async_with_session,
    chat_completions_create_with_session,
    get_async_session_manager,
    get_lifecycle_logger,
    get_session_manager,
    log_provider_call_end,
    log_provider_call_start,
    log_request_cancelled,
    log_request_completed,
    log_request_dequeued,
    log_request_error,
    log_request_queued,
    log_request_received,
    log_request_timeout,
    log_session_allocated,
    log_session_released,
)
from callpool.manager.sessions import SessionManager

ConcurrentSessionManager = SessionManager
AsyncConcurrentSessionManager = AsyncSessionManager

__all__ = [
    "AsyncConcurrentSessionManager",
    "ConcurrentSessionManager",
    "LifecycleLogger",
    "chat_completions_create_async_with_session",
    "chat_completions_create_with_session",
    "get_async_session_manager",
    "get_lifecycle_logger",
    "get_session_manager",
    "log_provider_call_end",
    "log_provider_call_start",
    "log_request_cancelled",
    "log_request_completed",
    "log_request_dequeued",
    "log_request_error",
    "log_request_queued",
    "log_request_received",
    "log_request_timeout",
    "log_session_allocated",
    "log_session_released",
]
