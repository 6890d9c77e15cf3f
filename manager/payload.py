"""From a caller's arguments to a checked `Submit`: one clear error for each way to be wrong, raised in the caller.

JSON comes from the standard library here: it refuses what it does not know (functions, bytes, sets) and, told so, NaN; the
faster encoders turn bytes into base64 and NaN into null without a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from callpool.manager.core.catalogue import refuse_timeout
from callpool.manager.core.faults import Fault
from callpool.manager.core.messages import Submit
from callpool.manager.core.options import NO_OPTIONS, PAYLOAD_KEY, SO_FAR_KEY, Options, check_options
from callpool.manager.core.parameters import check, shape
from callpool.manager.core.tokens import chat_usage
from callpool.manager.errors import BadInput, NotSerializable, from_fault

if TYPE_CHECKING:
    from callpool.manager.core.catalogue import Catalogue
    from callpool.manager.core.limits import Priority
    from callpool.manager.core.messages import RunFunction

RESERVED = frozenset({
    "messages", "model", "stream", "api_key", "base_url", "api_base", "headers", "extra_headers", PAYLOAD_KEY, SO_FAR_KEY,
})  # fmt: skip
"""Names that no parameter may have: callpool sets them itself, or they would point a key at another host."""

_encode_with_str = json.JSONEncoder(default=str).encode
"""`json.dumps(…, default=str)`, made once: the specification's own expression for metadata."""
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def build_submit(
    catalogue: Catalogue,
    *,
    request_id: str,
    provider: str,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    stream: bool,
    timeout: float | None,
    first_token_timeout: float | None,
    idle_timeout: float | None,
    max_attempts: int | None,
    fallbacks: Sequence[str] | None,
    retry_in_doubt: bool,
    metadata: Mapping[str, Any] | None,
    parameters: Mapping[str, Any],
    options: Options | None = None,
    priority: Priority = "normal",
    queue_timeout: float | None = None,
    affinity: str | None = None,
    durable: bool = False,
) -> Submit:
    """Check everything that can be checked without the supervisor, and reckon what the request will use.

    Raises a BadInput subclass, or what the catalogue says. Without an affinity of its own a request has its `cache_id`'s: a worker
    that made the last call of it has the connection, and the provider's cache behind that.
    """
    for name, value in (("request_id", request_id), ("provider", provider), ("model", model)):
        if not isinstance(value, str):
            raise BadInput(f"{name} must be a string, got {type(value).__name__}", param=name)
    if not isinstance(stream, bool):
        raise BadInput(f"stream must be true or false, got {type(stream).__name__}", param="stream")
    if not isinstance(durable, bool):
        raise BadInput(f"durable must be true or false, got {type(durable).__name__}", param="durable")
    given = {"timeout": timeout, "first_token_timeout": first_token_timeout, "idle_timeout": idle_timeout}
    for name, seconds in given.items():
        if (fault := refuse_timeout(seconds, name)) is not None:
            raise from_fault(fault)
    check_retries(max_attempts, fallbacks, retry_in_doubt=retry_in_doubt)
    _check_messages(messages)
    check_names(parameters)
    asked = _checked(options)
    body = {"messages": messages, **parameters}
    if asked != NO_OPTIONS:
        body[PAYLOAD_KEY] = msgspec.to_builtins(asked)
    submit = Submit(
        request_id,
        provider,
        model,
        encode_payload(body),
        encode_metadata(metadata),
        timeout,
        stream,
        first_token_timeout=first_token_timeout,
        idle_timeout=idle_timeout,
        max_attempts=max_attempts,
        fallbacks=None if fallbacks is None else list(fallbacks),
        retry_in_doubt=retry_in_doubt,
        priority=priority,
        queue_timeout=queue_timeout,
        affinity=asked.cache_id if affinity is None else affinity,
        durable=durable,
    )
    if (fault := catalogue.refuse(submit)) is not None:
        raise from_fault(fault)
    shaped = shape(catalogue.providers[provider].rules, model, messages, parameters, asked, stream=stream)
    if isinstance(shaped, Fault):
        raise from_fault(shaped)
    # A fallback keeps the estimate, though its rules may add another limit: the worker that calls it reckons again.
    submit = msgspec.structs.replace(submit, tokens=chat_usage(shaped.messages, shaped.parameters))
    return _with_able_fallbacks(catalogue, submit, messages, parameters, asked)


def _with_able_fallbacks(
    catalogue: Catalogue,
    submit: Submit,
    messages: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    options: Options,
) -> Submit:
    """The request with fallbacks that can take it. One that it named and that cannot refuses it."""
    targets = catalogue.fallbacks_for(submit)
    able = []
    for provider, model in targets:
        rules = catalogue.providers[provider].rules
        fault = check(rules, model, messages, parameters, options, stream=submit.stream)
        if fault is None:
            able.append(f"{provider}/{model}")
        elif submit.fallbacks is not None:
            what = f"for the fallback {provider}/{model}: {fault.message}"
            raise from_fault(msgspec.structs.replace(fault, message=what))
    return submit if len(able) == len(targets) else msgspec.structs.replace(submit, fallbacks=able)


def check_retries(max_attempts: object, fallbacks: object, *, retry_in_doubt: object) -> None:
    """Refuse wrong types; the catalogue knows the bounds and the names. Raises BadInput."""
    if max_attempts is not None and (isinstance(max_attempts, bool) or not isinstance(max_attempts, int)):
        raise BadInput(f"max_attempts must be an integer, got {type(max_attempts).__name__}", param="max_attempts")
    if not isinstance(retry_in_doubt, bool):
        kind = type(retry_in_doubt).__name__
        raise BadInput(f"retry_in_doubt must be true or false, got {kind}", param="retry_in_doubt")
    if fallbacks is None:
        return
    if isinstance(fallbacks, (str, bytes)) or not isinstance(fallbacks, Sequence):
        kind = type(fallbacks).__name__
        raise BadInput(f"fallbacks must be a list of provider/model, got {kind}", param="fallbacks")
    for index, name in enumerate(fallbacks):
        if not isinstance(name, str):
            param = f"fallbacks[{index}]"
            raise BadInput(f"{param} must be a text, provider/model, got {type(name).__name__}", param=param)


def check_names(parameters: Mapping[str, Any]) -> None:
    """Refuse parameters by names that are callpool's own. Raises BadInput."""
    for name in parameters:
        if name in RESERVED:
            raise BadInput(f"{name} cannot be given as a parameter of a request", param=name)
        if name in Options.__struct_fields__:
            given = f"options=callpool.Options({name}=…)"
            raise BadInput(f"{name} is no parameter of a provider: give {given}", param=name)


def _checked(options: Options | None) -> Options:
    if options is None:
        return NO_OPTIONS
    if (fault := check_options(options)) is not None:
        raise from_fault(fault)
    return options


def _check_messages(messages: object) -> None:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise BadInput(f"messages must be a list of messages, got {type(messages).__name__}", param="messages")
    if not messages:
        raise BadInput("messages must not be empty", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise BadInput(
                f"messages[{index}] must be a mapping with role and content, got {type(message).__name__}",
                param=f"messages[{index}]",
            )
        if not isinstance(message.get("role"), str):
            raise BadInput(f"messages[{index}].role must be a string", param=f"messages[{index}].role")
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list, tuple)):
            param = f"messages[{index}].content"
            raise BadInput(f"{param} must be text or a list of parts, got {type(content).__name__}", param=param)


def encode_payload(body: Mapping[str, Any]) -> bytes:
    """The canonical JSON bytes of a body. Raises NotSerializable or BadInput, naming the field."""
    try:
        return _encode(body).encode()
    except TypeError as error:
        param = _culprit(body)
        raise NotSerializable(f"{param} cannot be sent as JSON: {error}", param=param) from None
    except UnicodeEncodeError:
        param = _culprit(body)
        raise BadInput(f"{param} holds half of a surrogate pair, which is no text", param=param) from None
    except ValueError as error:
        param = _culprit(body)
        raise BadInput(f"{param} cannot be sent as JSON: {error}", param=param) from None
    except RecursionError:
        param = _culprit(body)
        raise BadInput(f"{param} is nested too deeply", param=param) from None


def _culprit(body: Mapping[str, Any]) -> str:
    """The first field that does not encode by itself."""
    for name, value in body.items():
        try:
            _encode(value).encode()
        except (TypeError, ValueError, RecursionError):
            return str(name)
    return "a parameter's name"


def encode_metadata(metadata: Mapping[str, Any] | None) -> bytes:
    """The JSON bytes of the metadata: exactly what the limit measures, `json.dumps(metadata, default=str)`."""
    if not metadata and isinstance(metadata, (dict, type(None))):
        return b"{}"
    if not isinstance(metadata, Mapping):
        raise BadInput(f"metadata must be a mapping, got {type(metadata).__name__}", param="metadata")
    try:
        return _encode_with_str(dict(metadata)).encode()
    except Exception as error:  # noqa: BLE001 - `default=str` runs code of the caller's values
        raise NotSerializable(f"metadata cannot be written as JSON: {error}", param="metadata") from None


def encode_result(result: Any) -> bytes:
    """The JSON bytes of a session's result, with `str()` for what JSON has no form for. Raises NotSerializable."""
    try:
        return json.dumps(result, default=str, ensure_ascii=False).encode("utf-8", "backslashreplace")
    except Exception as error:  # noqa: BLE001 - `default=str` runs code of the caller's values
        raise NotSerializable(f"result cannot be written as JSON: {error}", param="result") from None


def longest_function(catalogue: Catalogue, message: RunFunction) -> float:
    """Seconds after which a function has ended, or the supervisor is not there: it may wait as long as it may run."""
    submit = Submit(message.request_id, message.provider, message.model, b"", timeout=message.timeout)
    return 2 * catalogue.timeout_for(submit)
