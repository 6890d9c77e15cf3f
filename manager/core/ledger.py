"""The slots of each account: reserved before a call, given back after it, by the request that took them.

Only concurrency is accounted here; rates and money join it in the same shape (reserve, settle, refund).
"""

from __future__ import annotations


class Account:
    """One provider key, the thing that the provider limits."""

    __slots__ = ("closed", "holders", "limit", "name")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.holders: set[str] = set()
        """Ids of the requests that hold a slot: owners, never a bare count, so a leak has a name."""
        self.closed: str | None = None
        """Why nothing is dispatched now although there are slots (its server is starting), or None."""

    @property
    def active(self) -> int:
        """Slots in use."""
        return len(self.holders)

    @property
    def has_slot(self) -> bool:
        """Whether a call may start now."""
        return self.closed is None and len(self.holders) < self.limit

    @property
    def is_full(self) -> bool:
        """Whether every slot is in use."""
        return len(self.holders) >= self.limit


class Ledger:
    """All accounts by name. A session may name a provider that is none of them: then there is nothing to reserve."""

    def __init__(self, limits: dict[str, int]) -> None:
        self.accounts = {name: Account(name, limit) for name, limit in limits.items()}

    def has_slot(self, name: str) -> bool:
        """Whether a call on this account may start now."""
        return self.accounts[name].has_slot

    def full_account(self, name: str) -> Account | None:
        """The account, if there is one of this name and all its slots are in use."""
        account = self.accounts.get(name)
        return account if account is not None and account.is_full else None

    def reserve(self, name: str, request_id: str) -> None:
        """Take a slot, if there is such an account. The caller has checked that it has one."""
        if name in self.accounts:
            self.accounts[name].holders.add(request_id)

    def give_back(self, name: str, request_id: str) -> None:
        """Return the slot of this request; one that holds none is a defect and raises KeyError."""
        if name in self.accounts:
            self.accounts[name].holders.remove(request_id)
