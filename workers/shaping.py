"""From what a client asked to what a provider is sent: the client's own check, made again where it counts."""

from __future__ import annotations

import msgspec

from callpool.manager.core.faults import Fault
from callpool.manager.core.options import check_options
from callpool.manager.core.parameter_rules import Rules
from callpool.manager.core.parameters import shape
from callpool.manager.errors import from_fault
from callpool.workers.providers.base import Call


def shape_call(rules: Rules, call: Call) -> tuple[Call, list[str]]:
    """The call with messages and parameters that may be sent as they are, and the names of what was left out.

    Raises `BadInput` for what the rules refuse: a client of another kind may not have checked.
    """
    if (fault := check_options(call.options)) is not None:
        raise from_fault(fault)
    shaped = shape(rules, call.model, call.messages, call.parameters, call.options, stream=call.stream)
    if isinstance(shaped, Fault):
        raise from_fault(shaped)
    return msgspec.structs.replace(call, messages=shaped.messages, parameters=shaped.parameters), shaped.dropped
