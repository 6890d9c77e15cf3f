"""Requests that are left with a service, which works on them by itself: when to look for the answer, and what one sees."""

from __future__ import annotations

from typing import Any

from yarl import URL

from callpool.workers.providers.completion import Malformed

FIRST_LOOK = 0.25
"""Seconds from the order to the first look; each pause is twice the one before."""
LONGEST_PAUSE = 5.0
"""Seconds. A look costs a request, and such an answer takes many seconds."""
MAX_ID = 200
"""Characters."""


def result_url(root: URL, order: dict[str, Any]) -> URL:
    """Where the answer to an order will be. Raises `Malformed`: what is no plain name must not lead anywhere."""
    name = order.get("id")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID or not name.replace("-", "").replace("_", "").isalnum():
        raise Malformed("its task has no id that could be asked for")
    return root / name


def has_ended(task: dict[str, Any]) -> bool:
    """Whether a task has its answer. Raises `Malformed` for one that has failed, and for a state that we do not know."""
    state = task.get("task_status")
    if state == "FAIL":
        raise Malformed("its task has failed")
    if state not in ("PROCESSING", "SUCCESS"):
        raise Malformed("its task is in no state that we know")
    return bool(state == "SUCCESS")
