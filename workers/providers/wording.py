"""How foreign text enters our messages: without keys, without control characters, and short."""

from __future__ import annotations

from callpool.workers.providers.secret import redact

LIMIT = 300
"""Characters of foreign text in one message: enough for every provider's sentence, too short to flood a log."""


def clean(text: str, limit: int = LIMIT) -> str:
    """Foreign text, fit for a message, a log line and a terminal: at most `limit` characters, all printable.

    The key is taken out before the cut: half a key at the edge would not be recognised any more.
    """
    text = redact(text)
    printable = "".join(char if char.isprintable() else _escape(char) for char in text[: limit + 1])
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def describe(error: BaseException, limit: int = LIMIT) -> str:
    """An exception as `Type: text`, even one whose `__str__` raises."""
    name = clean(type(error).__name__, 80)
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  foreign code: whatever it raises, the failure itself must still be told
        return f"{name} (its text cannot be read)"
    return f"{name}: {clean(text, limit)}" if text else name


def _escape(char: str) -> str:
    r"""`\n`, `\x1b`, `\u202e`: line breaks, terminal commands and writing-direction marks become visible."""
    return char.encode("unicode_escape").decode("ascii")
