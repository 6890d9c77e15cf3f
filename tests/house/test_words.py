"""No file of the project tells where somebody's checkout is."""

from __future__ import annotations

import re

import pytest

from tests.house.checkout import ROOT, tracked_files

# In pieces, so that this file does not hold what it looks for. The names are everybody's examples.
HOME = re.compile(rb"(?<![\w.~*-])/(?:" + b"|".join([b"home", b"Users", b"root"]) + rb")/(?!(?:u|user|you)\b)[\w.-]+")


def test_no_file_names_a_home() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group().decode()}"
        for path in tracked_files()
        for match in HOME.finditer(path.read_bytes())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["cd /ho" + "me/ann/callpool", '"/Us' + 'ers/ann"', "sys.path=[/ro" + "ot/x]"])
def test_a_home_is_found(text: str) -> None:
    assert HOME.search(text.encode())


@pytest.mark.parametrize("text", ["https://example.org/home/page", "home/x", "~/home/x", "/homework/x", "/home/you/x"])
def test_other_paths_are_not(text: str) -> None:
    assert HOME.search(text.encode()) is None
