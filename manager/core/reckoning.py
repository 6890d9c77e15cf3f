"""How many tokens a call will take: the estimate that comes with it, made better by what calls there have really taken.

Of each target two figures are kept: by how much prompts were longer than estimated, and how long answers were. Both rise at once and
fall slowly: a reservation that is too small breaks a limit, one that is too large only waits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from callpool.manager.core.limits import Usage

if TYPE_CHECKING:
    from callpool.manager.core.retry import Target

USUAL_ANSWER: Final = 1_024
"""Tokens that an answer without a limit is expected to have, until one has been seen."""
RISE, FALL = 0.5, 0.02
"""How much of the difference one call makes up for."""
LEAST_FACTOR, MOST_FACTOR = 0.5, 4.0
"""Bounds of what an estimate is multiplied by: one odd answer must not stop an account."""
ENOUGH: Final = 50
"""Tokens of an estimate below which it teaches nothing: a constant of the template outweighs the text."""
MAX_TARGETS: Final = 1_000


class _Known:
    __slots__ = ("answer", "factor")

    def __init__(self) -> None:
        self.factor = 1.0
        self.answer: float | None = None


class Reckoning:
    """What is known of each target; the one that was learned of longest ago is forgotten first."""

    def __init__(self) -> None:
        self._known: dict[Target, _Known] = {}

    def expect(self, target: Target, usage: Usage, *, answers: bool = True) -> Usage:
        """A better estimate. `answers`: whether any text will come at all."""
        known = self._known.get(target)
        factor, answer = (1.0, None) if known is None else (known.factor, known.answer)
        expected = usage.answer
        if not expected and answers:
            expected = math.ceil(USUAL_ANSWER if answer is None else answer)
        if factor == 1.0 and expected == usage.answer:
            return usage
        return Usage(math.ceil(usage.prompt * factor), expected)

    def learn(self, target: Target, estimate: int, used: Usage) -> None:
        """A call has taken so much. `estimate`: tokens of its prompt as they came with it, not as `expect` had made them better."""
        known = self._known.pop(target, None) or _Known()
        self._known[target] = known
        if len(self._known) > MAX_TARGETS:
            del self._known[next(iter(self._known))]
        if estimate >= ENOUGH and used.prompt:
            known.factor = min(MOST_FACTOR, max(LEAST_FACTOR, _towards(known.factor, used.prompt / estimate)))
        known.answer = used.answer if known.answer is None else _towards(known.answer, used.answer)


def _towards(old: float, new: float) -> float:
    return old + (new - old) * (RISE if new > old else FALL)
