"""Client processes of the tests of limits: what they do is told in their arguments, and they say what came of it."""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import callpool

HANG = 120.0


def ask(client: callpool.Client, text: str, provider: str, delay: float, **more: Any) -> callpool.Handle:
    """One request that the fake's log can be searched for."""
    messages = [{"role": "user", "content": text}]
    return client.submit(
        provider=provider, model="m", messages=messages, max_tokens=50, timeout=HANG, fake={"delay": delay}, **more
    )


def endless(name: str, seed: str) -> None:
    """Waves of requests until it is killed: some are cancelled, some have no patience, some stream."""
    chance = random.Random(seed)
    with callpool.connect(name=name) as client:
        for wave in range(100_000):
            handles = [
                ask(
                    client,
                    f"storm {name} {seed} {wave} {number}",
                    "storm",
                    chance.uniform(0.02, 0.3),
                    stream=chance.random() < 0.3,
                    priority=chance.choice(["interactive", "normal", "batch"]),
                    queue_timeout=chance.choice([None, None, 0.2]),
                )
                for number in range(chance.randrange(1, 15))
            ]
            for handle in handles:
                if chance.random() < 0.15:
                    handle.cancel()
            for handle in handles:
                handle.exception(HANG)


def counted(name: str, provider: str, count: int) -> None:
    """So many short requests; prints how each ended."""
    with callpool.connect(name=name) as client:
        handles = [ask(client, f"{name} {number}", provider, 0.02) for number in range(count)]
        ends = [handle.exception(HANG) for handle in handles]
        print(json.dumps([None if end is None else type(end).__name__ for end in ends]))


def timed(name: str, provider: str, count: int, delay: float) -> None:
    """Waits for a line, submits, and prints when its last request has ended, by the machine's monotonic clock."""
    with callpool.connect(name=name) as client:
        print("ready", flush=True)
        sys.stdin.readline()
        handles = [ask(client, f"{name} {number}", provider, delay) for number in range(count)]
        failed = sum(handle.exception(HANG) is not None for handle in handles)
        print(json.dumps({"ended": time.monotonic(), "failed": failed}), flush=True)
