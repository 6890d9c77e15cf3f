"""Which accounts the environment holds, and what is asked of each kind where the environment does not say.

The key is in one of the kind's customary variables; CALLPOOL_LIVE_PLATFORM_KIMI, CALLPOOL_LIVE_MODEL_KIMI and
CALLPOOL_LIVE_CONCURRENCY_KIMI (likewise _GLM and _OPENAI) choose the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import callpool
from callpool.manager.kinds import kind_facts

WRONG = "-wrong-key"
"""Ends the name of the provider that is the same account under a key of nobody's."""
MOST_CONCURRENCY = 10
"""Calls at once that may be tried to meet a limit, less one: an account that allows more keeps its limit to itself."""
CALL_TIMEOUT = 120.0
"""Seconds. A model that reasons takes its time, and an account of the first tier waits for its next minute."""


@dataclasses.dataclass(frozen=True)
class Usual:
    """What is taken for a kind."""

    platform: str
    model: str
    """The cheapest that can do what is asked."""
    wrong_key: str
    """Of the shape of a key, and of nobody's."""
    concurrency: int = 1
    """Of the first tier."""
    options: callpool.Options = dataclasses.field(default_factory=callpool.Options)
    """With every request."""
    one_token: str = "max_tokens"
    """The name of the token limit, for requests that go past callpool."""


BRIEFLY = callpool.Options(thinking_mode="low")
USUAL: Mapping[str, Usual] = {
    "kimi": Usual(
        platform="international",
        model="kimi-k3",
        wrong_key="sk-" + "0" * 48,
        options=BRIEFLY,
        one_token="max_completion_tokens",
    ),
    "glm": Usual(
        platform="china", model="glm-4.7-flash", wrong_key=f"{'0' * 32}.{'0' * 16}", concurrency=2, options=BRIEFLY
    ),
    "openai": Usual(
        platform="openai",
        model="gpt-5-nano",
        wrong_key="sk-" + "0" * 48,
        concurrency=MOST_CONCURRENCY,
        one_token="max_completion_tokens",
    ),
}
KINDS = tuple(USUAL)


@dataclasses.dataclass(frozen=True)
class Account:
    """One account to ask."""

    kind: str
    model: str
    base_url: str
    key: str = dataclasses.field(repr=False)
    concurrency: int = 1
    """Calls at once that it allows, as far as is known."""

    @property
    def usual(self) -> Usual:
        """What is taken for its kind."""
        return USUAL[self.kind]

    @property
    def secrets(self) -> list[str]:
        """What no record may hold: the key, and both halves of one that has halves."""
        return [self.key, *(part for part in self.key.split(".") if part != self.key)]


def find_all(environ: Mapping[str, str]) -> dict[str, Account | str]:
    """The account of each kind, or why there is none. A key that happens to be set is no wish to spend money."""
    if environ.get("CALLPOOL_LIVE") != "1":
        return dict.fromkeys(KINDS, "calls real accounts: run by `make test-live`")
    return {kind: find(kind, environ) for kind in KINDS}


def find(kind: str, environ: Mapping[str, str]) -> Account | str:
    """The account of this kind, or why there is none. Raises ValueError for a variable with a value that cannot be."""
    usual, known = USUAL[kind], kind_facts(kind)
    key = next((environ[name] for name in known.key_variables if environ.get(name)), None)
    if key is None:
        return f"no account of kind {kind}: set {' or '.join(known.key_variables)}"
    variable = f"CALLPOOL_LIVE_PLATFORM_{kind.upper()}"
    platform = environ.get(variable) or usual.platform
    if platform not in known.platforms:
        raise ValueError(f"{variable} is {platform!r}: it must be one of {', '.join(known.platforms)}")
    return Account(
        kind=kind,
        model=environ.get(f"CALLPOOL_LIVE_MODEL_{kind.upper()}") or usual.model,
        base_url=known.platforms[platform],
        key=key.strip(),
        concurrency=_concurrency(f"CALLPOOL_LIVE_CONCURRENCY_{kind.upper()}", environ, usual.concurrency),
    )


def _concurrency(variable: str, environ: Mapping[str, str], usual: int) -> int:
    value = environ.get(variable) or str(usual)
    if not value.isdecimal() or not 1 <= int(value) <= MOST_CONCURRENCY:
        raise ValueError(f"{variable} is {value!r}: it must be a whole number from 1 to {MOST_CONCURRENCY}")
    return int(value)


def configuration(accounts: Iterable[Account], folder: Path) -> dict[str, Any]:
    """A configuration with each account under the name of its kind, and once more with a wrong key. Writes key files."""
    providers = {}
    for account in accounts:
        for name, key in ((account.kind, account.key), (account.kind + WRONG, account.usual.wrong_key)):
            path = folder / name
            path.touch(mode=0o600)
            path.write_text(key)
            providers[name] = {
                "kind": account.kind,
                "base_url": account.base_url,
                "api_key_file": str(path),
                "concurrency": 1,
                "timeout": CALL_TIMEOUT,
            }
    # One retry, for an account that allows a few requests a minute; and a failing check must not close the way of the next.
    return {"supervisor": {"workers": 1, "max_attempts": 2, "circuit_failures": 0}, "providers": providers}


def own_environment(folder: Path) -> dict[str, str]:
    """Variables for a supervisor with homes of its own.

    The place of the key locks is left as it is: a key that the user's own supervisor holds is refused.
    """
    own = {"CALLPOOL_HOME": folder / "home", "CALLPOOL_RUNTIME_DIR": folder / "run"}
    for place in own.values():
        place.mkdir(mode=0o700)
    return {name: str(place) for name, place in own.items()}
