"""A client's channel under many threads: no wake-up is lost, whoever reads, and every end is told to everybody."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from callpool.manager import wire
from callpool.manager.channel import MAX_MESSAGE, Channel, Sleeper
from callpool.manager.core.messages import Ask, Cancel, ClientEvent, Reply
from callpool.manager.errors import BadInput, ConnectionLost, NotSerializable
from callpool.manager.proxy import WireConnection

HANG = 20.0


class Caller:
    """A client reduced to questions: numbers with a bed each."""

    def __init__(self, connected: socket.socket) -> None:
        self.lock = threading.Lock()
        self.answers: dict[int, Any] = {}
        self.beds: dict[int, Sleeper] = {}
        self.lost: list[ConnectionLost] = []
        self.on_event: Callable[[ClientEvent], None] = lambda _event: None
        connection = WireConnection(connected)
        self.channel = Channel(connection, on_events=self._on_events, on_lost=self._on_lost)
        self.channel.start()

    def _on_events(self, events: list[ClientEvent]) -> None:
        with self.lock:
            for event in events:
                assert isinstance(event, Reply)
                self.on_event(event)
                self.answers[event.number] = event.value
                if event.number in self.beds:
                    self.beds[event.number].wake()

    def _on_lost(self, error: ConnectionLost) -> None:
        with self.lock:
            self.lost.append(error)
            for bed in self.beds.values():
                bed.wake()

    def ask(self, number: int, timeout: float = HANG) -> Any:
        """The answer; None if the channel is lost, or it does not come in time."""
        bed = self.beds[number] = Sleeper()
        self.channel.send(Ask(number, "ping"))
        bed.sleep(timeout)
        return self.answers.get(number)


class Server:
    """The other end, in a thread: answers questions after `delay()` seconds, each in an order of its own."""

    def __init__(self, connected: socket.socket, delay: Callable[[], float]) -> None:
        self.frames: list[list[Any]] = []
        self._socket = connected
        self._delay = delay
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        framer = wire.Framer()
        while data := self._receive():
            for body in framer.feed(data):
                messages = wire.client_messages.decode(body)
                self.frames.append(messages)
                for message in messages:
                    if isinstance(message, Ask):
                        time.sleep(self._delay())
                        self._socket.sendall(wire.encode_frame([Reply(message.number, f"answer {message.number}")]))

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except OSError:
            return b""

    def end(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        self._thread.join(HANG)


@pytest.fixture
def pair(seed: int) -> Iterator[tuple[Caller, Server]]:
    chance = random.Random(seed)
    ours, theirs = socket.socketpair()
    server = Server(theirs, lambda: chance.choice([0.0, 0.0, 0.0, 0.001]))
    caller = Caller(ours)
    yield caller, server
    caller.channel.close()
    server.close()


def test_a_lone_caller_gets_every_answer(pair: tuple[Caller, Server]) -> None:
    caller, _server = pair
    for number in range(300):
        assert caller.ask(number) == f"answer {number}"


def test_many_threads_get_their_own_answers(pair: tuple[Caller, Server]) -> None:
    caller, _server = pair
    wrong: list[Any] = []

    def work(first: int) -> None:
        for number in range(first, first + 100):
            answer = caller.ask(number)
            if answer != f"answer {number}":
                wrong.append((number, answer))

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert not any(thread.is_alive() for thread in threads), "somebody sleeps for ever"
    assert wrong == []


@pytest.mark.parametrize("who", ["server", "caller"])
def test_the_end_is_told_once_and_to_everybody_who_waits(pair: tuple[Caller, Server], who: str) -> None:
    caller, server = pair
    beds = [Sleeper() for _ in range(5)]
    with caller.lock:
        caller.beds.update({-index: bed for index, bed in enumerate(beds, start=1)})
    waiting = [threading.Thread(target=bed.sleep) for bed in beds]
    for thread in waiting:
        thread.start()
    if who == "server":
        server.end()
    else:
        caller.channel.close()
    for thread in waiting:
        thread.join(HANG)
    assert not any(thread.is_alive() for thread in waiting)
    assert len(caller.lost) == 1
    with pytest.raises(ConnectionLost):
        caller.channel.send(Cancel("r1"))


def test_interrupts_at_any_line_neither_hang_nor_break_the_channel(pair: tuple[Caller, Server], seed: int) -> None:
    """Ctrl-C again and again while the main thread sends and waits: each wait ends by its answer or by the interrupt."""
    caller, _server = pair
    chance = random.Random(seed)
    number = interrupted = 0
    for _ in range(60):
        timer = threading.Timer(chance.random() * 0.004, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()  # within: the interrupt may come before this returns
            while True:  # the interrupt may come late; the bound is the test's own timeout
                number += 1
                assert caller.ask(number) == f"answer {number}"
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
    assert interrupted == 60
    for _ in range(100):
        number += 1
        assert caller.ask(number) == f"answer {number}"


@pytest.mark.parametrize(
    "wrong", [Cancel("\udcff"), Ask(1, "ping", {"x": object()}), Ask(1, "drain", {"timeout": 10**30})]
)
def test_what_cannot_be_sent_is_the_senders_trouble_alone(pair: tuple[Caller, Server], wrong: Any) -> None:
    caller, _server = pair
    with pytest.raises(NotSerializable):
        caller.channel.send(wrong)
    with pytest.raises(BadInput, match="limit"):
        caller.channel.send(Cancel("x" * (MAX_MESSAGE + 1)))
    assert caller.ask(1) == "answer 1"


def test_messages_of_a_burst_travel_together_and_in_order(pair: tuple[Caller, Server]) -> None:
    caller, server = pair
    count = 500
    for number in range(count):
        caller.channel.send(Cancel(f"r{number}"))
    assert caller.ask(1) == "answer 1"
    sent = [message.request_id for messages in server.frames for message in messages if isinstance(message, Cancel)]
    assert sent == [f"r{number}" for number in range(count)]
