"""What Kimi and GLM say when they refuse, plain and streamed, through the whole house. OpenAI's words are the matrix's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import callpool
from callpool.tools.testing.fake_provider import FakeProviderProcess
from tests.acceptance.faults.matrix import Seen, all_ended, ask, calls_in, mode, outcome
from tests.acceptance.running import detached
from tests.outcomes import OTHER_DIALECTS, Outcome

DIALECTS = ("kimi", "glm")
LATER = ("overload", "http_500", "http_503", "limit_concurrency", "limit_rpm", "limit_tpm")
"""What may be another time: called three times. The rest is final, or in doubt (a 200 had come, or a gateway gave up)."""

SAYS: dict[str, tuple[tuple[int, str | None], tuple[int, str | None]]] = {
    "bad_request": ((400, "invalid_request_error"), (400, "1210")),
    "content_filter": ((400, "content_filter"), (400, "1301")),
    "unauthorized": ((401, "invalid_authentication_error"), (401, "1000")),
    "model_gone": ((404, "resource_not_found_error"), (404, "1211")),
    "overload": ((429, "engine_overloaded_error"), (429, "1305")),
    "quota": ((429, "exceeded_current_quota_error"), (429, "1113")),
    "arrears": ((429, "1113"), (429, "1113")),
    "limit_concurrency": ((429, "rate_limit_reached_error"), (429, "1302")),
    "limit_rpm": ((429, "rate_limit_reached_error"), (429, "1303")),
    "limit_tpm": ((429, "rate_limit_reached_error"), (429, "1302")),
    "limit_tpd": ((429, "rate_limit_reached_error"), (429, "1304")),
    "http_500": ((500, "server_error"), (500, "1230")),
    "http_503": ((503, "server_unavailable"), (503, "1234")),
    "html_504": ((504, None), (504, None)),
}
"""HTTP status and the provider's own code, as Kimi and as GLM send them."""
Asked = tuple[str, str, bool]
"""Dialect, fault, and whether it streams."""
OUTCOMES: dict[str, tuple[Outcome, Outcome]] = {
    **OTHER_DIALECTS,
    "html_504": (callpool.ProviderError, callpool.ProviderError),
}


class Told(NamedTuple):
    """What became of a request."""

    seen: Seen
    error: callpool.CallpoolError | None


def account(dialect: str, fault: str, *, stream: bool) -> str:
    """Each has its own: an account has ten retries saved up, and all of them together make more."""
    return f"{dialect}-{fault}-{mode(stream=stream)}"


def configured(asked: list[Asked], fakes: dict[str, FakeProviderProcess], key: Path) -> dict[str, Any]:
    """An account for each request."""
    providers = {
        account(dialect, fault, stream=stream): {
            "kind": dialect,
            "base_url": fakes[dialect].base_url,
            "api_key_file": str(key),
        }
        for dialect, fault, stream in asked
    }
    return {"supervisor": {"circuit_failures": 0, "retry_wait": 0.01}, "providers": providers}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Told]]:
    """What became of each account's one request: all of them are made at once."""
    asked = [(dialect, fault, stream) for dialect in DIALECTS for fault in OUTCOMES for stream in (False, True)]
    key = tmp_path_factory.mktemp("keys") / "key"
    key.write_text("sk-fake")
    key.chmod(0o600)
    with ExitStack() as stack:
        fakes = {dialect: stack.enter_context(FakeProviderProcess(dialect=dialect)) for dialect in DIALECTS}
        stack.enter_context(detached(configured(asked, fakes, key)))
        client = stack.enter_context(callpool.connect())
        handles = {}
        for dialect, fault, stream in asked:
            name = account(dialect, fault, stream=stream)
            handles[name] = ask(client, name, provider=name, stream=stream, max_attempts=3, fake={"fault": fault})
        ends = {name: outcome(handle, stream=name.endswith("stream")) for name, handle in handles.items()}
        seen: Counter[str] = Counter()
        for fake in fakes.values():
            seen.update(call.last_message for call in fake.wait_for(all_ended))
        calls = {name: calls_in(client.show(handle.request_id)) for name, handle in handles.items()}
        yield {name: Told(Seen(end, seen[name], calls[name]), error) for name, (end, error) in ends.items()}
        assert client.status()["sessions"]["active_sessions"] == 0


def test_the_table_has_every_refusal_that_has_a_class() -> None:
    assert {fault for fault, (kimi, _) in OUTCOMES.items() if isinstance(kimi, type)} - set(SAYS) == {
        "error_event",  # under a 200
        "error_object_200",
        "finish_content_filter",
    }


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_refusal_comes_to_what_is_promised(told: dict[str, Told], dialect: str, *, stream: bool) -> None:
    expected = {}
    for fault, outcomes in OUTCOMES.items():
        # A code of GLM's that Kimi does not send: by its status it is some limit.
        # A day of Kimi's that will have room in a second rolls; what GLM says of its own names no time.
        of_kimi = dialect == "kimi" and fault in ("arrears", "limit_tpd")
        calls = 3 if fault in LATER or of_kimi else 1
        expected[account(dialect, fault, stream=stream)] = Seen(outcomes[DIALECTS.index(dialect)], calls, calls)
    assert {name: told[name].seen for name in expected} == expected


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_errors_have_the_providers_own_words(told: dict[str, Told], dialect: str, *, stream: bool) -> None:
    errors = {fault: told[account(dialect, fault, stream=stream)].error for fault in SAYS}
    assert {fault: error and (error.status, error.provider_code) for fault, error in errors.items()} == {
        fault: said[DIALECTS.index(dialect)] for fault, said in SAYS.items()
    }
