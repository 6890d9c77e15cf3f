"""A provider's key, held so that it does not leave by accident.

Keys reach text in ways that nobody plans: a repr in a log, a provider that quotes the header it refused, an exception
that carries its request. So the value has one door out (`reveal`), and what becomes a message goes through `redact`.
"""

from __future__ import annotations

import weakref
from typing import NoReturn

from callpool.manager.errors import ConfigError

PLACEHOLDER = "[key]"

MIN_PART = 16
"""Characters from which a dot-separated part of a key counts as secret too: GLM keys are `id.secret`."""

_living: weakref.WeakSet[Secret] = weakref.WeakSet()
"""Every key of this process, for `redact`. Filled by `Secret`, emptied by the garbage collector."""


class Secret:
    """One key. Every text form of it is `[key]`; it cannot be pickled or copied."""

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: str) -> None:
        """Raise `ConfigError` for what no HTTP header can carry; the message does not hold the value."""
        if not value:
            raise ConfigError("the key is empty")
        if not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigError(
                "the key has a space, a line break, a control character or a letter outside ASCII",
                hint="copy the key again: often a line break or a quotation mark came along",
            )
        self._value = value
        _living.add(self)

    def reveal(self) -> str:
        """The key itself. Call it where the header is made, and nowhere else."""
        return self._value

    def parts(self) -> list[str]:
        """What must not show in any text: the key, and those parts of it that are secret by themselves."""
        return [self._value, *(part for part in self._value.split(".") if len(part) >= MIN_PART)]

    def __repr__(self) -> str:
        return PLACEHOLDER

    def __format__(self, format_spec: str) -> str:
        return PLACEHOLDER

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled or copied: give the key to the process that needs it")


def redact(text: str) -> str:
    """The text with every key of this process replaced by `[key]`."""
    parts = {part for secret in list(_living) for part in secret.parts()}
    for part in sorted(parts, key=len, reverse=True):  # longest first: a key may contain another
        text = text.replace(part, PLACEHOLDER)
    return text
