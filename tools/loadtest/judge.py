"""The figures of a run. The fake provider's log is the judge; clients tell only when they submitted, and what came of it. Pure.

    submitted ──── waits ────► admitted by the provider ──── open ────► ended
                 └ refusals (429) on the way: how often, and by which limit

The same function judges every run. A request has *begun* when the provider first admitted it.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any, Literal

import msgspec

from callpool.tools.loadtest import timeline
from callpool.tools.loadtest.scenario import Limits, charge, named
from callpool.tools.loadtest.timeline import Span
from callpool.tools.testing.fake_records import CallRecord

WINDOW = 60.0
"""Seconds of the limits of a minute; a sliding window, as the fake has it."""
LEARNING = 20.0
"""Seconds from the first call after which refusals are counted once more: what was wrong about a limit is learned by then."""

Cause = Literal["concurrency", "rpm", "tpm"]
CAUSES: tuple[Cause, ...] = ("concurrency", "rpm", "tpm")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a client tells of one request. Times are those of the log: `time.monotonic()`."""

    client: int
    number: int
    submitted: float
    ended: float
    error: str | None
    """None for an answer; else the code of the error."""


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from submission to the provider's admission, of the requests that were admitted; None where none was."""

    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None


class ClientFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one client got."""

    client: int
    requests: int
    done: int
    failed: int
    share: float
    """Of all answers of the run, 0 to 1."""
    share_while_all_wait: float | None
    """Of the calls that began while every client still had requests that had not, 0 to 1; None where there were none."""
    wait: float | None
    """Median, in seconds; None where none of its requests was admitted."""
    finished: float
    """Seconds from the run's begin to the end of its last request."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A run in numbers: the `--json` of it."""

    utilisation: float | None
    """Share of the provider's concurrency that was in use while requests still waited, 0 to 1; None where none ever did."""
    rejections: int
    """Calls that the provider refused with 429."""
    rejections_by_limit: dict[Cause, int]
    rejections_after_20s: float | None
    """Share of the calls since 20 s after the first one that were refused, 0 to 1; None where there were none."""
    requests: int
    done: int
    failed: int
    """Requests that ended in an error for their client."""
    errors: dict[str, int]
    """Their codes."""
    calls: int
    """Calls that the provider saw, refused ones included."""
    seconds: float
    """From the first submission to the end of the last request."""
    waiting_seconds: float
    """The part of it in which requests had not begun: what `utilisation` is about."""
    waits: Waits
    peak_concurrency: int
    """Most admitted calls that were open at once."""
    requests_in_60s: int
    """Most requests that were admitted within any 60 seconds."""
    tokens_in_60s: int
    """Most tokens that they were charged, in advance."""
    clients: list[ClientFigures]

    def as_json(self) -> dict[str, Any]:
        """As JSON has it, fractions rounded to what can be meant."""
        plain: dict[str, Any] = _rounded(msgspec.to_builtins(self))
        return plain


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The figures, and what is drawn of them. Times in seconds since the run's begin."""

    figures: Figures
    spans: list[Span]
    """Admitted calls."""
    refusals: list[float]
    """When calls were refused with 429."""
    waits: list[float]
    """Seconds, sorted."""


def judge(records: Sequence[CallRecord], outcomes: Sequence[Outcome], limits: Limits, max_tokens: int) -> Verdict:
    """Judge a run by the provider's log. `records` in order of arrival; `max_tokens` is the token limit of each request."""
    begin = min([record.arrived for record in records] + [outcome.submitted for outcome in outcomes], default=0.0)
    end = max([outcome.ended for outcome in outcomes], default=begin)
    admitted = [record for record in records if record.outcome != "rejected"]
    refused = [record for record in records if record.status == 429 and record.outcome == "rejected"]
    spans = [(record.arrived, end if record.ended is None else record.ended) for record in admitted]
    begun = first_admissions(admitted)
    waits = sorted(
        max(0.0, begun[key] - outcome.submitted)
        for outcome in outcomes
        if (key := (outcome.client, outcome.number)) in begun
    )
    from_, until = waiting_time(records, outcomes, begun)
    sweep = _sweep(records, limits, max_tokens)
    figures = Figures(
        utilisation=timeline.utilisation(spans, from_, until, limits.concurrency),
        rejections=len(refused),
        rejections_by_limit={cause: sweep.causes[cause] for cause in CAUSES},
        rejections_after_20s=_late_share(records, refused),
        requests=len(outcomes),
        done=sum(outcome.error is None for outcome in outcomes),
        failed=sum(outcome.error is not None for outcome in outcomes),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
        calls=len(records),
        seconds=end - begin,
        waiting_seconds=max(0.0, until - from_),
        waits=Waits(
            p50=quantile(waits, 0.5), p95=quantile(waits, 0.95), p99=quantile(waits, 0.99), max=quantile(waits, 1)
        ),
        peak_concurrency=timeline.peak(spans),
        requests_in_60s=sweep.requests,
        tokens_in_60s=sweep.tokens,
        clients=_clients(outcomes, begun, begin),
    )
    return Verdict(
        figures=figures,
        spans=[(start - begin, stop - begin) for start, stop in spans],
        refusals=[record.arrived - begin for record in refused],
        waits=waits,
    )


def first_admissions(admitted: Iterable[CallRecord]) -> dict[tuple[int, int], float]:
    """When each request (client, number) began; calls of nobody's request are left out."""
    begun: dict[tuple[int, int], float] = {}
    for record in admitted:
        key = named(record.last_message)
        if key is not None:
            begun.setdefault(key, record.arrived)
    return begun


def waiting_time(
    records: Sequence[CallRecord], outcomes: Iterable[Outcome], begun: Mapping[tuple[int, int], float]
) -> Span:
    """From the first call to the moment when no request was left to begin: each has begun, or ended without ever beginning."""
    if not records:
        return 0.0, 0.0
    first = records[0].arrived
    last = [begun.get((outcome.client, outcome.number), outcome.ended) for outcome in outcomes]
    return first, max(last, default=first)


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of the sorted values do not exceed; None of none."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


def _late_share(records: Sequence[CallRecord], refused: Sequence[CallRecord]) -> float | None:
    if not records:
        return None
    late = records[0].arrived + LEARNING
    calls = sum(record.arrived >= late for record in records)
    return sum(record.arrived >= late for record in refused) / calls if calls else None


class _Sweep(msgspec.Struct, kw_only=True):
    causes: Counter[str]
    requests: int = 0
    tokens: int = 0


def _sweep(records: Sequence[CallRecord], limits: Limits, max_tokens: int) -> _Sweep:
    """Go through the log in order of arrival: what each refusal met, and the fullest 60 seconds.

    The log does not name the limit that refused a call. It is the first in the provider's own order that was used up then.
    """
    found = _Sweep(causes=Counter())
    open_until: list[float] = []
    minute: deque[tuple[float, int]] = deque()
    tokens = 0
    for record in records:
        while open_until and open_until[0] <= record.arrived:
            heapq.heappop(open_until)
        while minute and minute[0][0] <= record.arrived - WINDOW:
            tokens -= minute.popleft()[1]
        if record.outcome != "rejected":
            heapq.heappush(open_until, float("inf") if record.ended is None else record.ended)
            charged = charge(record.last_message, max_tokens)
            minute.append((record.arrived, charged))
            tokens += charged
            found.requests, found.tokens = max(found.requests, len(minute)), max(found.tokens, tokens)
        elif record.status == 429:
            full = len(open_until) >= limits.concurrency
            found.causes["concurrency" if full else "rpm" if len(minute) >= limits.rpm else "tpm"] += 1
    return found


def _clients(outcomes: Iterable[Outcome], begun: Mapping[tuple[int, int], float], begin: float) -> list[ClientFigures]:
    of_client: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        of_client.setdefault(outcome.client, []).append(outcome)
    answers = sum(outcome.error is None for own in of_client.values() for outcome in own)
    contended = shares_while_all_wait(of_client, begun)
    figures = []
    for client, own in sorted(of_client.items()):
        done = sum(outcome.error is None for outcome in own)
        waits = sorted(begun[client, each.number] - each.submitted for each in own if (client, each.number) in begun)
        figures.append(
            ClientFigures(
                client=client,
                requests=len(own),
                done=done,
                failed=len(own) - done,
                share=done / answers if answers else 0.0,
                share_while_all_wait=contended.get(client),
                wait=quantile(waits, 0.5),
                finished=max(outcome.ended for outcome in own) - begin,
            )
        )
    return figures


def shares_while_all_wait(
    of_client: Mapping[int, Sequence[Outcome]], begun: Mapping[tuple[int, int], float]
) -> dict[int, float]:
    """Client → its share of the calls that began before any client had nothing left to begin. Empty where there were none.

    Over a whole run each client gets what it asks for, early or late; what each gets while all want more is what a queue decides.
    """
    moments = {
        client: [begun.get((client, outcome.number), outcome.ended) for outcome in own]
        for client, own in of_client.items()
    }
    until = min((max(own) for own in moments.values()), default=0.0)
    counts = {
        client: sum(begun.get((client, outcome.number), until) < until for outcome in own)
        for client, own in of_client.items()
    }
    total = sum(counts.values())
    return {client: count / total for client, count in counts.items()} if total else {}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
