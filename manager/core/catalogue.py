"""What can be submitted: the providers, their models and the limits, and the one check of a request against them.

The supervisor sends its catalogue to every client that connects, so that bad input is refused in the caller, at once, by
the same function that the supervisor applies again.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

import msgspec

from callpool.manager.core.faults import Fault, bad_input
from callpool.manager.core.limits import MAX_AFFINITY, MAX_CLIENT_NAME, PRIORITIES, Usage
from callpool.manager.core.parameter_rules import Rules, shown
from callpool.manager.core.retry import MAX_ATTEMPTS, MAX_FALLBACKS, Target
from callpool.manager.core.tokens import MOST

if TYPE_CHECKING:
    from collections.abc import Iterable

    from callpool.manager.core.messages import Submit

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
CLIENT_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_CLIENT_NAME}}}")
MAX_TIMEOUT = 86_400.0
"""Seconds: a day. A longer wait for one answer is a mistake in a unit."""
MAX_MODEL_NAME = 200
"""Characters; the same as in the configuration."""
MAX_PAYLOAD = 8 * 1024 * 1024
"""Bytes of one request's payload: room for a context window of a million tokens, or a few images."""


GivenTimeouts = tuple[float | None, float | None, float | None]
"""Total, first token and idle, where a request names them."""
NOT_GIVEN: GivenTimeouts = (None, None, None)


class Timeouts(msgspec.Struct, frozen=True, gc=False):
    """How long a call may take, in seconds. Those of a stream's silences end it earlier; none of them outlasts the whole."""

    total: float
    """For the whole call."""
    first_token: float | None = None
    """Of a stream: from the call's start to the first chunk that brings anything."""
    idle: float | None = None
    """Of a stream: from one chunk that brings anything to the next."""


class ProviderEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One account, as clients see it."""

    timeouts: Timeouts
    """Of a call where neither the model nor the request says otherwise."""
    limit: int
    models: dict[str, Timeouts] = {}
    """By the model's name."""
    any_model: bool = False
    rules: Rules = Rules()
    """What its models may be asked, and what is known of them: `rules.of(model).context`, `.max_output`."""
    refusal: Fault | None = None
    """Why this account cannot serve at all (a missing key), or None."""
    fallbacks: list[str] = []
    """Targets, as `provider/model`, for requests that this account cannot serve and that name none themselves."""
    model_fallbacks: dict[str, list[str]] = {}
    """The same by model, where a model has its own."""
    queue_timeout: float | None = None
    """Seconds that a request waits for its first call, where neither it nor the model says otherwise; None: no limit."""
    model_queue_timeouts: dict[str, float] = {}
    """The same by model, where a model has its own."""

    def has(self, model: str) -> bool:
        """Whether the configuration allows this model."""
        return self.any_model or model in self.models


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """All that a client must know to refuse bad input by itself."""

    providers: dict[str, ProviderEntry]
    max_metadata_size: int
    default_timeout: float = 30.0
    """Seconds for a session whose provider is none of these."""
    max_concurrent_sessions: int = 0
    """For clients that expect some number; 0 where nobody said."""
    max_payload_size: int = MAX_PAYLOAD

    def timeout_for(self, submit: Submit) -> float:
        """Seconds for this request's call, or for the session that a client holds."""
        if submit.timeout is not None:
            return submit.timeout
        entry = self.providers.get(submit.provider)
        if entry is None:
            return self.default_timeout
        return entry.models.get(submit.model, entry.timeouts).total

    def timeouts_for(self, submit: Submit) -> Timeouts:
        """All timeouts of this request's call, whose provider there is: each is the request's, else the model's or the provider's."""
        return self.timeouts_at(Target(submit.provider, submit.model), given_timeouts(submit))

    def timeouts_at(self, target: Target, given: GivenTimeouts) -> Timeouts:
        """All timeouts of a call there, for a request that brought these."""
        entry = self.providers[target.provider]
        usual = entry.models.get(target.model, entry.timeouts)
        if given == NOT_GIVEN:
            return usual
        total, first_token, idle = given
        return Timeouts(
            usual.total if total is None else total,
            usual.first_token if first_token is None else first_token,
            usual.idle if idle is None else idle,
        )

    def queue_timeout_for(self, submit: Submit) -> float | None:
        """Seconds that this request waits for its first call at most: its own, else the model's or the provider's; None: no limit."""
        entry = self.providers.get(submit.provider)
        if submit.queue_timeout is not None or entry is None:
            return submit.queue_timeout
        return entry.model_queue_timeouts.get(submit.model, entry.queue_timeout)

    def fallbacks_for(self, submit: Submit) -> list[Target]:
        """Where this request's call may go instead, in order: the request's own list, else the model's, else the provider's.

        Those of the configuration are for chats alone, and only as far as they can serve.
        """
        named = submit.fallbacks
        if named is None and submit.operation == "chat":
            entry = self.providers[submit.provider]
            named = entry.model_fallbacks.get(submit.model, entry.fallbacks)
        if not named:
            return []
        targets = dict.fromkeys(Target(*name.split("/", 1)) for name in named)
        own = (submit.provider, submit.model)
        return [target for target in targets if target != own and self.can_serve(target, submit)]

    def can_serve(self, target: Target, submit: Submit) -> bool:
        """Whether this request's operation can be done there, as far as the configuration knows."""
        entry = self.providers.get(target.provider)
        if entry is None or entry.refusal is not None:
            return False
        return entry.has(target.model) and submit.operation in entry.rules.operations

    def refuse(self, submit: Submit) -> Fault | None:
        """The fault in this request, or None. Metadata size is the session table's business: it counts refusals."""
        if REQUEST_ID.fullmatch(submit.request_id) is None:
            return bad_input("request_id", f"must match [A-Za-z0-9_-]{{1,64}}, got {submit.request_id[:80]!r}")
        entry = self.providers.get(submit.provider)
        if entry is None:
            return self.unknown_provider(submit.provider)
        if submit.operation not in entry.rules.operations:
            can = ", ".join(entry.rules.operations)
            return bad_input("provider", f"{submit.provider!r} does not serve {submit.operation}: it serves {can}")
        if (fault := _refuse_model(submit, entry)) is not None:
            return fault
        if entry.refusal is not None:
            return entry.refusal
        if (fault := refuse_timeouts(submit) or self._refuse_retries(submit)) is not None:
            return fault
        if (fault := refuse_order(submit)) is not None:
            return fault
        if len(submit.payload) > self.max_payload_size:
            size, limit = len(submit.payload), self.max_payload_size
            return bad_input("messages", f"are {size} bytes as JSON, the limit is {limit}", size=size, limit=limit)
        return None

    def unknown_provider(self, name: str) -> Fault:
        """There is no provider of this name."""
        return _unknown("provider", name, self.providers)

    def _refuse_retries(self, submit: Submit) -> Fault | None:
        """The fault in what a request says of further calls, or None."""
        if submit.max_attempts is not None and not 1 <= submit.max_attempts <= MAX_ATTEMPTS:
            return bad_input(
                "max_attempts", f"must be from 1 to {MAX_ATTEMPTS}, got {submit.max_attempts}", limit=MAX_ATTEMPTS
            )
        named = submit.fallbacks
        if not named:
            return None
        if len(named) > MAX_FALLBACKS:
            limit = MAX_FALLBACKS
            return bad_input("fallbacks", f"has {len(named)} entries, the limit is {limit}", limit=limit)
        for index, name in enumerate(named):
            param = f"fallbacks[{index}]"
            provider, slash, model = name.partition("/")
            if not slash or not model or len(model) > MAX_MODEL_NAME:
                return bad_input(param, f"must be provider/model, got {name[:80]!r}")
            entry = self.providers.get(provider)
            if entry is None:
                return msgspec.structs.replace(self.unknown_provider(provider), param=param)
            if submit.operation not in entry.rules.operations:
                return bad_input(param, f"does not serve {submit.operation}: {name[:80]!r}")
            if entry.refusal is not None:
                return msgspec.structs.replace(entry.refusal, param=param)
            if not entry.has(model):
                unknown = _unknown("model", model, entry.models, of=f" of provider {provider!r}")
                return msgspec.structs.replace(unknown, param=param)
        return None


def _refuse_model(submit: Submit, entry: ProviderEntry) -> Fault | None:
    if len(submit.model) > MAX_MODEL_NAME:
        return bad_input("model", f"has {len(submit.model)} characters, the limit is {MAX_MODEL_NAME}")
    if submit.operation == "models":
        return bad_input("model", "must be empty: all models are asked for") if submit.model else None
    if not entry.has(submit.model):
        return _unknown("model", submit.model, entry.models, of=f" of provider {submit.provider!r}")
    return None


def given_timeouts(submit: Submit) -> GivenTimeouts:
    """What the request itself says of its timeouts."""
    return submit.timeout, submit.first_token_timeout, submit.idle_timeout


def refuse_session(submit: Submit) -> Fault | None:
    """The fault in what a held session is asked for with, or None. Any provider's name will do: it is bookkeeping."""
    if REQUEST_ID.fullmatch(submit.request_id) is None:
        return bad_input("request_id", f"must match [A-Za-z0-9_-]{{1,64}}, got {submit.request_id[:80]!r}")
    for name, text in (("provider", submit.provider), ("model", submit.model)):
        if not text:
            return bad_input(name, "must not be empty")
        if len(text) > MAX_MODEL_NAME:
            return bad_input(name, f"has {len(text)} characters, the limit is {MAX_MODEL_NAME}")
    return refuse_timeout(submit.timeout, "timeout_seconds")


def refuse_order(given: Submit) -> Fault | None:
    """The fault in what a request says of its turn and its size, or None."""
    return (
        _refuse_priority(given.priority)
        or refuse_timeout(given.queue_timeout, "queue_timeout")
        or _refuse_affinity(given.affinity)
        or _refuse_tokens(given.tokens)
    )


def _refuse_priority(given: object) -> Fault | None:
    if isinstance(given, str) and given in PRIORITIES:
        return None
    return bad_input("priority", f"must be one of {', '.join(PRIORITIES)}, got {shown(given)}")


def _refuse_affinity(given: object) -> Fault | None:
    if given is None or (isinstance(given, str) and 1 <= len(given) <= MAX_AFFINITY and given.isprintable()):
        return None
    return bad_input(
        "affinity", f"must be 1 to {MAX_AFFINITY} printable characters, got {shown(given)}", limit=MAX_AFFINITY
    )


def _refuse_tokens(given: Usage) -> Fault | None:
    """A client of another kind may reckon wrongly, but a count below nothing would give back what others use."""
    if all(0 <= count <= MOST for count in (given.prompt, given.answer, given.cached)):
        return None
    return bad_input("tokens", f"must be from 0 to {MOST} each", limit=MOST)


def refuse_client_name(name: object, param: str = "name") -> Fault | None:
    """The fault in the name under which a client is reckoned, or None."""
    if isinstance(name, str) and CLIENT_NAME.fullmatch(name) is not None:
        return None
    return bad_input(
        param, f"must be 1 to {MAX_CLIENT_NAME} of A-Z a-z 0-9 _ . -, got {shown(name)}", limit=MAX_CLIENT_NAME
    )


def refuse_timeouts(given: Submit) -> Fault | None:
    """The fault in a request's timeouts, or None."""
    return (
        refuse_timeout(given.timeout)
        or refuse_timeout(given.first_token_timeout, "first_token_timeout")
        or refuse_timeout(given.idle_timeout, "idle_timeout")
    )


def refuse_timeout(timeout: object, param: str = "timeout") -> Fault | None:
    """The fault in a number of seconds, or None. NaN compares false with everything, so it is asked for by name."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        return bad_input(param, f"must be a number of seconds, got {type(timeout).__name__}")
    if not 0 < timeout <= MAX_TIMEOUT:  # NaN too: it compares false with everything
        shown = repr(timeout) if isinstance(timeout, float) or abs(timeout) < 1e18 else "far more"
        return bad_input(
            param, f"must be above 0 and at most {MAX_TIMEOUT:.0f} seconds, got {shown}", limit=MAX_TIMEOUT
        )
    return None


def _unknown(what: str, name: str, known: Iterable[str], of: str = "") -> Fault:
    names = sorted(known)
    nearest = difflib.get_close_matches(name[:80], names, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(names[:20]) or 'none'}"
    return Fault(code=f"unknown_{what}", message=f"unknown {what} {name[:80]!r}{of}", param=what, hint=hint)
