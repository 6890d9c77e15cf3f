"""When to try again, by headers, words and dates."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.workers.providers.waits import (
    MAX_RETRY_AFTER,
    MAX_WINDOW,
    read_retry_after,
    seconds_in,
    seconds_until_moment,
)

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1.0),
        ("0", 0.0),
        (" 2.5 ", 2.5),
        ("3600", 3600.0),
        ("1000000000", MAX_RETRY_AFTER),
        ("1e9", MAX_RETRY_AFTER),
        ("-1", None),
        ("-0.5", None),
        ("inf", None),
        ("1e999", None),
        ("nan", None),
        ("NaN", None),
        ("soon", None),
        ("", None),
        ("1_000", None),
        ("٣", None),
        ("0x10", None),
        ("9" * 5000, None),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 86_400, usegmt=True), 0.0),
        (formatdate(NOW + 1e6, usegmt=True), MAX_RETRY_AFTER),
        ("Mon, 99 Foo 2026 00:00:00 GMT", None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert read_retry_after({"Retry-After": value}, NOW) == seconds


@given(st.text(max_size=40) | st.floats().map(str) | st.integers().map(str))
def test_retry_after_is_none_or_within_bounds(value: str) -> None:
    seconds = read_retry_after({"Retry-After": value}, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


def test_a_date_is_measured_by_the_providers_own_clock() -> None:
    headers = {"Retry-After": formatdate(NOW + 500, usegmt=True), "Date": formatdate(NOW + 490, usegmt=True)}
    assert read_retry_after(headers, NOW) == 10.0


def test_milliseconds_win() -> None:
    assert read_retry_after({"Retry-After-Ms": "250", "Retry-After": "1"}, NOW) == 0.25
    assert read_retry_after({"Retry-After-Ms": "soon", "Retry-After": "1"}, NOW) == 1.0
    assert read_retry_after({}, NOW) is None


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("please try again after 1 seconds", 1.0),
        ("Please try again in 20s.", 20.0),
        ("Please try again in 1.2s. Visit the page", 1.2),
        ("Please try again in 6m0s", 360.0),
        ("Please try again in 1h2m3.5s", 3600.0),
        ("Try again in 86ms", 0.086),
        ("Retry after 2 minutes", 120.0),
        ("please wait 3 sec", 3.0),
        ("请求过于频繁 请在 3 秒后重试", 3.0),
        ("请 2 分钟之后再试", 120.0),
        ("try again in 1 minute 30 seconds", 90.0),
        ("try again in 1 minute and 30 seconds", 90.0),
        ("Please try again in 1m 30s.", 90.0),
        ("请 1.5 分钟后重试", 90.0),
        ("请在 0.5秒后重试", 0.5),
        ("请在 3 秒钟后重试", 3.0),
        ("try again later. 5 hour limit reached", None),
        ("Error: retry 3 times at most; please try again in 20s", 20.0),
        ("Do not retry: HTTP 429. Please try again in 20s", 20.0),
        ("try again in 1.2.3 s", None),
        ("已达到 5 小时的使用上限", None),
        ("limit: 100, current: 1410", None),
        ("please try again later", None),
        ("try again after lunch, in 2026", None),
        ("retry limit of 5 calls", None),
        ("try again after 5 apples", None),
        ("try again in 5 msgs", None),
        ("try again in ٣ seconds", None),
        ("try again in 999999999 hours", MAX_RETRY_AFTER),
        ("try again after " + "9" * 5_000 + " seconds", None),
        ("again " * 50_000, None),
        ("", None),
    ],
)
def test_spans_in_words(message: str, seconds: float | None) -> None:
    assert seconds_in(message) == pytest.approx(seconds)


@given(st.text(max_size=60) | st.from_regex(r"try again (in|after) .{0,30}"))
def test_spans_are_none_or_within_bounds(message: str) -> None:
    seconds = seconds_in(message)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("reset at 2027-01-15T09:00:00Z.", 3600.0),
        ("reset at 2027-01-15T09:00:00.123Z", 3600.0),
        ("您的限额将在 2027-01-15 17:00:00 重置。", 3600.0),
        ("reset at 2027-01-15 10:00:00 +01:00", 3600.0),
        ("reset at 2027-01-15 10:00:00+0100", 3600.0),
        ("[2027-01-15 15:59:00] limit; reset at 2027-01-15 20:00:00", 14_400.0),
        ("reset at 2027-01-15T07:00:00Z", None),
        ("reset at 2037-01-15T07:00:00Z", MAX_WINDOW),
        ("reset at 2027-06-31 07:00:00", None),
        ("reset at 9999-12-31 23:59:59 -23:59", MAX_WINDOW),
        ("reset at 0001-01-01 00:00:00", None),
        ("reset at 2027-01-15", None),
        ("reset soon", None),
    ],
)
def test_moments_in_words(message: str, seconds: float | None) -> None:
    now = datetime(2027, 1, 15, 8, tzinfo=UTC).timestamp()
    assert now == NOW
    assert seconds_until_moment(message, now, 8.0) == seconds


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York"])
@pytest.mark.parametrize(
    "value", ["Fri Jan 15 08:01:30 2027", "Fri, 15 Jan 2027 08:01:30 -0000", "Fri, 15 Jan 2027 08:01:30"]
)
def test_a_date_without_a_zone_is_utc_wherever_this_machine_is(
    monkeypatch: pytest.MonkeyPatch, zone: str, value: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert read_retry_after({"Retry-After": value}, NOW) == 90.0
    finally:
        monkeypatch.undo()
        time.tzset()
