"""The supervisor: composes the parts, performs effects, and takes everything down again in order.

                        ┌────────────────────── supervisor process, one event loop ──────────────────────┐
    clients ──frames──► │ ManagerServer ──messages──► Service [ lock · core ] ──effects──► Arbiter ──────┼──► workers
            ◄─frames─── │       ▲                        │    ▲                               │ Links    │◄── reports
                        │       └──────── to_client ─────┘    └── timers, signals, lifeline   ▼          │
                        │                                         ModelHost ◄── one line ── model server │
                        └────────────────────────────────────────────────────────────────────────────────┘

Reads: boot document, key file (its own), pipes. Writes: socket, key file, drain report, log. Never: a provider's key, a payload.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager import failpoints, wire
from callpool.manager.arbiter import Arbiter
from callpool.manager.composition import build_core, model_options, open_store
from callpool.manager.core.lifecycle import as_line
from callpool.manager.core.messages import Endpoint
from callpool.manager.core.windows import DAY
from callpool.manager.errors import CallpoolError, StartFailed
from callpool.manager.exits import Exit
from callpool.manager.function_lane import FunctionLane
from callpool.manager.health_facts import Surroundings, WorkerFacts, observe_process
from callpool.manager.kinds import located, rules_of
from callpool.manager.lifecycle_file import LifecycleFile
from callpool.manager.model_host import ModelHost
from callpool.manager.peers import open_pidfd
from callpool.manager.private import write_private_file
from callpool.manager.recycling import Limits
from callpool.manager.server import ManagerServer
from callpool.manager.service import Service, read_clocks
from callpool.workers.boot import SecretsFile, WorkerBoot
from callpool.workers.model_server import decode_report, serve
from callpool.workers.process import main as worker_main

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from callpool.manager.boot import Boot
    from callpool.manager.core.events import DrainReport
    from callpool.manager.core.lifecycle import Fresh
    from callpool.manager.core.messages import ClientEvent, WorkerOrder
    from callpool.manager.store import Store

log = logging.getLogger(__name__)

KEY_FILE = "key"
DRAIN_REPORT_FILE = "drain-report.json"
LIFECYCLE_FILE = "lifecycle.jsonl"
REPORT_TURNS = 4
"""Turns of the loop from a report to the last answer that is made of it."""
WORKER_GRACE = 2.0
"""Seconds for idle workers to close their connections and exit."""


class Supervisor:
    """One supervisor's life. Create it inside the running loop of the main thread."""

    def __init__(self, boot: Boot, *, on_ready: Callable[[str], None]) -> None:
        self._boot = boot
        self._settings = boot.settings
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._runtime = Path(boot.socket).parent
        self._secrets = SecretsFile(boot.secrets_descriptor)
        self._finished = asyncio.Event()
        self._report: DrainReport | None = None
        self._drain_waiters: list[asyncio.Future[dict[str, Any]]] = []
        self._signals = 0
        self._start_failure: str | None = None
        """Why no worker gets ready, where that is so from the start."""
        self.was_ready = False
        """Whether it ever accepted requests."""
        self._watched: list[int] = []
        """Descriptors that tell of the embedding process's end."""
        functions = self._settings.supervisor.function_workers
        store = open_store(boot)
        self.service = Service(
            build_core(boot, store, read_clocks()),
            self,
            address=boot.socket,
            functions=functions > 0,
            store=store,
            keep_seconds=self._settings.retention.result_days * DAY,
        )
        if store is not None:
            self._recover(store)
        self.lane = FunctionLane(self.service, limit=functions)
        self._lifecycle = (
            LifecycleFile(Path(boot.home) / "logs" / LIFECYCLE_FILE)
            if self._settings.supervisor.lifecycle_log
            else None
        )
        key = os.urandom(wire.KEY_BYTES)
        write_private_file(self._runtime / KEY_FILE, key)
        limit = self._settings.supervisor.max_connections
        self.server = ManagerServer(self.service, key=key, max_connections=limit)
        self._worker_boot = WorkerBoot(
            number=0,
            supervisor_pid=os.getpid(),
            providers={name: located(provider) for name, provider in self._settings.providers.items()},
            rules={name: rules_of(provider) for name, provider in self._settings.providers.items()},
            limits=self.service.account_limits(),
            heartbeat_interval=self._settings.supervisor.heartbeat_interval,
            failpoint=boot.failpoint,
        )
        self.arbiter = Arbiter(
            self,
            count=self._settings.supervisor.workers,
            target=worker_main,
            arguments=self._worker_arguments,
            heartbeat_interval=self._settings.supervisor.heartbeat_interval,
            greet=self._endpoints,
            limits=Limits(
                calls=self._settings.supervisor.max_calls_per_worker,
                memory=self._settings.supervisor.max_worker_memory,
            ),
        )
        self.model_hosts = [
            ModelHost(
                name,
                target=serve,
                options=options,
                read_report=decode_report,
                on_endpoint=self.arbiter.broadcast,
                on_closed=self.service.close_account,
            )
            for name, options in model_options(boot).items()
        ]

    def _recover(self, store: Store) -> None:
        """Take up the jobs of earlier runs: they wait until the first worker is up."""
        began = time.monotonic()
        now = read_clocks()
        self.service.begin_history(store.begin_history(now.wall), days=self._settings.retention.history_days)
        jobs = store.unfinished()
        failpoints.hit("recovery.read")
        self.service.recover(jobs, store.last_attempt())
        failpoints.hit("recovery.applied")
        if jobs:
            log.info("%d jobs of earlier runs were taken up in %.2f s", len(jobs), time.monotonic() - began)

    async def run(self) -> Exit:
        """Serve until drained. Returns the exit status. Raises StartFailed where no worker ever gets ready."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self._on_signal, signum)
        self._watch_owner()
        if self.service.journal is not None:
            self.service.journal.start()
        for host in self.model_hosts:
            self.service.close_account(host.provider, "its model server is starting")
        self.arbiter.start()
        for host in self.model_hosts:
            host.start()
        self.server.listen(Path(self._boot.socket))
        await self._finished.wait()
        await self._close()
        if self._start_failure is not None:
            hint = "what it printed stands in the supervisor's log"
            raise StartFailed(f"no worker gets ready: {self._start_failure}", hint=hint)
        return Exit.OK

    async def _close(self) -> None:
        """Take everything down: nobody new, answers out, workers gone, files away."""
        self.service.stop()
        self.server.stop_listening()
        if self.service.journal is not None:
            await self.service.journal.close()  # what waited for it goes out before the connections close
        failpoints.hit("drain.closed")
        self._publish_report()
        for _ in range(REPORT_TURNS):  # whoever waits for the report gets it into its outbox
            await asyncio.sleep(0)
        self.server.close()
        await asyncio.gather(
            self.arbiter.stop(grace=WORKER_GRACE),
            self.lane.stop(grace=0.0),
            *(host.stop() for host in self.model_hosts),
        )
        if self._lifecycle is not None:
            self._lifecycle.close()
        (self._runtime / KEY_FILE).unlink(missing_ok=True)
        self._secrets.close()

    def _publish_report(self) -> None:
        if self._report is None:
            return
        plain = msgspec.to_builtins(self._report)
        for waiter in self._drain_waiters:
            if not waiter.done():
                waiter.set_result(plain)
        try:
            write_private_file(Path(self._boot.home) / DRAIN_REPORT_FILE, msgspec.json.encode(plain))
        except (OSError, CallpoolError) as error:  # a full disk must not keep us from ending in order
            log.warning("the drain report cannot be kept: %s", error)
        log.info("drained: %s", msgspec.json.encode(plain).decode())

    # Outlets of the service.

    def to_client(self, client: str, event: ClientEvent) -> None:
        """Send to a client."""
        self.server.send(client, event)

    def to_worker(self, worker: int, order: WorkerOrder) -> None:
        """Send to a worker."""
        self.arbiter.send(worker, order)

    def to_lane(self, holder: str, order: WorkerOrder) -> None:
        """Send to the function lane, for a function of this holder."""
        self.lane.send(order, holder)

    def release_lane(self, holder: str) -> None:
        """End the processes of the function lane that belong to this holder."""
        self.lane.release_holder(holder)

    def log_lifecycle(self, events: list[Fresh]) -> None:
        """Hand these to the writer of the lifecycle file."""
        if self._lifecycle is not None:
            self._lifecycle.offer([as_line(event) for event in events])

    def flush_client(self, client: str) -> None:
        """Send a client now what was given for it."""
        self.server.flush(client)

    def flush_worker(self, worker: int) -> None:
        """Send a worker now what was given for it."""
        self.arbiter.flush(worker)

    def drained(self, report: DrainReport) -> None:
        """Nothing is left to wait for."""
        failpoints.hit("drain.done")
        self._report = report
        self._finished.set()

    def describe_workers(self) -> list[dict[str, Any]]:
        """The workers' rows of `status`."""
        return self.arbiter.describe()

    def describe_supervision(self) -> dict[str, Any]:
        """Restarts and recyclings, over all workers."""
        return self.arbiter.describe_supervision()

    def describe_pools(self) -> dict[str, dict[str, Any]]:
        """The connections to each provider."""
        return self.arbiter.describe_pools()

    def describe_model_servers(self) -> list[dict[str, Any]]:
        """The model servers' rows of `status`."""
        return [host.describe() for host in self.model_hosts]

    def describe_health(self) -> Surroundings:
        """The processes, and this one's own descriptors, memory and disk."""
        now = self._loop.time()
        ready = {host.provider for host in self.model_hosts if host.endpoint is not None}
        return Surroundings(
            workers=[
                WorkerFacts(
                    number=slot.number,
                    state=slot.state.value,
                    pid=slot.pid,
                    silent=now - slot.heard_at,
                    loop_delay=slot.loop_delay,
                    restarts=slot.restarts,
                    failures=self.arbiter.restarts.failures(slot.number, now),
                    spawned_ago=now - slot.spawned_at,
                    last_death=slot.last_death,
                )
                for slot in self.arbiter.slots
                if not slot.spare
            ],
            restarts=self.arbiter.restarts.condition(now),
            heartbeat_interval=self._settings.supervisor.heartbeat_interval,
            local_providers={
                name: name in ready for name, provider in self._settings.providers.items() if provider.kind == "local"
            },
            process=observe_process(self._boot.home),
        )

    def describe_lane(self) -> list[dict[str, Any]]:
        """The processes of the function lane."""
        return self.lane.describe()

    def ask_drain(self, timeout: float | None) -> asyncio.Future[dict[str, Any]]:
        """Begin to drain; the future is the report."""
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._drain_waiters.append(future)
        self.service.begin_drain(self._settings.supervisor.shutdown_timeout if timeout is None else timeout)
        return future

    # Events of the arbiter.

    def worker_up(self, worker: int) -> None:
        """The first worker makes the supervisor ready."""
        self.service.worker_up(worker)
        if not self.was_ready and not self.service.is_draining:
            self.was_ready = True
            self._on_ready(self._boot.socket)

    def worker_retiring(self, worker: int) -> None:
        """A worker ends when its calls have."""
        self.service.worker_retiring(worker)

    def may_retire(self, worker: int) -> bool:
        """Whether nothing that it is to be sent is held back any more."""
        return self.service.may_retire(worker)

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self.service.is_draining

    def worker_is_idle(self, worker: int) -> bool:
        """Whether no request is with this worker."""
        return self.service.worker_is_idle(worker)

    def worker_down(self, worker: int, reason: str) -> None:
        """A worker has ended."""
        self.service.worker_down(worker, reason)

    def start_failed(self, cause: str) -> None:
        """What is wrong now will be wrong in a minute: whoever starts the supervisor is to know it at once."""
        self._start_failure = cause
        self._finished.set()

    def handle_reports(self, worker: int, reports: Iterable[Any]) -> None:
        """What a worker says of its calls."""
        self.service.handle_reports(worker, reports)

    # Signals and the lifeline: each only passes an event on.

    def _on_signal(self, signum: int) -> None:
        self._signals += 1
        name = signal.Signals(signum).name
        if self._signals == 1:
            timeout = self._settings.supervisor.shutdown_timeout
            log.info("%s: draining, at most %g s; once more cuts, a third kills", name, timeout)
            self.service.begin_drain(timeout)
        elif self._signals == 2:
            log.warning("%s again: cutting now", name)
            self.service.cut()
        else:
            log.error("%s a third time: killed", name)
            self._kill_everything()

    def _kill_everything(self) -> None:
        workers = [slot.child for slot in self.arbiter.slots]
        for child in [*workers, *(host.child for host in self.model_hosts), *self.lane.children()]:
            if child is not None:
                child.kill()
        self.server.stop_listening()
        os._exit(Exit.KILLED)

    def _on_owner_gone(self) -> None:
        for descriptor in self._watched:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._watched.clear()
        log.info("the embedding process has let go: draining")
        self.service.begin_drain(self._settings.supervisor.shutdown_timeout)

    def _watch_owner(self) -> None:
        """An embedded supervisor ends with its owner: when the lifeline says so, or the owner's process is gone."""
        if self._boot.lifeline_descriptor is None or self._boot.owner_pid is None:
            return
        self._watched.append(self._boot.lifeline_descriptor)
        pidfd = open_pidfd(self._boot.owner_pid)
        if pidfd is not None:
            self._watched.append(pidfd)
        for descriptor in self._watched:
            self._loop.add_reader(descriptor, self._on_owner_gone)

    # What children are given.

    def _worker_arguments(self, worker: int, pipe: socket.socket) -> Sequence[Any]:
        boot = msgspec.structs.replace(self._worker_boot, number=worker)
        return pipe, msgspec.msgpack.encode(boot), self._secrets

    def _endpoints(self, _worker: int) -> list[Endpoint]:
        return [host.endpoint for host in self.model_hosts if host.endpoint is not None]
