"""Random records against the journal's file and against a plain dictionary: both must hold the same after each batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callpool.manager.core.records import AttemptStarted, Job, JobAccepted, JobEnded, JobWaits, Record, outcome
from callpool.manager.errors import JournalConflict
from callpool.manager.store import Store
from tests.manager.journaled import FAULT, KEPT, USAGE, accepted, ended, started, waits

NAMES = ["a", "b", "c"]
STATES = ["completed", "error", "interrupted"]


class Model:
    """What a journal is: a dictionary."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.attempt = 0
        self.number = 0

    def copy(self) -> Model:
        copy = Model()
        copy.jobs, copy.attempt, copy.number = dict(self.jobs), self.attempt, self.number
        return copy

    def apply(self, record: Record) -> bool:
        """Take a record in; False where it conflicts."""
        job = self.jobs.get(record.request_id)
        if type(record) is JobAccepted:
            return job is None and self._accept(record)
        was = "queued" if type(record) is AttemptStarted else record.was  # type: ignore[union-attr]
        attempt = record.was if type(record) is AttemptStarted else record.attempt  # type: ignore[union-attr]
        if job is None or (job.state, job.attempt) != (was, attempt):
            return False
        changes: dict[str, Any]
        if type(record) is AttemptStarted:
            self.attempt = max(self.attempt, record.attempt)
            changes = {"tries": record.tries, "started_at": record.at}
        elif type(record) is JobWaits:
            changes = {"kept": record.kept, "provider": record.kept.provider, "model": record.kept.model}
            changes |= {"ended_at": None, "fault": None, "duration": 0.0}
            changes |= {} if record.payload is None else {"payload": record.payload}
        else:
            assert type(record) is JobEnded
            changes = {"ended_at": record.at, "tries": max(job.tries, record.tries), "duration": record.duration}
            changes |= {"had_session": record.started, "usage": record.usage, "fault": record.fault}
            changes |= {} if record.body is None else {"body": record.body}
            changes |= {} if record.state == "interrupted" else {"submit": None, "payload": None}
        state, attempt = outcome(record)
        self.jobs[record.request_id] = msgspec.structs.replace(job, state=state, attempt=attempt, **changes)
        return True

    def _accept(self, record: JobAccepted) -> bool:
        self.number += 1
        submit = record.submit
        self.jobs[record.request_id] = Job(
            number=self.number,
            request_id=record.request_id,
            name=record.name,
            fingerprint=record.fingerprint,
            session_id=record.session_id,
            state="queued",
            attempt=0,
            tries=0,
            accepted_at=record.at,
            provider=submit.provider,
            model=submit.model,
            priority=submit.priority,
            submit=submit,
        )
        return True


names = st.sampled_from(NAMES)
numbers = st.integers(0, 3)
times = st.floats(0, 1e9)
texts = st.none() | st.binary(max_size=3)
was = st.sampled_from(["queued", "started", "interrupted"])
some_records = st.one_of(
    st.builds(lambda name, text: accepted(name, payload=text or b""), names, texts),
    st.builds(
        lambda name, was, n, at: started(name, was=was, attempt=n, tries=n, at=at), names, numbers, numbers, times
    ),
    st.builds(
        lambda name, was, n, text: waits(name, was=was, attempt=n, kept=KEPT, payload=text), names, was, numbers, texts
    ),
)
ends = st.builds(
    lambda name, was, n, state, at, body, fault, usage: ended(
        name, was=was, attempt=n, state=state, at=at, tries=n, duration=at, started=bool(n), body=body, fault=fault, usage=usage
    ),
    names, was, numbers, st.sampled_from(STATES), times, texts, st.none() | st.just(FAULT), st.none() | st.just(USAGE),
)  # fmt: skip
steps = st.lists(
    st.lists(st.tuples(some_records | ends, st.booleans()), min_size=1, max_size=4)
    | st.just("reopen")
    | times.map(lambda at: at),
    max_size=25,
)
"""Batches, whose records are bent into ones that fit where their mark says so; openings; and sweeps until a second."""


def fitting(record: Record, job: Job | None, attempt: int) -> Record:
    """The record, as it would be of the job as it is."""
    if job is None or type(record) is JobAccepted:
        return accepted(record.request_id)
    if type(record) is AttemptStarted:
        return started(record.request_id, was=job.attempt, attempt=attempt + 1, tries=job.tries + 1, at=record.at)
    if job.state in {"queued", "started", "interrupted"}:
        return msgspec.structs.replace(record, was=job.state, attempt=job.attempt)
    return record


@pytest.fixture
def store(base_folder: Path) -> Store:
    return Store(base_folder / "state" / "journal.db", durability="process")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def check(store: Store, steps: list[list[tuple[Record, bool]] | str | float]) -> None:
    store._database.executescript("DELETE FROM jobs; UPDATE facts SET value = 0; DELETE FROM sqlite_sequence;")
    model = Model()
    for step in steps:
        if isinstance(step, str):
            store.reopen()
        elif isinstance(step, float):
            gone = [name for name, job in model.jobs.items() if job.ended_at is not None and job.ended_at < step]
            assert store.sweep(step) == len(gone)
            for name in gone:
                del model.jobs[name]
        else:
            model = write(store, model, step)
        assert {job.request_id: job for job in map(store.one, store.known(NAMES)) if job is not None} == model.jobs
        assert store.last_attempt() == model.attempt
        waiting = [job for job in model.jobs.values() if job.ended_at is None]
        assert [msgspec.structs.replace(job, body=None) for job in waiting] == store.unfinished()


def write(store: Store, model: Model, step: list[tuple[Record, bool]]) -> Model:
    """One batch; the model as it is afterwards."""
    tried, records = model.copy(), []
    fits = True
    for record, bent in step:
        record = fitting(record, tried.jobs.get(record.request_id), tried.attempt) if bent else record  # noqa: PLW2901
        records.append(record)
        fits = tried.apply(record) and fits
    if fits:
        store.write(records)
        assert store.holds(records)
        return tried
    with pytest.raises(JournalConflict):
        store.write(records)
    if len(records) % 2:
        return model
    kept = model.copy()
    refused = [each for each in records if not kept.apply(each)]
    if any(type(each) is JobAccepted for each in refused):
        with pytest.raises(JournalConflict):
            store.write_each(records)
        return model
    assert store.write_each(records) == refused
    return kept


def test_the_file_holds_what_a_dictionary_would(store: Store) -> None:
    try:
        check(store)
        assert store.integrity() == []
    finally:
        store.close()
