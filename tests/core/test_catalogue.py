from __future__ import annotations

import difflib
from typing import Any

import msgspec
import pytest

from callpool.manager.core.catalogue import (
    MAX_TIMEOUT,
    Catalogue,
    ProviderEntry,
    Timeouts,
    refuse_client_name,
    refuse_timeout,
)
from callpool.manager.core.faults import Fault
from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import Submit
from callpool.manager.core.parameter_rules import Rules
from callpool.manager.core.tokens import MOST

NO_KEY = Fault(code="credential_missing", message="no key")
CATALOGUE = Catalogue(
    providers={
        "kimi": ProviderEntry(
            timeouts=Timeouts(30.0), limit=5, models={"kimi-k3": Timeouts(120.0), "kimi-fast": Timeouts(10.0)}
        ),
        "open": ProviderEntry(timeouts=Timeouts(20.0), limit=5, models={"big": Timeouts(60.0)}, any_model=True),
        "keyless": ProviderEntry(timeouts=Timeouts(20.0), limit=5, models={"m": Timeouts(1.0)}, refusal=NO_KEY),
        "empty": ProviderEntry(timeouts=Timeouts(20.0), limit=5),
    },
    max_metadata_size=100,
    max_payload_size=10,
)
GOOD = Submit("req_1", "kimi", "kimi-k3", b"{}")


def refusal(**changes: Any) -> Fault | None:
    return CATALOGUE.refuse(msgspec.structs.replace(GOOD, **changes))


def test_a_good_request_passes() -> None:
    assert CATALOGUE.refuse(GOOD) is None


@pytest.mark.parametrize("good", ["a", "req_9", "A-Z_09", "x" * 64])
def test_ids_that_pass(good: str) -> None:
    assert refusal(request_id=good) is None


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("x\n2026-01-01 ERROR fake", id="B21"),
        pytest.param("../../etc/passwd", id="B25"),
        pytest.param("/etc/passwd", id="B26"),
        pytest.param("a\0b", id="B27"),
        pytest.param("x" * 256, id="B28"),
        pytest.param("x" * 65, id="B28-65"),
        pytest.param("", id="B29-empty"),
        pytest.param(".", id="B29-dot"),
        pytest.param("..", id="B29-dots"),
        pytest.param("abc\n", id="B30"),
        pytest.param("é", id="letter-outside-ascii"),
        pytest.param("٣", id="digit-outside-ascii"),
        pytest.param("a b", id="space"),
    ],
)
def test_ids_that_are_refused(bad: str) -> None:
    fault = refusal(request_id=bad)
    assert fault is not None
    assert (fault.code, fault.param) == ("bad_input", "request_id")
    assert fault.message.isprintable()
    assert len(fault.message) < 400


@pytest.mark.parametrize("good", [None, 0.001, 1, 30.0, MAX_TIMEOUT])
def test_timeouts_that_pass(good: float | None) -> None:
    assert refusal(timeout=good) is None


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(float("nan"), id="B36-nan"),
        pytest.param(float("inf"), id="inf"),
        pytest.param(float("-inf"), id="-inf"),
        pytest.param(-5, id="B37-negative"),
        pytest.param(0, id="B37-zero"),
        pytest.param(-0.0, id="minus-zero"),
        pytest.param(1e20, id="B37-1e20"),
        pytest.param(MAX_TIMEOUT + 1, id="a-day-and-a-second"),
        pytest.param("30", id="B37-text"),
        pytest.param("1_000", id="B37-underscore"),
        pytest.param("٣", id="B37-arabic"),
        pytest.param(True, id="bool"),
        pytest.param([30], id="list"),
        pytest.param(10**400, id="int-beyond-float"),
        pytest.param(10**5_000, id="int-beyond-str"),
    ],
)
def test_timeouts_that_are_refused(bad: Any) -> None:
    fault = refusal(timeout=bad)
    assert fault is not None
    assert (fault.code, fault.param) == ("bad_input", "timeout")
    assert "timeout" in fault.message
    assert len(fault.message) < 400


def test_a_refused_timeout_is_named_as_its_caller_calls_it() -> None:
    fault = refuse_timeout(-1, "timeout_seconds")
    assert fault is not None
    assert fault.param == "timeout_seconds"
    assert "86400" in fault.message


@pytest.mark.parametrize(
    ("changes", "code", "message", "hint"),
    [
        ({"provider": "kimmi"}, "unknown_provider", "unknown provider 'kimmi'", "did you mean 'kimi'?"),
        ({"provider": "zzz"}, "unknown_provider", "unknown provider 'zzz'", "known: empty, keyless, kimi, open"),
        (
            {"model": "kimi-k4"},
            "unknown_model",
            "unknown model 'kimi-k4' of provider 'kimi'",
            "did you mean 'kimi-k3'?",
        ),
        ({"model": "zzz"}, "unknown_model", "unknown model 'zzz' of provider 'kimi'", "known: kimi-fast, kimi-k3"),
        ({"provider": "empty"}, "unknown_model", "unknown model 'kimi-k3' of provider 'empty'", "known: none"),
    ],
)
def test_unknown_names_come_with_the_nearest(changes: dict[str, str], code: str, message: str, hint: str) -> None:
    fault = refusal(**changes)
    assert fault is not None
    assert (fault.code, fault.message, fault.hint) == (code, message, hint)
    assert fault.param == code.removeprefix("unknown_")


def test_a_huge_unknown_name_is_not_compared_with_every_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison takes a second for a name of 8 MB, and the supervisor makes it under its lock."""
    compared: list[str] = []

    def nearest(name: str, names: list[str], n: int) -> list[str]:
        compared.append(name)
        return names[:n]

    monkeypatch.setattr(difflib, "get_close_matches", nearest)
    fault = refusal(provider="kimi" * 2_000_000)
    assert fault is not None
    assert len(fault.message) < 200
    assert all(len(name) <= 256 for name in compared)


def test_an_open_provider_takes_any_model() -> None:
    assert refusal(provider="open", model="whatever") is None


def test_an_account_that_cannot_serve_says_why() -> None:
    assert refusal(provider="keyless", model="m") is NO_KEY


def test_a_payload_over_the_limit_is_refused_with_both_figures() -> None:
    assert refusal(payload=b"x" * 10) is None
    fault = refusal(payload=b"x" * 11)
    assert fault is not None
    assert fault.details == {"size": 11, "limit": 10}


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"timeout": 7.0}, 7.0),
        ({}, 120.0),
        ({"provider": "open", "model": "big"}, 60.0),
        ({"provider": "open", "model": "other"}, 20.0),
    ],
)
def test_the_request_wins_over_the_model_and_the_model_over_the_provider(
    changes: dict[str, Any], seconds: float
) -> None:
    assert CATALOGUE.timeout_for(msgspec.structs.replace(GOOD, **changes)) == seconds


@pytest.mark.parametrize("total", [None, 7.0])
@pytest.mark.parametrize("first_token", [None, 3.0])
@pytest.mark.parametrize("idle", [None, 2.0])
@pytest.mark.parametrize(("model", "usual"), [("m", Timeouts(9.0, 8.0, None)), ("n", Timeouts(30.0, None, 5.0))])
def test_each_timeout_is_the_requests_else_the_models_or_the_providers(
    model: str, usual: Timeouts, total: float | None, first_token: float | None, idle: float | None
) -> None:
    entry = ProviderEntry(
        timeouts=Timeouts(30.0, None, 5.0), limit=1, models={"m": Timeouts(9.0, 8.0, None)}, any_model=True
    )
    catalogue = msgspec.structs.replace(CATALOGUE, providers={"p": entry})
    submit = Submit(
        "r", "p", model, b"", timeout=total, first_token_timeout=first_token, idle_timeout=idle, acknowledge=False
    )
    found = catalogue.timeouts_for(submit)
    assert found == Timeouts(
        usual.total if total is None else total,
        usual.first_token if first_token is None else first_token,
        usual.idle if idle is None else idle,
    )
    assert found.total == catalogue.timeout_for(submit)


@pytest.mark.parametrize("name", ["first_token_timeout", "idle_timeout"])
@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), 1e20, True, "5"])
def test_the_timeouts_of_silences_have_the_bounds_of_all(name: str, value: object) -> None:
    fault = refusal(**{name: value})
    assert fault is not None
    assert (fault.code, fault.param) == ("bad_input", name)


def test_a_catalogue_crosses_a_process_border() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(CATALOGUE), type=Catalogue) == CATALOGUE


# Further calls.


def allowing(*operations: Any) -> Rules:
    return Rules(operations=operations)


CHAIN = Catalogue(
    providers={
        "a": ProviderEntry(
            timeouts=Timeouts(30.0),
            limit=5,
            models={"m": Timeouts(9.0), "own": Timeouts(9.0)},
            rules=allowing("chat", "embeddings", "models"),
            fallbacks=["a/m", "b/m", "keyless/m", "b/typo", "nobody/m", "b/m", "open/e"],
            model_fallbacks={"own": ["open/x/y"]},
        ),
        "b": ProviderEntry(timeouts=Timeouts(30.0), limit=5, models={"m": Timeouts(9.0)}),
        "open": ProviderEntry(timeouts=Timeouts(30.0), limit=5, any_model=True, rules=allowing("chat", "embeddings")),
        "keyless": ProviderEntry(timeouts=Timeouts(30.0), limit=5, models={"m": Timeouts(9.0)}, refusal=NO_KEY),
    },
    max_metadata_size=100,
)
ASK = Submit("req_1", "a", "m", b"{}")


@pytest.mark.parametrize(
    ("changes", "targets"),
    [
        ({}, [("b", "m"), ("open", "e")]),
        ({"model": "own"}, [("open", "x/y")]),
        ({"fallbacks": []}, []),
        ({"fallbacks": ["open/z", "b/m", "open/z"]}, [("open", "z"), ("b", "m")]),
        ({"operation": "embeddings"}, []),
        ({"operation": "embeddings", "fallbacks": ["open/z"]}, [("open", "z")]),
    ],
)
def test_where_a_request_may_go_on(changes: dict[str, Any], targets: list[tuple[str, str]]) -> None:
    assert CHAIN.fallbacks_for(msgspec.structs.replace(ASK, **changes)) == targets


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"max_attempts": 0}, "bad_input", "max_attempts"),
        ({"max_attempts": 11}, "bad_input", "max_attempts"),
        ({"fallbacks": ["b/m"] * 9}, "bad_input", "fallbacks"),
        ({"fallbacks": ["b/m", "b"]}, "bad_input", "fallbacks[1]"),
        ({"fallbacks": ["b/"]}, "bad_input", "fallbacks[0]"),
        ({"fallbacks": ["open/" + "x" * 201]}, "bad_input", "fallbacks[0]"),
        ({"fallbacks": ["nobody/m"]}, "unknown_provider", "fallbacks[0]"),
        ({"fallbacks": ["b/typo"]}, "unknown_model", "fallbacks[0]"),
        ({"fallbacks": ["keyless/m"]}, "credential_missing", "fallbacks[0]"),
        ({"operation": "embeddings", "fallbacks": ["b/m"]}, "bad_input", "fallbacks[0]"),
        ({"provider": "b", "operation": "embeddings"}, "bad_input", "provider"),
        ({"operation": "models", "model": "m"}, "bad_input", "model"),
        ({"operation": "models", "model": "x" * (60 << 20)}, "bad_input", "model"),
    ],
)
def test_what_is_wrong_with_further_calls(changes: dict[str, Any], code: str, param: str) -> None:
    fault = CHAIN.refuse(msgspec.structs.replace(ASK, **changes))
    assert fault is not None
    assert (fault.code, fault.param) == (code, param)
    assert len(fault.message) < 300


def test_a_list_of_models_is_asked_for_without_a_model() -> None:
    assert CHAIN.refuse(msgspec.structs.replace(ASK, operation="models", model="")) is None


QUEUES = Catalogue(
    providers={
        "p": ProviderEntry(timeouts=Timeouts(1.0), limit=1, queue_timeout=9.0, model_queue_timeouts={"slow": 60.0}),
        "free": ProviderEntry(timeouts=Timeouts(1.0), limit=1),
    },
    max_metadata_size=100,
)


@pytest.mark.parametrize(
    ("provider", "model", "own", "seconds"),
    [
        ("p", "m", None, 9.0),
        ("p", "slow", None, 60.0),
        ("p", "slow", 2.0, 2.0),
        ("free", "slow", None, None),
        ("free", "m", 3.0, 3.0),
        ("unknown", "m", None, None),
        ("unknown", "m", 4.0, 4.0),
    ],
)
def test_how_long_a_request_waits_for_its_first_call(
    provider: str, model: str, own: float | None, seconds: float | None
) -> None:
    assert QUEUES.queue_timeout_for(Submit("r", provider, model, b"{}", queue_timeout=own)) == seconds


@pytest.mark.parametrize(
    "good",
    [
        {"priority": "interactive"},
        {"priority": "normal"},
        {"priority": "batch"},
        {"queue_timeout": None},
        {"queue_timeout": 0.001},
        {"queue_timeout": MAX_TIMEOUT},
        {"affinity": None},
        {"affinity": "x"},
        {"affinity": "Bücher, 書 /1"},
        {"affinity": "x" * 256},
        {"tokens": Usage()},
        {"tokens": Usage(MOST, MOST, MOST)},
    ],
    ids=str,
)
def test_turns_and_sizes_that_pass(good: dict[str, Any]) -> None:
    assert refusal(**good) is None


@pytest.mark.parametrize(
    ("param", "bad"),
    [
        *(("priority", bad) for bad in ("x", "", "Normal", None, 1, True, ["normal"], b"normal")),
        *(
            ("queue_timeout", bad)
            for bad in (float("nan"), float("inf"), 0, -1, MAX_TIMEOUT + 1, 10**400, True, "5", [5])
        ),
        *(("affinity", bad) for bad in ("", "x" * 257, "a\nb", "\x1b[31m", "\ud800", 5, b"x", True, ["x"])),
        *(("tokens", Usage(*counts)) for counts in ((-1,), (0, -1), (0, 0, -1), (MOST + 1,), (0, MOST + 1))),
    ],
    ids=ascii,
)
def test_turns_and_sizes_that_are_refused(param: str, bad: Any) -> None:
    fault = refusal(**{param: bad})
    assert fault is not None
    assert (fault.code, fault.param) == ("bad_input", param)
    assert fault.message.startswith(f"{param} must be ")
    assert fault.message.isprintable()
    assert len(fault.message) < 200


@pytest.mark.parametrize("good", ["a", "nightly", "A-Z_09.v1", ".", "x" * 64])
def test_names_of_clients_that_pass(good: str) -> None:
    assert refuse_client_name(good) is None


@pytest.mark.parametrize("bad", ["", "x" * 65, "a b", "a\n", "é", "٣", "a/b", 5, None, True, b"a", ["a"]], ids=ascii)
def test_names_of_clients_that_are_refused(bad: Any) -> None:
    fault = refuse_client_name(bad, "CALLPOOL_CLIENT")
    assert fault is not None
    assert (fault.code, fault.param, fault.details) == ("bad_input", "CALLPOOL_CLIENT", {"limit": 64})
    assert fault.message.startswith("CALLPOOL_CLIENT must be 1 to 64 of A-Z a-z 0-9 _ . -, got ")
    assert len(fault.message) < 200
