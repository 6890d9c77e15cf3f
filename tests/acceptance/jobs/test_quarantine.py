"""A request that kills its worker: three workers at most, and nobody else's call after the first."""

from __future__ import annotations

from typing import Any

import pytest

import callpool
from tests.acceptance.running import HANG, HELLO, detached


def config() -> dict[str, Any]:
    models = {"bad": {"error": "crash"}, "m": {"reply": "fine", "delay": 0.02}}
    return {
        "supervisor": {"workers": 3, "max_attempts": 10, "retry_wait": 0.05, "circuit_failures": 0},
        "providers": {"fake": {"kind": "scripted", "models": models}},
    }


@pytest.mark.parametrize("durable", [True, False])
def test_what_kills_workers_is_quarantined_after_three_and_others_are_not_touched(*, durable: bool) -> None:
    with detached(config()) as supervisor, supervisor.connect() as client:
        bad = client.submit(provider="fake", model="bad", messages=HELLO, retry_in_doubt=True, durable=durable)
        others = []
        while not bad.done():
            others.append(client.submit(provider="fake", model="m", messages=HELLO, retry_in_doubt=True))
            others[-1].result(HANG)
        with pytest.raises(callpool.Quarantined, match="3 workers died with this request"):
            bad.result(HANG)
        assert len(client.show(bad.request_id)["attempts"]) == 2, "the calls before the last one"
        assert sum(worker["restarts"] for worker in client.status()["workers"]) <= 3
        assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)["content"] == "fine"
        if durable:
            assert client.job(bad.request_id)["state"] == "interrupted"
