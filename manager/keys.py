"""Provider keys: where each comes from, how it is handed on, and what may be told about it.

A key enters here, from the environment or from a private file, and leaves through `Keys.blob`, towards the workers.
Everything that is shown, logged or locked on uses a `KeyFact`: names, and a fingerprint from which no key can be had.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, Literal, NoReturn, Self

import msgspec

from callpool.manager.errors import ConfigError
from callpool.manager.kinds import base_url_of, key_variables_of
from callpool.manager.private import read_private_file
from callpool.manager.settings import ProviderSettings, Settings

LONGEST_KEY: Final = 4_096
"""Characters; a key is sent in a header, and servers refuse header lines of 8 KiB."""


class KeyFact(msgspec.Struct, frozen=True, kw_only=True):
    """What may be told about a provider's key."""

    source: str
    """`env:NAME`, `file:/path`, or `none` where the provider needs no key. With several names: `env:A or env:B`."""
    present: bool
    fingerprint: str | None
    """32 hexadecimal digits of a keyed hash of host and key; None without a key."""
    host: str
    """`host` or `host:port` that the key is for; empty where no provider is called."""

    @property
    def state(self) -> Literal["set", "missing", "not needed"]:
        """The fact in one word."""
        if self.source == "none":
            return "not needed"
        return "set" if self.present else "missing"


class Keys:
    """The keys of all providers. Printing shows names alone, and pickling is refused: `blob` is the only way out."""

    __slots__ = ("_facts", "_values")

    def __init__(self, values: Mapping[str, str], facts: Mapping[str, KeyFact] | None = None) -> None:
        self._values = dict(values)
        self._facts = dict(facts or {})

    def get(self, provider: str) -> str | None:
        """The key of a provider; None if it has none."""
        return self._values.get(provider)

    def facts(self) -> dict[str, KeyFact]:
        """What may be told, for every configured provider; empty after `from_blob`."""
        return dict(self._facts)

    def blob(self) -> bytes:
        """The keys as a msgpack map {provider: key}, for a descriptor that a worker inherits: no file, no argument."""
        return msgspec.msgpack.encode(self._values)

    @classmethod
    def from_blob(cls, blob: bytes) -> Self:
        """The keys of a `blob`. Raises msgspec.ValidationError or DecodeError if it is none."""
        return cls(msgspec.msgpack.decode(blob, type=dict[str, str]))

    def __repr__(self) -> str:
        return f"<Keys of {', '.join(sorted(self._values)) or 'no provider'}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled: hand them over as blob(), through an inherited descriptor")


def resolve(settings: Settings, environ: Mapping[str, str]) -> Keys:
    """Read the key of each provider. One that is not there is recorded as missing: the supervisor starts without it.

    Raises `ConfigError` for what cannot be a key (empty, spaces inside, too long) and `UnsafePath` for a key file that
    others could read; neither repeats the value.
    """
    values: dict[str, str] = {}
    facts: dict[str, KeyFact] = {}
    for name, provider in settings.providers.items():
        source, value = _find(name, provider, environ)
        host = provider_host(provider)
        fingerprint = None
        if value is not None:
            values[name] = value
            fingerprint = _fingerprint(host, value)
        facts[name] = KeyFact(source=source, present=value is not None, fingerprint=fingerprint, host=host)
    return Keys(values, facts)


def provider_host(provider: ProviderSettings) -> str:
    """`host`, or `host:port` where the port is not the scheme's own; empty for kinds that call no provider."""
    parts = urllib.parse.urlsplit(base_url_of(provider) or "")
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    usual = {"https": 443, "http": 80}.get(parts.scheme)
    return host if parts.port in {None, usual} else f"{host}:{parts.port}"


def key_variables(settings: Settings) -> frozenset[str]:
    """The names of all environment variables in which this configuration looks for keys."""
    return frozenset(name for provider in settings.providers.values() for name in _variables(provider))


def _variables(provider: ProviderSettings) -> tuple[str, ...]:
    if provider.api_key_env:
        return (provider.api_key_env,)
    return () if provider.api_key_file else key_variables_of(provider)


def _find(name: str, provider: ProviderSettings, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """The source and the key of one provider."""
    if provider.api_key_file:
        return f"file:{provider.api_key_file}", _from_file(name, provider.api_key_file)
    variables = _variables(provider)
    for variable in variables:
        value = environ.get(variable)
        # An empty variable that the configuration names is a mistake; one that only custom names is not there.
        if value or (value is not None and provider.api_key_env):
            return f"env:{variable}", _checked(value, f"providers.{name}.api_key_env", f"the variable {variable}")
    return " or ".join(f"env:{variable}" for variable in variables) or "none", None


def _from_file(name: str, path: str) -> str | None:
    try:
        content = read_private_file(Path(path))
    except FileNotFoundError:
        return None
    # Bytes that are no ASCII become a character that the check refuses: one message for all wrong characters.
    return _checked(content.decode("ascii", "replace"), f"providers.{name}.api_key_file", f"the file {path}")


def _checked(value: str, param: str, where: str) -> str:
    """The key without the line end that editors and `echo` add. It goes into a header: nothing else is let through."""
    key = value.removesuffix("\n").removesuffix("\r")
    if not key:
        raise ConfigError(f"{param}: {where} is empty", param=param)
    if len(key) > LONGEST_KEY:
        raise ConfigError(f"{param}: {where} holds more than {LONGEST_KEY} characters: is it a key?", param=param)
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(f"{param}: {where} holds characters that no key has (spaces, line ends, …)", param=param)
    return key


def _fingerprint(host: str, key: str) -> str:
    """Names the pair of host and key without telling the key: the same for every supervisor of every user."""
    text = f"{host}\0{key}".encode()
    return hashlib.blake2s(text, digest_size=16, key=b"callpool key fingerprint 1", person=b"callpool").hexdigest()


# The environment of our own processes.

Purpose = Literal["supervisor", "worker", "model"]

_EVERYWHERE: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONWARNINGS",
    "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONPYCACHEPREFIX",
})  # fmt: skip
_CERTIFICATES: Final = frozenset({"SSL_CERT_FILE", "SSL_CERT_DIR"})
_FAMILIES: Final[Mapping[Purpose, tuple[str, ...]]] = {
    "supervisor": ("LC_", "COVERAGE_", "XDG_", "CALLPOOL_"),
    "worker": ("LC_", "COVERAGE_", "XDG_", "CALLPOOL_"),
    "model": ("LC_", "COVERAGE_"),  # it computes, and looks for nothing of ours
}
_SECRET_ENDINGS: Final = ("_API_KEY", "_KEY", "_TOKEN", "_SECRET", "_PASSWORD")


def process_environment(
    environ: Mapping[str, str], *, purpose: Purpose, withhold: Collection[str] = ()
) -> dict[str, str]:
    """The variables that a process of ours gets: an allow-list, because a list of what to remove is never complete.

    Keys never travel this way (/proc/PID/environ shows them, and children inherit them): variables named like a secret
    stay behind, and so do those in `withhold`, where `key_variables` belongs.
    """
    # Proxy variables stay behind too: a proxy sees where each call goes and, with a certificate of its own, the key
    # and the prompt, so none is taken silently from whichever shell started the supervisor. The same holds for what
    # makes the loader or the interpreter run other code (LD_PRELOAD, PYTHONSTARTUP, PYTHONINSPECT, ...).
    families = _FAMILIES[purpose]
    names = _EVERYWHERE if purpose == "model" else _EVERYWHERE | _CERTIFICATES
    return {
        name: value
        for name, value in environ.items()
        if (name in names or name.startswith(families))
        and name not in withhold
        and not name.upper().endswith(_SECRET_ENDINGS)
    }
