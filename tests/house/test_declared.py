"""What is imported is declared: in setup.cfg, with a lower bound, and in the lock files, with hashes."""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.house.checkout import ROOT, installed_modules
from tests.house.imports import imports_of, parse

LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"[a-z0-9._-]+==[^ ;]+( ; .+?)?(\s+--hash=sha256:[0-9a-f]{64})+")
ELSEWHERE = re.compile(r"--(extra-)?index-url|--find-links|--trusted-host|@ |file:|https?:")


def declared() -> dict[str, Requirement]:
    """The requirements of setup.cfg, those of the extras too, by name."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    requirements = [Requirement(line) for text in lists for line in text.strip().splitlines()]
    return {requirement.name: requirement for requirement in requirements}


def test_every_import_is_declared() -> None:
    known = declared().keys() | sys.stdlib_module_names | {"callpool"}
    found = [
        f"{module}:{line}: {name}"
        for module, path in installed_modules()
        for line, name in imports_of(parse(path), module, is_package=path.name == "__init__.py")
        if name.partition(".")[0] not in known
    ]
    assert not found, "\n".join(found)


def test_every_declared_package_is_imported() -> None:
    imported = {
        name.partition(".")[0]
        for module, path in installed_modules()
        for _, name in imports_of(parse(path), module, is_package=path.name == "__init__.py")
    }
    assert declared().keys() <= imported


def test_every_requirement_has_a_lower_bound_and_its_reason() -> None:
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    for name, requirement in declared().items():
        assert any(specifier.operator == ">=" for specifier in requirement.specifier), name
        at = next(number for number, line in enumerate(lines) if re.match(rf" +{re.escape(name)}\b", line))
        assert lines[at - 1].lstrip().startswith("#"), f"{name} has no reason above it"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_file_pins_and_hashes_every_package(lock: Path) -> None:
    text = re.sub(r"^ *#.*\n?", "", lock.read_text(), flags=re.MULTILINE)
    entries = text.replace("\\\n", "").splitlines()
    assert entries
    for entry in entries:
        assert PIN.fullmatch(entry.strip()), entry[:200]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_file_names_no_place(lock: Path) -> None:
    assert ELSEWHERE.search(lock.read_text()) is None, "where packages come from is the user's to say"


@pytest.mark.parametrize("lock", ["demo.txt", "dev.txt"])
def test_a_lock_file_satisfies_setup_cfg(lock: str) -> None:
    pins = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements" / lock).read_text(), flags=re.MULTILINE))
    for name, requirement in declared().items():
        assert requirement.specifier.contains(pins[name]), name
