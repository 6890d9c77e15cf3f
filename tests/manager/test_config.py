from __future__ import annotations

import errno
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager import config
from callpool.manager.config import describe, load
from callpool.manager.config_rules import (
    CLIENT_RULES,
    MODEL_RULES,
    ORGANIZATION_RULES,
    PROVIDER_RULES,
    SUPERVISOR_RULES,
)
from callpool.manager.errors import ConfigError
from callpool.manager.keys import KeyFact
from callpool.manager.settings import (
    ClientSettings,
    ModelSettings,
    OrganizationSettings,
    ProviderSettings,
    Settings,
    SupervisorSettings,
)
from tests.house.checkout import ROOT

CANARY = "sk-CANARY0123456789abcdef"
SAMPLE = """
[supervisor]
workers = 3
max_metadata_size = 10240        # bytes of JSON
default_timeout = 45

[providers.kimi]
kind = "kimi"
api_key_env = "KIMI_API_KEY"
concurrency = 50
timeout = 60.5
[providers.kimi.models."kimi-k3"]
timeout = 120.0

[providers.fake]
kind = "scripted"
any_model = true
[providers.fake.models.m]
delay = 0.2
replies = ["one", "two"]
"""


def refusal(source: Any, known_faults: tuple[str, ...] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(source, {}, known_faults)
    return caught.value


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "c.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# What is read.


def test_a_file_becomes_settings(tmp_path: Path) -> None:
    settings = load(written(tmp_path, SAMPLE), {})
    assert settings == Settings(
        supervisor=SupervisorSettings(workers=3, max_metadata_size=10_240, default_timeout=45.0),
        providers={
            "kimi": ProviderSettings(
                kind="kimi",
                api_key_env="KIMI_API_KEY",
                concurrency=50,
                timeout=60.5,
                models={"kimi-k3": ModelSettings(timeout=120.0)},
            ),
            "fake": ProviderSettings(
                kind="scripted", any_model=True, models={"m": ModelSettings(delay=0.2, replies=["one", "two"])}
            ),
        },
    )
    assert isinstance(settings.supervisor.default_timeout, float)


def test_a_dict_of_the_same_shape_is_the_same_configuration(tmp_path: Path) -> None:
    document = tomllib.loads(SAMPLE)
    document["providers"]["kimi"]["base_url"] = None  # a field left out
    frozen = MappingProxyType({name: MappingProxyType(table) for name, table in document.items()})
    assert load(document, {}) == load(frozen, {}) == load(str(written(tmp_path, SAMPLE)), {})


def test_an_empty_configuration_is_the_defaults_without_a_provider(tmp_path: Path) -> None:
    assert load({}, {}) == load(written(tmp_path, ""), {}) == Settings()


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_accepted(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf[supervisor]\r\nworkers = 4\r\n")
    assert load(path, {}).supervisor.workers == 4
    assert "c.toml:2: supervisor.wrkers: unknown key" in str(
        refusal(written(tmp_path, "[supervisor]\r\nwrkers = 4\r\n"))
    )


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    home, xdg = tmp_path / "home", tmp_path / "xdg"
    environ = {"HOME": str(home)}
    assert load(None, environ) == Settings()
    for workers, folder in ((5, home / ".config" / "callpool"), (6, xdg / "callpool")):
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(f"[supervisor]\nworkers = {workers}")
    assert load(None, environ).supervisor.workers == 5
    assert load(None, environ | {"XDG_CONFIG_HOME": "relative/is/ignored"}).supervisor.workers == 5
    environ["XDG_CONFIG_HOME"] = str(xdg)
    assert load(None, environ).supervisor.workers == 6
    assert load(None, environ | {"CALLPOOL_CONFIG": ""}).supervisor.workers == 6
    (home / "own.toml").write_text("[supervisor]\nworkers = 7")
    assert load(None, environ | {"CALLPOOL_CONFIG": "~/own.toml"}).supervisor.workers == 7
    assert load("~/own.toml", environ).supervisor.workers == 7
    with pytest.raises(ConfigError, match=r"absent\.toml: no such file"):
        load(None, environ | {"CALLPOOL_CONFIG": str(tmp_path / "absent.toml")})


def test_a_usual_file_that_is_a_broken_link_is_told_and_not_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "callpool"
    folder.mkdir()
    (folder / "config.toml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="no such file"):
        load(None, {"XDG_CONFIG_HOME": str(tmp_path)})


def test_names_of_key_files_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = '[providers.{0}]\nkind = "kimi"\napi_key_file = "{1}"\n'
    names = {"a": "keys/k", "b": "/etc/k", "c": "~/k"}
    path = written(tmp_path, "".join(provider.format(*item) for item in names.items()))
    loaded = load(path, {"HOME": "/home/u"}).providers
    assert [loaded[name].api_key_file for name in "abc"] == [f"{tmp_path}/keys/k", "/etc/k", "/home/u/k"]
    monkeypatch.chdir(tmp_path)
    loaded = load({"providers": {"a": {"kind": "kimi", "api_key_file": "k"}}}, {}).providers
    assert loaded["a"].api_key_file == f"{tmp_path}/k"


# What is refused, and how it is told.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zzz = 2", "1: zzz: unknown key; valid are: clients, journal, organizations, providers, retention, supervisor"),
        ("workers = 2", "1: workers: unknown key; it belongs under [supervisor]"),
        ("\n[supervisr]\nworkers = 2", '2: supervisr: unknown key; did you mean "supervisor"?'),
        ("[supervisor]\n\nwokers = 2", '3: supervisor.wokers: unknown key; did you mean "workers"?'),
        ('[supervisor]\n"worker\\ns" = 2', '2: supervisor."worker\\ns": unknown key; did you mean "workers"?'),
        ('[supervisor]\n"\\u202e" = 2', '2: supervisor."\\u202e": unknown key; valid are: ageing, circuit_failures,'),
        ("supervisor = [1]", "1: supervisor: a table is wanted, this is a list"),
        ("providers = 3", "1: providers: a table is wanted, this is a whole number"),
        ("[supervisor]\nworkers = true", "2: supervisor.workers: a whole number is wanted, this is true or false"),
        ("[supervisor]\nworkers = 2.0", "2: supervisor.workers: a whole number is wanted, this is a number"),
        ('[supervisor]\nworkers = "2"', "2: supervisor.workers: a whole number is wanted, this is text"),
        ("[supervisor]\nworkers = 65", "2: supervisor.workers: must be from 1 to 64"),
        ("supervisor.default_timeout = true", "1: supervisor.default_timeout: a number of seconds is wanted"),
        ("supervisor = {default_timeout = 07:32:00}", "a number of seconds is wanted, this is a time"),
        ("supervisor.default_timeout = nan", "1: supervisor.default_timeout: must be a finite number of seconds"),
        ("supervisor.default_timeout = -inf", "must be a finite number of seconds"),
        ("supervisor.default_timeout = 0", "must be more than 0 and at most 86400 seconds"),
        ("supervisor.default_timeout = 86401", "must be more than 0 and at most 86400 seconds"),
        ("supervisor.default_timeout = 1" + "0" * 400, "must be more than 0 and at most 86400 seconds"),
        ("providers.x = 1", "1: providers.x: a table is wanted, this is a whole number"),
        ("providers.x.models.m.timeout = 1", "1: providers.x: kind is missing; it is one of: openai, kimi,"),
        ('providers.x.kind = "kimmi"', "1: providers.x.kind: 'kimmi' is no kind of provider; did you mean \"kimi\"?"),
        ("providers.x.kind = ['kimi']", "1: providers.x.kind: text is wanted, this is a list"),
        ('providers.x.kind = "openai"', '1: providers.x: base_url is missing: kind "openai" has no address'),
        ('providers."a b".kind = "kimi"', '1: providers."a b": a provider\'s name has 1 to 64 letters'),
        (f'providers.{"a" * 65}.kind = "kimi"', "a provider's name has 1 to 64 letters"),
        ('providers."a\\n".kind = "kimi"', '1: providers."a\\n": a provider\'s name has 1 to 64 letters'),
        ('[providers.x]\nkind = "kimi"\nany_model = 1', "3: providers.x.any_model: true or false is wanted"),
        ('[providers.x]\nkind = "kimi"\nconcurrency = 0', "3: providers.x.concurrency: must be from 1 to 100000"),
        ('[providers.x]\nkind = "kimi"\nmodels = []', "3: providers.x.models: a table is wanted, this is a list"),
        ('[providers.x]\nkind = "kimi"\nmodels.m = 1', "3: providers.x.models.m: a table is wanted"),
        ('[providers.x]\nkind = "kimi"\nmodels."" = {}', '3: providers.x.models."": a model\'s name has 1 to 200'),
        ('[providers.x]\nkind = "kimi"\nmodels."\\u0007" = {}', '3: providers.x.models."\\x07": a model\'s name has'),
        ('[providers.x]\nkind = "glm"\nmodels.m.delay = 1', '3: providers.x.models.m.delay: is for providers of kind "scr'),
        ('[providers.x]\nkind = "kimi"\napi_key_env = "A"\napi_key_file = "b"', "4: providers.x.api_key_file: a key comes"),
        ('[providers.x]\nkind = "kimi"\napi_key_file = ""', "3: providers.x.api_key_file: must be the path of a file"),
        ('[providers.x]\nkind = "local"\napi_key_env = "A"', '3: providers.x.api_key_env: has no meaning for kind "local"'),
        ('[providers.x]\nkind = "scripted"\nbase_url = "https://x"', "3: providers.x.base_url: has no meaning for kind"),
        ('[providers.x]\nkind = "scripted"\nmodels.m.delay = -1', "3: providers.x.models.m.delay: must be 0 or more"),
        ('[providers.x]\nkind = "kimi"\nconnections = 0', "3: providers.x.connections: must be from 1 to 100000"),
        ('[providers.x]\nkind = "kimi"\nkeep_alive = 0.9', "3: providers.x.keep_alive: must be at least 1 and at most 86400"),
        ('[providers.x]\nkind = "kimi"\nwarm_connections = -1', "3: providers.x.warm_connections: must be from 0 to 1000"),
        ('[providers.x]\nkind = "local"\nconnections = 2', '3: providers.x.connections: has no meaning for kind "local"'),
        ('[providers.x]\nkind = "local"\nkeep_alive = 2', '3: providers.x.keep_alive: has no meaning for kind "local"'),
        (
            '[providers.x]\nkind = "scripted"\nwarm_connections = 2',
            '3: providers.x.warm_connections: has no meaning for kind "scripted"',
        ),
        (
            '[providers.x]\nkind = "kimi"\nconcurrency = 9\nconnections = 4\nwarm_connections = 5',
            "5: providers.x.warm_connections: must be at most 4, which is connections",
        ),
        (
            '[providers.x]\nkind = "kimi"\nconcurrency = 4\nwarm_connections = 5',
            "4: providers.x.warm_connections: must be at most 4, which is concurrency",
        ),
        (
            '[supervisor]\nmax_concurrent_sessions = 4\n[providers.x]\nkind = "kimi"\nwarm_connections = 5',
            "5: providers.x.warm_connections: must be at most 4, which is max_concurrent_sessions",
        ),
        (
            '[providers.x]\nkind = "kimi"\nwarm_connections = 201',
            "3: providers.x.warm_connections: must be at most 200, which is max_concurrent_sessions",
        ),
        ('[providers.x]\nkind = "local"\nconcurrency = 65', '3: providers.x.concurrency: must be at most 64 for kind "local"'),
        ('[providers.x]\nkind = "scripted"\nmodels.m.chunks = -1', "models.m.chunks: must be from 0 to 100000"),
        ('[providers.x]\nkind = "scripted"\nmodels.m.reply = 1', "models.m.reply: text is wanted"),
        (
            '[providers.x]\nkind = "scripted"\n[providers.x.models."k.3"]\nreplies = [\n  "a",\n\n  5]',
            '7: providers.x.models."k.3".replies[1]: text is wanted, this is a whole number',
        ),
        ('[providers.x]\nkind = "scripted"\nmodels.m.error = "hnag"', "models.m.error: 'hnag' is no known fault; did you mean"),
    ],
)  # fmt: skip
def test_each_problem_is_told_with_file_line_key_and_reason(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    error = refusal(path, known_faults=("hang", "http_500"))
    message = str(error)
    assert message.startswith(f"{path}:")
    assert expected in message
    assert error.details["count"] == 1
    assert error.details["file"] == str(path)
    assert "\n" not in message


ELSEWHERE = "an address comes from one place: give platform or base_url, not both"
DROP = "'drp' is no way to treat them; did you mean \"drop\"?"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("scripted", 'platform = "china"', "platform: has no meaning for kind"),
        ("kimi", 'platform = "chian"', 'platform: \'chian\' is no platform of kind "kimi"; did you mean "china"?'),
        (
            "glm",
            'platform = "cn"',
            'platform of kind "glm"; valid are: china, coding, coding-international, international',
        ),
        ("kimi", "platform = 1", "platform: text is wanted, this is a whole number"),
        ("kimi", 'platform = "china"\nbase_url = "https://h"', f"platform: {ELSEWHERE}"),
        ("openai", "", 'kind "openai" has no address of its own; it may be platform = "openai"'),
        ("kimi", 'unsupported_parameters = "drp"', f"unsupported_parameters: {DROP}"),
        ("kimi", "models.m.context = 0", "models.m.context: must be from 1 to 100000000"),
        ("kimi", "models.m.max_output = true", "models.m.max_output: a whole number is wanted"),
        ("kimi", "models.m.max_tokens = 1.5", "models.m.max_tokens: a whole number is wanted"),
        ("kimi", "models.m = {max_tokens = 9, max_output = 8}", "max_tokens: must be at most max_output, which is 8"),
        ("kimi", "models.m = {max_output = 9, context = 8}", "max_output: must be at most context, which is 8"),
        ("kimi", "models.m = {max_tokens = 9, context = 8}", "max_tokens: must be at most context, which is 8"),
    ],
)
def test_where_a_provider_is_and_what_its_models_take_is_checked(
    tmp_path: Path, kind: str, text: str, expected: str
) -> None:
    error = refusal(written(tmp_path, f'[providers.x]\nkind = "{kind}"\n{text}'))
    assert expected in str(error)
    assert error.details["count"] == 1


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        '[providers.x]\nkind = "kimi"\ntimeout = -1\ntimeuot = 1\n\n[supervisor]\nworkers = 0\n[providers.y]\n'
        'kind = "z"\nmodels.m.delay = nan\n'
    )
    path = written(tmp_path, text)
    error = refusal(path)
    assert [line.split(": ")[:2] for line in str(error).splitlines()] == [
        [f"{path}:3", "providers.x.timeout"],
        [f"{path}:4", "providers.x.timeuot"],
        [f"{path}:7", "supervisor.workers"],
        [f"{path}:9", "providers.y.kind"],
        [f"{path}:10", "providers.y.models.m.delay"],
    ]
    assert error.details == {"count": 5, "file": str(path), "line": 3}
    assert error.param == "providers.x.timeout"


def test_problems_of_a_dict_have_no_line() -> None:
    error = refusal({"supervisor": {"workers": 0}, "providers": {5: {"kind": "kimi"}, "x": {"kind": None, 7: 1}}, 3: 1})
    assert str(error).splitlines() == [
        "configuration: top level: names of keys are text, one is a whole number",
        "configuration: supervisor.workers: must be from 1 to 64",
        "configuration: providers[5]: a provider's name has 1 to 64 letters, digits, dots, underscores or hyphens",
        "configuration: providers.x: names of keys are text, one is a whole number",
        "configuration: providers.x.kind: text is wanted, this is nothing",
    ]
    assert error.details == {"count": 5}


def test_a_large_file_of_problems_is_read_to_its_end_and_told_in_part(tmp_path: Path) -> None:
    body = "".join(
        f'[providers.p{n}]\nkind = "scripted"\nmodels.m = {{ replies = ["{"x" * 50}"] }}\n' for n in range(8_000)
    )
    wrong = "".join(f"wrong{n} = 1\n" for n in range(8_000))
    path = written(tmp_path, body + wrong)
    assert 900_000 < path.stat().st_size < config.LARGEST_FILE
    lines = str(refusal(path)).splitlines()
    assert lines[0].startswith(f"{path}:24001: providers.p7999.wrong0: unknown key")
    assert lines[-1] == f"{path}: and 7950 more problems"
    assert len(lines) == 51


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\na = 2\n", "c.toml:2: Cannot overwrite a value"),
        ("a = 1\n\nb = \n", "c.toml:3: Invalid value"),
        ('\nx = "abc', "c.toml:2: Unterminated string"),
        ("[a]\n[b]\n[a]\n", "c.toml:3: Cannot declare ('a',) twice"),
        ("a = " + "[" * 5_000, "c.toml: brackets are nested too deeply"),
        ("a = " + "1" * 5_000, "c.toml: a number has too many digits"),
        (b"a = 1\n\nb = '\xff'\n", "c.toml:3: is not UTF-8 text"),
        ("a = 1\n".encode("utf-16"), "c.toml:1: is not UTF-8 text"),
        (b"#" * (config.LARGEST_FILE + 1), "c.toml: is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected in str(refusal(written(tmp_path, text)))


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert str(refusal(tmp_path / "absent")) == f"{tmp_path}/absent: no such file"
    assert str(refusal(tmp_path)) == f"{tmp_path}: is a directory"
    assert str(refusal(pipe)) == f"{pipe}: is no regular file"
    assert str(refusal(tmp_path / "c.toml" / "x")) == f"{tmp_path}/c.toml/x: cannot be read: Not a directory"
    assert str(refusal("a\0b")) == "'a\\x00b': cannot be read: the name holds a NUL"

    def forbidden(*_args: object) -> int:  # root may read everything, so the answer is made here
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", forbidden)
        assert str(refusal(tmp_path / "c.toml")) == f"{tmp_path}/c.toml: cannot be read: Permission denied"


# Addresses and keys.


@pytest.mark.parametrize(
    "url",
    [
        "https://api.moonshot.ai/v1",
        "https://h",
        "HTTPS://API.example:8443/v1/",
        "https://10.0.0.1/v1",
        "https://[2001:db8::1]:8/v1",
        "http://127.0.0.1:8000/v1",
        "http://127.200.3.4",
        "http://localhost:1",
        "http://[::1]:65535/v1",
    ],
)
def test_addresses_that_are_accepted(url: str) -> None:
    settings = load({"providers": {"x": {"kind": "openai", "base_url": url}}}, {})
    assert settings.providers["x"].base_url == url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://api.moonshot.ai/v1", "http is for 127.0.0.0/8, ::1 and localhost alone"),
        ("http://2130706433/", "http is for"),
        ("http://0x7f.1/", "http is for"),
        ("http://127.1/", "http is for"),
        ("http://0.0.0.0/", "http is for"),
        ("http://[::ffff:127.0.0.1]/", "http is for"),
        ("http://[::1%25lo]/", "http is for"),
        ("http://localhost.example/", "http is for"),
        ("http://127.0.0.1.example/", "http is for"),
        ("http://169.254.169.254/", "http is for"),
        ("ftp://h/", "must begin with https://"),
        ("https:h/v1", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("api.moonshot.ai/v1", "must begin with https://"),
        (f"https://user:{CANARY}@h/v1", "must not hold a user name or password"),
        ("https://@h/v1", "must not hold a user name or password"),
        (f"https://h/v1?key={CANARY}", "without ? and #"),
        ("https://h/v1?", "without ? and #"),
        ("https://h/v1#x", "without ? and #"),
        ("https:///v1", "needs a host"),
        ("https://:80/v1", "needs a host"),
        ("https://-h/v1", "needs a host"),
        ("https://h,x/v1", "needs a host"),
        ("https://[::g]/v1", "is not a valid URL"),
        ("https://[::1/v1", "is not a valid URL"),
        ("https://h:65536/v1", "is not a valid URL"),
        ("https://h:x/v1", "is not a valid URL"),
        ("https://h:0/v1", "must name a port from 1 to 65535"),
        ("https://h:/v1", "must name a port from 1 to 65535"),
        ("https://h /v1", "printable ASCII"),
        ("https://h\n.example/v1", "printable ASCII"),
        ("https://h\\@evil/v1", "printable ASCII"),
        ("https://аpi.example/v1", "printable ASCII"),  # noqa: RUF001 - a Cyrillic letter that looks like ours
        ("https://h/" + "x" * 2048, "printable ASCII"),
        ("", "printable ASCII"),
        (5, "text is wanted, this is a whole number"),
    ],
)
def test_addresses_that_are_refused(url: object, expected: str) -> None:
    message = str(refusal({"providers": {"x": {"kind": "openai", "base_url": url}}}))
    assert message.startswith("configuration: providers.x.base_url: ")
    # Python releases differ in which malformed brackets they notice; ours is the next check.
    assert expected in message or (expected == "is not a valid URL" and "needs a host" in message)
    assert CANARY not in message


@pytest.mark.parametrize("name", ["KIMI_API_KEY", "_x", "k2", "A" * 64, "AVERYLONGVARIABLENAMEINDEED"])
def test_names_of_variables_that_are_accepted(name: str) -> None:
    assert load({"providers": {"x": {"kind": "kimi", "api_key_env": name}}}, {}).providers["x"].api_key_env == name


@pytest.mark.parametrize(
    "pasted",
    [
        CANARY,
        "0123456789abcdef.CANARY",
        "sk_CANARY",
        "SK_CANARY",
        "CANARY0123456789abcdef",
        "1CANARY",
        "CANARY-1",
        "CANARY ",
        "CANARY\n",
        "CANARY_" * 10,
        "",
        "CÄNARY",
    ],
)
def test_a_key_that_is_pasted_where_its_variable_belongs_is_refused_and_not_repeated(pasted: str) -> None:
    error = refusal({"providers": {"x": {"kind": "kimi", "api_key_env": pasted}}})
    assert "providers.x.api_key_env: must be the name of an environment variable, not the key itself" in str(error)
    assert "NARY" not in repr((error, error.fault, vars(error)))


@pytest.mark.parametrize("name", ["api_key", "apikey", "API-KEY", "key", "token", "secret"])
def test_a_key_in_the_file_is_refused_with_the_way_to_give_it(tmp_path: Path, name: str) -> None:
    error = refusal(written(tmp_path, f'[providers.x]\nkind = "kimi"\n{name} = "{CANARY}"'))
    assert f"c.toml:3: providers.x.{name}: a key does not belong into the configuration" in str(error)
    assert "api_key_env" in str(error)
    assert "api_key_file" in str(error)
    assert error.details["count"] == 1
    assert CANARY not in repr((error, error.fault, vars(error)))


def test_no_text_that_could_be_a_key_is_repeated_wherever_it_was_pasted() -> None:
    text_fields = [*SUPERVISOR_RULES], [*PROVIDER_RULES], [*MODEL_RULES], [*ORGANIZATION_RULES], [*CLIENT_RULES]
    supervisor, provider, model, organization, client = (dict.fromkeys(names, CANARY) for names in text_fields)
    document = {
        "supervisor": supervisor | {"pasted": CANARY},
        "providers": {"x": provider | {"models": {"m": model}, "pasted": CANARY}, "y": CANARY},
        "organizations": {"o": organization, "p": CANARY},
        "clients": {"c": client, "d": CANARY},
        "pasted": CANARY,
    }
    error = refusal(document, known_faults=("hang",))
    assert error.details["count"] > 20
    assert CANARY not in repr((error, error.fault, vars(error)))
    scripted = {"providers": {"x": {"kind": "scripted", "models": {"m": {"error": CANARY}}}}}
    assert "this is no known fault" in str(refusal(scripted, known_faults=("hang",)))


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ({"retry_wait": 50}, "retry_longest_wait, which is 20"),
        ({"retry_longest_wait": 0.1}, "retry_longest_wait, which is 0.1"),
        ({"circuit_pause": 100, "circuit_longest_pause": 2}, "circuit_longest_pause, which is 2"),
    ],
)
def test_a_first_pause_is_no_longer_than_the_longest(given: dict[str, float], bound: str) -> None:
    error = refusal({"supervisor": given})
    assert f"must be at most {bound}" in error.message
    assert error.details["count"] == 1


def test_a_share_is_one() -> None:
    for wrong in (-1, 2, 10**400, 1.5):
        assert "retry_budget: must be from 0 to 1" in refusal({"supervisor": {"retry_budget": wrong}}).message
    assert load({"supervisor": {"retry_budget": 1}}, {}).supervisor.retry_budget == 1


# Where requests go on.


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("b/m", "a list of provider/model"),
        (["b"], "each entry is provider/model"),
        (["/m"], "each entry is provider/model"),
        (["b/"], "each entry is provider/model"),
        ([7], "each entry is provider/model"),
        (["b/m"] * 9, "has 9 entries, the limit is 8"),
        (["c/m"], "no provider 'c'"),
        (["b/n"], "lists no model 'n'"),
        (["home/typo"], "lists no model 'typo'"),
    ],
)
@pytest.mark.parametrize("of_model", [False, True])
def test_fallbacks_that_lead_nowhere(named: Any, words: str, *, of_model: bool) -> None:
    own = {"models": {"m": {"fallbacks": named}}} if of_model else {"fallbacks": named}
    providers = {
        "a": {"kind": "scripted", **own},
        "b": {"kind": "scripted", "models": {"m": {}}},
        "home": {"kind": "local"},
    }
    error = refusal({"providers": providers})
    assert words in error.message
    assert error.details["count"] == 1


def test_fallbacks_that_lead_somewhere() -> None:
    models = {"m": {"fallbacks": ["open/org/name", "home/smollm2"]}}
    providers = {
        "a": {"kind": "scripted", "fallbacks": ["b/m"], "max_attempts": 2, "models": models},
        "b": {"kind": "scripted", "models": {"m": {}}},
        "open": {"kind": "scripted"},
        "home": {"kind": "local"},
    }
    settings = load({"providers": providers}, {})
    assert settings.providers["a"].models["m"].fallbacks == ["open/org/name", "home/smollm2"]
    described = describe(settings)["providers"]
    assert (described["a"]["fallbacks"], described["a"]["max_attempts"]) == (["b/m"], 2)
    assert (described["b"]["fallbacks"], described["b"]["max_attempts"]) == ([], 3)


# The rules as a whole.


@pytest.mark.parametrize(
    ("rules", "shape", "walked"),
    [
        (SUPERVISOR_RULES, SupervisorSettings, set()),
        (PROVIDER_RULES, ProviderSettings, {"models"}),
        (MODEL_RULES, ModelSettings, set()),
        (ORGANIZATION_RULES, OrganizationSettings, set()),
        (CLIENT_RULES, ClientSettings, set()),
    ],
)
def test_every_field_has_its_rule_and_its_default_obeys(
    rules: Mapping[str, Any], shape: type[msgspec.Struct], walked: set[str]
) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(shape)}
    assert rules.keys() == fields.keys() - walked
    for name, rule in rules.items():
        default = fields[name].default
        if default is not None and default is not msgspec.NODEFAULT:
            assert rule(default) is None, name


ALLOWED: tuple[tuple[str, object], ...] = (
    ("function_workers", 0),
    ("lifecycle_log", True),
    ("retry_wait", 0),
    ("retry_budget", 0),
    ("circuit_failures", 0),
    ("circuit_patience", 0),
    ("max_requests_per_minute", None),
    ("queue_timeout", None),
)
"""Of what no other setting takes."""


@pytest.mark.parametrize("name", SUPERVISOR_RULES)
def test_every_limit_has_a_least_and_a_most(name: str) -> None:
    values: tuple[object, ...] = (
        -1,
        0,
        2**63,
        10**400,
        float("nan"),
        float("inf"),
        float("-inf"),
        True,
        "1",
        None,
        [],
        {},
    )
    for value in values:
        if (name, value) in ALLOWED:
            assert getattr(load({"supervisor": {name: value}}, {}).supervisor, name) == value
        else:
            assert refusal({"supervisor": {name: value}}).details["count"] == 1


any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5) | st.integers(0, 3), inner, max_size=2)
    ),
)
any_model = st.dictionaries(st.sampled_from([*MODEL_RULES]), any_value, max_size=3)
any_provider = st.dictionaries(st.sampled_from([*PROVIDER_RULES, "x"]), any_value, max_size=4)
any_organization = st.dictionaries(st.sampled_from([*ORGANIZATION_RULES]), any_value, max_size=2)
any_client = st.dictionaries(st.sampled_from([*CLIENT_RULES]), any_value, max_size=2)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "supervisor": any_value | st.dictionaries(st.sampled_from([*SUPERVISOR_RULES]), any_value, max_size=3),
            "providers": any_value
            | st.builds(
                lambda kind, provider, models: {"p": {"kind": kind, **provider, "models": models}},
                st.sampled_from(["openai", "kimi", "glm", "local", "scripted"]),
                any_provider,
                st.dictionaries(st.text(max_size=3), any_model, max_size=2),
            ),
            "organizations": any_value | st.dictionaries(st.sampled_from(["a", "o"]), any_organization, max_size=2),
            "clients": any_value | st.dictionaries(st.sampled_from(["default", "c"]), any_client, max_size=2),
            "other": any_value,
        },
    )
)
def test_any_data_is_settings_or_a_refusal_that_counts(document: dict[str, Any]) -> None:
    refused: ConfigError | None = None
    settings = Settings()
    try:
        settings = load(document, {})
    except ConfigError as error:
        refused = error
    if refused is not None:
        assert refused.details["count"] == len(str(refused).splitlines())
    else:
        assert load(msgspec.to_builtins(settings), {}) == settings


# What is told of it.


def test_the_sample_in_the_documentation_is_good_and_names_every_key() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    sample = text.partition("```toml\n")[2].partition("```")[0]
    settings = load(tomllib.loads(sample), {})
    assert settings.organizations.keys() == {provider.organization for provider in settings.providers.values()} - {None}
    tables = SUPERVISOR_RULES, PROVIDER_RULES, MODEL_RULES, ORGANIZATION_RULES, CLIENT_RULES
    names = {name for rules in tables for name in rules}
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", text)] == []


# What is in effect.


def test_what_is_in_effect_is_told_with_sources_and_never_with_keys() -> None:
    settings = load(tomllib.loads(SAMPLE), {})
    facts = {
        "kimi": KeyFact(source="env:KIMI_API_KEY", present=True, fingerprint="f" * 32, host="api.moonshot.ai"),
        "fake": KeyFact(source="none", present=False, fingerprint=None, host=""),
    }
    described = describe(settings, facts)
    assert described["supervisor"] == msgspec.structs.asdict(settings.supervisor)
    assert described["providers"] == {
        "kimi": {
            "kind": "kimi",
            "platform": "international",
            "base_url": "https://api.moonshot.ai/v1",
            "key": {"source": "env:KIMI_API_KEY", "state": "set", "host": "api.moonshot.ai"},
            "concurrency": 50,
            "concurrency_of": "account",
            "charge": "advance",
            "cancel_lag": 0.5,
            "connections": 50,
            "keep_alive": 15.0,
            "warm_connections": 0,
            "timeout": 60.5,
            "any_model": False,
            "max_attempts": 3,
            "fallbacks": [],
            "unsupported_parameters": "refuse",
            "models": {"kimi-k3": {"timeout": 120.0, "context": 1_048_576, "max_tokens": 32_768}},
        },
        "fake": {
            "kind": "scripted",
            "platform": None,
            "base_url": None,
            "key": {"source": "none", "state": "not needed", "host": ""},
            "concurrency": 200,
            "concurrency_of": "account",
            "charge": "actual",
            "cancel_lag": 0.0,
            "timeout": 45.0,
            "any_model": True,
            "max_attempts": 3,
            "fallbacks": [],
            "unsupported_parameters": "refuse",
            "models": {"m": {"timeout": 45.0, "delay": 0.2, "replies": ["one", "two"]}},
        },
    }
    assert described["organizations"] == described["clients"] == {}
    assert msgspec.json.encode(described)
    assert describe(settings)["providers"]["kimi"]["key"] is None


def test_the_timeouts_in_effect_are_the_models_else_the_providers() -> None:
    models = {"k3": {"idle_timeout": 4.0}, "slow": {"timeout": 90.0, "first_token_timeout": 50.0}}
    document = {"providers": {"kimi": {"kind": "kimi", "timeout": 60.0, "first_token_timeout": 5.0, "models": models}}}
    described = describe(load(document, {}))["providers"]["kimi"]
    assert (described["timeout"], described["first_token_timeout"]) == (60.0, 5.0)
    assert "idle_timeout" not in described
    assert described["models"] == {
        "k3": {"timeout": 60.0, "first_token_timeout": 5.0, "idle_timeout": 4.0},
        "slow": {"timeout": 90.0, "first_token_timeout": 50.0},
    }


def test_the_connections_in_effect() -> None:
    given = {"connections": 8, "keep_alive": 30, "warm_connections": 8}
    described = describe(load({"providers": {"kimi": {"kind": "kimi", **given}, "home": {"kind": "local"}}}, {}))
    assert described["providers"]["kimi"].items() >= given.items()
    assert not described["providers"]["home"].keys() & given.keys()


@pytest.mark.parametrize("name", ["first_token_timeout", "idle_timeout"])
@pytest.mark.parametrize("value", [0, -1, "5", math.nan, 1e9, True])
def test_timeouts_of_silences_have_bounds(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"providers\.kimi\.{name}"):
        load({"providers": {"kimi": {"kind": "kimi", name: value}}}, {})
