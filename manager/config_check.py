"""The check of a whole configuration: a walk that collects every problem instead of stopping at the first."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from callpool.manager.config_limits import check_limits
from callpool.manager.config_rules import (
    CLIENT_RULES,
    JOURNAL_RULES,
    KINDS,
    MODEL_RULES,
    NAME,
    NAME_WORDS,
    ORGANIZATION_RULES,
    PROVIDER_RULES,
    RETENTION_RULES,
    SUPERVISOR_RULES,
    TARGET,
    Problem,
    Rule,
    nearest,
    one_of,
    type_name,
    wanted,
)
from callpool.manager.kinds import KindFacts, kind_facts
from callpool.manager.settings import (
    LOCAL_MODEL,
    MAX_LOCAL_SLOTS,
    SCRIPT_FAULTS,
    ClientSettings,
    JournalSettings,
    ModelSettings,
    OrganizationSettings,
    ProviderSettings,
    RetentionSettings,
    Settings,
    SupervisorSettings,
)
from callpool.manager.toml_lines import KeyPath

_SCRIPTED_ONLY: Final = ("reply", "replies", "delay", "chunks", "chunk_delay", "error_times", "error")
_CALLS_OUT: Final = (
    "api_key_env", "api_key_file", "base_url", "platform", "connections", "keep_alive", "warm_connections",
)  # fmt: skip
_BOUNDED_BY: Final = (("max_output", "context"), ("max_tokens", "max_output"), ("max_tokens", "context"))
_DEFAULTS: Final = SupervisorSettings()
_LITERAL_KEYS: Final = frozenset({"apikey", "key", "token", "secret", "password"})


def check(document: Mapping[str, Any], known_faults: Collection[str] | None = SCRIPT_FAULTS) -> list[Problem]:
    """Everything that is wrong with a configuration of the shape of the TOML file; an empty list means it is good.

    `known_faults` are the names that `error` of a scripted model may have; None does not check them.
    """
    walk = _Walk(known_faults)
    walk.document(document)
    return walk.problems


@functools.cache
def _optional(shape: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.name for field in msgspec.structs.fields(shape) if field.default is None)


class _Walk:
    """Goes through a document once and gathers problems."""

    def __init__(self, known_faults: Collection[str] | None) -> None:
        self.problems: list[Problem] = []
        self._known_faults = known_faults

    def _add(self, path: KeyPath, what: str) -> None:
        self.problems.append(Problem(path, what))

    def document(self, document: Mapping[str, Any]) -> None:
        self._known_names((), document, Settings.__struct_fields__)
        supervisor = document.get("supervisor", {})
        if self._is_table(("supervisor",), supervisor):
            self._fields(("supervisor",), supervisor, SUPERVISOR_RULES, SupervisorSettings)
            self._longest(supervisor)
        providers = document.get("providers", {})
        if self._is_table(("providers",), providers):
            for name, provider in providers.items():
                self._provider(("providers", name), provider)
            self._fallbacks(providers)
        for table, rules, shape in (
            ("journal", JOURNAL_RULES, JournalSettings),
            ("retention", RETENTION_RULES, RetentionSettings),
        ):
            values = document.get(table, {})
            if self._is_table((table,), values):
                self._fields((table,), values, rules, shape)
        self._group(document, "organizations", "an organization", ORGANIZATION_RULES, OrganizationSettings)
        self._group(document, "clients", "a client", CLIENT_RULES, ClientSettings)
        self.problems += list(check_limits(document, self.problems))

    def _group(
        self,
        document: Mapping[str, Any],
        group: str,
        noun: str,
        rules: Mapping[str, Rule],
        shape: type[msgspec.Struct],
    ) -> None:
        """Tables by name that have plain fields alone."""
        tables = document.get(group, {})
        if not self._is_table((group,), tables):
            return
        for name, table in tables.items():
            self._named((group, name), noun)
            if self._is_table((group, name), table):
                self._fields((group, name), table, rules, shape)

    def _longest(self, supervisor: Mapping[str, Any]) -> None:
        """A first pause is no longer than the longest one."""
        for name, bound in (("retry_wait", "retry_longest_wait"), ("circuit_pause", "circuit_longest_pause")):
            first, longest = (supervisor.get(each, getattr(_DEFAULTS, each)) for each in (name, bound))
            are_right = SUPERVISOR_RULES[name](first) is None and SUPERVISOR_RULES[bound](longest) is None
            if are_right and first > longest:
                self._add(("supervisor", name), f"must be at most {bound}, which is {longest:g}")

    def _is_table(self, path: KeyPath, value: object) -> bool:
        if isinstance(value, Mapping):
            return True
        self._add(path, wanted("a table", value))
        return False

    def _known_names(self, path: KeyPath, table: Mapping[Any, Any], valid: Collection[str]) -> None:
        for name in table:
            if not isinstance(name, str):
                self._add(path, f"names of keys are text, one is {type_name(name)}")
            elif name not in valid:
                if not path and name in SUPERVISOR_RULES:
                    self._add((name,), "unknown key; it belongs under [supervisor]")
                else:
                    self.problems.append(Problem((*path, name), "unknown key", valid))

    def _fields(
        self, path: KeyPath, table: Mapping[str, Any], rules: Mapping[str, Rule], shape: type[msgspec.Struct]
    ) -> None:
        """The plain fields of one table; None stands for an optional field that is left out."""
        self._known_names(path, table, shape.__struct_fields__)
        optional = _optional(shape)
        for name, rule in rules.items():
            if name in table and not (table[name] is None and name in optional):
                what = rule(table[name])
                if what is not None:
                    self._add((*path, name), what)

    def _named(self, path: KeyPath, noun: str) -> None:
        name = path[-1]
        if not (isinstance(name, str) and re.fullmatch(NAME, name)):
            self._add(path, f"{noun}'s name has {NAME_WORDS}")

    def _provider(self, path: KeyPath, provider: object) -> None:
        self._named(path, "a provider")
        if not isinstance(provider, Mapping):
            self._add(path, wanted("a table", provider))
            return
        literal = {name for name in provider if re.sub(r"[^a-z]", "", str(name).lower()) in _LITERAL_KEYS}
        for name in sorted(literal):
            self._add(
                (*path, name),
                "a key does not belong into the configuration: name its environment variable in api_key_env, "
                "or a file of mode 0600 in api_key_file",
            )
        plain = {name: value for name, value in provider.items() if name not in literal}
        self._fields(path, plain, PROVIDER_RULES, ProviderSettings)
        self._kind(path, provider)
        models = provider.get("models", {})
        if self._is_table((*path, "models"), models):
            kind = provider.get("kind", "scripted")
            for name, model in models.items():
                self._model((*path, "models", name), model, scripted=kind == "scripted" or kind not in KINDS)

    def _fallbacks(self, providers: Mapping[str, Any]) -> None:
        """Whether what fallbacks name is there."""
        for name, provider in providers.items():
            if not isinstance(provider, Mapping):
                continue
            models = provider.get("models", {})
            listed = models.items() if isinstance(models, Mapping) else ()
            places = [
                (("providers", name), provider),
                *((("providers", name, "models", m), each) for m, each in listed),
            ]
            for path, table in places:
                named = table.get("fallbacks") if isinstance(table, Mapping) else None
                for index, target in enumerate(named if isinstance(named, list | tuple) else ()):
                    if isinstance(target, str) and re.fullmatch(TARGET, target):
                        self._fallback((*path, "fallbacks", index), target, providers)

    def _fallback(self, path: KeyPath, target: str, providers: Mapping[str, Any]) -> None:
        name, _, model = target.partition("/")
        provider = providers.get(name)
        if not isinstance(provider, Mapping):
            self._add(path, f"no provider {name[:80]!r}; {nearest(name, [str(each) for each in providers])}")
            return
        models = provider.get("models")
        if not models and provider.get("kind") == "local":
            models = {LOCAL_MODEL: {}}
        if isinstance(models, Mapping) and models and not provider.get("any_model") and model not in models:
            self._add(
                path,
                f"provider {name!r} lists no model {model[:80]!r}; {nearest(model, [str(each) for each in models])}",
            )

    def _kind(self, path: KeyPath, provider: Mapping[str, Any]) -> None:
        """What the kind of a provider means for its other keys."""
        kind, given = provider.get("kind"), [name for name in _CALLS_OUT if provider.get(name) is not None]
        if "kind" not in provider:
            self._add(path, f"kind is missing; it is one of: {', '.join(KINDS)}")
        if kind in ("local", "scripted"):  # a tuple: a value that cannot be hashed is a problem, not a crash
            for name in given:
                self._add((*path, name), f'has no meaning for kind "{kind}", which calls no provider: remove it')
        elif given[:2] == ["api_key_env", "api_key_file"]:
            self._add((*path, "api_key_file"), "a key comes from one place: give api_key_env or api_key_file, not both")
        slots = provider.get("concurrency")
        if kind == "local" and isinstance(slots, int) and slots > MAX_LOCAL_SLOTS:
            self._add((*path, "concurrency"), f'must be at most {MAX_LOCAL_SLOTS} for kind "local"')
        if isinstance(kind, str) and kind in KINDS and kind not in ("local", "scripted"):
            self._address(path, kind_facts(kind), provider.get("platform"), given, f'kind "{kind}"')

    def _address(self, path: KeyPath, known: KindFacts, platform: object, given: Collection[str], kind: str) -> None:
        """Where a provider is: one place, and one that is known."""
        if "platform" in given and "base_url" in given:
            self._add((*path, "platform"), "an address comes from one place: give platform or base_url, not both")
        if isinstance(platform, str) and (what := one_of(known.platforms, f"platform of {kind}")(platform)) is not None:
            self._add((*path, "platform"), what)
        if known.default_platform is None and not {"platform", "base_url"} & set(given):
            names = " or ".join(f'platform = "{name}"' for name in known.platforms)
            self._add(path, f"base_url is missing: {kind} has no address of its own; it may be {names}")

    def _model(self, path: KeyPath, model: object, *, scripted: bool) -> None:
        name = path[-1]
        if not (isinstance(name, str) and 1 <= len(name) <= 200 and name.isprintable()):
            self._add(path, "a model's name has 1 to 200 printable characters")
        if not isinstance(model, Mapping):
            self._add(path, wanted("a table", model))
            return
        self._fields(path, model, MODEL_RULES, ModelSettings)
        for name, bound in _BOUNDED_BY:
            less, more = model.get(name), model.get(bound)
            if isinstance(less, int) and isinstance(more, int) and less > more:
                self._add((*path, name), f"must be at most {bound}, which is {more}")
        self._prices(path, model)
        if scripted:
            self._script(path, model)
            return
        for key in [key for key in _SCRIPTED_ONLY if key in model]:
            self._add((*path, key), 'is for providers of kind "scripted" alone')

    def _prices(self, path: KeyPath, model: Mapping[str, Any]) -> None:
        """All that is counted has a price."""
        given = [name for name in ("input_price", "output_price", "cached_input_price") if model.get(name) is not None]
        missing = [name for name in ("input_price", "output_price") if name not in given]
        if given and missing:
            self._add((*path, given[0]), f"{' and '.join(missing)} must be given beside it; 0 is a price")

    def _script(self, path: KeyPath, model: Mapping[str, Any]) -> None:
        """What the rule of a single field of a scripted model cannot see."""
        replies, error = model.get("replies"), model.get("error")
        for index, reply in enumerate(replies if isinstance(replies, list | tuple) else ()):
            if not isinstance(reply, str):
                self._add((*path, "replies", index), wanted("text", reply))
        if isinstance(error, str) and self._known_faults is not None:
            what = one_of(self._known_faults, "known fault")(error)
            if what is not None:
                self._add((*path, "error"), what)
