r"""Server-sent events, without I/O: bytes in, the payloads of complete events out.

The part of https://html.spec.whatwg.org/multipage/server-sent-events.html that chat completions use: `data` fields,
joined by a line break where an event has several; comments and other fields are skipped. Lines end with LF or CRLF (the
specification's third form, a lone CR, is sent by no provider and would hold back the last byte of every read).
"""

from __future__ import annotations

MAX_EVENT_BYTES = 1 << 20
"""Bytes of one event: far above any chunk of text, and the most that a line without an end can make us keep."""


class EventTooLarge(ValueError):
    """One event is larger than the decoder's limit: the stream cannot be read any further."""


class SseDecoder:
    """Feed it bytes as they come; how they are cut makes no difference."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._tail = bytearray()  # the line that has no end yet
        self._data: list[bytes] = []  # data lines of the event that has no end yet
        self._data_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the events that these bytes complete. Raises `EventTooLarge`."""
        lines = data.split(b"\n")
        if len(lines) > 1 and self._tail:
            lines[0] = self._take_tail() + lines[0]
        rest = lines.pop()
        events: list[bytes] = []
        for line in lines:
            self._line(line, events)
        self._tail += rest  # a bytearray grows in place: a long line in small pieces stays linear
        self._check(len(self._tail))
        return events

    def end(self) -> list[bytes]:
        """The payload of a last event whose closing blank line is missing: some servers leave it out."""
        events: list[bytes] = []
        if self._tail:
            self._line(self._take_tail(), events)
        self._line(b"", events)
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        """One line without its LF. A blank line ends the event."""
        if line.endswith(b"\r"):
            line = line[:-1]
        if line.startswith(b"data:"):
            value = line[6:] if line.startswith(b"data: ") else line[5:]
            self._check(len(value))
            self._data.append(value)
            self._data_bytes += len(value)
        elif not line and self._data:
            events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
            self._data.clear()
            self._data_bytes = 0

    def _take_tail(self) -> bytes:
        line = bytes(self._tail)
        self._tail.clear()
        return line

    def _check(self, more: int) -> None:
        if self._data_bytes + more > self._max:
            raise EventTooLarge(f"one event of the stream is larger than {self._max} bytes")
