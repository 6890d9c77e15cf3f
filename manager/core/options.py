"""What a request may ask of callpool itself, in callpool's own words: providers have different names for it, or none.

Options travel in the payload under the key `PAYLOAD_KEY`, which the supervisor does not open. What a kind of provider makes of
them is data (`parameter_rules.Words`); `parameters` applies it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import msgspec

from callpool.manager.core.faults import Fault, bad_input
from callpool.manager.core.parameter_rules import shown

if TYPE_CHECKING:
    from collections.abc import Callable

PAYLOAD_KEY: Final = "callpool"
SO_FAR_KEY: Final = "callpool_so_far"
"""What the earlier calls of a request have brought, between its workers. No parameter may have either name."""
MAX_CACHE_ID: Final = 256
"""Characters."""
MAX_JOINED_ANSWERS: Final = 100
"""Answers joined into one: each is a call of its own, and is billed."""
MAX_TOKENS: Final = 10_000_000

ThinkingMode = Literal["off", "minimal", "low", "medium", "high", "max"]
THINKING_MODES: Final[tuple[str, ...]] = get_args(ThinkingMode)


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a chat is to be made, whichever provider makes it. What a provider cannot do is refused when it is submitted."""

    system_prompt: str | None = None
    """Becomes the first message."""
    use_websearch: bool = False
    """Let the provider's own web search be used."""
    thinking_mode: ThinkingMode | None = None
    """How much the model reasons; None leaves it to the provider."""
    cache_id: str | None = None
    """1 to 256 printable characters that requests with the same beginning share: they find each other's cached prompt."""
    reset_cache_ttl: bool = False
    """Keep the cached prompt longer than usual."""
    async_task: bool = False
    """Leave the request with the provider and ask for its answer, so that it outlives a broken connection."""
    enable_continuation: bool = False
    """Have an answer that stopped at the length limit continued, and joined."""
    max_continuation_attempts: int = 3
    """Answers that may be joined, the first one counted."""
    max_total_tokens: int = 131_072
    """Tokens of all those answers together; the first one has the request's own limit."""


NO_OPTIONS: Final = Options()


def check_options(options: object) -> Fault | None:
    """The fault in a request's options, or None: types and bounds, which no constructor checks."""
    if not isinstance(options, Options):
        return bad_input("options", f"must be callpool.Options, got {shown(options)}")
    for name, (wanted, is_right) in _CHECKS.items():
        value = getattr(options, name)
        if not is_right(value):
            return bad_input(name, f"must be {wanted}, got {shown(value)}")
    return None


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_prompt(value: object) -> bool:
    return value is None or (isinstance(value, str) and value != "" and _is_whole(value))


def _is_whole(text: str) -> bool:
    """Whether UTF-8 can carry it: half of a surrogate pair cannot be sent."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text) if not text.isascii() else True


def _is_mode(value: object) -> bool:
    return value is None or (isinstance(value, str) and value in THINKING_MODES)


def _is_cache_id(value: object) -> bool:
    return value is None or (isinstance(value, str) and 1 <= len(value) <= MAX_CACHE_ID and value.isprintable())


def _is_whole_number(most: int) -> Callable[[object], bool]:
    def is_right(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most

    return is_right


_CHECKS: Final[dict[str, tuple[str, Callable[[object], bool]]]] = {
    "system_prompt": ("text that is not empty, in whole characters", _is_prompt),
    "use_websearch": ("true or false", _is_flag),
    "thinking_mode": (f"one of {', '.join(THINKING_MODES)}", _is_mode),
    "cache_id": (f"1 to {MAX_CACHE_ID} printable characters", _is_cache_id),
    "reset_cache_ttl": ("true or false", _is_flag),
    "async_task": ("true or false", _is_flag),
    "enable_continuation": ("true or false", _is_flag),
    "max_continuation_attempts": (
        f"a whole number from 1 to {MAX_JOINED_ANSWERS}",
        _is_whole_number(MAX_JOINED_ANSWERS),
    ),
    "max_total_tokens": (f"a whole number from 1 to {MAX_TOKENS}", _is_whole_number(MAX_TOKENS)),
}
