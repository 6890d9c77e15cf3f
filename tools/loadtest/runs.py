"""The runs of a comparison, one after another. Each gets a freshly started fake provider, and ends everything that it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from callpool.manager import launch
from callpool.tools.loadtest.configuration import KEY_VARIABLE, supervisor_config
from callpool.tools.loadtest.crew import perform
from callpool.tools.loadtest.judge import Verdict, judge
from callpool.tools.loadtest.messages import Directly, Order, ThroughCallpool
from callpool.tools.loadtest.scenario import Scenario, deal
from callpool.tools.testing.fake_provider import FakeProviderProcess

OURS: Final = "callpool"
DIRECT: Final = "direct"
SPLIT: Final = "direct_split"
MEANINGS: Final = {
    OURS: "callpool: one supervisor for all clients",
    DIRECT: "direct: each client believes that it has the whole account",
    SPLIT: "direct, split: each client has its part of the concurrency for itself",
}
"""The runs, in their order."""

Look = Callable[[str, int], None]
"""Gets a run's name, and how many of its requests are over."""


def run_all(scenario: Scenario, *, direct: bool, look: Look) -> dict[str, Verdict]:
    """Name of each run → its verdict. Raises LoadtestFailed, StartFailed; KeyboardInterrupt also for SIGTERM and SIGHUP."""
    names = tuple(MEANINGS) if direct else (OURS,)
    with _signals_interrupt():
        return {name: _run(name, scenario, look) for name in names}


def _run(name: str, scenario: Scenario, look: Look) -> Verdict:
    limits = scenario.limits
    key = secrets.token_hex(16)  # of its own: supervisors lock their keys, and two load tests may run at once
    look(name, 0)
    with FakeProviderProcess(
        dialect=scenario.dialect, concurrency=limits.concurrency, rpm=limits.rpm, tpm=limits.tpm, api_key=key
    ) as fake:
        if name == OURS:
            with _supervisor(scenario, fake.base_url, key) as address:
                orders = _orders_of_callpool(scenario, address)
                outcomes = asyncio.run(perform(orders, within=scenario.deadline, look=lambda over: look(name, over)))
        else:
            orders = _orders_of_direct(scenario, fake.base_url, key, split=name == SPLIT)
            outcomes = asyncio.run(perform(orders, within=scenario.deadline, look=lambda over: look(name, over)))
    return judge(fake.log(), outcomes, limits, scenario.max_tokens)


@contextlib.contextmanager
def _supervisor(scenario: Scenario, base_url: str, key: str) -> Iterator[str]:
    """A supervisor of this process's own, in directories of its own; yields its address.

    What `callpool.start` does, but for the environment: the lock of a key that nobody will use again is not to stay among the
    user's, and no key of the user's is looked at.
    """
    with tempfile.TemporaryDirectory(prefix="callpool-loadtest-") as folder:
        environ = os.environ | {KEY_VARIABLE: key, "CALLPOOL_KEY_LOCK_DIR": folder}
        with contextlib.closing(launch.Embedded(supervisor_config(scenario, base_url), environ)) as supervisor:
            yield supervisor.address


def _orders_of_callpool(scenario: Scenario, address: str) -> list[Order]:
    return [
        ThroughCallpool(
            client=client,
            delays=scenario.delays(client),
            max_tokens=scenario.max_tokens,
            wait=scenario.deadline,
            address=address,
        )
        for client in range(1, scenario.clients + 1)
    ]


def _orders_of_direct(scenario: Scenario, base_url: str, key: str, *, split: bool) -> list[Order]:
    return [
        Directly(
            client=client,
            delays=scenario.delays(client),
            max_tokens=scenario.max_tokens,
            timeout=scenario.call_timeout,
            wait=scenario.deadline,
            url=f"{base_url}/chat/completions",
            key=key,
            at_once=at_once,
        )
        for client, at_once in enumerate(own_limits(scenario, split=split), 1)
    ]


def own_limits(scenario: Scenario, *, split: bool) -> Sequence[int]:
    """Calls at once that each direct client allows itself: all of the account's, or its part, which is at least one."""
    if not split:
        return [scenario.concurrency] * scenario.clients
    return [max(1, part) for part in deal(scenario.concurrency, scenario.clients)]


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """A terminal that closes and a `kill` end the block as Ctrl-C does: in order, with nothing left behind."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
