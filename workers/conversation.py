"""A request that takes several calls: an answer that is cut at the length limit and continued, a search that the model asks for.

    payload ─► Conversation ─► call ─► answer ─┬─ cut, and may go on ─► next payload ─► (a call of its own) ─► …
                                               ├─ asks for a search ──► next payload ─► …
                                               └─ else ───────────────► the whole answer, joined, all usage counted

Nothing of it stays in the worker: what has come so far travels in the next payload, so that each call is a dispatch of its own, with its
slot, its retries and its place in the record, in whatever worker. Pure.

An answer is continued by the provider's partial mode: the text so far goes back as the beginning of the answer, and what comes is
what follows it. What cannot be continued says so in `continuation`; text is never cut without a word.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from callpool.manager.core.messages import Continues, Dispatch
from callpool.manager.core.options import PAYLOAD_KEY, SO_FAR_KEY, Options
from callpool.manager.core.parameter_rules import Rules
from callpool.manager.core.parameters import TOKEN_LIMITS
from callpool.manager.errors import BadInput, CallpoolError, from_fault
from callpool.workers.providers.base import Answer, Call
from callpool.workers.providers.completion import text_of
from callpool.workers.providers.failures import bounded
from callpool.workers.shaping import shape_call

SEARCH_TOOL = "$web_search"
"""The name by which Moonshot's models ask for a search of the provider's own: its arguments go back as they came."""
CUT = ("length", "model_context_window_exceeded")
"""Finish reasons of text that would have gone on: at the limit of the answer, or at that of prompt and answer together (GLM)."""
MAX_SEARCHES = 8
"""Rounds of searching in one request; a model that asks for more is answered no more."""
Count = Annotated[int, msgspec.Meta(ge=0)]
MAX_NEXT_BYTES = 8 << 20
"""Of a payload that goes on: as much as a client may submit."""


class SoFar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What the calls before this one have brought."""

    said: str = ""
    """What the model said before it searched."""
    text: str = ""
    """Of the answer itself, that was cut."""
    reasoning: str = ""
    usage: dict[str, Any] = {}
    """Summed up."""
    answers: Count = 0
    """That are joined in `text`."""
    tokens: Count = 0
    """Of those answers together."""
    searches: Count = 0


class Conversation:
    """One request at one of its calls."""

    def __init__(self, order: Dispatch, rules: Rules) -> None:
        """Decode the payload. Raises `BadInput`: what the client's own check let through is checked here again."""
        self._order = order
        self._rules = rules
        try:
            body = msgspec.json.decode(order.payload, type=dict[str, Any])
            self._messages = msgspec.convert(body.pop("messages", None), list[dict[str, Any]])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadInput(f"messages: {error}", param="messages") from None
        if self._messages and not isinstance(self._messages[-1].get("content"), str | list | None):
            raise BadInput("the last message's content must be text or a list of parts", param="messages")
        if SO_FAR_KEY in body and order.part == 0:
            raise BadInput(f"{SO_FAR_KEY} is no parameter of a request", param=SO_FAR_KEY)
        try:
            self._options = msgspec.convert(body.pop(PAYLOAD_KEY, {}), Options)
            self._so_far = msgspec.convert(body.pop(SO_FAR_KEY, {}), SoFar)
        except msgspec.ValidationError as error:
            raise BadInput(f"options: {error}", param="options") from None
        self._parameters = body
        self._sent = body
        """The parameters as they are sent, once that is known."""
        self._dropped: list[str] = []

    def call(self) -> Call:
        """The call to make, as it may be sent. Raises `BadInput`."""
        order = self._order
        call = Call(
            request_id=order.request_id,
            attempt=order.attempt,
            provider=order.provider,
            model=order.model,
            stream=order.stream,
            timeout=order.timeout,
            first_token_timeout=order.first_token_timeout,
            idle_timeout=order.idle_timeout,
            messages=self._told_messages(),
            parameters=self._parameters,
            options=self._options,
        )
        call, self._dropped = shape_call(self._rules, call)
        if self._so_far.text:
            call = msgspec.structs.replace(call, parameters=self._within_budget(call.parameters))
        self._sent = call.parameters
        return call

    def following(self, answer: Answer) -> Continues | None:
        """The call that goes on after this answer, or None where this was the last one."""
        if self._asks_for_search(answer):
            messages, so_far = self._after_search(answer)
        elif answer.finish_reason in CUT and self._why_not_continued(answer) is None:
            messages, so_far = self._messages, self._joined(answer)
        else:
            return None
        payload = msgspec.json.encode(
            {
                **self._parameters,
                "messages": messages,
                PAYLOAD_KEY: msgspec.to_builtins(self._options),
                SO_FAR_KEY: msgspec.to_builtins(so_far),
            }
        )
        if len(payload) > MAX_NEXT_BYTES:
            return None
        partial = bounded(so_far.said + so_far.text)
        why: Literal["length", "search"] = "search" if messages is not self._messages else "length"
        return Continues(self._order.request_id, self._order.attempt, payload, why, partial)

    def whole(self, answer: Answer) -> Answer:
        """The answer of the request: this one, joined with what came before it."""
        so_far = self._so_far
        changes: dict[str, Any] = {}
        if so_far.said or so_far.text:
            changes["content"] = so_far.said + so_far.text + answer.content
            changes["reasoning_content"] = so_far.reasoning + (answer.reasoning_content or "") or None
        if so_far.usage:
            changes["usage"] = _summed(so_far.usage, answer.usage)
        if changes:
            changes["raw"] = _joined_raw(answer, changes)
        if self._dropped:
            changes["dropped_parameters"] = self._dropped
        if self._options.enable_continuation and (so_far.answers or answer.finish_reason in CUT):
            changes["continuation"] = self._told(answer)
        asks = self._options.use_websearch and _is_search(answer)
        if so_far.searches or asks:
            why = f"it asks for more than {MAX_SEARCHES} searches, for too much, or within a continued answer"
            changes["searches"] = {"rounds": so_far.searches} | ({"why": why} if asks else {})
        return msgspec.structs.replace(answer, **changes) if changes else answer

    def with_text(self, error: CallpoolError) -> CallpoolError:
        """The error of a later call, with the text of the earlier ones before its own: they were paid for."""
        before = self._so_far.said + self._so_far.text
        if not before:
            return error
        fault = error.fault
        partial = bounded(before + str(fault.details.get("partial") or ""))
        return from_fault(msgspec.structs.replace(fault, details={**fault.details, "partial": partial}))

    # Continuing.

    def _told_messages(self) -> list[dict[str, Any]]:
        """The messages of this call: those of the request, and of a cut answer the beginning, which it is to go on from."""
        so_far, messages = self._so_far, self._messages
        if not so_far.text:
            return messages
        if not self._rules.of(self._order.model).words.enable_continuation:
            # It would take the beginning for an answer that was given, and answer anew.
            raise BadInput(f"{SO_FAR_KEY} cannot be gone on with by {self._order.model!r}", param=SO_FAR_KEY)
        beginning: dict[str, Any] = {"role": "assistant", "content": so_far.text, "partial": True}
        reasoning = so_far.reasoning
        if messages and messages[-1].get("partial") is True:  # the caller's own beginning: there is one such message
            *messages, own = messages
            beginning = {**own, "content": text_of(own.get("content")) + so_far.text}
            reasoning = str(own.get("reasoning_content") or "") + reasoning
        if reasoning:
            beginning["reasoning_content"] = reasoning
        return [*messages, beginning]

    def _within_budget(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """A later call may bring only what is left of the budget."""
        left = self._options.max_total_tokens - self._so_far.tokens
        limits = {name: min(parameters[name], left) for name in TOKEN_LIMITS if name in parameters}
        return parameters | limits

    def _why_not_continued(self, answer: Answer) -> str | None:
        """Why an answer that was cut is left so, or None."""
        options, so_far = self._options, self._so_far
        tokens = so_far.tokens + _answered_tokens(answer)
        if not options.enable_continuation:
            return "it was not asked for"
        if answer.finish_reason != "length":
            return "the model's context is full"
        if not self._rules.of(self._order.model).words.enable_continuation:
            return "the provider has no way to continue an answer"
        if answer.tool_calls or self._sent.get("n") not in (None, 1):
            return "only one answer of plain text can be continued"
        if _format_of(self._sent) == "json_object":
            return "the provider continues no answer in response_format json_object"
        if not so_far.text and not answer.content:
            return "the limit came while the model still reasoned: allow more tokens"
        if not answer.content:
            return "the last call brought nothing more"
        if so_far.answers + 1 >= options.max_continuation_attempts:
            return f"max_continuation_attempts is {options.max_continuation_attempts}"
        if tokens >= options.max_total_tokens:
            return f"max_total_tokens is {options.max_total_tokens}"
        return None

    def _joined(self, answer: Answer) -> SoFar:
        so_far = self._so_far
        return msgspec.structs.replace(
            so_far,
            text=so_far.text + answer.content,
            reasoning=so_far.reasoning + (answer.reasoning_content or ""),
            usage=_summed(so_far.usage, answer.usage),
            answers=so_far.answers + 1,
            tokens=so_far.tokens + _answered_tokens(answer),
        )

    def _told(self, answer: Answer) -> dict[str, Any]:
        cut = answer.finish_reason in CUT
        told: dict[str, Any] = {
            "answers": self._so_far.answers + 1,
            "total_tokens": self._so_far.tokens + _answered_tokens(answer),
            "is_complete": not cut,
            "was_truncated": cut,
        }
        if cut:
            told["why"] = self._why_not_continued(answer) or f"what has come is over {MAX_NEXT_BYTES} bytes"
        return told

    # Searching.

    def _asks_for_search(self, answer: Answer) -> bool:
        """Whether the provider itself is to search, as the request allowed."""
        so_far = self._so_far
        asked = self._options.use_websearch and so_far.searches < MAX_SEARCHES and not so_far.text
        return asked and _is_search(answer)

    def _after_search(self, answer: Answer) -> tuple[list[dict[str, Any]], SoFar]:
        messages, beginning = self._messages, ""
        if messages and messages[-1].get("partial") is True:  # with what came after it, it is one message and whole
            *messages, own = messages
            beginning = text_of(own.get("content"))
        said: dict[str, Any] = {
            "role": "assistant",
            "content": beginning + answer.content,
            "tool_calls": answer.tool_calls,
        }
        if answer.reasoning_content:
            said["reasoning_content"] = answer.reasoning_content  # the models want it back whole
        results = [
            {
                "role": "tool",
                "tool_call_id": each.get("id"),
                "name": SEARCH_TOOL,
                "content": _function_of(each).get("arguments") or "{}",
            }
            for each in answer.tool_calls or ()
        ]
        so_far = msgspec.structs.replace(
            self._so_far,
            said=self._so_far.said + answer.content,
            usage=_summed(self._so_far.usage, answer.usage),
            searches=self._so_far.searches + 1,
        )
        return [*messages, said, *results], so_far


def plain_call(order: Dispatch) -> Call:
    """The call of an order that is no chat: its payload is the provider's body. Raises `BadInput`."""
    try:
        body = msgspec.json.decode(order.payload, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadInput(f"input: {error}", param="input") from None
    return Call(
        request_id=order.request_id,
        attempt=order.attempt,
        provider=order.provider,
        model=order.model,
        stream=False,
        timeout=order.timeout,
        operation=order.operation,
        parameters=body,
    )


def _is_search(answer: Answer) -> bool:
    """Whether all that the model calls is the provider's own search."""
    calls = answer.tool_calls or []
    return bool(calls) and all(_function_of(each).get("name") == SEARCH_TOOL for each in calls)


def _format_of(parameters: dict[str, Any]) -> object:
    given = parameters.get("response_format")
    return given.get("type") if isinstance(given, dict) else None


def _function_of(tool_call: dict[str, Any]) -> dict[str, Any]:
    function = tool_call.get("function")
    return function if isinstance(function, dict) else {}


def _answered_tokens(answer: Answer) -> int:
    """As the provider counts; where it does not, a token for every four bytes, which is about what text has."""
    counted = answer.usage.get("completion_tokens")
    if isinstance(counted, int) and not isinstance(counted, bool) and counted > 0:
        return counted
    return -(-len((answer.content + (answer.reasoning_content or "")).encode()) // 4)


def _summed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Counts added up, field by field; of anything else the later one."""
    summed = dict(before)
    for name, value in after.items():
        known = summed.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            summed[name] = _summed(known, value)
        elif _is_count(value) and _is_count(known):
            summed[name] = known + value
        elif value is not None or name not in summed:
            summed[name] = value
    return summed


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _joined_raw(answer: Answer, changes: dict[str, Any]) -> Any:
    """The provider's last object with the whole text and all counts in it."""
    raw = answer.raw
    if not isinstance(raw, dict) or not isinstance(raw.get("choices"), list) or not raw["choices"]:
        return raw
    choice = raw["choices"][0]
    message = {**choice["message"]}
    if "content" in changes:
        message["content"] = changes["content"]
        if changes["reasoning_content"]:
            message["reasoning_content"] = changes["reasoning_content"]
    return {
        **raw,
        "choices": [{**choice, "message": message}, *raw["choices"][1:]],
        "usage": changes.get("usage", answer.usage),
    }
