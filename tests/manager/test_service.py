"""The service's border: which event a message or a verb becomes, and under whose name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callpool.manager.core.events import Submitted
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import Submit
from callpool.manager.errors import BadInput
from callpool.manager.holders import Caller
from callpool.manager.service import Service

CALLER = Caller("client_1", "pid_1_1", "python", "nightly")


def applied(monkeypatch: pytest.MonkeyPatch, act: Any) -> list[Any]:
    """The events of what is done with a service that has nothing behind it."""
    events: list[Any] = []

    async def body() -> None:
        outlets: Any = object()
        core: Any = object()
        service = Service(core, outlets, address="nowhere")
        monkeypatch.setattr(service, "apply", events.extend)
        try:
            act(service)
        finally:
            service.stop()

    asyncio.run(body())
    return events


def test_a_submit_counts_against_its_clients_name(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = Submit("r", "p", "m", b"{}", tokens=Usage(1, 2), priority="batch", affinity="a")
    [event] = applied(monkeypatch, lambda service: service.handle_client(CALLER, [submit]))
    assert event == Submitted("client_1", submit, event.session_id, "nightly")


def test_so_does_a_lockstep_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"request_id": "r", "provider": "p", "model": "m", "payload": b"{}"}
    turn = {"tokens": [1, 2, 0], "priority": "batch", "queue_timeout": 5.0, "affinity": "a"}

    def act(service: Service) -> None:
        service.call_verb(CALLER, "call", {**asked, **turn})
        service.call_verb(CALLER, "call", {**asked, "request_id": "plain"})

    [event, plain] = applied(monkeypatch, act)
    assert (event.client, event.name, plain.name) == ("client_1", "nightly", "nightly")
    assert event.submit == Submit(
        "r", "p", "m", b"{}", tokens=Usage(1, 2), priority="batch", queue_timeout=5.0, affinity="a"
    )
    assert plain.submit.tokens == Usage(), "a plain proxy reckons nothing"


def test_a_class_that_there_is_not_comes_no_further_than_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"request_id": "r", "provider": "p", "model": "m", "payload": b"{}", "priority": "x"}

    def act(service: Service) -> None:
        with pytest.raises(BadInput, match="priority"):
            service.call_verb(CALLER, "call", asked)

    assert applied(monkeypatch, act) == []
