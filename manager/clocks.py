"""Whether a clock can be believed."""

from __future__ import annotations

from typing import Final

LARGEST_JUMP: Final = 3_600.0
"""Seconds by which the wall clock may be set in a run: more, and nothing is forgotten for its age until the next start."""


class WallClock:
    """Whether the wall clock goes as the monotonic one does: what is forgotten for its age must not be so for a jump of a clock."""

    def __init__(self, wall: float, monotonic: float) -> None:
        self._apart = wall - monotonic

    def is_steady(self, wall: float, monotonic: float) -> bool:
        """Whether it has not jumped by more than an hour in this run."""
        return abs(wall - monotonic - self._apart) <= LARGEST_JUMP
