"""Bad input ends in one clear, typed error in the caller, at once, and nothing of it is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import callpool
from tests.acceptance.running import HANG, HELLO, detached

NAN = float("nan")
CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE
CASES: dict[str, tuple[dict[str, Any], type[callpool.CallpoolError], str]] = {
    "unknown provider": ({"provider": "fak"}, callpool.UnknownProvider, "provider"),
    "unknown model": ({"model": "n"}, callpool.UnknownModel, "model"),
    "provider of another type": ({"provider": 5}, callpool.BadInput, "provider"),
    "no messages": ({"messages": []}, callpool.BadInput, "messages"),
    "messages as text": ({"messages": "hello"}, callpool.BadInput, "messages"),
    "a message as text": ({"messages": ["hello"]}, callpool.BadInput, "messages[0]"),
    "a message without role": ({"messages": [{"content": "hello"}]}, callpool.BadInput, "messages[0].role"),
    "a lambda as content": (
        {"messages": [{"role": "user", "content": lambda: 1}]},
        callpool.BadInput,
        "messages[0].content",
    ),
    "a number as content": (
        {"messages": [{"role": "user", "content": 3}]},
        callpool.BadInput,
        "messages[0].content",
    ),
    "timeout NaN": ({"timeout": NAN}, callpool.BadInput, "timeout"),
    "timeout infinite": ({"timeout": float("inf")}, callpool.BadInput, "timeout"),
    "timeout negative": ({"timeout": -5}, callpool.BadInput, "timeout"),
    "timeout zero": ({"timeout": 0}, callpool.BadInput, "timeout"),
    "timeout huge": ({"timeout": 1e20}, callpool.BadInput, "timeout"),
    "first_token_timeout zero": ({"first_token_timeout": 0}, callpool.BadInput, "first_token_timeout"),
    "idle_timeout NaN": ({"idle_timeout": NAN}, callpool.BadInput, "idle_timeout"),
    "timeout as text": ({"timeout": "30"}, callpool.BadInput, "timeout"),
    "timeout as truth": ({"timeout": True}, callpool.BadInput, "timeout"),
    "metadata of 11 KB": ({"metadata": {"k": "x" * 11_000}}, callpool.MetadataTooLarge, "metadata"),
    "metadata with a cycle": ({"metadata": CYCLE}, callpool.NotSerializable, "metadata"),
    "metadata with a tuple as key": ({"metadata": {(1, 2): 3}}, callpool.NotSerializable, "metadata"),
    "metadata as text": ({"metadata": "x"}, callpool.BadInput, "metadata"),
    "a lambda in a message": (
        {"messages": [{"role": "user", "content": "x", "name": lambda: 1}]},
        callpool.NotSerializable,
        "messages",
    ),
    "a lock as parameter": ({"seed": threading.Lock()}, callpool.NotSerializable, "seed"),
    "a generator as parameter": ({"stop": (x for x in "ab")}, callpool.NotSerializable, "stop"),
    "bytes as parameter": ({"stop": b"x"}, callpool.NotSerializable, "stop"),
    "NaN as parameter": ({"temperature": NAN}, callpool.BadInput, "temperature"),
    "half a surrogate pair": ({"messages": [{"role": "user", "content": "\ud800"}]}, callpool.BadInput, "messages"),
    "a key of a provider": ({"api_key": "sk-x"}, callpool.BadInput, "api_key"),
    "an address of a provider": ({"base_url": "http://169.254.169.254"}, callpool.BadInput, "base_url"),
    "stream as text": ({"stream": "yes"}, callpool.BadInput, "stream"),
    "id with a slash": ({"request_id": "../../etc/passwd"}, callpool.BadInput, "request_id"),
    "id with a line end": ({"request_id": "abc\n"}, callpool.BadInput, "request_id"),
    "id empty": ({"request_id": ""}, callpool.BadInput, "request_id"),
    "id too long": ({"request_id": "x" * 65}, callpool.BadInput, "request_id"),
    "payload over the limit": (
        {"messages": [{"role": "user", "content": "x" * 9_000_000}]},
        callpool.BadInput,
        "messages",
    ),
    "temperature too high": ({"temperature": 2.5}, callpool.BadInput, "temperature"),
    "max_tokens as truth": ({"max_tokens": True}, callpool.BadInput, "max_tokens"),
    "max_tokens of a million million": ({"max_tokens": 10**12}, callpool.BadInput, "max_tokens"),
    "a million answers": ({"n": 10**9}, callpool.BadInput, "n"),
    "stop as a number": ({"stop": 5}, callpool.BadInput, "stop"),
    "tools as text": ({"tools": "search"}, callpool.BadInput, "tools"),
    "callpool as parameter": ({"callpool": {"thinking_mode": "low"}}, callpool.BadInput, "callpool"),
    "an option as parameter": ({"thinking_mode": "low"}, callpool.BadInput, "thinking_mode"),
    "options as a dict": ({"options": {"thinking_mode": "low"}}, callpool.BadInput, "options"),
    "a line end in a cache id": ({"options": callpool.Options(cache_id="a\r\nb")}, callpool.BadInput, "cache_id"),
    "a search that nobody makes": (
        {"options": callpool.Options(use_websearch=True)},
        callpool.BadInput,
        "use_websearch",
    ),
    "a missing key": ({"provider": "keyless"}, callpool.CredentialMissing, "provider"),
}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return {
        "providers": {
            "fake": {"kind": "scripted", "models": {"m": {"reply": "hello"}, "hang": {"error": "hang"}}},
            "keyless": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY"},
        }
    }


@pytest.fixture
def client(config: dict[str, Any]) -> Iterator[callpool.Client]:
    with detached(config) as supervisor, supervisor.connect() as connected:
        yield connected


def test_every_case_is_refused_by_name_and_leaves_nothing(client: callpool.Client) -> None:
    for name, (changed, expected, param) in CASES.items():
        with pytest.raises(expected) as refusal:
            client.submit(**({"provider": "fake", "model": "m", "messages": HELLO} | changed))
        assert refusal.value.param == param, name
        assert param in refusal.value.message or expected is not callpool.BadInput, name
        assert "sk-x" not in str(refusal.value)
        assert client.submit(provider="fake", model="m", messages=HELLO).result(HANG)["content"] == "hello", name
    status = client.status()
    assert status["sessions"]["total_sessions_created"] == len(CASES), "a refused request became a session"
    assert status["sessions"]["sessions_rejected_metadata_size"] == 1
    assert status["sessions"]["current_metadata_bytes"] == 0
    assert status["queue"] == {"requests": 0, "bytes": 0}


def test_the_nearest_name_is_suggested(client: callpool.Client) -> None:
    with pytest.raises(callpool.UnknownProvider) as refusal:
        client.submit(provider="fakee", model="m", messages=HELLO)
    assert refusal.value.hint == "did you mean 'fake'?"


def test_metadata_is_measured_as_the_contract_says(client: callpool.Client) -> None:
    """`len(json.dumps(metadata))`: exactly the limit passes, one byte more does not."""
    room = 10_240 - len('{"k": ""}')
    client.submit(provider="fake", model="m", messages=HELLO, metadata={"k": "x" * room}).result(HANG)
    with pytest.raises(callpool.MetadataTooLarge) as refusal:
        client.submit(provider="fake", model="m", messages=HELLO, metadata={"k": "x" * (room + 1)})
    assert refusal.value.message == "Metadata size (10241 bytes) exceeds limit (10240 bytes)"
    assert (refusal.value.size, refusal.value.limit) == (10_241, 10_240)


def test_an_active_id_is_refused_and_a_finished_one_is_free(client: callpool.Client) -> None:
    with callpool.connect() as other:
        running = client.submit(provider="fake", model="hang", messages=HELLO, request_id="mine")
        for submitter in (client, other):
            with pytest.raises(callpool.DuplicateRequest):
                submitter.submit(provider="fake", model="m", messages=HELLO, request_id="mine")
        running.cancel()
        assert isinstance(running.exception(HANG), callpool.RequestCancelled)
        assert other.submit(provider="fake", model="m", messages=HELLO, request_id="mine").result(HANG)


def test_waiting_too_long_ends_the_wait_and_not_the_request(client: callpool.Client) -> None:
    running = client.submit(provider="fake", model="hang", messages=HELLO)
    with pytest.raises(callpool.ResultTimeout) as timeout:
        running.result(0.01)
    assert isinstance(timeout.value, TimeoutError)
    assert running.state == "processing"
    for wrong in (NAN, -1, "1", True):
        with pytest.raises(callpool.BadInput):
            running.result(wrong)  # type: ignore[arg-type]


def test_a_timeout_ends_the_call_and_names_itself(client: callpool.Client) -> None:
    running = client.submit(provider="fake", model="hang", messages=HELLO, timeout=0.05)
    error = running.exception(HANG)
    assert isinstance(error, callpool.RequestTimeout)
    assert isinstance(error, TimeoutError)
    assert running.state == "timeout"
    assert client.status()["sessions"]["total_sessions_timeout"] == 1
