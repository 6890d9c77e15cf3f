"""One call on the wire: what an answer, and every fault, is made with.

The rule that makes the log a witness: a call's end is written down just before its last bytes are handed to the
socket. A client that knows its answer, and starts the next call because of it, can therefore never be counted as
having both open.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from typing import NoReturn

from callpool.tools.testing import fake_answers, fake_http, fake_replies
from callpool.tools.testing.fake_answers import Answer
from callpool.tools.testing.fake_dialects import Dialect
from callpool.tools.testing.fake_history import History
from callpool.tools.testing.fake_records import CallRecord
from callpool.tools.testing.fake_replies import Reply
from callpool.tools.testing.fake_requests import ChatRequest, Options

JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"
HTML = "text/html; charset=utf-8"

PIECE = 65_536
"""Bytes handed over at once of an answer that is too large to be made whole."""


class Exchange:
    """One admitted call. A fault's function gets it and must end it by one of: `answer`, `last`, `close`, `reset`."""

    def __init__(
        self,
        chat: ChatRequest,
        options: Options,
        dialect: Dialect,
        record: CallRecord,
        history: History,
        writer: asyncio.StreamWriter,
        release: Callable[[], None],
        document: Callable[[Exchange], bytes] | None = None,
    ) -> None:
        """`document` makes the right answer where that is no completion: then nothing is streamed."""
        self.chat = chat
        self.options = options
        self.dialect = dialect
        self.keep_alive = True
        self.stream = bool(chat.stream) and document is None
        self.content_type = SSE if self.stream else JSON
        self._record = record
        self._history = history
        self._writer = writer
        self._release = release
        self._document = document

    @property
    def path(self) -> str:
        """Path of the request."""
        return self._record.path

    # What there is to say.

    def honest(self) -> Answer:
        """The right answer to this call, in the dialect's way."""
        said = fake_replies.reply(self.chat, self.options, self.dialect)
        return self.put(said, self.options.finish_reason or said.finish_reason)

    def put(self, said: Reply, finish_reason: str) -> Answer:
        """Something to say, as an answer in the dialect's way; its usage counts what is said."""
        chat, dialect = self.chat, self.dialect
        asked = chat.stream_options is not None and chat.stream_options.include_usage
        return Answer(
            id=f"chatcmpl-fake-{self._record.number}",
            model=chat.model,
            content=said.content,
            reasoning=said.reasoning,
            tool_calls=said.tool_calls,
            fragments=bool(chat.tool_stream) or not dialect.fragments_on_request,
            web_search=fake_replies.web_search(chat, dialect),
            finish_reason=finish_reason,
            usage=dialect.usage(fake_answers.estimate_tokens(chat.messages), said.tokens),
            usage_place=dialect.usage_place if asked or not dialect.usage_on_request else None,
            chunks=self.options.chunks,
        )

    def body(self, answer: Answer | None = None) -> bytes:
        """The whole body of an answer, in the form that the client asked for."""
        if not self.stream:
            return self.plain(answer)
        told = fake_answers.events(answer or self.honest())
        return b"".join([told.role, *told.deltas, *told.finish, told.done])

    def plain(self, answer: Answer | None = None) -> bytes:
        """The whole body of an answer as JSON. Where that is no completion it is the right one, whatever `answer` is."""
        if self._document is not None:
            return self._document(self)
        return fake_answers.completion(answer or self.honest())

    def head(self, status: int = 200, content_type: str | None = None, *more: tuple[str, str]) -> bytes:
        """A response head with the headers that every answer has, and `more` of them."""
        headers = [("Content-Type", content_type or self.content_type), ("x-request-id", f"fake-{self._record.number}")]
        return fake_http.response_head(status, [*headers, *more])

    # Ways to say it.

    async def answer(
        self, status: int, body: bytes, content_type: str = JSON, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """A whole response with its right length; the call ends."""
        head = self.head(status, content_type, ("Content-Length", str(len(body))), *headers)
        await self.last(head + body, status=status)

    async def tell(self, answer: Answer) -> None:
        """A whole good answer, plain or as a paced stream; the call ends."""
        if not self.stream:
            await self.answer(200, self.plain(answer))
            return
        told = fake_answers.events(answer)
        await self.deltas(told)
        await self.last_chunk(*told.finish, told.done)

    async def deltas(self, told: fake_answers.Events) -> None:
        """Head, role and all deltas of a stream, `chunk_delay` apart; no end."""
        await self.open_chunked(told.role, *told.deltas[:1])
        if not self.options.chunk_delay:
            await self.chunks(*told.deltas[1:])
            return
        for delta in told.deltas[1:]:
            await asyncio.sleep(self.options.chunk_delay)
            await self.chunks(delta)

    async def open_chunked(self, *data: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Head of a chunked 200, and its first chunks."""
        head = self.head(200, None, ("Transfer-Encoding", "chunked"), *headers)
        await self.send(head + b"".join(map(fake_http.chunk, data)), status=200)

    async def chunks(self, *data: bytes) -> None:
        """Chunks of a chunked body."""
        await self.send(b"".join(map(fake_http.chunk, data)))

    async def last_chunk(self, *data: bytes) -> None:
        """The last chunks and the end of a chunked body; the call ends."""
        await self.last(b"".join(map(fake_http.chunk, data)) + fake_http.LAST_CHUNK)

    async def send(self, data: bytes, *, status: int | None = None) -> None:
        """Bytes as they are, with flow control; `status` belongs to the first ones."""
        if self._record.first_byte is None:
            self._history.first_byte(self._record, status)
        self._write(data)
        await self._writer.drain()

    def _write(self, data: bytes) -> None:
        """Hand bytes to the socket. One that the client has let go of is an error of the connection, on every event loop."""
        if self._writer.transport.is_closing():
            raise ConnectionResetError("the client has left")
        self._writer.write(data)

    async def send_much(self, data: bytes) -> None:
        """`send` for loops without a pause: gives the loop its turn, so that a client's leaving is seen at once."""
        await self.send(data)
        await asyncio.sleep(0)

    async def last(self, data: bytes, *, status: int | None = None) -> None:
        """The call ends, then its last bytes go."""
        if self._record.first_byte is None:
            self._history.first_byte(self._record, status)
        self.end()
        self._write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """The call ends and the connection is closed in order, after what was sent."""
        self.end()
        self.keep_alive = False

    async def reset(self) -> None:
        """The call ends and the connection is reset (RST). What the kernel has not delivered by then is lost."""
        self.end()
        self.keep_alive = False
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def forever(self) -> NoReturn:
        """Do nothing until the client leaves or the fake stops."""
        while True:
            await asyncio.get_running_loop().create_future()  # which nobody completes

    def drip_interval(self) -> float:
        """Seconds between two drops."""
        return self.options.chunk_delay or 1.0

    # The end.

    def end(self) -> None:
        """Write down the end and give the call's place in the limits back."""
        fault = self._record.fault
        self._history.end(self._record, f"fault:{fault}" if fault else "answered")
        self._release()

    def abandon(self, *, stopping: bool) -> None:
        """The call was cut from outside, by its client or by `stop()`: the same, unless it had ended before."""
        if self._record.ended is not None:
            return
        if stopping:
            self._history.end(self._record, "stopped")
        else:
            self._history.client_gone(self._record)
        self._release()
