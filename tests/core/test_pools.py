"""Adding up what the connections of several workers have come to."""

from __future__ import annotations

from callpool.manager.core.pools import PoolCounts, total


def test_everything_is_added_and_of_the_longest_times_the_longest_stays() -> None:
    numbers = {name: place for place, name in enumerate(PoolCounts.__struct_fields__, 1)}
    one, other = PoolCounts(**numbers), PoolCounts(**{name: 10 * number for name, number in numbers.items()})
    added = total([one, other]).as_plain()
    assert added.pop("connect_seconds_mean") == added["connect_seconds"] / added["opened"]
    assert added.pop("connect_seconds_max") == 10 * numbers["connect_seconds_max"]
    assert added == {name: 11 * number for name, number in numbers.items() if name in added}


def test_of_what_has_ended_only_the_counts_stay() -> None:
    counts = PoolCounts(requests=3, reused=2, open=2, idle=1, waiting=4)
    assert counts.ended() == PoolCounts(requests=3, reused=2)


def test_without_anything_everything_is_nothing() -> None:
    assert total([]) == PoolCounts()
    assert PoolCounts().as_plain()["connect_seconds_mean"] == 0.0
