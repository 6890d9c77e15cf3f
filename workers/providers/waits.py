"""When to try again, in seconds, from what a provider says of it: headers, the words of a message, a date within them.

What says nothing is None, never 0: as 0 it would make us call again at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

from callpool.workers.providers.verdicts import MAX_WORDS

MAX_RETRY_AFTER = 3600.0
"""Seconds: a longer wait is not a wait but an outage, and is looked at again after this. But for limits of a day or a plan."""
MAX_WINDOW = 35 * 86_400.0
"""Seconds to the end of a plan's window; the longest is a month."""
_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE]\+?[0-9]{1,3})?")
_SECONDS = {
    "ms": 0.001, "millisecond": 0.001, "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600,
    "秒": 1, "分钟": 60, "小时": 3600,
}  # fmt: skip
_SPAN = re.compile(
    r"[\s,]{0,3}(?:and\s)?(?<![0-9.])([0-9]{1,9}(?:\.[0-9]{1,9})?)\s?"
    r"(ms|milliseconds?|s|sec|seconds?|m|min|minutes?|h|hours?)(?![a-z])",
    re.IGNORECASE,
)
_AGAIN = re.compile(r"\b(?:again|retry|wait)\b[^.!?;0-9]{0,20}(?=[0-9])", re.IGNORECASE)
_LATER = re.compile(r"(?<![0-9.])([0-9]{1,9}(?:\.[0-9]{1,9})?)\s?(秒|分钟|小时)钟?[之以]?后")
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,9})?\s?(Z|[+-][0-9]{2}:?[0-9]{2})?",
    re.ASCII,
)


def read_retry_after(headers: Mapping[str, str], now: float, at_most: float = MAX_RETRY_AFTER) -> float | None:
    """Seconds to wait, at least 0, from `Retry-After` (seconds or a date) or `Retry-After-Ms`; None if they say nothing.

    What is no time at all (negative, `inf`, `NaN`, words) says nothing. `now` is the wall clock, for a date without a `Date` header to
    compare it with.
    """
    milliseconds = _number(headers.get("Retry-After-Ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, at_most)
    value = headers.get("Retry-After")
    seconds = _number(value)
    if seconds is None:
        then, since = _timestamp(value), _timestamp(headers.get("Date"))
        if then is None:
            return None
        seconds = max(0.0, then - (now if since is None else since))
    return min(seconds, at_most)


def seconds_in(message: str, at_most: float = MAX_RETRY_AFTER) -> float | None:
    """The span in "please try again after 1 seconds", "try again in 6m 0.5s" or "请在 3 秒后重试": at least 0, else None."""
    text = message[:MAX_WORDS]
    later = _LATER.search(text)
    if later is not None:
        return min(float(later[1]) * _SECONDS[later[2]], at_most)
    for begin in _AGAIN.finditer(text):
        at, seconds = begin.end(), None
        while (span := _SPAN.match(text, at)) is not None:  # "6m" and then "0.5s"
            unit = span[2].lower()
            seconds = (seconds or 0.0) + float(span[1]) * _SECONDS[unit if unit in _SECONDS else unit.removesuffix("s")]
            at = span.end()
        if seconds is not None:
            return min(seconds, at_most)
    return None


def seconds_until_moment(message: str, now: float, utc_offset: float) -> float | None:
    """Seconds from the wall clock `now` to the latest date and time in a message, at most 35 days; None if none is to come.

    A message may begin with the time of its own making. A time without a zone is read by a clock `utc_offset` hours ahead of UTC.
    """
    zone = timezone(timedelta(hours=utc_offset))
    moments = [_moment(found, zone) for found in _MOMENT.finditer(message[:MAX_WORDS])]
    latest = max((moment for moment in moments if moment is not None), default=None)
    return None if latest is None or latest <= now else min(latest - now, MAX_WINDOW)


def _moment(found: re.Match[str], zone: timezone) -> float | None:
    day, hour, own_zone = found.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{hour}{own_zone or ''}")
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
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
        moment = parsedate_to_datetime(value)
        # HTTP's times are UTC, also in the form of C's asctime that names no zone.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):  # the ways in which the parser refuses
        return None
