"""Lockstep calls: an answer is its question's, whatever interrupts, and a supervisor that is gone is told once."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

import callpool
from callpool import ConnectionLost, NotRunning, NotSerializable
from callpool.manager import lockstep
from callpool.manager.lockstep import Lockstep
from tests.acceptance.running import detached, scripted


def test_each_thread_gets_the_answers_to_its_own_questions() -> None:
    with callpool.start({}) as client:
        calls = Lockstep(client.address, holder="h", door="python")

        def ask(number: int) -> bool:
            made = calls.call("create_session", request_id=f"r{number}", provider="p", model="m")
            moved = calls.call("move_session", request_id=f"r{number}", release=True)
            return bool(made[1] == moved[1] == f"r{number}")

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(400)))
        assert 1 <= len(calls._idle) <= 8
        calls.close()
        with pytest.raises(ConnectionLost, match="the client is closed"):
            calls.call("ping")


def test_ctrl_c_between_question_and_answer_costs_that_connection_alone() -> None:
    with callpool.start({}) as client:
        calls = Lockstep(client.address, holder="h", door="python")
        supervisor = psutil.Process(client.status()["pid"])
        calls.call("ping")
        old = signal.signal(signal.SIGINT, signal.default_int_handler)
        supervisor.suspend()
        try:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                calls.call("show", request_id="asked-when-nobody-answered")
        finally:
            supervisor.resume()
            signal.signal(signal.SIGINT, old)
        assert calls._idle == []
        assert calls.call("get_statistics")["active_sessions"] == 0, "and not what was asked before"
        calls.close()


def test_a_stopped_supervisor_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "ANSWER_DEADLINE", 0.2)
    with callpool.start({}) as client:
        calls = Lockstep(client.address, holder="h", door="python")
        calls.call("ping")
        supervisor = psutil.Process(client.status()["pid"])
        supervisor.suspend()
        try:
            with pytest.raises(ConnectionLost, match=r"did not answer 'ping' within 0\.2 s: is it stopped"):
                calls.call("ping")
        finally:
            supervisor.resume()
        calls.call("ping")
        calls.close()


def test_a_supervisor_that_is_gone_and_back_costs_one_error() -> None:
    config = scripted()
    with detached(config) as first:
        with first.connect() as client:
            calls = Lockstep(client.address, holder="h", door="python")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: calls.call("get_metrics"), range(40)))
    with pytest.raises((ConnectionLost, NotRunning)):
        calls.call("ping")
    with detached(config):
        calls.call("ping")
        calls.close()


def test_what_cannot_travel_is_told_before_a_connection_is_made() -> None:
    calls = Lockstep("/nowhere", holder="h", door="python")
    with pytest.raises(NotSerializable, match="create_session cannot be sent"):
        calls.call("create_session", request_id=object())
    with pytest.raises(NotSerializable, match="cannot be sent"):
        calls.call("create_session", request_id="\ud800")
    with pytest.raises(NotRunning):
        calls.call("ping")
