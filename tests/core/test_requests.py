from __future__ import annotations

import json

from callpool.manager.core.messages import Submit
from callpool.manager.core.requests import Now, Phase, Record, Request, as_plain


def request(request_id: str = "r1") -> Request:
    made = Request("c", Submit(request_id, "kimi", "k3", b"secret prompt", b"{}"), "session_1", 1, 30.0)
    made.phases.append((Phase.RECEIVED, Now(100.0, 1_000.0)))
    return made


def test_a_record_tells_times_from_the_reception_and_never_the_prompt() -> None:
    made = request()
    made.phases.append((Phase.QUEUED, Now(100.5, 1_000.5)))
    record = Record.of(made, Now(101.0, 1_001.0))
    assert record.phases == [("RECEIVED", 1_000.0, 0.0), ("QUEUED", 1_000.5, 0.5)]
    assert (record.state, record.payload_bytes, record.duration) == ("received", 13, 0.0)
    plain = as_plain(record)
    assert plain["phases"][1] == {"phase": "QUEUED", "at": 1_000.5, "after_seconds": 0.5}
    assert "secret" not in json.dumps(plain)
