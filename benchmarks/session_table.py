"""A peer for callpool's sessions: a dict under a lock, for the threads of one process and nobody else.

At each creation it asks every session whether it is active, to count them and to sum their metadata, as what the specification grew
out of did, so a creation costs more the more are active. It remembers each session's bytes; encoding all metadata again each time
would cost far more.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from callpool.manager.errors import CapacityExceeded, MetadataTooLarge


@dataclass
class TableSession:
    """One session, and what is known of it."""

    session_id: str
    request_id: str
    provider: str
    model: str
    metadata: dict[str, Any]
    metadata_bytes: int
    state: str = "idle"
    created_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    completed_at: float | None = None

    def is_active(self) -> bool:
        """Whether it has not ended."""
        return self.state in {"idle", "allocated", "processing"}


class SessionTable:
    """Sessions of this process. All state is under `_lock`."""

    def __init__(self, *, max_sessions: int, max_metadata_bytes: int = 10_240) -> None:
        self._lock = threading.Lock()
        self._max_sessions = max_sessions
        self._max_metadata_bytes = max_metadata_bytes
        self._sessions: dict[str, TableSession] = {}
        self.current_metadata_bytes = 0
        self.created = 0
        self.ended: dict[str, int] = {"completed": 0, "cancelled": 0}

    def __len__(self) -> int:
        return len(self._sessions)

    def create(self, provider: str, model: str, **metadata: Any) -> TableSession:
        """Take a slot."""
        size = len(json.dumps(metadata, default=str).encode())
        if size > self._max_metadata_bytes:
            raise MetadataTooLarge(f"Metadata size ({size} bytes) exceeds limit ({self._max_metadata_bytes} bytes)")
        session_id, request_id = f"session_{os.urandom(8).hex()}", f"req_{os.urandom(12).hex()}"
        with self._lock:
            active = sum(1 for each in self._sessions.values() if each.is_active())
            if active >= self._max_sessions:
                raise CapacityExceeded(
                    f"Maximum concurrent sessions reached (limit {self._max_sessions}, active {active})"
                )
            session = TableSession(session_id, request_id, provider, model, metadata, size)
            self._sessions[request_id] = session
            self.current_metadata_bytes = sum(
                each.metadata_bytes for each in self._sessions.values() if each.is_active()
            )
            self.created += 1
        return session

    def start(self, session: TableSession) -> None:
        """The work begins."""
        with self._lock:
            session.state, session.started_at = "processing", time.monotonic()

    def complete(self, session: TableSession) -> None:
        """The work is done."""
        with self._lock:
            session.state, session.completed_at = "completed", time.monotonic()

    def release(self, session: TableSession) -> None:
        """Give the slot back."""
        with self._lock:
            del self._sessions[session.request_id]
            self.current_metadata_bytes -= session.metadata_bytes
            self.ended["completed" if session.state == "completed" else "cancelled"] += 1
