"""What is written of live accounts names none of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.live.accounts import Account
from tests.live.facts import GONE, Facts, redact

GLM_KEY = "0123456789abcdef0123456789abcdef.Zyxwvutsrqponmlk"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Your account org-9f8e7d6c5b4a<ak-1a2b3c4d5e> request reached organization max RPM: 3", "max RPM: 3"),
        (
            "Rate limit reached for gpt-5 in organization org-AbCdEf123 on requests per min (RPM): Limit 3",
            "(RPM): Limit 3",
        ),
        ("Incorrect API key provided: sk-00000*************0000. You can", "You can"),
        ("uid 4711000815 is out of money", "is out of money"),
        ("write to ann.lee@example.com", "write to"),
        ("request 7b1c0f2e-4a6d-4a3e-9a57-0c2f0a9d1e11 failed", "failed"),
        ("id 20261121180501a1b2c3d4e5f6", "id"),
        ("proj_abc123def in org_xyz789", "in"),
        ("Authorization: Bearer whatever", "Authorization:"),
    ],
)
def test_identifiers_are_taken_out(text: str, left: str) -> None:
    told = redact(text)
    assert GONE in told
    assert left in told
    for each in ("9f8e", "1a2b", "AbCd", "00000", "4711", "ann", "7b1c", "a1b2", "abc123", "xyz789", "whatever"):
        assert each not in told


@pytest.mark.parametrize(
    "text",
    [
        "kimi-k2.7-code-highspeed",
        "glm-4-32b-0414-128k",
        "x-ratelimit-remaining-requests",
        "organization TPM rate limit, current: 510000, limit: 500000, please try again after 1 seconds",
        "prompt_tokens_details",
        "当前API请求过多,请稍后重试。",
    ],
)
def test_words_and_figures_stay(text: str) -> None:
    assert redact(text) == text


def test_secrets_go_wherever_they_stand() -> None:
    account = Account("glm", "glm-4.7-flash", "https://open.bigmodel.cn/api/paas/v4", GLM_KEY)
    assert "Zyx" not in repr(account)
    halves = GLM_KEY.split(".")
    told = json.dumps(redact({GLM_KEY: [f"key={halves[0]}", {"half": (halves[1], 7)}]}, account.secrets))
    assert not any(half in told for half in halves)
    assert "7" in told


def test_a_secret_of_plain_letters_is_known_by_being_told() -> None:
    facts = Facts()
    facts.note("kimi", "plain", {"message": "key opensesame is wrong"})
    assert "opensesame" in str(facts.summary())
    facts.hide(["opensesame"])
    assert "opensesame" not in str(facts.summary())


def test_numbers_of_accounts_go_and_figures_stay() -> None:
    body = {"uid": 4711000815, "limit": 5_000_000, "seconds": 0.25, "ok": True}
    assert redact(body) == {"uid": GONE, "limit": 5_000_000, "seconds": 0.25, "ok": True}


def test_what_is_written_is_redacted(tmp_path: Path) -> None:
    facts = Facts()
    assert not facts
    facts.hide(["opensesame"])
    facts.note("kimi", "limit", {"body": {"error": {"message": "account <ak-1> with opensesame: max RPM: 3"}}})
    facts.note("kimi", "requests", 12)
    path = tmp_path / "live-facts.json"
    facts.write(path)
    assert json.loads(path.read_text())["kimi"]["requests"] == 12
    for written in (path.read_text(), (tmp_path / "live-facts.json.txt").read_text()):
        assert "max RPM: 3" in written
        assert "opensesame" not in written
        assert "ak-1" not in written
