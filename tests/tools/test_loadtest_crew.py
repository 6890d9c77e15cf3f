"""The client processes of a load test: what is told where one breaks, and that every wait ends."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import pytest

from callpool.tools.loadtest import crew
from callpool.tools.loadtest.crew import LoadtestFailed
from callpool.tools.loadtest.judge import Outcome
from callpool.tools.loadtest.messages import (
    Directly,
    Ended,
    Ready,
    ThroughCallpool,
    decode_news,
    decode_order,
    encode,
)

READY = """
import sys
sys.stdin.readline()
print('{"type": "ready"}', flush=True)
sys.stdin.readline()
"""
ORDER = ThroughCallpool(client=3, delays=[1.0, 2.0], max_tokens=10, wait=5.0, address="/nowhere")
GOOD = READY + "".join(
    f"""print('{{"type": "ended", "number": {number}, "submitted": 1.0, "ended": 2.5, "error": null}}', flush=True)\n"""
    for number in (1, 2)
)


def performed(monkeypatch: pytest.MonkeyPatch, *programs: str, within: float = 30.0) -> Sequence[Outcome]:
    """Let these programs be the clients, in turn."""
    left = list(programs)

    class Commands:
        def __iter__(self) -> object:
            return iter((sys.executable, "-Ic", left.pop(0)))

    monkeypatch.setattr(crew, "COMMAND", Commands())
    orders = [ORDER for _ in programs]
    return asyncio.run(crew.perform(orders, within=within, look=lambda _over: None))


def test_what_every_client_tells_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = performed(monkeypatch, GOOD, GOOD)
    assert [outcome.number for outcome in outcomes] == [1, 2, 1, 2]
    assert outcomes[0] == Outcome(client=3, number=1, submitted=1.0, ended=2.5, error=None)


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import sys; sys.exit('no such thing')", "client 3 ended with status 1, 0 of 2 requests told: no such thing"),
        (READY + "sys.exit('in the middle')", "client 3 ended with status 1, 0 of 2 requests told: in the middle"),
        (READY, "client 3 ended with status 0, 0 of 2 requests told"),
        (GOOD + "sys.exit(4)", "client 3 ended with status 4, 2 of 2 requests told"),
        (READY + "print('hello', flush=True)", "client 3 said something strange"),
        (READY + """print('{"type": "ready"}', flush=True)""", "client 3 is ready twice"),
    ],
    ids=["at the start", "in the middle", "silently", "after the last", "strange", "ready twice"],
)
def test_a_client_that_breaks_ends_the_test_and_says_why(
    monkeypatch: pytest.MonkeyPatch, program: str, told: str
) -> None:
    with pytest.raises(LoadtestFailed) as failure:
        performed(monkeypatch, GOOD, program)
    assert told in failure.value.message
    assert failure.value.fault.code == "loadtest_failed"


def test_a_client_that_never_gets_ready_ends_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "READY_LIMIT", 0.5)
    with pytest.raises(LoadtestFailed, match="not ready or not done in time"):
        performed(monkeypatch, "import time; time.sleep(600)")


def test_a_client_that_never_ends_ends_the_test_and_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "END_GRACE", 0.1)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + READY + "import time; time.sleep(600)"
    with pytest.raises(LoadtestFailed, match="not ready or not done in time"):
        performed(monkeypatch, deaf, within=0.5)


def test_orders_and_news_survive_the_trip() -> None:
    direct = Directly(
        client=1, delays=[0.5], max_tokens=1, wait=1.0, url="http://127.0.0.1:1/v1", key="k", timeout=2.0, at_once=3
    )
    for order in (ORDER, direct):
        assert decode_order(encode(order)) == order
    for news in (Ready(), Ended(1, 2.0, 3.0, None), Ended(1, 2.0, 3.0, "rate_limited")):
        assert decode_news(encode(news)) == news
