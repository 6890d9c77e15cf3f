"""What a provider lets a request say, as data: rules for parameters and facts about models, by patterns of their names.

Theory of operation: a provider's `Rules` hold what is right for whatever server there is, and a list of entries. Every entry whose
names match a model refines those before it: its rules take the place of theirs for the same parameter, its facts the place of
theirs. An entry with `when` counts only for requests of that trait. `parameters` checks and shapes requests by what comes out.

Rules travel: in the catalogue to clients, which so refuse bad input at once, and to workers, which check and shape.
"""

from __future__ import annotations

import functools
import math
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard

import msgspec

from callpool.manager.core.faults import Fault, bad_input
from callpool.manager.core.messages import Operation
from callpool.manager.core.strict import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

TypeWord = Literal["number", "integer", "flag", "text", "texts", "list", "object"]
Trait = Literal["partial", "thinking_off", "thinking_on"]
"""Of a request: its last message is the beginning of the answer; its `thinking` is switched off, or is not."""

MAX_JOINED: Final = 1_000
"""Models that are remembered; whoever asks for more than these invents their names."""
DROP_HINT: Final = (
    'unsupported_parameters = "drop" in the provider\'s configuration leaves it out, and the answer says so'
)


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one parameter may be. Everything that is given has to hold."""

    types: tuple[TypeWord, ...] = ()
    """One of these; none given, any."""
    least: int | float | None = None
    most: int | float | None = None
    """Bounds of a number."""
    choices: tuple[str, ...] = ()
    """One of these texts."""
    min_items: int = 0
    max_items: int | None = None
    """Bounds of a list. A text alone is one item."""
    max_bytes: int | None = None
    """Of a text, or of each text in a list, as UTF-8."""
    fixed: int | float | str | None = None
    """The only value that the provider allows: an equal one is left out of what is sent."""
    unsupported: bool = False
    """Whether the provider has no such parameter, or not for this model."""
    why: str | None = None
    """Words for a person, after the message."""

    def withholds(self, value: object) -> bool:
        """Whether the provider leaves no choice here: what a request wants may be dropped, where the account says so."""
        return self.unsupported or (self.fixed is not None and value != self.fixed)

    def refuse(self, name: str, value: object, model: str | None = None) -> Fault | None:
        """The fault in a value, or None. With a `model` the rule is that model's own, and the message says so."""
        if self.withholds(value):
            by, got = _named(model), shown(value)
            what = f"is not supported by {by}" if self.unsupported else f"is fixed at {self.fixed} by {by}, got {got}"
            return bad_input(name, f"{what}: {self.why or 'leave it out'}", hint=DROP_HINT)
        wrong = self._wrong_type(value) or self._wrong_number(value) or self._wrong_choice(value)
        wrong = wrong or self._wrong_items(value)
        if wrong is None:
            return None
        of = "" if model is None else f" (a rule of {_named(model)})"
        return bad_input(name, wrong + of + (f": {self.why}" if self.why else ""))

    def _wrong_type(self, value: object) -> str | None:
        if isinstance(value, float) and not math.isfinite(value):
            return f"must be a finite number, got {value}"
        if not self.types or any(_TYPES[word][1](value) for word in self.types):
            return None
        return f"must be {' or '.join(_TYPES[word][0] for word in self.types)}, got {shown(value)}"

    def _wrong_number(self, value: object) -> str | None:
        if not is_number(value) or (self.least is None and self.most is None):
            return None
        if (self.least is None or value >= self.least) and (self.most is None or value <= self.most):
            return None
        bounds = (
            f"at most {self.most}"
            if self.least is None
            else f"{self.least} or more"
            if self.most is None
            else f"from {self.least} to {self.most}"
        )
        return f"must be {bounds}, got {shown(value)}"

    def _wrong_choice(self, value: object) -> str | None:
        if not self.choices or (isinstance(value, str) and value in self.choices):
            return None
        allowed = f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else self.choices[0]
        return f"must be {allowed}, got {shown(value)}"

    def _wrong_items(self, value: object) -> str | None:
        items = value if isinstance(value, list | tuple) else [value]
        if len(items) < self.min_items:
            return f"must have at least {self.min_items} items, got {len(items)}"
        if self.max_items is not None and len(items) > self.max_items:
            return f"must have at most {self.max_items} items, got {len(items)}"
        if self.max_bytes is None:
            return None
        sizes = (len(item.encode("utf-8", "surrogatepass")) for item in items if isinstance(item, str))
        size = max(sizes, default=0)
        return None if size <= self.max_bytes else f"must have at most {self.max_bytes} bytes each, one has {size}"


class Words(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What callpool's own words (`options.Options`) are called here."""

    thinking_mode: dict[str, dict[str, Any]] = {}
    """By mode: the parameters that it stands for. A mode that is not here, or stands for none, is refused."""
    use_websearch: dict[str, Any] | None = None
    """The entry of `tools` that switches it on."""
    cache_id: str | None = None
    """The name of its parameter."""
    reset_cache_ttl: dict[str, Any] = {}
    """The parameters that it stands for."""
    async_task: bool = False
    """Whether the provider can keep a request and be asked for the answer later."""
    enable_continuation: bool = False
    """Whether the provider goes on with an answer from its beginning: from a last message that is `partial`."""
    refused: dict[str, str] = {}
    """By word: why it cannot be used, where it could be otherwise."""


class ModelRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One entry: what holds for the models that its names match."""

    names: tuple[str, ...] = ()
    """Patterns of `fnmatch`, without regard to case."""
    when: Trait | None = None
    context: int | None = None
    """Tokens of prompt and answer together."""
    max_output: int | None = None
    """Tokens of one answer, reasoning counted."""
    max_tokens: int | None = None
    """Tokens that are asked for where a request does not say; the model's greatest answer bounds it."""
    parameters: dict[str, Rule] = {}
    """By name; `thinking.type` is a field of an object."""
    renames: dict[str, str] = {}
    """What a parameter is called here."""
    roles: tuple[str, ...] = ()
    """Roles that messages may have; none given, any."""
    needs_role: tuple[str, ...] = ()
    """One message at least has one of these."""
    media: tuple[str, ...] = ()
    """Beginnings of the addresses that images and videos in messages may have; none given, any."""
    keeps_reasoning: bool = False
    """Whether a conversation has to hand the model's reasoning back with its answers."""
    words: Words = Words()

    def matches(self, model: str) -> bool:
        """Whether it is about this model."""
        return any(fnmatchcase(model, pattern.lower()) for pattern in self.names)

    @property
    def longest(self) -> int | None:
        """The most tokens that an answer can have, as far as is known."""
        return self.context if self.max_output is None else self.max_output


_NOTHING: Final = ModelRules()


class Rules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """What may be sent to one account's models."""

    parameters: dict[str, Rule] = {}
    """What is right wherever a request goes: holds besides what an entry says."""
    models: tuple[ModelRules, ...] = ()
    operations: tuple[Operation, ...] = ("chat",)
    """What the provider can be asked for."""
    drops: bool = False
    """Whether a parameter that the provider does not let a request choose is left out, instead of refusing the request."""

    def of(self, model: str, traits: Collection[Trait] = ()) -> ModelRules:
        """What holds for a request of this model, all entries joined: its facts too (`context`, `max_output`)."""
        if not self.models:
            return _NOTHING
        key = model, frozenset(traits)
        found = self._joined.get(key)
        if found is None:
            if len(self._joined) >= MAX_JOINED:
                self._joined.clear()
            found = self._joined[key] = self._join(model.lower(), traits)
        return found

    @functools.cached_property
    def _joined(self) -> dict[tuple[str, frozenset[Trait]], ModelRules]:
        """What `of` found already: joining takes longer than everything else that is done with a request's parameters."""
        return {}

    def _join(self, model: str, traits: Collection[Trait]) -> ModelRules:
        merged = _NOTHING
        for entry in self.models:
            if (entry.when is None or entry.when in traits) and entry.matches(model):
                merged = _refined(merged, entry)
        return msgspec.structs.replace(merged, names=(), when=None)


def _refined(before: Any, after: Any) -> Any:
    """`before` with what `after` states: tables are joined key by key, anything else is replaced."""
    changed: dict[str, Any] = {}
    for field, default in zip(after.__struct_fields__, after.__struct_defaults__, strict=True):
        stated, known = getattr(after, field), getattr(before, field)
        if isinstance(stated, Words):
            changed[field] = _refined(known, stated)
        elif isinstance(stated, dict):
            changed[field] = known | stated if isinstance(known, dict) else stated
        elif stated != default:
            changed[field] = stated
    return msgspec.structs.replace(before, **changed)


def exactly(name: str) -> str:
    """The pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def shown(value: object) -> str:
    """A value in a message: short, on one line, and of what is no number or text only what it is."""
    if isinstance(value, str):
        return repr(printable(value, 40))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a far greater number" if value > 0 else "a far smaller number"
    if isinstance(value, int | float):
        return repr(value)
    if value is None:
        return "null"
    return "a list" if isinstance(value, list | tuple) else "an object" if isinstance(value, dict) else _unknown(value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number in JSON: true is none, though Python counts with it."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unknown(value: object) -> str:
    return f"a {type(value).__name__}"


def _named(model: str | None) -> str:
    return "the provider" if model is None else repr(printable(model, 80))


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


_TYPES: Final[dict[TypeWord, tuple[str, Callable[[object], bool]]]] = {
    "number": ("a number", is_number),
    "integer": ("a whole number", lambda value: is_number(value) and isinstance(value, int)),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
    "text": ("text", lambda value: isinstance(value, str)),
    "texts": ("a list of texts", _is_texts),
    "list": ("a list", lambda value: isinstance(value, list | tuple)),
    "object": ("an object", lambda value: isinstance(value, dict)),
}
