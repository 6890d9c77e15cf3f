from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.toml_lines import KeyPath, key_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param("\n\n# a = 1\n a = 1 # [b]\n", {("a",): 4}, id="blank-lines-and-comments"),
        pytest.param("a.b . c = 1.5\n", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1}, id="dotted"),
        pytest.param('"a.b" = 1\n\'c "d\' = 2', {("a.b",): 1, ('c "d',): 2}, id="quoted"),
        pytest.param('"\\u00e9\\n" = 1', {("é\n",): 1}, id="escaped-key"),
        pytest.param("[a.b]\nc = 1\n[ a . 'd' ]", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 2, ("a", "d"): 3}, id="tables"),
        pytest.param("a = 1979-05-27 07:32:00.5\nb = -1e+9", {("a",): 1, ("b",): 2}, id="dates-and-numbers"),
        pytest.param('a = "]}, # \\" = x"\nb = 1', {("a",): 1, ("b",): 2}, id="marks-inside-a-text"),
        pytest.param('a = """\nx = 1\n[y]\n"""\nb = 1', {("a",): 1, ("b",): 5}, id="multi-line-text"),
        pytest.param('a = """x""""" \nb = 1', {("a",): 1, ("b",): 2}, id="text-that-ends-in-quotes"),
        pytest.param('a = """x""""\nb = "y"', {("a",): 1, ("b",): 2}, id="text-that-ends-in-one-quote"),
        pytest.param('a = """x ""y"\n[z]\n"""\nb = "y"', {("a",): 1, ("b",): 4}, id="two-quotes-within"),
        pytest.param('a = """"x" \\""" """\nb = 1', {("a",): 1, ("b",): 2}, id="quotes-within-quotes"),
        pytest.param("a = '''\n'x'\n'''''\nb = 1", {("a",): 1, ("b",): 4}, id="multi-line-literal"),
        pytest.param('a = ""\nb = \'\'\nc = """"""\nd=1', {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4}, id="empty-texts"),
        pytest.param("a = [\n # one\n 1,\n\n [2,\n 3]\n]\nb = 1", {
            ("a",): 1, ("a", 0): 3, ("a", 1): 5, ("a", 1, 0): 5, ("a", 1, 1): 6, ("b",): 8,
        }, id="lists"),
        pytest.param("a = { b.c = [\n{d = 1}], e = '''\n''', f = {} }\n", {
            ("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1, ("a", "b", "c", 0): 2, ("a", "b", "c", 0, "d"): 2,
            ("a", "e"): 2, ("a", "f"): 3,
        }, id="inline-tables"),
        pytest.param("[[a]]\nb = 1\n[[a]]\n[a.c]\nd = 1\n[[a.e]]\nf = 1", {
            ("a",): 1, ("a", 0): 1, ("a", 0, "b"): 2, ("a", 1): 3, ("a", 1, "c"): 4, ("a", 1, "c", "d"): 5,
            ("a", 1, "e"): 6, ("a", 1, "e", 0): 6, ("a", 1, "e", 0, "f"): 7,
        }, id="arrays-of-tables"),
        pytest.param("a = 1\r\n\r\nb = 2\r\n", {("a",): 1, ("b",): 3}, id="line-ends-of-windows"),
    ],
)  # fmt: skip
def test_the_line_of_every_key(text: str, expected: dict[KeyPath, int]) -> None:
    assert key_lines(text) == expected
    assert key_lines(text).keys() == set(paths_of(tomllib.loads(text)))


def paths_of(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    """Every path in what tomllib read."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in children for found in [(*path, key), *paths_of(child, (*path, key))]]


class Writer:
    """Writes a tree of tables as TOML, in ways that the draws choose, and notes the line of every path."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.text = ""
        self.lines: dict[KeyPath, int] = {}
        self._draw = draw

    def note(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def maybe(self, *choices: str) -> None:
        self.text += self._draw(st.sampled_from(choices))

    def table(self, path: KeyPath, table: dict[str, Any]) -> None:
        """Plain keys first, then the tables that get headers of their own: the order that TOML asks for."""
        later: dict[str, dict[str, Any]] = {}
        for name, value in table.items():
            if isinstance(value, dict) and self._draw(st.booleans()):
                later[name] = value
            else:
                self.maybe("", "\n", "# [c]\n", "  ")
                self.assignment((*path, name), name, value)
                self.maybe("\n", " # = 1\n", "\n\n")
        for name, value in later.items():
            self.note((*path, name))
            self.text += f"[{'.'.join(self.key(str(part)) for part in (*path, name))}]\n"
            self.table((*path, name), value)

    def assignment(self, path: KeyPath, name: str, value: Any) -> None:
        self.note(path)
        self.text += self.key(name)
        if isinstance(value, dict) and len(value) == 1 and self._draw(st.booleans()):
            self.text += "."
            ((inner, only),) = value.items()
            self.assignment((*path, inner), inner, only)
            return
        self.text += " = "
        self.value(path, value)

    def key(self, name: str) -> str:
        if name.isascii() and name.isalnum() and self._draw(st.booleans()):
            return name
        return json.dumps(name)

    def value(self, path: KeyPath, value: Any) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for position, (name, item) in enumerate(value.items()):
                self.text += ", " if position else " "
                self.assignment((*path, name), name, item)
            self.text += "}"
        elif isinstance(value, list):
            self.text += "["
            for index, item in enumerate(value):
                self.maybe("", "\n", " # ]\n")
                self.note((*path, index))
                self.value((*path, index), item)
                self.maybe(",", "\n,", ", # x\n")
            self.text += "]"
        elif isinstance(value, str) and self._draw(st.booleans()):
            self.text += '"""\n' + json.dumps(value)[1:-1].replace("\\n", "\n") + '"""'
        else:
            self.text += json.dumps(value)


names = st.text(st.sampled_from("ab1.- \"'\n[]=#é"), max_size=3)
scalars = st.booleans() | st.integers(0, 10) | st.text(st.sampled_from("ab\n\"'],}[{=# "), max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[KeyPath, int]]:
    tree = draw(st.dictionaries(names, values, max_size=4))
    writer = Writer(draw)
    writer.table((), tree)
    return writer.text, tree, writer.lines


@given(documents())
def test_any_document_has_the_lines_on_which_it_was_written(
    document: tuple[str, dict[str, Any], dict[KeyPath, int]],
) -> None:
    text, tree, lines = document
    assert tomllib.loads(text) == tree, "the test's writer is wrong"
    assert key_lines(text) == lines
