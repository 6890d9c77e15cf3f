"""What went wrong, as data: one shape for every door.

A `Fault` crosses process borders, is stored with a finished request and is printed by every door. `callpool.errors`
turns it into an exception class for Python callers, and back. The core produces faults and never raises them at a caller.
"""

from __future__ import annotations

import msgspec

Detail = int | float | str | bool | None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One failure: stable `code`, human `message`, the offending `param`, a `hint` that says what to do, and numbers.

    `code` is snake_case and never changes its meaning. `param` is the dotted path of the field at fault. `details`
    holds the figures behind the message (limits, sizes, pids), so that no caller parses prose.
    """

    code: str
    message: str
    param: str | None = None
    hint: str | None = None
    details: dict[str, Detail] = {}


def bad_input(param: str, message: str, *, hint: str | None = None, **details: Detail) -> Fault:
    """A fault of the caller's: `param` and what is wrong with it."""
    return Fault(code="bad_input", message=f"{param} {message}", param=param, hint=hint, details=details)
