"""Every fault by name, and how a request asks for one.

A model name `fault-NAME` has the fault at every call, `fault-NAME-3` at the first three calls of that model name;
after them it answers as it should (a storm that passes). Other models have the fault that the options name, if any:
those of the body's `fake` object, else the fake's own. With `fault_times` only the first calls with the same user's
text have it: each call of a program that tries again meets a storm of its own.
"""

from __future__ import annotations

import difflib
import hashlib
import re

import msgspec

from callpool.tools.testing.fake_faults_answers import ANSWER_FAULTS, Produce
from callpool.tools.testing.fake_faults_wire import WIRE_FAULTS
from callpool.tools.testing.fake_requests import Options


class Fault(msgspec.Struct, frozen=True):
    """One thing that can go wrong at a provider."""

    name: str
    doc: str
    """One line: what is on the wire."""
    produce: Produce


FAULTS: dict[str, Fault] = {
    name: Fault(name, doc, produce) for name, (doc, produce) in (WIRE_FAULTS | ANSWER_FAULTS).items()
}

_MODEL = re.compile(r"fault-(?P<name>[^-]*)(?:-(?P<first>[0-9]{1,6}))?")


class UnknownFault(ValueError):
    """No fault has this name; the message names the nearest one."""


TEXTS_KEPT = 100_000
"""Texts and model names whose calls are counted; beyond that the one that came first is forgotten."""


class FaultPlan:
    """Which call has which fault; remembers how often each was asked for. Owner: one fake's event loop."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, bytes], int] = {}

    def next(self, model: str, options: Options, text: str) -> Fault | None:
        """The fault of the next call of `model` with this user's text, or None. Counts the call.

        An unknown name is UnknownFault.
        """
        match = _MODEL.fullmatch(model)
        if match is not None:
            fault = find_fault(match["name"])
        elif model.startswith("fault-"):
            fault = find_fault(model.removeprefix("fault-"))
        elif options.fault is not None:
            fault = find_fault(options.fault)
        else:
            return None
        if match is not None and match["first"] is not None:
            return fault if self._count(model, "") <= int(match["first"]) else None
        if options.fault_times is not None:
            return fault if self._count(fault.name, text) <= options.fault_times else None
        return fault

    def _count(self, name: str, text: str) -> int:
        key = (name, hashlib.sha256(text.encode()).digest()[:16])
        count = self._calls[key] = self._calls.get(key, 0) + 1
        if len(self._calls) > TEXTS_KEPT:
            del self._calls[next(iter(self._calls))]
        return count


def find_fault(name: str) -> Fault:
    """The fault of this name; UnknownFault names the nearest one."""
    if name in FAULTS:
        return FAULTS[name]
    [nearest] = difflib.get_close_matches(name, FAULTS, n=1, cutoff=0.0)
    raise UnknownFault(f"no fault is called {name[:80]!r}; the nearest is {nearest!r}")
