"""The local model server as the supervisor sees it: one child process per `local` provider, watched and restarted.

While it is not ready its account is closed: requests wait in the queue instead of failing. Owner: the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from typing import TYPE_CHECKING, Any

from callpool.manager.children import Child, spawn_with_pipe
from callpool.manager.core.messages import Endpoint
from callpool.manager.core.restarts import HEALTHY_AFTER, backoff_ceiling

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

LOAD_DEADLINE = 60.0
"""Seconds for loading the model."""
MAX_REPORT = 65_536
STOP_GRACE = 1.0
"""Seconds for the server to go when its pipe has ended."""


class ModelHost:
    """Keeps one model server running and tells where it is."""

    def __init__(
        self,
        provider: str,
        *,
        target: Callable[..., None],
        options: Any,
        read_report: Callable[[bytes], Any],
        on_endpoint: Callable[[Endpoint], None],
        on_closed: Callable[[str, str | None], None],
    ) -> None:
        """`target(options, pipe)` runs in the child and writes one line, which `read_report` decodes.

        `on_closed(provider, reason)` is told why the account is closed, or None when it is open again.
        """
        self.provider = provider
        self.endpoint: Endpoint | None = None
        self.restarts = 0
        self._target = target
        self._options = options
        self._read_report = read_report
        self._on_endpoint = on_endpoint
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self.child: Child | None = None
        self._pipe: socket.socket | None = None
        self._said = b""
        self._failures = 0
        self._spawned_at = 0.0
        self._timers: list[asyncio.TimerHandle] = []
        self._stopping = False
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id, or None between two processes."""
        return self.child.pid if self.child is not None else None

    def start(self) -> None:
        """Spawn the server. Call it from the main thread."""
        self._spawned_at = self._loop.time()
        try:
            ours, self.child = spawn_with_pipe(
                self._target,
                lambda pipe: (self._options, pipe),
                name=f"callpool-model-{self.provider}",
                on_exit=self._exited,
            )
        except OSError as error:
            self._plan_restart(f"could not be spawned: {error}")
            return
        ours.setblocking(False)
        self._pipe, self._said = ours, b""
        self._loop.add_reader(ours.fileno(), self._readable)
        self._timers.append(self._loop.call_later(LOAD_DEADLINE, self._too_slow))

    async def stop(self) -> None:
        """End the server: its pipe ends, and it goes at once. Returns when it has been reaped."""
        self._stopping = True
        self._cancel_timers()
        if self.child is None:
            return
        self._close_pipe()
        self._timers.append(self._loop.call_later(STOP_GRACE, self.child.kill))
        await self._ended.wait()

    def describe(self) -> dict[str, Any]:
        """The row of this server in `status`."""
        return {
            "provider": self.provider,
            "pid": self.pid,
            "state": "up" if self.endpoint else "starting",
            "restarts": self.restarts,
        }

    def _readable(self) -> None:
        if self._pipe is None:
            return
        try:
            data = self._pipe.recv(MAX_REPORT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._close_pipe()
            return
        self._said += data
        if self.endpoint is None and b"\n" in self._said[:MAX_REPORT]:
            self._take_report(self._said.split(b"\n", 1)[0])

    def _take_report(self, line: bytes) -> None:
        self._cancel_timers()
        report = self._read_report(line)
        base_url = getattr(report, "base_url", None)
        if base_url is None:
            log.error("the model server of %s failed to start: %s", self.provider, report.reason)
            for each in report.last_lines:
                log.error("model server: %s", each)
            return  # its exit follows
        log.info("the model server of %s is ready after %.1f s", self.provider, report.load_seconds)
        self.endpoint = Endpoint(self.provider, base_url, report.api_key)
        self._on_endpoint(self.endpoint)
        self._on_closed(self.provider, None)

    def _exited(self, reason: str) -> None:
        self._readable()  # its last words may still lie in the pipe
        self._close_pipe()
        self._cancel_timers()
        self.child, self.endpoint = None, None
        if self._stopping:
            self._ended.set()
        else:
            self._plan_restart(reason)

    def _plan_restart(self, reason: str) -> None:
        up_for = self._loop.time() - self._spawned_at
        self._failures = 1 if up_for >= HEALTHY_AFTER else self._failures + 1
        self.restarts += 1
        closed = f"its model server {reason} and is being restarted"
        log.warning("provider %s: %s", self.provider, closed)
        self._on_closed(self.provider, closed)
        delay = random.uniform(0.0, backoff_ceiling(self._failures))  # noqa: S311 - jitter, not a secret
        self._timers.append(self._loop.call_later(delay, self.start))

    def _too_slow(self) -> None:
        log.error("the model server of %s was not ready after %.0f s: ending it", self.provider, LOAD_DEADLINE)
        if self.child is not None:
            self.child.kill()

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
            self._pipe = None

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
