"""The pure parts of the fake provider: its reading of HTTP, and its limits, which take time as an argument."""

from __future__ import annotations

import pytest

from callpool.tools.testing.fake_answers import pieces
from callpool.tools.testing.fake_http import MAX_BODY, MAX_HEAD, Refusal, Request, RequestParser
from callpool.tools.testing.fake_limits import Limits, Refused

POST = b"POST /x?y HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nAuthorization:  bearer  k e y \r\n\r\nhello"
GET = b"GET / HTTP/1.1\r\nHost: h\r\nconnection: Close\r\n\r\n"


def test_requests_in_any_cut_are_the_same() -> None:
    whole = RequestParser().feed(POST + GET + POST)
    assert [(item.method, item.body, item.keep_alive) for item in whole if isinstance(item, Request)] == [
        ("POST", b"hello", True),
        ("GET", b"", False),
        ("POST", b"hello", True),
    ]
    assert isinstance(whole[0], Request)
    assert (whole[0].path, whole[0].key) == ("/x?y", "k e y")
    for step in (1, 2, 3, 7, 50):
        parser = RequestParser()
        data = POST + GET + POST
        parts = [data[start : start + step] for start in range(0, len(data), step)]
        assert [item for part in parts for item in parser.feed(part)] == whole


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD, 431),
    ],
)
def test_what_is_no_request_is_refused_once(sent: bytes, status: int) -> None:
    parser = RequestParser()
    [refusal] = parser.feed(sent + GET)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status
    assert parser.feed(GET) == []


def test_an_unfinished_head_is_no_refusal_yet() -> None:
    parser = RequestParser()
    assert parser.feed(b"GET / HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD - 100)) == []
    [found] = parser.feed(b"\r\n\r\n")
    assert isinstance(found, Request)


def test_concurrency_counts_what_is_open() -> None:
    limits = Limits(concurrency=2)
    assert limits.admit("k", 1, 0.0) is None
    assert limits.admit("k", 1, 0.0) is None
    assert limits.admit("k", 1, 0.0) == Refused("concurrency", 2, 2, 1)
    assert limits.admit("other", 1, 0.0) is None
    limits.release("k")
    assert limits.admit("k", 1, 0.0) is None
    assert limits.admit("k", 1, 1e6) == Refused("concurrency", 2, 2, 1), "time alone frees nothing"


def test_rpm_slides() -> None:
    limits = Limits(rpm=2)
    assert limits.admit("k", 1, 100.0) is None
    assert limits.admit("k", 1, 130.5) is None
    assert limits.admit("k", 1, 131.0) == Refused("rpm", 2, 2, 29)
    assert limits.admit("other", 1, 131.0) is None
    assert limits.admit("k", 1, 159.9) == Refused("rpm", 2, 2, 1), "a refused request is not counted"
    assert limits.admit("k", 1, 160.0) is None
    assert limits.admit("k", 1, 160.0) == Refused("rpm", 2, 2, 31)
    for _ in range(3):
        limits.release("k")
    assert limits.admit("k", 1, 160.0) == Refused("rpm", 2, 2, 31), "an end frees nothing"


def test_tpm_charges_in_advance_and_slides() -> None:
    limits = Limits(tpm=100)
    assert limits.admit("k", 40, 0.0) is None
    assert limits.admit("k", 60, 10.0) is None
    assert limits.admit("k", 1, 20.0) == Refused("tpm", 100, 100, 40), "when the first has left the window"
    assert limits.admit("k", 41, 20.0) == Refused("tpm", 100, 100, 50), "the first is not enough"
    assert limits.admit("k", 101, 20.0) == Refused("tpm", 100, 100, 50), "it never fits; the wait is the whole window's"
    assert limits.admit("k", 40, 60.0) is None
    assert limits.admit("k", 101, 500.0) == Refused("tpm", 100, 0, 1)


def test_tpd_is_a_window_of_a_day_beside_that_of_the_minute() -> None:
    limits = Limits(tpm=60, tpd=100)
    assert limits.admit("k", 60, 0.0) is None
    assert limits.admit("k", 1, 10.0) == Refused("tpm", 60, 60, 50)
    assert limits.admit("k", 40, 60.0) is None
    assert limits.admit("k", 1, 3_600.0) == Refused("tpd", 100, 100, 86_400 - 3_600)
    assert limits.admit("k", 1, 7_200.0) == Refused("tpd", 100, 100, 86_400 - 7_200), "a refused request is not charged"
    assert limits.admit("k", 60, 86_400.0) is None


def test_a_limit_of_nothing_refuses_all() -> None:
    assert Limits(concurrency=0).admit("k", 1, 0.0) == Refused("concurrency", 0, 0, 1)
    assert Limits(rpm=0).admit("k", 1, 7.0) == Refused("rpm", 0, 0, 60)
    with pytest.raises(ValueError, match="tpm is -1"):
        Limits(tpm=-1)


def test_pieces_join_to_the_text() -> None:
    for text in ("", "a", "abcdefg", "héllo wörld 你好"):
        for count in (1, 2, 5, 100):
            parts = pieces(text, count)
            assert "".join(parts) == text
            assert all(parts)
            assert len(parts) == min(count, len(text))
