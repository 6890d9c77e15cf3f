"""The matrix: every fault of the fake provider, plain and streamed, called in several ways at once.

    Case ──submit──► supervisor ──► worker ──► fake         all of them together; each fault and mode on an account of its own,
      └─► Seen ◄── the client's end, the record, the fake's log     so that each has its own connections and its own retries

The fake's log is the witness: it finds the requests of a case by their text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import callpool
from callpool.tools.testing.fake_provider import FAULTS, CallRecord, FakeProviderProcess
from tests.acceptance.running import eventually
from tests.outcomes import OUTCOMES, TOO_LONG, WAITS_TOO_LONG, Outcome, further

DEADLINE = 1.0
"""Seconds of a deadline that is meant to be reached: time enough for the request to be at the fake before."""
PATIENCE = 10.0
"""Seconds of a deadline that is not reached: more than a refusal whose words do not come is waited for (5 s), and less than
that and the pause that it asks for (7 s)."""
LONG_HANG = 60.0
"""Seconds after which one of some hundred requests hangs."""
ATTEMPTS = 3
STORM = ATTEMPTS - 1
"""Faults until the storm has passed."""
HUGE = 32 << 20
"""Bytes of faults that are about size: more than is taken of an answer (16 MiB) or of an event (1 MiB)."""

WAYS: dict[str, dict[str, Any]] = {
    "once": {"max_attempts": 1},
    "again": {"max_attempts": ATTEMPTS},
    "in doubt": {"retry_in_doubt": True, "max_attempts": ATTEMPTS},
    "storm": {"retry_in_doubt": True, "max_attempts": ATTEMPTS},
}
"""What a request says of further calls. In a storm the fault is at its first calls only. Without a number of its own a request
would wait for ever where a limit refuses it for ever."""
STOPPING = frozenset({"quota", "unauthorized"})
"""Faults after which an account serves nothing any more."""
APART = STOPPING.union(WAITS_TOO_LONG, {"limit_tpd"})
"""Faults that keep an account's other requests waiting, too: each way has an account of its own."""
IMPATIENT = 3.0
"""Seconds that a request waits in the queue where the pause is longer than a test."""

SILENCES = {
    **dict.fromkeys(
        ("silence", "silent_stream", "header_drip", "body_drip", "comment_drip", "empty_drip"), "first_token"
    ),
    "stall": "idle",
}
"""Which of a stream's timeouts notices the fault; the whole deadline, which leaves no time for another call, ends the others."""


class Case(NamedTuple):
    """One request."""

    fault: str
    stream: bool
    way: str
    silence: str | None = None
    """The timeout that is to end it, where that is not the whole deadline."""

    @property
    def account(self) -> str:
        """Each fault and mode has its own: calls and retries of one touch no other."""
        return account(self.fault, stream=self.stream, way=self.way)

    @property
    def text(self) -> str:
        """What tells its requests from all others in the fake's log."""
        return " ".join((self.fault, mode(stream=self.stream), self.way, self.silence or "total"))

    @property
    def ends_late(self) -> bool:
        """Whether the whole deadline is to end it."""
        return self.silence is None and outcome_of(self.fault, stream=self.stream) is callpool.RequestTimeout


class Seen(NamedTuple):
    """What became of a request."""

    outcome: Outcome
    requests: int
    """That the fake saw."""
    recorded: int
    """Calls that reached the provider, by the record."""


class Told(NamedTuple):
    """The same with what the table prints besides."""

    seen: Seen
    seconds: float
    error: callpool.CallpoolError | None


def mode(*, stream: bool) -> str:
    """As people say it."""
    return "stream" if stream else "plain"


def account(fault: str, *, stream: bool, way: str = "once") -> str:
    """The name of its account."""
    name = f"{fault}-{mode(stream=stream)}"
    return f"{name}-{way.replace(' ', '-')}" if fault in APART else name


def accounts(base_url: str, **settings: Any) -> dict[str, Any]:
    """One account for each fault and mode, all at one fake."""
    one = {"kind": "openai", "base_url": base_url, **settings}
    return {account(fault, stream=stream, way=way): one for fault in FAULTS for stream in (False, True) for way in WAYS}


def cases() -> list[Case]:
    """The matrix."""
    return [Case(fault, stream, way) for way in WAYS for fault in FAULTS for stream in (False, True)]


def silences() -> list[Case]:
    """Streams that are silent, and for which silence is the limit."""
    return [Case(fault, True, way, silence) for way in WAYS for fault, silence in SILENCES.items()]


def outcome_of(fault: str, *, stream: bool) -> Outcome:
    """What a call with the fault comes to. An endless stream is over before it reaches its bound of 64 MiB, seconds later."""
    return callpool.RequestTimeout if (fault, stream) == ("sse_endless", True) else OUTCOMES[fault][stream]


def promised(case: Case) -> Seen:
    """What the docs promise of it."""
    outcome = outcome_of(case.fault, stream=case.stream)
    what = "doubt" if case.silence else further(case.fault, stream=case.stream)
    if case.fault in WAITS_TOO_LONG and case.way != "once":
        return Seen(callpool.RequestTimeout, 1, 1)  # it is queued again, and has no patience
    repeated = (what == "safe" and case.way != "once") or (what == "doubt" and case.way in ("in doubt", "storm"))
    calls = ATTEMPTS if repeated else 1
    return Seen("stop" if case.way == "storm" and repeated else outcome, calls, calls)


def submit(client: callpool.Client, case: Case) -> callpool.Handle:
    """Ask for it."""
    fake: dict[str, Any] = {"fault": case.fault}
    if case.ends_late:
        fake["chunk_delay"] = 0.01
    if case.fault in TOO_LONG:
        fake["size"] = HUGE
    if case.way == "storm":
        fake["fault_times"] = STORM
    return ask(
        client,
        case.text,
        provider=case.account,
        stream=case.stream,
        timeout=DEADLINE if case.ends_late else PATIENCE,
        fake=fake,
        **{f"{case.silence}_timeout": DEADLINE} if case.silence else {},
        **{"queue_timeout": IMPATIENT} if case.fault in WAITS_TOO_LONG else {},
        **WAYS[case.way],
    )


def ask(client: callpool.Client, text: str, **request: Any) -> callpool.Handle:
    """Submit a request that the fake's log can be searched for."""
    return client.submit(**{"model": "m", "messages": [{"role": "user", "content": text}], **request})


class Matrix:
    """Requests under way together, and what became of them."""

    def __init__(self, client: callpool.Client, fake: FakeProviderProcess) -> None:
        self._client = client
        self._fake = fake
        self._handles: dict[Case, callpool.Handle] = {}

    def begin(self, asked: Iterable[Case]) -> None:
        """Make all of these requests at once."""
        self._handles |= {case: submit(self._client, case) for case in asked}

    def wait(self, asked: Iterable[Case]) -> None:
        """Until these have ended."""
        for case in asked:
            self._handles[case].exception(LONG_HANG)

    def told(self) -> dict[Case, Told]:
        """What became of all of them, once each has ended for its client and at the fake."""
        outcomes = {case: outcome(handle, stream=case.stream) for case, handle in self._handles.items()}
        eventually(lambda: all_ended(self._fake.log()), why="a call is still open at the fake")
        requests = Counter(call.last_message for call in self._fake.log())
        told = {}
        for case, handle in self._handles.items():
            record = self._client.show(handle.request_id)
            found, error = outcomes[case]
            seen = Seen(found, requests[case.text], calls_in(record))
            told[case] = Told(seen, record["phases"][-1]["after_seconds"], error)
        return told


def outcome(handle: callpool.Handle, *, stream: bool) -> tuple[Outcome, callpool.CallpoolError | None]:
    """How a request ended for its client, and that its chunks were the answer."""
    error = handle.exception(LONG_HANG)
    if error is not None:
        assert isinstance(error, callpool.CallpoolError), error
        return type(error), error
    answer = handle.result(LONG_HANG)
    if stream:
        text = ""
        for chunk in handle:
            text = chunk if chunk.restart else text + chunk
        assert text == answer["content"], handle
    return answer["finish_reason"] or "", None


def all_ended(calls: list[CallRecord]) -> bool:
    """Whether the fake holds no call any more."""
    return all(call.outcome != "open" for call in calls)


def calls_in(record: dict[str, Any]) -> int:
    """How many calls of a request reached the provider, by its record: those before the last one, and the last one."""
    phases = [each["phase"] for each in record["phases"]]
    last = phases[len(phases) - 1 - phases[::-1].index("DEQUEUED") :]
    waited = "RETRY" in last  # its end came in the queue
    assert len(record["attempts"]) == record["attempt"] - (not waited), record["attempts"]
    called = len([each for each in record["attempts"] if each["called"]])
    return called if waited else called + ("PROVIDER_CALL_START" in last)


def table(told: dict[Case, Told]) -> str:
    """A line for each fault and mode: what it came to, and in each way the requests seen, the calls recorded, and the seconds."""
    lines = [
        f"{'':49}" + "".join(f"{way:>15}" for way in WAYS),
        f"{'fault':23} {'mode':6} {'class':19}" + f"{'seen rec sec':>15}" * len(WAYS),
    ]
    rows = {(case.fault, case.stream, case.silence): None for case in told}
    for fault, stream, silence in rows:
        row = [told[Case(fault, stream, way, silence)] for way in WAYS]
        found = row[0].seen.outcome
        name = (repr(found) if isinstance(found, str) else found.__name__)[:19]
        figures = "".join(f"{each.seen.requests:>5}{each.seen.recorded:>4}{each.seconds:>6.2f}" for each in row)
        lines.append(f"{fault:23} {'silent' if silence else mode(stream=stream):6} {name:19}{figures}")
    return "\n".join(lines)
