"""Every fault by name, and how a request asks for one.

A model name `fault-NAME` has the fault at every call, `fault-NAME-3` at the first three calls of that model name;
after them it answers as it should (a storm that passes). Other models have the fault that the body's `fake.fault`
names, if any.
"""

from __future__ import annotations

import difflib
import re

import msgspec

from callpool.tools.testing.fake_faults_answers import ANSWER_FAULTS, Produce
from callpool.tools.testing.fake_faults_wire import WIRE_FAULTS


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


class FaultPlan:
    """Which call has which fault; remembers how often each model name was asked for. Owner: one fake's event loop."""

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}

    def next(self, model: str, by_body: str | None) -> Fault | None:
        """The fault of the next call of `model`, or None. Counts the call. An unknown name is UnknownFault."""
        if not model.startswith("fault-"):
            return find_fault(by_body) if by_body is not None else None
        match = _MODEL.fullmatch(model)
        fault = find_fault(match["name"] if match else model.removeprefix("fault-"))
        if match is None or match["first"] is None:
            return fault
        seen = self._calls[model] = self._calls.get(model, 0) + 1
        return fault if seen <= int(match["first"]) else None


def find_fault(name: str) -> Fault:
    """The fault of this name; UnknownFault names the nearest one."""
    if name in FAULTS:
        return FAULTS[name]
    [nearest] = difflib.get_close_matches(name, FAULTS, n=1, cutoff=0.0)
    raise UnknownFault(f"no fault is called {name[:80]!r}; the nearest is {nearest!r}")
