"""A whole chat through a session: the names of the specification's provider integration, for every client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callpool.manager.core.options import Options
from callpool.manager.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping


def as_submit(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `chat` as those of `submit`: options by their names, `timeout_seconds`, and everything else as it is.

    An answer that is cut is continued unless `enable_continuation` is False. Raises BadInput.
    """
    if "options" in given:
        raise BadInput("options are given to chat by their own names, like thinking_mode='high'", param="options")
    if given.get("stream"):
        raise BadInput("stream is not for chat, which returns the whole answer: use submit", param="stream")
    if "timeout" in given and "timeout_seconds" in given:
        raise BadInput("timeout and timeout_seconds are the same: leave one of them out", param="timeout_seconds")
    named = {name: value for name, value in given.items() if name in Options.__struct_fields__}
    rest = {name: value for name, value in given.items() if name not in named}
    if "timeout_seconds" in rest:
        rest["timeout"] = rest.pop("timeout_seconds")
    return {**rest, "options": Options(**{"enable_continuation": True, **named})}
