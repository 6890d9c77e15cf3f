"""A pytest plugin that puts a fake in each provider's place: a live run without a live account. See `test_rehearsal`."""

from __future__ import annotations

import os

import msgspec
import pytest

from callpool.manager.kinds import KindFacts, kind_facts
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.live import accounts

KEY_OF_FAKES = "sk-rehearsal-opensesame"


def pytest_configure(config: pytest.Config) -> None:
    """Every platform of a kind is its fake, and the key is set, until the run ends."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    facts: dict[str, KindFacts] = {}
    for kind in accounts.KINDS:
        fake = FakeProviderProcess(dialect=kind, api_key=KEY_OF_FAKES)
        config.add_cleanup(fake.stop)
        known = kind_facts(kind)
        facts[kind] = msgspec.structs.replace(known, platforms=dict.fromkeys(known.platforms, fake.base_url))
        patch.setitem(os.environ, known.key_variables[0], KEY_OF_FAKES)
    patch.setattr(accounts, "kind_facts", facts.__getitem__)
