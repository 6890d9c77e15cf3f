"""What several files of these tests need."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned processes get this process's path: let them find the targets."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
