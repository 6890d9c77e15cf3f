"""The configuration and the workers know the same faults."""

from __future__ import annotations

from callpool.manager.settings import SCRIPT_FAULTS
from callpool.workers.providers.script_faults import FAULTS


def test_the_configuration_accepts_exactly_the_faults_that_a_worker_can_produce() -> None:
    assert set(FAULTS) == SCRIPT_FAULTS
