"""What a load test is made of: the scenario, the supervisor's configuration, the direct client's retries, the page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.tools.loadtest import charts
from callpool.tools.loadtest.configuration import supervisor_config
from callpool.tools.loadtest.direct import pause
from callpool.tools.loadtest.judge import Outcome, Verdict, judge
from callpool.tools.loadtest.page import page
from callpool.tools.loadtest.runs import MEANINGS, own_limits
from callpool.tools.loadtest.scenario import (
    LONGEST_PROMPT,
    Limits,
    Scenario,
    charge,
    deal,
    largest_charge,
    message,
    named,
)

# The scenario.


@given(clients=st.integers(1, 40), more=st.integers(0, 500), skew=st.booleans())
def test_every_request_is_some_clients_and_every_client_has_one(clients: int, more: int, *, skew: bool) -> None:
    scenario = Scenario(clients=clients, requests=clients + more, skew=skew)
    shares = scenario.shares()
    assert len(shares) == clients
    assert sum(shares) == clients + more
    assert min(shares) >= 1


def test_a_skewed_test_gives_most_to_the_first() -> None:
    assert Scenario(clients=5, requests=100, skew=True).shares() == [80, 5, 5, 5, 5]
    assert Scenario(clients=3, requests=100).shares() == deal(100, 3) == [34, 33, 33]


def test_a_seed_makes_the_same_calls_again() -> None:
    one, again, other = (Scenario(seed=seed, seconds=2.0) for seed in (7, 7, 8))
    assert one.delays(1) == again.delays(1) != other.delays(1)
    assert one.delays(1) != one.delays(2)
    assert all(1.0 <= delay <= 3.0 for client in (1, 10) for delay in one.delays(client))


def test_a_request_is_known_by_its_text() -> None:
    assert named(message(200, 100_000)) == (200, 100_000)
    assert named("hello") is None
    assert len(message(200, 100_000)) <= LONGEST_PROMPT
    assert charge(message(200, 100_000), 512) <= largest_charge(512)


def test_a_split_account_is_split_whole_and_nobody_has_none() -> None:
    assert own_limits(Scenario(clients=4, concurrency=50), split=True) == [13, 13, 12, 12]
    assert own_limits(Scenario(clients=3, requests=3, concurrency=2), split=True) == [1, 1, 1]
    assert own_limits(Scenario(clients=2, concurrency=50), split=False) == [50, 50]


# The supervisor's configuration.


def test_the_supervisor_is_told_what_clients_believe() -> None:
    scenario = Scenario(concurrency=70, true_concurrency=30, requests=50_000, rpm=5, tpm=6_000)
    config = supervisor_config(scenario, "http://127.0.0.1:1/v1")
    account = config["providers"]["account"]
    assert account["concurrency"] == 70
    assert config["supervisor"]["max_queued_requests"] >= 200_000, "requests and promised places"
    assert (account["requests_per_minute"], account["tokens_per_minute"]) == (5, 6_000)


# The retries of people who have no callpool.


def test_pauses_double_up_to_a_bound_and_chance_shortens_them() -> None:
    assert [pause(retry, None, 0.0) for retry in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert pause(0, None, 1.0) == 0.375


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("3", 3.0),
        ("0.2", 0.2),
        ("60", 60.0),
        ("61", 0.5),
        ("0", 0.5),
        ("-1", 0.5),
        ("nan", 0.5),
        ("inf", 0.5),
        ("x", 0.5),
    ],
)
def test_retry_after_is_obeyed_within_reason(said: str, seconds: float) -> None:
    assert pause(0, said, 0.0) == seconds


# The page.


class _Balance(HTMLParser):
    """Fails where a tag is closed that was not the last one opened."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing is left open."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def verdicts(clients: int, *, error: str | None = None) -> dict[str, Verdict]:
    outcomes = [
        Outcome(client=client, number=1, submitted=0.0, ended=float(client), error=error)
        for client in range(1, clients + 1)
    ]
    verdict = judge([], outcomes, Limits(concurrency=5, rpm=10, tpm=10_000), 10)
    return dict.fromkeys(MEANINGS, verdict)


@pytest.mark.parametrize("clients", [0, 1, 200])
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(clients: int) -> None:
    text = page(Scenario(), verdicts(clients, error="http_429"))
    balance = _Balance()
    balance.feed(text)
    assert balance.open == []
    for outside in ("http:", "https:", "//", "src=", "href=", "url(", "@import", "<script", "<link"):
        assert outside not in text
    assert ("and 160 more" in text) == (clients == 200)
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawn) == 3 * 2 + 1 + 3
    for svg in drawn:
        ET.fromstring(svg)  # noqa: S314 - our own


def test_words_in_a_chart_are_escaped() -> None:
    assert "<b>" not in charts.shares([("<b>", 1, 0, "<b>")], "callpool")
    assert "&lt;b&gt;" in charts.text(0, 0, "<b>", "start")
    assert '"x"' not in charts.svg(1, 'a "x"', [])


@given(st.floats(0.001, 1e9), st.integers(1, 10))
def test_ticks_are_round_and_within_the_axis(top: float, about: int) -> None:
    found = charts.ticks(top, about)
    assert found[0] == 0.0
    assert found[-1] <= top * 1.001
    assert 1 <= len(found) <= about + 2


@given(st.integers(0, 5_000), st.integers(1, 300))
def test_a_sample_has_the_last_place_and_no_place_twice(count: int, most: int) -> None:
    found = charts.sampled(count, most)
    assert len(found) == len(set(found)) == min(count, most)
    assert found[-1:] == ([count - 1] if count else [])
