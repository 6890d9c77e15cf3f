"""Verbs by the Manager's own protocol, one call at a time on a connection: the shortest way there and back.

    caller's thread ── a connection of its own ──► supervisor                              no change of threads on the way

A thread takes an idle connection, or makes one, and gives it back when the answer has come. A connection on which anything went
wrong (Ctrl-C between question and answer, a deadline) is closed: the next answer on it would be another question's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from callpool.manager import wire
from callpool.manager.channel import ANSWER_DEADLINE, SERVICE_IDENT
from callpool.manager.errors import BadInput, CallpoolError, ConnectionLost, NotSerializable
from callpool.manager.proxy import connect

if TYPE_CHECKING:
    from callpool.manager.proxy import WireConnection

LOOK_OUT = 0.000_1
"""Seconds of looking before sleeping. Waking a CPU that went to sleep costs up to 50 microseconds on a virtual machine, most answers
come within 100: tried, it halves a call's time on two CPUs, and costs nothing on one or with more callers than CPUs."""
LET_GO_DEADLINE = 5
"""Whole seconds for the last word."""
MAX_IDLE = 64
"""Idle connections that are kept; a thread that gives back one more closes it."""
_TIMEVAL = struct.Struct("@ll")


class Lockstep:
    """The connections of one client. Safe in threads; a forked child gets connections, and holds sessions, of its own."""

    def __init__(self, address: str, *, holder: str, door: str, name: str = "") -> None:
        self._address = address
        self._name = name
        self._holder = holder
        self._door = door
        self._pid = os.getpid()
        self._idle: list[WireConnection] = []
        """Taken and given back by one step each (`pop`, `append`), so it needs no lock."""
        self._closed = False

    def call(self, verb: str, **arguments: Any) -> Any:
        """Call a verb of the service. Raises its error, or ConnectionLost; what was asked may then have happened or not."""
        arguments["sent"] = time.monotonic()
        try:
            question = wire.encode_frame((SERVICE_IDENT, verb, (), arguments))
        except (TypeError, ValueError, OverflowError) as error:  # text that is no UTF-8 is a ValueError
            raise NotSerializable(f"{verb} cannot be sent: {error}") from None
        if len(question) > wire.FRAME_LIMIT:
            raise BadInput(f"{verb} has {len(question)} bytes, the limit is {wire.FRAME_LIMIT}", limit=wire.FRAME_LIMIT)
        connection = self._take()
        try:
            connection.socket.sendall(question)
            _look_out(connection.socket)
            kind, value = connection.recv()
        except ConnectionLost:
            connection.close()
            self._drop_idle()  # whatever ended this one has ended them: the next call makes a new one
            raise
        except OSError as error:
            connection.close()
            self._drop_idle()
            if error.errno == errno.EAGAIN:  # the socket's own deadline
                raise _no_answer(verb) from None
            raise ConnectionLost(f"the connection to the supervisor broke: {error}") from None
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)
        if kind == wire.KIND_RETURN:
            return value
        raise value if isinstance(value, CallpoolError) else ConnectionLost(f"{verb}: an answer of the kind {kind!r}")

    def let_go(self) -> None:
        """Have what this client holds end now, if a connection lies ready to say so; else its end follows in a second."""
        self._leave_to_parent()
        try:
            connection = self._idle.pop()
        except IndexError:
            return
        deadline = _TIMEVAL.pack(LET_GO_DEADLINE, 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.socket.setsockopt(socket.SOL_SOCKET, option, deadline)
        with contextlib.suppress(CallpoolError, OSError):  # a supervisor that is gone, or stopped, holds nothing for us
            connection.send((SERVICE_IDENT, "let_go", (), {}))
            connection.recv()
        connection.close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed by its thread. Idempotent."""
        self._leave_to_parent()
        self._closed = True
        self._drop_idle()

    def _leave_to_parent(self) -> None:
        """In a forked child: the parent's connections are the parent's. Nothing is said on them; only our ends are let go."""
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._idle = []

    def _drop_idle(self) -> None:
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:  # another thread was faster
                return

    def _take(self) -> WireConnection:
        self._leave_to_parent()
        if self._closed:
            raise ConnectionLost("the client is closed")
        try:
            return self._idle.pop()
        except IndexError:
            pass
        connection = connect(self._address, holder=self._holder, door=self._door, name=self._name)
        # The kernel's own deadline: Python's costs a further system call before each receive.
        whole, part = divmod(ANSWER_DEADLINE, 1)
        deadline = _TIMEVAL.pack(int(whole), int(part * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.socket.setsockopt(socket.SOL_SOCKET, option, deadline)
        return connection

    def _give_back(self, connection: WireConnection) -> None:
        if len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        self._idle.append(connection)
        if self._closed:  # perhaps just before we appended
            self.close()


def _look_out(connected: socket.socket) -> None:
    """Look for the answer for a moment before going to sleep for it; whoever needs this CPU gets it first."""
    deadline = time.perf_counter() + LOOK_OUT
    while time.perf_counter() < deadline:
        try:
            connected.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            os.sched_yield()
        else:
            return


def _no_answer(verb: str) -> ConnectionLost:
    return ConnectionLost(f"the supervisor did not answer {verb!r} within {ANSWER_DEADLINE:g} s: is it stopped?")
