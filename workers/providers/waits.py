"""When to try again, in seconds, from what a provider says of it: headers, the words of a message, a date within them.

What says nothing is None, never 0: as 0 it would make us call again at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER = 3600.0
"""Seconds: a longer wait is not a wait but an outage, and is looked at again after this."""
MAX_WINDOW = 35 * 86_400.0
"""Seconds to the end of a plan's window; the longest is a month."""
MAX_WORDS = 2_000
"""Characters of a message that are searched for a time."""

_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE]\+?[0-9]{1,3})?")
_SECONDS = {
    "ms": 0.001, "millisecond": 0.001, "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600,
    "秒": 1, "分钟": 60, "小时": 3600,
}  # fmt: skip
_SPAN = re.compile(
    r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s?(ms|milliseconds?|s|sec|seconds?|m|min|minutes?|h|hours?)(?![a-z])", re.IGNORECASE
)
_AGAIN = re.compile(r"\b(?:again|retry|wait)\b.{0,20}?(?=[0-9])", re.IGNORECASE)
_LATER = re.compile(r"([0-9]{1,9})\s?(秒|分钟|小时)[之以]?后")
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,9})?\s?(Z|[+-][0-9]{2}:?[0-9]{2})?",
    re.ASCII,
)


def read_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, 0 to 3600, from `Retry-After` (seconds or a date) or `Retry-After-Ms`; None if they say nothing.

    What is no time at all (negative, `inf`, `NaN`, words) says nothing. `now` is the wall clock, for a date without a `Date` header to
    compare it with.
    """
    milliseconds = _number(headers.get("Retry-After-Ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER)
    value = headers.get("Retry-After")
    seconds = _number(value)
    if seconds is None:
        then, since = _timestamp(value), _timestamp(headers.get("Date"))
        if then is None:
            return None
        seconds = max(0.0, then - (now if since is None else since))
    return min(seconds, MAX_RETRY_AFTER)


def seconds_in(message: str) -> float | None:
    """The span in "please try again after 1 seconds", "try again in 6m0.5s" or "请在 3 秒后重试": 0 to 3600, else None."""
    text = message[:MAX_WORDS]
    later = _LATER.search(text)
    if later is not None:
        return min(float(later[1]) * _SECONDS[later[2]], MAX_RETRY_AFTER)
    begin = _AGAIN.search(text)
    if begin is None:
        return None
    at, seconds = begin.end(), None
    while (span := _SPAN.match(text, at)) is not None:  # "6m" and then "0.5s"
        unit = span[2].lower()
        seconds = (seconds or 0.0) + float(span[1]) * _SECONDS[unit if unit in _SECONDS else unit.removesuffix("s")]
        at = span.end()
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER)


def seconds_until_moment(message: str, now: float, utc_offset: float) -> float | None:
    """Seconds from the wall clock `now` to the date and time in a message, at least 0, at most 35 days; None without one.

    A time without a zone is read by a clock `utc_offset` hours ahead of UTC.
    """
    found = _MOMENT.search(message[:MAX_WORDS])
    if found is None:
        return None
    day, hour, zone = found.groups()
    try:
        then = datetime.fromisoformat(f"{day}T{hour}{zone or ''}")
        if then.tzinfo is None:
            then = then.replace(tzinfo=timezone(timedelta(hours=utc_offset)))
        return min(max(0.0, then.timestamp() - now), MAX_WINDOW)
    except (ValueError, OverflowError):  # the 31st of June
        return None


def _number(value: str | None) -> float | None:
    if value is None or not _NUMBER.fullmatch(value.strip()):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _timestamp(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):  # the ways in which the parser refuses
        return None
