"""What a source file imports, read without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


def parse(path: Path) -> ast.Module:
    """The tree of a source file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


class Import(NamedTuple):
    """One imported name in full: `callpool.manager.errors.BadInput`, or `os` for `import os`."""

    line: int
    name: str


def imports_of(tree: ast.AST, module: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import of a file, wherever in it, those for the type checker too: they are dependencies of the reader."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            origin = absolute(node, module, is_package=is_package)
            for alias in node.names:
                yield Import(node.lineno, f"{origin}.{alias.name}")
        elif isinstance(node, ast.Call) and (name := imported_by_call(node)):
            yield Import(node.lineno, name)


def imported_by_call(node: ast.Call) -> str | None:
    """The name in `importlib.import_module("name")`, the one other way that the house uses."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    if called == "import_module" and node.args and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return None


def absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The absolute name of what `from … import` names: a relative one counts its dots from the package."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if is_package else module.split(".")[:-1]
    base = package[: len(package) - (node.level - 1)]
    return ".".join([*base, node.module] if node.module else base)
