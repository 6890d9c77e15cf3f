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
from callpool.manager.channel import POST_BATCH, Channel
from callpool.manager.core.messages import Ask, Cancel, ClientEvent, Reply
from callpool.manager.errors import ConnectionLost
from callpool.manager.proxy import WireConnection
from callpool.manager.reading import Sleeper

HANG = 20.0


class Caller:
    """A client reduced to questions: numbers with a bed each."""

    def __init__(self, connected: socket.socket) -> None:
        self.lock = threading.Lock()
        self.answers: dict[int, Any] = {}
        self.beds: dict[int, Sleeper] = {}
        self.lost: list[ConnectionLost] = []
        self.on_event: Callable[[ClientEvent], None] = lambda _event: None
        connection = WireConnection(connected, "test", [])
        self.channel = Channel(connection, self.lock, on_events=self._on_events, on_lost=self._on_lost)
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
        ready = lambda: number in self.answers or bool(self.lost)  # noqa: E731 - as the client has it
        self.channel.wait(ready, bed, time.monotonic() + timeout)
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
    """Leaders change all the time: whoever has its answer leaves, and somebody who sleeps must take over."""
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


def test_what_nobody_waits_for_is_read_all_the_same(pair: tuple[Caller, Server]) -> None:
    caller, _server = pair
    assert caller.ask(0) is not None  # a caller has read: the background thread must come back
    came = threading.Event()
    caller.on_event = lambda event: came.set() if isinstance(event, Reply) and event.number == 1 else None
    caller.channel.send(Ask(1, "ping"))
    assert came.wait(HANG)


def test_a_wait_ends_at_its_deadline_whoever_reads(pair: tuple[Caller, Server]) -> None:
    caller, _server = pair
    for _ in range(3):  # first the background thread reads, then this one
        assert not caller.channel.wait(lambda: False, Sleeper(), time.monotonic() + 0.05)
    assert caller.ask(1) == "answer 1"


@pytest.mark.parametrize("who", ["server", "caller"])
def test_the_end_is_told_once_and_to_everybody_who_waits(pair: tuple[Caller, Server], who: str) -> None:
    caller, server = pair
    beds = [Sleeper() for _ in range(5)]
    with caller.lock:
        caller.beds.update({-index: bed for index, bed in enumerate(beds, start=1)})
    waiting = [
        threading.Thread(target=caller.channel.wait, args=(lambda: bool(caller.lost), bed, None)) for bed in beds
    ]
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
    with pytest.raises(ConnectionLost):
        caller.channel.post(Cancel("r1"))


def test_an_interrupt_while_waiting_costs_nothing(pair: tuple[Caller, Server]) -> None:
    """Ctrl-C in the main thread, while it reads for everybody: the wait ends, the channel lives on."""
    caller, _server = pair
    assert caller.ask(0) == "answer 0"  # from now on this thread reads for itself
    for attempt in range(3):
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            caller.channel.wait(lambda: False, Sleeper(), time.monotonic() + HANG)
        timer.join()
        assert caller.ask(10 + attempt) == f"answer {10 + attempt}"


def test_an_interrupt_in_the_middle_of_an_answer_ends_the_channel_instead_of_losing_it(
    pair: tuple[Caller, Server],
) -> None:
    caller, _server = pair

    def interrupt(_event: ClientEvent) -> None:
        raise KeyboardInterrupt

    assert caller.ask(0) == "answer 0"
    caller.on_event = interrupt
    bed = caller.beds[1] = Sleeper()
    caller.channel.send(Ask(1, "ping"))
    with pytest.raises(KeyboardInterrupt):
        caller.channel.wait(lambda: bool(caller.lost), bed, time.monotonic() + HANG)
    assert len(caller.lost) == 1


def test_posted_messages_travel_together_and_in_order(pair: tuple[Caller, Server]) -> None:
    caller, server = pair
    count = POST_BATCH * 5
    for number in range(count):
        caller.channel.post(Cancel(f"r{number}"))
    assert caller.ask(1) == "answer 1"
    sent = [message.request_id for messages in server.frames for message in messages if isinstance(message, Cancel)]
    assert sent == [f"r{number}" for number in range(count)]
    assert len(server.frames) < count / 2


def test_a_posted_message_leaves_although_nobody_waits(pair: tuple[Caller, Server]) -> None:
    caller, server = pair
    caller.channel.post(Cancel("r1"))
    deadline = time.monotonic() + HANG
    while not server.frames and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [message.request_id for message in server.frames[0]] == ["r1"]
