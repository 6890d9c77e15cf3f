"""Vectors and lists of models as providers send them, and what is refused of it."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from yarl import URL

from callpool.workers.providers.completion import Malformed
from callpool.workers.providers.tasks import has_ended, result_url
from callpool.workers.providers.vectors import MAX_MODELS, read_embeddings, read_models

PACKED = base64.b64encode(struct.pack("<3f", 0.5, -1.0, 0.25)).decode()


def test_vectors_come_in_the_order_of_their_texts() -> None:
    data = [{"index": 1, "embedding": [2.0, 0.0, 0.0]}, {"index": 0, "embedding": PACKED}]
    answer = read_embeddings({"data": data, "usage": {"prompt_tokens": 3}}, 2)
    assert answer.embeddings == [[0.5, -1.0, 0.25], [2.0, 0.0, 0.0]]
    assert answer.usage == {"prompt_tokens": 3}


def test_a_service_may_leave_numbers_and_counts_out() -> None:
    answer = read_embeddings({"data": [{"embedding": [1]}, {"embedding": [2]}]}, 2)
    assert (answer.embeddings, answer.usage) == ([[1], [2]], {})


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        ["x"],
        [{}],
        [{"embedding": []}],
        [{"embedding": [True]}],
        [{"embedding": ["1"]}],
        [{"embedding": "no base64!"}],
        [{"embedding": "AAA="}],
        [{"index": 1, "embedding": [1]}],
        [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}],
        [{"index": "0", "embedding": [1]}],
    ],
)
def test_what_are_no_vectors(data: Any) -> None:
    with pytest.raises(Malformed):
        read_embeddings({"data": data}, 2 if data and len(data) == 2 else 1)


@pytest.mark.parametrize(("vectors", "wanted"), [([[1.0]], 2), ([[1.0], [2.0]], 1), ([[1.0], [2.0, 3.0]], 2)])
def test_each_text_has_its_vector_or_there_is_no_answer(vectors: list[list[float]], wanted: int) -> None:
    with pytest.raises(Malformed):
        read_embeddings({"data": [{"embedding": vector} for vector in vectors]}, wanted)


def test_models_are_told_as_they_are() -> None:
    assert read_models({"data": [{"id": "m", "context_length": 7}]}).models == [{"id": "m", "context_length": 7}]


@pytest.mark.parametrize("data", [None, [{}], [{"id": 1}], [{"id": "m"}] * (MAX_MODELS + 1)])
def test_what_is_no_list_of_models(data: Any) -> None:
    with pytest.raises(Malformed):
        read_models({"data": data})


@pytest.mark.parametrize("name", [None, 7, "", "../models", "a/b", "a?b", "a" * 201, "%2e%2e"])
def test_the_id_of_a_task_leads_nowhere_else(name: Any) -> None:
    with pytest.raises(Malformed):
        result_url(URL("https://host/v4/async-result"), {"id": name})


def test_the_states_of_a_task() -> None:
    assert str(result_url(URL("https://host/v4/async-result"), {"id": "a-1_B"})) == "https://host/v4/async-result/a-1_B"
    assert has_ended({"task_status": "SUCCESS"})
    assert not has_ended({"task_status": "PROCESSING"})
    for state in ("FAIL", "ELSE", None):
        with pytest.raises(Malformed):
            has_ended({"task_status": state})
