"""A progress that remembers what a provider told of a call."""

from __future__ import annotations

from typing import Any


class Recorder:
    """What was told, in order."""

    def __init__(self) -> None:
        self.starts = 0
        self.texts: list[str] = []
        self.chunks: list[dict[str, Any]] = []
        """The provider's own objects; a plain answer that came instead of a stream has none."""
        self.useful: list[bool] = []
        self.is_whole = False
        self.counts: list[dict[str, Any]] = []

    async def started(self) -> None:
        self.starts += 1

    async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None:
        self.texts.append(text)
        self.useful.append(useful)
        if raw is not None:
            self.chunks.append(raw)

    def counted(self, usage: dict[str, Any]) -> None:
        self.counts.append(usage)

    def whole(self) -> None:
        self.is_whole = True
