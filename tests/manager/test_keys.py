from __future__ import annotations

import logging
import pickle
import traceback
from pathlib import Path
from typing import Any

import msgspec
import pytest

from callpool.manager.config import load
from callpool.manager.errors import ConfigError, UnsafePath
from callpool.manager.keys import (
    LONGEST_KEY,
    KeyFact,
    Keys,
    Purpose,
    key_variables,
    process_environment,
    provider_host,
    resolve,
)
from callpool.manager.kinds import kind_facts
from callpool.manager.settings import ProviderSettings, Settings

CANARY = "sk-CANARY0123456789"


def settings_of(**providers: dict[str, Any]) -> Settings:
    return load({"providers": providers}, {})


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> str:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


# Where a key comes from.


def test_a_key_from_a_variable_that_the_configuration_names() -> None:
    keys = resolve(settings_of(k={"kind": "kimi", "api_key_env": "MINE"}), {"MINE": CANARY, "KIMI_API_KEY": "other"})
    assert keys.get("k") == CANARY
    fact = keys.facts()["k"]
    assert (fact.source, fact.present, fact.host, fact.state) == ("env:MINE", True, "api.moonshot.ai", "set")


@pytest.mark.parametrize(("kind", "variables"), [(kind, kind_facts(kind).key_variables) for kind in ("kimi", "glm")])
def test_the_first_customary_variable_that_is_set_wins(kind: str, variables: tuple[str, ...]) -> None:
    settings = settings_of(k={"kind": kind})
    environ: dict[str, str] = {}
    for position, name in enumerate(reversed(variables)):
        environ[name] = f"key{position}"
        keys = resolve(settings, environ)
        assert keys.get("k") == f"key{position}"
        assert keys.facts()["k"].source == f"env:{name}"
    environ[variables[0]] = ""  # an empty variable that nobody named is not there
    assert resolve(settings, environ).facts()["k"].source == f"env:{variables[1]}"


def test_the_customary_variables() -> None:
    assert kind_facts("kimi").key_variables == ("KIMI_API_KEY", "MOONSHOT_API_KEY")
    assert kind_facts("glm").key_variables == ("GLM_API_KEY", "ZAI_API_KEY", "ZHIPUAI_API_KEY")
    assert kind_facts("openai").key_variables == ("OPENAI_API_KEY",)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ({"platform": "openai"}, "env:OPENAI_API_KEY"),
        ({"base_url": "https://API.openai.com:443/v1/"}, "env:OPENAI_API_KEY"),
        ({"base_url": "https://api.openai.com.example/v1"}, "none"),
        ({"base_url": "http://127.0.0.1:8000/v1"}, "none"),
    ],
)
def test_a_vendors_own_variable_is_no_key_for_whoever_else_speaks_its_language(
    place: dict[str, str], source: str
) -> None:
    keys = resolve(settings_of(k={"kind": "openai", **place}), {"OPENAI_API_KEY": CANARY})
    assert keys.facts()["k"].source == source
    assert keys.get("k") == (None if source == "none" else CANARY)


@pytest.mark.parametrize("content", [CANARY, f"{CANARY}\n", f"{CANARY}\r\n"])
def test_a_key_from_a_file(tmp_path: Path, content: str) -> None:
    path = key_file(tmp_path, content.encode())
    keys = resolve(settings_of(k={"kind": "kimi", "api_key_file": path}), {"KIMI_API_KEY": "other"})
    assert keys.get("k") == CANARY
    assert keys.facts()["k"].source == f"file:{path}"


def test_a_missing_key_is_recorded_and_no_error(tmp_path: Path) -> None:
    settings = settings_of(
        named={"kind": "kimi", "api_key_env": "MINE"},
        custom={"kind": "kimi"},
        file={"kind": "openai", "base_url": "https://h", "api_key_file": str(tmp_path / "absent")},
    )
    keys = resolve(settings, {})
    facts = keys.facts()
    assert [facts[name].source for name in settings.providers] == [
        "env:MINE",
        "env:KIMI_API_KEY or env:MOONSHOT_API_KEY",
        f"file:{tmp_path}/absent",
    ]
    assert {(fact.present, fact.fingerprint, fact.state) for fact in facts.values()} == {(False, None, "missing")}
    assert [keys.get(name) for name in settings.providers] == [None, None, None]


def test_providers_that_need_no_key() -> None:
    settings = settings_of(
        a={"kind": "local"}, b={"kind": "scripted"}, c={"kind": "openai", "base_url": "http://127.0.0.1:8000/v1"}
    )
    facts = resolve(settings, {"KIMI_API_KEY": CANARY}).facts()
    assert [facts[name] for name in "abc"] == [
        KeyFact(source="none", present=False, fingerprint=None, host=""),
        KeyFact(source="none", present=False, fingerprint=None, host=""),
        KeyFact(source="none", present=False, fingerprint=None, host="127.0.0.1:8000"),
    ]
    assert {fact.state for fact in facts.values()} == {"not needed"}


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "\n",
        "CANARY CANARY",
        "CANARY\nCANARY",
        "CANARY\t",
        " CANARY",
        "CANARY\n\n",
        "CÄNARY",
        "CANARY\x7f",
    ],
)
def test_what_cannot_be_a_key_is_refused_and_not_repeated(tmp_path: Path, wrong: str) -> None:
    path = key_file(tmp_path, wrong.encode())
    sources = (
        ({"api_key_env": "MINE"}, "providers.k.api_key_env: the variable MINE "),
        ({"api_key_file": path}, f"providers.k.api_key_file: the file {path} "),
    )
    for source, start in sources:
        with pytest.raises(ConfigError) as caught:
            resolve(settings_of(k={"kind": "kimi", **source}), {"MINE": wrong})
        assert str(caught.value).startswith(start)
        assert "NARY" not in repr((caught.value, caught.value.fault))


def test_a_key_has_a_greatest_length(tmp_path: Path) -> None:
    settings = settings_of(k={"kind": "kimi", "api_key_file": key_file(tmp_path, b"k" * LONGEST_KEY + b"\n")})
    assert len(resolve(settings, {}).get("k") or "") == LONGEST_KEY
    key_file(tmp_path, b"k" * (LONGEST_KEY + 1))
    with pytest.raises(ConfigError, match="more than 4096 characters"):
        resolve(settings, {})


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, CANARY.encode(), mode)
    with pytest.raises(UnsafePath, match=f"has mode {mode:04o}") as caught:
        resolve(settings_of(k={"kind": "kimi", "api_key_file": path}), {})
    assert caught.value.hint == f"chmod 600 {path}"


# What may be told.


@pytest.mark.parametrize(
    ("kind", "base_url", "host"),
    [
        ("kimi", None, "api.moonshot.ai"),
        ("kimi", "https://api.moonshot.cn/v1", "api.moonshot.cn"),
        ("glm", None, "open.bigmodel.cn"),
        ("openai", "HTTPS://API.Example:443/v1", "api.example"),
        ("openai", "https://api.example:8443", "api.example:8443"),
        ("openai", "http://localhost:80", "localhost"),
        ("openai", "http://[::1]:8000/v1", "[::1]:8000"),
        ("local", None, ""),
        ("scripted", None, ""),
    ],
)
def test_the_host_that_a_key_is_for(kind: Any, base_url: str | None, host: str) -> None:
    assert provider_host(ProviderSettings(kind=kind, base_url=base_url)) == host


def test_a_fingerprint_names_a_pair_of_host_and_key_and_nothing_else() -> None:
    def fingerprint(key: str, **provider: str) -> str | None:
        settings = settings_of(k={"kind": "openai", "base_url": "https://h/v1", "api_key_env": "MINE"} | provider)
        return resolve(settings, {"MINE": key, "OTHER": key}).facts()["k"].fingerprint

    first = fingerprint(CANARY)
    assert first is not None
    assert len(first) == 32
    assert first == fingerprint(CANARY) == fingerprint(CANARY, base_url="https://H:443/v2", api_key_env="OTHER")
    assert len({first, fingerprint(CANARY + "x"), fingerprint(CANARY, base_url="https://h:8443")}) == 3


def test_the_fingerprint_does_not_change_between_versions() -> None:
    """Supervisors of different versions must meet at the same lock."""
    keys = resolve(settings_of(k={"kind": "kimi"}), {"KIMI_API_KEY": "sk-test"})
    assert keys.facts()["k"].fingerprint == "4537bc10e2cb7aa35be8f332a788854d"


def test_keys_are_not_shown_by_printing_logging_pickling_or_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    keys = resolve(settings_of(k={"kind": "kimi"}, j={"kind": "glm"}), {"KIMI_API_KEY": CANARY})
    logging.getLogger("test").warning("%s %r %s", keys, keys, keys.facts())
    with pytest.raises(TypeError) as caught:
        pickle.dumps(keys)
    frames = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert repr(keys) == "<Keys of k>"
    assert repr(resolve(Settings(), {})) == "<Keys of no provider>"
    assert CANARY not in f"{keys} {keys!r} {caplog.text} {frames}"
    assert not hasattr(keys, "__dict__")


def test_keys_travel_as_a_blob() -> None:
    keys = resolve(settings_of(k={"kind": "kimi"}, j={"kind": "glm"}), {"KIMI_API_KEY": CANARY})
    assert msgspec.msgpack.decode(keys.blob()) == {"k": CANARY}
    copy = Keys.from_blob(keys.blob())
    assert (copy.get("k"), copy.get("j"), copy.facts()) == (CANARY, None, {})
    with pytest.raises(msgspec.ValidationError):
        Keys.from_blob(msgspec.msgpack.encode({"k": 5}))


# The environment of processes.

KEPT = {
    "PATH": "/bin",
    "HOME": "/h",
    "LC_ALL": "C",
    "TZ": "UTC",
    "PYTHONPATH": "/p",
    "VIRTUAL_ENV": "/v",
    "COVERAGE_PROCESS_START": "x",
}
KEPT_WHERE_CALLS_ARE_MADE = {
    "XDG_RUNTIME_DIR": "/x",
    "CALLPOOL_HOME": "/c",
    "CALLPOOL_KEY_LOCK_DIR": "/l",
    "SSL_CERT_FILE": "/s",
}
DROPPED = [
    "KIMI_API_KEY",
    "OPENAI_API_KEY",
    "GLM_API_KEY",
    "CALLPOOL_API_KEY",
    "XDG_API_KEY",
    "callpool_api_key",
    "AWS_SECRET_ACCESS_KEY",
    "CALLPOOL_TOKEN",
    "CALLPOOL_SECRET",
    "CALLPOOL_PASSWORD",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "LD_PRELOAD",
    "PYTHONSTARTUP",
    "PYTHONINSPECT",
    "PYTHONBREAKPOINT",
    "OPENAI_BASE_URL",
    "PATHEXT",
    "HOMEX",
    "SSLKEYLOGFILE",
]


@pytest.mark.parametrize("purpose", ["supervisor", "worker", "model"])
def test_a_process_gets_the_listed_variables_and_no_others(purpose: Purpose) -> None:
    environ = KEPT | KEPT_WHERE_CALLS_ARE_MADE | dict.fromkeys(DROPPED, CANARY)
    expected = KEPT if purpose == "model" else KEPT | KEPT_WHERE_CALLS_ARE_MADE
    assert process_environment(environ, purpose=purpose) == expected


def test_a_key_under_a_name_of_ours_is_withheld() -> None:
    settings = settings_of(
        a={"kind": "kimi", "api_key_env": "CALLPOOL_MINE"},
        b={"kind": "glm"},
        c={"kind": "kimi", "api_key_file": "/k"},
        d={"kind": "local"},
    )
    variables = key_variables(settings)
    assert variables == {"CALLPOOL_MINE", *kind_facts("glm").key_variables}
    environ = {"CALLPOOL_MINE": CANARY, "PATH": "/bin"}
    assert process_environment(environ, purpose="worker", withhold=variables) == {"PATH": "/bin"}
