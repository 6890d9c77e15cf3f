"""The live run itself, from the environment to the file of facts: without keys, and with fakes in the providers' places."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from callpool.manager.kinds import kind_facts
from tests.house.checkout import ROOT
from tests.live.accounts import KINDS
from tests.live.rehearsal import KEY_OF_FAKES

# A plugin is imported before pytest finds the tests' own package.
REHEARSE = """
import sys
import pytest
sys.path.append(sys.argv[1])
from tests.live import rehearsal
sys.exit(pytest.main(sys.argv[2:], plugins=[rehearsal]))
"""
RUN = ["tests/live", "-m", "live", "-p", "no:cacheprovider"]


def live_run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "CALLPOOL_LIVE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def test_without_any_key_everything_is_skipped_and_the_run_succeeds() -> None:
    done = live_run("-Im", "pytest", *RUN)
    assert done.returncode == 0, done.stdout
    assert "passed" not in done.stdout
    for kind in KINDS:
        assert f"no account of kind {kind}: set {kind_facts(kind).key_variables[0]}" in done.stdout


def test_a_run_writes_what_it_learnt(tmp_path: Path) -> None:
    """The checks that need no special answer; the fakes give the same one to everybody."""
    path = tmp_path / "new" / "facts.json"
    few = "plain or streamed or wrong_key or beside or limit"
    done = live_run(
        "-Ic", REHEARSE, str(ROOT), *RUN, "-k", few, CALLPOOL_LIVE_FACTS=str(path), CALLPOOL_LIVE_LIMITS="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 passed" in done.stdout
    facts = json.loads(path.read_text())
    assert list(facts) == list(KINDS)
    # Three checks, the look (with two more for the estimate), and one call more than the account allows.
    assert [facts[kind]["requests"] for kind in KINDS] == [3 + 4 + 2, 3 + 2 + 3, 3 + 2 + 11]
    assert facts["glm"]["wrong_key"]["error"] == "CredentialRefused"
    assert "  requests: 9\n" in done.stdout
    assert KEY_OF_FAKES not in done.stdout + path.read_text()
