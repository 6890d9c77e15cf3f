"""Jobs, story by story: what a later run makes of them, what a failing disk undoes, who hears of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from callpool.manager.core.events import (
    CancelAsked,
    ClientGone,
    DrainAsked,
    Effect,
    FromJournal,
    JobKnown,
    JobResolved,
    JobsRecovered,
    JournalDown,
    JournalUp,
    ToClient,
    ToJournal,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import AccountRules, LedgerRules, Limits, Usage
from callpool.manager.core.messages import Accepted, Dispatch, Done, Rejected, Submit
from callpool.manager.core.records import (
    AttemptStarted,
    Job,
    JobAccepted,
    JobEnded,
    JobWaits,
    Kept,
    Record,
    fingerprint,
)
from callpool.manager.core.requests import Now
from callpool.manager.core.retry import Attempt, RetryRules

from .attempts import BUSY, bench, fail, wake
from .build import Bench, to_clients, to_workers

FULL = Fault(code="journal_unavailable", message="there is no room")


def pool(**more: Any) -> Bench:
    return bench(pool=4, accounts={"a": 2, "b": 2}, journaled=True, retry_rules=RetryRules(attempts=3), **more)


def records(effects: list[Effect]) -> list[Record]:
    return [each.record for each in effects if type(each) is ToJournal]  # type: ignore[misc]


def rejected(effects: list[Effect]) -> list[tuple[str, str]]:
    """(client, code) of each refusal."""
    return [
        (each.client, each.message.fault.code)
        for each in effects
        if type(each) is ToClient and type(each.message) is Rejected
    ]


def left(state: str = "queued", **more: Any) -> Job:
    """A job `r` of an earlier run."""
    asked = more.pop("asked", {})
    submit = Submit("r", asked.pop("account", "a"), "m", b"payload", durable=True, **asked)
    tries = 0 if state == "queued" and "tries" not in more else more.pop("tries", 1)
    usual = {
        "number": 1, "request_id": "r", "name": "c", "fingerprint": fingerprint(submit), "session_id": "s", "state": state,
        "attempt": tries and 7, "tries": tries, "accepted_at": 1_000.0, "provider": submit.provider, "model": "m", "submit": submit,
    }  # fmt: skip
    return Job(**{**usual, **more})


def recover(b: Bench, *jobs: Job) -> list[Effect]:
    return b.do(JobsRecovered(list(jobs), 7))


class TestLife:
    def test_records_come_before_what_follows_them(self) -> None:
        b = pool()
        effects = b.submit("r", durable=True)
        assert [type(each).__name__ for each in effects] == ["ToJournal", "ToClient", "ToJournal", "ToWorker"]
        assert [type(each) for each in records(effects)] == [JobAccepted, AttemptStarted]
        b.start("r")
        effects = b.finish("r", body=b"answer")
        [ended] = records(effects)
        assert isinstance(ended, JobEnded)
        assert (ended.was, ended.state, ended.body) == ("started", "completed", b"answer")
        assert type(effects[-1]) is ToClient

    def test_a_retry_is_recorded_with_what_is_left(self) -> None:
        b = pool()
        b.submit("r", durable=True)
        [waits] = records(fail(b, BUSY))
        assert isinstance(waits, JobWaits)
        assert (waits.was, waits.kept.tries_here, [each.code for each in waits.kept.tried]) == (
            "started",
            1,
            ["provider_error"],
        )

    def test_it_outlives_its_client_and_is_nobodys_to_cancel_but_the_operators(self) -> None:
        b = pool()
        b.submit("r", durable=True)
        assert b.do(ClientGone("c")) == []
        assert b.do(CancelAsked("stranger", "r")) == []
        assert b.core.by_client == {}
        b.start("r")
        assert [type(each) for each in records(b.finish("r"))] == [JobEnded]

    def test_a_second_submit_joins_it_and_both_hear_of_its_end(self) -> None:
        b = pool()
        b.submit("r", durable=True)
        joined = b.submit("r", durable=True, client="other", acknowledge=True)
        assert [type(each) for each in to_clients(joined)] == [Accepted]
        assert rejected(b.submit("r", durable=True, client="third", payload=b"else")) == [("third", "request_conflict")]
        b.start("r")
        told = [each.client for each in b.finish("r") if type(each) is ToClient and type(each.message) is Done]
        assert told == ["c", "other"]

    def test_without_a_journal_none_is_taken(self) -> None:
        b = bench()
        assert rejected(b.submit("r", durable=True)) == [("c", "journal_unavailable")]


class TestRecovery:
    def test_what_had_not_begun_goes_on_under_higher_numbers(self) -> None:
        b = pool()
        effects = recover(b, left())
        [order] = to_workers(effects)
        assert isinstance(order, Dispatch)
        assert (order.attempt, order.payload) == (8, b"payload")
        assert [type(each) for each in records(effects)] == [AttemptStarted]

    def test_what_had_begun_is_in_doubt(self) -> None:
        b = pool()
        [ended] = records(recover(b, left("started")))
        assert isinstance(ended, JobEnded)
        assert (ended.was, ended.attempt, ended.state) == ("started", 7, "interrupted")
        assert b.core.requests == {}

    def test_with_leave_it_is_called_again_and_the_lost_call_counts(self) -> None:
        b = pool()
        effects = recover(b, left("started", asked={"retry_in_doubt": True}))
        waits, started = records(effects)
        assert isinstance(waits, JobWaits)
        assert isinstance(started, AttemptStarted)
        assert (waits.kept.tries_here, [each.code for each in waits.kept.tried]) == (1, ["worker_lost"])
        again = msgspec.structs.replace(
            left("started", asked={"retry_in_doubt": True}), kept=waits.kept, tries=2, attempt=8
        )
        waits, _started = records(recover(pool(), again))
        assert isinstance(waits, JobWaits)
        assert waits.kept.tries_here == 2
        third = msgspec.structs.replace(again, kept=waits.kept, tries=3, attempt=9)
        [ended] = records(recover(pool(), third))
        assert isinstance(ended, JobEnded), "three calls are all that it may have"

    @pytest.mark.parametrize("most", [1, 2])
    def test_max_attempts_hold_over_crashes(self, most: int) -> None:
        asked = {"retry_in_doubt": True, "max_attempts": most}
        found = records(recover(pool(), left("started", asked=dict(asked))))
        assert [type(each) for each in found] == ([JobEnded] if most == 1 else [JobWaits, AttemptStarted])

    def test_three_lost_calls_quarantine_it_however_many_it_may_have(self) -> None:
        lost = [Attempt(n, "a", "m", None, True, 0.0, "worker_lost", "gone", 0.0) for n in (1, 2)]
        asked = {"retry_in_doubt": True, "max_attempts": 9}
        found = records(recover(pool(), left("started", asked=asked, kept=Kept("a", "m", tried=lost))))
        assert [type(each) for each in found] == [JobEnded]

    def test_fallbacks_that_are_gone_are_left_out(self) -> None:
        b = pool()
        recover(b, left(tries=1, kept=Kept("gone", "m", [("gone", "m"), ("b", "x"), ("b", "m")])))
        request = b.core.requests["r"]
        assert request.provider == "a"
        assert request.route is not None
        assert request.route.fallbacks == [("b", "m")]
        b.start("r")
        b.finish("r", fault=Fault(code="model_gone", message="gone", details={"scope": "model", "retryable": False}))
        assert b.core.requests["r"].provider == "b"

    def test_an_account_that_can_take_nothing_is_left_for_a_fallback_that_there_is(self) -> None:
        rules = LedgerRules(accounts={"a": AccountRules(limits=Limits(concurrency=2, tokens_per_day=1))})
        b = pool(rules=rules)
        asked = {"tokens": Usage(50, 50)}
        effects = recover(b, left(asked=asked, kept=Kept("a", "m", [("gone", "m"), ("b", "m")])))
        [order] = to_workers(effects)
        assert isinstance(order, Dispatch)
        assert order.provider == "b"

    def test_one_whose_provider_is_gone_waits_and_can_be_cancelled(self) -> None:
        b = pool()
        assert records(recover(b, left(asked={"account": "gone"}))) == []
        shown = b.core.show("r", Now(b.time, b.time))
        assert shown is not None
        assert "gone" in (shown.blocked or "")
        [ended] = records(b.do(CancelAsked(None, "r")))
        assert isinstance(ended, JobEnded)
        assert ended.state == "cancelled"

    def test_a_blocked_one_waits_no_longer_than_it_said(self) -> None:
        b = pool()
        recover(b, left(asked={"account": "gone", "queue_timeout": 5.0}))
        [ended] = records(wake(b))
        assert isinstance(ended, JobEnded)
        assert ended.state == "timeout"
        assert b.core.requests == {}

    def test_the_wait_for_a_first_call_is_no_bound_of_later_ones(self) -> None:
        b = pool()
        b.time = 90_000.0
        recover(b, left(tries=1, asked={"queue_timeout": 5.0}))
        assert b.state("r") == "allocated"

    def test_its_tokens_are_reckoned_as_those_of_a_new_one(self) -> None:
        b = pool()
        recover(b, left())
        fresh = pool()
        fresh.submit("r", payload=b"payload", durable=True)
        assert b.core.requests["r"].tokens == fresh.core.requests["r"].tokens != Usage()


class TestResolving:
    def test_again_with_all_of_its_time_and_calls(self) -> None:
        b = pool()
        kept = Kept(
            "a", "m", remaining=0.4, tries_here=3, tried=[Attempt(1, "a", "m", 1, True, 0.0, "worker_lost", "x", 0.0)]
        )
        effects = b.do(JobResolved(left("interrupted", kept=kept, tries=3), retry=True))
        [order] = to_workers(effects)
        assert isinstance(order, Dispatch)
        assert order.timeout == 10.0
        waits, _started = records(effects)
        assert isinstance(waits, JobWaits)
        assert (waits.was, waits.kept.tries_here, waits.kept.tried) == ("interrupted", 0, [])

    def test_given_up(self) -> None:
        [ended] = records(pool().do(JobResolved(left("interrupted"), retry=False)))
        assert isinstance(ended, JobEnded)
        assert (ended.was, ended.state) == ("interrupted", "error")

    @pytest.mark.parametrize("state", ["queued", "completed"])
    def test_only_what_is_in_doubt(self, state: str) -> None:
        [answer] = pool().do(JobResolved(left(state), retry=True))
        assert getattr(answer, "fault").code == "illegal_move"  # noqa: B009


class TestDisk:
    def test_what_was_not_recorded_was_never_taken(self) -> None:
        b = pool()
        b.submit("r", durable=True)
        effects = b.do(JournalDown(FULL, ["r"], []))
        assert rejected(effects) == [("c", "journal_unavailable")]
        assert to_workers(effects) == []
        assert b.core.requests == {}
        assert b.core.ledger.holds == {}
        assert rejected(b.submit("s", durable=True)) == [("c", "journal_unavailable")]

    def test_who_submitted_hears_of_it_though_it_has_ended_meanwhile(self) -> None:
        b = pool()
        b.submit("r", durable=True)
        b.start("r")
        b.finish("r")
        assert rejected(b.do(JournalDown(FULL, ["r"], [], {"r": ["c", "d"]}))) == [
            ("c", "journal_unavailable"),
            ("d", "journal_unavailable"),
        ]

    def test_a_start_that_was_not_recorded_is_taken_back_until_it_can_be(self) -> None:
        b = pool()
        recover(b, left())
        assert b.do(JournalDown(FULL, [], ["r"])) == []
        assert (b.state("r"), b.core.ledger.holds) == ("queued", {})
        [started] = records(b.do(JournalUp()))
        assert isinstance(started, AttemptStarted)
        assert (started.was, started.tries) == (0, 1)

    def test_in_a_drain_it_is_parked(self) -> None:
        b = pool()
        recover(b, left())
        b.do(DrainAsked(30.0))
        b.do(JournalDown(FULL, [], ["r"]))
        assert b.core.requests == {}

    def test_live_calls_go_on(self) -> None:
        b = pool()
        b.do(JournalDown(FULL))
        assert [type(each) for each in to_workers(b.submit("live"))] == [Dispatch]

    def test_an_id_that_the_journal_has_leads_to_what_came_of_it(self) -> None:
        b = pool()
        b.submit("r", durable=True, payload=b"payload")
        done = left("completed", ended_at=1_001.0, fingerprint=fingerprint(Submit("r", "a", "m", b"payload")))
        effects = b.do(JobKnown("r", done, done.fingerprint, ["c", "gone meanwhile"]))
        assert [each for each in effects if type(each) is FromJournal] == [
            FromJournal("c", "r"), FromJournal("gone meanwhile", "r"),
        ]  # fmt: skip
        assert b.core.requests == {}
        other = b.do(JobKnown("r", done, b"another", ["c"]))
        assert rejected(other) == [("c", "request_conflict")]


class TestDrain:
    def test_what_waits_is_parked_and_a_call_that_is_cut_is_in_doubt(self) -> None:
        b = bench(pool=1, accounts={"a": 1}, journaled=True)
        b.submit("r", durable=True)
        b.submit("waits", durable=True)
        b.start("r")
        assert records(b.do(DrainAsked(0.0))) == []
        assert "waits" not in b.core.requests
        [ended] = records(b.finish("r", fault=Fault(code="cancelled", message="cancelled")))
        assert isinstance(ended, JobEnded)
        assert (ended.state, ended.fault.code if ended.fault else None) == ("interrupted", "interrupted")

    def test_what_had_not_begun_or_may_be_called_again_is_parked_at_the_cut(self) -> None:
        b = bench(pool=2, accounts={"a": 2}, journaled=True)
        b.submit("sent", durable=True)
        b.submit("may", durable=True, retry_in_doubt=True)
        b.start("may")
        b.do(DrainAsked(0.0))
        cancelled = Fault(code="cancelled", message="cancelled")
        found = records(b.finish("sent", fault=cancelled)) + records(b.finish("may", fault=cancelled))
        assert [type(each) for each in found] == [JobWaits, JobWaits]
        assert b.core.requests == {}
