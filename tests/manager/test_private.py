"""What may be trusted, by examples on a real file system; owners other than us need root, so those rules are asked directly."""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from callpool.manager import private
from callpool.manager.errors import UnsafePath
from callpool.manager.private import (
    check_private_dir,
    ensure_private_dir,
    open_private_dir,
    open_private_file,
    read_private_file,
    write_private_file,
)

US = os.geteuid()
STRANGER = US + 1


@pytest.fixture
def place(base_folder: Path) -> Path:
    """A private directory under /tmp, which is sticky: what a runtime directory may be."""
    place = base_folder / "place"
    place.mkdir(mode=0o700)
    return place


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# Directories.


def test_missing_components_are_made_private_whatever_the_umask(place: Path) -> None:
    before = os.umask(0)
    try:
        ensure_private_dir(place / "a" / "b")
    finally:
        os.umask(before)
    assert [mode_of(place / "a"), mode_of(place / "a" / "b")] == [0o700, 0o700]
    ensure_private_dir(place / "a" / "b")
    check_private_dir(place / "a" / "b")


def test_a_missing_directory_is_only_made_when_asked(place: Path) -> None:
    for function in (check_private_dir, open_private_dir):
        with pytest.raises(FileNotFoundError) as caught:
            function(place / "a" / "b")
        assert caught.value.filename == str(place / "a")
    assert not (place / "a").exists()


def test_a_relative_path_begins_in_the_working_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    ensure_private_dir(Path("a/b"))
    assert (place / "a" / "b").is_dir()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o750, 0o701, 0o720])
def test_a_directory_that_others_can_enter_is_refused_with_the_way_to_mend_it(place: Path, mode: int) -> None:
    target = place / "a"
    target.mkdir()
    target.chmod(mode)
    with pytest.raises(UnsafePath) as caught:
        ensure_private_dir(target)
    assert str(caught.value) == f"{target} has mode {mode:04o}: others could enter it"
    assert caught.value.hint == f"chmod 700 {target}"
    target.chmod(0o700)
    ensure_private_dir(target)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_parent_that_others_can_write_to_is_refused(place: Path, mode: int) -> None:
    target = place / "a" / "b"
    ensure_private_dir(target)
    target.parent.chmod(mode)
    with pytest.raises(UnsafePath) as caught:
        check_private_dir(target)
    expected = f"{target.parent}, on the way to {target}, has mode {mode:04o}: others could replace what is in it"
    assert str(caught.value) == expected
    assert caught.value.hint == f"chmod go-w {target.parent}"
    with pytest.raises(UnsafePath):
        ensure_private_dir(target.parent / "new")
    assert not (target.parent / "new").exists(), "nothing is made where others could exchange it"


@pytest.mark.parametrize("mode", [0o755, 0o711, 0o1777])
def test_a_parent_that_others_may_pass_or_that_is_sticky_is_fine(place: Path, mode: int) -> None:
    (place / "a").mkdir()
    (place / "a").chmod(mode)
    ensure_private_dir(place / "a" / "b")


def test_a_link_in_the_last_place_is_refused_even_our_own(place: Path) -> None:
    (place / "real").mkdir(mode=0o700)
    (place / "link").symlink_to("real")
    (place / "broken").symlink_to("nowhere")
    for name in ("link", "broken"):
        with pytest.raises(UnsafePath) as caught:
            ensure_private_dir(place / name)
        assert str(caught.value) == f"{place}/{name} is a symbolic link"
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize("target", ["real", "../place/real", "./real//", "{place}/real", "second"])
def test_a_link_of_ours_among_the_parents_is_followed_and_what_it_leads_to_examined(place: Path, target: str) -> None:
    (place / "real").mkdir(mode=0o700)
    (place / "second").symlink_to("real")
    (place / "link").symlink_to(target.format(place=place))
    ensure_private_dir(place / "link" / "x")
    assert (place / "real" / "x").is_dir()
    (place / "real").chmod(0o777)
    with pytest.raises(UnsafePath, match="others could replace"):
        check_private_dir(place / "link" / "x")


def test_dots_are_walked_as_the_system_walks_them(place: Path) -> None:
    """By text, `link/../x` is `x` beside the link; for the system it is beside the link's target."""
    (place / "far" / "real").mkdir(parents=True, mode=0o700)
    (place / "far").chmod(0o700)
    (place / "link").symlink_to("far/real")
    ensure_private_dir(place / "link" / ".." / "x")
    assert (place / "far" / "x").is_dir()
    assert not (place / "x").exists()


def test_links_in_a_circle_are_refused(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with pytest.raises(UnsafePath, match="too many symbolic links"):
        ensure_private_dir(place / "a" / "x")


def test_a_file_on_the_way_is_refused(place: Path) -> None:
    (place / "file").touch()
    for path in (place / "file", place / "file" / "x"):
        with pytest.raises(UnsafePath, match="file cannot be entered or made: Not a directory"):
            ensure_private_dir(path)


def test_a_name_that_is_too_long_is_refused(place: Path) -> None:
    with pytest.raises(UnsafePath, match="File name too long"):
        ensure_private_dir(place / ("x" * 300))


def test_a_shortage_of_descriptors_is_not_called_unsafe(place: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))  # one is enough for the root, not for a step
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            ensure_private_dir(place / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not isinstance(caught.value, UnsafePath)
    assert caught.value.errno == errno.EMFILE


def facts(kind: int, mode: int, owner: int) -> os.stat_result:
    return os.stat_result((kind | mode, 1, 1, 1, owner, owner, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("rule", "kind", "mode", "owner", "expected"),
    [
        (private._complaint_of_parent, stat.S_IFDIR, 0o755, 0, None),
        (private._complaint_of_parent, stat.S_IFDIR, 0o755, US, None),
        (private._complaint_of_parent, stat.S_IFDIR, 0o700, STRANGER, f"belongs to user {STRANGER}, who could replace"),
        (
            private._complaint_of_parent,
            stat.S_IFDIR,
            0o1777,
            STRANGER,
            f"belongs to user {STRANGER}, who could replace",
        ),
        (private._complaint_of_parent, stat.S_IFDIR, 0o775, 0, "has mode 0775: others could replace"),
        (private._complaint_of_parent, stat.S_IFDIR, 0o1777, 0, None),
        (private._complaint_of_directory, stat.S_IFDIR, 0o700, US, None),
        (private._complaint_of_directory, stat.S_IFDIR, 0o700, STRANGER, f"belongs to user {STRANGER}, not to us"),
        (private._complaint_of_directory, stat.S_IFDIR, 0o1700, US, None),
        (private._complaint_of_file, stat.S_IFREG, 0o600, US, None),
        (private._complaint_of_file, stat.S_IFREG, 0o400, US, None),
        (private._complaint_of_file, stat.S_IFREG, 0o600, STRANGER, f"belongs to user {STRANGER}, not to us"),
        (private._complaint_of_file, stat.S_IFREG, 0o640, US, "has mode 0640: others could read it"),
        (private._complaint_of_file, stat.S_IFIFO, 0o600, US, "is not a regular file"),
        (private._complaint_of_file, stat.S_IFSOCK, 0o600, US, "is not a regular file"),
    ],
)
def test_the_rules_about_owners_and_modes(
    rule: Callable[[os.stat_result, int], tuple[str, str] | None],
    kind: int,
    mode: int,
    owner: int,
    expected: str | None,
) -> None:
    complaint = rule(facts(kind, mode, owner), US)
    if expected is None:
        assert complaint is None
    else:
        assert complaint is not None
        assert complaint[0].startswith(expected)


@pytest.mark.skipif(US != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("name", ["theirs", "theirs/x", "their-link/x"])
def test_what_belongs_to_another_user_is_refused(place: Path, name: str) -> None:
    (place / "theirs").mkdir(mode=0o700)
    (place / "real").mkdir(mode=0o700)
    (place / "their-link").symlink_to("real")
    os.chown(place / "theirs", 12_345, 12_345)
    os.chown(place / "their-link", 12_345, 12_345, follow_symlinks=False)
    with pytest.raises(UnsafePath, match="user 12345"):
        ensure_private_dir(place / name)


def good_and_bad(place: Path) -> tuple[Path, Path]:
    """Two directories with a private `x` in each; others could exchange what is in the second."""
    for name, mode in (("good", 0o700), ("bad", 0o777)):
        (place / name / "x").mkdir(parents=True, mode=0o700)
        (place / name).chmod(mode)
    return place / "good", place / "bad"


def test_a_directory_that_is_swapped_between_check_and_use_is_not_used(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = good_and_bad(place)
    way = good.rename(place / "way")
    system_open = os.open

    def swap_after_way(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = system_open(name, flags, mode, dir_fd=dir_fd)
        if name.endswith("way"):
            way.rename(good)
            way.symlink_to(bad)
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", swap_after_way)
        descriptor = open_private_dir(way / "x")
    assert way.is_symlink(), "the swap was not made"
    assert os.fstat(descriptor).st_ino == (good / "x").stat().st_ino
    os.close(descriptor)


def test_a_directory_that_is_swapped_under_the_walk_never_wins(place: Path) -> None:
    """Another thread exchanges `way`, as fast as it can, between a good directory and a link to a bad one.

    The walk may find the good one, nothing, or the bad one, which it refuses; but never what is in the bad one.
    """
    good, bad = good_and_bad(place)
    way, link = place / "way", place / "link"
    inode = (good / "x").stat().st_ino
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            good.rename(way)
            way.rename(good)
            link.symlink_to(bad)
            link.rename(way)
            way.unlink()

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = {"private": 0, "refused": 0, "absent": 0}
    try:
        for _try in range(200_000):
            if all(count >= 20 for count in seen.values()):
                break
            try:
                descriptor = open_private_dir(way / "x")
            except UnsafePath:
                seen["refused"] += 1
            except FileNotFoundError:
                seen["absent"] += 1
            else:
                opened = os.fstat(descriptor).st_ino
                os.close(descriptor)
                assert opened == inode
                seen["private"] += 1
    finally:
        done.set()
        swapper.join()
    assert min(seen.values()) >= 20, f"the race was not run: {seen}"


# Files.


def test_a_file_is_made_private_and_opened_again(place: Path) -> None:
    before = os.umask(0)
    try:
        descriptor = open_private_file(place / "f", os.O_RDWR | os.O_CREAT)
    finally:
        os.umask(before)
    assert not os.get_inheritable(descriptor)
    os.write(descriptor, b"x")
    os.close(descriptor)
    assert mode_of(place / "f") == 0o600
    os.close(open_private_file(place / "f", os.O_RDONLY))
    os.close(open_private_file(place / "f", os.O_WRONLY | os.O_TRUNC))
    assert (place / "f").read_bytes() == b""


def test_the_directory_of_a_file_must_be_private(place: Path) -> None:
    place.chmod(0o755)
    with pytest.raises(UnsafePath, match="others could enter"):
        open_private_file(place / "f", os.O_RDWR | os.O_CREAT)
    with pytest.raises(UnsafePath, match="others could enter"):
        write_private_file(place / "f", b"x")
    assert list(place.iterdir()) == []


@pytest.fixture
def victim(base_folder: Path) -> Iterator[Path]:
    """A file of ours to which somebody planted a link; it must come out of the test as it was."""
    victim = base_folder / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    inode = victim.stat().st_ino
    yield victim
    assert victim.read_bytes() == b"precious"
    assert victim.stat().st_ino == inode


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC])
def test_a_planted_link_is_not_opened(place: Path, victim: Path, flags: int) -> None:
    (place / "f").symlink_to(victim)
    with pytest.raises(UnsafePath) as caught:
        open_private_file(place / "f", flags)
    assert str(caught.value) == f"{place}/f is a symbolic link"


def test_a_planted_link_is_replaced_by_a_written_file(place: Path, victim: Path) -> None:
    (place / "f").symlink_to(victim)
    write_private_file(place / "f", b"new")
    assert not (place / "f").is_symlink()
    assert (place / "f").read_bytes() == b"new"


def test_a_file_that_is_wrong_is_not_emptied(place: Path) -> None:
    (place / "f").write_bytes(b"kept")
    (place / "f").chmod(0o644)
    with pytest.raises(UnsafePath, match="has mode 0644"):
        open_private_file(place / "f", os.O_WRONLY | os.O_TRUNC)
    assert (place / "f").read_bytes() == b"kept"


def test_what_is_no_regular_file_is_refused_without_waiting(place: Path) -> None:
    os.mkfifo(place / "pipe", 0o600)
    (place / "directory").mkdir(mode=0o700)
    for name, flags in (("pipe", os.O_RDONLY), ("pipe", os.O_WRONLY), ("pipe", os.O_RDWR), ("directory", os.O_RDONLY)):
        with pytest.raises(UnsafePath):
            open_private_file(place / name, flags)
    for name in ("pipe", "directory"):
        with pytest.raises(UnsafePath, match="is not a regular file"):
            read_private_file(place / name)


def test_the_answers_of_the_system_reach_the_caller(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_private_file(place / "f", os.O_RDONLY)
    os.close(open_private_file(place / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    with pytest.raises(FileExistsError):
        open_private_file(place / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL)


def test_a_file_is_written_whole_and_replaces_an_older_one(place: Path) -> None:
    before = os.umask(0)
    try:
        write_private_file(place / "f", b"one")
        write_private_file(place / "f", b"two")
    finally:
        os.umask(before)
    assert (place / "f").read_bytes() == b"two"
    assert mode_of(place / "f") == 0o600
    assert [path.name for path in place.iterdir()] == ["f"]


def test_a_failed_write_leaves_the_older_file_and_nothing_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private_file(place / "f", b"one")

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(OSError, match="No space left"):
            write_private_file(place / "f", b"two")
    assert (place / "f").read_bytes() == b"one"
    assert [path.name for path in place.iterdir()] == ["f"]


def test_a_secret_is_read_from_anywhere_if_only_we_can_read_it(base_folder: Path) -> None:
    open_to_all = base_folder / "etc"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    path = open_to_all / "key"
    path.write_bytes(b"k" * private.LARGEST_PRIVATE_FILE)
    path.chmod(0o400)
    assert len(read_private_file(path)) == private.LARGEST_PRIVATE_FILE
    path.chmod(0o644)
    with pytest.raises(UnsafePath) as caught:
        read_private_file(path)
    assert str(caught.value) == f"{path} has mode 0644: others could read it"
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    path.write_bytes(b"k" * (private.LARGEST_PRIVATE_FILE + 1))
    with pytest.raises(UnsafePath, match="larger than 8192 bytes"):
        read_private_file(path)
    (open_to_all / "link").symlink_to(path)
    with pytest.raises(UnsafePath, match="is a symbolic link"):
        read_private_file(open_to_all / "link")
    with pytest.raises(FileNotFoundError):
        read_private_file(open_to_all / "absent")
