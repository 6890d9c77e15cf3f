from __future__ import annotations

import json

from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import Submit
from callpool.manager.core.requests import History, Now, Phase, Record, Request, as_plain


def request(request_id: str = "r1") -> Request:
    made = Request("c", Submit(request_id, "kimi", "k3", b"secret prompt", b"{}"), "session_1", 1, 30.0)
    made.phases.append((Phase.RECEIVED, Now(100.0, 1_000.0)))
    return made


def test_the_history_is_bounded_and_forgets_the_oldest() -> None:
    history = History(2)
    for number in range(5):
        history.add(request(f"r{number}"), Now(1.0, 1.0), None)
    assert len(history) == 2
    assert history.get("r2") is None
    assert history.get("r4") is not None


def test_an_id_used_again_has_one_record_the_newer() -> None:
    history = History(2)
    history.add(request("r1"), Now(1.0, 1.0), None)
    history.add(request("r2"), Now(1.0, 1.0), None)
    history.add(request("r1"), Now(2.0, 2.0), Fault(code="timeout", message="newer"))
    history.add(request("r3"), Now(3.0, 3.0), None)
    newer = history.get("r1")
    assert newer is not None
    assert newer.fault is not None
    assert (len(history), history.get("r2")) == (2, None)


def test_a_history_of_nothing_keeps_nothing() -> None:
    history = History(0)
    history.add(request(), Now(1.0, 1.0), None)
    assert (len(history), history.get("r1")) == (0, None)


def test_a_record_tells_times_from_the_reception_and_never_the_prompt() -> None:
    made = request()
    made.phases.append((Phase.QUEUED, Now(100.5, 1_000.5)))
    record = Record.of(made, Now(101.0, 1_001.0))
    assert record.phases == [("RECEIVED", 1_000.0, 0.0), ("QUEUED", 1_000.5, 0.5)]
    assert (record.state, record.payload_bytes, record.duration) == ("received", 13, 0.0)
    plain = as_plain(record)
    assert plain["phases"][1] == {"phase": "QUEUED", "at": 1_000.5, "after_seconds": 0.5}
    assert "secret" not in json.dumps(plain)
