"""Faults of the way there and back: silence, drops, cuts, and answers that are too large or are not HTTP.

`delay` passes before every one of them. None of them ends by a clock of its own: one that is silent or drips goes on
until the client leaves or the fake stops, so that a test never waits for the fake.
"""

from __future__ import annotations

import asyncio
import zlib
from math import ceil

import msgspec

from callpool.tools.testing import fake_answers, fake_http
from callpool.tools.testing.fake_exchange import JSON, PIECE, Exchange
from callpool.tools.testing.fake_faults_answers import Produce

MIB = 1_048_576
MARK = b"<huge content>"
"""Stands in an answer where more text goes than one wants to have in memory."""


async def silence(exchange: Exchange) -> None:
    """No byte."""
    await exchange.forever()


async def silent_stream(exchange: Exchange) -> None:
    """The head, and no byte of the body."""
    await exchange.open_chunked()
    await exchange.forever()


async def header_drip(exchange: Exchange) -> None:
    """A header that never ends, one byte at a time."""
    await exchange.send(b"HTTP/1.1 200 OK\r\nX-Drip: ", status=200)
    while True:
        await asyncio.sleep(exchange.drip_interval())
        await exchange.send(b"a")


async def body_drip(exchange: Exchange) -> None:
    """The right answer, one byte at a time: it does end, after as many intervals as it has bytes."""
    body = exchange.body()
    await exchange.send(exchange.head(200, None, ("Content-Length", str(len(body)))), status=200)
    for index in range(len(body) - 1):
        await asyncio.sleep(exchange.drip_interval())
        await exchange.send(body[index : index + 1])
    await asyncio.sleep(exchange.drip_interval())
    await exchange.last(body[-1:])


async def stream_drip_forever(exchange: Exchange) -> None:
    """A stream that is never silent for long and never done."""
    answer = exchange.honest()
    drop = fake_answers.delta_event(answer, {"content": "."}) if exchange.stream else b" "
    await exchange.open_chunked()
    while True:
        await exchange.chunks(drop)
        await asyncio.sleep(exchange.drip_interval())


async def comment_drip(exchange: Exchange) -> None:
    """A stream that only keeps its connection alive."""
    await exchange.open_chunked()
    while True:
        await exchange.chunks(b": keep-alive\n\n" if exchange.stream else b" ")
        await asyncio.sleep(exchange.drip_interval())


async def empty_drip(exchange: Exchange) -> None:
    """A stream of events that bring nothing."""
    told = fake_answers.events(exchange.honest())
    await exchange.open_chunked()
    while True:
        await exchange.chunks(told.role if exchange.stream else b" ")
        await asyncio.sleep(exchange.drip_interval())


async def stall(exchange: Exchange) -> None:
    """An answer that begins as it should and is not heard of again."""
    if exchange.stream:
        told = fake_answers.events(exchange.honest())
        await exchange.open_chunked(told.role, *told.deltas[:1])
    else:
        body = exchange.body()
        await exchange.send(exchange.head(200, None, ("Content-Length", str(len(body)))), status=200)
        await exchange.send(body[: len(body) // 2])
    await exchange.forever()


async def stalled_refusal(exchange: Exchange) -> None:
    """A refusal whose words do not come: the status and the headers say it."""
    status, body = exchange.dialect.error("limit_rpm")
    head = exchange.head(status, JSON, ("Content-Length", str(len(body))), ("Retry-After", "7"))
    await exchange.send(head, status=status)
    await exchange.send(body[:10])
    await exchange.forever()


async def no_end(exchange: Exchange) -> None:
    """A stream with a whole answer that is not told to be over; nothing of the kind can happen to a plain one."""
    if not exchange.stream:
        await exchange.tell(exchange.honest())
        return
    told = fake_answers.events(exchange.honest())
    await exchange.deltas(told)
    await exchange.chunks(*told.finish[:1])
    await exchange.forever()


async def close_before_headers(exchange: Exchange) -> None:
    """The connection is closed instead of an answer."""
    await exchange.close()


async def reset(exchange: Exchange) -> None:
    """The connection is reset instead of an answer."""
    await exchange.reset()


async def reset_mid_body(exchange: Exchange) -> None:
    """The connection is reset in the middle of an answer of known length."""
    await _half_a_body(exchange)
    await exchange.reset()


async def short_body(exchange: Exchange) -> None:
    """The connection is closed in order before the announced length is there."""
    await _half_a_body(exchange)
    await exchange.close()


async def _half_a_body(exchange: Exchange) -> None:
    body = exchange.body()
    head = exchange.head(200, None, ("Content-Length", str(len(body))))
    await exchange.send(head + body[: len(body) // 2], status=200)


async def garbage(exchange: Exchange) -> None:
    """What a TLS server says to somebody who does not speak TLS."""
    await exchange.send(b"\x15\x03\x01\x00\x02\x02\x46" * 3 + b"\r\n\r\n")
    await exchange.close()


async def cut_stream(exchange: Exchange) -> None:
    """A chunked body that stops inside a chunk, after the first text."""
    if exchange.stream:
        told = fake_answers.events(exchange.honest())
        await exchange.open_chunked(told.role, *told.deltas[:1])
        torn = fake_http.chunk(told.finish[0])
    else:
        await exchange.open_chunked()
        torn = fake_http.chunk(exchange.body())
    await exchange.send(torn[: len(torn) // 2])
    await exchange.close()


async def invalid_chunk(exchange: Exchange) -> None:
    """A chunk whose size is no number."""
    body = exchange.body()
    await exchange.open_chunked(body[: len(body) // 2])
    await exchange.send(b"zz\r\n" + body[len(body) // 2 :] + b"\r\n")
    await exchange.close()


async def wrong_length(exchange: Exchange) -> None:
    """The announced length is half of what comes; the rest lies in the open connection, before the next answer."""
    body = exchange.body()
    await exchange.last(exchange.head(200, None, ("Content-Length", str(len(body) // 2))) + body, status=200)


async def duplicate_length(exchange: Exchange) -> None:
    """Two Content-Length headers that contradict each other."""
    body = exchange.body()
    lengths = [("Content-Length", str(length)) for length in (len(body), len(body) // 2)]
    await exchange.last(exchange.head(200, None, *lengths) + body, status=200)


async def huge_header(exchange: Exchange) -> None:
    """A right answer behind one very long header."""
    body = exchange.body()
    size = exchange.options.size or MIB
    headers = [("X-Huge", "a" * size), ("Content-Length", str(len(body)))]
    await exchange.last(exchange.head(200, None, *headers) + body, status=200)


async def sse_huge_line(exchange: Exchange) -> None:
    """One event (plain: one answer) with very much text in it; otherwise right."""
    before, after = _around_content(exchange)
    await exchange.open_chunked(before)
    left = exchange.options.size or 100 * MIB
    while left:
        piece = min(left, PIECE)
        await exchange.send_much(fake_http.chunk(b"a" * piece))
        left -= piece
    await exchange.last_chunk(after)


async def sse_endless(exchange: Exchange) -> None:
    """Text as fast as the client reads it, without end: whole events (plain: one JSON string)."""
    if exchange.stream:
        drop = fake_answers.delta_event(exchange.honest(), {"content": "a" * 40})
        piece = fake_http.chunk(drop * (PIECE // len(drop)))
        await exchange.open_chunked()
    else:
        before, _ = _around_content(exchange)
        piece = fake_http.chunk(b"a" * PIECE)
        await exchange.open_chunked(before)
    while True:
        await exchange.send_much(piece)


def _around_content(exchange: Exchange) -> tuple[bytes, bytes]:
    answer = msgspec.structs.replace(exchange.honest(), content=MARK.decode(), chunks=1)
    whole = exchange.body(answer) if exchange.stream else fake_answers.completion(answer)
    before, _, after = whole.rpartition(MARK)
    return before, after


async def gzip_bomb(exchange: Exchange) -> None:
    """A right answer after very much white space (in a stream: a comment line), a thousandth of it on the wire.

    Each MiB is the same deflate block, ended by a full flush, so that it needs no history and is compressed only once.
    """
    blank = b" " * MIB
    opening, closing = (b":", b"\n\n" + exchange.body()) if exchange.stream else (b" ", exchange.body())
    block = _deflate(blank, zlib.Z_FULL_FLUSH)
    count = ceil((exchange.options.size or 1024 * MIB) / MIB)
    checksum = zlib.crc32(opening)
    start = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff" + _deflate(opening, zlib.Z_FULL_FLUSH)
    await exchange.open_chunked(start, headers=[("Content-Encoding", "gzip")])
    for _ in range(count):
        checksum = zlib.crc32(blank, checksum)
        await exchange.send_much(fake_http.chunk(block))
    checksum = zlib.crc32(closing, checksum)
    total = (len(opening) + count * MIB + len(closing)) & 0xFFFFFFFF
    trailer = checksum.to_bytes(4, "little") + total.to_bytes(4, "little")
    await exchange.last_chunk(_deflate(closing, zlib.Z_FINISH) + trailer)


def _deflate(data: bytes, flush: int) -> bytes:
    raw = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return raw.compress(data) + raw.flush(flush)


WIRE_FAULTS: dict[str, tuple[str, Produce]] = {
    "silence": ("reads the request and never answers", silence),
    "silent_stream": ("the head of a 200, then nothing", silent_stream),
    "header_drip": ("one byte of an endless header per `chunk_delay` (default 1 s)", header_drip),
    "body_drip": ("a right answer, one byte of the body per `chunk_delay` (default 1 s)", body_drip),
    "stream_drip_forever": (
        "stream: one piece of text per `chunk_delay` (default 1 s), for ever; plain: one blank",
        stream_drip_forever,
    ),
    "comment_drip": ("stream: one comment per `chunk_delay`, for ever; plain: one blank", comment_drip),
    "empty_drip": ("stream: one event without text per `chunk_delay`, for ever; plain: one blank", empty_drip),
    "stall": ("stream: one piece of text, then nothing; plain: half of the body, then nothing", stall),
    "stalled_refusal": ("429 with Retry-After: 7, ten bytes of the body, then nothing", stalled_refusal),
    "no_end": ("stream: text and finish_reason, then nothing; plain: as always", no_end),
    "close_before_headers": ("closes instead of answering", close_before_headers),
    "reset": ("resets the connection (RST) instead of answering", reset),
    "reset_mid_body": ("resets the connection after half of the body", reset_mid_body),
    "short_body": ("closes after half of the announced Content-Length", short_body),
    "garbage": ("bytes that are not HTTP, then closes", garbage),
    "cut_stream": ("chunked, closes inside a chunk", cut_stream),
    "invalid_chunk": ("chunked, with a chunk size that is no number", invalid_chunk),
    "wrong_length": ("Content-Length is half of the body; the rest stays in the open connection", wrong_length),
    "duplicate_length": ("two Content-Length headers that differ", duplicate_length),
    "huge_header": ("a right answer with a header of `size` bytes (default 1 MiB)", huge_header),
    "sse_huge_line": ("stream: one line of `size` bytes (default 100 MiB); plain: one string", sse_huge_line),
    "sse_endless": ("stream: text as fast as it is read, for ever; plain: one endless string", sse_endless),
    "gzip_bomb": ("gzip that expands to `size` bytes (default 1 GiB) of blanks before a right answer", gzip_bomb),
}
"""Name → what it does, and how."""
