"""What clients ask besides chats: vectors for texts, and models. What sync and async clients have in common of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from callpool.manager.core.catalogue import refuse_timeout
from callpool.manager.core.messages import Submit
from callpool.manager.core.tokens import texts_usage
from callpool.manager.errors import BadInput, from_fault
from callpool.manager.payload import check_names, check_retries, encode_metadata, encode_payload

if TYPE_CHECKING:
    from callpool.manager.core.catalogue import Catalogue, ProviderEntry
    from callpool.manager.core.limits import Priority

MAX_TEXTS = 10_000
"""Texts in one request for vectors; a provider may allow fewer."""


def embeddings_submit(
    catalogue: Catalogue,
    request_id: str,
    *,
    provider: str,
    model: str,
    input: object,  # noqa: A002 - the field's name in every such API
    timeout: float | None = None,
    max_attempts: int | None = None,
    fallbacks: Sequence[str] | None = None,
    retry_in_doubt: bool = False,
    metadata: Mapping[str, Any] | None = None,
    priority: Priority = "normal",
    queue_timeout: float | None = None,
    affinity: str | None = None,
    **parameters: Any,
) -> Submit:
    """The request for vectors, checked. Raises a BadInput subclass, or what the catalogue says.

    The configuration's fallbacks are not for it: vectors of two models cannot be compared.
    """
    _check_texts(input)
    check_names(parameters)
    check_retries(max_attempts, fallbacks, retry_in_doubt=retry_in_doubt)
    body = encode_payload({"input": input} | {name: value for name, value in parameters.items() if value is not None})
    submit = Submit(
        request_id,
        provider,
        model,
        body,
        encode_metadata(metadata),
        timeout,
        max_attempts=max_attempts,
        fallbacks=list(fallbacks or ()),
        retry_in_doubt=retry_in_doubt,
        operation="embeddings",
        tokens=texts_usage(input),
        priority=priority,
        queue_timeout=queue_timeout,
        affinity=affinity,
    )
    return _checked(catalogue, submit)


def models_submit(catalogue: Catalogue, request_id: str, provider: str, timeout: float | None) -> Submit:
    """The request for a provider's list of models, checked. It uses no tokens."""
    return _checked(
        catalogue, Submit(request_id, provider, "", b"{}", timeout=timeout, fallbacks=[], operation="models")
    )


def embeddings_of(answer: dict[str, Any]) -> dict[str, Any]:
    """What `embed` returns."""
    return {name: answer[name] for name in ("provider", "model", "embeddings", "usage", "metadata")}


def models_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What `list_models` returns."""
    found: list[dict[str, Any]] = answer["models"]
    return found


def known_models(catalogue: Catalogue, provider: str | None) -> list[dict[str, Any]]:
    """The models that the configuration lists, and what is known of them. Raises UnknownProvider."""
    if provider is not None and provider not in catalogue.providers:
        raise from_fault(catalogue.unknown_provider(provider))
    names = catalogue.providers if provider is None else [provider]
    return [
        _known(name, model, catalogue.providers[name]) for name in names for model in catalogue.providers[name].models
    ]


def _known(provider: str, model: str, entry: ProviderEntry) -> dict[str, Any]:
    rules = entry.rules.of(model)
    return {
        "provider": provider,
        "model": model,
        "context": rules.context,
        "max_output": rules.max_output,
        "timeout": entry.models[model].total,
        "operations": list(entry.rules.operations),
    }


def _check_texts(texts: object) -> None:
    if isinstance(texts, str):
        return
    if isinstance(texts, bytes) or not isinstance(texts, Sequence):
        raise BadInput(f"input must be text or a list of texts, got {type(texts).__name__}", param="input")
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise BadInput(f"input must have from 1 to {MAX_TEXTS} texts, got {len(texts)}", param="input")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadInput(f"input[{index}] must be text, got {type(text).__name__}", param=f"input[{index}]")


def _checked(catalogue: Catalogue, submit: Submit) -> Submit:
    for name, value in (("request_id", submit.request_id), ("provider", submit.provider), ("model", submit.model)):
        if not isinstance(value, str):
            raise BadInput(f"{name} must be a string, got {type(value).__name__}", param=name)
    fault = refuse_timeout(submit.timeout) or catalogue.refuse(submit)
    if fault is not None:
        raise from_fault(fault)
    return submit
