"""Answers that are ordered now and fetched later (GLM's asynchronous tasks). Pure: what makes time pass is being asked."""

from __future__ import annotations

from typing import Any

import msgspec

from callpool.tools.testing import fake_answers
from callpool.tools.testing.fake_answers import Answer

TASKS_KEPT = 10_000
"""Tasks of one fake; beyond that the oldest is forgotten."""


class Task(msgspec.Struct, kw_only=True):
    """One answer on order."""

    id: str
    key: str
    """Whose it is: nobody else may look."""
    request_id: str
    polls: int
    """How many more looks find it at work."""
    fails: bool
    answer: Answer

    @property
    def model(self) -> str:
        """The model that is at work."""
        return self.answer.model

    def head(self, status: str) -> dict[str, Any]:
        """What is told of a task in every state."""
        return {"id": self.id, "request_id": self.request_id, "model": self.model, "task_status": status}

    def look(self) -> bytes:
        """What one look finds; it counts."""
        if self.polls:
            self.polls -= 1
            return msgspec.json.encode(self.head("PROCESSING"))
        if self.fails:
            return msgspec.json.encode(self.head("FAIL"))
        return msgspec.json.encode({**self.head("SUCCESS"), **fake_answers.outcome(self.answer)})


class Tasks:
    """The tasks of one fake. Owner: its event loop."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}

    def order(self, task: Task) -> bytes:
        """Keep a task; what its client is told."""
        self._tasks[task.id] = task
        if len(self._tasks) > TASKS_KEPT:
            del self._tasks[next(iter(self._tasks))]
        return msgspec.json.encode(task.head("PROCESSING"))

    def find(self, task_id: str, key: str) -> Task | None:
        """The task of this name, where it belongs to this key."""
        task = self._tasks.get(task_id)
        return task if task is not None and task.key == key else None
