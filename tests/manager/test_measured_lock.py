"""The measured lock: counts that are exact whatever the threads do, and a lock that is free again after every error."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from callpool.manager.measured_lock import MeasuredLock

THREADS = 4
ENTRIES = 2_000
"""Of each thread."""
PATIENCE = 5.0


def measured() -> tuple[MeasuredLock, list[float], list[float]]:
    waits: list[float] = []
    holds: list[float] = []
    return MeasuredLock(waits.append, holds.append), waits, holds


def test_one_thread_never_contends() -> None:
    lock, waits, holds = measured()
    assert not lock.locked()
    with lock:
        assert lock.locked()
        assert (waits, holds) == ([0.0], [])
    assert not lock.locked()
    assert (lock.acquisitions, lock.contended) == (1, 0)
    assert len(holds) == 1
    assert holds[0] >= 0


def test_counts_are_exact_with_many_threads() -> None:
    lock, waits, holds = measured()
    together = threading.Barrier(THREADS)
    inside = 0

    def enter_often() -> None:
        nonlocal inside
        together.wait(PATIENCE)
        for _ in range(ENTRIES):
            with lock:
                assert lock.locked()
                inside = inside + 1

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(enter_often) for _ in range(THREADS)]:
            future.result(PATIENCE)
    assert inside == lock.acquisitions == len(waits) == len(holds) == THREADS * ENTRIES
    assert lock.contended == sum(wait > 0 for wait in waits)
    assert min(waits) >= 0
    assert min(holds) >= 0
    assert not lock.locked()


def test_a_thread_that_finds_it_held_is_counted_and_waits() -> None:
    lock, waits, holds = measured()
    refused = threading.Event()
    acquire = lock._acquire

    def watched(*arguments: bool) -> bool:
        taken = acquire(*arguments)
        if not taken:
            refused.set()
        return taken

    lock._acquire = watched  # type: ignore[assignment]
    order = []

    def second() -> None:
        with lock:
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with lock:
            future = pool.submit(second)
            assert refused.wait(PATIENCE), "the second thread did not try"
            assert not future.done()
            order.append("first")
        future.result(PATIENCE)
    assert order == ["first", "second"]
    assert (lock.acquisitions, lock.contended) == (2, 1)
    assert waits[0] == 0.0
    assert waits[1] > 0
    assert len(holds) == 2


def test_an_error_inside_passes_and_frees_the_lock() -> None:
    lock, _, holds = measured()
    with pytest.raises(KeyError, match="inside"), lock:
        raise KeyError("inside")
    assert not lock.locked()
    assert len(holds) == 1


@pytest.mark.parametrize("broken", ["wait", "hold"])
def test_an_error_of_a_record_frees_the_lock(broken: str) -> None:
    def fail(seconds: float) -> None:
        raise ValueError("full")

    def keep(seconds: float) -> None:
        pass

    lock = MeasuredLock(fail if broken == "wait" else keep, fail if broken == "hold" else keep)
    with pytest.raises(ValueError, match="full"), lock:
        pass
    assert not lock.locked()
    assert lock.acquisitions == 1
