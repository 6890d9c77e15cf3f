"""Accounts, a supervisor for them, and the record of what they told. The environment is read when the first test asks."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import callpool
from tests.live.accounts import Account, configuration, find_all, own_environment
from tests.live.facts import Facts
from tests.live.smoke import Target

FACTS = pytest.StashKey[Facts]()
WRITTEN = pytest.StashKey[Path]()


@contextlib.contextmanager
def serving(accounts: Iterable[Account], **environment: str) -> Iterator[dict[str, Target]]:
    """An embedded supervisor with these accounts, and homes of its own: a target for each, by kind."""
    accounts = list(accounts)
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="cp-", dir="/tmp"))  # short: see `base_folder`
        stack.callback(shutil.rmtree, folder)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (own_environment(folder) | environment).items():
                patch.setenv(name, value)
            client = stack.enter_context(callpool.start(configuration(accounts, folder)))
        yield {each.kind: Target(client, each.kind, each.model, each.usual.options) for each in accounts}


@pytest.fixture(scope="session")
def facts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    """What this run learns; written at its end to CALLPOOL_LIVE_FACTS, or to a temporary file."""
    chosen = os.environ.get("CALLPOOL_LIVE_FACTS")
    path = Path(chosen) if chosen else tmp_path_factory.mktemp("live") / "live-facts.json"
    path.parent.mkdir(parents=True, exist_ok=True)  # now, because what is learnt was paid for
    known = Facts()
    yield known
    if known:
        request.config.stash[FACTS], request.config.stash[WRITTEN] = known, path
        known.write(path)


@pytest.fixture(scope="session")
def accounts(facts: Facts) -> dict[str, Account | str]:
    """The account of each kind, or why there is none."""
    found = find_all(os.environ)
    for account in found.values():
        if isinstance(account, Account):
            facts.hide(account.secrets)
    return found


@pytest.fixture(scope="session")
def targets(accounts: dict[str, Account | str], facts: Facts) -> Iterator[dict[str, Target]]:
    """A supervisor for all accounts that there are, if there are any; at the end the requests are counted."""
    there = [each for each in accounts.values() if isinstance(each, Account)]
    if not there:
        yield {}
        return
    with serving(there) as served:
        yield served
        for kind, target in served.items():
            facts.note(kind, "requests", target.requests())


@pytest.fixture
def account(accounts: dict[str, Account | str], kind: str) -> Account:
    """The account of the test's kind; without one the test is skipped."""
    found = accounts[kind]
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def target(targets: dict[str, Target], account: Account) -> Target:
    """The same as callpool has it."""
    return targets[account.kind]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was learnt, and how many requests that took."""
    if FACTS in config.stash:
        terminalreporter.section("facts of live accounts")
        for line in config.stash[FACTS].summary():
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"written to {config.stash[WRITTEN]}")
