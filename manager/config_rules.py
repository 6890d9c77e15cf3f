"""What each key of a configuration may hold: one rule for each, in tables that mirror the settings.

No value reaches a message unless it is a short word that was meant to be one of a list: people do paste their key into
the wrong line, and a refusal is printed, logged and sent around.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple, get_args

from callpool.manager.core.retry import MAX_ATTEMPTS, MAX_FALLBACKS
from callpool.manager.settings import Kind
from callpool.manager.toml_lines import KeyPath

KINDS: Final[tuple[str, ...]] = get_args(Kind)
LONGEST_TIME: Final = 86_400.0
"""Seconds, one day: nothing in a supervisor waits longer, and larger numbers overflow the system's timers."""
MOST_REQUESTS: Final = 10**9
MOST_TOKENS: Final = 10**15
MOST_MONEY: Final = 1e12
"""Far beyond any account, and far below where sums of them lose their last digits."""
NAME: Final = r"[A-Za-z0-9_.-]{1,64}"
"""Of a provider, an organisation or a client."""
NAME_WORDS: Final = "1 to 64 letters, digits, dots, underscores or hyphens"

Rule = Callable[[object], str | None]
"""Takes a value, returns what is wrong with it, or None."""


class Problem(NamedTuple):
    """One thing that is wrong: where, and a phrase for a person that follows the key."""

    path: KeyPath
    what: str
    valid: Collection[str] = ()
    """For a name that is not known: those that it could have been."""
    name: str | None = None
    """That name; None: the last part of the path."""

    def sentence(self) -> str:
        """The whole message. The search for the nearest name is slow, so it is made for problems that are shown alone."""
        if not self.valid:
            return self.what
        return f"{self.what}; {nearest(str(self.path[-1]) if self.name is None else self.name, self.valid)}"


def type_name(value: object) -> str:
    """A value's type in the words of a TOML file."""
    words = ((bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "text"), (Mapping, "a table"))
    for kind, word in words:  # bool comes first: to Python it is an int
        if isinstance(value, kind):
            return word
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def wanted(what: str, value: object) -> str:
    """The message about a wrong type."""
    return f"{what} is wanted, this is {type_name(value)}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """The part of a message that names the nearest valid name, or all of them where none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(name[:100].lower(), names, n=1)
    return f'did you mean "{near[0]}"?' if near else f"valid are: {', '.join(names)}"


def _whole(least: int, most: int) -> Rule:
    def rule(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return wanted("a whole number", value)
        return None if least <= value <= most else f"must be from {least} to {most}"

    return rule


def _seconds(*, zero: bool = False, shortest: float = 0.0) -> Rule:
    least = "0 or more" if zero else f"at least {shortest:g}" if shortest else "more than 0"

    def rule(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return wanted("a number of seconds", value)
        if isinstance(value, float) and not math.isfinite(value):  # NaN passes every comparison below, turned round
            return "must be a finite number of seconds"
        if value < shortest or value > LONGEST_TIME or (value == 0 and not zero):
            return f"must be {least} and at most {LONGEST_TIME:.0f} seconds"
        return None

    return rule


def one_of(names: Collection[str], noun: str) -> Rule:
    """The rule for a text that must be one of `names`."""

    def rule(value: object) -> str | None:
        if not isinstance(value, str):
            return wanted("text", value)
        if value in names:
            return None
        return f"{word(value)} is no {noun}; {nearest(value, names)}"

    return rule


def word(value: str) -> str:
    """A value for a message if it can be a mistyped word; anything that could be a secret stays out."""
    return repr(value) if re.fullmatch(r"[a-z_ -]{0,30}", value, re.IGNORECASE) else "this"


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else wanted("true or false", value)


def _text(value: object) -> str | None:
    return None if isinstance(value, str) else wanted("text", value)


def _texts(value: object) -> str | None:
    return None if isinstance(value, list | tuple) else wanted("a list of texts", value)


TARGET: Final = r"[^/]+/.+"
"""`provider/model`: a model's name may have slashes of its own."""


def _targets(value: object) -> str | None:
    if not isinstance(value, list | tuple):
        return wanted("a list of provider/model", value)
    if len(value) > MAX_FALLBACKS:
        return f"has {len(value)} entries, the limit is {MAX_FALLBACKS}"
    wrong = next((name for name in value if not (isinstance(name, str) and re.fullmatch(TARGET, name))), None)
    return None if wrong is None else f"each entry is provider/model, one is {str(wrong)[:80]!r}"


def _share(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return wanted("a number from 0 to 1", value)
    return None if 0 <= value <= 1 else "must be from 0 to 1"


def _amount(*, zero: bool = False, least: float = 0.0, most: float = MOST_MONEY) -> Rule:
    """A number of something that need not be whole, as money."""
    words = "0 or more" if zero else f"at least {least:g}" if least else "more than 0"

    def rule(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return wanted("a number", value)
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        return (
            f"must be {words} and at most {most:g}" if not least <= value <= most or (value == 0 and not zero) else None
        )

    return rule


def _name(value: object) -> str | None:
    if not isinstance(value, str):
        return wanted("text", value)
    return None if re.fullmatch(NAME, value) else f"must be a name of {NAME_WORDS}"


def _file_name(value: object) -> str | None:
    if not isinstance(value, str):
        return wanted("text", value)
    return None if value and value.isprintable() else "must be the path of a file"


def _variable_name(value: object) -> str | None:
    if not isinstance(value, str):
        return wanted("text", value)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value) or _looks_like_a_key(value):
        return "must be the name of an environment variable, not the key itself (the value is not repeated here)"
    return None


def _looks_like_a_key(name: str) -> bool:
    """True for names that are a pasted key: a prefix of vendors, or one long word of letters and digits."""
    return name.lower().startswith(("sk-", "sk_")) or (
        len(name) >= 20 and "_" not in name and any(letter.isdigit() for letter in name)
    )


def _base_url(value: object) -> str | None:
    """An address to which keys and prompts go. The value is never repeated: it may hold a password."""
    if not isinstance(value, str):
        return wanted("text", value)
    if not re.fullmatch(r"[!-~]{1,2048}", value) or "\\" in value:
        return "must be a URL of printable ASCII characters, without spaces or backslashes"
    try:
        parts = urllib.parse.urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "is not a valid URL"
    open_to_the_network = parts.scheme == "http" and not _is_loopback(host)
    checks = (
        (not value.lower().startswith(("https://", "http://")), "must begin with https://"),
        ("@" in parts.netloc, "must not hold a user name or password: use api_key_env or api_key_file"),
        ("?" in value or "#" in value, "must end with the path, without ? and #"),
        (not _is_host(host), "needs a host"),
        (port == 0 or parts.netloc.endswith(":"), "must name a port from 1 to 65535, or none"),
        (open_to_the_network, "must begin with https:// (http is for 127.0.0.0/8, ::1 and localhost alone)"),
    )
    return next((what for wrong, what in checks if wrong), None)


def _is_host(host: str) -> bool:
    if ":" not in host:
        return re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?", host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    """Only what every resolver reads as this machine: no names (but one), no integers, no IPv4 inside IPv6."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    loopback = ipaddress.IPv4Network("127.0.0.0/8")
    return address in loopback if address.version == 4 else address == ipaddress.IPv6Address("::1")


SUPERVISOR_RULES: Final[dict[str, Rule]] = {
    "workers": _whole(1, 64),
    "max_concurrent_sessions": _whole(1, 100_000),
    "max_metadata_size": _whole(2, 1_048_576),  # {} is two bytes; a whole request is at most 1 MiB
    "default_timeout": _seconds(),
    "max_queued_requests": _whole(1, 1_000_000),
    "max_queued_bytes": _whole(1, 2**40),
    "shutdown_timeout": _seconds(),
    "heartbeat_interval": _seconds(),
    "max_calls_per_worker": _whole(0, 10**9),
    "max_worker_memory": _whole(0, 2**40),
    "max_connections": _whole(1, 100_000),
    "history_requests": _whole(1, 1_000_000),
    "history_bytes": _whole(65_536, 2**40),
    "history_seconds": _seconds(),
    "cleanup_interval": _seconds(),
    "function_workers": _whole(0, 64),
    "max_attempts": _whole(1, MAX_ATTEMPTS),
    "retry_wait": _seconds(zero=True),
    "retry_longest_wait": _seconds(zero=True),
    "retry_budget": _share,
    "circuit_failures": _whole(0, 1_000),
    "circuit_pause": _seconds(),
    "circuit_longest_pause": _seconds(),
    "circuit_patience": _seconds(zero=True),
    "lifecycle_log": _flag,
    "max_requests_per_minute": _whole(1, MOST_REQUESTS),
    "queue_timeout": _seconds(),
    "ageing": _seconds(),
}
JOURNAL_RULES: Final[dict[str, Rule]] = {
    "durability": one_of(("full", "process", "none"), "durability"),
    "max_bytes": _whole(1_048_576, 2**46),  # SQLite's own limit lies a little above
}
RETENTION_RULES: Final[dict[str, Rule]] = {
    "result_days": _amount(least=0.0001, most=3_650),
    "history_days": _amount(least=0.0001, most=3_650),
}
PROVIDER_RULES: Final[dict[str, Rule]] = {
    "kind": one_of(KINDS, "kind of provider"),
    "platform": _text,
    "base_url": _base_url,
    "api_key_env": _variable_name,
    "api_key_file": _file_name,
    "concurrency": _whole(1, 100_000),
    "requests_per_minute": _whole(1, MOST_REQUESTS),
    "tokens_per_minute": _whole(1, MOST_TOKENS),
    "tokens_per_day": _whole(1, MOST_TOKENS),
    "money_per_day": _amount(),
    "organization": _name,
    "charge": one_of(("advance", "actual"), "way to charge tokens"),
    "concurrency_of": one_of(("account", "model"), "holder of a limit"),
    "cancel_lag": _seconds(zero=True),
    "queue_timeout": _seconds(),
    "connections": _whole(1, 100_000),
    "keep_alive": _seconds(
        shortest=1.0
    ),  # connections kept warm are replaced within it: that must not become a hot loop
    "warm_connections": _whole(0, 1_000),
    "timeout": _seconds(),
    "first_token_timeout": _seconds(),
    "idle_timeout": _seconds(),
    "max_attempts": _whole(1, MAX_ATTEMPTS),
    "fallbacks": _targets,
    "any_model": _flag,
    "unsupported_parameters": one_of(("refuse", "drop"), "way to treat them"),
}
MODEL_RULES: Final[dict[str, Rule]] = {
    "timeout": _seconds(),
    "first_token_timeout": _seconds(),
    "idle_timeout": _seconds(),
    "fallbacks": _targets,
    "context": _whole(1, 100_000_000),
    "max_output": _whole(1, 10_000_000),
    "max_tokens": _whole(1, 10_000_000),
    "concurrency": _whole(1, 100_000),
    "requests_per_minute": _whole(1, MOST_REQUESTS),
    "tokens_per_minute": _whole(1, MOST_TOKENS),
    "tokens_per_day": _whole(1, MOST_TOKENS),
    "input_price": _amount(zero=True),
    "output_price": _amount(zero=True),
    "cached_input_price": _amount(zero=True),
    "queue_timeout": _seconds(),
    "reply": _text,
    "replies": _texts,
    "delay": _seconds(zero=True),
    "chunks": _whole(0, 100_000),
    "chunk_delay": _seconds(zero=True),
    "error_times": _whole(1, 1_000_000),
    "error": _text,
}
ORGANIZATION_RULES: Final[dict[str, Rule]] = {
    "concurrency": _whole(1, 100_000),
    "requests_per_minute": _whole(1, MOST_REQUESTS),
    "tokens_per_minute": _whole(1, MOST_TOKENS),
    "tokens_per_day": _whole(1, MOST_TOKENS),
    "money_per_day": _amount(),
}
CLIENT_RULES: Final[dict[str, Rule]] = {
    "weight": _amount(least=0.001, most=1_000),  # far apart enough for anybody; shares of far less are rounding
    "max_requests_per_minute": _whole(1, MOST_REQUESTS),
    "tokens_per_day": _whole(1, MOST_TOKENS),
    "money_per_day": _amount(),
}
