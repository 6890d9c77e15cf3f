"""The Manager's door against strangers, broken peers and old habits; every attempt leaves the door open for the next."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from multiprocess.managers import BaseManager

import callpool
from callpool.manager import proxy, wire
from tests.acceptance.running import HANG, HELLO, Running, detached, eventually, scripted


@pytest.fixture
def supervisor() -> Iterator[Running]:
    with detached(scripted(m={"reply": "hello"}, slow={"delay": 0.5})) as running:
        yield running
        with running.connect() as client:  # whatever the test did: the door still opens, and nothing leaked
            assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)["content"] == "hello"
            assert client.status()["sessions"]["active_sessions"] == 0


@pytest.fixture
def address() -> str:
    return str(Path(os.environ["CALLPOOL_RUNTIME_DIR"]) / "callpool.sock")


def _raw(address: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(HANG)
    connected.connect(address)
    return connected


def _is_closed(connected: socket.socket) -> bool:
    """Whether the other side closes; reads what it still says."""
    try:
        while connected.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return True


class Canary:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def test_files_are_private_and_the_key_is_new_at_each_start(address: str) -> None:
    keys = []
    for _ in range(2):
        with detached(scripted()) as running:
            key = Path(address).with_name("key")
            assert key.stat().st_mode & 0o777 == 0o600
            assert Path(address).stat().st_mode & 0o777 == 0o600
            assert Path(address).parent.stat().st_mode & 0o777 == 0o700
            keys.append(key.read_bytes())
            assert len(keys[-1]) == 32
            with running.connect() as client:
                client.drain(wait=HANG)
            running.ended()
    assert keys[0] != keys[1]


def test_where_nothing_runs_nobody_is_told_to_change_a_directory(base_folder: Path) -> None:
    for missing in ("/nope", "/usr/none.sock", str(base_folder / "no" / "such" / "directory")):
        with pytest.raises(callpool.NotRunning) as refusal:
            callpool.connect(missing)
        assert "chmod" not in str(refusal.value.hint)


def test_a_wrong_key_is_refused_with_a_reason(supervisor: Running, address: str) -> None:
    for key in (b"k" * 32, b""):
        with pytest.raises(callpool.HandshakeFailed, match="key is wrong"):
            proxy.connect(address, key)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_refused_before_a_byte_is_read(supervisor: Running, address: str, base_folder: Path) -> None:
    """The directory keeps strangers out already; here it is opened for them, so that the check at the door must do it."""
    for path in (base_folder, Path(address).parent):
        path.chmod(0o711)
    Path(address).chmod(0o666)
    script = "import os, socket, sys\nos.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nprint(s.recv(100))"
    try:
        said = subprocess.run([sys.executable, "-Ic", script, address], capture_output=True, timeout=HANG, check=True)
    finally:
        Path(address).parent.chmod(0o700)
    assert said.stdout == b"b''\n", "the door spoke to another user"


def test_a_frame_over_the_limit_ends_the_connection_before_memory_is_taken(
    supervisor: Running, address: str, base_folder: Path
) -> None:
    log = base_folder / "home" / "logs" / "supervisor.log"
    for length in (2**31 - 1, -1, wire.HANDSHAKE_FRAME_LIMIT + 1):
        before = supervisor.process.memory_info().rss
        with _raw(address) as connected:
            connected.recv(65536)
            connected.sendall(wire.HEADER.pack(length))
            assert _is_closed(connected)
        assert supervisor.process.memory_info().rss - before < 50 * 1024 * 1024
        assert f"a frame of {length} bytes is over the limit" in log.read_text(), "it ended for another reason"


def test_a_large_frame_is_refused_after_the_handshake_too(supervisor: Running, address: str) -> None:
    connection = proxy.connect(address)
    connection.socket.settimeout(HANG)
    connection.socket.sendall(wire.HEADER.pack(wire.FRAME_LIMIT + 1))
    assert _is_closed(connection.socket)
    connection.close()


def test_a_pickle_with_the_right_key_is_not_opened(supervisor: Running, address: str, base_folder: Path) -> None:
    path = base_folder / "canary"
    poison = pickle.dumps(Canary(path))
    bare = proxy.connect(address)
    bare.socket.settimeout(HANG)
    bare.socket.sendall(wire.frame(poison))
    assert _is_closed(bare.socket)
    bare.close()
    inside = proxy.connect(address)
    inside.send(("service", "call", [poison], {}))
    kind, error = inside.recv()
    inside.close()
    assert kind == wire.KIND_ERROR
    assert isinstance(error, callpool.ProtocolError)
    assert not path.exists()


def test_only_verbs_can_be_called(supervisor: Running, address: str) -> None:
    connection = proxy.connect(address)
    for ident in ("service", None, "other"):
        for method in ("__class__", "_apply", "serve_forever", "stop", "nothing", "#GETVALUE"):
            connection.send((ident, method, (), {}))
            kind, error = connection.recv()
            assert kind == wire.KIND_ERROR, (ident, method)
            assert isinstance(error, callpool.ProtocolError), (ident, method)
    connection.close()


def test_wrong_arguments_are_named(supervisor: Running) -> None:
    with supervisor.connect() as client:
        with pytest.raises(callpool.BadInput, match="request_id"):
            client.ask("show", request_id=5)
        with pytest.raises(callpool.BadInput, match="colour"):
            client.ask("status", colour="red")
        with pytest.raises(callpool.UnknownRequest):
            client.show("req_nobody")
        with pytest.raises(callpool.UnknownRequest):
            client.cancel("req_nobody")


def test_a_plain_base_manager_works(supervisor: Running, address: str) -> None:
    """The stock way: connect, create, incref, call, decref, from several threads."""
    manager = proxy.ServiceManager(address)
    manager.connect()
    service = manager.service()
    assert service.status()["state"] == "running"
    short_way = manager.open_service()  # without create, incref and decref
    short_way.ping()
    assert short_way.status()["pid"] == supervisor.pid
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(service.status()["state"])) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert answers == ["running"] * 5
    payload = b'{"messages":[{"role":"user","content":"hello"}]}'
    done = service.call(request_id="req_plain", provider="fake", model="m", payload=payload)
    assert msgspec.json.decode(done["body"])["content"] == "hello"
    with pytest.raises(callpool.UnknownModel):
        service.call(request_id="req_plain2", provider="fake", model="nothing", payload=payload)
    with pytest.raises(TypeError, match="callpool start"):
        BaseManager(address=address, serializer=proxy.SERIALIZER).get_server()


def test_a_plain_proxy_ends_with_its_last_reference_also_after_an_error(supervisor: Running, address: str) -> None:
    manager = proxy.ServiceManager(address)
    manager.connect()
    service = manager.service()
    gc.disable()  # a cycle would be collected by whichever thread comes first, and leave this thread's connection open
    try:
        with pytest.raises(callpool.UnknownRequest):
            service.show("req_nobody")
        ended = weakref.ref(service)
        del service
        assert ended() is None
    finally:
        gc.enable()


def test_silent_connections_do_not_keep_others_waiting(supervisor: Running, address: str) -> None:
    """That they are ended at the deadline, `tests/manager/test_connection.py` shows with a shorter one."""
    silent = [_raw(address) for _ in range(200)]
    with supervisor.connect() as client:
        assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)
        assert supervisor.process.num_threads() < 10
    for connected in silent:
        connected.close()


def test_connections_beyond_the_limit_are_refused_and_admitted_again_when_there_is_room(address: str) -> None:
    config = scripted()
    config["supervisor"] = {"max_connections": 5}
    with detached(config) as running:
        clients = [running.connect() for _ in range(5)]
        with pytest.raises(callpool.HandshakeFailed):
            running.connect()
        clients.pop().close()

        def admitted() -> callpool.Client | None:
            try:
                return running.connect()
            except callpool.HandshakeFailed:
                return None

        admitted_one = eventually(admitted)
        assert admitted_one is not None
        clients.append(admitted_one)
        for client in clients:
            assert client.status()["state"] == "running"
            client.close()


def test_a_burst_of_connects_is_served(supervisor: Running) -> None:
    clients: list[callpool.Client] = []
    threads = [threading.Thread(target=lambda: clients.append(supervisor.connect())) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert len(clients) == 100
    for client in clients:
        client.close()


def test_a_stopped_supervisor_is_not_waited_for_for_ever(supervisor: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HANDSHAKE_DEADLINE", 0.3)
    supervisor.process.suspend()
    try:
        with pytest.raises(callpool.HandshakeFailed, match="did not answer"):
            supervisor.connect()
    finally:
        supervisor.process.resume()


def test_a_lockstep_call_and_a_submit_with_the_same_id_do_not_swap_answers(supervisor: Running, address: str) -> None:
    """The second is refused in its own connection; the first gets its own answer."""
    payload = b'{"messages":[{"role":"user","content":"hello"}]}'
    connection = proxy.connect(address)
    with supervisor.connect() as client:
        connection.send(
            ("service", "call", (), {"request_id": "same", "provider": "fake", "model": "slow", "payload": payload})
        )
        eventually(lambda: client.status()["sessions"]["active_sessions"] == 1)
        with pytest.raises(callpool.DuplicateRequest):
            client.submit(provider="fake", model="m", messages=HELLO, request_id="same")
    kind, answer = connection.recv()
    connection.close()
    assert (kind, answer["state"]) == (wire.KIND_RETURN, "completed")
