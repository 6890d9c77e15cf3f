"""Jobs as lines of a file: texts as JSON values, and a file that is there whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from callpool.tools.cli import terminal

if TYPE_CHECKING:
    from collections.abc import Iterable


def plain(job: dict[str, Any]) -> dict[str, Any]:
    """A job of an export with its texts, which travel as bytes of JSON, as JSON values."""
    told = dict(job)
    if told.get("result") is not None:
        told["result"] = json.loads(told["result"])
    if told.get("request") is not None:
        request = dict(told["request"])
        for name in ("payload", "metadata"):
            request[name] = _value(request[name])
        told["request"] = request
    return told


def output_path(given: str) -> Path:
    """The file that is to be written. Raises typer.BadParameter for what is no regular file: a rename would put one in its place."""
    path = Path(given).expanduser().absolute()
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise typer.BadParameter("is there, and no regular file", param_hint="'--output'")
    return path


def write_file(path: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Write lines of JSON into a file of mode 0600; an older one is replaced. Returns how many lines. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    count = 0
    try:
        with os.fdopen(descriptor, "wb") as file:
            for line in lines:
                file.write(terminal.as_json(line).encode() + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count


def _value(text: bytes) -> Any:
    """What bytes of JSON say. A client may send what is none."""
    try:
        return json.loads(text)
    except ValueError:
        return {"unreadable": f"{len(text)} bytes"}
