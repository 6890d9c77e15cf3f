"""What the live tests learn: one JSON file, and a summary for people. Nothing leaves here that names an account or a key.

Redaction is for text of providers, where sentences change: known secrets go first, then whatever looks like an identifier.
Too much is taken out rather than too little.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

GONE: Final = "[redacted]"
SHORTEST_SECRET: Final = 4
"""Characters: a shorter one would take every second word with it."""
LARGEST_FIGURE: Final = 99_999_999
"""No limit and no count is larger; numbers of accounts are."""
_IDENTIFIERS: Final = re.compile(
    r"""
      <[^<>]*>                                                        # Moonshot's accounts stand in angle brackets
    | \bBearer\s+\S+
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+                                    # addresses of people
    | \b(?:org|organization|ak|sk|uid|user|usr|proj|project|acct|account|cus|team|req|request|ft|chatcmpl)[-_:]
      (?=[\w.:*-]*\d)[\w.:*-]{4,}                                     # a word for what it is, and a number
    | \b(?:org|organization|proj|project|acct|cus|ft|sk|ak)[-:][\w.:*-]{6,}
    | \b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b
    | \b(?=[A-Za-z_]*\d)(?=\d*[A-Za-z_])\w{16,}\b                     # letters and figures mixed
    | (?<![\d.])\d{9,}\b                                              # as LARGEST_FIGURE
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


def redact(value: Any, secrets: Iterable[str] = ()) -> Any:
    """The same data, with secrets and identifiers taken out of every text and every name."""
    known = sorted((secret for secret in secrets if len(secret) >= SHORTEST_SECRET), key=len, reverse=True)
    return _redacted(value, known)


def _redacted(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {_redacted(str(name), secrets): _redacted(each, secrets) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(each, secrets) for each in value]
    if isinstance(value, int) and abs(value) > LARGEST_FIGURE:
        return GONE
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, GONE)
    return _IDENTIFIERS.sub(GONE, value)


class Facts:
    """What is known so far, by kind and by name."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        self._secrets: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._known)

    def hide(self, secrets: Iterable[str]) -> None:
        """Let none of these appear in what is written."""
        self._secrets.update(secrets)

    def note(self, kind: str, name: str, value: Any) -> None:
        """Keep what was learnt; the later of two wins."""
        self._known.setdefault(kind, {})[name] = value

    def redacted(self) -> dict[str, Any]:
        """All of it, fit to be shown."""
        known: dict[str, Any] = redact(self._known, self._secrets)
        return known

    def write(self, path: Path) -> None:
        """Write the JSON file, and the summary beside it under the same name and `.txt`."""
        path.write_text(json.dumps(self.redacted(), indent=2, ensure_ascii=False) + "\n")
        path.with_name(path.name + ".txt").write_text("\n".join(self.summary()) + "\n")

    def summary(self) -> list[str]:
        """A line for each fact, under a line for each kind."""
        lines = []
        for kind, facts in self.redacted().items():
            lines.append(kind)
            for name, value in facts.items():
                lines.append(f"  {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
        return lines
