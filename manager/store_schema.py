"""The tables of the journal, and how older ones become these.

`jobs` has one short row a job, updated with each transition; prompts and results, which may be megabytes, have rows of their own, so
that no update copies them. `moves` is no table: its triggers are the transitions. Numbers of attempts never begin again.
"""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x43504A31
"""In the file's header: "CPJ1"."""
VERSION: Final = 1
"""Of the schema, in the file's header as well."""
FIRST_VERSION: Final = 1
"""That was ever written."""

MOVE_COLUMNS: Final = (
    "kind", "request_id", "was", "was_attempt", "state", "attempt", "tries", "at",
    "name", "provider", "model", "priority", "session_id", "fingerprint",
    "duration", "had_session", "content", "fault", "usage", "kept",
)  # fmt: skip
"""A record as a row. `content` is the submit, the next payload or the result."""

_VIEW: Final = ", ".join(f"NULL AS {name}" for name in MOVE_COLUMNS)
_EXPECTED: Final = """
    SELECT RAISE(ABORT, 'the job is not in the state that it was said to be in')
    WHERE NOT EXISTS (
        SELECT 1 FROM jobs WHERE request_id = NEW.request_id AND state = NEW.was AND attempt = NEW.was_attempt
    );
"""

SCHEMA: Final = f"""
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={VERSION};

CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO facts VALUES ('opened', 0), ('probed', 0), ('attempt', 0);

CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    session_id TEXT NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0,
    accepted_at REAL NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    priority TEXT NOT NULL,
    started_at REAL,
    ended_at REAL,
    duration REAL NOT NULL DEFAULT 0,
    had_session INTEGER NOT NULL DEFAULT 0,
    usage BLOB,
    fault BLOB,
    kept BLOB
);
CREATE INDEX unfinished_jobs ON jobs (number) WHERE ended_at IS NULL;
CREATE INDEX ended_jobs ON jobs (ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE payloads (number INTEGER PRIMARY KEY, submit BLOB NOT NULL, next BLOB);
CREATE TABLE windows (
    kind TEXT NOT NULL, name TEXT NOT NULL, measure TEXT NOT NULL, record BLOB NOT NULL, PRIMARY KEY (kind, name, measure)
) WITHOUT ROWID;
CREATE TABLE history (
    session_id TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL
) WITHOUT ROWID;
CREATE INDEX history_of_requests ON history (request_id);
CREATE INDEX ended_sessions ON history (ended_at);
CREATE TABLE results (number INTEGER PRIMARY KEY, body BLOB NOT NULL);

CREATE TRIGGER forgotten AFTER DELETE ON jobs BEGIN
    DELETE FROM payloads WHERE number = OLD.number;
    DELETE FROM results WHERE number = OLD.number;
END;

CREATE VIEW moves AS SELECT {_VIEW};

CREATE TRIGGER job_accepted INSTEAD OF INSERT ON moves WHEN NEW.kind = 'accept' BEGIN
    INSERT INTO jobs (request_id, name, fingerprint, session_id, state, accepted_at, provider, model, priority)
    VALUES (
        NEW.request_id, NEW.name, NEW.fingerprint, NEW.session_id, NEW.state, NEW.at, NEW.provider, NEW.model, NEW.priority
    );
    INSERT INTO payloads (number, submit) VALUES (last_insert_rowid(), NEW.content);
END;

CREATE TRIGGER attempt_started INSTEAD OF INSERT ON moves WHEN NEW.kind = 'start' BEGIN
    {_EXPECTED}
    UPDATE jobs SET state = NEW.state, attempt = NEW.attempt, tries = NEW.tries, started_at = NEW.at
    WHERE request_id = NEW.request_id;
    UPDATE facts SET value = NEW.attempt WHERE name = 'attempt' AND value < NEW.attempt;
END;

CREATE TRIGGER job_waits INSTEAD OF INSERT ON moves WHEN NEW.kind = 'wait' BEGIN
    {_EXPECTED}
    UPDATE jobs SET
        state = NEW.state, provider = NEW.provider, model = NEW.model, kept = NEW.kept,
        ended_at = NULL, fault = NULL, duration = 0
    WHERE request_id = NEW.request_id;
    UPDATE payloads SET next = NEW.content
    WHERE NEW.content IS NOT NULL AND number = (SELECT number FROM jobs WHERE request_id = NEW.request_id);
END;

CREATE TRIGGER window_written INSTEAD OF INSERT ON moves WHEN NEW.kind = 'window' BEGIN
    DELETE FROM windows WHERE kind = NEW.provider AND name = NEW.name AND measure = NEW.model AND NEW.content IS NULL;
    INSERT OR REPLACE INTO windows SELECT NEW.provider, NEW.name, NEW.model, NEW.content WHERE NEW.content IS NOT NULL;
END;

CREATE TRIGGER job_ended INSTEAD OF INSERT ON moves WHEN NEW.kind = 'end' BEGIN
    {_EXPECTED}
    UPDATE jobs SET
        state = NEW.state, ended_at = NEW.at, tries = max(tries, NEW.tries), duration = NEW.duration, had_session = NEW.had_session,
        usage = NEW.usage, fault = NEW.fault
    WHERE request_id = NEW.request_id;
    INSERT OR REPLACE INTO results SELECT number, NEW.content FROM jobs WHERE request_id = NEW.request_id AND NEW.content IS NOT NULL;
    DELETE FROM payloads
    WHERE NEW.state <> 'interrupted' AND number = (SELECT number FROM jobs WHERE request_id = NEW.request_id);
END;
"""  # noqa: S608 - made of our own words alone

MIGRATIONS: Final[dict[int, str]] = {}
"""Version → the statements that make the next one of it."""
