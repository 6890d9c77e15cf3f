"""What is known of each kind of provider: its platforms, the variables of its keys, how it counts, what its models can be asked.

All of it is data, in `kinds.toml` beside this file: a new model, a new address or a changed limit is a line there. It is read
where a supervisor is started and in the supervisor; clients and workers get what concerns them.
"""

from __future__ import annotations

import functools
import tomllib
import urllib.parse
from pathlib import Path
from typing import Final

import msgspec

from callpool.manager.core.limits import Counting
from callpool.manager.core.messages import Operation
from callpool.manager.core.parameter_rules import ModelRules, Rule, Rules, exactly
from callpool.manager.settings import ModelSettings, ProviderSettings


class ModelFacts(ModelRules, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One entry of a kind's models."""

    platforms: tuple[str, ...] = ()
    """Where it counts; none given, everywhere."""


class KindFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of provider."""

    platforms: dict[str, str] = {}
    """Addresses by name."""
    default_platform: str | None = None
    """Taken where the configuration names neither platform nor address; None makes one of them compulsory."""
    key_variables: tuple[str, ...] = ()
    """Customary names of the variable with the key. The first that is set wins: ours, then those of the vendors' own samples."""
    keys_elsewhere: bool = True
    """Whether the key in them is also for an address that is no platform's."""
    operations: tuple[Operation, ...] = ("chat",)
    """What such a provider can be asked for."""
    counting: Counting = Counting()
    """How it counts calls and tokens."""
    models: tuple[ModelFacts, ...] = ()


_UNKNOWN: Final = KindFacts()
"""Of kinds that call no vendor."""


def kind_facts(kind: str) -> KindFacts:
    """What is known of a kind."""
    return _kinds().get(kind, _UNKNOWN)


def platform_of(provider: ProviderSettings) -> str | None:
    """The platform that the configuration names, by name or by its address, else the kind's default; None for another address."""
    known = kind_facts(provider.kind)
    if provider.base_url is None:
        return provider.platform or known.default_platform
    own = _place(provider.base_url)
    return next((name for name, address in known.platforms.items() if _place(address) == own), None)


def base_url_of(provider: ProviderSettings) -> str | None:
    """Where the provider is: its own `base_url`, else its platform's address; None for kinds that call no provider."""
    return provider.base_url or kind_facts(provider.kind).platforms.get(platform_of(provider) or "")


def key_variables_of(provider: ProviderSettings) -> tuple[str, ...]:
    """The variables that may hold the key where the configuration says nothing of a key."""
    known = kind_facts(provider.kind)
    return known.key_variables if known.keys_elsewhere or platform_of(provider) is not None else ()


def counting_of(provider: ProviderSettings) -> Counting:
    """How this account's provider counts: as its kind does, but for what the configuration says otherwise."""
    stated = {name: getattr(provider, name) for name in Counting.__struct_fields__}
    kinds = kind_facts(provider.kind).counting
    return msgspec.structs.replace(kinds, **{name: value for name, value in stated.items() if value is not None})


def located(provider: ProviderSettings) -> ProviderSettings:
    """The same with address and platform filled in, for who makes the calls and does not know the kinds."""
    return msgspec.structs.replace(provider, base_url=base_url_of(provider), platform=platform_of(provider))


def rules_of(provider: ProviderSettings) -> Rules:
    """What may be sent to this account's models, and what is known of them."""
    platform = platform_of(provider)
    shipped = (
        _without_platforms(facts)
        for facts in kind_facts(provider.kind).models
        if not facts.platforms or platform in facts.platforms
    )
    own = (_own_facts(name, model) for name, model in provider.models.items())
    return Rules(
        parameters=_everywhere(),
        models=(*shipped, *(entry for entry in own if entry is not None)),
        operations=kind_facts(provider.kind).operations,
        drops=provider.unsupported_parameters == "drop",
    )


def _own_facts(name: str, model: ModelSettings) -> ModelRules | None:
    """What the configuration says of a model itself, which wins."""
    stated = (model.context, model.max_output, model.max_tokens)
    if stated == (None, None, None):
        return None
    context, max_output, max_tokens = stated
    return ModelRules(names=(exactly(name),), context=context, max_output=max_output, max_tokens=max_tokens)


def _without_platforms(facts: ModelFacts) -> ModelRules:
    return ModelRules(**{field: getattr(facts, field) for field in ModelRules.__struct_fields__})


def _place(address: str) -> tuple[str, int | None, str]:
    """What is the same for all spellings of an address."""
    parts = urllib.parse.urlsplit(address)
    return parts.hostname or "", parts.port or {"https": 443, "http": 80}.get(parts.scheme), parts.path.rstrip("/")


@functools.cache
def _document() -> dict[str, object]:
    # Not by importlib.resources: importing that takes three times as long as all of this.
    return tomllib.loads(Path(__file__).with_name("kinds.toml").read_text(encoding="utf-8"))


@functools.cache
def _everywhere() -> dict[str, Rule]:
    return msgspec.convert(_document()["any"], dict[str, Rule])


@functools.cache
def _kinds() -> dict[str, KindFacts]:
    tables = {name: table for name, table in _document().items() if name != "any"}
    return msgspec.convert(tables, dict[str, KindFacts])
