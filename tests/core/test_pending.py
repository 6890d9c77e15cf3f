"""What waits for the disk: behind which record, for which worker, and who is told when it comes to nothing."""

from __future__ import annotations

import pytest

from callpool.manager.core.carried import Carried
from callpool.manager.core.events import ToClient, ToWorker
from callpool.manager.core.messages import Accepted, CancelCall, Dispatch, Done, Submit
from callpool.manager.core.pending import Pending
from callpool.manager.core.records import AttemptStarted, JobAccepted


def accepted(request_id: str) -> JobAccepted:
    return JobAccepted(request_id, "c", Submit(request_id, "a", "m", b"{}"), b"print", "session", 0.0)


def order(request_id: str, *, worker: int = 1, after: int = 0) -> ToWorker:
    return ToWorker(worker, Dispatch(request_id, 1, "a", "m", 1.0, stream=False, payload=b"{}"), after)


def window(number: int) -> Carried:
    return Carried(number, "account", "a", "requests_per_minute", 1, (), 0.0, "boot", None)


def told(client: str, request_id: str) -> ToClient:
    return ToClient(client, Accepted(request_id, 0))


def test_a_live_call_waits_for_its_window_and_its_cancel_behind_it() -> None:
    pending = Pending()
    pending.record(window(1))
    cancel = ToWorker(1, CancelCall("live", 1))
    assert pending.defer(order("live", after=1))
    assert pending.defer(cancel)
    batch = pending.fly()
    assert batch is not None
    assert pending.committed(batch) == [order("live", after=1), cancel]
    assert not pending.defer(cancel), "nothing is waited for any more"


def test_a_live_call_that_ends_before_it_was_sent_is_not_sent() -> None:
    pending = Pending()
    pending.record(window(1))
    done = ToClient("c", Done("live", "cancelled", None, 0.0))
    assert pending.defer(order("live", after=1))
    assert pending.defer(done)
    batch = pending.fly()
    assert batch is not None
    assert pending.committed(batch) == [done]


def test_a_window_that_is_durable_already_is_not_waited_for() -> None:
    pending = Pending()
    pending.record(window(1))
    batch = pending.fly()
    assert batch is not None
    pending.committed(batch)
    pending.record(window(2))
    assert not pending.defer(order("live", after=1))


def test_a_disk_that_takes_its_time_holds_live_calls_no_longer_and_jobs_still() -> None:
    pending = Pending()
    pending.record(window(1))
    pending.record(accepted("job"))
    pending.record(AttemptStarted("job", 0, 1, 1, 0.0))
    assert pending.defer(order("job", after=1))
    assert pending.defer(order("live", after=1))
    assert pending.let_go() == [order("live", after=1)]
    assert pending.defer(told("c", "job"))
    assert not pending.defer(told("c", "live"))


def test_what_a_dead_worker_was_to_be_sent_is_withdrawn_and_named() -> None:
    pending = Pending()
    for request_id, worker in (("a", 1), ("b", 2)):
        pending.record(accepted(request_id))
        assert pending.defer(order(request_id, worker=worker))
    assert (pending.holds_for(1), pending.holds_for(2), pending.holds_for(3)) == (True, True, False)
    assert pending.worker_down(1) == ["a"]
    assert (pending.holds_for(1), pending.holds_for(2)) == (False, True)
    batch = pending.fly()
    assert batch is not None
    assert pending.committed(batch) == [order("b", worker=2)]


def test_who_was_to_be_told_of_what_came_to_nothing_is_named_once() -> None:
    pending = Pending()
    pending.record(accepted("a"))
    for client in ("c", "d", "c"):
        assert pending.defer(told(client, "a"))
    batch = pending.fly()
    assert batch is not None
    undone = pending.failed(batch)
    assert (undone.refused, undone.bereft, undone.at_once) == (["a"], {"a": ["c", "d"]}, [])
    assert not pending.open.records


def test_who_met_a_known_job_is_named() -> None:
    pending = Pending()
    pending.record(accepted("a"))
    assert pending.defer(ToClient("c", Done("a", "cancelled", None, 0.0)))
    batch = pending.fly()
    assert batch is not None
    assert pending.committed(batch, {"a"}) == []
    assert pending.bereft == {"a": ["c"]}


def test_an_id_is_not_accepted_again_before_its_last_record_is_durable() -> None:
    pending = Pending()
    pending.record(accepted("a"))
    with pytest.raises(RuntimeError, match="accepted again"):
        pending.record(accepted("a"))
