"""From settings to parts: the core with its tables, and the options of model servers. Pure, except for finding the model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from callpool.manager.core.carryover import Carryover
from callpool.manager.core.catalogue import Catalogue, ProviderEntry
from callpool.manager.core.circuits import CircuitRules
from callpool.manager.core.faults import Fault
from callpool.manager.core.ledger import Ledger
from callpool.manager.core.lifecycle import Lifecycle
from callpool.manager.core.machine import Core
from callpool.manager.core.retry import RetryRules
from callpool.manager.core.scheduler import Scheduler
from callpool.manager.core.sessions import SessionTable
from callpool.manager.errors import CallpoolError
from callpool.manager.kinds import rules_of
from callpool.manager.ledger_rules import ledger_rules, slots_of
from callpool.manager.settings import LOCAL_MODEL
from callpool.manager.store import Store
from callpool.workers.model_options import ModelOptions, find_model, require_engine

if TYPE_CHECKING:
    from callpool.manager.boot import Boot
    from callpool.manager.core.limits import LedgerRules
    from callpool.manager.core.requests import Now
    from callpool.manager.settings import ProviderSettings, SupervisorSettings
    from callpool.manager.store import Durability

JOURNAL_FILE = "journal.db"
LEAST_LAG = 0.5
"""Seconds after a crash in which calls that were out may still arrive at their provider, also where `cancel_lag` is less."""


def build_core(boot: Boot, store: Store | None = None, now: Now | None = None) -> Core:
    """The core of a supervisor with these settings. `store`: of the journal, whose windows it carries on from `now`."""
    pool = boot.settings.supervisor
    catalogue = build_catalogue(boot)
    ledger = build_ledger(ledger_rules(boot.settings), store, now)
    return Core(
        catalogue=catalogue,
        sessions=SessionTable(max_concurrent=pool.max_concurrent_sessions, max_metadata_bytes=pool.max_metadata_size),
        ledger=ledger,
        scheduler=Scheduler(
            max_requests=pool.max_queued_requests,
            max_bytes=pool.max_queued_bytes,
            weight_of=ledger.weight_of,
            ageing=pool.ageing,
        ),
        lifecycle=Lifecycle(
            max_requests=pool.history_requests,
            max_bytes=pool.history_bytes,
            max_age=pool.history_seconds,
            stream=pool.lifecycle_log,
        ),
        cleanup_interval=pool.cleanup_interval,
        retry_rules=_retry_rules(pool, pool.max_attempts),
        own_retry_rules={
            name: _retry_rules(pool, provider.max_attempts)
            for name, provider in boot.settings.providers.items()
            if provider.max_attempts is not None
        },
        circuit_rules=CircuitRules(
            failures=pool.circuit_failures,
            first_pause=pool.circuit_pause,
            longest_pause=max(pool.circuit_pause, pool.circuit_longest_pause),
            patience=pool.circuit_patience,
        ),
        draw=random.random,
        journaled=is_journaled(boot),
    )


def build_ledger(rules: LedgerRules, store: Store | None, now: Now | None) -> Ledger:
    """The ledger, with what earlier runs have used of its windows."""
    if store is None or now is None:
        return Ledger(rules)
    lag = max([LEAST_LAG, *(account.counting.cancel_lag for account in rules.accounts.values())])
    carryover = Carryover(boot=boot_id(), lag=lag)
    restored = carryover.restore(store.windows(), now)
    ledger = Ledger(rules, carryover)
    ledger.records += restored
    return ledger


def boot_id() -> str:
    """Which boot of the machine this is; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_journaled(boot: Boot) -> bool:
    """Whether jobs are taken: an embedded supervisor's directory goes with it, and so would they."""
    return boot.mode != "embedded" and boot.settings.journal.durability != "none"


def open_store(boot: Boot) -> Store | None:
    """The journal's file, where jobs are taken. Raises what keeps it from being opened."""
    journal = boot.settings.journal
    if not is_journaled(boot):
        return None
    durability: Durability = "process" if journal.durability == "process" else "full"
    return Store(Path(boot.home) / JOURNAL_FILE, durability=durability, max_bytes=journal.max_bytes)


def _retry_rules(pool: SupervisorSettings, attempts: int) -> RetryRules:
    return RetryRules(
        attempts=attempts,
        first_wait=pool.retry_wait,
        longest_wait=pool.retry_longest_wait,
        budget=pool.retry_budget,
    )


def build_catalogue(boot: Boot) -> Catalogue:
    """What can be submitted to a supervisor with these settings."""
    return Catalogue(
        providers={name: _entry(boot, name, provider) for name, provider in boot.settings.providers.items()},
        max_metadata_size=boot.settings.supervisor.max_metadata_size,
        default_timeout=boot.settings.supervisor.default_timeout,
        max_concurrent_sessions=boot.settings.supervisor.max_concurrent_sessions,
    )


def _entry(boot: Boot, name: str, provider: ProviderSettings) -> ProviderEntry:
    models = {model: boot.settings.timeouts_for(name, model) for model in provider.models}
    if provider.kind == "local" and not models:
        models = {LOCAL_MODEL: boot.settings.timeouts_for(name, LOCAL_MODEL)}
    return ProviderEntry(
        timeouts=boot.settings.timeouts_for(name),
        limit=slots_of(provider, boot.settings.supervisor.max_concurrent_sessions),
        models=models,
        any_model=provider.any_model or not models,
        rules=rules_of(provider),
        refusal=_refusal(boot, name, provider),
        queue_timeout=boot.settings.queue_timeout_for(name),
        model_queue_timeouts={
            model: listed.queue_timeout for model, listed in provider.models.items() if listed.queue_timeout is not None
        },
        fallbacks=provider.fallbacks,
        model_fallbacks={
            model: listed.fallbacks for model, listed in provider.models.items() if listed.fallbacks is not None
        },
    )


def _refusal(boot: Boot, name: str, provider: ProviderSettings) -> Fault | None:
    """Why this provider can serve nothing until the supervisor is started again, or None."""
    if provider.kind == "local":
        try:
            require_engine()
            find_model()
        except CallpoolError as error:
            return error.fault
        return None
    fact = boot.key_facts.get(name)
    if fact is None or fact.state != "missing":
        return None
    return Fault(
        code="credential_missing",
        message=f"provider {name!r} has no key: {fact.source} is not set",
        param="provider",
        hint="set it where the supervisor is started, and start it again",
    )


def model_options(boot: Boot) -> dict[str, ModelOptions]:
    """The options of each `local` provider's model server; providers that cannot serve are left out."""
    options = {}
    for name, provider in boot.settings.providers.items():
        if provider.kind == "local" and _refusal(boot, name, provider) is None:
            options[name] = ModelOptions(
                path=str(find_model()),
                name=next(iter(provider.models), LOCAL_MODEL),
                slots=slots_of(provider, boot.settings.supervisor.max_concurrent_sessions),
                log=str(Path(boot.home) / "logs" / f"model-{name}.log"),
            )
    return options
