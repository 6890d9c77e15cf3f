"""On which line of a TOML document each key stands: `tomllib` reads the values but keeps no positions.

The document has been accepted by `tomllib` before it comes here. So nothing is checked a second time: this reads just
enough of the grammar (strings, brackets, keys, separators) to tell where keys begin, in one pass over the text. The
tests compare every path found here with what `tomllib` makes of the same text.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final, NamedTuple

KeyPath = tuple[str | int, ...]
"""Names from the outermost table inwards; a whole number is an index in a list or in an array of tables."""

# Without possessive quantifiers, which in Python 3.11.2 (Debian 12) miss matches inside a group. In a valid document
# none of these patterns ever backtracks: what may follow differs in its first character from what may go on.
_TOKEN: Final = re.compile(
    r'''
      (?P<space> [ \t\r]+ | \#[^\n]* )
    | (?P<newline> \n )
    | (?P<string>
          """ [^"\\]* (?: (?: \\. | "(?!"") ) [^"\\]* )* """ "{0,2}      # a text may end in one or two quotes of its own
        | \'\'\' [^']* (?: '(?!\'\') [^']* )* \'\'\' '{0,2}
        | " [^"\\]* (?: \\. [^"\\]* )* "
        | ' [^']* '
      )
    | (?P<bare> [A-Za-z0-9_-]+ )
    | (?P<mark> . )
    ''',
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str
    """`newline`, `string`, `bare` (a bare key, or a part of a number or date), `mark` (one character), `end`."""
    text: str
    line: int
    """Where the token begins; the first line is 1."""

    def is_mark(self, *marks: str) -> bool:
        return self.kind == "mark" and self.text in marks


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line on which each key path of a valid TOML `text` first appears: tables, keys and elements of lists."""
    return _Scan(text).lines


class _Scan:
    """One pass over the tokens; `lines` is complete when the constructor returns."""

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._tokens = _TOKEN.finditer(text)
        self._line = 1
        self._sections: dict[KeyPath, int] = {}  # array of tables -> how many of its `[[sections]]` have begun
        self._next = self._read()
        self._document()

    def _read(self) -> _Token:
        for match in self._tokens:
            line, kind, found = self._line, str(match.lastgroup), match.group()
            self._line += found.count("\n")
            if kind != "space":
                return _Token(kind, found, line)
        return _Token("end", "", self._line)

    def _take(self) -> _Token:
        taken, self._next = self._next, self._read()
        return taken

    def _skip_newlines(self) -> None:
        while self._next.kind == "newline":
            self._take()

    def _document(self) -> None:
        table: KeyPath = ()
        self._skip_newlines()
        while self._next.kind != "end":
            if self._next.is_mark("["):
                table = self._header()
            else:
                self._assignment(table)
            self._skip_newlines()

    def _header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`: the absolute path of the table that begins here."""
        line = self._take().line
        repeated = self._next.is_mark("[")
        if repeated:
            self._take()
        path: KeyPath = ()
        names = self._key()
        for position, name in enumerate(names):
            path += (name,)
            self.lines.setdefault(path, line)
            if repeated and position == len(names) - 1:
                self._sections[path] = self._sections.get(path, 0) + 1
            if path in self._sections:  # what follows belongs to the section that began last
                path += (self._sections[path] - 1,)
                self.lines.setdefault(path, line)
        for _bracket in range(2 if repeated else 1):
            self._take()
        return path

    def _assignment(self, table: KeyPath) -> None:
        """`a.b = value` inside `table`."""
        line, path = self._next.line, table
        for name in self._key():
            path += (name,)
            self.lines.setdefault(path, line)
        self._take()  # the equals sign
        self._value(path)

    def _key(self) -> list[str]:
        names = [self._name()]
        while self._next.is_mark("."):
            self._take()
            names.append(self._name())
        return names

    def _name(self) -> str:
        token = self._take()
        if token.kind == "bare":
            return token.text
        return str(tomllib.loads(f"name = {token.text}")["name"])

    def _value(self, path: KeyPath) -> None:
        if self._next.is_mark("["):
            self._list(path)
        elif self._next.is_mark("{"):
            self._inline_table(path)
        else:  # a scalar: one string, or the parts of a number or a date
            while self._next.kind not in {"newline", "end"} and not self._next.is_mark(",", "]", "}"):
                self._take()

    def _list(self, path: KeyPath) -> None:
        self._take()
        self._skip_newlines()
        index = 0
        while not self._next.is_mark("]"):
            self.lines[*path, index] = self._next.line
            self._value((*path, index))
            index += 1
            self._skip_separator()
        self._take()

    def _inline_table(self, path: KeyPath) -> None:
        self._take()
        self._skip_newlines()
        while not self._next.is_mark("}"):
            self._assignment(path)
            self._skip_separator()
        self._take()

    def _skip_separator(self) -> None:
        while self._next.kind == "newline" or self._next.is_mark(","):
            self._take()
