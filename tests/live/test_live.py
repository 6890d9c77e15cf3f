"""Real accounts, asked through callpool as a program would, and once past it for what its own path does not show.

Run by `make test-live` alone. Each check costs one small request (the long answer up to three); without a key everything is
skipped, and the reason names the variables.
"""

from __future__ import annotations

import os

import pytest

from tests.live import probe, smoke
from tests.live.accounts import KINDS, Account
from tests.live.facts import Facts
from tests.live.smoke import Target

pytestmark = pytest.mark.live


@pytest.mark.parametrize(("kind", "check"), [(kind, check) for kind in KINDS for check in smoke.checks_for(kind)])
def test_smoke(kind: str, check: str, target: Target, facts: Facts) -> None:
    smoke.run(check, target, facts)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_tells_beside_its_answers(kind: str, account: Account, target: Target, facts: Facts) -> None:
    seen, made = probe.look(account)
    target.beside += made
    for name, value in seen.items():
        facts.note(kind, name, value)
    assert seen["chat"]["status"] in (200, 429)


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_of_a_limit(kind: str, account: Account, target: Target, facts: Facts) -> None:
    if os.environ.get("CALLPOOL_LIVE_LIMITS") != "1":
        pytest.skip("meets a limit on purpose: set CALLPOOL_LIVE_LIMITS=1")
    seen, made = probe.meet_limit(account)
    target.beside += made
    facts.note(kind, "limit", seen)
    assert set(seen["statuses"]) <= {200, 400, 429}
