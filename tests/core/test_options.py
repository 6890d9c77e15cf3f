from __future__ import annotations

from typing import Any

import msgspec
import pytest

from callpool.manager.core.options import NO_OPTIONS, Options, check_options


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"system_prompt": "a\nb\0c", "use_websearch": True, "thinking_mode": "off"},
        {"cache_id": "x", "reset_cache_ttl": True},
        {"cache_id": "é " * 128},
        {"async_task": True},
        {"enable_continuation": True, "max_continuation_attempts": 1, "max_total_tokens": 1},
        {"max_continuation_attempts": 100, "max_total_tokens": 10_000_000},
    ],
)
def test_options_that_pass(good: dict[str, Any]) -> None:
    asked = Options(**good)
    assert check_options(asked) is None
    assert msgspec.convert(msgspec.to_builtins(asked), Options) == asked


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("system_prompt", "", "text that is not empty"),
        ("system_prompt", 5, "text that is not empty, in whole characters, got 5"),
        ("system_prompt", "half \ud800", "whole characters"),
        ("use_websearch", 1, "true or false, got 1"),
        ("use_websearch", "yes", "true or false, got 'yes'"),
        ("use_websearch", None, "true or false, got null"),
        ("thinking_mode", "hard", "one of off, minimal, low, medium, high, max, got 'hard'"),
        ("thinking_mode", True, "got true"),
        ("thinking_mode", ["low"], "got a list"),
        ("cache_id", "", "1 to 256 printable characters"),
        ("cache_id", "x" * 257, "1 to 256"),
        ("cache_id", "a\r\nX-Header: b", r"got 'a\\r\\nX-Header: b'"),
        ("cache_id", "a\0", "printable"),
        ("cache_id", "\u202e", "printable"),
        ("cache_id", "\ud800", "printable"),
        ("cache_id", 5, "printable characters, got 5"),
        ("reset_cache_ttl", 3600, "true or false, got 3600"),
        ("async_task", 0, "true or false"),
        ("enable_continuation", "true", "true or false"),
        ("max_continuation_attempts", 0, "a whole number from 1 to 100, got 0"),
        ("max_continuation_attempts", 101, "from 1 to 100, got 101"),
        ("max_continuation_attempts", True, "got true"),
        ("max_continuation_attempts", 2.0, "got 2.0"),
        ("max_total_tokens", 10_000_001, "from 1 to 10000000"),
        ("max_total_tokens", "9", "got '9'"),
        ("max_total_tokens", None, "got null"),
    ],
)
def test_options_that_are_refused(name: str, value: Any, said: str) -> None:
    fault = check_options(Options(**{name: value}))
    assert fault is not None
    assert (fault.code, fault.param) == ("bad_input", name)
    assert said in fault.message
    assert fault.message.isprintable()


@pytest.mark.parametrize("other", [None, {}, {"use_websearch": True}, "x", Options])
def test_what_are_no_options(other: object) -> None:
    fault = check_options(other)
    assert fault is not None
    assert (fault.param, "callpool.Options" in fault.message) == ("options", True)


def test_options_that_say_nothing_travel_as_nothing() -> None:
    assert msgspec.to_builtins(NO_OPTIONS) == {}
    assert Options(max_total_tokens=131_072) == NO_OPTIONS


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="use_web_search"):
        Options(use_web_search=True)  # type: ignore[call-arg]
    with pytest.raises(msgspec.ValidationError, match="use_web_search"):
        msgspec.convert({"use_web_search": True}, Options)
