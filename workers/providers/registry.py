"""From a provider's settings to the object that makes its calls."""

from __future__ import annotations

from callpool.manager.errors import ConfigError, CredentialMissing
from callpool.manager.settings import ProviderSettings
from callpool.workers.providers.base import Pooled
from callpool.workers.providers.presets import PRESETS
from callpool.workers.providers.scripted import Scripted
from callpool.workers.providers.secret import Secret


def make_provider(
    name: str, settings: ProviderSettings, key: Secret | None, *, limit: int, base_url: str | None = None
) -> Pooled:
    """The provider object of one account, for one worker.

    `limit` is the number of calls at once, and of connections where the settings do not say; `base_url` is an address found
    out after the configuration was read (the local model server's port) and wins over the settings, which name a platform's address
    too. Raises `ConfigError` and `CredentialMissing`. Nothing is connected yet; the object may be made outside of an event loop.
    """
    if settings.kind == "scripted":
        return Scripted(settings.models)
    # Imported here: aiohttp costs a fifth of a second, which a worker with scripted providers alone need not wait.
    from callpool.workers.providers.openai_compatible import OpenAICompatible  # noqa: PLC0415

    url = base_url or settings.base_url
    if url is None:
        raise ConfigError(f"provider {name!r} has no base_url", param=f"providers.{name}.base_url")
    if key is None and settings.platform is not None:
        raise CredentialMissing(f"provider {name!r} has no key, and {url} answers nobody without one", provider=name)
    return OpenAICompatible(
        PRESETS[settings.kind],
        key,
        base_url=url,
        limit=limit if settings.connections is None else settings.connections,
        keep_alive=settings.keep_alive,
        warm=settings.warm_connections,
    )
