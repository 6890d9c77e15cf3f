"""Keys stay where they are, and foreign text enters messages harmless."""

from __future__ import annotations

import copy
import gc
import logging
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.manager.errors import ConfigError
from callpool.workers.providers.secret import MIN_PART, Secret, redact
from callpool.workers.providers.wording import LIMIT, clean, describe

KEY = "sk-0123456789abcdef"


def test_only_reveal_shows_the_key(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(KEY)
    logging.getLogger("test").warning("%s %r %s", secret, secret, {"key": secret})
    texts = [str(secret), repr(secret), f"{secret}", f"{secret:>40}", f"{[secret]}", caplog.text]
    assert not [text for text in texts if KEY in text]
    assert secret.reveal() == KEY
    assert str(secret) == repr(secret) == "[key]"


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_does_not_travel(leave: object) -> None:
    assert callable(leave)
    with pytest.raises(TypeError, match="not pickled or copied"):
        leave(Secret(KEY))


@pytest.mark.parametrize("value", ["", "a b", "key\n", "key\r\nX-Evil: 1", "k\x00", "schlüssel", "\ud800"])
def test_what_no_header_can_carry_is_refused_without_being_quoted(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Secret(value)
    assert not value or value not in str(caught.value)


def test_redact_knows_every_living_key_and_its_parts() -> None:
    first, second = Secret("one-of-two-keys"), Secret("identity-of-the-key.secret-of-the-key-1234")
    text = f"a {first.reveal()} b {second.reveal()} c secret-of-the-key-1234 d"
    assert redact(text) == "a [key] b [key] c [key] d"
    del first, second
    gc.collect()
    assert redact(text) == text


def test_a_key_that_contains_another_is_replaced_whole() -> None:
    keys = [Secret("abc"), Secret("abcdef")]
    assert redact("abcdef") == "[key]"
    assert len(keys) == 2


def test_short_parts_are_words_and_stay() -> None:
    secret = Secret("api.example-of-a-long-part")
    assert len("example-of-a-long-part") >= MIN_PART
    assert redact(f"api {secret.reveal()} example-of-a-long-part") == "api [key] [key]"


@given(st.text(st.characters(), max_size=400))
def test_cleaned_text_is_printable_and_short(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.isprintable()
    assert len(cleaned) <= LIMIT


@given(st.integers(0, LIMIT + 40))
def test_no_part_of_a_key_survives_the_cut(before: int) -> None:
    secret = Secret(KEY)
    assert KEY[:4] not in clean("y" * before + secret.reveal())


def test_describe() -> None:
    assert describe(ValueError("a\tb")) == "ValueError: a\\tb"
    assert describe(ValueError()) == "ValueError"
