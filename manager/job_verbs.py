"""The verbs about jobs: what `callpool jobs`, `result`, `jobs resolve` and `journal` ask.

A job that lives is the core's; of one that has ended, or that an earlier run had, the journal knows. Both are asked, the core first.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec

from callpool.manager.core.events import Event, JobResolved, JobWatched
from callpool.manager.core.jobs import done_of
from callpool.manager.core.messages import Accepted, Rejected
from callpool.manager.core.records import Job
from callpool.manager.core.requests import as_plain
from callpool.manager.errors import BadInput, CallpoolError, JournalUnavailable, ShuttingDown, UnknownRequest
from callpool.manager.job_forms import STATES, exported, summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from callpool.manager.core.machine import Core
    from callpool.manager.core.messages import ClientEvent
    from callpool.manager.core.requests import Now
    from callpool.manager.holders import Caller
    from callpool.manager.journal import Journal
    from callpool.manager.store import Store

log = logging.getLogger(__name__)

MOST_ROWS = 1_000
"""Jobs of one answer."""
PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of texts after which a page of an export is closed: far below what a frame takes, with the largest job besides."""


class JobStage(Protocol):
    """What these verbs need of the service."""

    def step(self, event: Event) -> Any:
        """Apply an event that is answered; returns its value, raises its fault."""

    def look(self, read: Callable[[Core, Now], Any]) -> Any:
        """Read the core under the lock."""


class ToClients(Protocol):
    """Where answers to messages go."""

    def to_client(self, client: str, event: ClientEvent) -> None:
        """Send to a client."""


Rows = Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)]


class _Page(msgspec.Struct, forbid_unknown_fields=True):
    states: list[str] = []
    client: str | None = None
    provider: str | None = None
    before: int | None = None
    limit: Rows = 100
    counts: bool = True
    """Whether to count all jobs as well, which looks at each: whoever pages on knows it from the first page."""


class _ExportPage(msgspec.Struct, forbid_unknown_fields=True):
    after: int = 0
    limit: Rows = MOST_ROWS
    payload: bool = False
    results: bool = True


class _One(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str


class _Resolve(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str
    retry: bool


class JobVerbs:
    """The verbs by name."""

    def __init__(self, stage: JobStage, journal: Journal | None, outlets: ToClients) -> None:
        self._stage = stage
        self._journal = journal
        self._outlets = outlets
        self.verbs: dict[str, tuple[type[msgspec.Struct], Callable[[Caller, Any], Any]]] = {
            "jobs": (_Page, self._jobs),
            "job": (_One, self._job),
            "resolve_job": (_Resolve, self._resolve),
            "check_journal": (_Nothing, self._check),
            "compact_journal": (_Nothing, self._compact),
            "export_jobs": (_ExportPage, self._export),
        }

    def _journal_or_refuse(self) -> Journal:
        if self._journal is None:
            raise _no_journal()
        return self._journal

    def attach(self, caller: Caller, request_id: str) -> None:
        """Let a client hear of a job's end: by the core while it lives, else by the journal."""
        if self._journal is None:
            self._outlets.to_client(caller.client, Rejected(request_id, _no_journal().fault))
        elif not self._stage.step(JobWatched(caller.client, request_id)):
            self.tell_end(caller.client, request_id)

    def tell_end(self, client: str, request_id: str) -> None:
        """Tell a client how a job has ended, as soon as the journal has said it."""
        if self._journal is not None:
            asyncio.ensure_future(self._tell_end(self._journal, client, request_id)).add_done_callback(_say)

    async def _tell_end(self, journal: Journal, client: str, request_id: str) -> None:
        try:
            job = await journal.current(request_id)
            if job is None:
                raise UnknownRequest(f"no job {request_id[:80]!r}", param="request_id")
            if job.ended_at is None:
                raise ShuttingDown(
                    f"job {request_id!r} waits for the next start", hint="ask again when the supervisor is back"
                )
        except CallpoolError as error:
            self._outlets.to_client(client, Rejected(request_id, error.fault))
            return
        self._outlets.to_client(client, Accepted(request_id, 0, 0.0))
        self._outlets.to_client(client, done_of(job))

    def _jobs(self, _caller: Caller, arguments: _Page) -> asyncio.Future[dict[str, Any]]:
        """A page of jobs, the last accepted first: `{jobs, counts, next}`."""
        journal = self._journal_or_refuse()
        unknown = [state for state in arguments.states if state not in STATES]
        if unknown:
            raise BadInput(f"no such state {unknown[0][:40]!r}; there are {', '.join(STATES)}", param="states")

        def finish(found: tuple[list[Job], dict[str, int] | None]) -> dict[str, Any]:
            jobs, counts = found
            blocked = self._stage.look(lambda core, _now: _blocked(core, [job.request_id for job in jobs]))
            more = len(jobs) == arguments.limit
            return {
                "jobs": [{**summary(job), "blocked": blocked.get(job.request_id)} for job in jobs],
                "counts": counts,
                "next": jobs[-1].number if more else None,
            }

        return _then(
            journal.ask(
                lambda store: (
                    store.page(
                        states=arguments.states,
                        client=arguments.client,
                        provider=arguments.provider,
                        before=arguments.before,
                        limit=arguments.limit,
                    ),
                    store.counts() if arguments.counts else None,
                )
            ),
            finish,
        )

    def _export(self, _caller: Caller, arguments: _ExportPage) -> asyncio.Future[dict[str, Any]]:
        """A page of whole jobs, the first accepted first: `{jobs, next}`; `next` is `after` of the next page, or None."""
        return self._journal_or_refuse().ask(
            lambda store: export_page(
                store,
                after=arguments.after,
                limit=arguments.limit,
                payload=arguments.payload,
                results=arguments.results,
            )
        )

    def _job(self, _caller: Caller, arguments: _One) -> Any:
        """One job as the journal has it, without its texts; `record` is what the core says of it while it lives."""
        journal = self._journal_or_refuse()
        record = self._stage.look(lambda core, now: _live_record(core, arguments.request_id, now))

        def finish(job: Job | None) -> dict[str, Any]:
            if job is None:
                raise UnknownRequest(f"no job {arguments.request_id[:80]!r}", param="request_id")
            told = None if record is None else as_plain(record)
            return {**summary(job), "blocked": None if told is None else told["blocked"], "record": told}

        return _then(journal.ask(lambda store: store.one(arguments.request_id, texts=False)), finish)

    def _resolve(self, _caller: Caller, arguments: _Resolve) -> asyncio.Future[dict[str, Any]]:
        """Decide about a job in doubt. Answered when that is durable."""
        journal = self._journal_or_refuse()

        async def decide() -> dict[str, Any]:
            job = await journal.current(arguments.request_id)
            if job is None:
                raise UnknownRequest(f"no job {arguments.request_id[:80]!r}", param="request_id")
            answer: dict[str, Any] = self._stage.step(JobResolved(job, arguments.retry))
            await journal.settled()
            return answer

        return asyncio.ensure_future(decide())

    def _check(self, _caller: Caller, _arguments: Any) -> asyncio.Future[dict[str, Any]]:
        """Look through the whole file: `{problems, counts, sessions, journal}`."""
        journal = self._journal_or_refuse()
        return _then(
            journal.ask(lambda store: (store.integrity(), store.counts(), store.sessions())),
            lambda found: {
                "problems": found[0],
                "counts": found[1],
                "sessions": found[2],
                "journal": journal.describe(),
            },
        )

    def _compact(self, _caller: Caller, _arguments: Any) -> asyncio.Future[dict[str, Any]]:
        """Give unused space back: `{before, after}` in bytes."""
        journal = self._journal_or_refuse()

        def compact(store: Any) -> dict[str, Any]:
            before = store.size()
            store.compact()
            return {"before": before, "after": store.size()}

        return journal.ask(compact)


def export_page(store: Store, *, after: int, limit: int, payload: bool, results: bool) -> dict[str, Any]:
    """A page of whole jobs, closed where it gets too large for one answer: `{jobs, next}`."""
    jobs: list[dict[str, Any]] = []
    size = 0
    for job in store.export(after=after, limit=limit, submits=payload, results=results):
        jobs.append(exported(job, payload=payload, results=results))
        size += len(job.body or b"") + (0 if job.submit is None else len(job.submit.payload))
        if size >= PAGE_BYTES or len(jobs) == limit:
            return {"jobs": jobs, "next": job.number}
    return {"jobs": jobs, "next": None}


def _no_journal() -> JournalUnavailable:
    return JournalUnavailable(
        "this supervisor keeps no journal",
        hint='it is one that a program started for itself, or its configuration has durability = "none" in [journal]',
    )


def _say(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("an answer about a job broke", exc_info=error)


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


def _live_record(core: Core, request_id: str, now: Now) -> Any:
    return core.show(request_id, now) if request_id in core.requests else None


def _blocked(core: Core, request_ids: list[str]) -> dict[str, str]:
    """Those of these jobs that cannot go before the next start, and why."""
    live = ((request_id, core.requests.get(request_id)) for request_id in request_ids)
    return {
        request_id: request.job.blocked
        for request_id, request in live
        if request is not None and request.job is not None and request.job.blocked is not None
    }


def _then(asked: asyncio.Future[Any], finish: Callable[[Any], Any]) -> asyncio.Future[Any]:
    """A future of what becomes of another one's value."""

    async def follow() -> Any:
        return finish(await asked)

    return asyncio.ensure_future(follow())
