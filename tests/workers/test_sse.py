"""Server-sent events: what is decoded does not depend on how the bytes were cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callpool.workers.providers.sse import EventTooLarge, SseDecoder


def decode(*pieces: bytes, max_event_bytes: int = 1 << 20) -> list[bytes]:
    decoder = SseDecoder(max_event_bytes)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.end()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  two blanks\n\n", [b" two blanks"]),
        (b"data: first\ndata: second\n\n", [b"first\nsecond"]),
        (b"data:\n\n", [b""]),
        (b": keep-alive\n\n: again\ndata: a\n\n", [b"a"]),
        (b"event: message\nid: 7\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"database: no field of ours\n\n", []),
        (b"\n\n\n", []),
        (b"", []),
        (b"data: no blank line at the end\n", [b"no blank line at the end"]),
        (b"data: no line break at the end", [b"no line break at the end"]),
    ],
)
def test_fields_and_line_ends(stream: bytes, events: list[bytes]) -> None:
    assert decode(stream) == events


LINES = st.one_of(
    st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20).map(lambda text: "data: " + text),
    st.sampled_from(["", "", ": comment", "event: x", "data", "data:"]),
)


@given(st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n"])), max_size=20), st.data())
def test_any_cut_gives_the_same_events(lines: list[tuple[str, str]], data: st.DataObject) -> None:
    stream = "".join(line + end for line, end in lines).encode()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=30).map(sorted))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*pieces) == decode(stream)


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers()), max_size=8), st.integers(1, 7))
def test_json_survives(events: list[dict[str, object]], width: int) -> None:
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    pieces = [stream[at : at + width] for at in range(0, len(stream), width)]
    assert [json.loads(event) for event in decode(*pieces)] == events


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: " + b"x" * 101 + b"\n\n"],
        [b"x" * 60, b"x" * 60],  # a line without an end
        [b"data: xxxxxxxx\n"] * 20,  # an event without an end
        [b"data: " + b"x" * 50 + b"\n", b"data: " + b"x" * 60],
    ],
)
def test_an_event_over_the_limit_is_refused(pieces: list[bytes]) -> None:
    with pytest.raises(EventTooLarge, match="100 bytes"):
        decode(*pieces, max_event_bytes=100)


def test_many_events_in_one_piece_are_within_the_limit() -> None:
    assert len(decode(b"data: 0123456789\n\n" * 1000, max_event_bytes=100)) == 1000
