"""Estimates that calls have corrected."""

from __future__ import annotations

import random

import pytest

from callpool.manager.core import reckoning
from callpool.manager.core.limits import Usage
from callpool.manager.core.reckoning import (
    ENOUGH,
    LEAST_FACTOR,
    MAX_TARGETS,
    MOST_FACTOR,
    USUAL_ANSWER,
    Reckoning,
)
from callpool.manager.core.retry import Target

T = Target("a", "m")


def called(known: Reckoning, estimate: Usage, used: Usage, target: Target = T) -> Usage:
    """One call after another: what was expected of it."""
    expected = known.expect(target, estimate)
    known.learn(target, estimate.prompt, used)
    return expected


def test_an_estimate_that_nothing_is_known_of_stays_as_it_is() -> None:
    estimate = Usage(100, 50, 20)
    assert Reckoning().expect(T, estimate) is estimate


def test_an_answer_without_a_limit_is_expected_to_be_a_usual_one_until_one_was_seen() -> None:
    known = Reckoning()
    assert known.expect(T, Usage(100)) == Usage(100, USUAL_ANSWER)
    assert known.expect(T, Usage(100), answers=False) == Usage(100, 0)
    called(known, Usage(100), Usage(100, 30))
    assert known.expect(T, Usage(100)) == Usage(100, 30)
    assert known.expect(T, Usage(100, 5)) == Usage(100, 5), "a limit is a limit"
    assert known.expect(T, Usage(100), answers=False) == Usage(100, 0)


def test_answers_that_grow_are_followed_at_once_and_shorter_ones_slowly() -> None:
    known = Reckoning()
    called(known, Usage(100), Usage(100, 100))
    called(known, Usage(100), Usage(100, 300))
    assert known.expect(T, Usage(100)).answer == 200
    called(known, Usage(100), Usage(100, 100))
    assert known.expect(T, Usage(100)).answer == 198


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.4, 3.0])
def test_the_prompts_of_a_target_are_found_and_never_far_from_enough(seed: int, ratio: float) -> None:
    known, chance = Reckoning(), random.Random(seed)
    for _ in range(400):
        estimate = Usage(chance.randint(ENOUGH, 5_000), 10)
        called(known, estimate, Usage(round(estimate.prompt * ratio * chance.uniform(0.98, 1.02)), 10))
    assert known.expect(T, Usage(1_000, 10)).prompt == pytest.approx(1_000 * ratio, rel=0.04)


def test_calls_at_once_teach_no_more_than_one_after_another() -> None:
    """All of them were reckoned with what was known when they went out."""
    known = Reckoning()
    for _ in range(50):
        known.learn(T, 1_000, Usage(1_500, 10))
    assert 1_450 <= known.expect(T, Usage(1_000, 10)).prompt <= 1_500


def test_one_odd_call_has_bounds() -> None:
    known = Reckoning()
    called(known, Usage(100, 10), Usage(1_000_000, 10))
    assert known.expect(T, Usage(100, 10)).prompt == 100 * MOST_FACTOR
    for _ in range(1_000):
        called(known, Usage(1_000, 10), Usage(1, 10))
    assert known.expect(T, Usage(100, 10)).prompt == 100 * LEAST_FACTOR


def test_short_estimates_and_prompts_that_nobody_told_teach_nothing() -> None:
    known = Reckoning()
    called(known, Usage(ENOUGH - 1, 10), Usage(4 * ENOUGH, 10))
    called(known, Usage(1_000, 10), Usage(0, 10))
    assert known.expect(T, Usage(1_000, 10)).prompt == 1_000


def test_targets_are_told_apart_and_the_one_of_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reckoning, "MAX_TARGETS", 3)
    assert MAX_TARGETS > 3
    known = Reckoning()
    for number in (0, 1, 2, 0, 3):
        called(known, Usage(1_000, 10), Usage(2_000, 10), Target("a", f"m{number}"))
    seen = [known.expect(Target("a", f"m{number}"), Usage(1_000, 10)).prompt > 1_000 for number in range(4)]
    assert seen == [True, False, True, True]


def test_estimates_are_whole_and_rounded_up() -> None:
    known = Reckoning()
    called(known, Usage(1_000, 10), Usage(1_003, 10))
    assert known.expect(T, Usage(1, 10)).prompt == 2
