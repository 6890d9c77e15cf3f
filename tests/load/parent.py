"""Client processes for load: one process imports callpool, forks clients before it has any thread, and passes orders on.

    test ── a line ──► parent ── a line ──► client 0, 1, …      each client has its own connections and threads
         ◄─ a line ───        ◄─ a line ───                     JSON; an answer to a line comes when all have answered

A client does what it is told, and ends when nobody can tell it anything any more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import traceback
from typing import IO, Any, NoReturn

from tests.load.programs import BARE_KEY, BareManager, Client


def run_client(connected: socket.socket) -> NoReturn:
    """Do what the lines say, until there are none."""
    with connected.makefile("r") as orders, connected.makefile("w") as answers:
        client = Client(orders)
        for line in orders:
            verb, arguments = json.loads(line)
            try:
                answer = {"value": client.verbs[verb](**arguments)}
            except BaseException:  # noqa: BLE001 - the test raises it
                answer = {"error": f"client {os.getpid()}: {traceback.format_exc()}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        os._exit(0)  # as a program that crashes: nothing is closed or released, and threads do not keep it


def run_parent(count: int) -> None:
    """Fork clients, pass on orders, gather answers; end all at the end of the input."""
    clients: list[tuple[int, socket.socket]] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for _other, connected in [*clients, (0, ours)]:
                connected.close()
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 0)
            os.dup2(nowhere, 1)
            run_client(theirs)
        theirs.close()
        clients.append((pid, ours))
    answers = [connected.makefile("r") for _, connected in clients]
    print(json.dumps([pid for pid, _ in clients]), flush=True)
    for line in sys.stdin:
        orders = json.loads(line)
        for number, order in orders:
            try:
                clients[number][1].sendall((json.dumps(order) + "\n").encode())
            except OSError:  # it was killed: its answer says so
                continue
        print(json.dumps([_receive(answers[number]) for number, _ in orders]), flush=True)
    for _, connected in clients:
        connected.shutdown(socket.SHUT_RDWR)
    for pid, _ in clients:
        os.waitpid(pid, 0)


def _receive(answers: IO[str]) -> dict[str, Any]:
    try:
        line = answers.readline()
    except OSError:
        line = ""
    answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {"gone": True}
    return answer


def run_bare_manager(address: str) -> None:
    """Serve until the end of the input."""
    server = BareManager(address, BARE_KEY).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)  # the server's threads have no end of their own


def main() -> None:
    """The program: a number of clients, or the address of a bare Manager."""
    if sys.argv[1].isdigit():
        run_parent(int(sys.argv[1]))
    else:
        run_bare_manager(sys.argv[1])
