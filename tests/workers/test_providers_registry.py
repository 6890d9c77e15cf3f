"""From settings to provider objects, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from callpool.manager.errors import ConfigError, CredentialMissing
from callpool.manager.kinds import located
from callpool.manager.settings import Kind, ModelSettings, ProviderSettings
from callpool.workers.providers.openai_compatible import OpenAICompatible, service_url
from callpool.workers.providers.registry import make_provider
from callpool.workers.providers.scripted import Scripted
from callpool.workers.providers.secret import Secret

KEY = "sk-0123456789abcdef"


def test_a_scripted_provider_needs_nothing() -> None:
    assert isinstance(make_provider("fake", ProviderSettings(kind="scripted"), None, limit=5), Scripted)


@pytest.mark.parametrize(
    ("kind", "root"),
    [
        ("openai", "https://api.openai.com/v1"),
        ("kimi", "https://api.moonshot.ai/v1"),
        ("glm", "https://open.bigmodel.cn/api/paas/v4"),
    ],
)
def test_a_vendor_is_called_at_its_own_address_and_never_without_a_key(kind: Kind, root: str) -> None:
    settings = located(ProviderSettings(kind=kind, platform="openai" if kind == "openai" else None))
    assert settings.base_url == root
    assert isinstance(make_provider("p", settings, Secret(KEY), limit=5), OpenAICompatible)
    with pytest.raises(CredentialMissing) as caught:
        make_provider("p", settings, None, limit=5)
    assert caught.value.provider == "p"


def test_another_address_may_do_without_a_key() -> None:
    settings = ProviderSettings(kind="openai", base_url="http://127.0.0.1:8000/v1")
    assert isinstance(make_provider("p", settings, None, limit=5), OpenAICompatible)


def test_the_local_model_has_an_address_only_once_it_runs() -> None:
    settings = ProviderSettings(kind="local")
    with pytest.raises(ConfigError) as caught:
        make_provider("home", settings, None, limit=5)
    assert caught.value.param == "providers.home.base_url"
    assert isinstance(
        make_provider("home", settings, None, limit=5, base_url="http://127.0.0.1:1/v1"), OpenAICompatible
    )


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "api.example",
        "ftp://example/v1",
        "file:///etc/passwd",
        "http://",
        "http://example/v1?x=1",
        "http://example/v1#part",
        "http://user:password@example/v1",
        "http://user@example/v1",
        "http://[::1/v1",
        "http://example:99999/v1",
    ],
)
def test_addresses_that_are_refused(base_url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        service_url(base_url, "/chat/completions")
    assert caught.value.param == "base_url"
    assert "password@" not in str(caught.value)


@pytest.mark.parametrize(
    "root", ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1//"]
)
def test_a_slash_at_the_end_makes_no_difference(root: str) -> None:
    assert str(service_url(root, "/chat/completions")) == "http://127.0.0.1:8000/v1/chat/completions"


def test_an_unknown_fault_is_refused() -> None:
    settings = ProviderSettings(kind="scripted", models={"m": ModelSettings(error="crush")})
    with pytest.raises(ConfigError, match="crash"):
        make_provider("fake", settings, None, limit=5)


WITHOUT_AIOHTTP = """
import asyncio, sys
from callpool.manager.settings import ProviderSettings
from callpool.workers.call import run_call
from callpool.workers.providers.base import Call
from callpool.workers.providers.registry import make_provider
class Progress:
    async def started(self): pass
provider = make_provider("fake", ProviderSettings(kind="scripted"), None, limit=5)
call = Call(request_id="r", attempt=1, provider="fake", model="m", stream=False, timeout=9.0, messages=[{"content": "x"}])
print(asyncio.run(run_call(provider, call, Progress())).content)
print(sorted({"aiohttp", "yarl", "ssl"} & set(sys.modules)))
make_provider("p", ProviderSettings(kind="openai", base_url="http://127.0.0.1:1/v1"), None, limit=5)
print("aiohttp" in sys.modules)
"""


def test_a_worker_with_scripted_providers_alone_never_loads_aiohttp() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_AIOHTTP], capture_output=True, text=True, timeout=30, check=True
    )
    *scripted, after = done.stdout.split("\n")[:3]
    assert scripted[0] == "x"
    assert "aiohttp" not in scripted[1]
    assert after == "True", "the check itself must be able to see it"
