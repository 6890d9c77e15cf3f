"""The configuration of the supervisor under test: all that it is told of the account stands here."""

from __future__ import annotations

from typing import Any, Final

from callpool.tools.loadtest.scenario import Scenario

PROVIDER: Final = "account"
"""Name of the provider in the configuration."""
KEY_VARIABLE: Final = "CALLPOOL_LOADTEST_KEY"
"""Where the supervisor's starter finds the key. It is set for that alone, with a key made up for the run."""
DRAIN: Final = 5.0
"""Seconds of the supervisor's drain: when it begins, nobody waits for an answer any more."""


def supervisor_config(scenario: Scenario, base_url: str) -> dict[str, Any]:
    """What `callpool.start` takes."""
    account: dict[str, Any] = {
        "kind": scenario.dialect,
        "base_url": base_url,
        "api_key_env": KEY_VARIABLE,  # named, so that no key of the user's environment is looked for
        "concurrency": scenario.concurrency,
        "requests_per_minute": scenario.rpm,
        "tokens_per_minute": scenario.tpm,
        "timeout": scenario.call_timeout,
    }
    supervisor = {
        "workers": scenario.workers,
        "max_concurrent_sessions": max(200, scenario.concurrency),  # the account is to be the limit, not the pool
        # Places that are promised to clients fill a quarter of the queue at most, and count like what waits in it.
        "max_queued_requests": max(10_000, 4 * scenario.requests),
        "shutdown_timeout": DRAIN,
    }
    return {"supervisor": supervisor, "providers": {PROVIDER: account}}
