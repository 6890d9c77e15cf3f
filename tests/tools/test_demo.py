"""The demo: its streams, its screens, its checks, and the whole of it with fakes in place of callpool."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from callpool.tools.demo import stage as stage_module
from callpool.tools.demo.checks import DemoFailed, check_answers, check_sessions
from callpool.tools.demo.lines import LineScreen
from callpool.tools.demo.news import Broken, Connected, Done, News, Piece, decode, encode
from callpool.tools.demo.prompts import LAST_PROMPT, PROMPTS, prompt
from callpool.tools.demo.rows import RowScreen
from callpool.tools.demo.screen import choose
from callpool.tools.demo.stage import Seat, Stage, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAKE = str(Path(__file__).with_name("fake_demo.py"))
HANG = 30.0
"""Seconds after which a wait counts as a hang."""

Script = dict[str, list[list[Any]]]


# The stage: many clients, one stream.


class Recorder:
    """A screen that writes down what it was told."""

    def __init__(self) -> None:
        self.moves: list[tuple[int, State]] = []
        self.pieces: list[tuple[int, str]] = []

    def piece(self, seat: Seat, text: str) -> None:
        self.pieces.append((seat.number, text))

    def moved(self, seat: Seat) -> None:
        self.moves.append((seat.number, seat.state))


def _command(tmp_path: Path, script: Script) -> Callable[[int], list[str]]:
    path = tmp_path / "script.json"
    path.write_text(json.dumps(script))
    return lambda number: [sys.executable, "-I", FAKE, "client", str(path), str(number)]


def _stage(tmp_path: Path, script: Script, count: int, **changes: Any) -> Stage:
    seats = [Seat(number, f"prompt {number}") for number in range(1, count + 1)]
    fields = {"environment": dict(os.environ), "screen": Recorder(), **changes}
    return Stage(seats, _command(tmp_path, script), **fields)


def _run(stage: Stage) -> Recorder:
    async def bounded() -> None:
        async with asyncio.timeout(HANG):
            await stage.run()

    asyncio.run(bounded())
    assert isinstance(stage.screen, Recorder)
    return stage.screen


@contextmanager
def _locked(path: Path) -> Iterator[Callable[[], None]]:
    """A lock that clients wait for; the block gets what opens it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)


ANSWER: list[list[Any]] = [["connect"], ["wait"], ["piece", "one "], ["piece", "two"], ["done", "one two", 2]]


def test_all_answers_arrive_whole_and_apart(tmp_path: Path) -> None:
    stage = _stage(tmp_path, {"*": ANSWER, "2": [*ANSWER[:2], ["piece", "other"], ["done", "other", 1]]}, 3)
    _run(stage)
    assert [(seat.state, seat.text, seat.content, seat.tokens) for seat in stage.seats] == [
        (State.DONE, "one two", "one two", 2),
        (State.DONE, "other", "other", 1),
        (State.DONE, "one two", "one two", 2),
    ]
    assert [seat.session_id for seat in stage.seats] == ["session-1", "session-2", "session-3"]


def test_nobody_asks_before_everybody_has_connected(tmp_path: Path) -> None:
    with _locked(tmp_path / "gate") as open_gate:

        class Gatekeeper(Recorder):
            def moved(self, seat: Seat) -> None:
                super().moved(seat)
                if {(1, State.CONNECTED), (2, State.CONNECTED)} <= set(self.moves):
                    open_gate()

        late = [["lock", str(tmp_path / "gate")], *ANSWER]
        screen = _run(_stage(tmp_path, {"*": ANSWER, "3": late}, 3, screen=Gatekeeper()))
    assert [state for _, state in screen.moves[:6]] == [State.CONNECTED] * 3 + [State.WAITING] * 3


def test_midway_is_when_every_answer_grows_and_the_peak_counts_them(tmp_path: Path) -> None:
    with _locked(tmp_path / "gate") as open_gate:
        seen: list[list[State]] = []

        async def midway() -> None:
            seen.append([seat.state for seat in stage.seats])
            open_gate()

        held = [*ANSWER[:3], ["lock", str(tmp_path / "gate")], *ANSWER[3:]]
        stage = _stage(tmp_path, {"*": held}, 4, midway=midway)
        _run(stage)
    assert seen == [[State.ANSWERING] * 4]
    assert stage.peak == 4


def test_one_after_the_other_is_a_peak_of_one(tmp_path: Path) -> None:
    with _locked(tmp_path / "gate") as open_gate:

        async def midway() -> None:
            open_gate()

        late = [["connect"], ["wait"], ["lock", str(tmp_path / "gate")], *ANSWER[2:]]
        stage = _stage(tmp_path, {"1": ANSWER, "2": late}, 2, midway=midway)
        _run(stage)
    assert stage.peak == 1


@pytest.mark.parametrize(
    ("acts", "words"),
    [
        ([["warn", "no such module"], ["exit", 3]], "status 3 and no answer: no such module"),
        ([["connect"], ["wait"], ["piece", "one"], ["exit", 0]], "status 0 and no answer"),
        ([["connect"], ["wait"], ["broken", "queue_full: later"], ["exit", 1]], "queue_full: later"),
        ([["connect"], ["print", "Traceback"], ["hang"]], "something strange"),
        ([["connect"], ["print", "x" * 70_000], ["hang"]], "something strange"),
    ],
)
def test_a_client_that_fails_costs_its_own_answer_only(tmp_path: Path, acts: list[list[Any]], words: str) -> None:
    stage = _stage(tmp_path, {"*": ANSWER, "2": acts}, 3)
    _run(stage)
    assert [seat.state for seat in stage.seats] == [State.DONE, State.BROKEN, State.DONE]
    assert words in stage.seats[1].error


def test_an_error_in_the_middle_comes_out_as_itself_and_ends_the_clients(tmp_path: Path) -> None:
    async def midway() -> None:
        raise DemoFailed("no status")

    stage = _stage(tmp_path, {"*": [*ANSWER[:2], ["piece", "PID"], ["hang"]]}, 2, midway=midway)
    with pytest.raises(DemoFailed, match="no status"):
        _run(stage)
    assert [seat for seat in stage.seats if psutil.pid_exists(int(seat.text))] == []


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes that hang are deaf to SIGTERM: do not wait long for them."""
    monkeypatch.setattr(stage_module, "END_GRACE", 0.2)


def test_cancelling_leaves_no_client(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def midway() -> None:
        begun.set()

    stage = _stage(tmp_path, {"*": [*ANSWER[:2], ["piece", "PID"], ["hang"]]}, 3, midway=midway)

    async def cancel() -> None:
        task = asyncio.create_task(stage.run())
        async with asyncio.timeout(HANG):
            await begun.wait()
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(cancel())
    assert len(stage.seats) == 3
    assert [seat for seat in stage.seats if psutil.pid_exists(int(seat.text))] == []


@pytest.mark.parametrize("news", [Connected(), Piece("ä\n"), Done(content="x", tokens=1, session_id="s"), Broken("no")])
def test_news_is_one_line_and_survives(news: News) -> None:
    line = encode(news)
    assert line.count(b"\n") == 1
    assert decode(line) == news


# The screens.


def _seats(*texts: str) -> list[Seat]:
    return [Seat(number, f"prompt {number}", State.ANSWERING, text) for number, text in enumerate(texts, 1)]


def _lines(pieces: list[str], stream: io.TextIOBase | None = None) -> str:
    out = stream or io.StringIO()
    screen = LineScreen(out)  # type: ignore[arg-type]
    (seat,) = _seats("")
    with screen.showing([seat]):
        for piece in pieces:
            screen.piece(seat, piece)
        seat.state, seat.tokens, seat.seconds = State.DONE, 9, 1.25
        screen.moved(seat)
    if isinstance(out, io.StringIO):
        return out.getvalue()
    assert isinstance(out, io.TextIOWrapper)
    out.seek(0)
    return out.read()


def test_lines_are_whole_sentences_with_their_client_before_them() -> None:
    assert _lines(["The sky ", "is blue. It", " is! ", "1. Bring", " rope\n2. Go"]) == (
        "client 1 │ asks: prompt 1\n"
        "client 1 │ The sky is blue.\n"
        "client 1 │ It is!\n"
        "client 1 │ 1. Bring rope\n"
        "client 1 │ 2. Go\n"
        "client 1 │ [done: 9 tokens, 1.2 s]\n"
    )


def test_a_sentence_is_printed_when_it_ends_and_not_later() -> None:
    out = io.StringIO()
    screen = LineScreen(out)
    one, two = _seats("", "")
    with screen.showing([one, two]):
        before = out.tell()
        screen.piece(one, "First. Sec")
        screen.piece(two, "Other")
        assert out.getvalue()[before:] == "client 1 │ First.\n"


def test_lines_stay_within_80_columns_and_long_sentences_do_not_wait_for_ever() -> None:
    text = _lines(["word " * 60, "x" * 300])
    assert max(len(line) for line in text.splitlines()) <= 80
    out = io.StringIO()
    screen = LineScreen(out)
    (seat,) = _seats("")
    with screen.showing([seat]):
        screen.piece(seat, "word " * 60)
        assert out.getvalue().count("word") > 30


def test_a_stream_that_is_ascii_alone_gets_ascii() -> None:
    text = _lines(["Café. "], io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert "client 1 | Caf?.\n" in text


def test_a_failed_client_says_why() -> None:
    out = io.StringIO()
    screen = LineScreen(out)
    (seat,) = _seats("")
    with screen.showing([seat]):
        seat.state, seat.error = State.BROKEN, "queue_full: later"
        screen.moved(seat)
    assert out.getvalue().endswith("client 1 │ [failed: queue_full: later]\n")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_eight_growing_answers_fit_on_a_small_terminal(terminal: Terminal) -> None:
    screen = RowScreen(terminal)
    table = screen.table(_seats(*["word " * 60] * 8), screen.lines_each(8))
    assert len(screen.console.render_lines(table)) <= 23


def test_a_row_shows_the_end_of_a_growing_answer(terminal: Terminal) -> None:
    screen = RowScreen(terminal)
    shown = screen.console.render_lines(screen.table(_seats("begin " + "word " * 60 + "newest"), 2))
    text = "".join(segment.text for line in shown for segment in line)
    assert "newest" in text
    assert "begin" not in text


def test_at_the_end_every_answer_stands_there_whole(terminal: Terminal) -> None:
    screen = RowScreen(terminal)
    seats = _seats(*[f"begin{number} " + "word " * 60 + f"end{number}" for number in range(8)])
    with screen.showing(seats):
        screen.say("between")
    shown = terminal.getvalue()
    last = shown[shown.rindex("begin0") :]
    assert [f"end{number}" in last for number in range(8)] == [True] * 8
    assert "between" in shown


@pytest.mark.parametrize("make", [LineScreen, RowScreen])
def test_what_a_model_says_cannot_steer_the_terminal(terminal: Terminal, make: Callable[[Any], Any]) -> None:
    screen = make(terminal)
    (seat,) = _seats("a\x1b]0;owned\x07b\x9b2J")
    with screen.showing([seat]):
        screen.piece(seat, seat.text)
        seat.state = State.DONE
        screen.moved(seat)
    shown = terminal.getvalue()
    assert "a ]0;owned b 2J" in shown
    assert "\x1b]0;" not in shown


def test_rows_are_for_terminals_with_colour() -> None:
    able = {"TERM": "xterm"}
    assert isinstance(choose(Terminal(), able), RowScreen)
    assert isinstance(choose(io.StringIO(), able), LineScreen)
    assert isinstance(choose(Terminal(), {**able, "NO_COLOR": "1"}), LineScreen)
    assert isinstance(choose(Terminal(), {"TERM": "dumb"}), LineScreen)


# The checks.


def _done(**changes: Any) -> list[Seat]:
    first = Seat(1, "p", State.DONE, text="a", content="a", tokens=1, session_id="s1")
    fields = {"state": State.DONE, "text": "b", "content": "b", "tokens": 1, "session_id": "s2", **changes}
    return [first, Seat(2, "p", **fields)]


def test_good_answers_pass() -> None:
    check_answers(_done())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": State.BROKEN, "error": "because"}, "client 2 got no answer: because"),
        ({"text": " \n", "content": " \n"}, "client 2 got an empty answer"),
        ({"tokens": 0}, "client 2 got an empty answer"),
        ({"text": "other"}, "another text"),
        ({"session_id": "s1"}, "same session"),
    ],
)
def test_bad_answers_do_not(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DemoFailed, match=words):
        check_answers(_done(**changes))


@pytest.mark.parametrize(("completed", "active"), [(7, 0), (8, 1), (None, 0)])
def test_the_supervisors_count_must_agree(completed: int | None, active: int) -> None:
    check_sessions({"total_sessions_completed": 8, "active_sessions": 0}, expected=8)
    with pytest.raises(DemoFailed, match="the supervisor counts"):
        check_sessions({"total_sessions_completed": completed, "active_sessions": active}, expected=8)


def test_each_client_has_a_prompt_of_its_own() -> None:
    prompts = [prompt(number) for number in range(1, 10)]
    assert prompts == [*PROMPTS, LAST_PROMPT]
    assert len(set(prompts)) == 9


# All of it, with a fake command line and fake clients.

MAIN = """
import sys
from callpool.tools.demo.story import main
fake, script = sys.argv[1:]
program = [sys.executable, "-I", fake, "callpool"]
sys.exit(main(program, lambda number: [sys.executable, "-I", fake, "client", script, str(number)]))
"""


def _start_demo(tmp_path: Path, script: Script, fault: str = "") -> subprocess.Popen[str]:
    _command(tmp_path, script)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CALLPOOL_")}
    return subprocess.Popen(
        [sys.executable, "-Ic", MAIN, FAKE, str(tmp_path / "script.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "FAKE_DEMO": fault, "PYTHONIOENCODING": "utf-8"},
    )


def _places(text: str) -> Path:
    """The demo's directory, from what it printed."""
    (line,) = [line for line in text.splitlines() if "its files are in" in line]
    return Path(line.split()[-1]).parent


def _of(home: Path) -> list[int]:
    """Processes that carry this demo's directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CALLPOOL_HOME") == str(home / "home"):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def test_the_whole_demo_tells_six_steps_and_leaves_nothing(tmp_path: Path) -> None:
    with _start_demo(tmp_path, {"*": ANSWER}) as demo:
        out, err = demo.communicate(timeout=HANG)
    assert (demo.returncode, err) == (0, "")
    assert [line[:3] for line in out.splitlines() if line[1:3] == "/6"] == [f"{step}/6" for step in range(1, 7)]
    for number in range(1, 10):
        assert f"client {number} │ [done: 2 tokens" in out
    assert "8 answers" in out
    assert max(len(line) for line in out.splitlines() if "its files are in" not in line) <= 80
    assert "shutdown_duration                   0.250" in out
    assert "all 2 processes of the supervisor have ended" in out
    assert not _places(out).exists()
    assert _of(_places(out)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "script", "words"),
    [
        ("start", {"*": ANSWER}, "no model here"),
        ("count", {"*": ANSWER}, "the supervisor counts"),
        ("report", {"*": ANSWER}, "there is no drain report"),
        ("orphan", {"*": ANSWER}, "still running"),  # found because it was once seen below the supervisor
        ("stray", {"*": ANSWER}, "still running"),  # found by the directory in its environment
        ("", {"*": ANSWER, "5": [["connect"], ["wait"], ["exit", 7]]}, "client 5 got no answer"),
    ],
)
def test_whatever_goes_wrong_is_said_and_cleared_away(tmp_path: Path, fault: str, script: Script, words: str) -> None:
    with _start_demo(tmp_path, script, fault) as demo:
        out, err = demo.communicate(timeout=HANG)
    assert demo.returncode == 1
    assert words in err
    if fault != "start":
        assert "the last line of the log" in err
        assert not _places(out).exists()
        assert _of(_places(out)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    with _start_demo(tmp_path, {"*": [*ANSWER[:2], ["piece", "Growing. "], ["pause"]]}) as demo:
        assert demo.stdout is not None
        seen = ""
        while "Growing" not in seen:
            line = demo.stdout.readline()
            assert line, "the demo ended by itself"
            seen += line
        demo.send_signal(number)
        _, err = demo.communicate(timeout=HANG)
    assert demo.returncode == 130
    assert "interrupted" in err
    assert "killed" not in err
    assert not _places(seen).exists()
    assert _of(_places(seen)) == []
