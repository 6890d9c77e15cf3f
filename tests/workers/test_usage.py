"""What a call uses: reckoned from what is sent, and a provider's counts, which are input like any other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.core.limits import Usage
from callpool.manager.core.messages import Operation
from callpool.workers.providers.base import Call
from callpool.workers.usage import MAX_TOLD, read_usage, reckon


def counts(prompt: Any = 10, answer: Any = 5, total: Any = 15, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total, **more}


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        (counts(), Usage(10, 5)),
        (counts(total=None), Usage(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5}, Usage(10, 5)),
        ({"prompt_tokens": 10, "total_tokens": 10}, Usage(10, 0)),
        ({"completion_tokens": 5, "total_tokens": 15}, Usage(10, 5)),
        (counts(answer=0, total=10), Usage(10, 0)),
        (counts(total=40), Usage(10, 30)),
        (counts(total=0), Usage(10, 5)),
        (counts(cached_tokens=4), Usage(10, 5, 4)),
        (counts(prompt_tokens_details={"cached_tokens": 4}), Usage(10, 5, 4)),
        (counts(prompt_tokens_details={"cached_tokens": 0}, cached_tokens=3), Usage(10, 5, 3)),
        (counts(prompt_cache_hit_tokens=10, prompt_cache_miss_tokens=0), Usage(10, 5, 10)),
        (counts(prompt_tokens_details=None, completion_tokens_details={"reasoning_tokens": 3}), Usage(10, 5)),
        (counts(prompt_tokens_details=[4]), Usage(10, 5)),
        (counts(cached_tokens=11), Usage(10, 5)),
        (counts(cached_tokens=-1), Usage(10, 5)),
        (counts(cached_tokens=True), Usage(10, 5)),
        (counts(cached_tokens="4"), Usage(10, 5)),
    ],
)
def test_counts(told: dict[str, Any], usage: Usage) -> None:
    assert read_usage(told) == usage


@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "total_tokens"])
@pytest.mark.parametrize("wrong", [-1, True, "10", 10.5, float("nan"), [10], {}, MAX_TOLD + 1, 10**400], ids=str)
def test_counts_that_cannot_be(name: str, wrong: Any) -> None:
    assert read_usage({**counts(), name: wrong}) is None


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"prompt_tokens": 10},
        {"total_tokens": 10},
        {"input": 3, "output": 4},
        counts(0, 0, 0),
        counts(0, 5, 5),
        {"completion_tokens": 15, "total_tokens": 5},
        None,
        [],
        "10",
        7,
    ],
    ids=str,
)
def test_too_few_counts(told: Any) -> None:
    assert read_usage(told) is None


@given(
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "prompt_tokens_details"]),
        st.none() | st.booleans() | st.integers() | st.integers(0, 100) | st.floats() | st.text(max_size=3)
        | st.dictionaries(st.just("cached_tokens"), st.integers()),
    )
)  # fmt: skip
def test_whatever_is_told_costs_nothing_below_zero(told: dict[str, Any]) -> None:
    usage = read_usage(told)
    assert usage is None or (0 < usage.prompt <= MAX_TOLD and 0 <= usage.answer <= MAX_TOLD)
    assert usage is None or 0 <= usage.cached <= usage.prompt


def call(operation: Operation = "chat", **more: Any) -> Call:
    return Call(
        request_id="r", attempt=1, provider="p", model="m", stream=False, timeout=1.0, operation=operation, **more
    )


@pytest.mark.parametrize(
    ("asked", "usage"),
    [
        (call(messages=[{"role": "user", "content": "abcd"}], parameters={"max_tokens": 9, "n": 2}), Usage(8, 18)),
        (call("embeddings", parameters={"input": ["abcd", "abcd"], "max_tokens": 9}), Usage(2)),
        (call("models"), Usage()),
    ],
    ids=lambda value: getattr(value, "operation", ""),
)
def test_each_kind_of_call_is_reckoned(asked: Call, usage: Usage) -> None:
    assert reckon(asked) == usage


@pytest.mark.parametrize("body", [{}, {"input": None}, {"input": 7}, {"input": {"a": 1}}], ids=str)
def test_vectors_of_nothing_are_reckoned_and_then_refused_elsewhere(body: dict[str, Any]) -> None:
    assert reckon(call("embeddings", parameters=body)).prompt < 10
