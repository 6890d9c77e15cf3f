"""The lifecycle file on a real file system: whole lines, exact counts, bounded sizes, and trouble that ends nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from callpool.manager import lifecycle_file as module
from callpool.manager.errors import UnsafePath
from callpool.manager.lifecycle_file import LOGGER, LifecycleFile
from tests.ground import wait_for

WALL = 1_795_255_200.25
"""2026-11-21T10:00:00.250000Z"""


def event(number: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "wall": WALL,
        "request_id": f"request-{number}",
        "session_id": None,
        "phase": "QUEUED",
        "provider": "kimi",
        "model": "kimi-k2",
        "client": "ann",
        "metadata": b'{"user":"ann"}',
        **fields,
    }


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.decode().split("\n")[:-1]]


def numbers(folder: Path) -> set[int]:
    return {int(line["request_id"].partition("-")[2]) for path in folder.iterdir() for line in lines(path)}


@pytest.fixture
def path(base_folder: Path) -> Path:
    return base_folder / "logs" / "lifecycle.jsonl"


Make = Callable[..., LifecycleFile]


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    """Lifecycle files that are closed, whatever becomes of the test."""
    made: list[LifecycleFile] = []

    def make(path: Path = path, **options: int) -> LifecycleFile:
        made.append(LifecycleFile(path, **options))
        return made[-1]

    yield make
    for file in made:
        file.close()
    left = logging.getLogger(LOGGER).handlers
    assert not [handler for handler in left if isinstance(handler, module._PrivateFile)]
    assert not [thread for thread in threading.enumerate() if thread.name == "callpool-lifecycle"]


@pytest.fixture
def ordinary() -> Iterator[list[logging.LogRecord]]:
    """What reaches the supervisor's own log; pytest's capture also gets what does not propagate."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    root, keep = logging.getLogger(), Keep()
    level = root.level
    root.addHandler(keep)
    root.setLevel(logging.INFO)
    yield records
    root.setLevel(level)
    root.removeHandler(keep)


def settled(file: LifecycleFile, count: int) -> None:
    wait_for("the events to be written or lost", lambda: file.written + file.lost == count)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds the writing thread at its next write, until it is set."""
    gate = threading.Event()
    write_out = module._PrivateFile.write_out

    def held(self: module._PrivateFile) -> None:
        assert gate.wait(30)
        write_out(self)

    monkeypatch.setattr(module._PrivateFile, "write_out", held)
    yield gate
    gate.set()


# Lines.


def test_a_line_has_the_time_and_the_fields_as_given(make: Make, path: Path) -> None:
    file = make()
    file.offer([event(1), event(2, metadata=None, session_id="s-2")])
    file.close()
    assert path.read_text().splitlines()[0] == (
        '{"at":"2026-11-21T10:00:00.250000Z","request_id":"request-1","session_id":null,"phase":"QUEUED",'
        '"provider":"kimi","model":"kimi-k2","client":"ann","metadata":{"user":"ann"}}'
    )
    assert lines(path)[1]["metadata"] is None
    assert lines(path)[1]["session_id"] == "s-2"
    assert (file.written, file.lost, file.dropped) == (2, 0, 0)


def test_metadata_is_sanitized_and_other_fields_cannot_break_the_line(make: Make, path: Path) -> None:
    file = make()
    model = "k2\n\u2028\u202e\x1b[31m\x85 \ud800 \U000e0041 é 漢 😀 \u00a0"
    secret = {"password": "hunter2", "note": "Bearer abcdef.ghi"}
    file.offer([event(model=model, metadata=json.dumps(secret).encode()), event(metadata=b"\xff")])
    file.close()
    raw = path.read_text(encoding="utf-8")
    assert len(raw.splitlines()) == 2
    assert raw.replace("\n", "").isprintable()
    assert "é 漢 😀" in raw
    first, second = lines(path)
    assert first["model"] == model
    assert first["metadata"] == {"password": "[redacted]", "note": "Bearer [redacted]"}
    assert second["metadata"] == {"unreadable": "1 bytes"}


def test_large_metadata_is_sanitized_too(make: Make, path: Path) -> None:
    file = make()
    file.offer([event(metadata=json.dumps({"token": "hunter2", "pad": "x" * 2 * module._CACHED_BYTES}).encode())] * 2)
    file.close()
    assert [line["metadata"]["token"] for line in lines(path)] == ["[redacted]"] * 2
    assert path.stat().st_size < 4_000


def test_nothing_else_gets_the_lines_nor_anything_else_into_the_file(
    make: Make, path: Path, ordinary: list[logging.LogRecord]
) -> None:
    first, second = make(), make(path.with_name("other.jsonl"))
    logging.getLogger(LOGGER).warning("a stranger's line")
    first.offer([event(1)])
    second.offer([event(2)])
    first.close()
    second.close()
    assert [line["request_id"] for line in lines(path)] == ["request-1"]
    assert [line["request_id"] for line in lines(path.with_name("other.jsonl"))] == ["request-2"]
    assert not ordinary


# Places.


def test_file_and_directories_are_private_whatever_the_umask(make: Make, base_folder: Path) -> None:
    path = base_folder / "a" / "b" / "lifecycle.jsonl"
    before = os.umask(0)
    try:
        file = make(path, max_bytes=300)
        file.offer([event(number) for number in range(5)])
        file.close()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path.parent.parent)} == {0o700}
    assert len(list(path.parent.iterdir())) > 1
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}


def test_a_file_that_others_can_read_is_refused_at_the_start(make: Make, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch()
    path.chmod(0o644)
    with pytest.raises(UnsafePath, match="0644"):
        make()
    path.unlink()
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(UnsafePath, match="link"):
        make()


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"backups": 0}, {"queue_limit": 0}])
def test_what_has_no_bound_is_refused(make: Make, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make(**options)


def test_a_new_start_appends_and_leaves_a_half_line_alone(make: Make, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    path.write_text('{"at":"now"}\n{"at":"th')
    file = make()
    file.offer([event(1)])
    file.close()
    assert path.read_text().startswith('{"at":"now"}\n{"at":"th\n{"at":"2026-')


# Bounds.


def test_sizes_stay_bounded_and_the_newest_lines_are_kept(make: Make, path: Path) -> None:
    file = make(max_bytes=2_000, backups=2)
    for start in range(0, 600, 20):
        # Several bytes a character: the bound is in bytes.
        file.offer([event(number, client="漢" * (number % 50)) for number in range(start, start + 20)])
    file.close()
    files = sorted(path.parent.iterdir())
    assert [each.name for each in files] == ["lifecycle.jsonl", "lifecycle.jsonl.1", "lifecycle.jsonl.2"]
    assert all(each.stat().st_size <= 2_000 for each in files)
    kept = [int(line["request_id"].partition("-")[2]) for each in reversed(files) for line in lines(each)]
    assert kept == list(range(kept[0], 600))
    assert file.written == 600


def test_a_line_longer_than_a_file_gets_one_of_its_own(make: Make, path: Path) -> None:
    file = make(max_bytes=100, backups=5)
    file.offer([event(number) for number in range(3)])
    file.close()
    assert [len(lines(each)) for each in sorted(path.parent.iterdir())] == [1, 1, 1]
    assert file.written == 3


def test_a_full_queue_drops_and_counts(make: Make, path: Path, gate: threading.Event) -> None:
    file = make(queue_limit=10)
    file.offer([event(0)])  # in the thread's hands or still queued: it counts either way
    file.offer([event(number) for number in range(1, 8)])
    file.offer([event(number) for number in range(8, 13)])
    assert file.dropped == 3
    file.offer([event(13)])
    assert file.dropped == 4
    gate.set()
    settled(file, 10)
    file.offer([event(14)])
    settled(file, 11)
    file.close()
    assert numbers(path.parent) == {*range(10), 14}
    assert (file.written, file.lost, file.dropped) == (11, 0, 4)


def test_close_writes_what_is_queued_and_later_events_are_dropped(make: Make, path: Path) -> None:
    file = make()
    file.offer([event(number) for number in range(3_000)])
    file.close()
    assert numbers(path.parent) == set(range(3_000))
    file.close()
    file.offer([event(3_000)])
    assert (file.written, file.dropped) == (3_000, 1)


def test_close_comes_back_from_a_disk_that_hangs(
    make: Make, path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, ordinary: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(module, "_GIVE_UP_SECONDS", 0.05)
    file = make()
    file.offer([event(number) for number in range(1_000)])
    file.close()
    assert file._thread.is_alive()
    assert "has not come back" in ordinary[-1].getMessage()
    gate.set()
    file._thread.join(5)
    assert not file._thread.is_alive()
    # The batch under way is written, and the rest was given up.
    assert (file.written, file.lost) == (module._BATCH, 1_000 - module._BATCH)
    assert len(ordinary) == 1
    file._handler.close()


# Trouble.


def test_a_removed_directory_costs_its_lines_and_one_warning(
    make: Make, path: Path, ordinary: list[logging.LogRecord]
) -> None:
    file = make()
    file.offer([event(1)])
    settled(file, 1)
    shutil.rmtree(path.parent)
    for number in range(2, 7):
        file.offer([event(number)])
        settled(file, number)
    assert (file.written, file.lost) == (1, 5)
    assert [record.levelname for record in ordinary] == ["WARNING"]
    assert "not written" in ordinary[0].getMessage()
    assert not path.parent.exists()
    path.parent.mkdir(mode=0o700)
    file.offer([event(7)])
    settled(file, 7)
    assert numbers(path.parent) == {7}
    wait_for("the good news", lambda: len(ordinary) == 2)
    assert "written again; 5 were lost" in ordinary[1].getMessage()
    file.close()


def test_a_file_that_was_moved_away_is_made_again(make: Make, path: Path) -> None:
    file = make()
    file.offer([event(1)])
    settled(file, 1)
    path.rename(path.with_name("moved"))
    file.offer([event(2)])
    settled(file, 2)
    assert [line["request_id"] for line in lines(path)] == ["request-2"]
    assert file.lost == 0


FULL_DISK = """
import json, logging, os, resource, sys, time
from pathlib import Path
from callpool.manager.lifecycle_file import LifecycleFile
path = Path(sys.argv[1])
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
file = LifecycleFile(path)
def offer(count, first):
    before = file.written + file.lost
    file.offer([{"wall": 0.0, "request_id": f"request-{n}", "metadata": b"{}"} for n in range(first, first + count)])
    deadline = time.monotonic() + 30
    while file.written + file.lost < before + count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
offer(3, 0)
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
for first in (3, 8, 13):
    offer(5, first)
assert path.stat().st_size == size, "half a line is left"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
offer(4, 18)
file.close()
print(file.written, file.lost, file.dropped)
"""


def test_a_full_disk_costs_its_lines_and_one_warning(path: Path) -> None:
    # A limit on the size of files fails like a full disk, in the middle of a write; it needs a process of its own.
    run = subprocess.run(
        [sys.executable, "-I", "-c", FULL_DISK, path], capture_output=True, text=True, timeout=50, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "7 15 0\n"
    assert [line.split()[0] for line in run.stderr.splitlines()] == ["WARNING", "INFO", "WARNING"], run.stderr
    assert "File too large" in run.stderr
    assert numbers(path.parent) == {0, 1, 2, 18, 19, 20, 21}


@pytest.mark.parametrize(
    "broken",
    [
        {"metadata": {"password": "hunter2"}}, {"metadata": '{"password":"hunter2"}'}, {"model": object()},
        {"model": float("nan")}, {"wall": None}, {"wall": float("inf")}, {"wall": 1e300},
    ],
    ids=range(7),
)  # fmt: skip
def test_an_event_that_cannot_be_written_costs_no_other(
    make: Make, path: Path, broken: dict[str, Any], ordinary: list[logging.LogRecord]
) -> None:
    file = make()
    file.offer([event(1), event(2, **broken), event(3)])
    settled(file, 3)
    assert numbers(path.parent) == {1, 3}
    assert (file.written, file.lost) == (2, 1)
    assert b"hunter2" not in path.read_bytes()
    wait_for("the warning", lambda: len(ordinary) == 1)


def test_a_logger_that_was_switched_off_is_said(make: Make, ordinary: list[logging.LogRecord]) -> None:
    file = make()
    logger = logging.getLogger(LOGGER)
    logger.disabled = True
    try:
        file.offer([event(1), event(2)])
        settled(file, 2)
        wait_for("the warning", lambda: len(ordinary) == 1)
    finally:
        logger.disabled = False
    assert "switched off" in ordinary[0].getMessage()
    assert file.lost == 2
