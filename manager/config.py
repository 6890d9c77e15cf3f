"""The configuration: find the file, read it, refuse it whole or make `Settings` of it, and tell what is in effect.

A refusal is one `ConfigError` that lists every problem as `file:line: key: what`, so that a person mends the file once.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from callpool.manager.config_check import check
from callpool.manager.config_rules import Problem
from callpool.manager.core.catalogue import Timeouts
from callpool.manager.core.limits import AccountRules, Limits
from callpool.manager.core.parameter_rules import ModelRules
from callpool.manager.errors import ConfigError
from callpool.manager.keys import KeyFact
from callpool.manager.kinds import base_url_of, platform_of, rules_of
from callpool.manager.ledger_rules import ledger_rules
from callpool.manager.paths import config_home, expand_home
from callpool.manager.settings import (
    SCRIPT_FAULTS,
    ClientSettings,
    ModelSettings,
    OrganizationSettings,
    ProviderSettings,
    Settings,
)
from callpool.manager.toml_lines import KeyPath, key_lines

LARGEST_FILE: Final = 1_048_576
"""Bytes; thousands of models fit, and a wrong path (a database, a log) is refused before it fills the memory."""
_LISTED_PROBLEMS: Final = 50
"""More than a person mends at a time; `details["count"]` has them all."""

Source = str | os.PathLike[str] | Mapping[str, Any] | None


def load(source: Source, environ: Mapping[str, str], known_faults: Collection[str] | None = SCRIPT_FAULTS) -> Settings:
    """The settings of a file, of a dict of the same shape, or (None) of the file that `config_file` finds.

    Without any file the settings are the defaults, with no provider. Relative names in `api_key_file` are taken from
    the file's directory (from the working directory for a dict), and `~/` from the home directory. `known_faults` are
    the names that a scripted model's `error` may have; None does not check them.
    Raises `ConfigError`, with `details["count"]`.
    """
    document = _document(source, environ)
    if document is None:
        return Settings()
    problems = check(document.content, known_faults)
    if problems:
        raise _refusal(document, problems)
    return _settings(document, environ)


def override(settings: Settings, supervisor: Mapping[str, Any]) -> Settings:
    """The settings with these of `[supervisor]` in place of their own, checked like those of a file. Raises `ConfigError`."""
    given = load({"supervisor": dict(supervisor)}, {})
    chosen = {name: getattr(given.supervisor, name) for name in supervisor}
    return msgspec.structs.replace(settings, supervisor=msgspec.structs.replace(settings.supervisor, **chosen))


def config_file(environ: Mapping[str, str]) -> Path | None:
    """The file that CALLPOOL_CONFIG names, else `callpool/config.toml` in XDG_CONFIG_HOME if it is there, else None."""
    named = environ.get("CALLPOOL_CONFIG")
    if named:
        return expand_home(named, environ)
    usual = config_home(environ) / "callpool" / "config.toml"
    return usual if os.path.lexists(usual) else None


def describe(settings: Settings, facts: Mapping[str, KeyFact] | None = None) -> dict[str, Any]:
    """What is in effect, defaults filled in, as plain data for `callpool config check`: never the value of a key.

    With the `facts` of `Keys.facts()` each provider's `key` is `{source, state, host}`, where `state` is "set",
    "missing" or "not needed"; without them it is None.
    """
    return {
        "supervisor": msgspec.structs.asdict(settings.supervisor),
        "journal": msgspec.structs.asdict(settings.journal),
        "retention": msgspec.structs.asdict(settings.retention),
        "providers": {
            name: _describe_provider(settings, name, account, (facts or {}).get(name))
            for name, account in ledger_rules(settings).accounts.items()
        },
        "organizations": {name: _stated(table) for name, table in settings.organizations.items()},
        "clients": {name: {"weight": table.weight} | _stated(table) for name, table in settings.clients.items()},
    }


def _describe_provider(settings: Settings, name: str, account: AccountRules, fact: KeyFact | None) -> dict[str, Any]:
    provider = settings.providers[name]
    rules = rules_of(provider)
    return {
        "kind": provider.kind,
        "platform": platform_of(provider),
        "base_url": base_url_of(provider),
        "key": None if fact is None else {"source": fact.source, "state": fact.state, "host": fact.host},
        **_stated(account.limits),
        "concurrency_of": account.counting.concurrency_of,
        "charge": account.counting.charge,
        "cancel_lag": account.counting.cancel_lag,
        **({} if account.organization is None else {"organization": account.organization}),
        **_describe_queue(settings, name),
        **_describe_connections(provider, account.limits.concurrency),
        **_describe_timeouts(settings.timeouts_for(name)),
        "any_model": provider.any_model or not provider.models,
        "max_attempts": settings.supervisor.max_attempts if provider.max_attempts is None else provider.max_attempts,
        "fallbacks": provider.fallbacks,
        "unsupported_parameters": provider.unsupported_parameters,
        "models": {
            model: _stated(listed)
            | _stated(account.models.get(model, Limits()))
            | _describe_queue(settings, name, model)
            | _describe_timeouts(settings.timeouts_for(name, model))
            | _describe_tokens(rules.of(model))
            for model, listed in provider.models.items()
        },
    }


def _describe_connections(provider: ProviderSettings, concurrency: int | None) -> dict[str, float | None]:
    """Of each worker to this provider, where one can be set."""
    if provider.kind in ("local", "scripted"):
        return {}
    return {
        "connections": concurrency if provider.connections is None else provider.connections,
        "keep_alive": provider.keep_alive,
        "warm_connections": provider.warm_connections,
    }


def _describe_queue(settings: Settings, name: str, model: str = "") -> dict[str, float]:
    seconds = settings.queue_timeout_for(name, model)
    return {} if seconds is None else {"queue_timeout": seconds}


def _describe_timeouts(timeouts: Timeouts) -> dict[str, float]:
    """Those that there are."""
    named = {"timeout": timeouts.total, "first_token_timeout": timeouts.first_token, "idle_timeout": timeouts.idle}
    return {name: seconds for name, seconds in named.items() if seconds is not None}


def _describe_tokens(known: ModelRules) -> dict[str, int]:
    """Those that are known."""
    named = {"context": known.context, "max_output": known.max_output, "max_tokens": known.max_tokens}
    return {name: tokens for name, tokens in named.items() if tokens is not None}


def _stated(table: ModelSettings | OrganizationSettings | ClientSettings | Limits) -> dict[str, Any]:
    """The fields that differ from the defaults: most models have none of a scripted model's, and most tables few limits."""
    defaults = msgspec.structs.asdict(type(table)())
    return {name: value for name, value in msgspec.structs.asdict(table).items() if value != defaults[name]}


# Reading.


class _Document(NamedTuple):
    name: str
    """Stands before each problem: the file's path, or a word for a dict."""
    directory: Path
    """Where relative file names begin."""
    content: Mapping[str, Any]
    text: str
    """What the content was read from; empty for a dict."""


def _document(source: Source, environ: Mapping[str, str]) -> _Document | None:
    if isinstance(source, Mapping):
        return _Document("configuration", Path.cwd(), source, "")
    path = config_file(environ) if source is None else expand_home(os.fsdecode(source), environ)
    if path is None:
        return None
    text = _read(path)
    return _Document(str(path), path.absolute().parent, _parse(path, text), text)


def _read(path: Path) -> str:
    """The file's text; a byte order mark, which some editors write, is left out."""
    try:
        content = _content(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", count=1) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", count=1) from None
    except ValueError:
        raise ConfigError(f"{str(path)!r}: cannot be read: the name holds a NUL", count=1) from None
    if content is None:
        raise ConfigError(f"{path}: is {'a directory' if path.is_dir() else 'no regular file'}", count=1)
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path}: is larger than {LARGEST_FILE} bytes: is it a configuration?", count=1)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text", count=1) from None


def _content(path: Path) -> bytes | None:
    """One byte more than allowed at most; None for what is no regular file."""
    # Without O_NONBLOCK, opening a named pipe waits for a writer that may never come.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(LARGEST_FILE + 1)
    finally:
        os.close(descriptor)


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(where[1]) if where and where[1] else text.rstrip().count("\n") + 1
        what = str(error)[: where.start()] if where else str(error)
        raise ConfigError(f"{path}:{line}: {what}", count=1) from None
    except RecursionError:
        raise ConfigError(f"{path}: brackets are nested too deeply", count=1) from None
    except ValueError:  # Python's own limit on the digits of a whole number
        raise ConfigError(f"{path}: a number has too many digits", count=1) from None


# Making settings, or one error of all problems.


def _settings(document: _Document, environ: Mapping[str, str]) -> Settings:
    """The settings of a document without problems; names of key files become absolute."""
    settings = msgspec.convert(_plain(document.content), Settings)
    providers = dict(settings.providers)
    for name, provider in settings.providers.items():
        if provider.api_key_file is not None:
            path = document.directory / expand_home(provider.api_key_file, environ)
            providers[name] = msgspec.structs.replace(provider, api_key_file=str(path))
    return msgspec.structs.replace(settings, providers=providers)


def _plain(value: Any) -> Any:
    """Any mapping as a dict of plain types, without the Nones that stand for optional fields left out."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items() if item is not None}
    return value


def _refusal(document: _Document, problems: list[Problem]) -> ConfigError:
    lines = key_lines(document.text) if document.text else {}
    # The sort is stable: problems of one line stay in the order of the walk.
    located = sorted(((_line(lines, problem.path), problem) for problem in problems), key=lambda pair: pair[0])
    listed = [
        f"{document.name}{f':{line}' if document.text else ''}: {dotted(problem.path)}: {problem.sentence()}"
        for line, problem in located[:_LISTED_PROBLEMS]
    ]
    if len(problems) > len(listed):
        listed.append(f"{document.name}: and {len(problems) - len(listed)} more problems")
    line, first = located[0]
    details: dict[str, Any] = {"count": len(problems)}
    if document.text:
        details |= {"file": document.name, "line": line}
    return ConfigError("\n".join(listed), param=dotted(first.path), **details)


def _line(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of a path; a key that is missing stands where its table begins."""
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 1)


def dotted(path: KeyPath) -> str:
    """A path as TOML writes it: `providers.kimi.models."kimi-k3.5".replies[2]`, with control characters escaped."""
    parts: list[str] = []
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            parts.append(("." if parts else "") + (part if bare else f'"{_escaped(part)}"'))
    return "".join(parts) or "top level"


def _escaped(name: str) -> str:
    shown = name if len(name) <= 100 else name[:100] + "…"
    return "".join(letter if letter.isprintable() and letter not in '"\\' else ascii(letter)[1:-1] for letter in shown)
