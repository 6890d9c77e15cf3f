"""What all contenders are given to do. Imports nothing, so that a pool's worker starts as lightly as it can."""

from __future__ import annotations

from typing import Any

REPLY = "ok"
PATIENCE = 60.0
"""Seconds after which a wait is a hang."""


def request_for(model: str, text: str) -> dict[str, Any]:
    """What is submitted: to `noop`, which the worker answers itself without any network, or to `hang`, which never ends."""
    return {"provider": "fake", "model": model, "messages": [{"role": "user", "content": text}]}


def requests_for(model: str, count: int) -> list[dict[str, Any]]:
    """Requests, each a value of its own: pickle sends equal objects of one list once."""
    return [request_for(model, f"hello {number}") for number in range(count)]


def noop(_request: dict[str, Any]) -> dict[str, Any]:
    """For a pool's worker what the scripted provider does for callpool's: nothing, and a fixed answer."""
    return {"content": REPLY}
