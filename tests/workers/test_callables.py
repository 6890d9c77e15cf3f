"""A call and its outcome as bytes: what travels comes back as itself, what cannot is named, nothing fails in another way."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from callpool.manager.core.catalogue import MAX_PAYLOAD
from callpool.manager.errors import BadInput, FunctionFailed, NotSerializable, ProtocolError
from callpool.workers import callables, loop
from callpool.workers.callables import (
    Outcome,
    RemoteTraceback,
    decode_call,
    decode_outcome,
    encode_call,
    encode_outcome,
)

HANG = 30.0


@pytest.fixture(autouse=True)
def context_is_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`decode_call` changes this process as it would the lane's."""
    path, cwd = list(sys.path), Path.cwd()
    yield
    sys.path[:] = path
    os.chdir(cwd)


def _main_like(source: str) -> dict[str, Any]:
    """The names that a script's source defines: of a `__main__` that is not this process's."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(source), names)
    return names


def _travel(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Outcome:
    """There, run, and back, all in this process."""
    call = decode_call(encode_call(func, args, kwargs))
    try:
        outcome = Outcome(call.run())
    except BaseException as error:  # noqa: BLE001 - as in the lane's process
        outcome = Outcome(exception=error)
    return decode_outcome(encode_outcome(outcome, call.classes)[0])


def _raise(error: BaseException) -> None:
    raise error


class WantsTwo(Exception):
    """Its `__init__` does not take what `args` holds: it can be pickled and not unpickled."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")


class NoText(Exception):
    """Even its text fails."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class BecomesANumber(Exception):
    """Opened, it is no exception."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("3",)


@dataclass(frozen=True)
class Frozen(Exception):
    """Refuses assignments, also of `__cause__`."""


# What travels.


def test_a_closure_travels_with_its_arguments() -> None:
    factor = 3
    assert _travel(lambda value, *, more: value * factor + more, 5, more=1) == Outcome(16)


def test_a_function_of_a_script_takes_along_the_globals_that_it_names() -> None:
    names = _main_like("""
        import math
        FACTOR = 2
        def inner(value): return math.sqrt(value) * FACTOR
        def outer(values): return [inner(value) for value in values]
    """)
    payload = encode_call(names["outer"], [[4, 9]], {})
    names["FACTOR"] = 100  # what travelled is a copy
    assert decode_call(payload).run() == [4.0, 6.0]


def test_a_coroutine_is_run_to_its_end() -> None:
    async def double(value: int) -> int:
        await asyncio.sleep(0)
        return value * 2

    assert _travel(double, 4) == Outcome(8)
    assert _travel(lambda: double(5)) == Outcome(10)


def test_an_exception_of_a_script_comes_back_as_its_own_class() -> None:
    names = _main_like("""
        class Refused(ValueError):
            def __init__(self, *args): super().__init__(*args); self.figure = 7
        def refuse(): raise Refused("no", 3)
    """)
    found: Any = _travel(names["refuse"]).exception
    assert type(found) is names["Refused"]
    assert found.args == ("no", 3)
    assert found.figure == 7


def test_an_instance_of_a_local_class_comes_back_as_its_own_class() -> None:
    @dataclass
    class Point:
        x: int

    outcome = _travel(lambda point: [point, Point(point.x + 1)], Point(1))
    assert outcome.value == [Point(1), Point(2)]  # a dataclass equals only its own class's


def test_the_remote_traceback_is_the_cause() -> None:
    found = _travel(_raise, KeyError("lost")).exception
    assert type(found) is KeyError
    assert found.args == ("lost",)
    assert type(found.__cause__) is RemoteTraceback
    assert "in _raise" in str(found.__cause__)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("x"), Frozen()])
def test_exceptions_of_every_kind_come_back(error: BaseException) -> None:
    found = _travel(_raise, error).exception
    assert type(found) is type(error)
    assert found.args == error.args


def test_an_error_of_callpool_keeps_its_fault() -> None:
    error = BadInput("too long", param="name", limit=3)
    found = _travel(_raise, error).exception
    assert type(found) is BadInput
    assert found.fault == error.fault


def test_the_fault_for_the_core_names_the_exception() -> None:
    fault = encode_outcome(Outcome(exception=ValueError("x" * 1000)))[1]
    assert fault is not None
    assert fault.code == "function_failed"
    assert fault.message == "ValueError: " + "x" * 500
    assert encode_outcome(Outcome(1))[1] is None


# Where the function is opened.


def test_a_module_on_the_callers_path_is_found_before_the_function_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"only_there_{os.getpid()}"
    folder = tmp_path / "relative"
    folder.mkdir()
    (folder / f"{name}.py").write_text("class Lost(Exception): pass\ndef lose(): raise Lost('gone')\n")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", ["relative", *sys.path])
        payload = encode_call(__import__(name).lose, (), {})
    del sys.modules[name]
    monkeypatch.chdir("/")
    call = decode_call(payload, own_path=["/own"])
    assert sys.path[0] == str(folder)
    assert sys.path[-1] == "/own"
    assert Path.cwd() == tmp_path
    with pytest.raises(Exception, match="gone") as caught:
        call.run()
    assert type(caught.value) is sys.modules.pop(name).Lost


def test_a_module_written_a_moment_ago_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"just_written_{os.getpid()}"
    file = tmp_path / f"{name}.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    file.write_text("def work(): return 5\n")
    payload = encode_call(__import__(name).work, (), {})
    del sys.modules[name]
    source = file.rename(tmp_path / "elsewhere")
    importlib.invalidate_caches()
    assert importlib.util.find_spec(name) is None  # from here on Python knows the folder without it
    times = tmp_path.stat()
    source.rename(file)
    os.utime(tmp_path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as within one tick of the file system's clock
    assert decode_call(payload).run() == 5
    del sys.modules[name]


def test_the_empty_entry_is_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    payload = encode_call(len, [()], {})
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", ["", "/a/../b", *sys.path])
        payload = encode_call(len, [()], {})
    decode_call(payload)
    assert sys.path[:2] == [str(tmp_path), "/a/../b"]


def test_a_module_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"never_there_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text("def work(): pass\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        payload = encode_call(__import__(name).work, (), {})
    del sys.modules[name]
    (tmp_path / f"{name}.py").unlink()
    with pytest.raises(NotSerializable, match=f"No module named '{name}'") as caught:
        decode_call(payload)
    assert caught.value.param == "func"


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        payload = encode_call(len, [()], {})
        folder.rmdir()
        with pytest.raises(BadInput, match="no longer exists"):
            encode_call(len, [()], {})
    with pytest.raises(BadInput, match="gone' cannot be entered"):
        decode_call(payload)


def test_code_of_another_python_is_not_opened() -> None:
    envelope = msgspec.msgpack.decode(encode_call(len, [()], {}))
    payload = msgspec.msgpack.encode(["cpython-27", *envelope[1:]])
    with pytest.raises(BadInput, match=f"comes from cpython-27 and the pool runs {sys.implementation.cache_tag}"):
        decode_call(payload)


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgspec.msgpack.encode(["x"]), os.urandom(100) + b"\xc1"])
def test_what_is_no_call_or_outcome_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_call(payload)
    with pytest.raises(ProtocolError):
        decode_outcome(payload)


# What cannot travel.


def test_what_cannot_travel_is_named() -> None:
    generator = (each for each in "x")
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (lambda: generator, (), {}, "func \\(function\\)"),
        (len, ("fine", generator), {}, "argument 1 \\(generator\\)"),
        (len, (), {"option": [generator]}, "argument 'option' \\(list\\)"),
    ]
    for func, args, kwargs, what in calls:
        with pytest.raises(NotSerializable, match=f"{what} cannot travel") as caught:
            encode_call(func, args, kwargs)
        assert caught.value.param == "func"


def test_a_nest_too_deep_to_pickle_is_named() -> None:
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    with pytest.raises(NotSerializable, match="argument 0 .*RecursionError"):
        encode_call(len, [nest], {})
    while nest:  # freed step by step: the interpreter's own way down is as deep as the nest
        nest = nest[0]


def test_an_enumeration_of_a_script_is_refused_with_the_way_out() -> None:
    names = _main_like("""
        import enum
        class Colour(enum.Enum): RED = 1
    """)
    with pytest.raises(NotSerializable, match="argument 0 .*define it in a module"):
        encode_call(len, [names["Colour"].RED], {})


def test_the_limits_are_those_of_payloads_and_answers() -> None:
    assert callables.MAX_CALL == MAX_PAYLOAD
    assert callables.MAX_OUTCOME == loop.MAX_ANSWER


def test_a_call_over_the_limit_is_refused_before_it_fills_the_memory() -> None:
    written = 0

    class Chunk:
        def __reduce__(self) -> tuple[Any, ...]:
            nonlocal written
            written += 1
            return bytes, (b"x" * 100_000,)

    with pytest.raises(BadInput, match="the limit is 1000000") as caught:
        encode_call(len, [[Chunk() for _ in range(1000)]], {}, limit=1_000_000)
    assert caught.value.limit == 1_000_000
    assert caught.value.size > 1_000_000
    assert written < 20


def test_the_limit_counts_the_envelope_too() -> None:
    size = len(encode_call(len, [b"x" * 1000], {}))
    encode_call(len, [b"x" * 1000], {}, limit=size)
    with pytest.raises(BadInput, match=f"at least {size} bytes"):
        encode_call(len, [b"x" * 1000], {}, limit=size - 1)


def test_a_result_that_cannot_travel_is_told() -> None:
    body, fault = encode_outcome(Outcome(each for each in "x"))
    found = decode_outcome(body).exception
    assert type(found) is NotSerializable
    assert found.param == "result"
    assert "result (generator) cannot travel back" in found.message
    assert fault is not None
    assert fault.code == "function_failed"


def test_a_result_whose_own_code_exits_is_told() -> None:
    class Exits:
        def __reduce__(self) -> tuple[Any, ...]:
            raise SystemExit(3)

    found = decode_outcome(encode_outcome(Outcome(Exits()))[0]).exception
    assert type(found) is NotSerializable


def test_a_result_over_the_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callables, "MAX_OUTCOME", 1000)
    found = decode_outcome(encode_outcome(Outcome(b"x" * 1001))[0]).exception
    assert type(found) is BadInput
    assert (found.param, found.limit) == ("result", 1000)
    found = decode_outcome(encode_outcome(Outcome(exception=ValueError("x" * 1001)))[0]).exception
    assert type(found) is FunctionFailed
    assert found.exception == "ValueError"


def test_a_result_that_cannot_be_opened_is_told() -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return int, ("no number",)

    found = decode_outcome(encode_outcome(Outcome(Bad()))[0]).exception
    assert type(found) is NotSerializable
    assert "cannot be opened in this process: ValueError" in found.message


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError(each for each in "x"), "ValueError", "could not be serialized"),
        (WantsTwo(404, "not here"), "WantsTwo", "404: not here"),
        (WantsTwo(404, "not here"), "WantsTwo", "TypeError"),
        (BecomesANumber(), "BecomesANumber", "no exception (int)"),
    ],
)
def test_an_exception_that_cannot_travel_is_told_by_its_text(error: Exception, kind: str, text: str) -> None:
    try:
        raise error
    except Exception as raised:  # noqa: BLE001 - with a traceback
        body, _ = encode_outcome(Outcome(exception=raised))
    found = decode_outcome(body).exception
    assert type(found) is FunctionFailed
    assert found.fault.code == "function_failed"
    assert found.exception == kind
    assert text in found.message
    assert "test_an_exception_that_cannot_travel" in found.traceback


@pytest.mark.parametrize("error", [NoText(), ValueError("\udcff"), ValueError("x" * 1_000_000)])
def test_no_text_of_an_exception_is_too_odd(error: Exception) -> None:
    body, fault = encode_outcome(Outcome(exception=error))
    found = decode_outcome(body).exception
    assert type(found) is type(error)
    assert fault is not None
    assert len(fault.message) < 1000
    assert len(str(found.__cause__)) <= callables.MAX_TRACEBACK + 100


# What is kept.


def test_no_class_is_kept_alive_and_one_that_is_gone_is_told() -> None:
    names = _main_like("""
        class Answer: pass
        def work(): return Answer()
    """)
    call = decode_call(encode_call(names["work"], (), {}))
    body, fault = encode_outcome(Outcome(call.run()), call.classes)
    assert fault is None
    assert type(decode_outcome(body).value) is names["Answer"]
    names.clear()
    gc.collect()
    found = decode_outcome(body).exception
    assert type(found) is NotSerializable
    assert "no longer exists" in found.message


def test_the_module_itself_does_not_import_dill() -> None:
    code = "import sys, callpool.workers.callables; sys.exit('dill' in sys.modules)"
    subprocess.run([sys.executable, "-Ic", code], check=True, timeout=HANG)


def test_a_real_script_gets_its_own_classes_back(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from dataclasses import dataclass
        from callpool.workers.callables import decode_outcome, encode_call

        @dataclass
        class Item:
            price: int

        class TooDear(Exception):
            pass

        def check(item):
            if item.price > LIMIT:
                raise TooDear(item)

        LIMIT = 3
        payload = encode_call(check, [Item(4)], {})
        sys.stdout.buffer.write(len(payload).to_bytes(4) + payload)
        sys.stdout.buffer.flush()
        error = decode_outcome(sys.stdin.buffer.read()).exception
        assert type(error) is TooDear, repr(error)
        assert error.args == (Item(4),), error.args
        """)
    )
    process = subprocess.Popen([sys.executable, "-I", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        call = decode_call(process.stdout.read(int.from_bytes(process.stdout.read(4))))
        with pytest.raises(Exception, match="Item") as caught:
            call.run()
        process.stdin.write(encode_outcome(Outcome(exception=caught.value), call.classes)[0])
        process.stdin.close()
        assert process.wait(HANG) == 0
