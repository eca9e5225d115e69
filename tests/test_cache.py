"""Artifacts are made once and are never read half-written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantbench.core import cache, checksums, scratch
from quantbench.core.errors import QuantbenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ASKED = {"content": "c0ffee", "precision": "q8_0"}


@pytest.fixture(scope="module")
def cache_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all examples of a property."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("QUANTBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("QUANTBENCH_CACHE", str(folder))
    return folder


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_variable_names_the_folder(cache_folder: Path) -> None:
    assert cache.cache_root() == cache_folder


def test_a_relative_folder_stays_where_it_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUANTBENCH_CACHE", "here")
    assert cache.cache_root() == tmp_path / "here"


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_it_is_the_users_cache_folder(
    value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("QUANTBENCH_CACHE", raising=False)
    else:
        monkeypatch.setenv("QUANTBENCH_CACHE", value)
    assert cache.cache_root().name == "quantbench"
    assert cache.cache_root() != Path()


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_the_address_depends_on_what_was_asked_and_not_on_its_order(asked: dict[str, object]) -> None:
    assert cache.digest(dict(reversed(asked.items()))) == cache.digest(asked)
    assert cache.digest({**asked, "another key": 1}) != cache.digest(asked)


@pytest.mark.usefixtures("cache_folder")
def test_an_artifact_is_made_once_and_says_what_it_was_made_from() -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "model.gguf").write_bytes(b"weights")

    first = cache.artifact("gguf", ASKED, make)
    second = cache.artifact("gguf", dict(reversed(ASKED.items())), make)
    assert first == second
    assert len(made) == 1
    assert _files(first) == ["asked.json", "checksums.json", "model.gguf"]
    assert json.loads((first / "asked.json").read_text()) == ASKED


@pytest.mark.usefixtures("cache_folder")
def test_other_kinds_and_other_wishes_have_other_places() -> None:
    places = {
        cache.artifact("gguf", ASKED, lambda _: None),
        cache.artifact("reference", ASKED, lambda _: None),
        cache.artifact("gguf", {**ASKED, "precision": "q4_k_m"}, lambda _: None),
    }
    assert len(places) == 3


def test_a_failed_make_leaves_nothing_and_is_tried_again(cache_folder: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.gguf").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.artifact("gguf", ASKED, fail)
    assert _files(cache_folder) == []
    place = cache.artifact("gguf", ASKED, lambda folder: (folder / "model.gguf").write_bytes(b"whole"))
    assert (place / "model.gguf").read_bytes() == b"whole"


@pytest.mark.usefixtures("cache_folder")
def test_the_folder_that_was_filled_is_moved_and_not_copied() -> None:
    """A copy would be there half-written for a while."""
    filled: list[int] = []
    place = cache.artifact("gguf", ASKED, lambda folder: filled.append(folder.stat().st_ino))
    assert filled == [place.stat().st_ino]


@pytest.mark.usefixtures("cache_folder")
def test_nothing_is_in_place_while_it_is_being_made() -> None:
    """A process killed in the middle leaves a folder that nobody reads."""
    place = cache.cache_root() / "gguf" / cache.digest(ASKED)
    cache.artifact("gguf", ASKED, lambda _: None if not place.exists() else pytest.fail("visible before it was whole"))
    assert place.is_dir()


def test_when_two_race_the_first_wins_and_both_get_it(cache_folder: Path) -> None:
    both_are_making = Barrier(2)

    def make(text: str) -> Path:
        def fill(folder: Path) -> None:
            both_are_making.wait(timeout=30)
            (folder / "who").write_text(text)

        return cache.artifact("gguf", ASKED, fill)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(make, ["one", "two"])
    assert one == two
    assert (one / "who").read_text() in ("one", "two")
    assert len(list((cache_folder / "gguf").iterdir())) == 1


@pytest.mark.usefixtures("cache_of_module")
@given(content=st.binary(max_size=200))
def test_file_sha256_is_hashlibs(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("sha") / "file"
    path.write_bytes(content)
    assert cache.file_sha256(path) == hashlib.sha256(content).hexdigest()
    assert cache.file_sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("cache_folder")
def test_file_sha256_notices_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"aaaa")
    first = cache.file_sha256(path)
    path.write_bytes(b"bbbb")
    later = time.time_ns() + 10**9
    os.utime(path, ns=(later, later))
    assert cache.file_sha256(path) != first


@pytest.mark.usefixtures("cache_folder")
def test_file_sha256_notices_another_content_of_the_same_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``touch -r`` leaves it, written in place and put in its place."""
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)
    path = tmp_path / "weights"
    path.write_bytes(b"aaaa")
    stat = path.stat()
    assert cache.file_sha256(path) == hashlib.sha256(b"aaaa").hexdigest()
    time.sleep(0.05)
    path.write_bytes(b"bbbb")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.file_sha256(path) == hashlib.sha256(b"bbbb").hexdigest()
    other = tmp_path / "other"
    other.write_bytes(b"cccc")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    assert cache.file_sha256(path) == hashlib.sha256(b"cccc").hexdigest()


@pytest.mark.usefixtures("cache_folder")
def test_a_file_is_hashed_once_and_again_where_the_memory_of_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)
    path = tmp_path / "weights"
    path.write_bytes(b"aaaa")
    known = cache.file_sha256(path)
    monkeypatch.setattr(cache, "sha256_of", lambda _: "read again")
    assert cache.file_sha256(path) == known
    (note,) = (cache.cache_root() / "sha256").iterdir()
    note.write_text(note.read_text().replace(known, "0" * 64))
    assert cache.file_sha256(path) == "read again"


def _flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _made(text: str = "weights") -> Path:
    return cache.artifact("gguf", ASKED, lambda folder: (folder / "model.gguf").write_text(text))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": lambda place: _flip(place / "model.gguf"),
    "cut short": lambda place: (place / "model.gguf").write_bytes(b"weig"),
    "file gone": lambda place: (place / "model.gguf").unlink(),
    "file added": lambda place: (place / "model.safetensors").write_bytes(b""),
    "older": lambda place: (place / "checksums.json").unlink(),
    "checksums": lambda place: _flip(place / "checksums.json", 0),
    "asked": lambda place: (place / "asked.json").write_text("{}"),
}


@pytest.mark.usefixtures("cache_folder")
@pytest.mark.parametrize("damaged", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_set_aside_said_and_made_again(
    damaged: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    place = _made()
    damaged(place)
    assert _made("again") == place
    assert (place / "model.gguf").read_text() == "again"
    (aside,) = place.parent.glob(".damaged-*")
    assert re.fullmatch(
        rf"quantbench: gguf {place.name} in the cache was damaged \(.+\); it was set aside as {aside.name} and made again\n",
        capsys.readouterr().err,
    )
    assert _made("not once more") == place
    assert capsys.readouterr().err == ""


def test_what_was_told_in_a_run_is_kept_there_and_a_file_is_read_once_in_a_run(
    cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever process: the memory of this one is emptied in between."""
    run = tmp_path / "run"
    run.mkdir()
    _flip(_made() / "model.gguf")
    with checksums.of_run(run):
        place = _made()
        assert _made() == place
        checksums._once.cache_clear()
        monkeypatch.setattr(checksums, "sha256_of", lambda _: pytest.fail("read once more"))
        assert _made() == place
    assert len(checksums.said(run)) == 1
    assert "set aside" in checksums.said(run)[0]


def test_links_are_held_to_where_they_point(cache_folder: Path, tmp_path: Path) -> None:
    """What they point to is the user's, and as large as it likes."""
    mine = tmp_path / "mine"
    mine.write_text("one")
    place = cache.artifact("packed", ASKED, lambda folder: (folder / "link").symlink_to(mine))
    mine.write_text("two")
    assert checksums.damage(place) == ""
    (place / "link").unlink()
    (place / "link").symlink_to(tmp_path)
    assert checksums.damage(place) == "link is not what was written"


@pytest.mark.usefixtures("cache_folder")
def test_folders_and_files_follow_the_umask() -> None:
    before = os.umask(0o022)
    try:
        place = _made()
        cache.remember("kind", {}, 1)
    finally:
        os.umask(before)
    (note,) = (cache.cache_root() / "kind").iterdir()
    assert (place.stat().st_mode & 0o777, note.stat().st_mode & 0o777) == (0o755, 0o644)


@pytest.mark.usefixtures("cache_folder")
def test_what_a_library_writes_for_its_owner_alone_follows_the_umask_too() -> None:
    """As safetensors does; links are left alone, and what may be executed still may."""

    def make(folder: Path) -> None:
        for name, mode in (("weights", 0o600), ("program", 0o700)):
            (folder / "inner").mkdir(mode=0o700, exist_ok=True)
            (folder / "inner" / name).write_text(name)
            (folder / "inner" / name).chmod(mode)
        (folder / "link").symlink_to("/nowhere")

    before = os.umask(0o027)
    try:
        place = cache.artifact("gguf", ASKED, make)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (place / "inner", *(place / "inner").iterdir())}
    assert modes == {"inner": 0o750, "weights": 0o640, "program": 0o740}


def test_the_makers_source_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "maker_of_something.py").write_text("STEPS = 1\n")
    before = cache.made_by("maker_of_something", "quantbench.core.cache")
    assert cache.made_by("quantbench.core.cache", "maker_of_something") == before
    (tmp_path / "maker_of_something.py").write_text("STEPS = 2\n")
    assert cache.made_by("maker_of_something", "quantbench.core.cache") != before


KILLED = """
import os, sys
from pathlib import Path
from quantbench.core import cache, scratch
if sys.argv[1] == "cache":
    cache.artifact("gguf", {"a": 1}, lambda folder: (print(folder, flush=True), sys.stdin.read()))
else:
    with scratch.scratch_folder() as folder:
        print(folder, flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("where", ["cache", "temporary"])
def test_what_a_killed_process_leaves_is_swept_and_what_a_live_one_has_is_not(
    where: str, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        left = Path(child.stdout.readline().strip())
        (left / "half").write_bytes(b"12345")
        assert scratch.sweep(cache_folder).places == 0
        child.kill()
    assert left.is_dir()
    found = scratch.sweep(cache_folder)
    assert not left.exists()
    assert (found.places, found.size >= 5) == (1, True)
    assert scratch.sweep(cache_folder).sentences == []


def test_a_folder_that_is_not_locked_yet_is_left_for_a_minute(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache_folder / "gguf").mkdir(parents=True)
    new = cache_folder / "gguf" / scratch.partial_name("0" * 24)
    new.mkdir()
    scratch.sweep(cache_folder)
    assert new.is_dir()
    monkeypatch.setattr(scratch, "_UNLOCKED_S", 0)
    scratch.sweep(cache_folder)
    assert not new.exists()


def test_what_another_kernels_process_may_own_is_left_for_a_day_and_what_was_set_aside_for_a_week(
    cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, new = "0" * 24, "1" * 24
    days = {f".{old}-abcdefgh": 2, f".{new}-abcdefgh": 0.5, f".damaged-{old}-1": 8, f".damaged-{new}-1": 6, ".my-own": 99}
    for name, age in days.items():
        folder = cache_folder / "gguf" / name
        folder.mkdir(parents=True)
        long_ago = time.time() - age * 86_400
        os.utime(folder, (long_ago, long_ago))
    mine = Path(tempfile.gettempdir()) / "quantbench-results"
    mine.mkdir()
    os.utime(mine, (long_ago, long_ago))
    scratch.sweep(cache_folder)
    assert mine.is_dir()
    assert {path.name for path in (cache_folder / "gguf").iterdir()} == {
        f".{new}-abcdefgh", f".damaged-{new}-1", ".my-own",
    }  # fmt: skip


def test_write_atomically_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "note"
    cache.write_atomically(path, "one")
    cache.write_atomically(path, iter(["tw\N{LATIN SMALL LETTER O WITH DIAERESIS}", "\r\n"]))
    assert path.read_bytes() == b"tw\xc3\xb6\r\n"
    assert _files(tmp_path) == ["note"]


def test_write_atomically_keeps_the_old_file_when_it_cannot_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note"
    cache.write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")  # a kernel names no file here

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        cache.write_atomically(path, "new")
    assert path.read_bytes() == b"old"
    assert _files(tmp_path) == ["note"]


def test_a_folder_is_found_when_it_is_filled_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()  # empty: it is replaced
    with cache.folder_beside(place) as folder:
        (folder / "weights").write_text("1")
        assert list(place.iterdir()) == []
    assert _files(tmp_path) == ["model/weights"]
    with pytest.raises(OSError, match="not empty"), cache.folder_beside(place) as folder:
        (folder / "weights").write_text("2")
    assert (place / "weights").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("QUANTBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(QuantbenchError, match=r"the cache cannot be written at .*; set QUANTBENCH_CACHE"):
        cache.artifact("kind", {"a": 1}, Path.exists)
    cache.remember("kind", {"a": 1}, 1)  # what is small is found out again
    assert cache.recall("kind", {"a": 1}) is None


@pytest.mark.usefixtures("cache_folder")
def test_what_may_not_be_written_in_the_cache_is_one_sentence_and_other_errors_are_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbid(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "model.gguf"))

    with pytest.raises(QuantbenchError, match=r"the cache cannot be written at \S+ \(Permission denied\); set"):
        cache.artifact("kind", {"a": 1}, forbid)
    with pytest.raises(PermissionError, match="the user's own"):
        cache.artifact("kind", {"a": 1}, lambda _: (_ for _ in ()).throw(PermissionError(13, "the user's own", "/my/model")))


def test_no_folder_for_temporary_files_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(QuantbenchError, match=r"no folder for temporary files can be made \(.*none.*\); set TMPDIR"),
        scratch.scratch_folder(tmp_path / "none"),
    ):
        pass
