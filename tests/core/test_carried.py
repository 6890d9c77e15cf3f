"""What of a record counts in a later run, whatever its clocks say; and what is kept for scopes that have not appeared."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core import carried
from callpool.manager.core.carried import MINUTE_GRAIN, Aside, Carried, still_counts
from callpool.manager.core.carryover import Carryover
from callpool.manager.core.limits import Limits
from callpool.manager.core.requests import Now
from callpool.manager.core.scopes import Scope
from callpool.manager.core.windows import DAY, DAY_GRAIN, MINUTE

from .build import STEADY

LAG = 0.5
WALL = 1e9


def a_record(**changes: Any) -> Carried:
    """Written at 1000 on boot `b`: 3 until 1010, 4 until 1050, and 5 more."""
    record = Carried(
        1, "account", "a", "requests_per_minute", 5, ((1010.0, 3), (1050.0, 4)), 1000.0, "b", WALL
    )  # as it was vouched for
    return msgspec.structs.replace(record, **changes)


def left(record: Carried, now: Now, *, boot: str = "b", trusts_wall: bool = False) -> list[tuple[float, int]]:
    found = still_counts(record, now, boot=boot, trusts_wall=trusts_wall, lag=LAG)
    assert found is not None
    return found


@pytest.mark.parametrize("jump", [0.0, DAY, -DAY, -1e9])
class TestClocks:
    def test_on_the_same_boot_the_wall_clock_may_jump(self, jump: float) -> None:
        for trusts_wall in (False, True):
            found = left(a_record(), Now(1020.0, WALL + 20.0 + jump), trusts_wall=trusts_wall)
            assert found == [(1050.0, 4), (1020.0 + MINUTE + LAG, 5)]

    @pytest.mark.parametrize("boot", ["other", ""])
    def test_after_a_boot_no_time_has_passed_where_nobody_vouches_for_the_clock(self, jump: float, boot: str) -> None:
        found = left(a_record(), Now(7.0, WALL + 20.0 + jump), boot=boot)
        assert found == [(17.0, 3), (57.0, 4), (7.0 + MINUTE + LAG, 5)]
        assert left(a_record(wall=None), Now(7.0, WALL + 20.0 + jump), boot=boot, trusts_wall=True) == found

    def test_a_boot_that_nobody_knew_is_no_boot(self, jump: float) -> None:
        found = left(a_record(boot=""), Now(1020.0, WALL + jump), boot="")
        assert found == [(1030.0, 3), (1070.0, 4), (1020.0 + MINUTE + LAG, 5)]

    def test_a_clock_that_goes_back_on_the_same_boot_is_no_clock(self, jump: float) -> None:
        assert left(a_record(), Now(10.0, WALL + jump)) == [(20.0, 3), (60.0, 4), (10.0 + MINUTE + LAG, 5)]


def test_after_a_boot_a_clock_that_somebody_vouches_for_tells_for_how_long_the_machine_was_off() -> None:
    record = a_record(measure="tokens_per_day", settled=((1000.0 + 3_000.0, 3), (1000.0 + 40_000.0, 4)))
    found = left(record, Now(7.0, WALL + 10_000.0), boot="other", trusts_wall=True)
    assert found == [(30_007.0, 4), (7.0 + DAY + LAG, 5)]
    back = left(record, Now(7.0, WALL - 10_000.0), boot="other", trusts_wall=True)
    assert back == [(3_007.0, 3), (40_007.0, 4), (7.0 + DAY + LAG, 5)]


@pytest.mark.parametrize(
    ("measure", "longest"),
    [("requests_per_minute", MINUTE + MINUTE_GRAIN + LAG), ("money_per_day", DAY + DAY_GRAIN + LAG)],
)
def test_nothing_counts_for_longer_than_a_window(measure: str, longest: float) -> None:
    record = a_record(measure=measure, settled=((1e12, 3), (math.inf, 4)))
    assert max(expires for expires, _ in left(record, Now(1000.0, WALL))) == 1000.0 + longest


def test_what_makes_no_sense_counts_as_little_as_it_can_and_raises_nothing() -> None:
    record = a_record(rest=-4, settled=((math.nan, 3), (1010.0, -5), (1010.0, 0), (-math.inf, 2)))
    assert left(record, Now(1000.0, WALL)) == []
    assert still_counts(a_record(measure="moons"), Now(1.0, 1.0), boot="b", trusts_wall=False, lag=LAG) is None


@STEADY
@given(
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(-2e5, 2e5),
    st.sampled_from(["b", "other", ""]),
    st.lists(st.tuples(st.floats(0.001, MINUTE + MINUTE_GRAIN), st.integers(1, 9)), max_size=5),
)
def test_nothing_ever_expires_too_early(
    passed: float, since_boot: float, jump: float, boot: str, settled: list[tuple[float, int]]
) -> None:
    """`passed` seconds since the writing: whatever is left by then is kept for that long at least."""
    record = a_record(settled=tuple(sorted((1000.0 + seconds, amount) for seconds, amount in settled)))
    time = 1000.0 + passed if boot == "b" else since_boot
    found = left(record, Now(time, WALL + passed + jump), boot=boot)
    for after in (0.0, 1.0, 20.0, 59.0):
        due = sum(amount for expires, amount in record.settled if expires > 1000.0 + passed + after)
        assert sum(amount for expires, amount in found if expires > time + after - 1e-6) >= due + record.rest


def test_a_record_survives_its_writing() -> None:
    record = a_record(rest=10**18, settled=((1010.25, 2**62),))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=Carried) == record


class TestAside:
    def test_what_is_restored_waits_for_its_scope(self) -> None:
        carryover = Carryover(boot="b", lag=LAG)
        written = carryover.restore([a_record(kind="client", name="x")], Now(1020.0, WALL))
        assert [(each.rest, each.settled) for each in written] == [(0, ((1050.0, 4), (1080.5, 5)))]
        for name, expected in (("y", 0), ("x", 9), ("x", 0)):
            scope = Scope("client", name, Limits(requests_per_minute=20))
            carryover.watch(scope)
            assert scope.minutes[0].window.used == expected
            assert scope.is_idle(1060.0) is (expected == 0), "so nobody forgets it"
            assert scope.is_idle(1081.0)

    def test_of_two_records_of_a_window_the_last_counts(self) -> None:
        carryover = Carryover(boot="b")
        written = carryover.restore([a_record(), a_record(rest=1, settled=())], Now(1020.0, WALL))
        assert [each.settled for each in written] == [((1080.0, 1),)]

    def test_what_has_passed_is_taken_off_the_disk(self) -> None:
        carryover = Carryover(boot="b")
        (gone,) = carryover.restore([a_record(rest=0)], Now(1060.0, WALL))
        assert gone.is_empty
        (kept,) = carryover.restore([a_record()], Now(1060.0, WALL))
        assert not kept.is_empty
        assert carryover.lower(Now(1119.0, WALL)) == []
        (gone,) = carryover.lower(Now(1120.0, WALL))
        assert gone.is_empty
        assert gone.key == kept.key

    def test_what_this_version_does_not_know_is_left_alone(self) -> None:
        assert Carryover(boot="b").restore([a_record(measure="requests_per_moon")], Now(1.0, 1.0)) == []

    def test_there_is_a_bound_and_what_ends_first_is_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(carried, "MAX_ASIDE", 2)
        aside = Aside()
        ends = {("client", str(end), "requests_per_minute"): [(float(end), 1), (40.0 - end, 1)] for end in (30, 25, 35)}
        assert aside.put(ends) == [("client", "25", "requests_per_minute")]
        assert len(aside) == 2
        assert aside.fades_at() == 30.0
        assert list(aside.fade(29.0)) == []
        assert list(aside.fade(31.0)) == [("client", "30", "requests_per_minute")]
        assert aside.take(("client", "35", "requests_per_minute")) == [(35.0, 1), (5.0, 1)]
        assert list(aside.fade(99.0)) == []
