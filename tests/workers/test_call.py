"""The border of a call: deadline, cancellation, and every exception that a provider's code can come up with."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import pytest
import uvloop

from callpool.manager.errors import CallpoolError, ProviderError, ProviderRejected, RateLimited, RequestTimeout
from callpool.workers.call import run_call
from callpool.workers.providers.base import Answer, Call, Progress
from callpool.workers.providers.secret import Secret

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
HANG = 10.0
KEY = "sk-0123456789abcdef"


class Silent:
    """A progress that nobody listens to."""

    async def started(self) -> None: ...

    async def chunk(self, text: str, raw: dict[str, Any] | None, *, useful: bool = True) -> None: ...

    def counted(self, usage: dict[str, Any]) -> None: ...

    def whole(self) -> None: ...


class Doing:
    """A provider that does what it is told."""

    def __init__(self, act: Callable[[], Awaitable[Answer]]) -> None:
        self._act = act

    async def call(self, call: Call, progress: Progress) -> Answer:
        await progress.started()
        return await self._act()

    async def close(self) -> None: ...


def make_call(timeout: float = HANG) -> Call:
    return Call(request_id="req_1", attempt=1, provider="fake", model="m", stream=False, timeout=timeout, messages=[])


def run(act: Callable[[], Awaitable[Answer]], timeout: float = HANG) -> Answer:
    return asyncio.run(run_call(Doing(act), make_call(timeout), Silent()))


def raising(error: BaseException) -> Callable[[], Awaitable[Answer]]:
    async def act() -> NoReturn:
        raise error

    return act


async def forever() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def test_an_answer_passes() -> None:
    answer = Answer(content="hello")

    async def act() -> Answer:
        return answer

    assert run(act) is answer


def test_the_deadline_ends_the_call() -> None:
    ended = []

    async def act() -> Answer:
        try:
            return await forever()
        finally:
            ended.append(True)

    with pytest.raises(RequestTimeout) as caught:
        run(act, 0.01)
    assert caught.value.details == {"seconds": 0.01, "provider": "fake", "model": "m", "which": "total", "sent": True}
    assert ended == [True]


def test_what_a_provider_makes_of_the_deadline_does_not_hide_it() -> None:
    async def act() -> Answer:
        try:
            return await forever()
        except asyncio.CancelledError:
            raise RateLimited("something broke while it was cleaning up") from None

    with pytest.raises(RequestTimeout):
        run(act, 0.01)


def test_a_time_out_inside_the_provider_is_not_the_deadline() -> None:
    with pytest.raises(ProviderError, match="TimeoutError: inner") as caught:
        run(raising(TimeoutError("inner")))
    assert type(caught.value) is ProviderError


def test_our_own_errors_pass_with_their_figures() -> None:
    error = RateLimited("slow down", retry_after=3.0)
    with pytest.raises(RateLimited) as caught:
        run(raising(error))
    assert caught.value is error


def test_our_own_errors_come_without_the_librarys_exception_behind_them() -> None:
    async def act() -> Answer:
        try:
            return Answer(content=str(int(KEY)))  # quotes what it cannot read
        except ValueError as error:
            raise RateLimited("slow down") from error

    with pytest.raises(RateLimited) as caught:
        run(act)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert KEY not in "".join(traceback.format_exception(caught.value))


class TwoArguments(Exception):
    def __init__(self, first: str, second: object) -> None:
        super().__init__(f"{first}{second}")


class BadReduce(Exception):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("not picklable")


class BadText(Exception):
    def __str__(self) -> NoReturn:
        raise SystemExit(9)


class Unusual(BaseException):
    pass


class BadName(Exception):
    pass


BadName.__name__ = "Bad\x1b[31m" + "x" * 500


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no number"), "ValueError: no number"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (MemoryError(), "MemoryError"),
        (TwoArguments("a", "b"), "TwoArguments: ab"),
        (BadReduce("x"), "BadReduce: x"),
        (BadText(), "BadText (its text cannot be read)"),
        (SystemExit(4), "SystemExit: 4"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (Unusual("y"), "Unusual: y"),
        (BadName("z"), r"Bad\x1b[31mxxxx"),
        (ValueError("line\nbreak \x1b[2J \u202e"), r"ValueError: line\nbreak \x1b[2J \u202e"),
        (asyncio.CancelledError(), "CancelledError"),  # nobody cancelled: a future of the provider's own was
        (StopAsyncIteration(), "StopAsyncIteration"),
    ],
)
def test_foreign_exceptions_become_one_typed_error(error: BaseException, text: str) -> None:
    with pytest.raises(CallpoolError) as caught:
        run(raising(error))
    found = caught.value
    assert type(found) is ProviderError
    assert text in str(found)
    assert "Traceback" not in str(found)
    assert found.message.isprintable()
    assert found.retryable is False
    assert pickle.loads(pickle.dumps(found)).details == found.details  # noqa: S301  our own bytes


def test_long_texts_are_cut() -> None:
    with pytest.raises(ProviderError) as caught:
        run(raising(ValueError("x" * 100_000)))
    assert 300 < len(str(caught.value)) < 400


def test_no_key_in_the_message_and_nothing_chained() -> None:
    secret = Secret(KEY)
    with pytest.raises(ProviderError) as caught:
        run(raising(ValueError("y" * 290 + f"{{'Authorization': 'Bearer {secret.reveal()}'}}")))
    text = "".join(traceback.format_exception(caught.value))
    assert KEY not in text
    assert KEY[:8] not in text  # cut off in the middle it would still be half a key
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_what_is_no_answer_is_a_fault() -> None:
    async def act() -> Any:
        return {"content": "a dict"}

    with pytest.raises(ProviderError, match="returned a dict"):
        run(act)


async def _cancelled(act: Callable[[], Awaitable[Answer]]) -> asyncio.Task[Answer]:
    """A call that was started, cancelled, and has ended."""
    started = asyncio.Event()

    async def first() -> Answer:
        started.set()
        return await act()

    task = asyncio.ensure_future(run_call(Doing(first), make_call(), Silent()))
    await started.wait()
    task.cancel()
    await asyncio.wait([task], timeout=HANG)
    return task


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancel_passes_untouched(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(_cancelled(forever)).cancelled()


def test_a_cancel_that_the_provider_turned_into_an_error_is_still_a_cancel() -> None:
    async def act() -> Answer:
        try:
            return await forever()
        except asyncio.CancelledError:
            raise ProviderRejected("cleaning up failed") from None

    assert asyncio.run(_cancelled(act)).cancelled()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_cancel_that_meets_the_deadline_wins(loop: Callable[[], asyncio.AbstractEventLoop], *, turned: bool) -> None:
    """The deadline cancels the provider, and before it has cleaned up the caller cancels too."""

    async def main() -> bool:
        cleaning = asyncio.Event()

        async def act() -> Answer:
            try:
                return await forever()
            finally:
                cleaning.set()
                try:
                    await asyncio.shield(asyncio.sleep(0.01))
                except asyncio.CancelledError:
                    if turned:
                        raise ProviderRejected("cleaning up failed") from None
                    raise

        task = asyncio.ensure_future(run_call(Doing(act), make_call(0.01), Silent()))
        await cleaning.wait()
        task.cancel()
        await asyncio.wait([task], timeout=HANG)
        return task.cancelled()

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(main())


@pytest.mark.parametrize("timeout", [0.0, -5.0])
def test_a_deadline_in_the_past_ends_at_once(timeout: float) -> None:
    with pytest.raises(RequestTimeout):
        run(forever, timeout)


def test_the_next_call_in_the_same_task_is_not_affected() -> None:
    """A deadline that was reached leaves no cancellation behind in the task."""

    async def main() -> str:
        with pytest.raises(RequestTimeout):
            await run_call(Doing(forever), make_call(0.01), Silent())

        async def act() -> Answer:
            await asyncio.sleep(0)
            return Answer(content="next")

        return (await run_call(Doing(act), make_call(), Silent())).content

    assert asyncio.run(main()) == "next"
