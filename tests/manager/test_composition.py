"""From settings to the catalogue."""

from __future__ import annotations

from typing import Any

import pytest

from callpool.manager.boot import Boot
from callpool.manager.composition import build_catalogue, build_core
from callpool.manager.config import load
from callpool.manager.core.messages import Submit


def boot(document: dict[str, Any]) -> Boot:
    return Boot(
        mode="embedded",
        settings=load(document, {}),
        key_facts={},
        home="",
        runtime="",
        socket="",
        key_lock_dir="",
        secrets_descriptor=-1,
    )


@pytest.mark.parametrize("everywhere", [None, 60.0])
def test_how_long_a_request_waits_is_the_models_the_providers_the_supervisors(everywhere: float | None) -> None:
    providers = {
        "p": {"kind": "scripted", "queue_timeout": 9, "models": {"m": {}, "slow": {"queue_timeout": 70}}},
        "q": {"kind": "scripted", "models": {"m": {}, "slow": {"queue_timeout": 70}}},
    }
    catalogue = build_catalogue(boot({"supervisor": {"queue_timeout": everywhere}, "providers": providers}))
    waits = {
        f"{provider}/{model}": catalogue.queue_timeout_for(Submit("r", provider, model, b"{}"))
        for provider in providers
        for model in ("m", "slow")
    }
    assert waits == {"p/m": 9.0, "p/slow": 70.0, "q/m": everywhere, "q/slow": 70.0}


def test_the_slots_of_an_account_are_those_of_its_settings() -> None:
    providers = {"a": {"kind": "scripted", "concurrency": 3}, "b": {"kind": "scripted"}, "c": {"kind": "local"}}
    core = build_core(boot({"supervisor": {"max_concurrent_sessions": 70}, "providers": providers}))
    assert {name: entry.limit for name, entry in core.catalogue.providers.items()} == {"a": 3, "b": 70, "c": 8}
