"""One client: a program of its own that knows callpool's public names and nothing else of it."""

from __future__ import annotations

import sys

import callpool
from callpool.tools.demo.news import Broken, Connected, Done, News, Piece, encode
from callpool.tools.demo.prompts import MAX_TOKENS, TEMPERATURE, prompt

RESULT_WAIT = 60.0
"""Seconds for the result once the stream has ended: the result is there by then."""


def main(number: int) -> int:
    """Connect, wait for a line on standard input, ask, and tell what comes. Returns the exit status."""
    try:
        with callpool.connect() as client:
            _tell(Connected())
            if not sys.stdin.readline():
                return 1  # the demo has ended before the word to begin
            handle = client.submit(
                provider="local",
                model="smollm2",
                messages=[{"role": "user", "content": prompt(number)}],
                stream=True,
                max_tokens=MAX_TOKENS,
                temperature=TEMPERATURE,
                seed=number,
            )
            for chunk in handle:
                _tell(Piece(str(chunk)))
            result = handle.result(RESULT_WAIT)
    except callpool.CallpoolError as error:
        _tell(Broken(f"{error.code}: {error.message}" + (f" ({error.hint})" if error.hint else "")))
        return 1
    _tell(
        Done(
            content=result["content"],
            tokens=result["usage"]["completion_tokens"],
            session_id=result["metadata"]["session"]["session_id"],
        )
    )
    return 0


def _tell(news: News) -> None:
    sys.stdout.buffer.write(encode(news))
    sys.stdout.buffer.flush()
