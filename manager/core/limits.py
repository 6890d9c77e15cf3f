"""What the ledger is told: limits, how a provider counts against them, prices, and what clients may use. Data alone.

Sources: Moonshot's page on tiers (its tokens of a minute are charged in advance, prompt and `max_tokens`, over all keys of an
organisation), Zhipu's page on rate limits (calls at once for each model of an account), both as of 2026.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

Priority = Literal["interactive", "normal", "batch"]
PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)
"""Who goes first, in this order; `scheduler` says how the later ones are kept from starving."""
MAX_CLIENT_NAME: Final = 64
MAX_AFFINITY: Final = 256
"""Characters."""
OTHERS: Final = "default"
"""The name under which the configuration speaks of all clients that it does not name."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may be used; None does not limit. Minutes and days are sliding ones: any 60 s, any 24 hours."""

    concurrency: int | None = None
    """Calls at once."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    money_per_day: float | None = None
    """In the currency of the prices."""


class Price(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Money for a million tokens, in any one currency."""

    input: float = 0.0
    output: float = 0.0
    cached_input: float | None = None
    """Of prompt tokens that the provider had cached; None: as any other."""


class Counting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a provider counts."""

    charge: Literal["advance", "actual"] = "actual"
    """What a call takes of a minute's tokens: prompt and limit of the answer, whatever comes; or what was used in the end."""
    concurrency_of: Literal["account", "model"] = "account"
    """Whose calls at once a refusal by concurrency speaks of."""
    cancel_lag: float = 0.0
    """Seconds for which the slot of a call that we ended counts on: the provider notices later than we do."""


class AccountRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One account: one key."""

    limits: Limits = Limits()
    """`concurrency` is always there."""
    models: dict[str, Limits] = {}
    """Of single models, besides the account's own."""
    each_model: int | None = None
    """Calls at once of each model that `models` gives none of its own."""
    prices: dict[str, Price] = {}
    """By model."""
    counting: Counting = Counting()
    organization: str | None = None
    """Accounts with the same one share its limits."""


class ClientRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a client may use, whichever accounts it uses."""

    weight: float = 1.0
    """Its share, beside the others' of its class."""
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    money_per_day: float | None = None


class LedgerRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All of it."""

    accounts: dict[str, AccountRules] = {}
    organizations: dict[str, Limits] = {}
    clients: dict[str, ClientRules] = {}
    """By name; `OTHERS` is for each of those without an entry."""
    requests_per_minute: int | None = None
    """Of the whole supervisor."""


class Usage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tokens, estimated before a call or told by the provider after it."""

    prompt: int = 0
    answer: int = 0
    """Before the call: the most that may come; 0 where nothing limits it."""
    cached: int = 0
    """Of the prompt's, those that the provider had cached."""
