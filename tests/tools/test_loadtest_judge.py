"""The figures of a load test, from hand-made logs: what they say at the edges, and that they agree with the fake's own limits."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.tools.loadtest import timeline
from callpool.tools.loadtest.judge import Figures, Outcome, judge, quantile, shares_while_all_wait
from callpool.tools.loadtest.scenario import Limits, charge, message
from callpool.tools.testing import fake_limits
from callpool.tools.testing.fake_records import CallRecord, peak_active

WIDE = Limits(concurrency=10, rpm=1_000, tpm=1_000_000)
MAX_TOKENS = 100
CHARGED = charge(message(1, 1), MAX_TOKENS)

moments = st.floats(0, 100, allow_nan=False)
spans = st.lists(st.tuples(moments, moments))


def call(number: int, arrived: float, ended: float | None, *, client: int = 1, refused: bool = False) -> CallRecord:
    """One call of request `number`, answered or refused."""
    return CallRecord(
        server="1:1",
        number=number,
        connection=1,
        model="m",
        stream=False,
        digest="",
        last_message=message(client, number),
        key_tail="",
        arrived=arrived,
        active_at_arrival=1,
        ended=arrived if refused else ended,
        status=429 if refused else 200,
        outcome="rejected" if refused else "answered",
    )


def told(number: int, submitted: float, ended: float, error: str | None = None, *, client: int = 1) -> Outcome:
    return Outcome(client=client, number=number, submitted=submitted, ended=ended, error=error)


def figures(records: list[CallRecord], outcomes: list[Outcome], limits: Limits = WIDE) -> Figures:
    return judge(records, outcomes, limits, MAX_TOKENS).figures


# Open calls over time.


def test_utilisation_is_the_area_under_the_open_calls() -> None:
    assert timeline.utilisation([(0, 2), (1, 3)], 0, 3, 2) == pytest.approx(4 / 6)
    assert timeline.utilisation([(0, 2), (1, 3)], 1, 2, 2) == 1.0
    assert timeline.utilisation([(-5, 20)], 0, 10, 2) == 0.5
    assert timeline.utilisation([], 0, 10, 2) == 0.0
    assert timeline.utilisation([(0, 1)], 5, 5, 2) is None, "no time passed"


def test_more_than_the_limit_makes_up_for_nothing() -> None:
    assert timeline.utilisation([(0, 5), (0, 5), (0, 5)], 0, 10, 2) == 0.5


@given(spans, moments, moments, st.integers(1, 5))
def test_utilisation_is_a_share(calls: list[tuple[float, float]], begin: float, end: float, limit: int) -> None:
    found = timeline.utilisation(calls, begin, end, limit)
    assert found is None if end <= begin else (found is not None and 0.0 <= found <= 1.0)


@given(spans, st.integers(1, 50))
def test_pieces_of_time_add_up_to_the_area(calls: list[tuple[float, float]], count: int) -> None:
    pieces = timeline.levels(calls, 0, 100, count)
    assert sum(pieces) * 100 / count == pytest.approx(timeline.area(calls, 0, 100, 1_000_000), abs=1e-6)


def test_a_call_that_ends_when_another_begins_is_not_open_with_it() -> None:
    assert timeline.peak([(0, 1), (1, 2), (2, 3)]) == 1
    assert timeline.peak([(0, 1.5), (1, 2), (1, 1)]) == 2
    assert timeline.peak([]) == 0


def test_moments_are_counted_by_pieces_and_none_is_lost_at_the_edges() -> None:
    assert timeline.tally([0, 1, 9.99, 10], 0, 10, 2) == [2, 2]
    assert timeline.tally([-1, 11], 0, 10, 2) == [0, 0]
    assert timeline.tally([0], 0, 0, 2) == [0, 0]


# A run's figures.


def test_a_run_without_a_single_call() -> None:
    empty = figures([], [])
    assert (empty.utilisation, empty.rejections, empty.failed, empty.requests, empty.seconds) == (None, 0, 0, 0, 0.0)
    assert empty.waits.p50 is None
    assert empty.clients == []
    unreached = figures([], [told(1, 0.0, 3.0, "connection")])
    assert (unreached.utilisation, unreached.failed, unreached.errors) == (None, 1, {"connection": 1})
    assert unreached.clients[0].share == 0.0


def test_a_run_in_which_all_is_refused() -> None:
    limits = Limits(concurrency=1, rpm=1_000, tpm=CHARGED - 1)
    records = [call(1, 0.0, None, refused=True), call(1, 1.0, None, refused=True)]
    found = figures(records, [told(1, 0.0, 2.0, "http_429")], limits)
    assert found.utilisation == 0.0
    assert found.rejections == 2
    assert found.rejections_by_limit == {"concurrency": 0, "rpm": 0, "tpm": 2}
    assert (found.done, found.failed, found.peak_concurrency) == (0, 1, 0)
    assert found.waits.max is None
    assert found.waiting_seconds == 2.0


def test_utilisation_counts_until_no_request_is_left_to_begin() -> None:
    limits = Limits(concurrency=1, rpm=1_000, tpm=1_000_000)
    records = [call(1, 0.0, 4.0), call(2, 5.0, 100.0)]
    found = figures(records, [told(1, 0.0, 4.0), told(2, 0.0, 100.0)], limits)
    assert found.waiting_seconds == 5.0
    assert found.utilisation == pytest.approx(4 / 5), "the long tail of the last call counts neither way"


def test_a_request_that_never_begins_waits_until_it_fails() -> None:
    limits = Limits(concurrency=1, rpm=1_000, tpm=1_000_000)
    records = [call(1, 0.0, 2.0), call(2, 1.0, None, refused=True)]
    found = figures(records, [told(1, 0.0, 2.0), told(2, 0.0, 8.0, "http_429")], limits)
    assert found.waiting_seconds == 8.0
    assert found.utilisation == pytest.approx(2 / 8)
    assert found.rejections_by_limit == {"concurrency": 1, "rpm": 0, "tpm": 0}


def test_a_wait_ends_with_the_first_admission() -> None:
    records = [call(1, 1.0, None, refused=True), call(1, 3.0, 4.0), call(1, 5.0, 6.0), call(2, 2.0, 3.0)]
    found = figures(sorted(records, key=lambda each: each.arrived), [told(1, 0.5, 6.0), told(2, 1.0, 3.0)])
    assert (found.waits.p50, found.waits.max) == (1.0, 2.5)
    assert found.calls == 4


def test_refusals_after_twenty_seconds_are_a_share_of_the_calls_since_then() -> None:
    records = [
        call(1, 0.0, None, refused=True),
        call(1, 19.0, None, refused=True),
        call(1, 21.0, None, refused=True),
        call(1, 22.0, 23.0),
        call(2, 23.0, 24.0),
        call(3, 24.0, 25.0),
    ]
    assert figures(records, [told(1, 0, 23)]).rejections_after_20s == 0.25
    assert figures(records[:2], [told(1, 0, 23)]).rejections_after_20s is None


def test_the_minute_is_a_sliding_window() -> None:
    found = figures([call(number, at, at + 1) for number, at in enumerate((0.0, 30.0, 59.9, 60.0), 1)], [])
    assert found.requests_in_60s == 3
    assert found.tokens_in_60s == 3 * CHARGED


def test_each_refusal_is_put_to_the_limit_that_was_used_up() -> None:
    limits = Limits(concurrency=2, rpm=3, tpm=1_000_000)
    records = [
        call(1, 0.0, 10.0),
        call(2, 1.0, 10.0),
        call(3, 2.0, None, refused=True),  # two are open
        call(3, 11.0, 12.0),
        call(4, 13.0, None, refused=True),  # three within the minute
        call(4, 60.5, 61.0),
    ]
    assert figures(records, [], limits).rejections_by_limit == {"concurrency": 1, "rpm": 1, "tpm": 0}


@given(st.integers(0, 2**32 - 1))
def test_the_judge_puts_refusals_to_the_limits_that_the_fake_refused_by(chosen: int) -> None:
    draw = random.Random(chosen)
    limits = Limits(concurrency=draw.randint(1, 6), rpm=draw.randint(1, 30), tpm=CHARGED * draw.randint(1, 30))
    enforced = fake_limits.Limits(concurrency=limits.concurrency, rpm=limits.rpm, tpm=limits.tpm)
    records: list[CallRecord] = []
    expected = {"concurrency": 0, "rpm": 0, "tpm": 0}
    now = 0.0
    running: list[float] = []
    for _ in range(80):
        now += draw.expovariate(1.0) + 1e-6
        for ending in [each for each in running if each <= now]:
            running.remove(ending)
            enforced.release("key")
        refused = enforced.admit("key", CHARGED, now)
        ended = now + draw.uniform(0.1, 8)
        records.append(call(1, now, ended, refused=refused is not None))
        if refused is None:
            running.append(ended)
        elif refused.limit_name != "tpd":
            expected[refused.limit_name] += 1
    found = figures(records, [], limits)
    assert found.rejections_by_limit == expected
    assert found.peak_concurrency == peak_active([each for each in records if each.outcome == "answered"])
    assert found.requests_in_60s <= limits.rpm
    assert found.tokens_in_60s <= limits.tpm


def test_a_client_is_told_what_it_got_and_when() -> None:
    outcomes = [
        told(1, 10.0, 12.0),
        told(2, 10.0, 15.0, "http_429"),
        told(1, 10.0, 11.0, client=2),
        told(2, 10.0, 13.0, client=2),
    ]
    records = [call(1, 10.5, 12.0), call(1, 10.6, 11.0, client=2), call(2, 12.0, 13.0, client=2)]
    first, second = figures(records, outcomes).clients
    assert (first.requests, first.done, first.failed, first.finished) == (2, 1, 1, 5.0)
    assert (second.requests, second.done, second.failed, second.finished) == (2, 2, 0, 3.0)
    assert first.share == pytest.approx(1 / 3)
    assert first.wait == 0.5


def test_shares_count_while_every_client_has_something_left_to_begin() -> None:
    outcomes = {1: [told(n, 0, 9) for n in (1, 2, 3, 4)], 2: [told(n, 0, 9, client=2) for n in (1, 2)]}
    begun = {(1, 1): 0.0, (2, 1): 1.0, (1, 2): 2.0, (1, 3): 3.0, (2, 2): 4.0, (1, 4): 5.0}
    assert shares_while_all_wait(outcomes, begun) == {1: 0.75, 2: 0.25}
    assert shares_while_all_wait({}, {}) == {}
    assert shares_while_all_wait({1: [told(1, 0, 1)]}, {(1, 1): 0.0}) == {}


def test_quantiles_are_values_that_were_seen() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert [quantile(ordered, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]
    assert quantile([7.0], 0.5) == 7.0
    assert quantile([], 0.5) is None


def test_the_json_is_json() -> None:
    def no_constant(name: str) -> Any:
        raise AssertionError(name)

    found = figures([call(1, 0.0, 1 / 3)], [told(1, 0.0, 1 / 3)]).as_json()
    assert json.loads(json.dumps(found), parse_constant=no_constant) == found
    assert found["seconds"] == 0.3333
