"""The one check of what a request asks of a model, and the making of what is sent. What is right is data: `parameter_rules`.

    options ─► spelled out as messages and parameters ─► checked ─► left out, renamed, defaults added ─► Shaped
                     │ a word that means nothing here      │ a value that is refused
                     └──────────────► Fault ◄──────────────┘

Client and worker use the same function, so what one lets through the other sends; and since shaping is only what comes
after the check, nothing is ever sent that the check refuses. Shaping what was shaped changes nothing.

None stands for a parameter that is not stated, as in the services' own clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from callpool.manager.core.faults import Fault, bad_input
from callpool.manager.core.options import NO_OPTIONS
from callpool.manager.core.parameter_rules import DROP_HINT, is_number, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from callpool.manager.core.options import Options
    from callpool.manager.core.parameter_rules import ModelRules, Rules, Trait, Words

TOKEN_LIMITS: Final = ("max_tokens", "max_completion_tokens")
"""The names that services have for the most tokens of an answer."""
MEDIA: Final = ("image_url", "video_url")
"""Parts of a message that name something to look at."""
SYSTEM_ROLES: Final = ("system", "developer")


class Shaped(NamedTuple):
    """What is sent."""

    messages: list[Any]
    parameters: dict[str, Any]
    dropped: list[str]
    """Parameters and options that were left out because the provider does not let a request choose them."""


def check(
    rules: Rules,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    options: Options = NO_OPTIONS,
    *,
    stream: bool = False,
) -> Fault | None:
    """The fault in what a request asks of this model, or None. `options` have passed `check_options`."""
    found = shape(rules, model, messages, parameters, options, stream=stream)
    return found if isinstance(found, Fault) else None


def shape(
    rules: Rules,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    options: Options = NO_OPTIONS,
    *,
    stream: bool = False,
) -> Shaped | Fault:
    """What to send to this model, or the fault that `check` finds. Changes none of its arguments."""
    asked = _spell_out(rules, model, messages, parameters, options, stream=stream)
    if isinstance(asked, Fault):
        return asked
    entry = rules.of(model, _traits(asked))
    fault = (
        _refuse_words(entry.words, model, options)
        or _refuse_messages(entry, model, asked.messages)
        or _refuse_parameters(rules, entry, model, asked.parameters)
        or _refuse_limits(entry, model, asked.parameters)
    )
    return _fitted(entry, asked) if fault is None else fault


# Callpool's own words.


def _spell_out(
    rules: Rules,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    options: Options,
    *,
    stream: bool,
) -> Shaped | Fault:
    """The request with messages and parameters in the place of its options."""
    asked = Shaped(list(messages), dict(parameters), [])
    if options is NO_OPTIONS or options == NO_OPTIONS:
        return asked
    words = rules.of(model).words
    return (
        _spell_system_prompt(asked, options)
        or _spell_websearch(asked, words, model, options)
        or _spell_thinking(asked, words, model, options)
        or _spell_cache(rules, asked, words, model, options)
        or _refuse_task(words, model, options, stream=stream)
        or asked
    )


def _spell_system_prompt(asked: Shaped, options: Options) -> Fault | None:
    if options.system_prompt is None:
        return None
    if asked.messages and asked.messages[0].get("role") in SYSTEM_ROLES:
        return bad_input(
            "system_prompt", "is given, and messages begin with a system message too: leave one of them out"
        )
    asked.messages.insert(0, {"role": "system", "content": options.system_prompt})
    return None


def _spell_websearch(asked: Shaped, words: Words, model: str, options: Options) -> Fault | None:
    if not options.use_websearch:
        return None
    if words.use_websearch is None:
        return bad_input(
            "use_websearch", f"is not possible with {shown(model)}: callpool knows no web search of its provider"
        )
    tools = asked.parameters.get("tools")
    if tools is None:
        asked.parameters["tools"] = [words.use_websearch]
    elif isinstance(tools, list | tuple):  # anything else is refused as tools
        asked.parameters["tools"] = [*tools, words.use_websearch]
    return None


def _spell_thinking(asked: Shaped, words: Words, model: str, options: Options) -> Fault | None:
    if options.thinking_mode is None:
        return None
    meaning = words.thinking_mode.get(options.thinking_mode)
    if not meaning:
        modes = [mode for mode, parameters in words.thinking_mode.items() if parameters]
        known = f"its modes are {', '.join(modes)}" if modes else "it has no modes that callpool knows"
        return bad_input(
            "thinking_mode", f"{shown(options.thinking_mode)} is not possible with {shown(model)}: {known}"
        )
    return _set(asked, "thinking_mode", meaning)


def _spell_cache(rules: Rules, asked: Shaped, words: Words, model: str, options: Options) -> Fault | None:
    """A cache changes what a request costs and not what it answers: where there is no such word, it may be dropped."""
    meanings: dict[str, dict[str, Any]] = {}
    if options.cache_id is not None:
        meanings["cache_id"] = {words.cache_id: options.cache_id} if words.cache_id else {}
    if options.reset_cache_ttl:
        meanings["reset_cache_ttl"] = words.reset_cache_ttl
    for name, meaning in meanings.items():
        if not meaning and not rules.drops:
            return bad_input(name, f"is not supported by {shown(model)}: leave it out", hint=DROP_HINT)
        if not meaning:
            asked.dropped.append(name)
        elif (fault := _set(asked, name, meaning)) is not None:
            return fault
    return None


def _refuse_task(words: Words, model: str, options: Options, *, stream: bool) -> Fault | None:
    if options.async_task and stream:
        return bad_input("async_task", "cannot be streamed: leave stream or async_task out")
    if options.async_task and not words.async_task:
        return bad_input("async_task", f"is not possible with {shown(model)}: its provider keeps no requests")
    return None


def _set(asked: Shaped, word: str, meaning: Mapping[str, Any]) -> Fault | None:
    for name, value in meaning.items():
        if asked.parameters.get(name) is not None:
            return bad_input(word, f"sets {name}, which is given too: leave one of them out")
        asked.parameters[name] = value
    return None


def _traits(asked: Shaped) -> set[Trait]:
    thinking = asked.parameters.get("thinking")
    off = isinstance(thinking, dict) and thinking.get("type") == "disabled"
    traits: set[Trait] = {"thinking_off" if off else "thinking_on"}
    if asked.messages and asked.messages[-1].get("partial") is True:
        traits.add("partial")
    return traits


# The check.


def _refuse_words(words: Words, model: str, options: Options) -> Fault | None:
    for name, why in words.refused.items():
        if getattr(options, name):
            return bad_input(name, f"is not possible with {shown(model)}: {why}")
    return None


def _refuse_messages(entry: ModelRules, model: str, messages: Sequence[Mapping[str, Any]]) -> Fault | None:
    roles = [message.get("role") for message in messages]
    for index, role in enumerate(roles if entry.roles else ()):
        if role not in entry.roles:
            allowed = ", ".join(entry.roles)
            return bad_input(
                f"messages[{index}].role", f"must be one of {allowed} (a rule of {shown(model)}), got {shown(role)}"
            )
    if entry.media and (fault := _refuse_media(entry.media, model, messages)) is not None:
        return fault
    if entry.needs_role and not any(role in entry.needs_role for role in roles):
        return bad_input(
            "messages", f"must have one of role {' or '.join(entry.needs_role)} (a rule of {shown(model)})"
        )
    return None


def _refuse_media(allowed: tuple[str, ...], model: str, messages: Sequence[Mapping[str, Any]]) -> Fault | None:
    """The fault in the address of an image or a video, or None: what a provider never fetches is told before it is sent."""
    for index, message in enumerate(messages):
        parts = message.get("content")
        for place, part in enumerate(parts if isinstance(parts, list | tuple) else ()):
            for kind in MEDIA:
                media = part.get(kind) if isinstance(part, dict) else None
                address = media.get("url") if isinstance(media, dict) else media
                if isinstance(address, str) and not address.startswith(allowed):
                    param = f"messages[{index}].content[{place}].{kind}"
                    what = f"must begin with {' or '.join(allowed)} (a rule of {shown(model)}), got {shown(address)}"
                    return bad_input(param, f"{what}: other addresses are not fetched")
    return None


def _refuse_parameters(rules: Rules, entry: ModelRules, model: str, parameters: Mapping[str, Any]) -> Fault | None:
    for name, value in parameters.items():
        if value is None:
            continue
        rule = rules.parameters.get(name)
        if rule is not None and (fault := rule.refuse(name, value)) is not None:
            return fault
        rule = entry.parameters.get(name)
        if rule is None or (rules.drops and rule.withholds(value)):
            continue
        if (fault := rule.refuse(name, value, model)) is not None:
            return fault
    return _refuse_fields(rules, entry, model, parameters)


def _refuse_fields(rules: Rules, entry: ModelRules, model: str, parameters: Mapping[str, Any]) -> Fault | None:
    """The fault in a field of a parameter that is an object."""
    for path, rule in entry.parameters.items():
        name, dot, field = path.partition(".")
        table = parameters.get(name) if dot else None
        if not isinstance(table, dict) or table.get(field) is None or _is_dropped(rules, entry, name, table):
            continue
        if (fault := rule.refuse(path, table[field], model)) is not None:
            return fault
    return None


def _refuse_limits(entry: ModelRules, model: str, parameters: Mapping[str, Any]) -> Fault | None:
    """The most tokens of an answer: against what the model can, and both names of it against one another."""
    stated = {name: parameters[name] for name in TOKEN_LIMITS if parameters.get(name) is not None}
    for name, value in stated.items():
        if entry.longest is not None and is_number(value) and value > entry.longest:
            what = f"must be at most {entry.longest}, the most that {shown(model)} can answer, got {shown(value)}"
            return bad_input(name, what, limit=entry.longest)
    if (
        len(stated) == 2
        and len({entry.renames.get(name, name) for name in stated}) == 1
        and len(set(stated.values())) == 2
    ):
        return bad_input("max_tokens", "and max_completion_tokens are the same to this provider: leave one of them out")
    return None


# What is sent.


def _fitted(entry: ModelRules, asked: Shaped) -> Shaped:
    parameters: dict[str, Any] = {}
    dropped = list(asked.dropped)
    for name, value in asked.parameters.items():
        rule = entry.parameters.get(name)
        if value is None:
            continue
        if rule is not None and rule.withholds(value):
            dropped.append(name)
        elif rule is None or rule.fixed is None:
            parameters[entry.renames.get(name, name)] = value
    if entry.max_tokens is not None and not any(name in parameters for name in TOKEN_LIMITS):
        most = entry.max_tokens if entry.longest is None else min(entry.max_tokens, entry.longest)
        parameters[entry.renames.get("max_tokens", "max_tokens")] = most
    return Shaped(asked.messages, parameters, dropped)


def _is_dropped(rules: Rules, entry: ModelRules, name: str, value: object) -> bool:
    rule = entry.parameters.get(name)
    return rules.drops and rule is not None and rule.withholds(value)
