"""The shipped data: whole, consistent, and the only place that knows vendors."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest

from callpool.manager.config import load
from callpool.manager.config_rules import PROVIDER_RULES
from callpool.manager.core.limits import Counting
from callpool.manager.core.options import THINKING_MODES, Options
from callpool.manager.core.parameter_rules import Rules
from callpool.manager.kinds import base_url_of, counting_of, kind_facts, located, platform_of, rules_of
from callpool.manager.settings import Kind, ProviderSettings
from tests.house.checkout import ROOT, installed_modules
from tests.house.imports import parse

DOCUMENT = tomllib.loads((ROOT / "manager" / "kinds.toml").read_text())
KINDS = sorted(DOCUMENT.keys() - {"any"})
KNOWN: dict[str, tuple[int | None, int | None]] = {
    "kimi-k3": (1_048_576, None),
    "kimi-k3.1-pro-highspeed": (1_048_576, None),
    "kimi-k2.7-code": (262_144, None),
    "kimi-k2.6": (262_144, None),
    "moonshot-v1-128k": (131_072, None),
    "glm-5.3": (1_000_000, 131_072),
    "glm-5.3-flash": (1_000_000, 131_072),
    "glm-5": (200_000, 131_072),
    "glm-4.6": (200_000, 131_072),
    "glm-4.6v": (None, 131_072),
    "glm-4.5-airx": (128_000, 98_304),
    "glm-4-32b-0414-128k": (128_000, 16_384),
}


def provider(kind: Any, **settings: Any) -> ProviderSettings:
    return ProviderSettings(kind=kind, **settings)


def test_every_kind_in_the_data_is_one() -> None:
    assert set(KINDS) <= set(get_args(Kind))
    assert KINDS == ["glm", "kimi", "local", "openai", "scripted"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_data_of_a_kind_is_consistent(kind: str) -> None:
    facts = kind_facts(kind)
    assert facts.default_platform is None or facts.default_platform in facts.platforms
    for address in facts.platforms.values():
        assert PROVIDER_RULES["base_url"](address) is None
        assert address.startswith("https://")
    for variable in facts.key_variables:
        assert PROVIDER_RULES["api_key_env"](variable) is None
    for entry in facts.models:
        assert entry.names
        assert set(entry.platforms) <= facts.platforms.keys()
        assert set(entry.words.thinking_mode) <= set(THINKING_MODES)
        assert set(entry.words.refused) <= set(Options.__struct_fields__)


@pytest.mark.parametrize(("model", "known"), KNOWN.items())
def test_what_is_known_of_models(model: str, known: tuple[int | None, int | None]) -> None:
    kind = "glm" if model.startswith("glm") else "kimi"
    found = rules_of(provider(kind)).of(model)
    assert (found.context, found.max_output) == known


def test_a_kind_without_data_has_the_rules_for_everywhere_alone() -> None:
    for kind in ("local", "scripted"):
        found = rules_of(provider(kind))
        assert found.models == ()
        assert set(found.parameters) == set(DOCUMENT["any"])
        assert base_url_of(provider(kind)) is None


@pytest.mark.parametrize(
    ("kind", "settings", "platform", "address"),
    [
        ("kimi", {}, "international", "https://api.moonshot.ai/v1"),
        ("kimi", {"platform": "china"}, "china", "https://api.moonshot.cn/v1"),
        ("kimi", {"base_url": "https://API.moonshot.cn:443/v1/"}, "china", "https://API.moonshot.cn:443/v1/"),
        ("kimi", {"base_url": "https://api.moonshot.cn:8443/v1"}, None, "https://api.moonshot.cn:8443/v1"),
        ("kimi", {"base_url": "http://127.0.0.1:1/v1"}, None, "http://127.0.0.1:1/v1"),
        ("glm", {}, "china", "https://open.bigmodel.cn/api/paas/v4"),
        ("glm", {"platform": "international"}, "international", "https://api.z.ai/api/paas/v4"),
        ("glm", {"platform": "coding"}, "coding", "https://open.bigmodel.cn/api/coding/paas/v4"),
        ("glm", {"platform": "coding-international"}, "coding-international", "https://api.z.ai/api/coding/paas/v4"),
        ("openai", {"platform": "openai"}, "openai", "https://api.openai.com/v1"),
        ("openai", {}, None, None),
        ("scripted", {}, None, None),
    ],
)
def test_where_a_provider_is(kind: str, settings: dict[str, str], platform: str | None, address: str | None) -> None:
    found = provider(kind, **settings)
    assert (platform_of(found), base_url_of(found)) == (platform, address)
    placed = located(found)
    assert (placed.platform, placed.base_url) == (platform, address)
    assert (platform_of(placed), base_url_of(placed)) == (platform, address), "located twice is located"


def test_the_setting_that_drops_is_in_the_rules() -> None:
    assert not rules_of(provider("kimi")).drops
    assert rules_of(provider("kimi", unsupported_parameters="drop")).drops


@pytest.mark.parametrize(
    ("kind", "counting"),
    [
        ("kimi", Counting(charge="advance", cancel_lag=0.5)),
        ("glm", Counting(concurrency_of="model", cancel_lag=0.5)),
        ("openai", Counting(cancel_lag=0.5)),
        ("local", Counting()),
        ("scripted", Counting()),
    ],
)
def test_how_a_kind_counts_and_that_an_account_may_differ(kind: str, counting: Counting) -> None:
    assert counting_of(provider(kind)) == counting
    assert set(DOCUMENT[kind].get("counting", {})) <= set(Counting.__struct_fields__), (
        "a misspelt one would count nothing"
    )
    own = Counting(charge="actual", concurrency_of="account", cancel_lag=0.0)
    assert counting_of(provider(kind, charge="actual", concurrency_of="account", cancel_lag=0.0)) == own
    assert counting_of(provider(kind, cancel_lag=2.0)).cancel_lag == 2.0
    assert counting_of(provider(kind, cancel_lag=2.0)).charge == counting.charge


def test_entries_of_other_platforms_do_not_travel() -> None:
    everywhere = [entry for entry in kind_facts("glm").models if not entry.platforms]
    assert len(rules_of(provider("glm", platform="china")).models) == len(everywhere)
    assert len(rules_of(provider("glm", platform="coding")).models) == len(everywhere) + 1
    assert len(rules_of(provider("glm", platform="international")).models) == len(everywhere) + 2
    assert len(rules_of(provider("glm", base_url="https://gateway.example/v4")).models) == len(everywhere)


def test_the_rules_in_the_catalogue_are_those_of_the_configuration() -> None:
    document = {"providers": {"k": {"kind": "kimi", "models": {"kimi-k3": {"max_output": 5_000, "max_tokens": 50}}}}}
    found: Rules = rules_of(load(document, {}).providers["k"])
    assert (found.of("kimi-k3").max_output, found.of("kimi-k3").max_tokens) == (5_000, 50)
    assert found.of("kimi-k3.1-pro").max_tokens == 32_768


def texts_of(tree: ast.AST) -> Iterator[str]:
    """Every text in a file's code; docstrings and those of fields stand alone as statements."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def test_code_names_no_vendors_address_and_no_model() -> None:
    hosts = {urlsplit(address).hostname or "" for kind in KINDS for address in kind_facts(kind).platforms.values()}
    vendor = re.compile(rf"{'|'.join(map(re.escape, sorted(hosts)))}|^(kimi-|moonshot-v|glm-\d)")
    texts = [
        (module, text)
        for module, path in installed_modules()
        if module.startswith(("callpool.manager", "callpool.workers"))
        for text in texts_of(parse(path))
    ]
    assert [found for found in texts if vendor.search(found[1])] == []
    assert vendor.search(base_url_of(provider("kimi")) or "")
    assert len(texts) > 1_000, "the check itself must be able to see them"


@pytest.mark.parametrize("kind", KINDS)
def test_the_documentation_names_every_platform_and_variable(kind: str) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    facts = kind_facts(kind)
    names = {*facts.platforms, *facts.key_variables}
    addresses = {address for name, address in facts.platforms.items() if not name.startswith("coding")}
    assert [name for name in sorted(names | addresses) if f"`{name}`" not in text] == []
